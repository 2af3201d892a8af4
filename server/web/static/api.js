// Calls of the server's JSON API. Every failure is an ApiError that can be shown as it is.

export class ApiError extends Error {
  constructor(status, body) {
    super(body.message);
    this.status = status; // 0 if the server could not be reached
    this.reason = body.reason;
    this.violations = body.violations ?? [];
  }
}

// The server asks for its token: whoever is concerned hears of it here.
export const needsToken = new EventTarget();

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);

async function call(method, path, body) {
  const options = { method, headers: { "Content-Type": "application/json" } };
  if (body !== undefined) options.body = JSON.stringify(body);
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
}

// The events of an answer, as they come: for streams that begin with a POST.
export async function* stream(path, body, signal) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  };
  const response = await send(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : unreachable("the connection was lost");
    });
    if (done) return;
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    for (const message of messages) {
      if (!message.startsWith("data: ")) continue; // a sign of life
      const data = JSON.parse(message.slice(6));
      if (data.kind === "error") throw new ApiError(500, data);
      yield data;
    }
  }
}

// Sends a file and tells how much of it has gone. fetch() cannot tell that.
export function upload(path, file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("X-Nanogpt-Upload", "1");
    request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    request.onload = () => {
      const body = parsed(request.responseText);
      if (request.status < 300) resolve(body);
      else reject(new ApiError(request.status, body));
    };
    request.onerror = () => reject(unreachable("the connection was lost during the upload"));
    request.onabort = () => reject(new ApiError(0, { message: "the upload was stopped" }));
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw unreachable("the server cannot be reached");
  }
  if (response.ok) return response;
  const error = new ApiError(response.status, parsed(await response.text()));
  if (error.status === 401 && path !== "/api/session") needsToken.dispatchEvent(new Event("asked"));
  throw error;
}

const unreachable = (message) => new ApiError(0, { reason: "UNREACHABLE", message });

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return { reason: "HTTP", message: text.trim() || "the server gave no reason" };
  }
}
