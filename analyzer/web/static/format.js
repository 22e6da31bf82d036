// Numbers as people read them: units, digits, times.

const THIN = "\u202f";

// Whole numbers in groups of three; others as they are where `exact`.
export const count = (value, exact = false) =>
  value == null ? "–" : exact && !Number.isInteger(value) ? String(value) : String(Math.round(value)).replace(/\B(?=(\d{3})+(?!\d))/g, THIN);

export const compact = value =>
  value >= 1e6 ? `${(value / 1e6).toPrecision(2)}M` : value >= 1e4 ? `${Math.round(value / 1e3)}k` : String(value);

export const percent = (ratio, digits = 1) => (ratio == null ? "–" : `${(100 * ratio).toFixed(digits)} %`);

export function rate(hertz) {
  if (hertz == null) return "–";
  return hertz >= 100 ? count(hertz) : hertz.toFixed(hertz >= 10 ? 1 : 2);
}

export function milliseconds(seconds) {
  if (seconds == null) return "–";
  return seconds >= 10 ? `${seconds.toFixed(0)} s` : seconds >= 1 ? `${seconds.toFixed(1)} s` : `${(1e3 * seconds).toFixed(0)} ms`;
}

// A duration as h:mm, short ones in words.
export function left(seconds) {
  if (seconds == null || !isFinite(seconds)) return "–";
  if (seconds < 60) return "< 1 min";
  const minutes = Math.ceil(seconds / 60);
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")} h`;
}

// Unix seconds as local time of day, or with the date where it is not of today.
export function clock(time, withSeconds = true) {
  const date = new Date(1e3 * time), two = value => String(value).padStart(2, "0");
  const day = date.toDateString() === new Date().toDateString() ? "" : `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} `;
  return `${day}${two(date.getHours())}:${two(date.getMinutes())}${withSeconds ? `:${two(date.getSeconds())}` : ""}`;
}

// Two significant digits of the uncertainty: how many behind the point.
const digitsOf = (sigma, least) =>
  sigma > 0 ? Math.min(6, Math.max(least, 1 - Math.floor(Math.log10(sigma)))) : least;

// A value with its standard deviation: [number, unit].
export function withSigma(value, sigma, unit, least = 0) {
  if (value == null) return ["not determined", ""];
  if (sigma == null) return [value.toFixed(least), unit];
  const digits = digitsOf(sigma, least);
  return [`${value.toFixed(digits)} ± ${sigma.toFixed(digits)}`, unit];
}

// Round numbers between two ends, at most so many steps.
export function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= raw * (1 - 1e-9));
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(+(n * step).toPrecision(6));
  return found;
}
