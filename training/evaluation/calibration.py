"""Whether a probability means what it says: reliability, expected calibration error, other shares of hits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.prior import at_prior

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

BINS = 15
HIT_FRACTIONS = (0.5, 0.1, 0.01)


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Bins of equal weight in order of probability: weight, mean probability said, share of hits found, (bins,)."""

    weight: Array
    said: Array
    found: Array

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of what was said from what was found."""
        return float(self.weight @ np.abs(self.said - self.found) / self.weight.sum())


def reliability(probability: Array, positive: Flags, weight: Array | None = None, bins: int = BINS) -> Reliability:
    """Bins that each hold the same weight, frames of equal probability in one bin."""
    weight = np.ones(len(probability)) if weight is None else weight
    order = np.argsort(probability, kind="stable")
    p, y, w = probability[order], positive[order].astype(np.float64), weight[order]
    _, same = np.unique(p, return_inverse=True)
    total = np.bincount(same, w)
    # Of each distinct probability, the bin in which the middle of its weight falls.
    middle = (np.cumsum(total) - total / 2.0) / total.sum()
    bin_of = np.minimum((middle * bins).astype(np.int64), bins - 1)[same]
    weights, said, found = (np.bincount(bin_of, values, bins).astype(np.float64) for values in (w, w * p, w * y))
    some = weights > 0.0
    return Reliability(weights[some], said[some] / weights[some], found[some] / weights[some])


def at_fraction(probability: Array, positive: Flags, prior: float, fraction: float) -> Reliability:
    """Reliability after correction of the prior, the two classes weighted to that share of hits."""
    hits = float(positive.sum())
    weight = np.where(positive, fraction / hits, (1.0 - fraction) / (len(positive) - hits))
    return reliability(at_prior(probability, prior, fraction), positive, weight)


def chance_error(probability: Array, seed: int = 0, draws: int = 40) -> float:
    """The error that this many frames show on average if every probability is exactly right."""
    rng = np.random.default_rng(seed)
    return float(
        np.mean([reliability(probability, rng.random(len(probability)) < probability).error for _ in range(draws)])
    )
