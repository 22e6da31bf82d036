"""A reference for hit finding that knows the physics: the likelihood ratio of a frame, pixel by pixel.

Two hypotheses explain the counts n of a frame. Under both the pulse has a times its nominal photons and the water w
times its nominal thickness, so that pixel i expects b_i = a w B_i background photons; with a crystal it expects a s_i
more, s_i being drawn, independently in each pixel, from the distribution of Bragg photons at the pixel's distance from
the beam. Neither a, w nor any s_i is known, so both hypotheses average over them:

    score = log of the integral over a, w of  pi(a) pi(w)  product over i of  E_s[ L(n_i; a w B_i + a s) ]
          - log of the integral over a, w of  pi(a) pi(w)  product over i of       L(n_i; a w B_i)

pi are the log-normal distributions by which pulses and water of the set vary; L is the law of the detector: Poisson, or
where a pixel counts at most once a pulse, binomial over the P pulses of the frame with 1 - exp(-(b + s)/P) a pulse.
By Neyman and Pearson nothing separates hits from empties better, if pixels of a hit are independent given a and w, as
they are in an empty. In a hit they are not: light falls in spots of several pixels, and bright crystals are bright
everywhere. `training.evaluation.blocks` follows both; `Spread.brightness_sigma`, 0 in the formula above, is what it
needs of this module for the second: the light of a crystal times another log-normal factor, averaged over as a is.

The distribution of s is a histogram of crystals that are not in the test, over ln s and with an atom at zero, in rings
around the beam, smoothed over both. A pixel without a count contributes log E[exp(-a s)], whatever B is, so that those
are summed by ring; a pixel of n counts contributes, for Poisson, the log of the polynomial
sum over k of C(n, k) (a/b)^k E[s^k exp(-a s)], so that a frame costs its counted pixels only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d
from scipy.special import comb, logsumexp

Array = npt.NDArray[np.float64]

RING_PX = 24.0
"""Width of a ring: a resolution shell's, wide enough for some spots of a few crystals."""

LEVELS_A_DECADE = 5
SMOOTHING_RINGS, SMOOTHING_LEVELS = 1.0, 1.0
"""Standard deviations of the smoothing: nine crystals leave most cells of the histogram empty."""

LEAST_BACKGROUND = 1e-6
"""Photons that every pixel expects at least, so that none is infinitely telling (as in `sim_replay.truth`)."""

