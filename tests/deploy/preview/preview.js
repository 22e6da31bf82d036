"use strict";
// Draws the dashboard in the element "content": panels in their own gridPos, with the answers to their queries.

const { board, data, start, end, instance } = JSON.parse(document.getElementById("content").textContent);
const SVG = "http://www.w3.org/2000/svg";
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

// --- elements -----------------------------------------------------------------------------

function make(parent, tag, attributes = {}, text = "") {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  parent.append(node);
  return node;
}

function draw(parent, tag, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  parent.append(node);
  return node;
}

// --- values -------------------------------------------------------------------------------

function scaled(value, base, suffixes, decimals, first = 0) {
  let place = first;
  while (Math.abs(value) >= base && place < suffixes.length - 1) { value /= base; place++; }
  while (value !== 0 && Math.abs(value) < 1 && place > 0) { value *= base; place--; }
  return `${fixed(value, decimals)} ${suffixes[place]}`.trim();
}

function fixed(value, decimals) {
  if (decimals !== undefined) return value.toFixed(decimals);
  const size = Math.abs(value);
  return value.toFixed(value === 0 || size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3).replace(/\.0+$/, "");
}

function shown(value, defaults, decimals = defaults.decimals) {
  for (const mapping of defaults.mappings || []) if (mapping.options[value]) return mapping.options[value].text;
  const unit = defaults.unit;
  const si = ["n", "µ", "m", "", "k", "M", "G", "T"];
  switch (unit) {
    case "percentunit": return `${fixed(value * 100, decimals)} %`;
    case "hertz": return scaled(value, 1000, si.slice(3).map((p) => `${p}Hz`), decimals);
    case "ev": return scaled(value, 1000, ["eV", "keV", "MeV"], decimals);
    case "lengthm": return scaled(value, 1000, si.map((p) => `${p}m`), decimals, 3);
    case "s": return Math.abs(value) >= 120 ? `${fixed(value / 60, 1)} min` : scaled(value, 1000, ["ns", "µs", "ms", "s"], decimals, 3);
    case "bytes": return scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"], decimals);
    case "Bps": return scaled(value, 1000, ["B/s", "kB/s", "MB/s", "GB/s"], decimals);
    case "short": return scaled(value, 1000, ["", "K", "Mil", "Bil"], Math.abs(value) >= 1000 ? undefined : decimals);
    case "celsius": return `${fixed(value, decimals)} °C`;
    case "degree": return `${fixed(value, decimals)}°`;
    case "none": return fixed(value, decimals);
    default:
      if (unit.startsWith("suffix:")) return `${fixed(value, decimals)} ${unit.slice(7)}`;
      throw new Error(`the preview does not know the unit ${unit}`);
  }
}

function latest(curve) {
  const known = curve.points.filter((point) => point[1] !== null);
  return known.length ? known[known.length - 1][1] : null;
}

function byThreshold(value, defaults) {
  for (const mapping of defaults.mappings || []) if (mapping.options[value]) return mapping.options[value].color;
  let color = "#0072B2";
  for (const step of defaults.thresholds.steps) if (step.value === null || value >= step.value) color = step.color;
  return color;
}

function overrides(panel, name) {
  const found = {};
  for (const override of panel.fieldConfig.overrides) {
    if (override.matcher.options === name) for (const property of override.properties) found[property.id] = property.value;
  }
  return found;
}

// --- axes ---------------------------------------------------------------------------------

