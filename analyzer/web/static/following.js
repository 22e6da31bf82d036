// Which image is shown: the latest frame, the latest hit, one of the held hits, or the one that is held still.

import { $, element, say } from "./dom.js";
import { clock } from "./format.js";
import * as detector from "./detector.js";

let show = "latest", key = null, still = false, held = [], send = () => {}, visible = () => true;

const keys = () => held.map(hit => hit.key);

// What is asked of the server now.
export function ask() {
  if (!visible()) return send({ show: "none" });
  const head = detector.latest();
  // A frame that is held still can be looked into only where the server holds it too.
  if (still && show !== "held") return send(head && keys().includes(head.key) ? { show: "held", key: head.key, ...detector.wish() } : { show: "none" });
  send({ show, ...(show === "held" ? { key } : {}), ...detector.wish() });
}

export function follow(what) {
  [show, key, still] = [what, null, false];
  changed();
}

export function open(wanted) {
  [show, key, still] = ["held", wanted, false];
  changed();
}

export function hold() {
  still = !still;
  if (show === "held") [show, key, still] = ["latest", null, false];
  changed();
}

// To the hit before (-1) or after (1) the one that is shown.
export function step(by) {
  if (!held.length) return;
  const at = keys().indexOf(show === "held" ? key : detector.latest()?.key);
  const to = at < 0 ? held.length - 1 : at + by;
  if (to >= 0 && to < held.length) open(held[to].key);
}

function changed() {
  for (const button of document.querySelectorAll("[data-show]")) button.setAttribute("aria-pressed", button.dataset.show === show && !still);
  $("pause").setAttribute("aria-pressed", still || show === "held");
  say("pause", still || show === "held" ? "Go on" : "Hold");
  mark();
  ask();
}

// Whether an image that came is the one that is wanted.
export function take(image) {
  const head = image.head;
  if (still ? head.key !== detector.latest()?.key : head.show !== show || (show === "held" && head.key !== key)) return;
  detector.take(image);
  const probability = head.hit_probability == null ? "" : `, p = ${head.hit_probability.toFixed(3)}`;
  const words = { hit: "hit", miss: "no hit", no_beam: "no beam" };
  const peaks = head.peak_count == null ? "" : ` · ${head.peak_count} ${head.peak_count === 1 ? "peak" : "peaks"}` + (head.resolution_angstrom ? ` to ${head.resolution_angstrom.toFixed(2)} Å` : "");
  const text = `series ${head.series_id}, image ${head.image_id} · ${words[head.decision] ?? "not judged"}${probability}${peaks} · ${clock(head.received_at)}` + (head.bin > 1 ? ` · largest of ${head.bin} × ${head.bin} pixels` : " · every pixel");
  say("caption", text);
  $("caption").title = text;
  $("detector").setAttribute("aria-label", `Detector image: ${text}`);
  mark();
}

// Another analysis: what was held is not among its hits, though a key of theirs may be the same.
export function forget() {
  held = [];
  $("strip").replaceChildren();
  detector.forget();
  say("caption", "no image yet");
  follow(show === "hit" ? "hit" : "latest");
}

// The last hits, newest last.
export function list(message) {
  held = message.held;
  const most = Math.max(10, ...held.map(hit => hit.peak_count ?? 0));
  $("strip").replaceChildren(...held.map(hit => {
    const tall = Math.max(8, 100 * (hit.peak_count ?? 0) / most);
    const bar = element("div", {
      id: `hit-${hit.key.replace(":", "-")}`, role: "option", class: hit.indexable ? "indexable" : "",
      title: `series ${hit.series_id}, image ${hit.image_id}: ${hit.peak_count} peaks` + (hit.resolution_angstrom ? ` to ${hit.resolution_angstrom.toFixed(2)} Å` : "") + `, ${clock(hit.received_at)}`,
    }, element("i", { style: `height:${tall}%` }));
    bar.dataset.key = hit.key;
    bar.setAttribute("aria-label", bar.title);
    return bar;
  }));
  mark();
}

function mark() {
  const now = show === "held" ? key : detector.latest()?.key;
  let at = -1;
  held.forEach((hit, n) => {
    const bar = $("strip").children[n], chosen = hit.key === now;
    bar.setAttribute("aria-selected", chosen);
    if (chosen) at = n;
  });
  if (at >= 0) $("strip").setAttribute("aria-activedescendant", $("strip").children[at].id);
  else $("strip").removeAttribute("aria-activedescendant");
  const which = show === "held" && at >= 0 ? `: ${held.length - at === 1 ? "the last" : `${held.length - at} from the end`}` : "";
  say("stripText", held.length ? `Last ${held.length} hits, by number of peaks${which}` : "Last hits: none yet");
}

// `sender` takes wishes; `isVisible` says whether the image is to be seen at all.
export function start(sender, isVisible) {
  [send, visible] = [sender, isVisible];
  detector.onRegion(ask);
  for (const button of document.querySelectorAll("[data-show]")) button.addEventListener("click", () => follow(button.dataset.show));
  $("earlier").addEventListener("click", () => step(-1));
  $("later").addEventListener("click", () => step(1));
  $("pause").addEventListener("click", hold);
  // Not the click: bars are made anew while the button is down.
  $("strip").addEventListener("pointerdown", event => {
    const bar = event.target.closest("[data-key]");
    if (bar) open(bar.dataset.key);
  });
  changed();
}
