// uPlot 1.6.32 (vendored; its licence is uPlot.LICENSE) in the page's colours, sized to its box.

import { $, element } from "./dom.js";
import { clock, count } from "./format.js";
import { present } from "./present.js";
import { ink, onTheme } from "./theme.js";

const FONT = "11px system-ui, sans-serif";
const RATIO_FLOOR = 5;

export const timeAxis = { space: 72, values: (plot, splits, axis, space, step) => splits.map(time => clock(time, step < 60).split(" ").at(-1)) };

// Up to now, so that a stream that stopped is seen to have stopped.
export function toNow(plot, low, high) {
  const now = present() ?? high ?? 60, last = plot?.data?.[0].length === 1 ? low : high; // uPlot gives a single time a thousand days
  return low == null ? [now - 60, now] : [low, Math.max(low + 1, last, Math.min(now, low + 86400))];
}

// Percent from 0 to what the bands need.
export const percentRange = (plot, low, high) => [0, Math.min(100, Math.max(RATIO_FLOOR, 1.06 * (high ?? 0)))];
export const countRange = (plot, low, high) => [0, Math.max(5, 1.08 * (high ?? 0))];
export const zeroRange = (plot, low, high) => [0, Math.max(1, 1.08 * (high ?? 0))];

const axis = more => ({
  stroke: () => ink("quiet"), font: FONT, labelFont: FONT, labelSize: 14, labelGap: 0, gap: 3,
  grid: { stroke: () => ink("line"), width: 1 }, ticks: { stroke: () => ink("line"), width: 1, size: 4 },
  ...more,
});

// A line with its 95 % band: three of uPlot's series.
export function banded(label, colour, dash) {
  const edge = { scale: "y", stroke: "transparent", class: "edge", points: { show: false } };
  return [line(label, colour, { dash, value: (plot, value) => (value == null ? "" : `${value.toFixed(1)} %`) }), { ...edge, label: "low" }, { ...edge, label: "high" }];
}

export function line(label, colour, more = {}) {
  return { label, scale: "y", stroke: () => ink(colour), width: 1.8, points: { show: false }, spanGaps: false, value: (plot, value) => (value == null ? "" : String(+value.toPrecision(4))), ...more };
}

// The filled band between series low and high (1-based places among the series).
export const fill = (low, high, colour) => ({ series: [high, low], fill: () => `${ink(colour)}38` });

// Vertical marks: `marks()` gives [[x, text], …].
export const marking = marks => plot => {
  const { ctx: context, bbox } = plot, ratio = window.devicePixelRatio || 1;
  context.save();
  context.strokeStyle = context.fillStyle = ink("quiet");
  context.setLineDash([3 * ratio, 3 * ratio]);
  context.lineWidth = ratio;
  context.font = `${10 * ratio}px system-ui, sans-serif`;
  context.textAlign = "left";
  context.textBaseline = "top";
  let free = -Infinity;
  for (const [at, text] of marks()) {
    const x = plot.valToPos(at, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    context.beginPath();
    context.moveTo(x, bbox.top);
    context.lineTo(x, bbox.top + bbox.height);
    context.stroke();
    // Right of the mark, or left of it at the edge; not at all where another is.
    const wide = context.measureText(text).width + 6 * ratio, start = x + wide > bbox.left + bbox.width ? x - wide : x;
    if (start < free) continue;
    context.fillText(text, start + 3 * ratio, bbox.top + ratio);
    free = start + wide;
  }
  context.restore();
};

// A plot in the box of that id; made once it is seen and has data. `x` and `y` are options of its axes.
export class Plot {
  constructor(id, { series, x = {}, y = {}, bands = [], time = false, range = zeroRange, xRange, log = false, draw = [], legend = true }) {
    this.box = $(id);
    this.legend = element("span", { class: "legend" });
    if (legend) this.box.previousElementSibling?.querySelector("span")?.after(this.legend);
    this.options = {
      series: [{ label: "x", class: "edge", value: () => "" }, ...series], bands,
      axes: [axis({ size: 20, values: (plot, splits) => splits.map(each => (each == null ? "" : count(each, true))), ...x }), axis({ size: 46, space: 24, ...y })],
      scales: { x: { time, ...(xRange ? { range: xRange } : {}) }, y: log ? { distr: 3, range: (plot, low, high) => [Math.max(1e-4, 0.8 * (low ?? 0.01)), Math.max(1e-3, 1.3 * (high ?? 1))] } : { range } },
      hooks: { draw }, cursor: { drag: { x: false, y: false }, points: { size: 6 } }, padding: [8, 22, 0, 0],
      legend: { show: legend, live: true, mount: (plot, table) => this.legend.replaceChildren(table) },
    };
    this.data = null;
    this.plot = null;
    new ResizeObserver(() => this.fit()).observe(this.box);
    onTheme(() => this.plot?.redraw(false));
  }

  set(data) {
    this.data = data;
    this.show();
  }

  // Not even axes: there is nothing to show.
  clear() {
    this.plot?.destroy();
    this.plot = this.data = null;
    this.legend.replaceChildren();
  }

  fit() {
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    if (!width || !height) return;
    if (this.plot) this.plot.setSize({ width, height });
    this.show();
  }

  show() {
    const [width, height] = [this.box.clientWidth, this.box.clientHeight];
    if (!this.data || !width || !height) return;
    if (this.plot) this.plot.setData(this.data);
    else this.plot = new window.uPlot({ ...this.options, width, height }, this.data, this.box);
  }
}
