// One run: live charts, events, checkpoints, samples, configuration, log, and what can be done.

import { get, post } from "../api.js";
import { action, confirm, tile } from "../components/controls.js";
import { badge, reasonText } from "../components/state.js";
import { fill, h, setText } from "../dom.js";
import * as format from "../format.js";
import { follow } from "../live.js";
import { charts } from "./run/charts.js";
import { checkpoints } from "./run/checkpoints.js";
import { configuration } from "./run/configuration.js";
import { events } from "./run/events.js";
import { log } from "./run/log.js";
import { samples } from "./run/samples.js";

export const title = "Run";

const THIN_BEYOND = 10_000; // points of one line: then the server's thinned ones are fetched again

export async function show(main, { id, go }) {
  const [job, history] = await Promise.all([get(`/api/jobs/${id}`), get(`/api/jobs/${id}/history`)]);
  document.title = `${job.model} · nanogpt-service`;
  const head = header(job, go);
  const figures = tiles(job);
  const parts = {
    charts: charts(), samples: samples(), events: events(), checkpoints: checkpoints(job), log: log(id),
    configuration: configuration(job),
  };
  fill(main, head.element, figures.element, parts.charts.element,
    h("div", { class: "columns" },
      h("div", {}, parts.samples.element, parts.log.element),
      h("div", {}, parts.checkpoints.element, parts.events.element, parts.configuration.element)));
  parts.charts.begin(history.lines);
  parts.samples.begin(history.samples);
  parts.events.begin(history.events, job);
  head.update(job);

  let isRefreshing = false;

  // State and attempts are not in the record: the job is asked for again when it changes.
  async function refresh() {
    if (isRefreshing) return;
    isRefreshing = true;
    try {
      const now = await get(`/api/jobs/${id}`);
      Object.assign(job, now);
      head.update(job);
      figures.update(job);
      parts.events.attempts(job);
      if (job.is_final) parts.checkpoints.soon();
    } catch { /* the stream of events says that the connection is lost */ }
    isRefreshing = false;
  }

  function onData(event) {
    if (event.kind === "state") {
      const changed = event.state !== job.state;
      Object.assign(job, { state: event.state, reason: event.reason, error: event.error, is_final: event.is_final });
      head.update(job);
      figures.update(job);
      if (changed || event.is_final) refresh();
    } else if (event.kind === "step") {
      job.latest_step = event;
      job.step = event.step;
      if (parts.charts.step(event) > THIN_BEYOND) thin();
      figures.update(job);
      head.update(job);
    } else if (event.kind !== "end") {
      if (event.kind === "evaluation") {
        job.latest_evaluation = event;
        job.best_val_loss = Math.min(job.best_val_loss ?? Infinity, event.val_loss);
        parts.charts.evaluation(event);
        figures.update(job);
      }
      if (event.kind === "sample") parts.samples.add(event);
      if (event.kind === "checkpoint") parts.checkpoints.soon();
      if (event.kind === "started") refresh();
      if (event.kind === "divergence" && event.rolled_back_to_step !== null) parts.charts.goBack(event.rolled_back_to_step);
      parts.events.add(event);
    }
  }

  async function thin() {
    parts.charts.begin((await get(`/api/jobs/${id}/history`)).lines);
  }

  const stop = follow(`/api/jobs/${id}/events`, { next: history.sequence + 1, onData, onError: head.fail });
  const timer = setInterval(() => { if (!job.is_final && !document.hidden) refresh(); }, 5000); // time left
  return () => {
    stop();
    clearInterval(timer);
    parts.charts.close();
    parts.log.close();
    parts.checkpoints.close();
  };
}

function header(job, go) {
  const state = h("span", { role: "status" });
  const reason = h("p", { class: "soft reason" });
  const problem = h("p", { class: "failure", role: "alert", hidden: true });
  const bar = h("progress", { max: job.max_iters, "aria-label": "Progress" });
  const steps = h("span", { class: "steps" });
  const actions = h("span", { class: "row end" });
  const ask = async (what) => Object.assign(job, await post(`/api/jobs/${job.id}/${what}`));
  let shown = "";

  const update = () => {
    bar.value = job.step;
    const left = job.remaining_seconds ? `, about ${format.seconds(job.remaining_seconds)} left` : "";
    setText(steps, `step ${format.whole(job.step)} of ${format.whole(job.max_iters)}${left}`);
    const place = job.state === "QUEUED" && job.queue_position !== null ? `${job.queue_position} jobs before it` : "";
    setText(reason, job.error || place || (job.reason ? reasonText(job.reason) : ""));
    problem.hidden = true;
    if (job.state === shown) return;
    shown = job.state;
    fill(state, badge(job.state));
    const canPause = ["QUEUED", "STARTING", "RUNNING", "RECOVERING"].includes(job.state);
    fill(actions,
      canPause ? action("Pause", () => ask("pause").then(update), { title: "Writes a checkpoint and frees the device" }) : null,
      job.state === "PAUSED" ? action("Resume", () => ask("resume").then(update), { kind: "primary" }) : null,
      job.is_final || job.state === "CANCELLING" ? null : action("Cancel", async () => {
        if (await confirm(`Stop ${job.model} for good? Its checkpoints stay.`, "Cancel the run")) {
          await ask("cancel");
          update();
        }
      }, { kind: "danger" }),
      h("a", { class: "button", href: `/new?from=${job.id}` }, "Run again …"),
      job.is_final ? null : h("a", { class: "button", href: `/playground?model=job:${job.id}` }, "Try it"),
      job.state === "SUCCEEDED" ? h("a", { class: "button primary", href: `/playground?model=${job.model}` }, "Try it") : null);
  };
  const element = h("div", {},
    h("p", { class: "crumbs" }, h("a", { href: "/" }, "Runs"), " / ", h("code", {}, job.id)),
    h("div", { class: "head" }, h("h1", {}, job.model), state, actions),
    h("div", { class: "progress wide" }, bar, steps), reason, problem);
  return {
    element, update,
    fail: (error) => { problem.hidden = false; setText(problem, error.message); },
  };
}

function tiles(job) {
  const found = {
    best: tile("Best val. loss", "", "Lowest validation loss, in nats"),
    val: tile("Val. loss"), loss: tile("Loss"), speed: tile("Tokens/s"),
    mfu: tile("MFU", "", "Share of the device's peak arithmetic"), tokens: tile("Tokens seen"),
    memory: tile("Memory", "", "Of the trainer's process"), device: tile("Device"),
  };
  const update = (now) => {
    const step = now.latest_step;
    setText(found.best.output, format.loss(now.best_val_loss));
    setText(found.val.output, format.loss(now.latest_evaluation?.val_loss));
    setText(found.loss.output, format.loss(step?.loss));
    setText(found.speed.output, format.compact(step?.tokens_per_second));
    setText(found.mfu.output, format.percent(step?.mfu));
    setText(found.tokens.output, format.compact(step?.tokens));
    setText(found.memory.output, format.bytes(step?.memory_bytes));
    setText(found.device.output, now.run ? `${now.run.device} ${now.run.dtype}` : format.UNKNOWN);
  };
  update(job);
  return { element: h("div", { class: "tiles" }, Object.values(found).map((one) => one.element)), update };
}
