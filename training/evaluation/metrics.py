"""Figures of a score that is to tell hits from empties, with intervals that count crystals rather than frames.

Frames of one crystal show the same pattern under other noise: they are found or missed together. So intervals come
from a bootstrap that draws groups (crystals among hits, single frames among empties), never frames within a group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.intervals import wilson

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

DRAWS = 500
COVERAGE = 0.95
_LEAST_GROUPS = 5
"""Of fewer groups a bootstrap says nothing."""

_ALIKE = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, where it has one, and what is to be known of it."""

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.value:.4g}" if self.low is None else f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"
        return f"{text}, {self.note}" if self.note else text


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """N frames that a score was given to: positive (N,), score (N,), group (N,) int from 0, called (N,) or None."""

    positive: Flags
    score: Array
    group: npt.NDArray[np.int64]
    called: Flags | None = None

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.positive, self.score, self.group)}
        if len(shapes) > 1 or not np.isfinite(self.score).all():
            raise ValueError("a sample needs one finite score, one truth and one group a frame")

    @property
    def both(self) -> bool:
        """Whether there are hits and empties."""
        return bool(self.positive.any() and not self.positive.all())

    def where(self, chosen: Flags) -> "Sample":
        """These frames alone."""
        called = None if self.called is None else self.called[chosen]
        return Sample(self.positive[chosen], self.score[chosen], self.group[chosen], called)


def number_groups(names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Groups by name as numbers from 0."""
    return np.unique(np.array(names, dtype=object), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Weight of hits and of empties at each value of a score, the largest first."""

    hits: Array
    empties: Array

    @property
    def false_rate(self) -> Array:
        """(k + 1,) share of empties called hits with the threshold ever lower."""
        return _cumulative(self.empties)

    @property
    def recall(self) -> Array:
        """(k + 1,) share of hits found there."""
        return _cumulative(self.hits)


def _cumulative(weight: Array) -> Array:
    total = np.concatenate([[0.0], np.cumsum(weight)])
    share: Array = total / total[-1]
    return share


class Ranking:
    """The order of a sample's scores, kept for all draws of a bootstrap."""

    def __init__(self, sample: Sample) -> None:
        values, self._place = np.unique(-sample.score, return_inverse=True)
        self._count, self._positive = len(values), sample.positive

    def curve(self, weight: Array) -> Curve:
        """The curve with frames of these weights (N,)."""
        sides = (weight * self._positive, weight * ~self._positive)
        hits, empties = (np.bincount(self._place, each, self._count).astype(np.float64) for each in sides)
        return Curve(hits, empties)


def area(curve: Curve) -> float:
    """Probability that a hit scores above an empty, ties counting half (Mann and Whitney)."""
    empties = curve.empties / curve.empties.sum()
    below = 1.0 - np.cumsum(empties) + empties / 2.0
    return float(curve.hits @ below / curve.hits.sum())


def recall_at(curve: Curve, false_rate: float) -> float:
    """Recall at the lowest threshold that calls at most this share of empties hits."""
    allowed = np.flatnonzero(curve.false_rate <= false_rate + 1e-12)
    return float(curve.recall[allowed[-1]])


def best_balanced(curve: Curve) -> float:
    """Balanced accuracy at the threshold that is best on these very frames, hence flattering."""
    return float(np.max(1.0 + curve.recall - curve.false_rate) / 2.0)


def draws(sample: Sample, count: int = DRAWS, seed: int = 0) -> Iterator[Array]:
    """Weights (N,) of frames when groups of hits and groups of empties are drawn anew, with replacement."""
    rng = np.random.default_rng(seed)
    sides = [np.unique(sample.group[chosen]) for chosen in (sample.positive, ~sample.positive)]
    size = int(sample.group.max(initial=-1)) + 1
    for _ in range(count):
        drawn = [groups[rng.integers(len(groups), size=len(groups))] if len(groups) else groups for groups in sides]
        hits, empties = (np.bincount(groups, minlength=size).astype(np.float64) for groups in drawn)
        yield np.where(sample.positive, hits[sample.group], empties[sample.group])


def interval(sample: Sample, statistic: Callable[[Array], float]) -> tuple[float | None, float | None]:
    """Bootstrap interval of a statistic of the frames' weights; None where it says nothing.

    That is with too few groups, and where all draws are alike, as when every crystal was found.
    """
    if min(_groups(sample, side) for side in (True, False)) < _LEAST_GROUPS:
        return None, None
    found = np.array([statistic(weight) for weight in draws(sample)])
    if np.ptp(found) < _ALIKE:
        return None, None
    edge = (1.0 - COVERAGE) / 2.0
    return float(np.quantile(found, edge)), float(np.quantile(found, 1.0 - edge))


def _groups(sample: Sample, positive: bool) -> int:
    return len(np.unique(sample.group[sample.positive == positive]))


def of_curve(sample: Sample, statistic: Callable[[Curve], float], note: str = "") -> Estimate:
    """A figure of the curve with its interval."""
    ranking = Ranking(sample)
    value = statistic(ranking.curve(np.ones(len(sample.score))))
    return Estimate(value, *interval(sample, lambda weight: statistic(ranking.curve(weight))), note)


def area_difference(one: Sample, other: Sample) -> Estimate:
    """How much larger the area of `one` is than that of `other`, two scores of the same frames in the same draws."""
    rankings = Ranking(one), Ranking(other)

    def statistic(weight: Array) -> float:
        first, second = (area(ranking.curve(weight)) for ranking in rankings)
        return first - second

    return Estimate(statistic(np.ones(len(one.score))), *interval(one, statistic))


def recall_estimate(sample: Sample, false_rate: float) -> Estimate:
    """Recall at a share of false hits; with too few empties to show that share, at none."""
    empties = int((~sample.positive).sum())
    note = "" if empties * false_rate >= 1.0 else f"at none of {empties} empties, too few for that share"
    return of_curve(sample, lambda curve: recall_at(curve, false_rate), note)


def rate(called: Flags, group: npt.NDArray[np.int64]) -> Estimate:
    """Share of frames called hits. Its interval is Wilson's, for as many trials as there are groups."""
    count, groups = len(called), len(np.unique(group))
    if not count:
        return Estimate(float("nan"), 0.0, 1.0, "no such frame")
    share = float(called.mean())
    low, high = wilson_share(share, groups)
    return Estimate(share, low, high, f"{int(called.sum())} of {count}")


def wilson_share(share: float, trials: int) -> tuple[float, float]:
    """Wilson's interval of a share; where frames outnumber their groups the successes are no whole number."""
    low = wilson(int(np.floor(share * trials + 1e-9)), trials)[0]
    return low, wilson(int(np.ceil(share * trials - 1e-9)), trials)[1]


def balanced_estimate(sample: Sample) -> Estimate:
    """Balanced accuracy of what was called hits."""
    assert sample.called is not None
    called, positive = sample.called, sample.positive

    def statistic(weight: Array) -> float:
        hits, empties = weight * positive, weight * ~positive
        return float((hits @ called / hits.sum() + 1.0 - empties @ called / empties.sum()) / 2.0)

    return Estimate(statistic(np.ones(len(positive))), *interval(sample, statistic))
