// Datasets: those that are there, those that ship with the service, and a form for more.

import { get, post, remove } from "../api.js";
import { action, confirm, empty } from "../components/controls.js";
import { uploadForm } from "../components/upload.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";
import { follow } from "../live.js";

export const title = "Datasets";

export async function show(main) {
  const list = h("div");
  const shipped = h("div");
  const progress = h("div", { "aria-live": "polite" });
  const news = h("p", { class: "note good", role: "status" });
  const first = await get("/api/datasets");
  const form = uploadForm({
    maxBytes: first.max_upload_bytes,
    done: async (name) => { news.textContent = `Dataset ${name} is ready.`; await refresh(); },
  });
  fill(main,
    h("div", { class: "head" }, h("h1", {}, "Datasets")), news, progress, list,
    h("div", { class: "columns even" },
      h("section", { class: "panel" }, h("h2", {}, "Upload a text"), form),
      h("section", { class: "panel" }, h("h2", {}, "Ships with the service"), shipped)));

  let shown = "";

  async function refresh() {
    draw(await get("/api/datasets"));
  }

  // The list is drawn again only when it differs, so that what was opened in it stays open.
  function draw(found) {
    fill(progress, found.in_progress.map(making));
    const { in_progress, ...rest } = found;
    const text = JSON.stringify(rest);
    if (text === shown) return;
    shown = text;
    fill(list, found.datasets.length === 0
      ? empty(h("p", {}, "No datasets yet. Upload a text, or make one that ships with the service."))
      : table(found.datasets));
    fill(shipped, found.shipped.map((one) => h("div", { class: "item" },
      h("div", {}, h("strong", {}, one.name), h("p", { class: "help" }, one.description)),
      one.exists ? h("span", { class: "tag" }, "made") : action(one.needs_download ? "Download" : "Make", async () => {
        news.textContent = `Making ${one.name} …`;
        try {
          await post(`/api/datasets/${one.name}?shipped=${one.name}`);
          news.textContent = `Dataset ${one.name} is ready.`;
        } catch (error) {
          news.textContent = "";
          throw error;
        }
        await refresh();
      }))));
  }

  function table(datasets) {
    return h("table", { class: "cards" },
      h("caption", { class: "unseen" }, "Datasets"),
      h("thead", {}, h("tr", {}, ["Name", "Tokenizer", "Vocabulary", "Training tokens", "Validation tokens", "Size", "Report", "Made", ""]
        .map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, datasets.map((dataset) => h("tr", {},
        h("th", { scope: "row", "data-label": "Name" }, dataset.name),
        h("td", { "data-label": "Tokenizer" }, dataset.tokenizer),
        h("td", { "data-label": "Vocabulary", class: "number" }, format.whole(dataset.vocab_size)),
        h("td", { "data-label": "Training tokens", class: "number" }, format.compact(dataset.train_tokens)),
        h("td", { "data-label": "Validation tokens", class: "number" }, format.compact(dataset.val_tokens)),
        h("td", { "data-label": "Size", class: "number" }, format.bytes(dataset.size_bytes)),
        h("td", { "data-label": "Report" }, report(dataset)),
        h("td", { "data-label": "Made", title: format.clock(dataset.create_time) }, format.ago(dataset.create_time)),
        h("td", { class: "actions" },
          h("a", { href: `/new?dataset=${encodeURIComponent(dataset.name)}` }, "Train on it"),
          action("Delete", async () => {
            if (!await confirm(`Delete the dataset ${dataset.name}? Models trained on it stay.`, "Delete")) return;
            await remove(`/api/datasets/${encodeURIComponent(dataset.name)}`);
            news.textContent = `Dataset ${dataset.name} is deleted.`;
            await refresh();
          }, { kind: "link danger" }))))));
  }

  draw(first);
  return follow("/api/datasets/live", { onData: draw });
}

const PHASES = {
  uploading: "arriving", reading: "reading its characters", tokenizing: "making tokens", checking: "looking it over",
};

function making(dataset) {
  const total = dataset.bytes_total;
  const bar = h("progress", { max: total ?? 1, "aria-label": `Making ${dataset.name}` });
  if (total) bar.value = dataset.bytes_done;
  return h("div", { class: "panel progress" }, h("span", {}, h("strong", {}, dataset.name), ` ${PHASES[dataset.phase]}`), bar,
    h("span", { class: "steps" }, total ? `${format.bytes(dataset.bytes_done)} of ${format.bytes(total)}` : format.bytes(dataset.bytes_done)));
}

// What was found in the text; what should be known before training stands out.
function report(dataset) {
  const found = dataset.report;
  if (found === null) return format.UNKNOWN;
  const count = found.warnings.length;
  const facts = [
    ["Documents", format.whole(found.documents)], ["Empty ones, left out", format.whole(found.empty_documents)],
    ["Characters", format.whole(dataset.characters)], ["Encoding", dataset.encoding ?? format.UNKNOWN],
    ["Undecodable characters", format.whole(found.undecodable_characters)],
    ["Tokens that occur", format.whole(found.used_tokens)],
    ["Unknown to the training split", format.whole(found.unknown_val_tokens)],
    ["Windows that stand in both splits", format.percent(found.train_val_overlap)],
  ];
  return h("details", {}, h("summary", {}, count ? h("span", { class: "warn" }, `${count} to know`) : "good"),
    found.warnings.map((warning) => h("p", { class: "warn" }, warning)),
    h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}
