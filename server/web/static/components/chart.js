// A line chart (uPlot) with what it lacks: smoothing, logarithms, a table for those who cannot see
// it, and colours of the page's style in light and dark.

import { fill, h } from "../dom.js";
import { number, whole } from "../format.js";
import { join, pick, smooth } from "../series.js";

const TABLE_ROWS = 20;
const dark = matchMedia("(prefers-color-scheme: dark)");

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// `lines`: [{ key, label, color: "--series-1", isSmooth, hasPoints }]; `format` shows a value.
export class Chart {
  #plot = null;
  #wanted = 0;
  #range = null;
  #data = new Map();
  #host = h("div", { class: "plot" });
  #table = h("div", { class: "scroll" });
  #empty = h("p", { class: "empty" }, "No values yet.");

  constructor({ title, lines, format = number, height = 220, sync = null, xLabel = "step" }) {
    this.lines = lines;
    this.format = format;
    this.height = height;
    this.sync = sync;
    this.xLabel = xLabel;
    this.isLog = false;
    this.smoothing = 0;
    const details = h("details", { ontoggle: () => this.#fillTable() },
      h("summary", {}, "Values as a table"), this.#table);
    this.details = details;
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, title), this.#empty, this.#host, details);
    this.title = title;
    this.#observer.observe(this.#host);
    dark.addEventListener("change", this.#rebuild);
  }

  #rebuild = () => this.#draw(true);
  #observer = new ResizeObserver(() => {
    const width = this.#host.clientWidth;
    if (this.#plot && width && width !== this.#plot.width) {
      this.#plot.setSize({ width, height: this.height });
    }
  });

  close() {
    cancelAnimationFrame(this.#wanted);
    this.#wanted = 0;
    this.#observer.disconnect();
    dark.removeEventListener("change", this.#rebuild);
    this.#plot?.destroy();
    this.#plot = null;
  }

  // `data`: key -> { x, y }. Drawn with the next frame, however often it is called before.
  set(data) {
    this.#data = data;
    if (!this.#wanted) {
      this.#wanted = requestAnimationFrame(() => {
        this.#wanted = 0;
        this.#draw(false);
      });
    }
  }

  setLines(lines) {
    this.lines = lines;
    this.#draw(true);
  }

  setLog(isLog) {
    this.isLog = isLog;
    this.#draw(true);
  }

  setSmoothing(weight) {
    const rebuilds = (this.smoothing === 0) !== (weight === 0);
    this.smoothing = weight;
    this.#draw(rebuilds);
  }

  // Shows x from `min` to `max`; null shows all.
  zoom(range) {
    this.#range = range;
    if (!this.#plot) return;
    const x = this.#plot.data[0];
    const [min, max] = range ?? [x[0], x[x.length - 1]];
    this.#plot.setScale("x", { min, max });
  }

  // The x that are shown, or null without any.
  get range() {
    const scale = this.#plot?.scales.x;
    return scale && scale.min !== null ? [scale.min, scale.max] : null;
  }

  // What is drawn: raw lines, and over them smoothed ones.
  #drawn() {
    const all = [];
    for (const line of this.lines) {
      const { x, y } = this.#data.get(line.key) ?? { x: [], y: [] };
      const shown = this.isLog ? y.map((value) => (value > 0 ? value : null)) : y;
      const isSmoothed = this.smoothing > 0 && line.isSmooth;
      all.push({ line, isFaint: isSmoothed, x, y: shown });
      if (isSmoothed) all.push({ line, isFaint: false, x, y: smooth(shown, this.smoothing) });
    }
    return all;
  }

  #draw(rebuilds) {
    const drawn = this.#drawn();
    const data = join(drawn);
    const hasValues = data[0].length > 0;
    this.#empty.hidden = hasValues;
    this.#host.hidden = !hasValues;
    if (!hasValues || (rebuilds && this.#plot)) {
      this.#plot?.destroy();
      this.#plot = null;
    }
    if (!hasValues) return;
    if (this.#plot) {
      const isZoomed = this.#range !== null;
      this.#plot.setData(data, !isZoomed);
      if (isZoomed) this.#plot.setScale("x", { min: this.#range[0], max: this.#range[1] });
    } else {
      this.#plot = new uPlot(this.#options(drawn), data, this.#host);
      if (this.#range) this.zoom(this.#range);
    }
    if (this.details.open) this.#fillTable();
  }

  #options(drawn) {
    const axis = {
      stroke: color("--soft"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: color("--grid"), width: 1 },
      ticks: { stroke: color("--grid"), width: 1, size: 4 },
    };
    const short = (plot, values) => values.map((value) => (value === null ? "" : this.format(value)));
    return {
      width: this.#host.clientWidth || 400,
      height: this.height,
      cursor: {
        sync: this.sync ? { key: this.sync, setSeries: false } : undefined,
        drag: { x: true, y: false, dist: 8 },
        points: { size: 6 },
      },
      legend: { live: true },
      scales: { x: { time: false }, y: this.isLog ? { distr: 3 } : {} },
      axes: [
        { ...axis, size: 28, space: 70, values: (plot, values) => values.map(axisStep) },
        { ...axis, size: 58, space: 34, values: short },
      ],
      series: [
        { label: this.xLabel, value: (plot, value) => (value === null ? "–" : whole(value)) },
        ...drawn.map(({ line, isFaint }) => ({
          label: isFaint ? `${line.label}, raw` : line.label,
          stroke: color(line.color),
          alpha: isFaint ? 0.25 : 1,
          width: isFaint ? 1 : 1.6,
          dash: line.dash,
          spanGaps: true,
          points: { show: line.hasPoints ? (plot) => plot.data[0].length < 400 : false, size: 5, fill: color("--panel") },
          value: (plot, value) => (value === null || value === undefined ? "–" : this.format(value)),
        })),
      ],
      hooks: {
        setSelect: [(plot) => { if (plot.select.width > 0) this.#selected(plot); }],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => this.onzoom?.(null))],
      },
    };
  }

  #selected(plot) {
    const { left, width } = plot.select;
    this.#range = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    this.onzoom?.(this.#range);
  }

  #fillTable() {
    if (!this.details.open) return;
    const drawn = this.#drawn().filter((line) => !line.isFaint);
    const data = join(drawn);
    const rows = pick(data[0].length, TABLE_ROWS);
    fill(this.#table, h("table", { class: "plain" },
      h("caption", {}, `${this.title}: ${rows.length} of ${data[0].length} points`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, this.xLabel),
        drawn.map(({ line }) => h("th", { scope: "col" }, line.label)))),
      h("tbody", {}, rows.map((row) => h("tr", {},
        h("th", { scope: "row" }, whole(data[0][row])),
        data.slice(1).map((y) => h("td", {}, this.format(y[row] ?? null))))))));
  }
}

function axisStep(value) {
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (value >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  return Number.isInteger(value) ? String(value) : "";
}
