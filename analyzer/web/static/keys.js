// The keyboard: one table of keys, which is also the help.

import { $, element } from "./dom.js";

const TYPING = "input:not([type=range]), textarea, select";

// `keys`: [[keys, label, text, work], …] with keys as KeyboardEvent.key names them, `shift+` before where it is held.
export function start(keys) {
  $("helpKeys").replaceChildren(...keys.map(([, label, text]) => element("tr", {}, element("td", {}, element("kbd", {}, label)), element("td", {}, text))));
  document.addEventListener("keydown", event => {
    const target = event.target instanceof Element ? event.target : document.body;
    if (event.ctrlKey || event.altKey || event.metaKey || target.closest(TYPING) || document.querySelector("dialog[open]")) return;
    if (event.key === " " && target.closest("button, a")) return;
    if (event.key.startsWith("Arrow") && target.closest("input")) return;
    const name = event.key.startsWith("Arrow") && event.shiftKey ? `shift+${event.key}` : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const found = keys.find(([names]) => names.includes(name));
    if (!found) return;
    event.preventDefault();
    found[3](name);
  });
}

export const showHelp = () => $("help").showModal();
