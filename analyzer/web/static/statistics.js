// Ratios with their uncertainty.

const Z = 1.96;

// Wilson's 95 % interval of k of n, as shares; null without any.
export function wilson(k, n) {
  if (!(n > 0)) return null;
  const p = k / n, z2 = Z * Z / n;
  const middle = (p + z2 / 2) / (1 + z2), half = Z * Math.sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

// Running sums over the latest `span` seconds, for times that may have gaps.
export function runningSums(times, values, span) {
  const sums = [];
  let sum = 0, from = 0;
  for (let n = 0; n < times.length; n++) {
    sum += values[n];
    while (times[from] <= times[n] - span) sum -= values[from++];
    sums.push(sum);
  }
  return sums;
}

// Ratio in percent and its band for sums of yes and of all: [ratio, low, high], null where there is none.
export function bands(yes, all) {
  const ratio = [], low = [], high = [];
  for (let n = 0; n < all.length; n++) {
    const interval = wilson(yes[n], all[n]);
    ratio.push(interval && 100 * yes[n] / all[n]);
    low.push(interval && 100 * interval[0]);
    high.push(interval && 100 * interval[1]);
  }
  return [ratio, low, high];
}
