// The run's checkpoints on disk: try, serve, export, pin, delete.

import { get, post, remove } from "../../api.js";
import { action, confirm } from "../../components/controls.js";
import { fill, h } from "../../dom.js";
import * as format from "../../format.js";

const FORMATS = [["hugging_face", "Hugging Face"], ["nanogpt", "nanoGPT"], ["gguf", "GGUF"]];

export function checkpoints(job) {
  const body = h("div", { class: "scroll" });
  const element = h("section", { class: "panel" }, h("h2", {}, "Checkpoints"), body);

  async function refresh() {
    let found;
    try {
      found = (await get(`/api/jobs/${job.id}/checkpoints`)).checkpoints;
    } catch (error) {
      return fill(body, h("p", { class: "failure", role: "alert" }, error.message));
    }
    if (found.length === 0) return fill(body, h("p", { class: "empty" }, "None yet."));
    return fill(body, h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, ["Step", "Val. loss", "Size", ""].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, found.map(row))));
  }

  function row(checkpoint) {
    const reference = `job:${job.id}@${checkpoint.step}`;
    const path = `/api/models/${encodeURIComponent(reference)}`;
    return h("tr", {},
      h("th", { scope: "row" }, format.whole(checkpoint.step), checkpoint.is_best ? h("span", { class: "tag" }, "best") : null,
        checkpoint.is_pinned ? h("span", { class: "tag" }, "pinned") : null,
        checkpoint.is_loaded ? h("span", { class: "tag" }, "loaded") : null),
      h("td", {}, format.loss(checkpoint.val_loss)),
      h("td", { title: format.clock(checkpoint.create_time) }, format.bytes(checkpoint.size_bytes)),
      h("td", { class: "actions" }, 
        h("a", { href: `/playground?model=${encodeURIComponent(reference)}`, title: "Try it in the playground" }, "Try"),
        action("Serve", async () => { await post(`${path}/load`); await refresh(); }, { kind: "link", title: "Loads it and keeps it in memory" }),
        exports(path),
      action(checkpoint.is_pinned ? "Unpin" : "Pin", async () => {
        await post(`${own(checkpoint)}/pin`, { pinned: !checkpoint.is_pinned });
        await refresh();
      }, { kind: "link", title: "A pinned checkpoint is kept whatever else is pruned" }),
      action("Delete", async () => {
        if (!await confirm(`Delete the checkpoint of step ${checkpoint.step}?`, "Delete")) return;
        await remove(own(checkpoint));
        await refresh();
      }, { kind: "link danger" })));
  }

  const own = (checkpoint) => `/api/jobs/${job.id}/checkpoints/${checkpoint.step}`;

  // Checkpoints may come in quick succession; the list is read at most once a second.
  let timer = null;
  const soon = () => {
    timer ??= setTimeout(() => { timer = null; refresh(); }, 1000);
  };

  refresh();
  return { element, soon, close: () => clearTimeout(timer) };
}

// Links that download a model in each format.
export function exports(path) {
  return h("details", { class: "menu" }, h("summary", {}, "Export"),
    h("div", { class: "items" }, FORMATS.map(([name, label]) =>
      h("a", { href: `${path}/export?format=${name}`, download: true }, label))));
}
