// All runs in one live table: filter, sort, choose several and compare them in one chart.

import { get } from "../api.js";
import { Chart } from "../components/chart.js";
import { button, choice, empty, field, loading, select } from "../components/controls.js";
import { badge } from "../components/state.js";
import { fill, h, setText } from "../dom.js";
import * as format from "../format.js";
import { follow } from "../live.js";

export const title = "Runs";

const MAX_COMPARED = 6;

const COLUMNS = [
  { key: "model", label: "Run", value: (job) => job.model },
  { key: "state", label: "State", value: (job) => job.state },
  { key: "step", label: "Progress", value: (job) => job.step / job.max_iters },
  { key: "loss", label: "Loss", value: (job) => job.latest_step?.loss ?? null, show: format.loss },
  { key: "best", label: "Best val. loss", value: (job) => job.best_val_loss, show: format.loss },
  { key: "speed", label: "Tokens/s", value: (job) => (job.is_final ? null : job.latest_step?.tokens_per_second ?? null), show: format.compact },
  { key: "mfu", label: "MFU", value: (job) => (job.is_final ? null : job.latest_step?.mfu ?? null), show: format.percent },
  { key: "left", label: "Time left", value: (job) => job.remaining_seconds, show: format.seconds },
  { key: "time", label: "Queued", value: (job) => job.create_time, show: format.ago },
];

const STATES = ["", "RUNNING", "QUEUED", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED"];

export function show(main) {
  const view = {
    jobs: [], hasAnswer: false, text: "", state: "", sort: "time", isDescending: true,
    chosen: [], rows: new Map(),
  };
  const compare = comparison();
  const body = h("tbody");
  const heads = COLUMNS.map((column) => h("th", { scope: "col" },
    h("button", { type: "button", class: "sort", onclick: () => sortBy(column.key) }, column.label)));
  const table = h("table", { class: "runs cards" },
    h("caption", { class: "unseen" }, "Training runs, as they go on"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "unseen" }, "Compare")), heads)),
    body);
  const rest = h("div", { class: "rest" });
  const count = h("span", { class: "soft", role: "status" });
  const search = field("Filter", h("input", {
    type: "search", placeholder: "name or dataset", oninput: (event) => { view.text = event.target.value.toLowerCase(); draw(); },
  }));
  const states = field("State", select(
    STATES.map((state) => ({ value: state, label: state ? state.toLowerCase() : "any" })), "",
    { onchange: (event) => { view.state = event.target.value; draw(); } }));

  fill(main,
    h("div", { class: "head" }, h("h1", {}, "Runs"), count,
      h("a", { class: "button primary", href: "/new" }, "New run")),
    h("div", { class: "row filters" }, search.element, states.element),
    compare.element, table, rest);
  fill(rest, loading());
  table.hidden = true;

  function sortBy(key) {
    view.isDescending = view.sort === key ? !view.isDescending : key !== "model";
    view.sort = key;
    draw();
  }

  function visible() {
    const { value } = COLUMNS.find((column) => column.key === view.sort);
    const shown = view.jobs.filter((job) =>
      (!view.state || job.state === view.state)
      && (!view.text || `${job.model} ${job.dataset} ${job.id}`.toLowerCase().includes(view.text)));
    const sign = view.isDescending ? -1 : 1;
    return shown.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === b) return 0;
      if (a === null) return 1; // unknown comes last, whatever the order
      if (b === null) return -1;
      return a < b ? -sign : sign;
    });
  }

  function draw() {
    if (!view.hasAnswer) return;
    heads.forEach((head, index) => {
      const isSorted = COLUMNS[index].key === view.sort;
      head.setAttribute("aria-sort", isSorted ? (view.isDescending ? "descending" : "ascending") : "none");
    });
    const shown = visible();
    table.hidden = shown.length === 0;
    setText(count, view.jobs.length === shown.length ? `${shown.length}` : `${shown.length} of ${view.jobs.length}`);
    if (view.jobs.length === 0) {
      fill(rest, empty(h("p", {}, "No runs yet."), h("p", {}, h("a", { href: "/new" }, "Start the first one"), ".")));
    } else if (shown.length === 0) {
      fill(rest, empty(h("p", {}, "No run matches the filter.")));
    } else {
      fill(rest, view.next ? button("Older runs", older) : null);
    }
    const wanted = shown.map((job) => {
      if (!view.rows.has(job.id)) view.rows.set(job.id, row(job, choose));
      const found = view.rows.get(job.id);
      found.update(job);
      return found.element;
    });
    if (wanted.some((element, index) => body.children[index] !== element) || wanted.length !== body.children.length) {
      const focused = document.activeElement;
      body.replaceChildren(...wanted);
      if (body.contains(focused)) focused.focus();
    }
  }

  function choose(job, isChosen) {
    view.chosen = view.chosen.filter((id) => id !== job.id);
    if (isChosen) view.chosen.push(job.id);
    if (view.chosen.length > MAX_COMPARED) {
      view.rows.get(view.chosen.shift())?.uncheck();
    }
    compare.choose(view.chosen.map((id) => view.jobs.find((found) => found.id === id)));
  }

  async function older() {
    const page = await get(`/api/jobs?size=200&before=${view.next}`);
    view.older = [...(view.older ?? []), ...page.jobs];
    view.next = page.next_before;
    merge(view.newest);
  }

  // Once older ones are shown, those that newer ones push out join them.
  function keep(newest) {
    if (!view.older) return;
    const [known, shown] = [new Set(newest.map((job) => job.id)), new Set(view.older.map((job) => job.id))];
    view.older.unshift(...view.newest.filter((job) => !known.has(job.id) && !shown.has(job.id)));
  }

  function merge(newest) {
    const known = new Set(newest.map((job) => job.id));
    view.jobs = [...newest, ...(view.older ?? []).filter((job) => !known.has(job.id))];
    draw();
  }

  const stop = follow("/api/jobs/live", {
    onData: (page) => {
      view.hasAnswer = true;
      keep(page.jobs);
      view.newest = page.jobs;
      if (!view.older) view.next = page.next_before;
      merge(page.jobs);
      compare.update(view.jobs);
    },
    onError: (error) => fill(rest, h("p", { class: "failure" }, error.message)),
  });
  return () => { stop(); compare.close(); };
}

