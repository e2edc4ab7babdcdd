// The first view: is all well, and what is going on.

import { get } from "./api.js";
import { Chart, rates, sparkline } from "./chart.js";
import { bytes, clock, duration, el, fill, rate, say, short, whole } from "./dom.js";

const column = Object.fromEntries(["time", "flows", "up", "down", "opened", "denied", "pinholes", "edits", "refused", "calls", "kernel"].map((name, i) => [name, i]));
const level = (name) => (points) => points.map((point) => point[column[name]]).slice(1);
const speed = (name) => (points) => rates(points, column[name]);
const minutely = (name) => (points) => speed(name)(points).map((value) => value * 60);
const last = (values, count = 5) => {
  const tail = values.slice(-count);
  return tail.length ? tail.reduce((sum, value) => sum + value, 0) / tail.length : 0;
};

function tile(title, colour, href, values, format, side = () => "") {
  const value = el("div", { class: "value" }), more = el("div", { class: "side" }), svg = el("svg", { "aria-hidden": "true" });
  const node = el("a", { class: "card tile", href }, el("h2", {}, title), more, value, svg);
  return {
    node,
    update(points, overview) {
      const series = values(points);
      say(value, format(series));
      say(more, side(points, overview));
      sparkline(svg, series, colour);
    },
  };
}

const perSecond = (value) => (value < 0.05 ? "0" : value < 10 ? value.toFixed(1) : short(value));

export function overviewView(state) {
  const banner = el("section", { class: "banner", "aria-live": "polite" });
  const tiles = [
    tile("Down", "c-down", "#/flows", speed("down"), (values) => rate(last(values, 1)), (points) => `${bytes(points.at(-1)[column.down])} in all`),
    tile("Up", "c-up", "#/flows", speed("up"), (values) => rate(last(values, 1)), (points) => `${bytes(points.at(-1)[column.up])} in all`),
    tile("Flows", "c-violet", "#/flows", level("flows"), (values) => whole(values.at(-1) ?? 0), (points) => `+${perSecond(last(speed("opened")(points)))}/s`),
    tile("Pinholes", "c-good", "#/pinholes", level("pinholes"), (values) => whole(values.at(-1) ?? 0), (points) => `${whole(points.at(-1)[column.refused])} refused in all`),
    tile("Calls", "c-warn", "#/calls", level("calls"), (values) => whole(values.at(-1) ?? 0), (_, overview) => `${whole(overview.sums.algate_registrations)} registered${overview.sums.algate_messages_unread_total ? `, ${whole(overview.sums.algate_messages_unread_total)} messages unread` : ""}`),
    tile("Denied", "c-bad", "#/overview", minutely("denied"), (values) => `${perSecond(last(values, 15))}/min`, (points) => `${whole(points.at(-1)[column.denied])} in all`),
  ];
  const traffic = new Chart([
    { label: "down, to clients", colour: "c-down", values: speed("down") },
    { label: "up, from clients", colour: "c-up", values: speed("up") },
    { label: "in the kernel, both ways", colour: "c-violet", values: speed("kernel") },
  ], rate);
  const happenings = new Chart([
    { label: "new flows", colour: "c-violet", values: minutely("opened") },
    { label: "denied", colour: "c-bad", values: minutely("denied") },
    { label: "edits", colour: "c-warn", values: minutely("edits") },
  ], short, true);
  const rules = el("div", { class: "scroll" }), results = el("div", { class: "scroll" }), edits = el("div", { class: "scroll" }), events = el("ul", { class: "events", tabindex: 0, "aria-label": "Events" });
  const node = el("div", { class: "page" },
    banner,
    el("div", { class: "tiles" }, tiles.map((one) => one.node)),
    el("div", { class: "wide" },
      card("Throughput", traffic.legend, traffic.node),
      card("Each minute", happenings.legend, happenings.node)),
    el("div", { class: "thirds" },
      el("div", { class: "stack" },
        card("Rules", el("small", {}, "flows permitted, requests denied"), rules),
        card("Edits and refusals", el("small", {}, "of payload; of pinholes"), edits)),
      el("div", { class: "stack" }, card("Requests", el("small", {}, "what became of them"), results)),
      el("div", { class: "stack" }, card("Events", el("small", {}, "the latest worth a look"), events))));

  let loading = false;
  async function loadEvents() {
    if (loading) return;
    loading = true;
    try {
      showEvents(events, await get("/api/events"));
    } catch { /* the pill says that nobody answers */ } finally {
      loading = false;
    }
  }

  return {
    node,
    update() {
      const { overview, points } = state;
      if (!overview) return;
      showBanner(banner, overview);
      for (const one of tiles) one.update(points, overview);
      traffic.update(points);
      happenings.update(points);
      showRules(rules, overview.rules);
      showResults(results, overview);
      showEdits(edits, overview);
      loadEvents();
    },
  };
}

