// The live page: the socket's messages to those that show them, views, keys.

import * as account from "./account.js";
import * as banner from "./banner.js";
import * as control from "./control.js";
import * as curves from "./curves.js";
import * as detector from "./detector.js";
import { $ } from "./dom.js";
import * as following from "./following.js";
import * as keys from "./keys.js";
import * as numbers from "./numbers.js";
import * as present from "./present.js";
import * as products from "./products.js";
import * as scan from "./scan.js";
import { Live } from "./socket.js";
import { onTheme, toggleTheme } from "./theme.js";

const VIEWS = ["now", "run", "scan", "performance", "settings"];
let view = "now", status = null;

const imageIsSeen = () => view === "now" && !document.hidden;

function open(name) {
  view = name;
  for (const each of VIEWS) $(each).hidden = each !== name;
  for (const button of document.querySelectorAll("[data-view]")) {
    if (button.dataset.view === name) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  history.replaceState(null, "", name === "now" ? location.pathname + location.search : `#${name}`);
  following.ask();
  if (name === "run") products.refresh();
}

function showStatus() {
  if (!status) return;
  numbers.show(status);
  account.show(status);
  control.show(status);
}

curves.start();
scan.start();
products.start(() => view === "run", detector.useRings);
control.start();
detector.start();

const live = new Live({
  state(message) {
    if (status && status.started_at !== message.status.started_at) {
      following.forget();
      products.beginAnew();
    }
    status = message.status;
    present.take(status.time);
    banner.useStatus(status);
    curves.useStatus(status);
    products.useStatus(status);
    if (!document.hidden) showStatus();
    banner.show(live, status);
  },
  curves(message) {
    if (document.hidden) return;
    curves.take(message);
    products.take(message);
    scan.take(message);
  },
  hits: following.list,
  image(image) {
    if (imageIsSeen()) following.take(image);
  },
  refused(message) {
    console.warn(`refused: ${message.text}`);
  },
});
following.start(wish => live.ask(wish), imageIsSeen);

setInterval(() => banner.show(live, status), 500);
document.addEventListener("visibilitychange", () => {
  following.ask();
  if (!document.hidden) showStatus();
});
onTheme(detector.schedule);
$("theme").addEventListener("click", toggleTheme);
$("helpButton").addEventListener("click", keys.showHelp);
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => open(button.dataset.view));

const onImage = work => name => {
  if (view === "now") work(name);
};
keys.start([
  [["1", "2", "3", "4", "5"], "1 – 5", "Now, Run, Scan, Performance, Settings", name => open(VIEWS[name - 1])],
  [["l"], "L", "latest frame", onImage(() => following.follow("latest"))],
  [["h"], "H", "latest hit", onImage(() => following.follow("hit"))],
  [["ArrowLeft"], "←", "earlier hit", onImage(() => following.step(-1))],
  [["ArrowRight"], "→", "later hit", onImage(() => following.step(1))],
  [[" "], "space", "hold the image, or go on", onImage(following.hold)],
  [["p"], "P", "mark peaks: circles, squares where saturated", onImage(() => detector.toggle("peaks"))],
  [["r"], "R", "resolution rings", onImage(() => detector.toggle("rings"))],
  [["m"], "M", "masked pixels in their own colour", onImage(() => detector.toggle("mask"))],
  [["g"], "G", "logarithmic or linear contrast", onImage(() => detector.toggle("log"))],
  [["a"], "A", "upper end of the colours from the image", onImage(() => detector.toggle("auto"))],
  [["c"], "C", "next colour map", onImage(detector.nextColours)],
  [["+", "="], "+", "zoom in; or the wheel, at the pointer", onImage(() => detector.zoom(1.6))],
  [["-", "_"], "−", "zoom out", onImage(() => detector.zoom(1 / 1.6))],
  [["shift+ArrowLeft"], "shift ←", "pan left; or drag", onImage(() => detector.pan(-0.2, 0))],
  [["shift+ArrowRight"], "shift →", "pan right", onImage(() => detector.pan(0.2, 0))],
  [["shift+ArrowUp"], "shift ↑", "pan up", onImage(() => detector.pan(0, -0.2))],
  [["shift+ArrowDown"], "shift ↓", "pan down", onImage(() => detector.pan(0, 0.2))],
  [["0"], "0", "whole detector; or a double click", onImage(detector.fit)],
  [["d"], "D", "dark or light", toggleTheme],
  [["?"], "?", "these keys", keys.showHelp],
]);

const wanted = location.hash.slice(1);
open(VIEWS.includes(wanted) ? wanted : "now");
