"""A classical finder as a peer: frames are hits from so many peaks, the number that is best on these very frames."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.evaluation.metrics import Estimate, Ranking, Sample, best_balanced, interval

MOST_PEAKS = 60
"""No larger threshold is tried."""


@dataclass(frozen=True, slots=True, eq=False)
class Peer:
    """Another program on the same frames of all series: peaks a frame (N,), NaN where it did not run; or why not."""

    name: str
    peak_counts: npt.NDArray[np.float64]
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Tuned:
    """Balanced accuracy at the threshold that is best on the set it is measured on, and that threshold."""

    balanced: Estimate
    least_peaks: int


def tuned(sample: Sample) -> Tuned:
    """The best threshold on a sample whose scores are peak counts; a draw of the bootstrap tunes its own."""
    capped = Sample(sample.positive, np.minimum(sample.score, MOST_PEAKS), sample.group)
    ranking = Ranking(capped)
    whole = ranking.curve(np.ones(len(capped.score)))
    gain = whole.recall - whole.false_rate
    thresholds = np.concatenate([[np.inf], np.unique(capped.score)[::-1]])
    least = float(thresholds[int(np.argmax(gain))])
    low, high = interval(capped, lambda weight: best_balanced(ranking.curve(weight)))
    balanced = Estimate(best_balanced(whole), low, high, "threshold tuned on this set")
    return Tuned(balanced, 0 if np.isinf(least) else int(least))
