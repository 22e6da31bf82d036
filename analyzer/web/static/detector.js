// The detector image: layers of pixels on a canvas, contrast, zoom and pan, the readout under the pointer.

import { MAPS, colourAt, css, shareOf, table } from "./colours.js";
import { $, canvas, say } from "./dom.js";
import { count } from "./format.js";
import { drawPeaks, drawReticle, drawRings } from "./overlay.js";
import { resolutionAt } from "./resolution.js";
import { Transform } from "./transform.js";

const PERCENTILE = 0.999, LEAST_MOST = 5, LARGEST = 65534, SAMPLED = 60000;
const shown = { peaks: true, rings: true, mask: true, log: false, auto: true, colours: "Viridis" };
const transform = new Transform();
let layers = [], lookup = null, most = 10, givenRings = null, pointer = null, drawing = false, byKeyboard = false;
let wantsRegion = () => {};

export const onRegion = wanted => { wantsRegion = wanted; };
export const latest = () => layers.at(-1)?.head ?? null;

// The part of the detector to ask for, and how many pixels of it are worth sending.
export function wish() {
  const ratio = window.devicePixelRatio || 1, box = $("detectorBox");
  const side = Math.max(box.clientWidth, box.clientHeight, 100) * ratio;
  return { region: transform.shape ? transform.region : null, most_px: Math.min(1200, Math.max(100, 100 * Math.ceil(side / 100))) };
}

// A new image; what is left of the same frame stays beneath it.
export function take(image) {
  const same = layers.filter(layer => layer.head.key === image.head.key && isWhole(layer.head));
  layers = isWhole(image.head) ? [image] : [...same, image];
  if (shown.auto) most = upperEnd(image);
  lookup = null;
  schedule();
}

// Another analysis: its frames may have the same keys.
export function forget() {
  [layers, lookup] = [[], null];
  schedule();
}

// Rings of a detector of panels, as /products has them; null for a flat one.
export function useRings(found) {
  givenRings = found;
  schedule();
}

const isWhole = head => head.region[2] === head.shape[1] && head.region[3] === head.shape[0];

// The count that all but a thousandth of the pixels stay below, at a round number.
function upperEnd({ head, pixels }) {
  const step = Math.max(1, Math.floor(pixels.length / SAMPLED)), values = [];
  for (let n = 0; n < pixels.length; n += step) if (pixels[n] !== head.masked) values.push(pixels[n]);
  values.sort((a, b) => a - b);
  const value = Math.max(LEAST_MOST, values[Math.floor(PERCENTILE * values.length)] ?? 0);
  const power = 10 ** Math.floor(Math.log10(value));
  return Math.min(LARGEST, [1, 2, 3, 5, 10].map(factor => factor * power).find(round => round >= value));
}

export function schedule() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function draw() {
  const surface = canvas("detector");
  if (!surface) return;
  const [context, width, height] = surface, head = latest(), marks = MAPS[shown.colours].marks;
  showContrast();
  if (!head) {
    context.fillStyle = "#8899aa";
    context.textAlign = "center";
    context.font = "14px system-ui, sans-serif";
    context.fillText("no image yet", width / 2, height / 2);
    return;
  }
  if (transform.place(width, height, head.shape)) wantsRegion();
  if (!lookup) {
    lookup = table(shown.colours, most, shown.log, shown.mask);
    layers.forEach(layer => { layer.picture = picture(layer); });
  }
  const [rows, columns] = head.shape;
  context.fillStyle = css(MAPS[shown.colours].mask);
  context.fillRect(...transform.toScreen(0, 0), columns * transform.scale, rows * transform.scale);
  context.imageSmoothingEnabled = false;
  for (const layer of layers) {
    layer.picture ??= picture(layer);
    const [fs, ss] = layer.head.region, bin = layer.head.bin * transform.scale;
    context.save();
    context.beginPath();
    context.rect(...transform.toScreen(fs, ss), layer.head.region[2] * transform.scale, layer.head.region[3] * transform.scale);
    context.clip();
    context.drawImage(layer.picture, ...transform.toScreen(fs, ss), layer.head.columns * bin, layer.head.rows * bin);
    context.restore();
  }
  context.save();
  context.beginPath();
  context.rect(...transform.toScreen(0, 0), columns * transform.scale, rows * transform.scale);
  context.clip();
  if (shown.rings) drawRings(context, transform, head.geometry, givenRings, marks);
  context.restore();
  if (shown.peaks) drawPeaks(context, transform, head.peaks, marks);
  if (byKeyboard) drawReticle(context, transform.size, marks);
  readOut();
}

function picture({ head, pixels }) {
  const made = document.createElement("canvas");
  [made.width, made.height] = [head.columns, head.rows];
  const context = made.getContext("2d"), image = context.createImageData(head.columns, head.rows);
  const out = new Uint32Array(image.data.buffer);
  for (let n = 0; n < pixels.length; n++) out[n] = lookup[pixels[n]];
  context.putImageData(image, 0, 0);
  return made;
}