function card(title, aside, body) {
  return el("section", { class: "card" }, el("header", {}, el("h2", {}, title), aside), body);
}

/** "good", "warn" or "bad", with a word for it. */
export function verdict(overview) {
  const silent = overview.failures.map((line) => line.split(":")[0]);
  if (silent.length) return ["bad", silent.length === 1 ? `${silent[0]} does not answer` : `${silent.length} processes do not answer`];
  if (overview.obstacles.length) return ["warn", "Not ready"];
  return ["good", "All is well"];
}

function showBanner(node, overview) {
  const [kind, words] = verdict(overview);
  const supervisor = overview.processes.find((one) => one.name === "supervisor");
  const restarts = overview.processes.reduce((sum, one) => sum + one.restarts, 0);
  const up = supervisor?.start ? `up ${duration(overview.time - supervisor.start)}` : "";
  const facts = [`${overview.processes.filter((one) => one.ok).length} of ${overview.processes.length} processes answer`, up,
    overview.iptables ? `iptables rules ${overview.iptables.split(":")[0]}` : "",
    restarts ? `${restarts} restart${restarts === 1 ? "" : "s"}` : "", `version ${overview.version}`];
  const state = JSON.stringify([kind, facts, overview.obstacles]);
  if (node.dataset.shown === state) return;
  node.dataset.shown = state;
  node.dataset.state = kind;
  fill(node, el("strong", {}, words), el("span", {}, facts.filter(Boolean).join(" · ")),
    overview.obstacles.length ? el("ul", {}, overview.obstacles.map((line) => el("li", {}, line))) : null);
}

function showRules(node, rules) {
  if (!rules.length) return fill(node, el("p", { class: "empty" }, "No rule has decided yet."));
  const top = Math.max(...rules.map((rule) => rule.permits + rule.denials));
  fill(node, el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", {}, "rule"), el("th", { class: "n" }, "permitted"), el("th", { class: "n" }, "denied"), el("th", {}, el("span", { class: "unseen" }, "share")))),
    el("tbody", {}, rules.slice(0, 12).map((rule) => {
      const good = el("i"), bad = el("i");
      good.style.width = `${(rule.permits / top) * 100}%`;
      bad.style.width = `${(rule.denials / top) * 100}%`;
      return el("tr", {}, el("td", { class: "mono" }, rule.rule), el("td", { class: "n" }, whole(rule.permits)), el("td", { class: "n" }, whole(rule.denials)), el("td", {}, el("span", { class: "meter" }, good, bad)));
    }))));
}

function showResults(node, overview) {
  const rows = overview.handshakes.slice(0, 12);
  if (!rows.length) return fill(node, el("p", { class: "empty" }, "Nobody has asked yet."));
  fill(node, el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", {}, "by"), el("th", {}, "result"), el("th", { class: "n" }, "requests"))),
    el("tbody", {}, rows.map(([front, result, count]) => el("tr", {},
      el("td", {}, el("span", { class: `tag t-${front}` }, front)), el("td", {}, result), el("td", { class: "n" }, whole(count)))))));
}

