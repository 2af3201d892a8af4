// Begins the dashboard: the frame around the pages, which page a path shows, the connection.

import { get, needsToken } from "./api.js";
import { failure, loading } from "./components/controls.js";
import { fill, h } from "./dom.js";
import { connection } from "./live.js";
import * as datasets from "./pages/datasets.js";
import * as login from "./pages/login.js";
import * as newRun from "./pages/new_run.js";
import * as playground from "./pages/playground.js";
import * as run from "./pages/run.js";
import * as runs from "./pages/runs.js";
import * as serving from "./pages/serving.js";

// A page is { title, show(main, params) }; show returns what ends it, or nothing.
const PAGES = [
  [/^\/$/, runs],
  [/^\/new$/, newRun],
  [/^\/runs\/(?<id>[^/]+)$/, run],
  [/^\/playground$/, playground],
  [/^\/serving$/, serving],
  [/^\/datasets$/, datasets],
];

const NAVIGATION = [
  ["/", "Runs"], ["/new", "New run"], ["/playground", "Playground"], ["/serving", "Serving"],
  ["/datasets", "Datasets"],
];

const main = document.querySelector("main");
const banner = document.querySelector(".banner");
let leave = null;
let visit = 0;

export function go(path) {
  history.pushState(null, "", path);
  show(true);
}

async function show(movesFocus) {
  visit += 1;
  const current = visit;
  leave?.();
  leave = null;
  const [pattern, page] = PAGES.find(([path]) => path.test(location.pathname)) ?? [/^/, runs];
  const params = { ...pattern.exec(location.pathname).groups, query: new URLSearchParams(location.search), go };
  document.title = `${page.title} · nanogpt-service`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === location.pathname) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  fill(main, loading());
  if (movesFocus) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  try {
    const ends = await page.show(main, params);
    if (current === visit) leave = ends ?? null;
    else ends?.();
  } catch (error) {
    if (current === visit && error.status !== 401) fill(main, failure(error, () => show(false)));
  }
}

function frame() {
  fill(document.querySelector(".top"),
    h("a", { class: "brand", href: "/" }, h("img", { src: "/static/icon.svg", alt: "", width: 18, height: 18 }), "nanogpt"),
    h("nav", { "aria-label": "Pages" }, NAVIGATION.map(([href, text]) => h("a", { href }, text))));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='/']");
    const isPlain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey;
    if (!link || !isPlain || link.target || link.hasAttribute("download")) return;
    if (link.pathname.startsWith("/metrics") || link.pathname.startsWith("/healthz")) return;
    event.preventDefault();
    go(link.getAttribute("href"));
  });
  addEventListener("popstate", () => show(true));
  connection.addEventListener("change", tellConnection);
  needsToken.addEventListener("asked", () => {
    leave?.();
    leave = null;
    document.title = `${login.title} · nanogpt-service`;
    login.show(main, { then: () => { about(); show(true); } });
  });
}

let calm = null;

function tellConnection() {
  clearTimeout(calm);
  banner.hidden = false;
  banner.classList.toggle("lost", connection.isLost);
  banner.textContent = connection.isLost
    ? "Connection lost. What you see is from before; trying again …"
    : "Connected again, nothing was missed.";
  if (!connection.isLost) calm = setTimeout(() => { banner.hidden = true; }, 4000);
}

async function about() {
  const server = await get("/api/about").catch(() => null);
  if (server === null) return;
  fill(document.querySelector(".bottom"),
    h("span", {}, `nanogpt-service ${server.version}`),
    h("span", {}, "gRPC on ", h("code", {}, server.grpc_address)),
    h("span", {}, `${server.device} · ${server.device_name}`),
    h("a", { href: "/metrics" }, "metrics"),
    h("span", {}, "charts: uPlot © Leon Sorokin, ", h("a", { href: "/static/uplot-license.txt", target: "_blank" }, "MIT")));
}

frame();
about();
show(false);
