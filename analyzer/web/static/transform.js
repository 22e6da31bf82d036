// Where the detector lies on the canvas: pan and zoom. Detector coordinates count from the corner of the first pixel.

const MOST_ZOOM = 60, MARGIN = 1.1;

export class Transform {
  constructor() {
    this.shape = null;
    this.size = [0, 0];
    this.fitted = true;
    this.scale = 1;
    this.left = this.top = 0;
  }

  // The canvas' size in CSS pixels and the detector's [ss, fs]; a fitted view stays fitted. Whether another part is seen.
  place(width, height, shape) {
    const [rows, columns] = shape, wasFitted = this.fitted, changed = !this.shape || this.shape[0] !== rows || this.shape[1] !== columns;
    this.shape = [rows, columns];
    this.size = [width, height];
    if (this.fitted || changed) this.fit();
    return this.fitted !== wasFitted;
  }

  get whole() {
    return Math.min(this.size[0] / this.shape[1], this.size[1] / this.shape[0]);
  }

  fit() {
    this.fitted = true;
    this.scale = this.whole;
    this.left = (this.size[0] - this.scale * this.shape[1]) / 2;
    this.top = (this.size[1] - this.scale * this.shape[0]) / 2;
  }

  toScreen(x, y) {
    return [this.left + this.scale * x, this.top + this.scale * y];
  }

  toDetector(x, y) {
    return [(x - this.left) / this.scale, (y - this.top) / this.scale];
  }

  // Zoom with a place of the canvas standing still.
  zoom(factor, x = this.size[0] / 2, y = this.size[1] / 2) {
    const [atX, atY] = this.toDetector(x, y);
    this.scale = Math.min(MOST_ZOOM, this.scale * factor);
    if (this.scale <= this.whole * 1.001) return this.fit();
    this.fitted = false;
    this.left = x - this.scale * atX;
    this.top = y - this.scale * atY;
    this.hold();
  }

  pan(dx, dy) {
    if (this.fitted) return;
    this.left += dx;
    this.top += dy;
    this.hold();
  }

  // Some of the detector stays in the middle of the canvas.
  hold() {
    const [width, height] = this.size, [rows, columns] = this.shape;
    this.left = Math.min(width / 2, Math.max(width / 2 - this.scale * columns, this.left));
    this.top = Math.min(height / 2, Math.max(height / 2 - this.scale * rows, this.top));
  }

  // The part of the detector that is seen, a little more of it for panning: [fs0, ss0, width, height], or null for all.
  get region() {
    if (this.fitted) return null;
    const [rows, columns] = this.shape, [width, height] = this.size;
    const extent = (start, size, most) => {
      const from = -start / this.scale, seen = size / this.scale, more = (MARGIN - 1) / 2 * seen;
      const low = Math.max(0, Math.floor(from - more)), high = Math.min(most, Math.ceil(from + seen + more));
      return [low, Math.max(1, high - low)];
    };
    const [fs, wide] = extent(this.left, width, columns), [ss, high] = extent(this.top, height, rows);
    return fs === 0 && ss === 0 && wide === columns && high === rows ? null : [fs, ss, wide, high];
  }
}
