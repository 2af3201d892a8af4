// What the model wrote during training, newest first.

import { h, fill } from "../../dom.js";
import * as format from "../../format.js";

const MAX_SHOWN = 20;

export function samples() {
  const list = h("div", { class: "samples" });
  const none = h("p", { class: "empty" }, "None yet. A sample is written at each evaluation.");
  const element = h("section", { class: "panel" }, h("h2", {}, "Samples"), none, list);
  const one = (sample) => h("article", { class: "sample" },
    h("h3", {}, `step ${format.whole(sample.step)}`),
    h("pre", { tabindex: 0, "aria-label": `Text of step ${sample.step}` },
      h("span", { class: "prompt" }, sample.prompt), sample.text));
  return {
    element,
    begin: (found) => {
      none.hidden = found.length > 0;
      fill(list, found.slice(-MAX_SHOWN).reverse().map(one));
    },
    add: (sample) => {
      none.hidden = true;
      list.prepend(one(sample));
      while (list.children.length > MAX_SHOWN) list.lastChild.remove();
    },
  };
}
