"""Whether the scores of a run are still those that the bundle or the calibration knows.

Scores are the logits of ``hit_probability`` in fixed bins. The share of hits says nothing about
the instrument, nor does how bright the crystals are: only frames below the threshold are
compared, and they are explained as well as a mixture of the reference's empty frames and its faint
hits can. What is left is the drift: the Jensen-Shannon divergence (J. Lin, IEEE Trans. Inf. Theory
37, 1991, 145) of the run from that mixture, in bits: 0 the same, 1 nothing in common.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST_LOGIT, LOGIT_STEP = 8.0, 0.5
_EDGES = np.arange(-LARGEST_LOGIT, LARGEST_LOGIT + LOGIT_STEP / 2, LOGIT_STEP)
SCORE_BINS = len(_EDGES) + 1
"""From -8 to 8 in steps of a half, and one bin at each end for what lies beyond."""

FEWEST_FRAMES = 300
"""Fewer frames below the threshold, in the run or in the reference, would alarm by chance."""

ALARM_RATIO = 0.05
"""Chance reaches this in far fewer than 1 % of windows of ``FEWEST_FRAMES`` frames or more."""

_STEPS = 40
_SMALLEST = 5e-7


@dataclass(frozen=True, slots=True)
class ScoreReference:
    """Histograms (``SCORE_BINS``,) of scores of frames without and, where known, with a crystal.

    Raises ``ValueError`` for histograms of another length or with negative counts.
    """

    empties: tuple[int, ...]
    hits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, counts in (("empties", self.empties), ("hits", self.hits)):
            if counts and (len(counts) != SCORE_BINS or min(counts) < 0):
                raise ValueError(
                    f"score histogram of {name}: {len(counts)} values, expected {SCORE_BINS} counts of 0 or more"
                )


@dataclass(frozen=True, slots=True)
class Drift:
    """``divergence`` in bits, and the share of ``faint_hits`` among the frames below the threshold."""

    divergence: float
    faint_hits: float


def score_histogram(probabilities: npt.ArrayLike) -> list[int]:
    """Calibrated probabilities (N,) as counts (``SCORE_BINS``,) of their logits."""
    p = np.clip(np.asarray(probabilities, np.float64), _SMALLEST, 1 - _SMALLEST)
    places = np.searchsorted(_EDGES, np.log(p / (1 - p)), side="right")
    counts: list[int] = np.bincount(places, minlength=SCORE_BINS).tolist()
    return counts


def score_bin_edges() -> list[float]:
    """The inner edges of the bins (``SCORE_BINS`` - 1,), logits."""
    edges: list[float] = _EDGES.tolist()
    return edges


def share_above(counts: npt.ArrayLike, threshold: float) -> tuple[int, int]:
    """(frames in bins that reach above a threshold probability, all frames) of a histogram."""
    whole = np.asarray(counts, np.int64)
    return int(whole[_bins_below(threshold) :].sum()), int(whole.sum())


def score_drift(observed: npt.ArrayLike, reference: ScoreReference, threshold: float) -> Drift | None:
    """Drift of a histogram (``SCORE_BINS``,) from a reference; ``None`` where either has too few frames."""
    below = _bins_below(threshold)
    run = np.asarray(observed, np.float64)[:below]
    empties = np.asarray(reference.empties, np.float64)[:below]
    hits = np.asarray(reference.hits, np.float64)[:below]
    if run.sum() < FEWEST_FRAMES or empties.sum() < FEWEST_FRAMES:
        return None
    empty_share = empties / empties.sum()
    hit_share = hits / hits.sum() if hits.sum() >= FEWEST_FRAMES else empty_share
    faint = _mixture(run, empty_share, hit_share)
    return Drift(_divergence(run / run.sum(), (1 - faint) * empty_share + faint * hit_share), faint)


def _bins_below(threshold: float) -> int:
    """How many bins lie wholly below a threshold."""
    p = min(max(threshold, _SMALLEST), 1 - _SMALLEST)
    return int(np.searchsorted(_EDGES, math.log(p / (1 - p)), side="right"))


def _mixture(run: npt.NDArray[np.float64], empties: npt.NDArray[np.float64], hits: npt.NDArray[np.float64]) -> float:
    """The share of hits under which the run is likeliest; the likelihood is concave in it."""
    # Half a frame spread over the bins, so that a bin the reference never met is unlikely, not impossible.
    spread = 0.5 / len(run) / FEWEST_FRAMES
    empties, difference = empties + spread, hits - empties
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        rising = (run * difference / (empties + middle * difference)).sum() > 0
        low, high = (middle, high) if rising else (low, middle)
    return (low + high) / 2


def _divergence(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    mean = (one + other) / 2
    parts = [np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / np.where(mean > 0, mean, 1)), 0) for p in (one, other)]
    return max(0.0, float(sum(part.sum() for part in parts)) / 2)
