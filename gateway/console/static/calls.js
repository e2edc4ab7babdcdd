// Calls, and the ladder of one: who sent what to whom, and what was edited on its way.

import { get } from "./api.js";
import { clock, duration, el, fill, say, whole } from "./dom.js";
import { kick } from "./kick.js";
import { poll } from "./poll.js";
import { Table } from "./table.js";

const sum = (row, key) => row.media.reduce((total, media) => total + media[key], 0);
const uri = (text) => text.replace(/^sips?:/, "");

export function callsView() {
  const search = el("input", { type: "search", placeholder: "Filter: names, state:early", "aria-label": "Filter calls", oninput: () => table.filter(search.value) });
  const late = el("span", { class: "late", role: "status" });
  const ladder = el("section", { class: "ladder", tabindex: 0, "aria-label": "Messages of the call" }, el("p", { class: "empty" }, "Choose a call to see its messages."));
  const table = new Table({
    label: "calls",
    sort: "duration",
    descending: true,
    note: "No call is under way.",
    columns: [
      { key: "state", label: "state", width: "84px", tag: true },
      { key: "from", label: "from", width: "minmax(90px, 1fr)", card: "a" },
      { key: "to", label: "to", width: "minmax(90px, 1fr)", card: "c" },
      { key: "packets", label: "media", width: "76px", n: true, search: false, show: (row) => whole(row.packets), card: "d" },
      { key: "duration", label: "time", width: "88px", n: true, search: false, show: (row) => duration(row.duration), card: "b" },
      { key: "about", card: "e", search: false, show: (row) => `${row.state} · ${row.client}` },
    ],
    onOpen: (row) => { choose(row); node.classList.add("open"); },
    onSelect: (row) => choose(row),
  });
  const peers = el("details", { class: "peers" });
  const node = el("div", { class: "calls" }, el("section", { class: "full" }, el("div", { class: "filter" }, search, late), table.node, peers), ladder);
  let chosen, drawn = "", drawnPeers = "";

  const describe = (row) => `the media of the call ${row.from} → ${row.to}`;

  function cut(row) {
    return kick(row.call_id, describe(row), refresh, "Its media are cut; the phones do not know of it, and go on with their call in silence until one hangs up.");
  }

  function close() {
    node.classList.remove("open");
    table.body.focus();
  }

  function choose(row) {
    if (chosen?.id !== row.id) drawn = "";
    chosen = row;
    draw();
  }

  async function draw() {
    const call = chosen;
    const steps = await get(`/api/ladder?call=${encodeURIComponent(call.call_id)}`);
    const state = JSON.stringify([call.id, call.state, steps.length, call.packets]);
    if (call !== chosen || state === drawn) return;
    drawn = state;
    const opened = new Set([...ladder.querySelectorAll("details[open]")].map((one) => one.dataset.at));
    const begun = steps[0]?.time ?? 0;
    fill(ladder,
      el("header", {}, el("button", { class: "danger", onclick: () => cut(call) }, "Cut the media"), el("button", { class: "icon narrow", "aria-label": "Close", onclick: close }, "✕")),
      el("div", { class: "ends" },
        el("span", {}, el("b", {}, "client"), el("small", {}, call.client)),
        el("span", {}, el("b", {}, "algate"), el("small", {}, `${steps.reduce((total, step) => total + step.edits.length, 0)} edits`)),
        el("span", {}, el("b", {}, "server"), el("small", {}, call.server))),
      steps.length ? el("div", { class: "steps" }, steps.map((step, i) => rung(step, i, begun, opened.has(String(i))))) : el("p", { class: "empty" }, "Its messages are not remembered any more."),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Media of the call" }, el("table", { class: "plain" },
        el("thead", {}, el("tr", {}, ["media", "client's socket", "advertised", "peers"].map((name) => el("th", {}, name)), ["in", "out"].map((name) => el("th", { class: "n" }, name)))),
        el("tbody", {}, call.media.map((media) => el("tr", {},
          el("td", {}, media.kind), el("td", { class: "mono" }, media.target), el("td", { class: "mono" }, media.public ?? "–"),
          el("td", { class: "mono" }, media.peers === null ? "anybody" : media.peers.join(", ") || "nobody yet"),
          el("td", { class: "n" }, whole(media.packets_in)), el("td", { class: "n" }, whole(media.packets_out))))))));
  }

  /** Whose messages are edited, and whose are not and why; those that are not first. */
  function drawPeers(rows) {
    const odd = rows.filter((row) => row.state !== "edited");
    const state = JSON.stringify(rows);
    if (state === drawnPeers) return;
    drawnPeers = state;
    const until = (row) => row.until === null ? "" : `${duration(row.until)} more`;
    fill(peers,
      el("summary", {}, `${whole(rows.length)} peer${rows.length === 1 ? "" : "s"}${odd.length ? `, ${whole(odd.length)} not edited` : ""}`),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Peers" }, el("table", { class: "plain" },
        el("thead", {}, el("tr", {}, ["client", "server", "state", "reason", "until"].map((name) => el("th", {}, name)))),
        el("tbody", {}, [...odd, ...rows.filter((row) => row.state === "edited")].map((row) => el("tr", {},
          el("td", { class: "mono" }, row.client), el("td", { class: "mono" }, row.server), el("td", {}, row.state),
          el("td", {}, row.reason), el("td", {}, until(row))))))));
  }

  const { refresh, stop } = poll(node, late, async () => {
    const rows = (await get("/api/calls")).map((row) => ({
      ...row, id: `${row.client} ${row.call_id}`, from: uri(row.caller), to: uri(row.callee), packets: sum(row, "packets_in") + sum(row, "packets_out"),
    }));
    table.update(rows);
    drawPeers(await get("/api/peers"));
    say(late, "");
    const row = chosen && rows.find((row) => row.id === chosen.id);
    if (row) choose(row);
    else if (!chosen && rows.length) table.select(table.rows[0]?.id);
  });

  return {
    node,
    update() {},
    shown: () => { refresh(); table.body.focus(); },
    gone: stop,
    search,
    escape() {
      if (document.activeElement !== search && node.classList.contains("open")) return close();
      search.value = "";
      table.filter("");
      table.body.focus();
    },
    kick: () => table.selected && cut(table.selected),
  };
}

function rung(step, index, begun, open) {
  const failed = /^SIP\/2\.0 [456]/.test(step.title);
  const count = step.edits.length;
  const title = step.title.replace(/^SIP\/2\.0 /, "").replace(/ SIP\/2\.0$/, "");
  return el("details", { class: `step ${step.from}${failed ? " failed" : ""}`, open, "data-at": index },
    el("summary", {},
      el("span", { class: "title" }, el("span", { title: `${step.source} → ${step.destination}` }, title), el("small", {}, step.cseq.replace(/ .*/, "") ? `CSeq ${step.cseq}` : ""), el("time", { title: clock(step.time, true) }, `+${(step.time - begun).toFixed(3)} s`)),
      el("span", { class: "line" }),
      el("span", { class: `mark${count ? " edited" : ""}` }, count ? `${count} edit${count === 1 ? "" : "s"}` : "untouched")),
    el("div", { class: "edits" },
      el("p", {}, `${step.source} → ${step.destination}`),
      count ? step.edits.map((edit) => el("p", {}, el("span", { class: "tag" }, edit.reason), edit.head, el("del", {}, edit.before), el("ins", {}, edit.after), edit.tail)) : el("p", {}, "It went on as it came.")));
}
