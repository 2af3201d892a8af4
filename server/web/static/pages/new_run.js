// The form for a new run. What is left empty comes from the preset, then from the defaults; the
// server checks everything while it is typed, and says what would be trained.

import { get, post } from "../api.js";
import { empty, field, select } from "../components/controls.js";
import { uploadForm } from "../components/upload.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";

export const title = "New run";

const CHECK_MILLISECONDS = 300;

const GROUPS = [
  ["Length", ["max_iters", "batch_size", "block_size", "gradient_accumulation_steps"], true],
  ["Network", ["n_layer", "n_head", "n_embd", "dropout", "bias", "arch", "n_member"], true],
  ["Evaluation and checkpoints", ["eval_interval", "eval_iters", "log_interval", "eval_only", "always_save_checkpoint", "checkpoint_interval", "keep_checkpoints"], false],
  ["Optimizer", ["learning_rate", "min_lr", "decay_lr", "warmup_iters", "lr_decay_iters", "weight_decay", "beta1", "beta2", "grad_clip"], false],
];
const REST = "Everything else";

export async function show(main, { query, go }) {
  const [form, data, models, earlier] = await Promise.all([
    get("/api/form"), get("/api/datasets"), get("/api/models"),
    query.has("from") ? get(`/api/jobs/${encodeURIComponent(query.get("from"))}`) : null,
  ]);
  const presets = new Map(form.presets.map((preset) => [preset.name, preset]));
  const summary = h("div", { class: "summary", role: "status" });
  const problem = h("p", { class: "failure", role: "alert", hidden: true });
  const submit = h("button", { class: "primary" }, "Start training");

  const model = field("Name of the model", h("input", { maxlength: 63, autocomplete: "off", spellcheck: "false", placeholder: "chosen for you" }),
    { help: "Small letters, digits, - and _. Left empty, a free name is chosen." });
  const preset = field("Preset", select([{ value: "", label: "none" }, ...presets.keys()]),
    { help: "Fills in what you leave empty." });
  const dataset = field("Dataset", datasetSelect(data.datasets), { help: "What to train on." });
  const initFrom = field("Start from", select([{ value: "", label: "scratch: random weights" },
    { group: "Fine-tune a model", options: models.models.map((one) => one.name) }]),
  { help: "A model gives its shape and its vocabulary." });
  const priority = field("Priority", h("input", { type: "text", inputmode: "numeric", placeholder: "0", autocomplete: "off" }),
    { help: "The lowest goes first.", allowed: "in [-100, 100]" });
  const config = new Map();
  for (const spec of form.fields) {
    if (spec.name !== "init_from") config.set(spec.name, configField(spec));
  }
  const fields = { model, preset, dataset, priority, "config.init_from": initFrom };
  for (const [name, one] of config) fields[`config.${name}`] = one;

  const uploader = h("details", { class: "inset" }, h("summary", {}, "Upload a text instead"),
    uploadForm({ maxBytes: data.max_upload_bytes, done: async (name) => {
      const now = await get("/api/datasets");
      const chosen = datasetSelect(now.datasets);
      fill(dataset.input, ...chosen.childNodes);
      dataset.input.value = name;
      uploader.open = false;
      check();
    } }));

  const named = new Set(GROUPS.flatMap(([, names]) => names));
  const rest = [...config.keys()].filter((name) => !named.has(name));
  const element = h("form", { class: "newrun", novalidate: true, onsubmit: send, oninput: soon, onchange: soon },
    h("section", { class: "panel" },
      h("div", { class: "fields" }, model.element, preset.element, dataset.element, initFrom.element, priority.element)),
    [...GROUPS, [REST, rest, false]].map(([label, names, isOpen]) =>
      h("details", { class: "panel group", open: isOpen }, h("summary", {}, h("h2", {}, label)),
        h("div", { class: "fields" }, names.filter((name) => config.has(name)).map((name) => config.get(name).element)))));
  fill(main, h("div", { class: "head" }, h("h1", {}, "New run")),
    data.datasets.length === 0
      ? empty(h("p", {}, "There is no dataset yet. Upload a text here, or ", h("a", { href: "/datasets" }, "make one that ships with the service"), "."))
      : null,
    h("div", { class: "columns form" }, h("div", {}, uploader, element),
      h("aside", { class: "panel sticky" }, h("h2", {}, "What would be trained"), summary, problem, submit)));
  submit.addEventListener("click", () => element.requestSubmit());

  if (earlier) {
    dataset.input.value = earlier.dataset;
    for (const [name, origin] of Object.entries(earlier.config_origin)) {
      if (origin.startsWith("preset ")) preset.input.value = origin.slice("preset ".length);
      if (origin !== "request") continue;
      if (name === "init_from") initFrom.input.value = earlier.config[name];
      else config.get(name)?.set(earlier.config[name]);
    }
  }
  if (query.has("dataset")) dataset.input.value = query.get("dataset");
  if (query.has("init_from")) initFrom.input.value = query.get("init_from");

  let timer = null;
  let checks = 0;
  const requestId = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_MILLISECONDS);
  }

  function request() {
    const values = {};
    for (const [name, one] of config) {
      const value = one.get();
      if (value !== undefined) values[name] = value;
    }
    if (initFrom.input.value) values.init_from = initFrom.input.value;
    const body = { model: model.input.value.trim(), dataset: dataset.input.value, preset: preset.input.value, config: values };
    const wanted = priority.input.value.trim();
    if (wanted !== "") body.priority = /^-?\d+$/.test(wanted) ? Number(wanted) : wanted;
    return body;
  }

  function showDefaults() {
    const chosen = presets.get(preset.input.value)?.config ?? {};
    for (const [name, one] of config) one.showDefault(name in chosen ? chosen[name] : one.spec.default);
  }

  async function check() {
    checks += 1;
    const mine = checks;
    showDefaults();
    try {
      const { plan, problem: found } = await post("/api/jobs/check", request());
      if (mine !== checks) return false;
      if (found) {
        tell(found);
        return false;
      }
      clearErrors();
      describe(plan);
      return true;
    } catch (error) {
      if (mine === checks) tell(error);
      return false;
    }
  }

  function clearErrors() {
    Object.values(fields).forEach((one) => one.setError(""));
    problem.hidden = true;
  }

  function tell(error) {
    clearErrors();
    const rest = [];
    for (const violation of error.violations) {
      const one = fields[violation.field];
      if (one === undefined) rest.push(`${violation.field}: ${violation.description}`);
      else {
        one.setError(violation.description);
        one.element.closest("details")?.setAttribute("open", "");
      }
    }
    if (error.reason === "MODEL_ALREADY_EXISTS") model.setError(error.message);
    else if (error.reason === "DATASET_NOT_FOUND") dataset.setError(error.message);
    else if (error.violations.length === 0) rest.push(error.message);
    fill(summary, h("p", { class: "soft" }, "Something has to be put right first."));
    problem.hidden = rest.length === 0;
    problem.textContent = rest.join("; ");
  }

  function describe(plan) {
    const steps = plan.config.max_iters;
    const tokens = steps * plan.tokens_per_step;
    const facts = [
      ["Model", model.input.value.trim() || `${plan.model}, or the next free name`],
      ["Dataset", `${plan.dataset}, ${format.compact(plan.train_tokens)} training tokens`],
      ["Parameters", format.compact(plan.parameter_count)],
      ["Steps", format.whole(steps)],
      ["Tokens a step", format.whole(plan.tokens_per_step)],
      ["Tokens in all", `${format.compact(tokens)}, ${format.number(tokens / plan.train_tokens, 3)} times the text`],
    ];
    fill(summary, h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
  }

  async function send(event) {
    event.preventDefault();
    clearTimeout(timer);
    submit.disabled = true;
    if (await check()) {
      try {
        const job = await post("/api/jobs", { ...request(), request_id: `web-${requestId}-${checks}` });
        go(`/runs/${job.id}`);
        return;
      } catch (error) {
        tell(error);
      }
    }
    element.querySelector("[aria-invalid]")?.focus();
    submit.disabled = false;
  }

  await check();
  return () => clearTimeout(timer);
}

