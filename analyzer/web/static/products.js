// What the run adds up to: powder, peakogram, histograms, radial profile, unit cells.

import { colourAt, css } from "./colours.js";
import { $, canvas, element, say } from "./dom.js";
import { compact, count, percent, ticks } from "./format.js";
import { axes, colourBar } from "./heat.js";
import { line, Plot } from "./plot.js";
import { ink, onTheme, theme } from "./theme.js";

const EVERY_MS = 10000;
const CELL_PARTS = [["a", "Å"], ["b", "Å"], ["c", "Å"], ["α", "°"], ["β", "°"], ["γ", "°"]];
let peakogram = null, plots = null, cellPlots = null, visible = () => false, useRings = () => {}, asked = -Infinity, any = false, unit = "", followed = false;

const bars = (label, colour, size = 0.9) => ({
  label, scale: "y", stroke: () => ink(colour), width: 0.5, fill: () => ink(colour), paths: window.uPlot.paths.bars({ size: [size, 100], align: 1 }), points: { show: false }, value: (plot, value) => (value == null ? "" : value),
});
const logCounts = (plot, splits) => splits.map(value => (Number.isInteger(value) ? compact(10 ** value) : ""));
const logRange = (plot, low, high) => [0, Math.max(1, 1.06 * (high ?? 0))];
// log10, with a bar for a single one: counts of one stand a little over the axis.
const logHeight = value => (value > 0 ? Math.max(0.06, Math.log10(value)) : null);

export function start(isVisible, takeRings) {
  [visible, useRings] = [isVisible, takeRings];
  const counting = { values: logCounts, size: 44, incrs: [1] };
  plots = {
    profile: new Plot("profile", { series: [line("measured", "hit"), line("model", "indexable", { dash: [6, 4] })], x: { label: () => unit }, y: { size: 54 }, range: (plot, low, high) => [0, 1.06 * (high || 1)] }),
    counts: new Plot("peakCounts", { series: [bars("no hit", "miss"), bars("hit", "hit", 0.55)], x: { label: "peaks in a frame" }, y: counting, range: logRange }),
    resolutions: new Plot("resolutions", { series: [bars("hits", "hit", 1)], x: { label: "resolution estimate d (Å)" }, y: { size: 44, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10000, 100000] }, legend: false }),
  };
  new ResizeObserver(drawPeakogram).observe($("peakogram").parentElement);
  onTheme(drawPeakogram);
  onTheme(() => $("powder").hidden || drawPowder());
}

// Every ten seconds while the page is seen, and at once when the view is opened.
setInterval(() => {
  if (performance.now() - asked >= EVERY_MS && !document.hidden) refresh();
}, 1000);

// Before the first frame there is nothing to ask for.
export function useStatus({ account, indexing }) {
  const ratio = indexing?.indexed_ratio;
  say("indexedNote", ratio?.all == null ? "" : `· indexed: ${percent(ratio["100"])} of the last 100 hits, ${percent(ratio.all)} of all`);
  followed = Boolean(indexing);
  const before = any;
  any = Object.values(account.processed).some(number => number > 0);
  if (any && !before) refresh();
  if (before && !any) forget();
}

export async function refresh() {
  if (!any) return;
  asked = performance.now(); // a clock that is never set
  const get = async name => {
    const answer = await fetch(name, { cache: "no-store" });
    return answer.ok ? answer.json() : null;
  };
  try {
    const index = await get("products");
    if (!index) return forget();
    useRings(index.geometry.panels > 1 ? index.rings : null);
    if (!visible()) return;
    const [intensities, counts, resolutions] = await Promise.all(["peakogram", "peak_counts", "resolution"].map(name => get(`products/${name}.json`)));
    if (!intensities || !counts || !resolutions) return forget();
    peakogram = intensities;
    drawPeakogram();
    showCounts(counts);
    showResolutions(resolutions);
    showPowder(index);
  } catch {
    // No answer, which the banner says.
  }
}

// Another analysis.
export function beginAnew() {
  any = false;
  forget();
}

// They began anew, and no frame has come since.
function forget() {
  peakogram = null;
  canvas("peakogram");
  $("powder").hidden = true;
  for (const id of ["powderNote", "peakogramNote"]) say(id, "no frame yet");
  plots.counts.clear();
  plots.resolutions.clear();
}

function drawPowder() {
  const picture = new Image();
  picture.onload = () => {
    const shown = $("powder");
    [shown.src, shown.hidden, shown.alt] = [picture.src, false, "Virtual powder pattern on the detector with resolution rings"];
  };
  picture.src = `products/powder.png?theme=${theme()}&${Date.now()}`;
}

function showPowder(index) {
  drawPowder();
  const hot = index.products.find(product => product.name === "hot_pixels");
  say("powderNote", `${count(index.frames.hit)} hits · hot-pixel map: ${count(hot.pixels)} pixels, ${index.hot_pixels_applied ? `in force: ${index.hot_pixels_applied}` : "not in force"}` +
    (index.geometry.unfit ? ` · geometry file not used: ${index.geometry.unfit}` : ""));
}

