// Buttons, fields and notes that every page uses.

import { h, newId } from "../dom.js";

export function button(label, onclick, { kind = "", disabled = false, title = null } = {}) {
  return h("button", { type: "button", class: kind, onclick, disabled, title }, label);
}

// A button that is busy until what it started is done, and says what went wrong beside itself.
export function action(label, work, { kind = "", title = null } = {}) {
  const note = h("span", { class: "note bad", role: "alert" });
  const element = button(label, async () => {
    element.disabled = true;
    note.textContent = "";
    try {
      await work();
    } catch (error) {
      note.textContent = error.message;
    }
    element.disabled = false;
  }, { kind, title });
  return h("span", { class: "action" }, element, note);
}

// A labelled control. Returns { element, input, setError }.
export function field(label, input, { help = "", allowed = "" } = {}) {
  const id = newId("field");
  const helpId = `${id}-help`;
  const errorId = `${id}-error`;
  input.id = id;
  input.setAttribute("aria-describedby", `${helpId} ${errorId}`);
  const error = h("p", { class: "error", id: errorId, role: "alert" });
  const element = h("div", { class: "field" },
    h("label", { htmlFor: id }, label),
    input,
    h("p", { class: "help", id: helpId }, help, allowed ? h("span", { class: "allowed" }, allowed) : null),
    error);
  const setError = (text) => {
    error.textContent = text;
    if (text) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  };
  return { element, input, setError };
}

export function select(options, value = "", attributes = {}) {
  const element = h("select", attributes, options.map(option));
  element.value = value;
  if (element.selectedIndex < 0) element.selectedIndex = 0;
  return element;
}

function option(item) {
  if (item.group !== undefined) {
    return h("optgroup", { label: item.group }, item.options.map(option));
  }
  const { value, label } = typeof item === "string" ? { value: item, label: item } : item;
  return h("option", { value }, label);
}

// Two or three choices beside each other. `onchange` gets the chosen value.
export function choice(label, options, value, onchange) {
  const name = newId("choice");
  return h("fieldset", { class: "choice" }, h("legend", {}, label),
    options.map((item) => h("label", {},
      h("input", {
        type: "radio", name, value: item.value, checked: item.value === value,
        onchange: () => onchange(item.value),
      }), h("span", {}, item.label))));
}

// Asks before something that cannot be undone. Resolves to whether to go on.
export function confirm(question, verb) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "confirm", onclose: () => {
      resolve(dialog.returnValue === "yes");
      dialog.remove();
    } },
    h("form", { method: "dialog" },
      h("p", {}, question),
      h("div", { class: "row end" },
        h("button", { value: "no", autofocus: true }, "Keep"),
        h("button", { value: "yes", class: "danger" }, verb))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

export const loading = () => h("p", { class: "loading", role: "status" }, "Loading …");

export const failure = (error, again) => h("div", { class: "failure", role: "alert" },
  h("p", {}, error.message), again ? button("Try again", again) : null);

export const empty = (...children) => h("div", { class: "empty" }, ...children);

// A number with its name.
export function tile(label, value, title = null) {
  const output = h("output", { class: "value" }, value);
  return { element: h("div", { class: "tile", title }, h("span", { class: "label" }, label), output), output };
}
