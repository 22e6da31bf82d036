// The hit ratio split by one tag and mapped against two.

import { colourAt, css } from "./colours.js";
import { $, canvas, say } from "./dom.js";
import { count, percent } from "./format.js";
import { axes, colourBar } from "./heat.js";
import { ink, onTheme } from "./theme.js";

const tidy = value => +value.toPrecision(4);
let split = null, map = null, known = false, toCell = null;

export function take(message) {
  [split, map, known] = [message.split, message.map, true];
  drawSplit();
  drawMap();
}

function explain(id, text) {
  const surface = canvas(id);
  if (!surface) return;
  const [context, width, height] = surface;
  context.fillStyle = ink("quiet");
  context.font = "13px system-ui, sans-serif";
  context.textAlign = "center";
  text.forEach((line, n) => context.fillText(line, width / 2, height / 2 + 20 * (n - 0.5)));
}

function drawSplit() {
  if (!split?.values.length) {
    say("splitNote", "");
    return known && explain("split", split ? [`no frame with the tag ${split.tag} yet`] : ["Not asked for.", "cxls analyze --split-tag laser splits by the tag “laser”."]);
  }
  const surface = canvas("split");
  if (!surface) return;
  // A row a value: its name, the interval, the numbers.
  const [context, width, height] = surface, values = split.values, rowHeight = Math.min(64, (height - 48) / values.length);
  const frame = [Math.min(150, 0.28 * width), 8, width - 158, 8 + rowHeight * values.length], [left, top, right, bottom] = frame;
  const most = Math.min(1, 1.1 * Math.max(0.05, ...values.map(value => value.high))), x = ratio => left + (right - left) * ratio / most;
  axes(context, frame, { low: 0, high: 100 * most, at: value => x(value / 100), label: "hits of frames with beam (%)" });
  values.forEach((value, n) => {
    const y = top + rowHeight * (n + 0.5);
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.fillStyle = ink("ink");
    context.font = "600 12px system-ui, sans-serif";
    context.fillText(`${split.tag} = ${value.value}`, left - 8, y, left - 12);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "left";
    context.fillText(`${percent(value.ratio)}, ${(100 * value.low).toFixed(1)} to ${(100 * value.high).toFixed(1)}`, right + 10, rowHeight > 28 ? y - 7 : y);
    context.fillStyle = ink("quiet");
    if (rowHeight > 28) context.fillText(`${count(value.hits)} of ${count(value.beam)}`, right + 10, y + 8);
    context.strokeStyle = context.fillStyle = ink("hit");
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(x(value.low), y);
    context.lineTo(x(value.high), y);
    for (const end of [value.low, value.high]) {
      context.moveTo(x(end), y - 6);
      context.lineTo(x(end), y + 6);
    }
    context.stroke();
    context.beginPath();
    context.arc(x(value.ratio), y, 4.5, 0, 2 * Math.PI);
    context.fill();
  });
  say("splitNote", "with 95 % intervals");
}

function drawMap() {
  toCell = null;
  if (!map?.cells.length) {
    say("mapNote", "");
    return known && explain("map", map ? [`no frame with the tags ${map.tags.join(" and ")} yet`] : ["Not asked for.", "cxls analyze --map-tags x,y maps it against two tags."]);
  }
  const surface = canvas("map");
  if (!surface) return;
  const [context, width, height] = surface, { cells, step, tags } = map, frame = [58, 10, width - 50, height - 34];
  const range = (part, size) => {
    const values = cells.map(cell => cell[part]);
    return [values.reduce((a, b) => Math.min(a, b)) - size / 2, values.reduce((a, b) => Math.max(a, b)) + size / 2];
  };
  const [x0, x1] = range(0, step[0]), [y0, y1] = range(1, step[1]), [left, top, right, bottom] = frame;
  const x = value => left + (right - left) * (value - x0) / (x1 - x0), y = value => bottom - (bottom - top) * (value - y0) / (y1 - y0);
  const most = cells.reduce((high, [, , beam, hits]) => (beam ? Math.max(high, hits / beam) : high), 0.01);
  context.fillStyle = ink("back");
  context.fillRect(left, top, right - left, bottom - top);
  for (const [atX, atY, beam, hits] of cells) {
    if (!beam) continue;
    context.fillStyle = css(colourAt("Viridis", hits / beam / most));
    context.fillRect(x(atX - step[0] / 2), y(atY + step[1] / 2), x(atX + step[0] / 2) - x(atX - step[0] / 2) + 0.3, y(atY - step[1] / 2) - y(atY + step[1] / 2) + 0.3);
  }
  axes(context, frame, { low: x0, high: x1, at: x, label: tags[0] }, { low: y0, high: y1, at: y, label: tags[1] });
  colourBar(context, frame, "0 %", percent(most, 0), "hits of frames");
  say("mapNote", `${tags.join(", ")} in steps of ${step.map(tidy).join(", ")}; blank: no frame`);
  toCell = (atX, atY) => {
    const valueX = x0 + (atX - left) / (right - left) * (x1 - x0), valueY = y0 + (bottom - atY) / (bottom - top) * (y1 - y0);
    return cells.find(cell => Math.abs(cell[0] - valueX) <= step[0] / 2 && Math.abs(cell[1] - valueY) <= step[1] / 2);
  };
}

export function start() {
  for (const [id, draw] of [["split", drawSplit], ["map", drawMap]]) new ResizeObserver(draw).observe($(id).parentElement);
  onTheme(() => {
    drawSplit();
    drawMap();
  });
  $("map").addEventListener("pointermove", event => {
    const cell = toCell?.(event.offsetX, event.offsetY);
    say("mapReadout", cell ? `${map.tags[0]} ${tidy(cell[0])}, ${map.tags[1]} ${tidy(cell[1])}: ${count(cell[3])} hits of ${count(cell[2])} frames with beam, ${percent(cell[2] ? cell[3] / cell[2] : null)}` : "\u00a0");
  });
}
