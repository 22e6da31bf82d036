"""The share of frames with a crystal behind what was called a hit, with its interval."""

import math

import numpy as np
import numpy.typing as npt

from analyzer.calibration import OperatingPoint, Rate
from analyzer.intervals import wilson
from analyzer.prior import FEWEST_FRAMES, hit_fraction

PERFECT_RECALL = Rate(1.0, 1.0, 1.0)
_STEPS = 40
_RARE = (0.0, 0.0513, 0.3554, 0.8177)
"""The 5 % quantile of the mean behind 1, 2, 3 Poisson counts: half of chi-squared's with 2, 4, 6 degrees of freedom."""


def corrected_ratio(hits: int, counted: int, false_hits: Rate, recall: Rate = PERFECT_RECALL) -> dict[str, float]:
    """The share of frames with a crystal behind an observed hit ratio, with its interval of 95 %.

    With f the share of frames without a crystal that are called hits and r that of frames with one,
    the observed ratio is p = h r + (1 - h) f, so that h = (p - f) / (r - f). The interval holds
    every h that p - (1 - h) f - h r = 0 does not rule out; the interval of that sum recovers
    each term's variance from the term's own interval (MOVER: Zou and Donner, Statistics in
    Medicine 27, 2008, 1693), Wilson's for p, modified where hits or misses are rare. A recall
    of 1 makes it the share of frames that can be found. A false-hit rate that ``spans`` may lie anywhere in
    its interval: the bounds are then those under its highest and its lowest value.
    """
    if false_hits.spans:
        f, low, high = false_hits[:3]
        at = [corrected_ratio(hits, counted, Rate(each, each, each), recall) for each in (f, low, high)]
        estimate = at[0]["estimate"]
        return {"estimate": estimate, "low": min(at[2]["low"], estimate), "high": max(at[1]["high"], estimate)}
    p = hits / counted
    p_low, p_high = _wilson_of_rare(hits, counted)
    # Fewer than the false hits alone, or more than all crystals, is chance: no reason to be surer than at that edge.
    possible = min(max(p, false_hits.estimate), max(recall.estimate, false_hits.estimate))

    def reach(h: float, side: int) -> float:
        """How far the sum lies from 0 towards one side, less what chance allows."""
        centre = possible - (1 - h) * false_hits.estimate - h * recall.estimate
        if side > 0:
            parts = (p - p_low, (1 - h) * (false_hits.high - false_hits.estimate), h * (recall.high - recall.estimate))
        else:
            parts = (p_high - p, (1 - h) * (false_hits.estimate - false_hits.low), h * (recall.estimate - recall.low))
        return side * centre - math.hypot(*parts)

    def bound(side: int) -> float:
        """The smallest h (side 1) or largest (side -1) that is not ruled out."""
        out, inside = (0.0, 1.0) if side > 0 else (1.0, 0.0)
        if reach(out, side) <= 0:
            return out
        for _ in range(_STEPS):
            middle = (out + inside) / 2
            out, inside = (middle, inside) if reach(middle, side) > 0 else (out, middle)
        return inside

    spread = recall.estimate - false_hits.estimate
    estimate = min(1.0, max(0.0, (p - false_hits.estimate) / spread)) if spread > 0 else 0.0
    return {"estimate": estimate, "low": min(bound(1), estimate), "high": max(bound(-1), estimate)}


def expected_ratio(scores: npt.NDArray[np.float64], point: OperatingPoint) -> tuple[float, float, float] | None:
    """The share of frames with a crystal, (estimate, low, high), from all their scores; ``None`` for too few frames.

    With a calibration: from how many more frames than in the blank run reach a level that a tenth of
    blank frames does, which asks nothing of the probabilities but their order. Without: the share
    under which the scores are likeliest, which asks that they are calibrated for this beam line.
    """
    if point.blank_level is None or len(scores) < FEWEST_FRAMES:
        return hit_fraction(scores, point.prior)
    level, rate = point.blank_level
    found = corrected_ratio(int((scores >= level).sum()), len(scores), rate)
    return found["estimate"], found["low"], found["high"]


def _wilson_of_rare(hits: int, counted: int) -> tuple[float, float]:
    """Wilson's interval, wider for 1 to 3 hits or misses, where it covers too little (Brown, Cai, DasGupta 2001)."""
    low, high = wilson(hits, counted)
    misses = counted - hits
    if 0 < hits < len(_RARE):
        low = min(low, _RARE[hits] / counted)
    if 0 < misses < len(_RARE):
        high = max(high, 1 - _RARE[misses] / counted)
    return low, high
