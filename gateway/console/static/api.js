// Talking to the gateway. The token is kept for this tab only.

const KEY = "algate-token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ error: response.statusText }));
  throw new Refused(response.status, problem.error);
}

/** Rows of a view. */
export const get = async (path) => (await request(path)).json();

/** Change something. Raises Refused; 401: the token is wrong or not there. */
export const post = async (path, body) =>
  (
    await request(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    })
  ).json();

/** A table that came as arrays, as objects. */
export function objects({ columns, rows }) {
  return rows.map((row) => Object.fromEntries(columns.map((column, i) => [column, row[i]])));
}

/**
 * The stream of server-sent events, for ever: `on(name, value)` for each, `state(up, reason)` when it comes and goes.
 * Not an EventSource, which could not send the token.
 */
export async function stream(path, on, state) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      const response = await request(path);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let buffer = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        buffer += value;
        let end;
        while ((end = buffer.indexOf("\n\n")) >= 0) {
          const [, name, data] = /^event: (.*)\ndata: (.*)$/s.exec(buffer.slice(0, end)) ?? [];
          buffer = buffer.slice(end + 2);
          if (!name) continue;
          pause = 500;
          state(true);
          on(name, JSON.parse(data));
        }
      }
      state(false, "the connection was closed");
    } catch (error) {
      state(false, error.message, error.status);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
