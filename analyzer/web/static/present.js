// What time it is where the analysis runs. The browser's clock need not agree with it.

const sinceOpened = () => performance.now() / 1000; // a clock that is never set
let saidAt = null, heardAt = 0;

// A status came that says `time` (Unix s).
export function take(time) {
  [saidAt, heardAt] = [time, sinceOpened()];
}

// Unix seconds by the clock of the analysis, null before it said anything.
export const present = () => (saidAt == null ? null : saidAt + sinceOpened() - heardAt);
