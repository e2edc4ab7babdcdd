// Lines over time, as SVG.

import { clock, el, fill } from "./dom.js";

const LEFT = 64, BOTTOM = 18, TOP = 8;

/** The differences of a counter as a rate per second. */
export function rates(points, column) {
  return points.map((point, i) => {
    if (i === 0) return 0;
    const seconds = point[0] - points[i - 1][0];
    return seconds > 0 ? Math.max(0, (point[column] - points[i - 1][column]) / seconds) : 0;
  }).slice(1);
}

function nice(top) {
  if (top <= 0) return 1;
  const base = 10 ** Math.floor(Math.log10(top));
  return [1, 1.5, 2, 3, 4, 5, 8, 10].map((step) => step * base).find((step) => step >= top);
}

function path(values, x, y) {
  return values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

/** A small line without axes; values fill the width. */
export function sparkline(svg, values, colour) {
  const width = 120, height = 34;
  const last = values.slice(-120);
  const top = Math.max(...last, 1e-9) * 1.08;
  const x = (i) => (i / Math.max(1, last.length - 1)) * width;
  const y = (value) => height - 1 - (value / top) * (height - 4);
  const line = path(last, x, y);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", colour);
  if (last.length < 2) return fill(svg);
  fill(svg, el("path", { class: "area", d: `${line}L${width} ${height}L0 ${height}Z` }), el("path", { class: "series", d: line }));
}

/** The top of a chart in which a lone peak does not flatten all else. */
function usual(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const high = sorted[Math.floor(0.98 * (sorted.length - 1))];
  return high > 0 && sorted.at(-1) > 4 * high ? 1.5 * high : sorted.at(-1);
}

/** A chart with axes and what is under the pointer. `series`: {label, colour, values(points)}; `clip`: lone peaks. */
export class Chart {
  constructor(series, format, clip = false) {
    this.series = series;
    this.clip = clip;
    this.format = format;
    this.times = [];
    this.values = [];
    this.tip = el("div", { class: "tip", hidden: true });
    this.svg = el("svg", { role: "img" });
    this.node = el("div", { class: "chart" }, this.svg, this.tip);
    this.legend = el("div", { class: "legend" }, series.map((one) => el("span", { class: one.colour }, el("i"), el("span", {}, one.label))));
    this.node.addEventListener("pointermove", (event) => this.#point(event));
    this.node.addEventListener("pointerleave", () => this.#leave());
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  update(points) {
    this.times = points.map((point) => point[0]).slice(1);
    this.values = this.series.map((one) => one.values(points));
    this.draw();
  }

  draw() {
    const width = this.node.clientWidth, height = this.node.clientHeight;
    if (!width || this.times.length < 2) return;
    const first = this.times[0], last = this.times.at(-1);
    const peak = Math.max(...this.values.flat(), 0);
    const quiet = peak <= 0; // an axis from nought to nought says nothing
    const top = quiet ? 1 : nice(this.clip ? Math.max(...this.values.map(usual), 1e-9) : peak);
    const x = (i) => LEFT + ((this.times[i] - first) / (last - first)) * (width - LEFT - 4);
    const y = (value) => TOP + (1 - Math.min(value, top) / top) * (height - TOP - BOTTOM);
    this.x = x;
    const parts = (quiet ? [0] : [0, 0.5, 1]).flatMap((share) => [
      el("line", { class: "grid", x1: LEFT, x2: width, y1: y(share * top), y2: y(share * top) }),
      el("text", { x: LEFT - 8, y: y(share * top) + 4, "text-anchor": "end" }, this.format(share * top)),
    ]);
    const count = Math.max(2, Math.min(6, Math.floor(width / 150)));
    for (let k = 0; k <= count; k += 1) {
      const time = first + (k / count) * (last - first);
      const at = LEFT + (k / count) * (width - LEFT - 4);
      parts.push(el("text", { x: at, y: height - 2, "text-anchor": k === 0 ? "start" : k === count ? "end" : "middle" }, clock(time).slice(0, last - first < 600 ? 8 : 5)));
    }
    if (quiet) parts.push(el("text", { x: LEFT + (width - LEFT) / 2, y: TOP + (height - TOP - BOTTOM) / 2, "text-anchor": "middle" }, "nothing in this time"));
    if (peak > top) parts.push(el("text", { x: width, y: TOP + 12, "text-anchor": "end" }, `peak ${this.format(peak)}`));
    this.values.forEach((values, k) => {
      const line = path(values, x, y);
      const group = el("g", { class: this.series[k].colour });
      if (k === 0) group.append(el("path", { class: "area", d: `${line}L${x(values.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z` }));
      group.append(el("path", { class: "series", d: line }));
      parts.push(group);
    });
    this.cross = el("line", { class: "cross", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    this.svg.setAttribute("aria-label", this.series.map((one, k) => `${one.label} ${this.format(this.values[k].at(-1))}`).join(", "));
    fill(this.svg, parts, this.cross);
    if (this.over !== undefined) this.#show(this.over);
  }

  #point(event) {
    const at = event.clientX - this.node.getBoundingClientRect().left;
    if (!this.x || at < LEFT) return this.#leave();
    this.over = at;
    this.#show(at);
  }

  #show(at) {
    let best = 0;
    this.times.forEach((_, i) => {
      if (Math.abs(this.x(i) - at) < Math.abs(this.x(best) - at)) best = i;
    });
    const x = this.x(best);
    this.cross.setAttribute("x1", x);
    this.cross.setAttribute("x2", x);
    this.cross.setAttribute("visibility", "visible");
    fill(this.tip, el("div", {}, clock(this.times[best])), this.series.map((one, k) =>
      el("div", {}, el("span", {}, one.label), el("b", {}, this.format(this.values[k][best])))));
    this.tip.hidden = false;
    const width = this.tip.offsetWidth;
    this.tip.style.left = `${x + width + 14 > this.node.clientWidth ? x - width - 10 : x + 10}px`;
  }

  #leave() {
    this.over = undefined;
    this.tip.hidden = true;
    this.cross?.setAttribute("visibility", "hidden");
  }
}
