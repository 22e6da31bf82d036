// What is drawn over a detector image: peaks, resolution rings, the beam. Pixel indices are 0 in the middle of a pixel.

import { centre, rings } from "./resolution.js";

function haloed(context, halo, width, stroke) {
  context.strokeStyle = halo;
  context.lineWidth = width + 2;
  context.stroke();
  context.strokeStyle = stroke;
  context.lineWidth = width;
  context.stroke();
}

function label(context, text, x, y, marks) {
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "center";
  context.lineWidth = 3;
  context.strokeStyle = marks.halo;
  context.strokeText(text, x, y);
  context.fillStyle = marks.ring;
  context.fillText(text, x, y);
}

// Circles round peaks; squares round saturated ones.
export function drawPeaks(context, transform, peaks, marks) {
  const radius = Math.max(5.5, 3.2 * transform.scale);
  const outline = (wanted, shape, colour, width) => {
    context.beginPath();
    for (const [fs, ss, , , saturated] of peaks) {
      if (Boolean(saturated) !== wanted) continue;
      const [x, y] = transform.toScreen(fs + 0.5, ss + 0.5);
      shape(x, y);
    }
    haloed(context, marks.halo, width, colour);
  };
  outline(false, (x, y) => { context.moveTo(x + radius, y); context.arc(x, y, radius, 0, 2 * Math.PI); }, marks.peak, 1.3);
  outline(true, (x, y) => context.rect(x - radius, y - radius, 2 * radius, 2 * radius), marks.saturated, 2);
}

// `given`: rings that the server worked out for panels, as lines of [fs, ss]; without them a flat detector's.
export function drawRings(context, transform, geometry, given, marks) {
  const beam = centre(geometry);
  context.setLineDash([7, 4]);
  if (given) {
    for (const ring of given) {
      context.beginPath();
      for (const line of ring.lines) line.forEach(([fs, ss], n) => {
        const [x, y] = transform.toScreen(fs + 0.5, ss + 0.5);
        if (n) context.lineTo(x, y); else context.moveTo(x, y);
      });
      haloed(context, marks.halo, 1, marks.ring);
    }
    context.setLineDash([]);
    for (const ring of given) {
      const longest = ring.lines.reduce((one, other) => (other.length > one.length ? other : one));
      const [fs, ss] = longest[Math.floor(longest.length / (ring.lines.length > 1 ? 2 : 8))];
      label(context, `${ring.d_angstrom} Å`, ...transform.toScreen(fs + 0.5, ss + 0.5), marks);
    }
  } else if (beam) {
    const [rows, columns] = transform.shape, [x, y] = transform.toScreen(beam[0] + 0.5, beam[1] + 0.5);
    const farthest = Math.max(...[0, rows].flatMap(ss => [0, columns].map(fs => Math.hypot(fs - beam[0], ss - beam[1]))));
    const found = rings(geometry, farthest, 55 / transform.scale);
    for (const ring of found) {
      context.beginPath();
      context.arc(x, y, ring.radius * transform.scale, 0, 2 * Math.PI);
      haloed(context, marks.halo, 1, marks.ring);
    }
    context.setLineDash([]);
    for (const ring of found) {
      const at = seenAngle(transform.size, x, y, ring.radius * transform.scale);
      if (at != null) label(context, `${ring.d} Å`, x + ring.radius * transform.scale * Math.cos(at), y + ring.radius * transform.scale * Math.sin(at), marks);
    }
  }
  context.setLineDash([]);
  if (beam) drawBeam(context, ...transform.toScreen(beam[0] + 0.5, beam[1] + 0.5), marks);
}

// An angle at which a circle's label is well inside the canvas, or null.
function seenAngle([width, height], x, y, radius) {
  for (let n = 0; n < 48; n++) {
    const angle = Math.PI / 4 + n * 2 * Math.PI / 48, atX = x + radius * Math.cos(angle), atY = y + radius * Math.sin(angle);
    if (atX > 18 && atX < width - 18 && atY > 10 && atY < height - 10) return angle;
  }
  return null;
}

function drawBeam(context, x, y, marks) {
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(x + 3 * dx, y + 3 * dy);
    context.lineTo(x + 10 * dx, y + 10 * dy);
  }
  haloed(context, marks.halo, 1.5, marks.ring);
}

// The place that the keyboard reads out.
export function drawReticle(context, [width, height], marks) {
  context.beginPath();
  context.rect(width / 2 - 4, height / 2 - 4, 8, 8);
  haloed(context, marks.halo, 1, marks.peak);
}
