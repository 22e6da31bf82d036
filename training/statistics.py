"""Small statistics of classifiers, with intervals."""

import math

import numpy as np
import numpy.typing as npt


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def area_under_curve(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float | None:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return None
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    values, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    del values
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def confusion(said: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Counts of a two-class decision against the truth."""
    return {
        "hits_found": int((said & true).sum()),
        "hits_missed": int((~said & true).sum()),
        "empties_called_hit": int((said & ~true).sum()),
        "empties_passed": int((~said & ~true).sum()),
    }