function drawPeakogram() {
  const surface = peakogram && canvas("peakogram");
  if (!surface) return;
  const [context, width, height] = surface, inQ = "q_edges_per_angstrom" in peakogram;
  const edges = inQ ? peakogram.q_edges_per_angstrom : peakogram.radius_edges_px, logs = peakogram.log10_intensity_edges_photons;
  const frame = [50, inQ ? 28 : 8, width - 46, height - 32], [left, top, right, bottom] = frame, end = edges.at(-1);
  const filled = logs.map((_, n) => peakogram.counts.some(row => row[n] > 0)).lastIndexOf(true);
  const highest = logs[Math.min(logs.length - 1, Math.max(filled + 2, 20))];
  const x = value => left + (right - left) * value / end, y = log => bottom - (bottom - top) * log / highest;
  let most = 0, total = 0;
  for (const row of peakogram.counts) for (const value of row) {
    most = Math.max(most, value);
    total += value;
  }
  context.fillStyle = css(colourAt("Viridis", 0));
  context.fillRect(left, top, right - left, bottom - top);
  peakogram.counts.forEach((row, i) => row.forEach((value, j) => {
    if (!value || logs[j + 1] > highest + 1e-9) return;
    context.fillStyle = css(colourAt("Viridis", 0.15 + 0.85 * Math.log(1 + value) / Math.log(1 + most)));
    context.fillRect(x(edges[i]), y(logs[j + 1]), Math.max(1, x(edges[i + 1]) - x(edges[i])), y(logs[j]) - y(logs[j + 1]) + 0.5);
  }));
  axes(context, frame, { low: 0, high: end, at: x, label: inQ ? "q (Å⁻¹)" : "radius (px)" }, { low: 0, high: highest, at: y, label: "photons", text: value => (Number.isInteger(value) ? compact(10 ** value) : "") });
  if (inQ) {
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const mark of ticks(0, end, Math.max(2, (right - left) / 40))) if (mark > 0) context.fillText((2 * Math.PI / mark).toPrecision(2), x(mark), top - 7);
    context.fillText("d (Å)", (left + right) / 2, top - 20);
  }
  if (most) colourBar(context, frame, "1", compact(most), "peaks");
  say("peakogramNote", `${count(total)} peaks` + (inQ ? "" : "; the header names no camera length or no photon energy"));
}

function showCounts(data) {
  const all = data.hits.map((value, n) => value + data.no_hits[n]), end = Math.max(12, all.findLastIndex(value => value > 0) + 2);
  const x = Array.from({ length: end }, (_, n) => n - 0.5), part = values => values.slice(0, end).map(logHeight);
  plots.counts.set([x, part(data.no_hits), part(data.hits)]);
  say("countsNote", `${count(data.saturated_frames)} with saturated pixels`);
}

function showResolutions(data) {
  const edges = data.d_edges_angstrom, filled = data.counts.map((value, n) => [value, n]).filter(([value]) => value > 0).map(([, n]) => n);
  const from = filled.length ? Math.max(0, filled[0] - 4) : 0, to = filled.length ? Math.min(data.counts.length, filled.at(-1) + 5) : 20;
  // A bar goes from its edge to the next.
  plots.resolutions.set([edges.slice(from, to + 1), [...data.counts.slice(from, to), null]]);
}

// Radial profile and cells come with the curves.
export function take({ profile, cells }) {
  if (profile) {
    unit = profile.unit === "px" ? "radius (px)" : "q (Å⁻¹)";
    plots.profile.set([profile.x, profile.measured, profile.model ?? profile.x.map(() => null)]);
    say("profileNote", `${profile.label}, ${count(profile.frames)} frames`);
  } else {
    plots.profile.clear();
    say("profileNote", "none yet");
  }
  const some = Boolean(cells?.values.length);
  $("noCells").hidden = some || followed;
  $("cells").hidden = !some;
  if (some) showCells(cells);
  else say("cellsNote", followed ? "none yet" : "");
}

function showCells({ lattice, values }) {
  cellPlots ??= CELL_PARTS.map(([name, unit], n) => {
    const box = element("div", { class: "plot", id: `cell${n}` });
    $("cells").append(element("div", { class: "cell" }, element("h3", {}, ""), box));
    return new Plot(box.id, { series: [bars(`${name} (${unit})`, "hit", 1)], legend: false, y: { size: 30 }, x: { space: 36 } });
  });
  say("cellsNote", `${lattice ?? "lattice not known"}, the latest ${count(values.length)}`);
  CELL_PARTS.forEach(([name, unit], n) => {
    const found = values.map(cell => cell[n]).sort((a, b) => a - b), middle = found[found.length >> 1];
    const low = found[Math.floor(0.02 * found.length)], high = found[Math.ceil(0.98 * found.length) - 1], wide = Math.max(high - low, 0.01 * middle) * 1.2;
    const bins = 24, from = (low + high) / 2 - wide / 2, counts = Array(bins).fill(0);
    for (const value of found) {
      const bin = Math.floor((value - from) / wide * bins);
      if (bin >= 0 && bin < bins) counts[bin]++;
    }
    $("cells").children[n].firstChild.textContent = `${name} ${middle.toFixed(2)} ${unit}`;
    cellPlots[n].set([counts.map((_, bin) => from + bin * wide / bins), counts]);
  });
}
