// Writes with a model, a checkpoint or a run that is going on, token by token.

import { get, stream } from "../api.js";
import { button, field, select } from "../components/controls.js";
import { fill, h, setText } from "../dom.js";
import * as format from "../format.js";

export const title = "Playground";

const PARAMETERS = [
  { group: "sampling", name: "temperature", label: "Temperature", placeholder: "1", help: "0 always takes the likeliest token.", allowed: "in [0, 2]" },
  { group: "sampling", name: "top_k", label: "Top k", placeholder: "all", help: "Only from the k likeliest.", allowed: "at least 1", isWhole: true },
  { group: "sampling", name: "top_p", label: "Top p", placeholder: "1", help: "Only from the likeliest that reach this total.", allowed: "in (0, 1]" },
  { group: "sampling", name: "min_p", label: "Min p", placeholder: "0", help: "None less likely than this share of the likeliest.", allowed: "in [0, 1]" },
  { group: "sampling", name: "repetition_penalty", label: "Repetition penalty", placeholder: "1", help: "Weakens what is there already.", allowed: "in [0.01, 10]" },
  { group: "sampling", name: "seed", label: "Seed", placeholder: "random", help: "The same seed writes the same text.", allowed: "from 0", isWhole: true },
  { group: "stopping", name: "max_new_tokens", label: "New tokens", placeholder: "128", help: "At most so many.", allowed: "in [1, 65536]", isWhole: true },
];

const ALTERNATIVES = 5;

export async function show(main, { query }) {
  const [models, jobs] = await Promise.all([get("/api/models"), get("/api/jobs")]);
  const wanted = query.get("model") ?? "";
  const source = field("Write with", select(sources(models.models, jobs.jobs, wanted), wanted),
    { help: "A run that is going on writes with its newest checkpoint." });
  const prompt = field("Prompt", h("textarea", { rows: 4, spellcheck: "false", placeholder: "Left empty, the model begins a text of its own." }));
  const parameters = PARAMETERS.map((spec) => ({ spec, ...field(spec.label, h("input", {
    type: "text", inputmode: spec.isWhole ? "numeric" : "decimal", placeholder: spec.placeholder, autocomplete: "off",
  }), spec) }));
  const stops = field("Stop at", h("input", { type: "text", spellcheck: "false", placeholder: "nothing" }),
    { help: "A text that ends the answer; \\n is a line break." });
  const colors = h("input", { type: "checkbox", onchange: () => output.setColors(colors.checked) });
  const fields = { model: source, prompt, "stopping.stop_strings": stops };
  for (const one of parameters) fields[`${one.spec.group}.${one.spec.name}`] = one;

  const start = h("button", { class: "primary" }, "Write");
  const stop = button("Stop", () => running?.abort(), { disabled: true });
  const problem = h("p", { class: "failure", role: "alert", hidden: true });
  const output = answer();
  let running = null;

  const form = h("form", { class: "panel", novalidate: true, onsubmit: (event) => { event.preventDefault(); write(); } },
    source.element, prompt.element,
    h("div", { class: "fields small" }, parameters.map((one) => one.element), stops.element),
    h("label", { class: "check" }, colors, " Colour tokens by their probability"),
    h("div", { class: "row" }, start, stop, h("span", { class: "soft" }, h("kbd", {}, "Ctrl"), " + ", h("kbd", {}, "Enter"))));
  prompt.input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      write();
    }
  });
  fill(main, h("div", { class: "head" }, h("h1", {}, "Playground")),
    models.models.length + jobs.jobs.length === 0
      ? h("div", { class: "empty" }, h("p", {}, "No model yet. ", h("a", { href: "/new" }, "Train one"), "; a run can be tried while it goes on."))
      : null,
    h("div", { class: "columns play" }, form, h("section", { class: "panel", "aria-label": "Answer" }, problem, output.element)));

  function request() {
    const body = { model: source.input.value, prompt: prompt.input.value, sampling: {}, stopping: {}, top_logprobs: ALTERNATIVES, logprobs: true };
    for (const { spec, input } of parameters) {
      const text = input.value.trim();
      if (text !== "") body[spec.group][spec.name] = isExact(text) ? Number(text) : text;
    }
    if (stops.input.value) body.stopping.stop_strings = [stops.input.value.replaceAll("\\n", "\n")];
    return body;
  }

  async function write() {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    Object.values(fields).forEach((one) => one.setError(""));
    problem.hidden = true;
    start.disabled = true;
    stop.disabled = false;
    const body = request();
    output.begin(body.prompt);
    try {
      for await (const event of stream("/api/generate", body, mine.signal)) output.take(event);
    } catch (error) {
      if (mine.signal.aborted) output.stopped();
      else tell(error);
    }
    if (running !== mine) return;
    running = null;
    start.disabled = false;
    stop.disabled = true;
  }

  function tell(error) {
    output.failed();
    const rest = [];
    for (const violation of error.violations ?? []) {
      if (fields[violation.field]) fields[violation.field].setError(violation.description);
      else rest.push(`${violation.field}: ${violation.description}`);
    }
    if (!error.violations?.length) rest.push(error.message);
    problem.hidden = rest.length === 0;
    problem.textContent = rest.join("; ");
  }

  return () => running?.abort();
}

function sources(models, jobs, wanted) {
  const going = jobs.filter((job) => job.checkpoint_step !== null && job.state !== "SUCCEEDED");
  const options = [{ value: "", label: "the newest model" }];
  if (models.length) {
    options.push({ group: "Models", options: models.map((model) => ({
      value: model.name, label: `${model.name} · ${format.compact(model.parameter_count)} · step ${format.whole(model.step)}`,
    })) });
  }
  if (going.length) {
    options.push({ group: "Runs, newest checkpoint", options: going.map((job) => ({
      value: `job:${job.id}`, label: `${job.model} · ${job.state.toLowerCase()} · step ${format.whole(job.checkpoint_step)}`,
    })) });
  }
  const known = options.flatMap((item) => item.options ?? [item]).map((item) => item.value);
  if (!known.includes(wanted)) options.push({ value: wanted, label: wanted });
  return options;
}