function showEdits(node, overview) {
  const rows = [
    ...overview.edits.slice(0, 8).map(([reason, applied, count]) => [reason, applied === "yes" ? "edited" : "only seen", count]),
    ...overview.refusals.slice(0, 6).map(([rule, count]) => [rule, "refused", count]),
  ];
  if (!rows.length) return fill(node, el("p", { class: "empty" }, "No payload was edited yet."));
  fill(node, el("table", { class: "plain" }, el("tbody", {}, rows.map(([reason, what, count]) => el("tr", {},
    el("td", { class: "mono" }, reason), el("td", {}, el("span", { class: what === "refused" ? "c-bad" : "c-soft" }, what)), el("td", { class: "n" }, whole(count)))))));
}

const FIRST = ["child", "target", "server", "rule", "failure", "reason", "detail", "client"]; // what says most
const COLOURS = { warning: "c-warn", error: "c-bad", critical: "c-bad" };

function showEvents(node, rows) {
  if (!rows.length) return fill(node, el("li", { class: "empty" }, "Nothing has happened."));
  fill(node, rows.slice(0, 40).map(({ time, level: weight, event, ...fields }) => {
    const order = [...FIRST.filter((key) => key in fields), ...Object.keys(fields).filter((key) => !FIRST.includes(key))];
    const detail = order.filter((key) => fields[key] !== "").map((key) => `${key}=${fields[key]}`).join(" ");
    return el("li", { title: detail }, el("time", {}, clock(time)), el("i", { class: COLOURS[weight] ?? "c-soft" }), el("b", {}, event), el("span", {}, detail));
  }));
}

/** The processes, one a row. */
export function processesView(state) {
  const body = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Processes" });
  const node = el("div", { class: "page" }, card("Processes", el("small", {}, "asked every two seconds while this page is open"), body));
  return {
    node,
    update() {
      if (!state.overview) return;
      const { processes, time } = state.overview;
      const names = ["process", "state", "answers in", "up", "restarts", "memory", "CPU", "descriptors", "flows", "being connected", "loop lag"];
      fill(body, el("table", { class: "plain" },
        el("thead", {}, el("tr", {}, names.map((name, i) => el("th", { class: i > 1 ? "n" : "" }, name)))),
        el("tbody", {}, processes.map((one) => el("tr", {},
          el("td", { class: "mono" }, one.name),
          el("td", {}, el("span", { class: one.ok ? "c-good" : "c-bad" }, one.ok ? "answers" : one.error)),
          ...[
            one.ok ? `${(one.answer * 1000).toFixed(one.answer < 0.01 ? 1 : 0)} ms` : "–",
            one.start ? duration(time - one.start) : "–",
            whole(one.restarts),
            one.memory ? bytes(one.memory) : "–",
            one.cpu !== undefined ? usage(state, one) : "–",
            one.descriptors !== undefined ? `${whole(one.descriptors)} of ${short(one.limit)}` : "–",
            one.flows !== undefined ? whole(one.flows) : "–",
            one.handshakes !== undefined ? whole(one.handshakes) : "–",
            one.lag !== null && one.lag !== undefined ? `${(one.lag * 1000).toFixed(1)} ms` : "–",
          ].map((text) => el("td", { class: "n" }, text)))))));
    },
  };
}

/** The share of a core that a process has used since the look before. */
function usage(state, one) {
  const before = state.previous?.processes.find((other) => other.name === one.name);
  if (!before || before.cpu === undefined || before.start !== one.start) return duration(one.cpu);
  const seconds = state.overview.time - state.previous.time;
  return seconds > 0 ? `${Math.max(0, ((one.cpu - before.cpu) / seconds) * 100).toFixed(0)} %` : duration(one.cpu);
}
