// Streams of events that outlive the connection, and a server that starts again.
//
// Each numbered event is seen once: after a break the stream is asked for from the next number on.
// `connection` tells whether any open stream is without its server.
//
// A tab that nobody sees holds no stream: a browser opens six connections to a server at a time, for
// all its tabs together. Shown again, it goes on from where it was.

const RETRY_MILLISECONDS = [250, 500, 1000, 2000, 4000];

class Connection extends EventTarget {
  #lost = new Set();
  #told = false;

  get isLost() {
    return this.#lost.size > 0;
  }

  set(stream, isLost) {
    if (isLost) this.#lost.add(stream);
    else this.#lost.delete(stream);
    if (this.#told === this.isLost) return;
    this.#told = this.isLost;
    this.dispatchEvent(new Event("change"));
  }

  // Nobody follows it any more, which says nothing about the server: the next stream does.
  forget(stream) {
    this.#lost.delete(stream);
  }
}

export const connection = new Connection();

// Follows `path`. `onData` gets each message; `onError` one that no new attempt will mend.
// Returns what ends it. `next` is the number of the first event that is wanted; a message that has
// a `next_offset` says itself what follows it.
export function follow(path, { next = null, parameter = "start", onData, onError = () => {} }) {
  const self = {};
  let source = null;
  let timer = null;
  let failures = 0;

  const rest = () => {
    source?.close();
    clearTimeout(timer);
    source = null;
  };

  const close = () => {
    document.removeEventListener("visibilitychange", turn);
    rest();
    connection.forget(self);
  };

  const lose = () => {
    source?.close();
    connection.set(self, true);
    const wait = RETRY_MILLISECONDS[Math.min(failures, RETRY_MILLISECONDS.length - 1)];
    failures += 1;
    timer = setTimeout(open, wait);
  };

  const receive = (event) => {
    const data = JSON.parse(event.data);
    if (data.kind === "error") {
      if (data.reason === "UNAVAILABLE") return lose();
      close();
      return onError(data);
    }
    if (event.lastEventId !== "" && next !== null) {
      const number = Number(event.lastEventId);
      if (data.sequence === number && number < next) return undefined; // seen already
      if (data.sequence === number) next = number + 1;
    }
    if (data.next_offset !== undefined) next = data.next_offset;
    onData(data);
    if (data.kind === "end") close();
    return undefined;
  };

  function open() {
    source = new EventSource(next === null ? path : `${path}?${parameter}=${next}`);
    source.onopen = () => {
      failures = 0;
      connection.set(self, false);
    };
    source.onmessage = receive;
    source.onerror = lose;
  }

  function turn() {
    rest();
    if (!document.hidden) open();
  }

  document.addEventListener("visibilitychange", turn);
  turn();
  return close;
}