// Where the text appears, with what is known about each token.
function answer() {
  const text = h("pre", { class: "answer", tabindex: 0, "aria-label": "Text", "aria-describedby": "token-hint" });
  const figures = h("p", { class: "soft", role: "status" }, "Nothing written yet.");
  const about = h("div", { class: "token", "aria-live": "polite" });
  const legend = h("p", { class: "legend", hidden: true }, "Probability of each token: ",
    [["p0", "under 1 %"], ["p1", "10 %"], ["p2", "30 %"], ["p3", "60 %"], ["p4", "above"]].map(([name, label]) => h("span", { class: name }, label)));
  const hint = h("p", { class: "soft", id: "token-hint", hidden: true }, "Point at a token, or move through the text with the arrow keys, to see how likely it was.");
  let tokens = [];
  let begun = 0;
  let firstAt = null;
  let count = 0;
  let started = null;

  const pick = (element) => {
    text.querySelector(".picked")?.classList.remove("picked");
    const token = element ? tokens[Number(element.dataset.index)] : null;
    if (!token) return;
    element.classList.add("picked");
    element.scrollIntoView({ block: "nearest" });
    fill(about,
      h("p", {}, h("code", {}, visible(token.text)), ` ${format.percent(Math.exp(token.logprob))}, log-probability ${token.logprob.toFixed(3)}, rank ${token.rank}`),
      h("ol", { class: "alternatives" }, token.top.map((other) => h("li", {},
        h("code", {}, visible(other.text)),
        h("meter", { min: 0, max: 1, value: Math.exp(other.logprob), "aria-hidden": "true" }),
        h("span", { class: "number" }, format.percent(Math.exp(other.logprob)))))));
  };
  text.addEventListener("mouseover", (event) => pick(event.target.closest("[data-index]")));
  text.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    event.preventDefault();
    const all = [...text.querySelectorAll("[data-index]")];
    const now = all.findIndex((element) => element.classList.contains("picked"));
    pick(all[Math.max(0, Math.min(all.length - 1, now + (event.key === "ArrowRight" ? 1 : -1)))]);
  });

  const tell = (end) => {
    const passed = (performance.now() - begun) / 1000;
    const after = firstAt === null ? 0 : (performance.now() - firstAt) / 1000;
    const speed = count > 1 && after > 0 ? `, ${format.number((count - 1) / after, 3)} tokens/s` : "";
    setText(figures, `${end} ${count} tokens in ${format.seconds(passed)}${speed}`);
  };

  return {
    element: h("div", {}, text, legend, figures, about, hint),
    setColors: (isOn) => { text.classList.toggle("colored", isOn); legend.hidden = !isOn; },
    begin: (prompt) => {
      tokens = [];
      count = 0;
      firstAt = null;
      hint.hidden = false;
      begun = performance.now();
      fill(text, h("span", { class: "prompt" }, prompt));
      fill(about);
      setText(figures, "Waiting for its turn …");
    },
    take: (event) => {
      if (event.kind === "queued") {
        const ahead = event.requests_ahead;
        setText(figures, ahead ? `Waiting behind ${format.whole(ahead)} ${ahead === 1 ? "other" : "others"} …` : "Next in the queue …");
      } else if (event.kind === "started") {
        started = event;
        setText(figures, "Reading the prompt …");
      } else if (event.kind === "delta") {
        firstAt ??= performance.now();
        count += event.num_tokens;
        const isAtEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
        for (const token of event.tokens) {
          text.append(h("span", { "data-index": tokens.length, class: bucket(token.logprob) }, token.text));
          tokens.push(token);
        }
        if (isAtEnd) text.scrollTop = text.scrollHeight;
        tell("Writing:");
      } else if (event.kind === "finished" && event.timings) {
        const { timings, usage } = event;
        const speed = usage.completion_tokens > 1 && timings.decode_seconds > 0
          ? (usage.completion_tokens - 1) / timings.decode_seconds : null;
        setText(figures, [
          `${ENDS[event.reason]}${event.stop_string ? ` ${visible(event.stop_string)}` : ""}`,
          `${usage.prompt_tokens} + ${usage.completion_tokens} tokens${usage.cached_tokens ? `, ${usage.cached_tokens} of them from the prefix cache` : ""}`,
          `first after ${format.seconds(timings.time_to_first_token_seconds)}`,
          `waited ${format.seconds(timings.queue_seconds)}`,
          speed === null ? null : `${format.number(speed, 3)} tokens/s`,
          `${started.model} at step ${format.whole(started.weight_version)}`,
          `seed ${started.sampling.seed}`,
        ].filter(Boolean).join(" · "));
      }
    },
    stopped: () => tell("Stopped:"),
    failed: () => setText(figures, count ? `Broken off after ${count} tokens.` : "Nothing was written."),
  };
}

// A whole number that JavaScript would change is left for the server to refuse.
const isExact = (text) => !Number.isNaN(Number(text)) && (!/^\d+$/.test(text) || Number.isSafeInteger(Number(text)));

const ENDS = { length: "Full length", end_of_text: "End of text", stop: "Stopped at" };

const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");

function bucket(logprob) {
  const probability = Math.exp(logprob);
  return `p${[0.01, 0.1, 0.3, 0.6].filter((limit) => probability >= limit).length}`;
}