_BACKGROUND_STEP = 0.01
_LARGEST_POWER = 8
_SCALE_NODES, _WIDE_NODES, _WIDE = 5, 9, 0.5
_ZOOM_POINTS = 17
_LEAST_LIT, _FARTHEST_LOG, _HALVINGS = 1e-3, 12.0, 40
_FINE = 0.7  # of a standard deviation: the trapezoidal sum of a bell is then exact to 1e-17
_REACH_SIGMA = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Pixels that count, flat: background (n,) photons expected of a nominal shot, ring (n,) from the beam outwards.

    place (all pixels,) int32 is the position in these arrays of each pixel of the panel, -1 where it is no use.
    """

    background: Array
    ring: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]
    ring_pixels: Array

    @property
    def rings(self) -> int:
        return len(self.ring_pixels)


def make_panel(
    background: npt.NDArray[np.floating], valid: npt.NDArray[np.bool_], center_fs: float, center_ss: float
) -> Panel:
    """A panel (ss, fs) whose nominal background and valid pixels are given; the beam centre is pixel indices."""
    if background.shape != valid.shape:
        raise ValueError(f"background has {background.shape} pixels, the mask {valid.shape}")
    rows, columns = valid.shape
    ss, fs = np.arange(rows)[:, None] - center_ss, np.arange(columns)[None, :] - center_fs
    ring = (np.hypot(ss, fs) / RING_PX).astype(np.int32)[valid]
    place = np.full(valid.size, -1, np.int32)
    place[valid.reshape(-1)] = np.arange(len(ring), dtype=np.int32)
    level = np.maximum(background[valid].astype(np.float64), LEAST_BACKGROUND)
    return Panel(level, ring, place, np.bincount(ring).astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class SpotLight:
    """Distribution of Bragg photons s in a pixel of a nominal shot: share (rings, levels) at each of levels (J,).

    What is left of one in a ring is the share of pixels without Bragg light.
    """

    levels: Array
    share: Array

    @property
    def dark(self) -> Array:
        lit: Array = self.share.sum(1)
        return 1.0 - lit


Pixels = tuple[npt.NDArray[np.int64], Array]
"""Light of one crystal: flat indices of the panel, each once, and photons expected there of a nominal shot."""


def spot_light(crystals: Sequence[Pixels], panel: Panel) -> SpotLight:
    """The distribution that crystals show. Raises ValueError when there is none, or no light in any."""
    least = min((float(photons[photons > 0].min()) for _, photons in crystals if (photons > 0).any()), default=0.0)
    most = max((float(photons.max()) for _, photons in crystals if len(photons)), default=0.0)
    if least <= 0.0:
        raise ValueError("the crystals for the distribution of Bragg photons send no light")
    first = math.floor(math.log10(least) * LEVELS_A_DECADE)
    count = math.floor(math.log10(most) * LEVELS_A_DECADE) - first + 1
    counted, light = np.zeros((panel.rings, count)), np.zeros((panel.rings, count))
    for index, photons in crystals:
        place = panel.place[index]
        seen = (place >= 0) & (photons > 0)
        level = (np.floor(np.log10(photons[seen]) * LEVELS_A_DECADE) - first).astype(np.int64)
        cell = panel.ring[place[seen]] * count + np.clip(level, 0, count - 1)
        counted += np.bincount(cell, minlength=counted.size).reshape(counted.shape)
        light += np.bincount(cell, photons[seen], counted.size).reshape(counted.shape)
    middles = 10.0 ** ((first + np.arange(count) + 0.5) / LEVELS_A_DECADE)
    in_level = counted.sum(0)
    levels = np.where(in_level > 0, light.sum(0) / np.maximum(in_level, 1.0), middles)
    smooth = _smoothed(counted, SMOOTHING_RINGS, 0)
    pixels = _smoothed(panel.ring_pixels[:, None] * len(crystals), SMOOTHING_RINGS, 0)
    share = _smoothed(smooth / np.maximum(pixels, 1.0), SMOOTHING_LEVELS, 1)
    return SpotLight(levels, np.minimum(share, 0.9 / count))


def _smoothed(values: Array, sigma: float, axis: int) -> Array:
    out: Array = gaussian_filter1d(values, sigma, axis, mode="nearest")
    return out


def evened(crystals: Sequence[Pixels], panel: Panel) -> tuple[list[float], float]:
    """By how much each crystal is brighter than their geometric mean, and the standard deviation of its logarithm.

    Of two crystals that is the factor by which light has to be multiplied to show as many pixels with a photon: their
    photons would measure the brightest spot alone. A crystal that shows nothing is as bright as the faintest.
    """
    seen = [photons[panel.place[index] >= 0] for index, photons in crystals]
    target = math.exp(float(np.mean([math.log(max(_lit(each, 0.0), _LEAST_LIT)) for each in seen])))
    logs = []
    for each in seen:
        low, high = -_FARTHEST_LOG, _FARTHEST_LOG
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            low, high = (low, middle) if _lit(each, middle) > target else (middle, high)
        logs.append(-low)
    faintest = min((each for each in logs if each > 1.0 - _FARTHEST_LOG), default=0.0)
    kept = np.array([each if each > 1.0 - _FARTHEST_LOG else faintest for each in logs])
    kept -= kept.mean()
    return np.exp(kept).tolist(), float(kept.std(ddof=1)) if len(kept) > 1 else 0.0


def _lit(photons: Array, log_factor: float) -> float:
    """Pixels that are expected to show a photon."""
    return float(-np.expm1(-photons * math.exp(log_factor)).sum())


@dataclass(frozen=True, slots=True)
class Spread:
    """By how much shots of a set differ: standard deviations of the logarithm, and the logarithms' means.

    brightness_sigma: of the light of a crystal, beyond that of the pulse.
    """

    pulse_sigma: float = 0.0
    water_sigma: float = 0.0
    pulse_mean: float = 0.0
    water_mean: float = 0.0
    brightness_sigma: float = 0.0

    @property
    def sigma(self) -> float:
        """Of ln(a w), the background's scale."""
        return math.hypot(self.pulse_sigma, self.water_sigma)

    @property
    def mean(self) -> float:
        return self.pulse_mean + self.water_mean

    def pulses(self, log_scale: float) -> tuple[Array, Array]:
        """Nodes of ln a (and brightness), and logarithms of their weights, where the background's scale is this."""
        middle, width = self.pulse_mean, self.brightness_sigma
        if self.pulse_sigma > 0.0:
            part = (self.pulse_sigma / self.sigma) ** 2
            middle += part * (log_scale - self.mean)
            width = math.hypot(width, self.pulse_sigma * self.water_sigma / self.sigma)
        if width == 0.0:
            return np.array([middle]), np.zeros(1)
        nodes, weights = np.polynomial.hermite_e.hermegauss(_SCALE_NODES if width < _WIDE else _WIDE_NODES)
        return middle + width * nodes, np.log(weights / weights.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """Counted pixels of a frame, alike ones together: ring, background and counts of each kind, and how many.

    zeros (rings,): pixels without a count. total: all counts.
    """

    ring: npt.NDArray[np.int64]
    background: Array
    counts: Array
    number: Array
    zeros: Array
    total: float


def count_pixels(frame: npt.NDArray[np.unsignedinteger], panel: Panel, pulses: int | None) -> Counted:
    """The counted pixels of a frame (ss, fs); of more than `pulses` counts only that many are taken."""
    flat = frame.reshape(-1)
    index = np.flatnonzero(flat)
    place = panel.place[index]
    index, place = index[place >= 0], place[place >= 0]
    counts = flat[index].astype(np.int64)
    if pulses is not None:
        counts = np.minimum(counts, pulses)
    step = np.rint(np.log(panel.background[place] / LEAST_BACKGROUND) / _BACKGROUND_STEP).astype(np.int64)
    ring = panel.ring[place].astype(np.int64)
    kinds, number = np.unique(np.stack([ring, step, counts]), axis=1, return_counts=True)
    zeros = panel.ring_pixels - np.bincount(ring, minlength=panel.rings)
    background = LEAST_BACKGROUND * np.exp(_BACKGROUND_STEP * kinds[1])
    return Counted(
        kinds[0], background, kinds[2].astype(np.float64), number.astype(np.float64), zeros, float(counts.sum())
    )


class Observer:
    """Scores frames of one condition: `score` is larger for frames that are likelier to show a crystal.

    pulses is None where every photon counts, else pulses in a frame of a detector that counts one a pulse.
    """

    def __init__(self, panel: Panel, light: SpotLight, spread: Spread, pulses: int | None = None) -> None:
        self._panel, self._light, self._spread, self._pulses = panel, light, spread, pulses
        self._background = float(panel.background.sum())

    def score(self, frame: npt.NDArray[np.unsignedinteger]) -> float:
        """The log likelihood ratio of a frame (ss, fs)."""
        return self.weigh(self.count(frame)).score

    def count(self, frame: npt.NDArray[np.unsignedinteger]) -> Counted:
        """What of a frame (ss, fs) the score depends on."""
        return count_pixels(frame, self._panel, self._pulses)

    def weigh(self, seen: Counted) -> "Weighed":
        """The log likelihood ratio of a frame, and what a crystal in it would say of the scales."""
        return weigh(
            lambda log_scale: self._empty(seen, log_scale),
            lambda log_scale, log_pulse: self.log_ratio(seen, log_scale, log_pulse),
            self._spread,
            seen.total,
        )

    def _empty(self, seen: Counted, log_scale: float) -> float:
        """Log likelihood without a crystal, up to what both hypotheses share."""
        scale = math.exp(log_scale)
        if self._pulses is None:
            return seen.total * log_scale - scale * self._background
        lit = scale * seen.background / self._pulses
        sure = float(seen.number @ (seen.counts * np.log(-np.expm1(-lit))))
        return sure - scale * self._background + float(seen.number @ (seen.counts * lit))

    def log_ratio(self, seen: Counted, log_scale: float, log_pulse: float) -> float:
        """Log of likelihood with over without a crystal, both at these scales."""
        photons = math.exp(log_pulse) * self._light.levels
        fade = self._light.share * np.exp(-photons)
        none = self._light.dark + fade.sum(1)
        value = float(seen.zeros @ np.log(none))
        background = math.exp(log_scale) * seen.background
        if self._pulses == 1:
            lost = np.exp(-background)
            return value + float(seen.number @ np.log((1.0 - lost * none[seen.ring]) / (1.0 - lost)))
        few = seen.counts <= _LARGEST_POWER if self._pulses is None else np.zeros(len(seen.ring), np.bool_)
        value += float(seen.number[few] @ self._log_polynomials(seen, few, background, photons, fade))
        return value + float(seen.number[~few] @ self._log_sums(seen, ~few, background, photons))

    def _log_polynomials(
        self, seen: Counted, chosen: npt.NDArray[np.bool_], background: Array, photons: Array, fade: Array
    ) -> Array:
        """log E[(1 + s/b)^n exp(-s)] for small n, from the moments of each ring."""
        out = np.zeros(int(chosen.sum()))
        ring, level, counts = seen.ring[chosen], background[chosen], seen.counts[chosen]
        powers = [self._light.dark + fade.sum(1)]
        for k in range(1, int(counts.max(initial=0)) + 1):
            powers.append(fade @ photons**k)
        for n in np.unique(counts).astype(int).tolist():
            of_n = counts == n
            x = 1.0 / level[of_n]
            total = np.zeros(len(x))
            for k in range(n, -1, -1):
                total = total * x + comb(n, k) * powers[k][ring[of_n]]
            out[of_n] = np.log(total)
        return out

    def _log_sums(self, seen: Counted, chosen: npt.NDArray[np.bool_], background: Array, photons: Array) -> Array:
        """log E[L(n; b + s) / L(n; b)] level by level, for any n and law."""
        if not chosen.any():
            return np.zeros(0)
        ring, level, counts = seen.ring[chosen], background[chosen, None], seen.counts[chosen, None]
        if self._pulses is None:
            gain = counts * np.log1p(photons / level) - photons
        else:
            once = np.log(-np.expm1(-(level + photons) / self._pulses)) - np.log(-np.expm1(-level / self._pulses))
            gain = counts * once - photons * (1.0 - counts / self._pulses)
        terms = np.concatenate([np.zeros((len(ring), 1)), gain], 1)
        weights = np.concatenate([self._light.dark[ring, None], self._light.share[ring]], 1)
        out: Array = logsumexp(terms, 1, weights)
        return out


@dataclass(frozen=True, slots=True)
class Weighed:
    """The score of a frame, and mean and standard deviation of ln(a w) and of ln a if there is a crystal in it."""

    score: float
    log_scale: tuple[float, float]
    log_pulse: tuple[float, float]


def weigh(
    empty: Callable[[float], float], ratio: Callable[[float, float], float], spread: Spread, counts: float
) -> Weighed:
    """The score, from the log likelihood without a crystal at ln(a w), and the log ratio at ln(a w), ln a.

    counts: of the frame; they say how well they determine the scale, and so how finely it has to be integrated.
    """

    def prior(log_scale: float) -> float:
        return -0.5 * ((log_scale - spread.mean) / spread.sigma) ** 2 if spread.sigma else 0.0

    def hit(log_scale: float) -> Array:
        nodes, weights = spread.pulses(log_scale)
        log_ratios = [ratio(log_scale, node) for node in nodes.tolist()]
        return prior(log_scale) + empty(log_scale) + weights + log_ratios

    if spread.sigma == 0.0:
        crystal = hit(spread.mean)
        weight = np.exp(crystal - logsumexp(crystal))
        score = float(logsumexp(crystal)) - empty(spread.mean)
        return Weighed(score, (spread.mean, 0.0), _moments(spread.pulses(spread.mean)[0], weight))
    narrow = 1.0 / math.sqrt(counts + 1.0 / spread.sigma**2)
    scales, without = _close_in(lambda u: np.array([prior(u) + empty(u)]), spread, narrow)
    total = float(logsumexp(without)) + math.log(scales[1] - scales[0])
    scales, crystal = _close_in(hit, spread, narrow)
    score = float(logsumexp(crystal)) + math.log(scales[1] - scales[0]) - total
    weight = np.exp(crystal - logsumexp(crystal))
    pulses = np.stack([spread.pulses(u)[0] for u in scales.tolist()])
    return Weighed(score, _moments(np.broadcast_to(scales[:, None], weight.shape), weight), _moments(pulses, weight))


def _moments(values: Array, weight: Array) -> tuple[float, float]:
    mean = float(np.sum(weight * values))
    return mean, math.sqrt(max(0.0, float(np.sum(weight * (values - mean) ** 2))))


def _close_in(log_function: Callable[[float], Array], spread: Spread, narrow: float) -> tuple[Array, Array]:
    """Evenly spaced ln(a w) around the one maximum, which is no narrower than `narrow`, and the function's values."""
    low, high = spread.mean - _REACH_SIGMA * spread.sigma, spread.mean + _REACH_SIGMA * spread.sigma
    while True:
        nodes = np.linspace(low, high, _ZOOM_POINTS)
        values = np.stack([log_function(node) for node in nodes.tolist()])
        step = (high - low) / (_ZOOM_POINTS - 1)
        if step <= _FINE * narrow:
            return nodes, values
        middle = float(nodes[np.argmax(logsumexp(values, 1))])
        reach = max(step, _REACH_SIGMA * narrow)
        low, high = max(low, middle - reach), min(high, middle + reach)
