// The charts of one run, which zoom together.

import { Chart } from "../../components/chart.js";
import { button, choice, field } from "../../components/controls.js";
import { h } from "../../dom.js";
import * as format from "../../format.js";

const STEP_LINES = ["loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"];
const EVALUATION_LINES = ["train_loss", "val_loss"];

export function charts() {
  const lines = {};
  const sync = "run";
  const one = (title, key, color, show) => new Chart({
    title, sync, format: show, height: 170, lines: [{ key, label: title.toLowerCase(), color, isSmooth: true }],
  });
  const loss = new Chart({
    title: "Loss, nats per token", sync, height: 300, format: (value) => format.number(value, 4),
    lines: [
      { key: "loss", label: "batch", color: "--series-2", isSmooth: true },
      { key: "train_loss", label: "training", color: "--series-3", hasPoints: true, dash: [6, 4] },
      { key: "val_loss", label: "validation", color: "--series-1", hasPoints: true },
    ],
  });
  const all = [
    loss, one("Learning rate", "learning_rate", "--series-4", format.number),
    one("Gradient norm", "grad_norm", "--series-5", format.number),
    one("Tokens/s", "tokens_per_second", "--series-2", format.compact),
    one("MFU", "mfu", "--series-6", format.percent),
  ];
  const zoom = (range) => all.forEach((chart) => chart.zoom(range));
  const reset = button("Show all", () => { zoom(null); reset.disabled = true; }, { disabled: true, title: "Ends the zoom" });
  const zoomTo = (range) => { zoom(range); reset.disabled = range === null; };
  all.forEach((chart) => { chart.onzoom = zoomTo; });

  // Zooming by keyboard: half or double of what is shown, around its middle.
  const scaleBy = (factor) => {
    const range = loss.range;
    if (!range) return;
    const [middle, half] = [(range[0] + range[1]) / 2, ((range[1] - range[0]) / 2) * factor];
    const x = lines.loss.x;
    const [first, last] = [x[0], x[x.length - 1]];
    if (middle - half <= first && middle + half >= last) zoomTo(null);
    else zoomTo([Math.max(first, middle - half), Math.min(last, middle + half)]);
  };

  const weight = field("Smoothing", h("input", {
    type: "range", min: 0, max: 0.98, step: 0.02, value: 0,
    oninput: (event) => all.forEach((chart) => chart.setSmoothing(Number(event.target.value))),
  }));
  const scale = choice("Scale", [{ value: "linear", label: "linear" }, { value: "log", label: "log" }], "linear",
    (value) => all.forEach((chart) => chart.setLog(value === "log")));
  const element = h("section", { class: "charts", "aria-label": "Charts" },
    h("div", { class: "row controls" }, scale, weight.element,
      h("div", { class: "buttons" },
        button("Zoom in", () => scaleBy(0.5)), button("Zoom out", () => scaleBy(2)), reset),
      h("p", { class: "soft hint" }, "Drag over a chart to zoom, double-click to show all.")),
    h("div", { class: "grid" }, all.map((chart) => chart.element)));
  loss.element.classList.add("wide");

  const draw = (keys) => {
    for (const chart of all) {
      if (chart.lines.some((line) => keys.includes(line.key))) {
        chart.set(new Map(chart.lines.map((line) => [line.key, lines[line.key]])));
      }
    }
  };
  const add = (keys, event) => {
    for (const key of keys) {
      if (event[key] === null || event[key] === undefined) continue;
      lines[key].x.push(event.step);
      lines[key].y.push(event[key]);
    }
    draw(keys);
    return lines[keys[0]].x.length;
  };
  // Points beyond the step to which the run went back are no part of it any more.
  const goBack = (step) => {
    for (const line of Object.values(lines)) {
      const kept = line.x.filter((x) => x <= step).length;
      line.x.length = kept;
      line.y.length = kept;
    }
    draw([...STEP_LINES, ...EVALUATION_LINES]);
  };
  return {
    element,
    goBack,
    begin: (found) => {
      Object.assign(lines, found);
      draw([...STEP_LINES, ...EVALUATION_LINES]);
    },
    step: (event) => add(STEP_LINES, event),
    evaluation: (event) => add(EVALUATION_LINES, event),
    close: () => all.forEach((chart) => chart.close()),
  };
}
