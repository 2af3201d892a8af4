// Every hyperparameter, and where it came from.

import { h } from "../../dom.js";
import { compact, whole } from "../../format.js";

export function configuration(job) {
  const shape = job.run?.model_config;
  return {
    element: h("section", { class: "panel" }, h("h2", {}, "Configuration"),
      h("p", { class: "soft" }, "Dataset ", h("a", { href: "/datasets" }, job.dataset),
        job.run ? `: ${compact(job.run.train_tokens)} training tokens, ${compact(job.run.parameter_count)} parameters, vocabulary of ${whole(shape.vocab_size)}.` : "."),
      h("details", {}, h("summary", {}, "All values"),
        h("table", { class: "plain config" },
          h("thead", {}, h("tr", {}, ["Field", "Value", "From"].map((text) => h("th", { scope: "col" }, text)))),
          h("tbody", {}, Object.entries(job.config).map(([name, value]) => h("tr", {},
            h("th", { scope: "row" }, h("code", {}, name)),
            h("td", {}, String(value)),
            h("td", { class: "soft" }, job.config_origin[name]))))))),
  };
}
