// A job's state as a badge: a shape and a word, not a colour alone.

import { h } from "../dom.js";

const SHAPES = {
  QUEUED: "○", STARTING: "◔", RUNNING: "●", PAUSING: "◑", PAUSED: "‖", RECOVERING: "↻",
  CANCELLING: "◌", CANCELLED: "–", SUCCEEDED: "✓", FAILED: "✕",
  UNLOADED: "○", LOADING: "◔", LOADED: "●",
};

export function badge(state) {
  return h("span", { class: `badge ${state.toLowerCase()}` },
    h("span", { "aria-hidden": "true" }, SHAPES[state] ?? "?"), ` ${state.toLowerCase()}`);
}

const REASONS = {
  REQUESTED: "as asked", SERVER_RESTART: "the server started again", CRASHED: "the trainer crashed",
  CRASH_LOOP: "the trainer crashed too often", DIVERGED: "the loss was not finite",
  OUT_OF_MEMORY: "memory ran out", BAD_DATASET: "the dataset cannot be used",
  BAD_CONFIG: "the configuration cannot be used", EARLY_STOPPED: "the loss stopped improving",
  LIMIT_REACHED: "a limit was reached",
};

export const reasonText = (reason) => (reason === "" ? "" : REASONS[reason] ?? reason.toLowerCase().replaceAll("_", " "));
