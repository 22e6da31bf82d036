// Curves against time and image: hit and indexable rate with Wilson's 95 % band, peaks, throughput, latency, queue.

import { say } from "./dom.js";
import { count, milliseconds, percent, rate } from "./format.js";
import { banded, countRange, fill, line, marking, percentRange, Plot, timeAxis, toNow } from "./plot.js";
import { present } from "./present.js";
import { bands, runningSums, wilson } from "./statistics.js";
import { ink } from "./theme.js";

const RUNNING_S = { time: 30, minutes: 600 };
const MOST_BINS = 120;
const words = seconds => (seconds < 120 ? `${seconds} s` : `${seconds / 60} min`);

const QUEUE_S = 900;
const waiting = [[], []]; // Unix seconds and frames, since the page was opened
let latest = null, span = "time", detectorRate = null, isHit = () => false, plots = null;

const ratePlot = (id, options) => new Plot(id, {
  series: [...banded("hits", "hit"), ...banded("indexable", "indexable", [6, 4])],
  bands: [fill(2, 3, "hit"), fill(5, 6, "indexable")], y: { values: (plot, splits) => splits.map(value => `${value} %`) }, range: percentRange, ...options,
});

const seriesBy = key => () => (latest?.series ?? []).filter(each => each[key] != null).map(each => [each[key], `series ${each.series_id}`]);

export function start() {
  const dots = (label, colour, filled, size) => ({
    label, scale: "y", stroke: () => ink(colour), paths: () => null, value: (plot, value) => value ?? "",
    points: { show: true, size, width: 1.2, stroke: () => ink(colour), fill: () => (filled ? ink(colour) : "transparent") },
  });
  plots = {
    byTime: ratePlot("rateByTime", { time: true, xRange: toNow, x: timeAxis, draw: [marking(seriesBy("began_at"))] }),
    byImage: ratePlot("rateByImage", { x: { label: "image, series one after the other" }, draw: [marking(seriesBy("first_image"))] }),
    peaks: new Plot("peaksByImage", { series: [dots("hit", "hit", true, 4), dots("no hit", "miss", false, 4)], x: { label: "image, series one after the other" }, draw: [marking(seriesBy("first_image"))] }),
    throughput: new Plot("throughput", {
      time: true, xRange: toNow, x: timeAxis, series: [line("received", "hit"), line("analysed", "indexable", { dash: [6, 4] }), line("dropped", "bad"), line("detector", "quiet", { dash: [2, 3] })], y: { values: (plot, splits) => splits.map(value => `${value}/s`), size: 52 },
    }),
    latency: new Plot("latency", {
      time: true, xRange: toNow, x: timeAxis, log: true, series: [line("slowest", "hit", { value: (plot, value) => value == null ? "" : milliseconds(value) })], y: { values: (plot, splits) => splits.map(value => (value == null ? "" : milliseconds(value))), size: 52 },
    }),
    queue: new Plot("queue", { time: true, xRange: toNow, x: timeAxis, range: countRange, series: [line("waiting", "hit", { paths: window.uPlot.paths.stepped({ align: 1 }), fill: () => `${ink("hit")}2e` })] }),
  };
  for (const button of document.querySelectorAll("[data-span]")) button.addEventListener("click", () => {
    span = button.dataset.span;
    for (const each of document.querySelectorAll("[data-span]")) each.setAttribute("aria-pressed", each.dataset.span === span);
    show();
  });
}

// One more value at `time`; nothing from before the clock was set back, as the times of a curve have to ascend.
export function keep([times, values], time, value) {
  if (time < times.at(-1)) times.length = values.length = 0;
  times.push(time);
  values.push(value);
  while (times[0] < time - QUEUE_S) [times, values].forEach(each => each.shift());
}

