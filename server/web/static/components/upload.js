// The form that makes a dataset of a file.

import { upload } from "../api.js";
import { button, field, select } from "./controls.js";
import { fill, h } from "../dom.js";
import * as format from "../format.js";

// `done` gets the dataset's name.
export function uploadForm({ maxBytes, done }) {
  const file = field("File", h("input", { type: "file", required: true }),
    { help: `At most ${format.bytes(maxBytes)}. It can also be dropped here.` });
  const name = field("Name", h("input", { required: true, maxlength: 63, autocomplete: "off", spellcheck: "false" }),
    { help: "Small letters, digits, - and _." });
  const tokenizer = field("Tokenizer", select([
    { value: "char", label: "char: one token a character" },
    { value: "gpt2", label: "gpt2: GPT-2's 50,257 byte pairs" },
  ]), { help: "By character suits small texts and small models." });
  const ratio = field("Validation share", h("input", { type: "number", value: "0.1", min: 0.001, max: 0.5, step: "any", required: true }),
    { help: "Taken from the end of the text.", allowed: "in (0, 0.5]" });
  const kind = field("The file is", select([
    { value: "text", label: "one text" }, { value: "jsonl", label: "JSON lines, a document each" },
    { value: "tar", label: "a tar archive of documents" }, { value: "parquet", label: "Parquet, a document a row" },
  ], "text", { onchange: () => showFields() }));
  const textField = field("Text field", h("input", { value: "text", maxlength: 256, spellcheck: "false" }),
    { help: "Field or column that holds the text." });
  const maxDocuments = field("Documents", h("input", { type: "number", min: 1, placeholder: "all" }),
    { help: "Take at most so many." });
  const showFields = () => {
    textField.element.hidden = kind.input.value === "text";
    maxDocuments.element.hidden = kind.input.value === "text";
    encoding.element.hidden = kind.input.value === "parquet";
  };
  const encoding = field("Encoding", select([
    { value: "", label: "find out" }, { value: "utf-8", label: "UTF-8" }, { value: "cp1252", label: "Windows-1252" },
  ]));
  const fields = {
    name, tokenizer, val_ratio: ratio, encoding, format: kind, text_field: textField,
    max_documents: maxDocuments, text: file,
  };
  showFields();
  const submit = h("button", { class: "primary" }, "Upload");
  const bar = h("progress", { max: 1, "aria-label": "Upload" });
  const note = h("span", { class: "soft", role: "status" });
  const problem = h("p", { class: "error", role: "alert" });
  const running = h("div", { class: "row", hidden: true });
  let stopping = null;
  fill(running, bar, note, button("Stop", () => stopping?.abort()));

  file.input.addEventListener("change", () => {
    const chosen = file.input.files[0];
    if (chosen && !name.input.value) name.input.value = nameOf(chosen.name);
    if (chosen) kind.input.value = kindOf(chosen.name);
    showFields();
    file.setError(chosen && chosen.size > maxBytes ? `has ${format.bytes(chosen.size)}; this server takes at most ${format.bytes(maxBytes)}` : "");
  });

  const form = h("form", { class: "upload", novalidate: true, onsubmit: async (event) => {
    event.preventDefault();
    Object.values(fields).forEach((one) => one.setError(""));
    problem.textContent = "";
    const chosen = file.input.files[0];
    if (!chosen) return file.setError("must be chosen");
    if (chosen.size > maxBytes) return file.setError(`must have at most ${format.bytes(maxBytes)}`);
    const query = new URLSearchParams();
    for (const key of ["tokenizer", "val_ratio", "encoding", "format", "text_field", "max_documents"]) {
      if (!fields[key].element.hidden && fields[key].input.value) query.set(key, fields[key].input.value);
    }
    submit.disabled = true;
    running.hidden = false;
    stopping = new AbortController();
    try {
      const made = await upload(`/api/datasets/${encodeURIComponent(name.input.value || " ")}?${query}`, chosen, (sent, total) => {
        bar.value = sent / total;
        note.textContent = sent < total ? `${format.bytes(sent)} of ${format.bytes(total)}` : "preparing the tokens …";
        if (sent === total) bar.removeAttribute("value");
      }, stopping.signal);
      form.reset();
      showFields();
      note.textContent = "";
      done(made.name);
    } catch (error) {
      const known = error.violations?.filter((violation) => fields[violation.field]) ?? [];
      known.forEach((violation) => fields[violation.field].setError(violation.description));
      if (known.length === 0) {
        if (error.reason === "DATASET_ALREADY_EXISTS") name.setError(error.message);
        else problem.textContent = error.message;
      }
    }
    submit.disabled = false;
    running.hidden = true;
    return undefined;
  } },
  h("div", { class: "fields" }, file.element, name.element, kind.element, tokenizer.element, ratio.element,
    textField.element, maxDocuments.element, encoding.element),
  h("div", { class: "row" }, submit, running), problem);

  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("dropping"); });
  form.addEventListener("dragleave", () => form.classList.remove("dropping"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("dropping");
    file.input.files = event.dataTransfer.files;
    file.input.dispatchEvent(new Event("change"));
  });
  return form;
}

// A name as datasets may have, out of a file's.
function nameOf(fileName) {
  return fileName.toLowerCase().replace(/\.[a-z0-9]+$/, "").replace(/[^a-z0-9_-]+/g, "-").replace(/^[-_]+/, "").slice(0, 63);
}

function kindOf(fileName) {
  if (/\.jsonl$/i.test(fileName)) return "jsonl";
  if (/\.parquet$/i.test(fileName)) return "parquet";
  return /\.(tar(\.\w+)?|tgz)$/i.test(fileName) ? "tar" : "text";
}