// A row that is changed where it stands, so that focus and selection survive.
function row(job, choose) {
  const check = h("input", {
    type: "checkbox", "aria-label": `Compare ${job.model}`,
    onchange: (event) => choose(job, event.target.checked),
  });
  const state = h("td", { "data-label": "State" });
  const bar = h("progress", { max: job.max_iters, "aria-label": `Progress of ${job.model}` });
  const steps = h("span", { class: "steps" });
  const cells = COLUMNS.slice(3).map((column) => h("td", { "data-label": column.label, class: "number" }));
  const element = h("tr", {},
    h("td", { class: "check" }, check),
    h("th", { scope: "row", "data-label": "Run" },
      h("a", { href: `/runs/${job.id}` }, job.model), h("span", { class: "soft under" }, job.dataset)),
    state, h("td", { "data-label": "Progress" }, h("span", { class: "progress" }, bar, steps)), cells);
  let shownState = "";
  return {
    element,
    uncheck: () => { check.checked = false; },
    update: (now) => {
      if (now.state !== shownState) fill(state, badge(now.state));
      shownState = now.state;
      bar.value = now.step;
      setText(steps, now.state === "QUEUED" && now.queue_position !== null
        ? `${now.queue_position} before it` : `${format.whole(now.step)} / ${format.whole(now.max_iters)}`);
      COLUMNS.slice(3).forEach((column, index) => setText(cells[index], column.show(column.value(now))));
    },
  };
}

const LINES = [
  { value: "val_loss", label: "validation loss" }, { value: "train_loss", label: "training loss, evaluated" },
  { value: "loss", label: "loss" }, { value: "learning_rate", label: "learning rate" },
  { value: "grad_norm", label: "gradient norm" }, { value: "tokens_per_second", label: "tokens/s" },
  { value: "mfu", label: "MFU" },
];

// How far a run is: its last evaluation comes after its last step.
const place = (job) => `${job.latest_step?.step} ${job.latest_evaluation?.step} ${job.state}`;

// The chart of the runs that are chosen in the table.
function comparison() {
  const histories = new Map(); // job id -> lines, and the place up to which they go
  let jobs = [];
  let line = "val_loss";
  const chart = new Chart({ title: "Chosen runs", lines: [], height: 280 });
  const which = field("Compare", select(LINES, line, { onchange: (event) => { line = event.target.value; draw(); } }));
  const weight = field("Smoothing", h("input", {
    type: "range", min: 0, max: 0.98, step: 0.02, value: 0,
    oninput: (event) => chart.setSmoothing(Number(event.target.value)),
  }));
  const scale = choice("Scale", [{ value: "linear", label: "linear" }, { value: "log", label: "log" }], "linear",
    (value) => chart.setLog(value === "log"));
  const note = h("p", { class: "note bad", role: "alert" });
  const element = h("section", { class: "panel", "aria-label": "Comparison", hidden: true },
    h("div", { class: "row controls" }, which.element, scale, weight.element), note, chart.element);

  function draw() {
    chart.lines = jobs.map((job, index) => ({
      key: job.id, label: job.model, color: `--series-${index + 1}`, isSmooth: true,
      hasPoints: line === "val_loss" || line === "train_loss",
    }));
    chart.setLines(chart.lines);
    chart.set(new Map(jobs.map((job) => [job.id, histories.get(job.id)?.[line] ?? { x: [], y: [] }])));
  }

  async function load(job) {
    const { lines } = await get(`/api/jobs/${job.id}/history`);
    histories.set(job.id, { ...lines, place: place(job) });
  }

  return {
    element,
    close: () => chart.close(),
    choose: async (chosen) => {
      jobs = chosen.filter(Boolean);
      element.hidden = jobs.length === 0;
      note.textContent = "";
      try {
        await Promise.all(jobs.filter((job) => histories.get(job.id)?.place !== place(job)).map(load));
      } catch (error) {
        note.textContent = error.message;
      }
      draw();
    },
    // Runs that have got further are read again; the server adds only what is new.
    update: async (all) => {
      const now = jobs.map((job) => all.find((one) => one.id === job.id) ?? job);
      const behind = now.filter((job, index) => place(job) !== place(jobs[index]));
      if (behind.length === 0 || element.hidden) return;
      jobs = now;
      await Promise.all(behind.map(load)).catch(() => {});
      chart.set(new Map(jobs.map((job) => [job.id, histories.get(job.id)?.[line] ?? { x: [], y: [] }])));
    },
  };
}
