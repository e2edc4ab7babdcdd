// The frame: views, the stream, the theme, the keys.

import { stream } from "./api.js";
import { callsView } from "./calls.js";
import { fill, say, short, whole } from "./dom.js";
import { askToken } from "./kick.js";
import { flowsView, pinholesView } from "./lists.js";
import { overviewView, processesView, verdict } from "./overview.js";

const POINTS = 720;
const state = { overview: null, previous: null, points: [] };
const views = { overview: overviewView, flows: flowsView, pinholes: pinholesView, calls: callsView, processes: processesView };
const names = Object.keys(views);
const made = {};
const main = document.getElementById("main"), pill = document.getElementById("pill");
let current = "";

function show() {
  const name = location.hash.replace("#/", "").split("?")[0];
  const next = name in views ? name : "overview";
  if (next === current) return;
  made[current]?.gone?.();
  current = next;
  made[next] ??= views[next](state);
  fill(main, made[next].node);
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.dataset.view === next) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  say(document.getElementById("view"), next);
  document.title = next === "overview" ? "algate" : `${next} · algate`;
  made[next].update();
  made[next].shown?.();
}

function setPill(kind, words) {
  pill.dataset.state = kind;
  say(pill.lastElementChild, words);
}

function heard(name, value) {
  if (name === "history") {
    state.points = value.points;
    return;
  }
  state.previous = state.overview;
  state.overview = value;
  if (state.points.at(-1)?.[0] !== value.point[0]) state.points = [...state.points, value.point].slice(-POINTS);
  const [, flows, , , , , pinholes, , , calls] = value.point;
  const counts = { flows, pinholes, calls, processes: value.processes.length };
  for (const [view, count] of Object.entries(counts)) say(document.querySelector(`[data-count="${view}"]`), count < 10000 ? whole(count) : short(count));
  say(document.getElementById("host"), value.host);
  setPill(...verdict(value));
  if (!document.hidden) made[current].update();
}

function connection(up, reason, status) {
  pill.title = up ? "" : reason;
  if (up) return;
  if (status === 401) {
    setPill("warn", "the token is wanted");
    if (!document.querySelector("dialog[open]")) askToken();
  } else setPill("bad", "no connection");
}

// --- theme ---

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function toggleTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
  localStorage.setItem("algate-theme", dark ? "light" : "dark");
}

// --- keys ---

const keys = {
  "/": () => made[current].search?.focus(),
  t: toggleTheme,
  "?": () => document.getElementById("keys").showModal(),
  k: () => made[current].kick?.(),
  p: () => made[current].pause?.(),
};
names.forEach((name, i) => {
  keys[String(i + 1)] = () => { location.hash = `#/${name}`; };
});

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") return made[current].escape?.();
  if (event.target instanceof HTMLInputElement) {
    if (event.key === "ArrowDown" || event.key === "Enter") main.querySelector(".vbody")?.focus();
    return;
  }
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  }
});

setTheme(localStorage.getItem("algate-theme"));
document.getElementById("theme").onclick = toggleTheme;
document.getElementById("help").onclick = keys["?"];
document.getElementById("token").onclick = askToken;
addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => { if (!document.hidden) made[current].update(); });
show();
stream("/api/stream", heard, connection);
