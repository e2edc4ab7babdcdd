// Making elements and writing numbers. Text is always text: nothing here parses markup.

/** An element: `attributes` as of setAttribute, `on...` as listeners; `children` are nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Replace what is in a node. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** Set a node's text, if it is another one. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const UNITS = ["", "k", "M", "G", "T", "P"];

function scaled(value) {
  let step = 0;
  while (Math.abs(value) >= 999.5 && step < UNITS.length - 1) {
    value /= 1000;
    step += 1;
  }
  const digits = step === 0 ? (Number.isInteger(value) || value >= 10 ? 0 : 1) : value < 9.95 ? 2 : value < 99.5 ? 1 : 0;
  return [value.toFixed(digits), UNITS[step]];
}

/** 12345 -> "12.3 k" */
export function short(value) {
  const [number, unit] = scaled(value);
  return unit ? `${number} ${unit}` : number;
}

/** Bytes as "12.3 MB". */
export function bytes(value) {
  const [number, unit] = scaled(value);
  return `${number} ${unit}B`;
}

/** Bytes a second as "98.7 Mbit/s". */
export function rate(value) {
  const [number, unit] = scaled(value * 8);
  return `${number} ${unit}bit/s`;
}

/** Whole numbers with separators. */
export function whole(value) {
  return Math.round(value).toLocaleString("en");
}

/** Seconds as "3 d 4 h", "5 min", "12 s". */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60 ? `${s % 60} s` : ""}`.trim();
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Unix time as the local time of day. */
export function clock(time, withMillis = false) {
  const date = new Date(time * 1000);
  const text = date.toLocaleTimeString("en-GB", { hour12: false });
  return withMillis ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}
