// What the job's processes printed, followed while it is open.

import { fill, h } from "../../dom.js";
import { follow } from "../../live.js";

const MAX_CHARACTERS = 100_000;
const FIRST_BYTES = 20_000; // from the end

export function log(jobId) {
  const text = h("pre", { class: "log", tabindex: 0, "aria-label": "Log" });
  const note = h("p", { class: "soft", role: "status" });
  let stop = null;

  const add = (piece) => {
    note.hidden = true;
    const isAtEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
    const all = text.textContent + piece;
    if (all.length > MAX_CHARACTERS) fill(text, all.slice(all.indexOf("\n", all.length - MAX_CHARACTERS) + 1));
    else text.append(piece);
    if (isAtEnd) text.scrollTop = text.scrollHeight;
  };

  const begin = () => {
    fill(text);
    note.hidden = false;
    note.textContent = "Nothing printed yet.";
    stop = follow(`/api/jobs/${jobId}/log`, {
      next: -FIRST_BYTES, parameter: "offset",
      onData: (event) => { if (event.kind === "log") add(event.text); },
      onError: (error) => { note.hidden = false; note.textContent = error.message; },
    });
  };
  const end = () => { stop?.(); stop = null; };
  const details = h("details", { ontoggle: (event) => (event.target.open ? begin() : end()) },
    h("summary", {}, h("h2", {}, "Log")), note, text);
  return { element: h("section", { class: "panel group" }, details), close: end };
}
