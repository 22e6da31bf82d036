"""Whether a new bundle is worse than the one it comes from, on the same frames.

The rule. On each set of frames (simulated shots that neither was trained on; the real frames kept for validation) two
figures are taken of both: the area under the curve, and the recall at `FALSE_HITS` of the empties called hits, each
bundle at the threshold of its own that gives them. A paired bootstrap draws crystals among the hits and frames (of
simulated shots: groups) among the empties with replacement, 500 times, and takes new minus old of the same draw. The
new bundle is refused when the 95 % interval of any of these differences lies wholly below zero. Equal bundles differ by
zero in every draw and pass. With four figures, a bundle that is no worse is refused in up to a tenth of the cases.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.metrics import COVERAGE, Curve, Ranking, Sample, area, draws, recall_at

FALSE_HITS = 0.005
_LOWEST = -1e9
"""Score of a frame for which a network gives no number."""

_ROUNDING = 1e-9

_FIGURES: dict[str, Callable[[Curve], float]] = {
    "AUC": area,
    f"recall at {FALSE_HITS:.1%} false hits": lambda curve: recall_at(curve, FALSE_HITS),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of both bundles on a set, and the interval of the difference new minus old."""

    frames: str
    figure: str
    old: float
    new: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        return self.high < -_ROUNDING

    def row(self) -> dict[str, Any]:
        """For a table or a card."""
        return {**asdict(self), "verdict": "worse" if self.worse else "passed"}

    def __str__(self) -> str:
        return (
            f"{self.figure} on {self.frames} {self.old:.4f} before, {self.new:.4f} after "
            f"(difference {self.low:.4f} to {self.high:.4f})"
        )


def compare(
    frames: str,
    hit: npt.NDArray[np.bool_],
    group: npt.NDArray[np.int64],
    old: npt.NDArray[np.float64],
    new: npt.NDArray[np.float64],
) -> list[Compared]:
    """Both bundles' scores (N,) of the same frames compared.

    group (N,): frames of a group are drawn together. Raises ValueError without hits or without empties.
    """
    samples = [Sample(hit, np.nan_to_num(score, nan=_LOWEST), group) for score in (old, new)]
    if not samples[0].both:
        raise ValueError(f"{frames}: a comparison needs hits and empties")
    rankings = [Ranking(sample) for sample in samples]

    def figures(weight: npt.NDArray[np.float64]) -> list[list[float]]:
        curves = [ranking.curve(weight) for ranking in rankings]
        return [[figure(curve) for curve in curves] for figure in _FIGURES.values()]

    values = np.array([figures(np.ones(len(hit))), *map(figures, draws(samples[0]))])
    edge = (1.0 - COVERAGE) / 2.0
    lows, highs = np.quantile(values[1:, :, 1] - values[1:, :, 0], (edge, 1.0 - edge), axis=0)
    return [Compared(frames, name, *map(float, (*values[0, n], lows[n], highs[n]))) for n, name in enumerate(_FIGURES)]
