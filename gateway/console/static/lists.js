// The views that are one long table: flows and pinholes, with what is known of one row beside it.

import { get, objects } from "./api.js";
import { kick } from "./kick.js";
import { poll } from "./poll.js";
import { bytes, duration, el, fill, rate, say, whole } from "./dom.js";
import { Table } from "./table.js";

const now = () => Date.now() / 1000;

/** `load()` gives the rows; `details(row)` what to show of one, as [name, text] pairs. */
function listView({ label, example, columns, sort, descending, load, details, what, note }) {
  const search = el("input", { type: "search", placeholder: `Filter: ${example}, -word`, "aria-label": `Filter ${label}`, oninput: () => { table.filter(search.value); tell(); } });
  const count = el("span", { class: "count", role: "status" }), late = el("span", { class: "late", role: "status" });
  const pause = el("button", { "aria-pressed": "false", onclick: () => toggle() }, "Pause");
  const drawer = el("aside", { class: "drawer", hidden: true, "aria-label": "Details" });
  const table = new Table({ columns, sort, descending, label, note, onOpen: (row) => open(row), onSelect: (row) => { if (!drawer.hidden) open(row); } });
  const node = el("div", { class: "full" }, el("div", { class: "filter" }, search, count, late, pause), el("div", { class: "split" }, table.node, drawer));
  let paused = false, opened, gone = () => {};

  function tell() {
    const all = table.all.length;
    say(count, table.query ? `${whole(table.rows.length)} of ${whole(all)}` : whole(all));
  }

  function toggle() {
    paused = !paused;
    pause.setAttribute("aria-pressed", paused);
    say(pause, paused ? "Go on" : "Pause");
    if (!paused) refresh();
  }

  function open(row) {
    opened = row.id;
    const leave = el("button", { class: "danger", onclick: () => kick(row.id, describe(row), refresh) }, `Kick this ${what}`);
    const ended = el("p", { class: "gone c-bad", hidden: true }, `This ${what} has ended.`);
    gone = () => { ended.hidden = false; leave.hidden = true; };
    fill(drawer,
      el("header", {}, el("h2", {}, what), el("button", { class: "icon", "aria-label": "Close", onclick: () => close() }, "✕")),
      ended,
      el("dl", {}, details(row).filter(([, text]) => text !== null && text !== undefined && text !== "").flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
      leave);
    drawer.hidden = false;
  }

  function close() {
    drawer.hidden = true;
    opened = undefined;
    table.body.focus();
  }

  const describe = (row) => details(row).slice(0, 3).map(([, text]) => text).join(" → ");

  const { refresh, stop } = poll(node, late, async () => {
    const { rows, silent } = await load();
    say(late, silent.length ? `${silent.join(", ")} did not answer` : "");
    if (paused) return;
    table.update(rows);
    tell();
    if (opened !== undefined) {
      const row = rows.find((row) => row.id === opened);
      if (row) open(row);
      else gone();
    }
  }, () => paused);

  return {
    node,
    update() {},
    shown: () => { refresh(); table.body.focus(); },
    gone: stop,
    search,
    escape() {
      if (document.activeElement === search) { search.value = ""; table.filter(""); tell(); table.body.focus(); }
      else close();
    },
    kick: () => table.selected && kick(table.selected.id, describe(table.selected), refresh),
    pause: toggle,
  };
}

export function flowsView() {
  let before = new Map(), at = 0;
  return listView({
    label: "flows",
    example: "front:socks",
    what: "flow",
    sort: "speed",
    descending: true,
    note: "No flow is live.",
    columns: [
      { key: "front", label: "front", width: "84px", tag: true },
      { key: "client", label: "client", width: "minmax(152px, 1.3fr)", mono: true, card: "a" },
      { key: "server", label: "server", width: "minmax(152px, 1.6fr)", mono: true, card: "c" },
      { key: "user", label: "user", width: "minmax(30px, .5fr)" },
      { key: "module", label: "module", width: "minmax(52px, .5fr)" },
      { key: "rule", label: "rule", width: "minmax(60px, .7fr)", faint: true },
      { key: "speed", label: "rate", width: "96px", n: true, search: false, show: (row) => (row.speed >= 1 ? rate(row.speed) : "–"), card: "b" },
      { key: "up", label: "up", width: "76px", n: true, search: false, show: (row) => bytes(row.up) },
      { key: "down", label: "down", width: "76px", n: true, search: false, show: (row) => bytes(row.down), card: "d" },
      { key: "age", label: "age", width: "92px", n: true, search: false, faint: true, show: (row) => duration(row.age) },
      { key: "about", card: "e", search: false, show: (row) => [row.front, row.user, row.module, row.rule].filter(Boolean).join(" · ") },
    ],
    async load() {
      const answer = await get("/api/flows");
      const rows = objects(answer), time = performance.now() / 1000;
      const next = new Map();
      for (const row of rows) {
        const total = row.up + row.down, known = before.get(row.id);
        row.speed = known && time > at ? Math.max(0, (total - known[0]) / (time - at)) : 0;
        if (known && total === known[0] && time - at < 1) row.speed = known[1]; // the same answer once more
        row.age = now() - row.since;
        next.set(row.id, [total, row.speed]);
      }
      before = next;
      at = time;
      return { rows, silent: answer.silent };
    },
    details: (row) => [
      ["client", row.client], ["server", row.server], ["id", row.id], ["front", row.front], ["data of", row.parent], ["user", row.user], ["module", row.module], ["rule", row.rule],
      ["since", new Date(row.since * 1000).toLocaleString("en-GB")], ["age", duration(row.age)],
      ["up", `${bytes(row.up)} (${whole(row.up)})`], ["down", `${bytes(row.down)} (${whole(row.down)})`], ["rate", rate(row.speed)],
    ],
  });
}

export function pinholesView() {
  return listView({
    label: "pinholes",
    example: "reason:sip",
    what: "pinhole",
    sort: "left",
    note: "No pinhole is open.",
    columns: [
      { key: "protocol", label: "proto", width: "64px", tag: true },
      { key: "public", label: "public", width: "minmax(130px, 1.2fr)", mono: true, card: "a" },
      { key: "target", label: "target", width: "minmax(130px, 1.2fr)", mono: true, card: "c" },
      { key: "peer", label: "peer", width: "minmax(100px, 1fr)", mono: true, show: (row) => row.peer ?? "anybody" },
      { key: "reason", label: "reason", width: "minmax(80px, .7fr)" },
      { key: "backend", label: "backend", width: "82px", faint: true },
      { key: "packets", label: "packets", width: "80px", n: true, search: false, show: (row) => whole(row.packets ?? 0) },
      { key: "bytes", label: "bytes", width: "80px", n: true, search: false, show: (row) => bytes(row.bytes ?? 0), card: "d" },
      { key: "left", label: "closes in", width: "92px", n: true, search: false, show: (row) => duration(row.left), card: "b" },
      { key: "about", card: "e", search: false, show: (row) => [row.protocol, row.reason, `from ${row.peer ?? "anybody"}`].join(" · ") },
    ],
    async load() {
      const answer = await get("/api/pinholes");
      const rows = objects(answer);
      for (const row of rows) row.left = row.expires - now();
      return { rows, silent: answer.silent };
    },
    details: (row) => [
      ["public", row.public], ["target", row.target], ["peer", row.peer ?? "anybody"], ["id", row.id], ["kind", row.kind], ["protocol", row.protocol], ["direction", row.direction],
      ["reason", row.reason], ["client", row.client], ["flow", row.flow], ["backend", row.backend], ["closes in", duration(row.left)],
      ["packets", whole(row.packets ?? 0)], ["bytes", bytes(row.bytes ?? 0)],
    ],
  });
}