function ticks(low, high, count, unit) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = unit === "bytes" ? 2 ** Math.ceil(Math.log2(raw))
    : [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

function surface(plot, left) {
  const { width, height } = plot.getBoundingClientRect();
  const svg = draw(plot, "svg", { viewBox: `0 0 ${width} ${height}` });
  const area = { left, right: width - 8, top: 6, bottom: height - 18 };
  const x = (time) => area.left + ((time - start) / (end - start)) * (area.right - area.left);
  const span = end - start;
  const step = [5, 10, 15, 30, 60, 120, 300, 600].find((s) => span / s <= width / 75) || 1800;
  for (let time = Math.ceil(start / step) * step; time <= end; time += step) {
    draw(svg, "line", { x1: x(time), x2: x(time), y1: area.top, y2: area.bottom, stroke: "#eceef0" });
    const clock = new Date(time * 1000).toISOString().slice(11, 19);
    const at = x(time);
    if (at > area.left + 15 && at < area.right - 20) draw(svg, "text", { x: at, y: height - 4, "text-anchor": "middle" }, clock);
  }
  return { svg, area, x };
}

function legend(parent, entries) {
  const box = make(parent, "div", { class: "legend" });
  for (const [name, color, value] of entries) {
    const item = make(box, "span");
    make(item, "i", { style: `background:${color}` });
    item.append(name);
    if (value) make(item, "b", {}, value);
  }
}

// --- panels -------------------------------------------------------------------------------
// Each draws the curves into the body and returns how many finite values it drew.

function timeseries(panel, curves, body) {
  const defaults = panel.fieldConfig.defaults, custom = defaults.custom || {};
  const stacked = custom.stacking && custom.stacking.mode === "normal";
  const sums = new Map();
  const lines = curves.map((curve) => {
    const more = overrides(panel, curve.name);
    const points = curve.points.map(([time, value]) => {
      if (!stacked || value === null) return [time, value, 0];
      const under = sums.get(time) || 0;
      sums.set(time, under + value);
      return [time, under + value, under];
    });
    return { name: curve.name, points, more, color: (more.color || defaults.color).fixedColor, last: latest(curve) };
  });
  const values = lines.flatMap((line) => line.points.map((point) => point[1])).filter((value) => value !== null);
  if (!values.length) return 0;
  let low = defaults.min ?? Math.min(...values), high = defaults.max ?? Math.max(...values);
  if (!(high > low)) { high = low + Math.max(1e-9, Math.abs(low) * 0.1 || 1); }
  if (defaults.min === undefined) low -= (high - low) * 0.08;
  if (defaults.max === undefined) high += (high - low) * 0.08;

  const plot = make(body, "div", { class: "plot" });
  legend(body, lines.filter((line) => !(line.more["custom.hideFrom"] || {}).legend)
    .map((line) => [line.name, line.color, line.last === null ? "–" : shown(line.last, defaults)]));
  const steps = ticks(low, high, Math.max(2, (plot.clientHeight - 24) / 32), defaults.unit);
  // The fewest decimals that tell the steps apart and show their size.
  const exact = (texts, decimals) => new Set(texts).size === texts.length && new Set(texts.slice(1).map((text, n) =>
    (parseFloat(text) - parseFloat(texts[n])).toFixed(decimals))).size === 1;
  const labels = [0, 1, 2, 3, 4].map((decimals) => steps.map((value) => shown(value, { unit: defaults.unit }, decimals)))
    .find(exact) || steps.map((value) => shown(value, { unit: defaults.unit }));
  const { svg, area, x } = surface(plot, 12 + 6.6 * Math.max(...labels.map((text) => text.length)));
  const y = (value) => area.bottom - ((value - low) / (high - low)) * (area.bottom - area.top);
  steps.forEach((value, n) => {
    draw(svg, "line", { x1: area.left, x2: area.right, y1: y(value), y2: y(value), stroke: "#eceef0" });
    draw(svg, "text", { x: area.left - 5, y: y(value) + 4, "text-anchor": "end" }, labels[n]);
  });
  for (const step of defaults.thresholds.steps) {
    if (step.value === null || !custom.thresholdsStyle || step.value < low || step.value > high) continue;
    draw(svg, "line", { x1: area.left, x2: area.right, y1: y(step.value), y2: y(step.value), stroke: step.color, "stroke-dasharray": "10 8" });
  }
  let marks = 0;
  for (const line of lines) {
    const known = line.points.filter((point) => point[1] !== null);
    const trace = (points, edge) => points.map(([time, ...ends]) => `${x(time).toFixed(1)},${y(ends[edge]).toFixed(1)}`);
    const under = line.more["custom.fillBelowTo"];
    if (stacked) {
      const outline = [...trace(known, 0), ...trace([...known].reverse(), 1)];
      draw(svg, "polygon", { points: outline.join(" "), fill: line.color, "fill-opacity": custom.fillOpacity / 100 });
    } else if (under) {
      const floor = lines.find((other) => other.name === under);
      const lower = floor ? floor.points.filter((point) => point[1] !== null) : [];
      const outline = [...trace(known, 0), ...trace([...lower].reverse(), 0)];
      draw(svg, "polygon", { points: outline.join(" "), fill: line.color, "fill-opacity": line.more["custom.fillOpacity"] / 100 });
    }
    const style = line.more["custom.lineStyle"];
    draw(svg, "polyline", {
      points: trace(known, 0).join(" "), fill: "none", stroke: line.color,
      "stroke-width": line.more["custom.lineWidth"] ?? custom.lineWidth ?? 1,
      ...(style ? { "stroke-dasharray": style.dash.join(" ") } : {}),
    });
    marks += known.length;
  }
  return marks;
}

function heatmap(panel, curves, body) {
  // Rows are buckets of Prometheus: each holds the ones below it.
  const rows = curves.map((curve) => ({ edge: curve.name === "+Inf" ? Infinity : Number(curve.name), curve }));
  rows.sort((a, b) => a.edge - b.edge);
  if (!rows.length) return 0;
  const times = rows[0].curve.points.map((point) => point[0]);
  const totals = rows.map((row) => new Map(row.curve.points));
  const cells = totals.map((total, n) => times.map((time) => {
    const value = total.get(time) ?? null;
    return value === null ? null : value - (n ? totals[n - 1].get(time) ?? 0 : 0);
  }));
  // Rows that nothing ever fell into, above the uppermost that has something, are left out, as the room is small.
  while (cells.length > 2 && cells[cells.length - 1].every((value) => !(value > 1e-9))) { cells.pop(); rows.pop(); }
  const most = Math.max(...cells.flat().filter((value) => value !== null));
  const plot = make(body, "div", { class: "plot" });
  const { svg, area, x } = surface(plot, 62);
  const height = (area.bottom - area.top) / rows.length;
  const step = times.length > 1 ? times[1] - times[0] : 1;
  const unit = panel.options.yAxis.unit;
  let marks = 0;
  cells.forEach((row, n) => row.forEach((value, place) => {
    if (!(value > 1e-9)) return;
    const color = VIRIDIS[Math.min(VIRIDIS.length - 1, Math.floor((value / most) * VIRIDIS.length))];
    draw(svg, "rect", {
      x: x(times[place] - step).toFixed(1), y: (area.bottom - (n + 1) * height).toFixed(1),
      width: (x(step) - x(0) + 0.6).toFixed(1), height: (height + 0.3).toFixed(1), fill: color,
    });
    marks++;
  }));
  const every = Math.ceil(14 / height);
  rows.forEach((row, n) => {
    if (n % every || n === rows.length) return;
    const label = row.edge === Infinity ? "+Inf" : shown(row.edge, { unit });
    draw(svg, "text", { x: area.left - 5, y: area.bottom - (n + 1) * height + 4, "text-anchor": "end" }, label);
  });
  legend(body, [["few", VIRIDIS[0], ""], [`${fixed(most)} in a cell`, VIRIDIS[VIRIDIS.length - 1], ""]]);
  return marks;
}

function stat(panel, curves, body) {
  const defaults = panel.fieldConfig.defaults;
  const known = curves.filter((curve) => latest(curve) !== null);
  if (!known.length) return 0;
  const box = make(body, "div", { class: "stats" });
  const named = panel.options.textMode === "value_and_name";
  for (const curve of known) {
    const more = overrides(panel, curve.name), value = latest(curve);
    const item = make(box, "div", { class: "stat" });
    if (named) make(item, "div", { class: "name" }, curve.name);
    const color = more.color ? more.color.fixedColor : byThreshold(value, defaults);
    const text = shown(value, defaults);
    const size = named ? 20 : Math.min(28, (1.5 * body.clientWidth) / text.length);
    make(item, "div", { class: "value", style: `color:${color};font-size:${size}px` }, text);
  }
  if (panel.options.graphMode === "area") {
    const points = known[0].points.filter((point) => point[1] !== null);
    const top = Math.max(...points.map((point) => point[1])), floor = defaults.min ?? Math.min(...points.map((point) => point[1]));
    const svg = draw(body, "svg", { class: "spark", viewBox: "0 0 100 100", preserveAspectRatio: "none" });
    const at = points.map(([time, value]) => `${(100 * (time - start)) / (end - start)},${98 - (90 * (value - floor)) / (top - floor || 1)}`);
    draw(svg, "polygon", { points: `${at[0].split(",")[0]},100 ${at.join(" ")} 100,100`, fill: byThreshold(latest(known[0]), defaults) });
  }
  return known.length;
}

function bargauge(panel, curves, body) {
  const defaults = panel.fieldConfig.defaults;
  const known = curves.filter((curve) => latest(curve) !== null);
  if (!known.length) return 0;
  const high = defaults.max ?? Math.max(1e-9, ...known.map(latest));
  const box = make(body, "div", { class: "bars" });
  for (const curve of known) {
    const value = latest(curve);
    make(box, "span", {}, curve.name);
    const track = make(box, "div", { class: "track" });
    make(track, "div", { class: "fill", style: `width:${Math.min(100, (100 * value) / high)}%;background:${byThreshold(value, defaults)}` });
    make(box, "b", {}, shown(value, defaults));
  }
  return known.length;
}

function timeline(panel, curves, body) {
  const defaults = panel.fieldConfig.defaults;
  const rows = curves.filter((curve) => latest(curve) !== null);
  if (!rows.length) return 0;
  const plot = make(body, "div", { class: "plot" });
  const { svg, area, x } = surface(plot, 12 + 6.4 * Math.max(...rows.map((row) => row.name.length)));
  const height = (area.bottom - area.top) / rows.length;
  let marks = 0;
  const states = new Set();
  rows.forEach((row, n) => {
    const y = area.top + n * height + 0.1 * height;
    draw(svg, "text", { x: area.left - 5, y: y + 0.4 * height + 4, "text-anchor": "end" }, row.name);
    const known = row.points.filter((point) => point[1] !== null);
    const step = known.length > 1 ? known[1][0] - known[0][0] : 1;
    let begun = 0;
    known.forEach(([time, value], place) => {
      states.add(value);
      marks++;
      const next = known[place + 1];
      if (next && next[1] === value && next[0] - time < 1.5 * step) return;
      const from = x(known[begun][0]), width = Math.min(x(time + step), area.right) - from;
      if (width > 0) draw(svg, "rect", { x: from, y, width, height: 0.8 * height, fill: byThreshold(value, defaults), "fill-opacity": 0.8 });
      begun = place + 1;
    });
  });
  legend(body, [...states].sort().map((value) => [shown(value, defaults), byThreshold(value, defaults), ""]));
  return marks;
}

function table(panel, curves, body) {
  if (!curves.length) return 0;
  const { renameByName: names, indexByName: order } = panel.transformations[0].options;
  const labels = Object.keys(names).sort((a, b) => order[a] - order[b]);
  const box = make(body, "table");
  const head = make(box, "tr");
  for (const label of labels) make(head, "th", {}, names[label]);
  for (const curve of curves) {
    const line = make(box, "tr");
    for (const label of labels) make(line, "td", {}, curve.labels[label] || "");
  }
  return curves.length;
}

const KINDS = { timeseries, heatmap, stat, bargauge, "state-timeline": timeline, table };

// --- the page -----------------------------------------------------------------------------

const head = make(document.body, "header");
make(head, "h1", {}, board.title);
make(head, "span", {}, `Analysis: ${instance}`);
for (const link of board.links) make(head, "span", { class: "link" }, link.title);
make(head, "span", { class: "note" }, "drawn from the dashboard's JSON by tests/deploy/preview, not by Grafana; times in UTC");
const grid = make(document.body, "div", { class: "grid" });
for (const panel of board.panels) {
  const { x, y, w, h } = panel.gridPos;
  const place = `grid-column:${x + 1}/span ${w};grid-row:${y + 1}/span ${h}`;
  if (panel.type === "row") { make(grid, "div", { class: "row", style: place }, panel.title); continue; }
  const box = make(grid, "section", { class: "panel", style: place, title: panel.description });
  make(box, "h2", {}, panel.title);
  const body = make(box, "div", { class: "body" });
  const marks = KINDS[panel.type](panel, data[panel.id], body);
  if (!marks) {
    body.textContent = "";
    const none = make(body, "div", { class: "none" }, "No data");
    make(none, "small", {}, panel.fieldConfig.defaults.noValue);
  }
  Object.assign(box.dataset, { id: panel.id, type: panel.type, state: marks ? "drawn" : "empty", marks });
}
document.body.dataset.done = "yes";
