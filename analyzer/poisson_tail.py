"""Exact tails of the Poisson distribution, as a table that a device can look up."""

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaincinv

_COUNTS = 1 << 14


@functools.lru_cache(maxsize=16)
def _means_of(chance: float) -> npt.NDArray[np.float64]:
    means: npt.NDArray[np.float64] = gammaincinv(np.arange(1, _COUNTS + 1, dtype=np.float64), chance)
    return means


class TailTable:
    """The smallest count n with P(N >= n; mean) <= ``chance``, for any mean.

    P(N >= n; mean) is the regularised incomplete gamma function P(n, mean), so that its inverse gives
    the mean up to which each n is improbable enough: one sorted list, searched for every mean. Means beyond the
    list, 15,000 and more, take the normal distribution.
    """

    def __init__(self, chance: float, device: torch.device) -> None:
        if not 0.0 < chance < 0.5:
            raise ValueError(f"chance {chance:g} of a tail: give one above 0 and below 0.5")
        self._means = torch.from_numpy(_means_of(chance)).to(device)
        self._sigmas = -float(torch.special.ndtri(torch.tensor(chance, dtype=torch.float64)))

    def least(self, mean: torch.Tensor) -> torch.Tensor:
        """The count for each mean, float64 of any shape; at least 1."""
        listed = torch.searchsorted(self._means, mean.contiguous()) + 1.0
        beyond = torch.ceil(mean + self._sigmas * mean.clamp_min(0.0).sqrt())
        return torch.where(listed <= _COUNTS, listed.double(), beyond)


def normal_tail(sigmas: float) -> float:
    """The chance that a normal variate lies so many standard deviations or more above its mean."""
    return 0.5 * math.erfc(sigmas / math.sqrt(2.0))
