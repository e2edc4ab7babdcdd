// A table of many rows: only those that are seen are in the document, and the same elements are used again and again.

import { el, fill, say } from "./dom.js";

const ROW = 28, CARD = 74, SPARE = 6;
const narrow = matchMedia("(max-width: 720px)");

/** "a b key:c -d" as a test of a row; `text(row)` is what words are looked for in. */
export function matcher(query, text) {
  const tests = query.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const not = word.startsWith("-") && word.length > 1;
    const want = not ? word.slice(1) : word;
    const [, key, value] = /^([a-z]+):(.+)$/.exec(want) ?? [];
    return (row) => {
      const named = key !== undefined && key in row;
      const hit = named ? String(row[key] ?? "").toLowerCase().includes(value) : text(row).includes(want);
      return hit !== not;
    };
  });
  return (row) => tests.every((test) => test(row));
}

/**
 * `columns`: {key, label, width, show(row), n: a number, mono, card: "a" to "d": its place on a phone, and "e": a line on a phone
 * alone, tag(row)}.
 * `onOpen(row)`: a row was chosen; `onSelect(row)`: it is the current one.
 */
export class Table {
  constructor({ columns, sort, descending = false, label, onOpen, onSelect = () => {}, note = "Nothing is here now." }) {
    Object.assign(this, { columns, sort, descending, onOpen, onSelect, note });
    this.all = [];
    this.rows = [];
    this.query = "";
    this.texts = new Map();
    this.pool = [];
    this.template = columns.filter((column) => column.card !== "e").map((column) => column.width).join(" ");
    this.label = label;
    this.head = el("div", { class: "vhead", role: "row", id: `${label}-head` }, columns.filter((column) => column.card !== "e").map((column) =>
      el("div", { class: column.n ? "n" : "", role: "columnheader" }, el("button", { onclick: () => this.#order(column.key) }, column.label))));
    this.head.style.gridTemplateColumns = this.template;
    this.size = el("div", { class: "vsize" });
    this.empty = el("p", { class: "empty page", hidden: true });
    this.body = el("div", { class: "vbody", role: "grid", tabindex: 0, "aria-label": label, "aria-owns": this.head.id, onscroll: () => this.#paint(), onkeydown: (event) => this.#key(event) }, this.empty, this.size);
    this.node = el("div", { class: "vtable cards" }, this.head, this.body);
    new ResizeObserver(() => this.#paint()).observe(this.body);
    narrow.addEventListener("change", () => this.#paint(true));
    this.#marks();
  }

  get height() {
    return narrow.matches ? CARD : ROW;
  }

  /** The rows as they are now, each with an `id`. */
  update(rows) {
    this.all = rows;
    const texts = new Map();
    for (const row of rows) texts.set(row.id, this.texts.get(row.id) ?? this.#text(row));
    this.texts = texts;
    this.arrange();
  }

  filter(query) {
    this.query = query;
    this.arrange();
    this.body.scrollTop = 0;
  }

  get selected() {
    return this.rows.find((row) => row.id === this.id);
  }

  select(id) {
    this.id = id;
    this.#paint();
    if (this.selected) this.onSelect(this.selected);
  }

  arrange() {
    const test = matcher(this.query, (row) => this.texts.get(row.id));
    const column = this.columns.find((one) => one.key === this.sort);
    const value = column.value ?? ((row) => row[column.key]);
    const keyed = this.all.filter(test).map((row) => [value(row), row]);
    const sign = this.descending ? -1 : 1;
    keyed.sort(([a], [b]) => {
      if (a === b) return 0;
      if (a === null || a === undefined || a === "") return 1;
      if (b === null || b === undefined || b === "") return -1;
      return (a < b ? -1 : 1) * sign;
    });
    this.rows = keyed.map(([, row]) => row);
    this.#paint();
  }

  #text(row) {
    return this.columns.map((column) => (column.search === false ? "" : String(row[column.key] ?? ""))).join(" ").toLowerCase() + " " + String(row.id).toLowerCase();
  }

  #order(key) {
    this.descending = this.sort === key ? !this.descending : Boolean(this.columns.find((one) => one.key === key).n);
    this.sort = key;
    this.#marks();
    this.arrange();
  }

  #marks() {
    this.columns.filter((column) => column.card !== "e").forEach((column, i) => {
      if (column.key === this.sort) this.head.children[i].setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else this.head.children[i].removeAttribute("aria-sort");
    });
  }

  #row() {
    const cells = this.columns.map((column) => el("span", { class: [column.n && "n", column.mono && "mono", column.faint && "faint", column.card].filter(Boolean).join(" "), role: "gridcell" }));
    const node = el("div", { class: "vrow", role: "row", id: `${this.label}-${this.pool.length}`, onclick: () => this.#choose(node) }, cells);
    node.style.gridTemplateColumns = this.template;
    return { node, cells };
  }

  #choose(node) {
    const row = this.rows[Number(node.dataset.index)];
    if (!row) return;
    this.select(row.id);
    this.onOpen(row);
  }

  #paint() {
    const height = this.height;
    say(this.empty, this.all.length ? "No row matches the filter." : this.note);
    this.empty.hidden = this.rows.length > 0;
    this.size.style.height = `${this.rows.length * height}px`;
    const grid = this.rows.length > 0 || !narrow.matches; // a grid has to have a row: on a phone its head is hidden
    this.body.setAttribute("role", grid ? "grid" : "region");
    this.#attribute("aria-rowcount", grid ? this.rows.length : null);
    const first = Math.max(0, Math.floor(this.body.scrollTop / height) - SPARE);
    const last = Math.min(this.rows.length, first + Math.ceil(this.body.clientHeight / height) + 2 * SPARE);
    while (this.pool.length < last - first) {
      this.pool.push(this.#row());
      this.size.append(this.pool.at(-1).node);
    }
    let active = "";
    this.pool.forEach(({ node, cells }, k) => {
      const row = this.rows[first + k];
      const shown = first + k < last && row !== undefined;
      if (node.hidden === shown) node.hidden = !shown;
      if (!shown) return;
      node.dataset.index = first + k;
      node.style.transform = `translateY(${(first + k) * height}px)`;
      node.setAttribute("aria-rowindex", first + k + 1);
      node.setAttribute("aria-selected", row.id === this.id);
      if (row.id === this.id) active = node.id;
      this.columns.forEach((column, i) => {
        const text = column.show ? column.show(row) : row[column.key] ?? "";
        if (column.tag) {
          const name = text ? `tag t-${text}` : "";
          if (cells[i].firstChild?.className !== name) fill(cells[i], text ? el("span", { class: name }, text) : "");
        } else say(cells[i], String(text));
      });
    });
    this.#attribute("aria-activedescendant", active || null);
  }

  #attribute(name, value) {
    if (value === null) this.body.removeAttribute(name);
    else this.body.setAttribute(name, value);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.height) - 1);
    const at = this.rows.findIndex((row) => row.id === this.id);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.rows.length - 1 }[event.key];
    if (to !== undefined && this.rows.length) {
      event.preventDefault();
      const index = Math.min(this.rows.length - 1, Math.max(0, to));
      const top = index * this.height;
      if (top < this.body.scrollTop) this.body.scrollTop = top;
      else if (top + this.height > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = top + this.height - this.body.clientHeight;
      this.select(this.rows[index].id);
    } else if (event.key === "Enter" && this.selected) {
      this.onOpen(this.selected);
    }
  }
}
