// What changes something: asked again, and with the token.

import { Refused, post, token } from "./api.js";
import { el, say } from "./dom.js";

const dialog = document.getElementById("confirm");
const [title, text, problem] = ["title", "text", "problem"].map((name) => document.getElementById(`confirm-${name}`));
const form = dialog.querySelector("form");
const label = document.getElementById("confirm-token");
const input = label.querySelector("input");
const where = label.querySelector("small");
const [no, yes] = dialog.querySelectorAll("menu button");

export function toast(words) {
  const node = el("div", { class: "toast" }, words);
  document.getElementById("toasts").append(node);
  setTimeout(() => node.remove(), 5000);
}

/** Say where the token is: this gateway knows its own run directory. */
async function tellWhere() {
  try {
    await post("/api/token", {});
  } catch (error) {
    say(where, error.message);
  }
}

/** Ask; `act()` is done on yes, and what it throws is shown. Resolves to whether it was done. */
function ask({ heading, words, button, wantToken, act }) {
  say(title, heading);
  say(text, words);
  say(yes, button);
  say(problem, "");
  input.value = "";
  label.hidden = !wantToken;
  if (wantToken) tellWhere();
  dialog.showModal();
  (wantToken ? input : yes).focus();
  return new Promise((resolve) => {
    async function go() {
      if (!label.hidden) token.set(input.value.trim());
      yes.disabled = true;
      try {
        await act();
        dialog.close();
        resolve(true);
      } catch (error) {
        if (error instanceof Refused && error.status === 401) {
          token.set("");
          label.hidden = false;
          input.focus();
        }
        say(problem, error.message);
      } finally {
        yes.disabled = false;
      }
    }
    form.onsubmit = (event) => { event.preventDefault(); go(); };
    no.onclick = () => dialog.close();
    dialog.onclose = () => { mark(); resolve(false); };
  });
}

/** End what has this id; `consequence` says what becomes of it. */
export async function kick(id, words, after, consequence = "Both sides see a reset; the client may come again.") {
  const done = await ask({
    heading: "Kick it?",
    words: `${words}. ${consequence}`,
    button: "Kick",
    wantToken: !token.get(),
    act: () => post("/api/kick", { id }),
  });
  if (done) {
    toast(`Kicked: ${words}`);
    after();
  }
}

/** Give or forget the token. */
export async function askToken() {
  if (token.get()) {
    token.set("");
    mark();
    toast("The token is forgotten.");
    return;
  }
  await ask({
    heading: "Token",
    words: "It is wanted for what changes something, and is kept until this tab is closed.",
    button: "Use it",
    wantToken: true,
    act: () => post("/api/token", {}),
  });
}

function mark() {
  const button = document.getElementById("token");
  button.classList.toggle("on", Boolean(token.get()));
  button.title = token.get() ? "The token is there; forget it" : "Token, for what changes something";
}
mark();