function datasetSelect(datasets) {
  return select([{ value: "", label: "the preset's" },
    ...datasets.map((one) => ({ value: one.name, label: `${one.name} (${one.tokenizer}, ${format.compact(one.train_tokens)} tokens)` }))],
  datasets[0]?.name ?? "");
}

// The control of one hyperparameter: empty means that preset and defaults decide.
function configField(spec) {
  const isChoice = spec.type === "bool" || spec.choices;
  const values = spec.type === "bool" ? ["true", "false"] : spec.choices;
  const isList = spec.type === "tuple";
  const input = isChoice
    ? select([{ value: "", label: "" }, ...values])
    : isList ? h("textarea", { rows: 2, spellcheck: "false", placeholder: "one a line" })
    : h("input", spec.type === "str" ? { type: "text", spellcheck: "false" } : { type: "text", inputmode: spec.type === "int" ? "numeric" : "decimal", autocomplete: "off" });
  const made = field(h("code", {}, spec.name), input, { help: spec.help, allowed: spec.allowed });
  return {
    ...made, spec,
    get: () => {
      if (isList) return input.value === "" ? undefined : input.value.split("\n").filter((line) => line !== "");
      const text = input.value.trim();
      if (text === "") return undefined;
      if (spec.type === "bool") return text === "true";
      if (spec.type === "int" && !Number.isSafeInteger(Number(text))) return text; // it would be another number
      if (spec.type !== "str" && /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) return Number(text);
      return text; // the server says what is wrong with it
    },
    set: (value) => { input.value = isList ? value.join("\n") : String(value); },
    showDefault: (value) => {
      const text = value === null ? "not set" : String(value);
      if (isList) return;
      if (isChoice) input.options[0].textContent = `${text} (default)`;
      else input.placeholder = text;
    },
  };
}
