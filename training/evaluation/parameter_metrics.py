"""Photon energy and camera length against the truth: error, how often they are stated, what their intervals cover."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.evaluation.metrics import Estimate, wilson_share

Array = npt.NDArray[np.float64]

NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class ParameterError:
    """Of so many frames the quantity was stated in some; rms and bias of what was stated, and the share of its 95 %
    intervals that hold the truth (with Wilson's interval)."""

    frames: int
    stated: int
    rms: float | None
    bias: float | None
    coverage: Estimate | None


def parameter_error(estimate: Array, sigma: Array, truth: Array) -> ParameterError:
    """Errors of N frames; NaN in estimate where nothing was stated."""
    stated = np.isfinite(estimate) & np.isfinite(sigma)
    count = int(stated.sum())
    if not count:
        return ParameterError(len(estimate), 0, None, None, None)
    error = estimate[stated] - truth[stated]
    inside = np.abs(error) <= NORMAL_95 * sigma[stated]
    share = float(inside.mean())
    coverage = Estimate(share, *wilson_share(share, count), f"{int(inside.sum())} of {count}")
    return ParameterError(len(estimate), count, float(np.sqrt(np.mean(error**2))), float(error.mean()), coverage)


def as_array(values: list[float | None]) -> npt.NDArray[np.float64]:
    """Numbers, NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float64)
