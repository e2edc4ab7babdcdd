// Asking for the rows of a view again and again.

import { say } from "./dom.js";

const EVERY = 2000; // milliseconds

/**
 * `refresh` calls `once` now and then every two seconds, until `stop`; not while `paused()`, nor while `node` is not on
 * the page or the page is not seen. What goes wrong is said in `late`.
 */
export function poll(node, late, once, paused = () => false) {
  let timer;

  async function refresh() {
    clearTimeout(timer);
    if (!paused() && !document.hidden && node.isConnected) {
      try {
        await once();
      } catch (error) {
        say(late, error.message);
      }
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, EVERY);
  }

  return { refresh, stop: () => clearTimeout(timer) };
}
