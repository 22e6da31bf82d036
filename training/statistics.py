"""Small statistics of classifiers."""

import numpy as np
import numpy.typing as npt


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


def recall_at(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_], false_rate: float) -> float:
    """Share of the positives above the score that this share of the negatives exceeds; NaN when either is absent."""
    if positive.all() or not positive.any():
        return float("nan")
    threshold = np.quantile(scores[~positive], 1.0 - false_rate, method="higher")
    return float((scores[positive] > threshold).mean())
