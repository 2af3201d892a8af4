// Asks for the server's token and exchanges it for a cookie.

import { post } from "../api.js";
import { field } from "../components/controls.js";
import { fill, h } from "../dom.js";

export const title = "Token";

export function show(main, { then }) {
  const token = field("Token", h("input", { type: "password", autocomplete: "current-password", required: true }),
    { help: "The value of NANOGPT_HTTP_TOKEN on the server." });
  const form = h("form", { class: "panel narrow", onsubmit: async (event) => {
    event.preventDefault();
    try {
      await post("/api/session", { token: token.input.value });
      then();
    } catch (error) {
      token.setError(error.message);
      token.input.focus();
    }
  } }, h("h1", {}, "This server asks for its token"), token.element,
  h("button", { class: "primary" }, "Open the dashboard"));
  fill(main, form);
  token.input.focus();
}