// The value that is seen at a pixel: of the finest layer there. {value, bin}, or null outside.
function valueAt(fs, ss) {
  for (const { head, pixels } of [...layers].reverse()) {
    const [fs0, ss0, wide, high] = head.region;
    if (fs < fs0 || ss < ss0 || fs >= fs0 + wide || ss >= ss0 + high) continue;
    const value = pixels[Math.floor((ss - ss0) / head.bin) * head.columns + Math.floor((fs - fs0) / head.bin)];
    return { value: value === head.masked ? null : value, bin: head.bin };
  }
  return null;
}

function readOut() {
  const head = latest(), at = byKeyboard ? transform.size.map(size => size / 2) : pointer;
  if (!head || !at) return say("readout", "point at a pixel: its counts, q and d");
  const [fs, ss] = transform.toDetector(...at).map(Math.floor), [rows, columns] = head.shape;
  if (fs < 0 || ss < 0 || fs >= columns || ss >= rows) return say("readout", "outside the detector");
  const found = valueAt(fs, ss), place = resolutionAt(head.geometry, fs, ss);
  const counts = !found ? "not sent" : found.value == null ? "masked"
    : `${count(found.value)}${found.value === LARGEST ? " or more" : ""} ${found.value === 1 ? "count" : "counts"}${found.bin > 1 ? `, most of ${found.bin} × ${found.bin}` : ""}`;
  const about = givenRings ? "≈ " : "";
  say("readout", `fs ${fs} · ss ${ss} · ${counts}` + (place ? ` · q ${about}${place.q.toFixed(3)} Å⁻¹ · d ${about}${place.d < 1000 ? place.d.toFixed(2) : "> 1000"} Å` : " · q unknown: no camera length or photon energy"));
}

function showContrast() {
  const ramp = $("ramp").getContext("2d");
  for (let n = 0; n < 256; n++) {
    ramp.fillStyle = css(colourAt(shown.colours, shareOf(n / 255 * most, most, shown.log)));
    ramp.fillRect(n, 0, 1, 1);
  }
  say("mostText", `${count(most)} counts`);
  const slider = $("most");
  slider.value = Math.round(100 * Math.log(most) / Math.log(LARGEST));
  slider.setAttribute("aria-valuetext", `${most} counts`);
}

// One of peaks, rings, mask, log, auto, by name.
export function toggle(name) {
  shown[name] = !shown[name];
  if (name === "auto" && shown.auto && layers.length) most = upperEnd(layers.at(-1));
  refresh();
}

export function nextColours() {
  const names = Object.keys(MAPS);
  shown.colours = names[(names.indexOf(shown.colours) + 1) % names.length];
  refresh();
}

function refresh() {
  lookup = null;
  for (const button of document.querySelectorAll("#detectorCard [data-toggle]")) button.setAttribute("aria-pressed", shown[button.dataset.toggle]);
  say("colours", shown.colours);
  schedule();
}

function moved() {
  schedule();
  wantsRegion();
}

export function zoom(factor, x, y) {
  if (!transform.shape) return;
  transform.zoom(factor, x, y);
  moved();
}

// By shares of the canvas, from the keyboard.
export function pan(right, down) {
  if (!transform.shape) return;
  byKeyboard = true;
  transform.pan(-right * transform.size[0], -down * transform.size[1]);
  moved();
}

export function fit() {
  if (!transform.shape) return;
  transform.fit();
  moved();
}

function watchPointer() {
  const target = $("detector");
  const at = event => [event.offsetX, event.offsetY];
  let dragging = null;
  target.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * (event.deltaMode ? 30 : 1))) / 250), ...at(event));
  }, { passive: false });
  target.addEventListener("pointerdown", event => {
    dragging = at(event);
    target.setPointerCapture(event.pointerId);
  });
  target.addEventListener("pointermove", event => {
    pointer = at(event);
    byKeyboard = false;
    if (dragging) {
      transform.pan(pointer[0] - dragging[0], pointer[1] - dragging[1]);
      dragging = pointer;
      moved();
    } else schedule();
  });
  for (const end of ["pointerup", "pointercancel"]) target.addEventListener(end, () => { dragging = null; });
  target.addEventListener("pointerleave", () => {
    pointer = null;
    schedule();
  });
  target.addEventListener("dblclick", fit);
}

export function start() {
  watchPointer();
  $("most").addEventListener("input", event => {
    shown.auto = false;
    most = Math.max(1, Math.round(LARGEST ** (event.target.value / 100)));
    refresh();
  });
  for (const button of document.querySelectorAll("#detectorCard [data-toggle]")) button.addEventListener("click", () => toggle(button.dataset.toggle));
  $("colours").addEventListener("click", nextColours);
  $("zoomIn").addEventListener("click", () => zoom(1.6));
  $("zoomOut").addEventListener("click", () => zoom(1 / 1.6));
  $("fit").addEventListener("click", fit);
  new ResizeObserver(moved).observe($("detectorBox"));
  refresh();
}
