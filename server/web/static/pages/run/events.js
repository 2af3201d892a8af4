// What happened, newest first, and how often the trainer was started.

import { fill, h } from "../../dom.js";
import { badge, reasonText } from "../../components/state.js";
import * as format from "../../format.js";

const MAX_SHOWN = 60;

const TEXTS = {
  started: (event) => `began: ${format.compact(event.parameter_count)} parameters on ${event.device_name}`,
  evaluation: (event) => `evaluated: validation ${format.loss(event.val_loss)}, training ${format.loss(event.train_loss)}${event.is_best ? ", the best so far" : ""}`,
  checkpoint: (event) => `checkpoint written, ${format.bytes(event.size_bytes)}`,
  sample: () => "sample written",
  divergence: (event) => event.rolled_back_to_step === null || event.rolled_back_to_step === undefined
    ? "a step that could not be used was left out" : `went back to step ${format.whole(event.rolled_back_to_step)}`,
};

export function events() {
  const list = h("ol", { class: "events", tabindex: 0, "aria-label": "Events" });
  const starts = h("div", { class: "scroll" });
  const states = h("div");
  const none = h("p", { class: "empty" }, "Nothing yet.");
  const element = h("section", { class: "panel" }, h("h2", {}, "Events"), none, list, h("h3", {}, "Attempts"), starts,
    h("details", {}, h("summary", {}, "Every state it has been in"), states));
  const one = (event) => h("li", { class: event.kind },
    h("time", { datetime: new Date(1000 * event.time).toISOString(), title: format.clock(event.time) }, format.clock(event.time).slice(11)),
    h("span", { class: "soft number" }, event.step === undefined ? "" : `step ${format.whole(event.step)}`),
    h("span", {}, TEXTS[event.kind]?.(event) ?? event.kind));

  const attempts = (job) => {
    fill(states, h("ol", { class: "events" }, job.history.map((standing) => h("li", {},
      h("time", { title: format.clock(standing.since) }, format.clock(standing.since).slice(11)),
      badge(standing.state), h("span", { class: "soft" }, standing.error || reasonText(standing.reason))))));
    if (job.attempts.length === 0) return fill(starts, h("p", { class: "empty" }, "Not started yet."));
    return fill(starts, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, ["", "Started", "From step", "Lasted", "Ended"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, job.attempts.map((attempt) => h("tr", {},
        h("th", { scope: "row" }, attempt.number),
        h("td", {}, format.clock(attempt.start_time)),
        h("td", {}, format.whole(attempt.first_step)),
        h("td", {}, attempt.end_time === null ? format.UNKNOWN : format.seconds(attempt.end_time - attempt.start_time)),
        h("td", {}, ending(attempt)))))));
  };
  return {
    element,
    attempts,
    begin: (found, job) => {
      none.hidden = found.length > 0;
      fill(list, found.slice(-MAX_SHOWN).reverse().map(one));
      attempts(job);
    },
    add: (event) => {
      none.hidden = true;
      list.prepend(one(event));
      while (list.children.length > MAX_SHOWN) list.lastChild.remove();
    },
  };
}

function ending(attempt) {
  if (attempt.ending) return attempt.ending;
  if (attempt.end_time === null) return "runs";
  if (attempt.exit_code === null) return "nobody saw it end";
  if (attempt.exit_code === 0) return "done";
  if (attempt.exit_code === 75) return "stopped with a checkpoint";
  return attempt.exit_code < 0 ? `signal ${-attempt.exit_code}` : `exit code ${attempt.exit_code}`;
}
