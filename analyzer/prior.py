"""Hit probabilities at another prior, and the prior itself from the scores of a run.

A record's ``hit_probability`` p holds where the bundle's stated prior π is the share of frames
with a crystal. What the frame itself says is the likelihood ratio

    L = p / (1 - p) * (1 - π) / π,

and where crystals are in a share π' of the frames the probability is π' L / (π' L + 1 - π')
(Bayes). π' is found from the same scores as the one under which they are most likely: the
expectation maximisation of Saerens, Latinne and Decaestecker (Neural Computation 14, 2002,
21-41) climbs to the maximum of

    l(π') = sum ln(1 + π' (L - 1)),

which is concave, so that bisection of its slope finds the same maximum in fewer steps and tells
its interval too. All of it feeds metrics and reports; a record keeps the bundle's prior.
"""

import numpy as np
import numpy.typing as npt

SMALLEST_PROBABILITY = 5e-7
"""Records round to six decimals: a probability of 0 or 1 is one that lies within half a step of it."""

FEWEST_FRAMES = 20
"""Fewer scores tell no hit fraction."""

LEAST_FRACTION = 1e-4
"""An estimated hit fraction stays this far from 0 and from 1: at 0 no later frame could ever be a hit."""

_STEPS = 50
_HALF_CHI_SQUARED_95 = 1.92

Scores = npt.NDArray[np.float64]


def likelihood_ratios(probabilities: npt.ArrayLike, prior: float) -> Scores:
    """How much likelier each frame is with a crystal than without, from probabilities at ``prior``."""
    p = np.clip(np.asarray(probabilities, np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return p / (1 - p) * ((1 - prior) / prior)


def at_prior(probabilities: npt.ArrayLike, prior: float, new_prior: float) -> Scores:
    """The probabilities where crystals are in a share ``new_prior`` of the frames instead of ``prior``."""
    ratios = likelihood_ratios(probabilities, prior)
    return new_prior * ratios / (new_prior * ratios + 1 - new_prior)


def hit_fraction(probabilities: npt.ArrayLike, prior: float) -> tuple[float, float, float] | None:
    """Share of frames with a crystal: (estimate, low, high), the bounds of 95 % by profile likelihood.

    As good as the calibration of the probabilities, which are at ``prior``. It counts what is too
    faint to be called a hit, too. ``None`` for fewer than ``FEWEST_FRAMES``.
    """
    excess = likelihood_ratios(probabilities, prior) - 1
    if len(excess) < FEWEST_FRAMES:
        return None

    def log_likelihood(fraction: float) -> float:
        return float(np.log1p(fraction * excess).sum())

    bottom, top = LEAST_FRACTION, 1 - LEAST_FRACTION
    low, high = bottom, top
    for _ in range(_STEPS):
        middle = (low + high) / 2
        rising = (excess / (1 + middle * excess)).sum() > 0
        low, high = (middle, high) if rising else (low, middle)
    best = (low + high) / 2
    floor = log_likelihood(best) - _HALF_CHI_SQUARED_95

    def bound(edge: float) -> float:
        """Where the likelihood falls to the floor between the maximum and an edge; the edge if nowhere."""
        if log_likelihood(edge) >= floor:
            return edge
        inside, outside = best, edge
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if log_likelihood(middle) >= floor else (inside, middle)
        return inside

    return best, bound(bottom), bound(top)


def at_running_rate(probabilities: npt.ArrayLike, prior: float, window: int = 1000) -> Scores:
    """Probabilities of a run in its order, each at the hit fraction of the latest ``window`` frames.

    The fraction is estimated anew every fiftieth of a window, with the frames up to there; below
    ``FEWEST_FRAMES`` it is the bundle's prior.
    """
    p = np.asarray(probabilities, np.float64)
    every = max(1, window // 50)
    out = np.empty(len(p))
    for start in range(0, len(p), every):
        stop = min(start + every, len(p))
        found = hit_fraction(p[max(0, stop - window) : stop], prior)
        out[start:stop] = at_prior(p[start:stop], prior, found[0] if found else prior)
    return out


def expected_calibration_error(probabilities: npt.ArrayLike, hits: npt.ArrayLike, bins: int = 15) -> float:
    """Mean distance of stated probability and true share of hits, over bins of equal width.

    ``probabilities`` and ``hits`` (N,). Naeini, Cooper and Hauskrecht 2015; each bin weighs as
    many frames as it holds. 0 for no frame.
    """
    p, truth = np.asarray(probabilities, np.float64), np.asarray(hits, np.float64)
    if not len(p):
        return 0.0
    bin_of = np.minimum((p * bins).astype(np.intp), bins - 1)
    stated, found = (np.bincount(bin_of, weights, minlength=bins) for weights in (p, truth))
    return float(np.abs(stated - found).sum() / len(p))
