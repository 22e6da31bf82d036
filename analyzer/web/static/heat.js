// Drawing on canvases with axes: heat maps and intervals.

import { colourAt, css } from "./colours.js";
import { ticks } from "./format.js";
import { ink } from "./theme.js";

// Numbers along the bottom and, with `y`, the left edge of a frame [left, top, right, bottom] in CSS pixels.
export function axes(context, frame, x, y) {
  const [left, top, right, bottom] = frame;
  context.strokeStyle = ink("line");
  context.lineWidth = 1;
  context.strokeRect(left, top, right - left, bottom - top);
  context.fillStyle = ink("quiet");
  context.textBaseline = "middle";
  context.textAlign = "center";
  for (const value of ticks(x.low, x.high, Math.max(2, (right - left) / 40))) context.fillText(x.text?.(value) ?? value, x.at(value), bottom + 9);
  context.fillText(x.label, (left + right) / 2, bottom + 23);
  if (!y) return;
  context.textAlign = "right";
  for (const value of ticks(y.low, y.high, Math.max(2, (bottom - top) / 42))) context.fillText(y.text?.(value) ?? value, left - 5, y.at(value));
  context.save();
  context.translate(9, (top + bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText(y.label, 0, 0);
  context.restore();
}

// A colour bar right of the frame, with texts at its ends.
export function colourBar(context, [, top, right, bottom], low, high, text) {
  const x = right + 10, height = bottom - top;
  for (let n = 0; n < height; n++) {
    context.fillStyle = css(colourAt("Viridis", 1 - n / height));
    context.fillRect(x, top + n, 9, 1.5);
  }
  context.fillStyle = ink("quiet");
  context.textAlign = "left";
  context.textBaseline = "top";
  context.fillText(high, x + 13, top);
  context.textBaseline = "bottom";
  context.fillText(low, x + 13, bottom);
  context.save();
  context.translate(x + 19, (top + bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, 0, 0);
  context.restore();
}
