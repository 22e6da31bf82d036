"""What a pixel counts when all photons of a pulse arrive at once.

The photons of a femtosecond pulse fall within one dead time of a counting pixel, which sees their summed charge. A
frame sums `pulses` pulses; with Q the charge that a pixel collects in one of them, in units of one photon's:

- integrating: every absorbed photon counts once in its own pixel; the ideal detector.
- one_per_pulse: 1 if Q > threshold, else 0; the usual counting pixel.
- retrigger: 0 if Q <= threshold, else 1 + floor(retrigger_ratio ln(Q / threshold)). This is a model of our own,
  inspired by counters with instant retrigger: the shaper's pulse falls exponentially, and the time it spends over the
  threshold is counted in units of the retrigger dead time; retrigger_ratio is decay time over dead time.

Charge sharing: a photon falls at a uniform place in its pixel and its charge spreads as a Gaussian cloud, so that
pixel and neighbours share it as products of error functions along the two axes, normalised over 3 x 3 pixels. The
charges of all photons of a pulse add before the threshold; what lands outside the panel or in a gap is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtr

__all__ = ["Response", "ResponseWorkspace", "count", "expected_counts", "expected_counts_at"]

MOST_PULSES = 1000
"""Pulses in a frame, at most: a second of a 1 kHz source. It bounds the buffer of three rows of charges a pulse."""

LARGEST_SIGMA_PX = 0.25
"""Wider clouds reach beyond 3 x 3 pixels."""

MEAN_SHARES_ABOVE = 1024
"""A pixel with more photons than this in a pulse gives its neighbours the mean shares.

