// How old is what is seen. The clocks of the analysis and of the browser need not agree: what counts is how much later
// a message comes than the quickest did.

const DRIFT = 1e-4; // of clocks, seconds a second

export class Age {
  constructor() {
    this.saidAt = this.heardAt = this.least = null;
  }

  // A message that says `saidAt` (s, the analysis' clock), heard at `heardAt` (s, a clock that is never set).
  take(saidAt, heardAt) {
    const late = heardAt - saidAt, setBack = this.saidAt != null && saidAt < this.saidAt;
    this.least = this.least == null || setBack ? late : Math.min(late, this.least + DRIFT * (heardAt - this.heardAt));
    [this.saidAt, this.heardAt] = [saidAt, heardAt];
  }

  // Seconds since the latest message was said, 0 before the first.
  seconds(now) {
    return this.least == null ? 0 : now - this.saidAt - this.least;
  }
}
