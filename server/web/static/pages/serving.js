// The models, which of them are in memory, and how they do.

import { get, post, remove } from "../api.js";
import { Chart } from "../components/chart.js";
import { action, confirm, empty, field, select, tile } from "../components/controls.js";
import { badge } from "../components/state.js";
import { fill, h, setText } from "../dom.js";
import * as format from "../format.js";
import { follow } from "../live.js";
import { exports } from "./run/checkpoints.js";

export const title = "Serving";

export async function show(main) {
  const list = h("div");
  const figures = live();
  const precision = field("Load as", select([
    { value: "", label: "the server's setting" }, "float32", "bfloat16", "int8", "int4",
  ]), { help: "Fewer bits take less memory and answer faster and a little differently." });
  fill(main, h("div", { class: "head" }, h("h1", {}, "Serving")), figures.element,
    h("div", { class: "row filters" }, precision.element),
    h("section", { "aria-label": "Models" }, h("h2", {}, "Models"), list));

  let shown = "";

  // Drawn again only when it differs, so that what was opened or said in it stays.
  async function refresh() {
    const { models } = await get("/api/models");
    const text = JSON.stringify(models);
    if (text === shown) return;
    shown = text;
    fill(list, models.length === 0
      ? empty(h("p", {}, "No models yet. ", h("a", { href: "/new" }, "Train one"), "."))
      : table(models));
  }

  function table(models) {
    return h("table", { class: "cards" },
      h("caption", { class: "unseen" }, "Models"),
      h("thead", {}, h("tr", {}, ["Name", "State", "Parameters", "Shape", "Context", "Step", "Val. loss", "On disk", "In memory", "Made", ""]
        .map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, models.map(row)));
  }

  function row(model) {
    const path = `/api/models/${encodeURIComponent(model.name)}`;
    const then = (work) => async () => { await work(); await refresh(); };
    return h("tr", {},
      h("th", { scope: "row", "data-label": "Name" },
        model.job_id ? h("a", { href: `/runs/${model.job_id}` }, model.name) : model.name),
      h("td", { "data-label": "State" }, badge(model.state)),
      h("td", { "data-label": "Parameters", class: "number" }, format.compact(model.parameter_count)),
      h("td", { "data-label": "Shape", title: "layers × heads × width" }, `${model.n_member > 1 ? `${model.n_member} of ` : ""}${model.n_layer} × ${model.n_head} × ${model.n_embd}`),
      h("td", { "data-label": "Context", class: "number" }, format.whole(model.block_size)),
      h("td", { "data-label": "Step", class: "number" }, format.whole(model.step)),
      h("td", { "data-label": "Val. loss", class: "number" }, format.loss(model.val_loss)),
      h("td", { "data-label": "On disk", class: "number" }, format.bytes(model.size_bytes)),
      h("td", { "data-label": "In memory", class: "number" }, model.memory_bytes === null
        ? format.UNKNOWN : `${format.bytes(model.memory_bytes)}, ${model.precision}`),
      h("td", { "data-label": "Made", title: format.clock(model.create_time) }, format.ago(model.create_time)),
      h("td", { class: "actions" },
        h("a", { href: `/playground?model=${encodeURIComponent(model.name)}` }, "Try"),
        model.state === "UNLOADED"
          ? action("Load", then(() => post(`${path}/load`, { precision: precision.input.value })), { kind: "link" })
          : action("Unload", then(() => post(`${path}/unload`)), { kind: "link" }),
        exports(path),
        action("Delete", async () => {
          if (!await confirm(`Delete the model ${model.name}? Checkpoints of its run stay.`, "Delete")) return;
          await remove(path);
          await refresh();
        }, { kind: "link danger" })));
  }

  await refresh();
  let loaded = "";
  const stop = follow("/api/serving/live", { onData: (now) => {
    figures.take(now);
    const names = now.models.map((model) => model.reference).join(" ");
    if (loaded !== names) refresh().catch(() => {});
    loaded = names;
  } });
  return () => { stop(); figures.close(); };
}

const KEPT_SECONDS = 300;

const FIGURES = [
  ["running", "Running", (model) => format.whole(model.running)],
  ["waiting", "Waiting", (model) => format.whole(model.waiting)],
  ["speed", "Tokens/s", (model) => format.number(model.generation_tokens_per_second, 3)],
  ["prompt", "Prompt tokens/s", (model) => format.number(model.prompt_tokens_per_second, 3)],
  ["ttft", "First token, p50 · p95 · p99", (model) => percentiles(model.time_to_first_token)],
  ["itl", "Between tokens, p50 · p95 · p99", (model) => percentiles(model.inter_token_latency)],
  ["kv", "KV cache in use", (model) => format.percent(model.kv_cache_usage_ratio)],
  ["prefix", "Prefix cache hits", (model) => format.percent(model.prefix_cache_hit_ratio)],
  ["memory", "Memory", (model) => format.bytes(model.memory_bytes)],
];

const percentiles = (found) =>
  found === null ? format.UNKNOWN : [found.p50, found.p95, found.p99].map(format.seconds).join(" · ");

// Figures of each loaded model, and two charts of the last minutes.
function live() {
  const began = Date.now() / 1000;
  const panels = new Map(); // reference -> its tiles
  const lines = new Map(); // reference -> { speed, load }
  const grid = h("div");
  const none = empty(h("p", {}, "No model is in memory. The first request that names one loads it."));
  const chart = (title, show) => new Chart({ title, lines: [], format: show, height: 160, xLabel: "seconds" });
  const speed = chart("Tokens/s, last 5 minutes", (value) => format.number(value, 3));
  const load = chart("Requests running and waiting, last 5 minutes", (value) => format.number(value, 3));
  const charts = h("div", { class: "grid" }, speed.element, load.element);
  none.hidden = true;
  charts.hidden = true;

  function panel(model) {
    const tiles = FIGURES.map(([, label, show]) => ({ ...tile(label, ""), show }));
    const step = h("span", { class: "soft" });
    const element = h("section", { class: "panel flush", "aria-label": model.reference },
      h("h2", {}, model.reference, step),
      h("div", { class: "tiles" }, tiles.map((one) => one.element)));
    return { element, update: (now) => {
      setText(step, ` step ${format.whole(now.weight_version)}`);
      tiles.forEach((one) => setText(one.output, one.show(now)));
    } };
  }

  function draw() {
    const shown = [...lines.keys()].slice(0, 6);
    const of = (reference, index) => ({ key: reference, label: reference, color: `--series-${index + 1}` });
    const both = shown.flatMap((reference, index) => [
      { ...of(reference, index), key: `${reference} running`, label: `${reference} running` },
      { ...of(reference, index), key: `${reference} waiting`, label: `${reference} waiting`, dash: [4, 4] },
    ]);
    if (speed.lines.map((one) => one.key).join(" ") !== shown.join(" ")) {
      speed.setLines(shown.map(of));
      load.setLines(both);
    }
    speed.set(new Map(shown.map((reference) => [reference, lines.get(reference).speed])));
    load.set(new Map(shown.flatMap((reference) => [
      [`${reference} running`, lines.get(reference).running], [`${reference} waiting`, lines.get(reference).waiting],
    ])));
  }

  return {
    element: h("section", { "aria-label": "Figures" }, none, grid, charts),
    close: () => { speed.close(); load.close(); },
    take: (now) => {
      const at = Math.round(now.time - began);
      none.hidden = now.models.length > 0;
      charts.hidden = now.models.length === 0 && lines.size === 0;
      const names = now.models.map((model) => model.reference);
      for (const name of panels.keys()) if (!names.includes(name)) panels.delete(name);
      for (const model of now.models) {
        if (!panels.has(model.reference)) panels.set(model.reference, panel(model));
        panels.get(model.reference).update(model);
        if (!lines.has(model.reference)) {
          lines.set(model.reference, { speed: line(), running: line(), waiting: line() });
        }
        const found = lines.get(model.reference);
        add(found.speed, at, model.generation_tokens_per_second);
        add(found.running, at, model.running);
        add(found.waiting, at, model.waiting);
      }
      for (const [name, found] of lines) {
        Object.values(found).forEach((one) => forget(one, at - KEPT_SECONDS));
        if (found.speed.x.length === 0) lines.delete(name);
      }
      const wanted = [...panels.values()].map((one) => one.element);
      if (wanted.some((element, index) => grid.children[index] !== element) || wanted.length !== grid.children.length) {
        fill(grid, wanted);
      }
      if (lines.size) draw();
    },
  };
}

const line = () => ({ x: [], y: [] });

function add(found, x, y) {
  found.x.push(x);
  found.y.push(y);
}

function forget(found, before) {
  while (found.x[0] < before) {
    found.x.shift();
    found.y.shift();
  }
}