The error is what the sum of that many shares fluctuates by. For a cloud of 0.107 pixels (8 um in 75 um) 1024 photons
give an edge neighbour a charge of 39.9 +- 3.1 (8 %) and a corner 1.9 +- 0.4 (21 %); it falls as 1/sqrt(photons).
"""


@dataclass(frozen=True, slots=True)
class Response:
    """How the pixels turn absorbed photons into counts; the laws stand in the module's docstring.

    pulses is pulses in a frame, among which a frame's photons are divided evenly at random. threshold is a fraction of
    the photon energy. charge_sigma_m is the standard deviation of the charge cloud where it is collected, 0 for no
    sharing: diffusion over a sensor of thickness d under a bias V gives d sqrt(2 k T / (e V)), 8e-6 m for 450 um of
    silicon at 160 V and 300 K. retrigger_ratio is the shaper's decay time over the retrigger dead time.
    """

    kind: Literal["integrating", "one_per_pulse", "retrigger"] = "integrating"
    pulses: int = 1
    threshold: float = 0.5
    charge_sigma_m: float = 0.0
    retrigger_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("integrating", "one_per_pulse", "retrigger"):
            raise ValueError(f"kind must be integrating, one_per_pulse or retrigger, not '{self.kind}'")
        if not (isinstance(self.pulses, int) and 1 <= self.pulses <= MOST_PULSES):
            raise ValueError(f"pulses must be a whole number from 1 to {MOST_PULSES}, not {self.pulses}")
        if not 0.1 <= self.threshold < 1.0:
            raise ValueError(f"threshold must be at least 0.1 and below 1 photon energy, not {self.threshold}")
        if not 0.0 <= self.charge_sigma_m < math.inf:
            raise ValueError(f"charge_sigma_m must be 0 or more, not {self.charge_sigma_m}")
        if not 0.1 <= self.retrigger_ratio <= 10.0:
            raise ValueError(f"retrigger_ratio must be from 0.1 to 10, not {self.retrigger_ratio}")


class ResponseWorkspace:
    """Buffers kept from frame to frame, one for each thread.

    Three rows of charges a pulse, zero between calls, with the cells touched in them; for `expected_counts_at` one
    panel of float64, zero between calls.
    """

    __slots__ = ("_charge", "_photons", "_touched")

    def __init__(self) -> None:
        self._charge = np.zeros((3, 0), dtype=np.float32)
        self._touched = np.zeros((3, 0), dtype=np.int32)
        self._photons = np.zeros(0)

    def rows(self, cells: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Charges (3, cells or more), and room for the cells touched in each row (3, cells + 1 or more)."""
        if self._charge.shape[1] < cells:
            self._charge = np.zeros((3, cells), dtype=np.float32)
            self._touched = np.zeros((3, cells + 1), dtype=np.int32)
        return self._charge, self._touched

    def panel(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        """A panel (ss, fs) of zeros, to be left so."""
        if self._photons.size < shape[0] * shape[1]:
            self._photons = np.zeros(shape[0] * shape[1])
        return self._photons[: shape[0] * shape[1]].reshape(shape)


def count(
    photons: NDArray[np.unsignedinteger],
    response: Response,
    pixel_size_m: float,
    rng: np.random.Generator,
    out: NDArray[np.unsignedinteger],
    largest_count: int,
    workspace: ResponseWorkspace,
) -> None:
    """Count absorbed photons (ss, fs) of one frame into `out` (ss, fs), every pixel written, clipped at largest_count.

    Both arrays are C-contiguous and unsigned. Gaps hold no photons; what `out` reads there afterwards is charge from
    their neighbours and is the caller's to overwrite. The work grows with the photons, up to MEAN_SHARES_ABOVE of them
    a pixel and pulse. Raises ValueError when the arrays do not fit or the charge cloud is too wide for the pixel.
    """
    if photons.ndim != 2 or photons.shape != out.shape:
        raise ValueError(f"photons and counts must be two images of one shape, not {photons.shape} and {out.shape}")
    if photons.dtype.kind != "u" or out.dtype.kind != "u":
        raise ValueError(f"photons and counts must be unsigned integers, not {photons.dtype} and {out.dtype}")
    if not (photons.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError("photons and counts must be C-contiguous")
    if not 0 <= largest_count <= np.iinfo(out.dtype).max:
        raise ValueError(f"largest_count {largest_count} does not fit {out.dtype}")
    if response.kind == "integrating":
        limit = photons.dtype.type(min(largest_count, np.iinfo(photons.dtype).max))
        np.minimum(photons, limit, out=out, casting="unsafe")
        return
    law = _law(response, pixel_size_m)
    if law.mean_share == 0.0:
        tally = np.zeros(response.pulses, dtype=np.int64)
        _count_alone(photons, response.pulses, law.steps, rng, out, largest_count, tally)
    else:
        charge, touched = workspace.rows((photons.shape[1] + 2) * response.pulses)
        _count_shared(
            photons, response.pulses, law.steps, law.below, law.above, law.mean_share, rng, out, largest_count,
            charge, touched,
        )  # fmt: skip


def expected_counts(mean_photons: NDArray[np.floating], response: Response, pixel_size_m: float) -> NDArray[np.float64]:
    """Expected counts a frame (ss, fs) where independent Poisson photons of mean_photons (ss, fs) a frame are absorbed.

    Nothing is clipped. Pixels outside the array hold no photons, so a patch needs a border of one pixel around what is
    read from it. The charge of a pixel in a pulse is compound Poisson in the photons of itself, its four edge and its
    four corner neighbours; P(Q > step) follows from Panjer's recursion (ASTIN Bulletin 12, 22, 1981) for steps up to 8
    photons and from an Edgeworth series of four cumulants above. Without sharing the law is exact (an Edgeworth series
    above 64 photons). With it, for 8 um in 75 um, lone photons are exact and others within 0.3 % of a fine Fourier
    inversion; 1 % beside neighbours 40 times as bright, and up to 4 % where a step lies just above a whole photon.
    Raises ValueError when the means are not a 2-D array of finite numbers from 0 up.
    """
    mean = np.ascontiguousarray(mean_photons, dtype=np.float64)
    if mean.ndim != 2:
        raise ValueError(f"expected photons must be an image (ss, fs), not of shape {mean.shape}")
    _check_means(mean)
    if response.kind == "integrating":
        return mean.copy()
    law = _law(response, pixel_size_m)
    out = np.empty(mean.shape)
    _expect_image(mean, float(response.pulses), *law.expectation, out)
    return out


def expected_counts_at(
    index: NDArray[np.int64],
    photons: NDArray[np.float64],
    background: NDArray[np.float32],
    scale: float,
    response: Response,
    pixel_size_m: float,
    workspace: ResponseWorkspace,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected counts a frame (n,) at the flat pixels `index` (n,): with spots over the background, and without spots.

    photons (n,) are the spots' expected photons at `index`, background (ss, fs) times scale is expected everywhere. A
    pixel may appear more than once: its photons add up, and each appearance gets the counts of the whole pixel. Spots
    raise the counts of their neighbours too; append those with 0 photons to read them. Laws as in `expected_counts`.
    Raises ValueError when the arrays do not fit each other or hold negative or non-finite photons.
    """
    if background.ndim != 2 or index.ndim != 1 or index.shape != photons.shape:
        raise ValueError(f"index {index.shape} and photons {photons.shape} must be lists of one length, on an image")
    if len(index) and not (index.min() >= 0 and index.max() < background.size):
        raise ValueError(f"a pixel index is outside a panel of shape {background.shape}")
    _check_means(photons)
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"the background's scale must be 0 or more, not {scale}")
    if response.kind == "integrating":
        different, inverse = np.unique(index, return_inverse=True)
        dark = background.reshape(-1)[index].astype(np.float64) * scale
        return dark + np.bincount(inverse, photons, len(different))[inverse], dark
    law = _law(response, pixel_size_m)
    spots, with_spots, without = workspace.panel(background.shape), np.empty(len(index)), np.empty(len(index))
    _expect_list(
        index, photons, background, scale, float(response.pulses), *law.expectation, spots, with_spots, without
    )
    return with_spots, without


def _check_means(mean: NDArray[np.floating]) -> None:
    if mean.size and not (mean.min() >= 0.0 and mean.max() < math.inf):  # a NaN fails both
        raise ValueError("expected photons must be finite numbers from 0 up")


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """A response in numbers.

    steps: a pulse counts as many as there are steps below its charge; the last is infinite. below, above (PLACES,):
    shares of the pixels before and after along one axis, by the photon's place; mean_share: their mean. expectation:
    what the expecting kernels take.
    """

    steps: NDArray[np.float64]
    below: NDArray[np.float32]
    above: NDArray[np.float32]
    mean_share: float
    expectation: tuple[Any, ...]


_PLACES_BITS = 12
_PLACES = 1 << _PLACES_BITS  # of a photon along an axis of its pixel; shares err by 5e-4 at most (8 um in 75 um)
_SMALLEST_SHARE = 1e-4  # less stays in the photon's pixel: for 8 um in 75 um, 3e-6 of the charge at an edge
_LATTICE = (196418, 121393)  # two neighbouring Fibonacci numbers
_GRID = 24  # points up to a step
_RECURSION_UP_TO = 8.0  # photons, where charge is shared; above, the grid is coarser than a third of one
_RECURSION_UP_TO_PHOTONS = 64  # where it is not
_NEVER, _PERHAPS, _SURELY = 0, 1, 2
_MOST_CHARGE = 1e11  # photons of 9 pixels of uint32


@lru_cache(maxsize=8)
def _law(response: Response, pixel_size_m: float) -> _Law:
    if not 0.0 < pixel_size_m < math.inf:
        raise ValueError(f"pixel_size_m must be above 0, not {pixel_size_m}")
    sigma = response.charge_sigma_m / pixel_size_m
    if sigma > LARGEST_SIGMA_PX:
        raise ValueError(
            f"charge_sigma_m {response.charge_sigma_m} is more than {LARGEST_SIGMA_PX} of a pixel of {pixel_size_m} m"
        )
    steps = [response.threshold]
    while response.kind == "retrigger" and steps[-1] < _MOST_CHARGE:
        # A millionth low, so that a charge exactly at a step reaches it whatever the rounding.
        steps.append(response.threshold * math.exp(len(steps) / response.retrigger_ratio) * (1.0 - 1e-6))
    step = np.array([*steps, math.inf])
    below, above = _shares_along_axis(sigma, (np.arange(_PLACES) + 0.5) / _PLACES - 0.5)
    if sigma == 0.0:
        tables = np.empty((0, 3, _GRID)), np.empty((0, 3)), np.empty((0, 3)), np.ones((3, 4))
    else:
        tables = _severity_tables(sigma, step)
    shares = below.astype(np.float32), above.astype(np.float32)
    return _Law(step, *shares, float(below.mean()), (step, sigma > 0.0, *tables))


def _shares_along_axis(sigma_px: float, place: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares (n,) of the pixels before and after one, from the photons' places (n,) in it, -0.5 to 0.5."""
    if sigma_px == 0.0:
        return np.zeros(len(place)), np.zeros(len(place))
    reached = ndtr((np.array([-1.5, -0.5, 0.5, 1.5])[:, None] - place) / sigma_px)
    share = np.diff(reached, axis=0) / (reached[3] - reached[0])
    share[share < _SMALLEST_SHARE] = 0.0
    return share[0], share[2]


def _severity_tables(
    sigma_px: float, steps: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What one photon gives to its own pixel, an edge and a corner neighbour.

    For each step up to _RECURSION_UP_TO the shares' distribution on a grid of step/_GRID, mass divided between the
    points beside it so that the mean is kept: point x mass at the points from 1 on (steps, 3, _GRID), the mass beyond
    point 0 (steps, 3), and by how much the grid falls short of the exact P(share > step) (steps, 3). Then the first
    four moments of the shares (3, 4).
    """
    # A Fibonacci lattice over the pixel's area: its error at a contour falls as 1/n, not as 1/sqrt(n).
    place = np.arange(_LATTICE[0])
    before_y, after_y = _shares_along_axis(sigma_px, (place + 0.5) / _LATTICE[0] - 0.5)
    before_x, after_x = _shares_along_axis(sigma_px, (place * _LATTICE[1] + 0.5) % _LATTICE[0] / _LATTICE[0] - 0.5)
    own_y, own_x = 1.0 - before_y - after_y, 1.0 - before_x - after_x
    share = np.stack([own_y * own_x, own_y * after_x, after_y * after_x])
    moments = np.stack([np.mean(share**power, axis=1) for power in (1, 2, 3, 4)], axis=1)
    within = steps[steps <= _RECURSION_UP_TO]
    slopes, landing, first = np.zeros((len(within), 3, _GRID)), np.zeros((len(within), 3)), np.zeros((len(within), 3))
    for k, step in enumerate(within):
        for which in range(3):
            place_on_grid = share[which] * (_GRID / step)
            point = place_on_grid.astype(np.int64)
            length = max(int(_GRID / step) + 3, _GRID + 1)
            part = place_on_grid - point
            mass = np.bincount(point, 1.0 - part, length) + np.bincount(point + 1, part, length)
            mass = mass / share.shape[1]
            beyond = mass[_GRID + 1 :].sum() + 0.5 * mass[_GRID]
            first[k, which] = np.mean(share[which] > step) - beyond
            landing[k, which] = 1.0 - mass[0]
            slopes[k, which] = np.arange(1, _GRID + 1) * mass[1 : _GRID + 1]
    return slopes, landing, first, moments


def _steps_below_py(charge, steps):  # type: ignore[no-untyped-def]
    n = 0
    while charge > steps[n]:
        n += 1
    return n


def _count_alone_py(photons, pulses, steps, rng, out, largest_count, tally):  # type: ignore[no-untyped-def]
    single = steps.shape[0] == 2
    for row in range(photons.shape[0]):
        for column in range(photons.shape[1]):
            n = np.int64(photons[row, column])
            if n == 0:
                out[row, column] = 0
                continue
            counts = 0
            if n == 1 or pulses == 1:
                counts = _steps_below(n, steps)
            elif single:
                # Photon after photon into a random pulse; the next one falls into a new pulse or not.
                while n > 0 and counts < pulses:
                    if rng.random() * pulses >= counts:
                        counts += 1
                    n -= 1
            elif n <= 10 * pulses:  # measured: where dealing photons costs what binomial numbers do
                for _ in range(n):
                    tally[int(rng.random() * pulses)] += 1
                for pulse in range(pulses):
                    if tally[pulse] > 0:
                        counts += _steps_below(tally[pulse], steps)
                        tally[pulse] = 0
            else:
                for pulse in range(pulses):
                    here = n if pulse == pulses - 1 else rng.binomial(n, 1.0 / (pulses - pulse))
                    n -= here
                    counts += _steps_below(here, steps)
            out[row, column] = min(counts, largest_count)


def _give_py(charge, touched, filled, cell, share):  # type: ignore[no-untyped-def]
    """Add charge to one cell and return how many are touched now; a share of 0 touches nothing."""
    before = charge[cell]
    charge[cell] = before + share
    touched[filled] = cell
    return filled + ((before == 0.0) & (share > 0.0))


def _give_row_py(charge, touched, filled, cell, pulses, share, below, above):  # type: ignore[no-untyped-def]
    # All nine pixels are given their share, even of 0: twice as fast as asking, which a processor cannot foresee.
    filled = _give(charge, touched, filled, cell - pulses, share * below)
    filled = _give(charge, touched, filled, cell, share * (np.float32(1.0) - below - above))
    return _give(charge, touched, filled, cell + pulses, share * above)


def _count_shared_py(  # type: ignore[no-untyped-def]
    photons, pulses, steps, below, above, mean_share, rng, out, largest_count, charge, touched
):
    # Row by row: charge holds the rows before, at and after the current one, each as (columns + 2) x pulses, so that
    # a row is complete, and is counted, as soon as its successor's photons have fallen.
    rows, columns = photons.shape
    one, mean = np.float32(1.0), np.float32(mean_share)
    from_before = from_at = 0  # cells touched in the rows before and at the current one
    for row in range(rows + 2):
        charge_0, charge_1, charge_2 = charge[(row + 2) % 3], charge[row % 3], charge[(row + 1) % 3]
        touched_0, touched_1, touched_2 = touched[(row + 2) % 3], touched[row % 3], touched[(row + 1) % 3]
        filled_0, filled_1, filled_2 = from_before, from_at, 0
        for column in range(columns if row < rows else 0):
            n = np.int64(photons[row, column])
            if n == 0:
                continue
            first = (column + 1) * pulses
            together = n <= MEAN_SHARES_ABOVE
            for pulse in range(1 if together else pulses):
                here = n
                if not together and pulse < pulses - 1:
                    here = rng.binomial(n, 1.0 / (pulses - pulse))
                n -= here
                if here > MEAN_SHARES_ABOVE:
                    number, cell = np.float32(here), first + pulse
                    away, rest = number * mean, number * (one - mean - mean)
                    filled_0 = _give_row(charge_0, touched_0, filled_0, cell, pulses, away, mean, mean)
                    filled_1 = _give_row(charge_1, touched_1, filled_1, cell, pulses, rest, mean, mean)
                    filled_2 = _give_row(charge_2, touched_2, filled_2, cell, pulses, away, mean, mean)
                    continue
                for _ in range(here):
                    drawn = int(rng.random() * (_PLACES * _PLACES * pulses))
                    x, y = drawn & (_PLACES - 1), (drawn >> _PLACES_BITS) & (_PLACES - 1)
                    cell = first + (drawn >> (2 * _PLACES_BITS) if together else pulse)
                    up, down, left, right = below[y], above[y], below[x], above[x]
                    filled_0 = _give_row(charge_0, touched_0, filled_0, cell, pulses, up, left, right)
                    filled_1 = _give_row(charge_1, touched_1, filled_1, cell, pulses, one - up - down, left, right)
                    filled_2 = _give_row(charge_2, touched_2, filled_2, cell, pulses, down, left, right)
        done = row - 1
        inside = 0 <= done < rows
        if inside:
            for column in range(columns):
                out[done, column] = 0
        for i in range(filled_0):
            cell = touched_0[i]
            collected = charge_0[cell]
            charge_0[cell] = 0.0
            if inside and collected > steps[0]:
                column = cell // pulses - 1
                if 0 <= column < columns:
                    counts = np.int64(out[done, column]) + _steps_below(collected, steps)
                    out[done, column] = min(counts, largest_count)
        from_before, from_at = filled_1, filled_2


def _beyond_py(step, k1, k2, k3, k4):  # type: ignore[no-untyped-def]
    """P(Q > step) from the cumulants of Q: the Edgeworth series to the second order."""
    sigma = math.sqrt(k2)
    z = (step - k1) / sigma
    skew, kurtosis = k3 / (k2 * sigma), k4 / (k2 * k2)
    z2 = z * z
    series = (
        skew / 6.0 * (z2 - 1.0)
        + kurtosis / 24.0 * z * (z2 - 3.0)
        + skew * skew / 72.0 * z * (z2 * z2 - 10.0 * z2 + 15.0)
    )
    density = math.exp(-0.5 * z2) / math.sqrt(2.0 * math.pi)
    return min(max(0.5 * math.erfc(z / math.sqrt(2.0)) + density * series, 0.0), 1.0)


def _expect_alone_py(mean, steps):  # type: ignore[no-untyped-def]
    """Expected counts of one pulse without sharing: the sum of P(photons > step)."""
    total = 0.0
    for k in range(steps.shape[0] - 1):
        step = steps[k]
        if _reach(step, mean, mean) == _NEVER:
            break
        need = int(step) + 1  # photons
        if need > _RECURSION_UP_TO_PHOTONS:
            total += _beyond(need - 0.5, mean, mean, mean, mean)
            continue
        term = math.exp(-mean)
        short = term
        for n in range(1, need):
            term *= mean / n
            short += term
        total += 1.0 - short
    return total


def _reach_py(step, mean, variance):  # type: ignore[no-untyped-def]
    """Whether a sum of shares up to 1 can pass a step, by Chernoff's bounds for a chance of 1e-7 and 2e-9."""
    if mean <= 0.0 or (step > mean and step * (1.0 + math.log(mean / step)) - mean < -16.0):
        return _NEVER
    if step < mean and (mean - step) ** 2 > 40.0 * variance:
        return _SURELY
    return _PERHAPS


def _expect_shared_py(own, edge, corner, steps, slopes, landing, first, moments, out):  # type: ignore[no-untyped-def]
    # Four pixels at a time: Panjer's recursion waits for its own last term, four of them keep the processor busy.
    rates, terms = np.zeros((_GRID, 4)), np.zeros((_GRID + 1, 4))
    reach, total, cumulant = np.zeros(4, dtype=np.int64), np.zeros(4), np.zeros((4, 4))
    for start in range(0, own.shape[0], 4):
        lanes = min(4, own.shape[0] - start)
        for lane in range(4):
            total[lane] = 0.0
            i = start + lane
            for power in range(4):
                cumulant[power, lane] = (
                    (own[i] * moments[0, power] + edge[i] * moments[1, power] + corner[i] * moments[2, power])
                    if lane < lanes
                    else 0.0
                )
        for k in range(steps.shape[0] - 1):
            step = steps[k]
            in_reach, undecided = False, False
            for lane in range(4):
                reach[lane] = _reach(step, cumulant[0, lane], cumulant[1, lane])
                in_reach |= reach[lane] != _NEVER
                undecided |= reach[lane] == _PERHAPS
                if reach[lane] == _SURELY:
                    total[lane] += 1.0
            if not in_reach:
                break
            if not undecided:
                continue
            if k >= slopes.shape[0]:
                for lane in range(lanes):
                    if reach[lane] == _PERHAPS:
                        total[lane] += _beyond(
                            step, cumulant[0, lane], cumulant[1, lane], cumulant[2, lane], cumulant[3, lane]
                        )
                continue
            for lane in range(lanes):
                i = start + lane
                for j in range(_GRID):
                    rates[j, lane] = own[i] * slopes[k, 0, j] + edge[i] * slopes[k, 1, j] + corner[i] * slopes[k, 2, j]
                terms[0, lane] = math.exp(-own[i] * landing[k, 0] - edge[i] * landing[k, 1] - corner[i] * landing[k, 2])
            for n in range(1, _GRID + 1):
                sum_0 = sum_1 = sum_2 = sum_3 = 0.0
                for j in range(n):
                    sum_0 += rates[j, 0] * terms[n - 1 - j, 0]
                    sum_1 += rates[j, 1] * terms[n - 1 - j, 1]
                    sum_2 += rates[j, 2] * terms[n - 1 - j, 2]
                    sum_3 += rates[j, 3] * terms[n - 1 - j, 3]
                share = 1.0 / n
                terms[n, 0], terms[n, 1] = sum_0 * share, sum_1 * share
                terms[n, 2], terms[n, 3] = sum_2 * share, sum_3 * share
            for lane in range(lanes):
                if reach[lane] == _PERHAPS:
                    i = start + lane
                    short = -0.5 * terms[_GRID, lane]  # a point stands for charge on both sides of it
                    for n in range(_GRID + 1):
                        short += terms[n, lane]
                    exact = own[i] * first[k, 0] + edge[i] * first[k, 1] + corner[i] * first[k, 2]
                    total[lane] += 1.0 - short + exact * math.exp(-own[i] - edge[i] - corner[i])
        for lane in range(lanes):
            out[start + lane] = total[lane]


def _around_py(image, row, column):  # type: ignore[no-untyped-def]
    """Sums over the edge and over the corner neighbours of a pixel that are on the panel."""
    edge, corner = 0.0, 0.0
    for i in range(max(row - 1, 0), min(row + 2, image.shape[0])):
        for j in range(max(column - 1, 0), min(column + 2, image.shape[1])):
            if i != row and j != column:
                corner += image[i, j]
            elif i != row or j != column:
                edge += image[i, j]
    return edge, corner


def _expect_image_py(mean, pulses, steps, shared, slopes, landing, first, moments, out):  # type: ignore[no-untyped-def]
    rows, columns = mean.shape
    own, edge, corner = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    for row in range(rows):
        for column in range(columns):
            if shared:
                own[column] = mean[row, column] / pulses
                edges, corners = _around(mean, row, column)
                edge[column], corner[column] = edges / pulses, corners / pulses
            else:
                out[row, column] = _expect_alone(mean[row, column] / pulses, steps)
        if shared:
            _expect_shared(own, edge, corner, steps, slopes, landing, first, moments, out[row])
        for column in range(columns):
            out[row, column] *= pulses


def _expect_list_py(  # type: ignore[no-untyped-def]
    index,
    photons,
    background,
    scale,
    pulses,
    steps,
    shared,
    slopes,
    landing,
    first,
    moments,
    spots,
    with_spots,
    without,
):
    columns = background.shape[1]
    length = index.shape[0]
    own, edge, corner = np.zeros(length), np.zeros(length), np.zeros(length)
    for i in range(length):
        spots[index[i] // columns, index[i] % columns] += photons[i]
    for both in range(2):
        for i in range(length):
            row, column = index[i] // columns, index[i] % columns
            here = background[row, column] * scale
            own[i] = (here + spots[row, column] if both else here) / pulses
            if shared:
                edges, corners = _around(background, row, column)
                edges, corners = edges * scale, corners * scale
                if both:
                    more_edges, more_corners = _around(spots, row, column)
                    edges, corners = edges + more_edges, corners + more_corners
                edge[i], corner[i] = edges / pulses, corners / pulses
        out = with_spots if both else without
        if shared:
            _expect_shared(own, edge, corner, steps, slopes, landing, first, moments, out)
        else:
            for i in range(length):
                out[i] = _expect_alone(own[i], steps)
        for i in range(length):
            out[i] *= pulses
    for i in range(length):
        spots[index[i] // columns, index[i] % columns] = 0.0


_compile: Callable[..., Any] = njit(cache=True)
_steps_below: Callable[..., int] = _compile(_steps_below_py)
_give: Callable[..., int] = _compile(_give_py)
_give_row: Callable[..., int] = _compile(_give_row_py)
_beyond: Callable[..., float] = _compile(_beyond_py)
_reach: Callable[..., int] = _compile(_reach_py)
_expect_alone: Callable[..., float] = _compile(_expect_alone_py)
_expect_shared: Callable[..., None] = _compile(_expect_shared_py)
_around: Callable[..., tuple[float, float]] = _compile(_around_py)
_count_alone: Callable[..., None] = _compile(_count_alone_py)
_count_shared: Callable[..., None] = _compile(_count_shared_py)
_expect_image: Callable[..., None] = _compile(_expect_image_py)
_expect_list: Callable[..., None] = _compile(_expect_list_py)