export function useStatus(status) {
  isHit = hitRule(status);
  const frameTime = status.header?.frame_time_s;
  detectorRate = frameTime > 0 ? 1 / frameTime : null;
  keep(waiting, status.time, status.queue_frames);
  say("queueNote", `since this page was opened; room for ${count(status.queue_capacity_frames)}`);
  say("detectorRate", detectorRate ? `the detector takes ${rate(detectorRate)}/s` : "the detector's rate is not known");
}

// Whether a point [image, peaks, probability or null] is a hit by the rule in force.
function hitRule({ threshold, controls }) {
  const { hit_rule: rule = "network", min_peaks: least = Infinity } = controls?.peaks ?? {};
  const byNetwork = ([, , probability]) => probability != null && probability >= threshold, byPeaks = ([, peaks]) => peaks >= least;
  if (rule === "peaks") return byPeaks;
  if (rule === "either") return point => byNetwork(point) || byPeaks(point);
  return rule === "both" ? point => byNetwork(point) && byPeaks(point) : byNetwork;
}

export function take(message) {
  latest = message;
  show();
  lastMinute(message.time, present());
}

// Of the minute before `now`, whose frames are none where the stream stopped.
export function lastMinute({ t, beam, indexable }, now) {
  const from = now - 60, sum = values => values.reduce((total, value, n) => total + (t[n] > from ? value : 0), 0);
  const [all, yes] = [sum(beam), sum(indexable)], interval = wilson(yes, all);
  say("indexableRate", interval ? percent(yes / all) : "–");
  say("indexableRateMore", interval ? `95 %: ${(100 * interval[0]).toFixed(1)} to ${percent(interval[1])}` : "no frame with beam");
}

function show() {
  if (!latest) return;
  rateByTime(latest[span]);
  rateByImage(latest.images);
  peaksByImage(latest.scatter);
  performance(latest[span]);
}

function rateByTime({ t, beam, hits, indexable }) {
  const running = RUNNING_S[span], sums = [beam, hits, indexable].map(values => runningSums(t, values, running));
  say("smoothing", `${words(running)} running, 95 % band`);
  plots.byTime.set([t, ...bands(sums[1], sums[0]), ...bands(sums[2], sums[0])]);
}

// Bins joined until they are few enough to tell apart; a late frame counts in its own.
function rateByImage({ width, first, beam, hits, indexable }) {
  const joined = first.length ? Math.max(1, Math.ceil((first.at(-1) - first[0]) / width / MOST_BINS)) : 1, wide = width * joined;
  const bins = new Map();
  first.forEach((image, n) => {
    const at = Math.floor(image / wide) * wide, bin = bins.get(at) ?? [0, 0, 0];
    [beam[n], hits[n], indexable[n]].forEach((value, part) => { bin[part] += value; });
    bins.set(at, bin);
  });
  const places = [...bins.keys()].sort((a, b) => a - b), part = n => places.map(place => bins.get(place)[n]);
  say("binning", `bins of ${wide} images, 95 % band`);
  plots.byImage.set([places.map(place => place + wide / 2), ...bands(part(1), part(0)), ...bands(part(2), part(0))]);
}

function peaksByImage(scatter) {
  const points = [...scatter].sort((one, other) => one[0] - other[0]);
  plots.peaks.set([points.map(point => point[0]), points.map(point => (isHit(point) ? point[1] : null)), points.map(point => (isHit(point) ? null : point[1]))]);
}

function performance({ width_s, t, received, analysed, dropped, latency_s }) {
  const each = values => values.map(value => value / width_s), whole = t.length - 1;
  // The last bin is not over yet.
  const over = values => values.slice(0, whole);
  plots.throughput.set([over(t), over(each(received)), over(each(analysed)), over(each(dropped)), over(t).map(() => detectorRate)]);
  plots.latency.set([over(t), over(latency_s)]);
  plots.queue.set(waiting.map(values => values.slice()));
  const slowest = Math.max(...latency_s.slice(-60).filter(value => value != null));
  say("latencyNote", isFinite(slowest) ? `${words(width_s * 60)}: ${milliseconds(slowest)}` : "");
}
