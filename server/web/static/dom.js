// The one way into the page: elements made of values, text always as text.

// h("p", { class: "soft", onclick: f }, "text", h("b", {}, "more")); null and false are left out.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in PROPERTIES) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...parts(children));
  return element;
}

// Properties whose attribute of the same name says only how they begin.
const PROPERTIES = { value: 1, checked: 1, disabled: 1, hidden: 1, htmlFor: 1, indeterminate: 1 };

export function fill(element, ...children) {
  element.replaceChildren(...parts(children));
  return element;
}

// Changes text only where it differs, so that a selection in it survives.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function parts(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

let counter = 0;

// An id that no other element of the page has.
export function newId(prefix) {
  counter += 1;
  return `${prefix}-${counter}`;
}
