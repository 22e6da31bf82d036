"""The reference of `training.evaluation.ideal` for squares of pixels: light that falls in spots is seen as such.

Everything is as there but for one thing: not pixels but blocks of 4 x 4 pixels are independent in a hit, and the light
s of a block is drawn, all pixels together, from blocks of crystals that are not in the test:

    log ratio of a block = log sum over templates t of  q_t  product over pixels i of  L(n_i; b + a s_ti) / L(n_i; b)

Nor are blocks of one hit quite independent: a bright crystal is bright everywhere, and the brightest is tens of times
the faintest. So a crystal has a brightness, log-normal as the others show it (`ideal.evened`), which their templates
are freed of, and which is averaged over like the pulse energy that it multiplies.

Templates are cut from the other crystals' patterns at every offset, turned and mirrored at random (spots have no
preferred direction that the rings do not give), and drawn so that bright ones are not missed, which their weights q
undo. The background within a block is taken as even. Where a pixel counts at most once a pulse this is what finds
crystals: a bright spot is a handful of single counts side by side, which pixel by pixel is next to nothing.

Nuisances are averaged over 15 nodes placed where the reference of single pixels, which knows them well, believes them
to be.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from training.evaluation.ideal import Observer, Panel, Pixels

Array = npt.NDArray[np.float64]

SIDE = 4
AREA = SIDE * SIDE
OFFSET_STEP = SIDE // 4
OFFSETS = (SIDE // OFFSET_STEP) ** 2
"""Templates are cut at every OFFSET_STEP pixels along both axes."""

RING_BLOCKS = 80 // SIDE
"""Width of a ring in blocks, 80 pixels."""

NEARNESS_RINGS = 1.5
"""Blocks of other rings serve too, the less the farther they are, by a bell of this width: bright ones are few."""

TEMPLATES = 1500
"""Of a ring."""

_MOST_LIT = 0.9
_BACKGROUND_STEP = 0.1
_SCALE_NODES, _PULSE_NODES = 3, 5


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Whole blocks of a panel (ss, fs), flat over (rows, columns) of blocks: ring, -1 where a pixel is no use;
    background, the mean of its pixels; step, that in steps of its logarithm; ring_blocks (rings,)."""

    rows: int
    columns: int
    ring: npt.NDArray[np.int64]
    step: npt.NDArray[np.int64]
    ring_blocks: Array


def make_grid(panel: Panel, shape: tuple[int, int], center_fs: float, center_ss: float) -> Grid:
    """The blocks of a panel of that shape; the beam centre is pixel indices."""
    rows, columns = shape[0] // SIDE, shape[1] // SIDE
    background = np.full(shape, np.nan)
    background.reshape(-1)[panel.place >= 0] = panel.background
    cut = background[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE)
    mean = cut.mean((1, 3)).reshape(-1)
    middle = SIDE / 2 - 0.5
    ss = np.arange(rows)[:, None] * SIDE + middle - center_ss
    fs = np.arange(columns)[None, :] * SIDE + middle - center_fs
    ring = (np.hypot(ss, fs) / (SIDE * RING_BLOCKS)).astype(np.int64).reshape(-1)
    ring[np.isnan(mean)] = -1
    step = np.zeros(len(mean), np.int64)
    whole = ring >= 0
    step[whole] = np.rint(np.log(mean[whole]) / _BACKGROUND_STEP).astype(np.int64)
    return Grid(rows, columns, ring, step, np.bincount(ring[whole], minlength=int(ring.max()) + 1).astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Blocks (n, AREA) with light of one crystal, at all offsets, and the ring of each."""

    light: npt.NDArray[np.float32]
    ring: npt.NDArray[np.int64]

    def dimmed(self, factor: float) -> "Cut":
        """The blocks of a crystal so many times less bright."""
        return Cut((self.light / factor).astype(np.float32), self.ring)


def cut_blocks(crystal: Pixels, panel: Panel, grid: Grid, columns: int) -> Cut:
    """The lit blocks of a crystal on a panel of that many columns."""
    seen = panel.place[crystal[0]] >= 0
    index, photons = crystal[0][seen], crystal[1][seen]
    ss, fs = np.divmod(index, columns)
    ring_of = grid.ring.reshape(grid.rows, grid.columns)
    light, rings = [], []
    for down in range(0, SIDE, OFFSET_STEP):
        for right in range(0, SIDE, OFFSET_STEP):
            row, column = (ss + down) // SIDE, (fs + right) // SIDE
            block, member = np.unique(row * (grid.columns + 1) + column, return_inverse=True)
            pixels = np.zeros((len(block), AREA), np.float32)
            pixels[member, (ss + down) % SIDE * SIDE + (fs + right) % SIDE] = photons
            row, column = np.divmod(block, grid.columns + 1)
            ring = ring_of[np.minimum(row, grid.rows - 1), np.minimum(column, grid.columns - 1)]
            light.append(pixels[ring >= 0])
            rings.append(ring[ring >= 0])
    return Cut(np.concatenate(light), np.concatenate(rings))


@dataclass(frozen=True, slots=True, eq=False)
class Templates:
    """Of one ring: light (t, AREA); log_weight (t,) and log_dark, logs of how frequent each and darkness are."""

    light: Array
    log_weight: Array
    log_dark: float


def draw_templates(cuts: Sequence[Cut], grid: Grid, seed: int = 0) -> list[Templates]:
    """Templates of every ring from the blocks of these crystals."""
    rng = np.random.default_rng(seed)
    turns = [
        np.rot90(square, k).reshape(-1)
        for square in (np.arange(AREA).reshape(SIDE, SIDE), np.arange(AREA).reshape(SIDE, SIDE).T)
        for k in range(4)
    ]
    light, ring = np.concatenate([cut.light for cut in cuts]), np.concatenate([cut.ring for cut in cuts])
    sure = -np.expm1(-light.sum(1, dtype=np.float64))
    found = []
    rings = np.arange(len(grid.ring_blocks))
    for number in rings.tolist():
        near = np.exp(-0.5 * ((rings - number) / NEARNESS_RINGS) ** 2)
        frequency = near[ring] / (float(near @ grid.ring_blocks) * OFFSETS * len(cuts))
        total = float(frequency.sum())
        if not total > 0.0:
            found.append(Templates(np.zeros((0, AREA)), np.zeros(0), 0.0))
            continue
        # Half of the draws by frequency alone, half by what is likely to show a photon.
        chance = frequency / total + frequency * sure / float(frequency @ sure)
        reached = np.cumsum(chance)
        drawn = np.searchsorted(reached, rng.random(TEMPLATES) * reached[-1])
        weight = frequency[drawn] * reached[-1] / (TEMPLATES * chance[drawn])
        mine = light[drawn].astype(np.float64)
        turned = np.array(turns)[rng.integers(len(turns), size=len(drawn))]
        weight *= min(1.0, _MOST_LIT / float(weight.sum()))
        templates = np.take_along_axis(mine, turned, 1)
        found.append(Templates(templates, np.log(weight), math.log1p(-float(weight.sum()))))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Patterns:
    """Blocks of a frame that are alike: of one ring and background, distinct counts (k, AREA) and how many of each."""

    ring: int
    background: float
    counts: Array
    number: Array


def _nodes(mean: float, sigma: float, count: int) -> list[tuple[float, float]]:
    """Nodes of a normal distribution, and the logarithms of their weights."""
    if sigma == 0.0:
        return [(mean, 0.0)]
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return list(zip((mean + sigma * nodes).tolist(), np.log(weights / weights.sum()).tolist(), strict=True))


class BlockObserver:
    """Scores frames of one condition block by block; see `ideal.Observer`, which it takes the scales from."""

    def __init__(self, pixels: Observer, grid: Grid, templates: Sequence[Templates], pulses: int | None = None) -> None:
        self._pixels, self._grid, self._templates, self._pulses = pixels, grid, templates, pulses

    def score(self, frame: npt.NDArray[np.unsignedinteger]) -> float:
        """The log likelihood ratio of a frame (ss, fs)."""
        seen = self._pixels.count(frame)
        weighed = self._pixels.weigh(seen)
        patterns, zeros = self._patterns(frame)
        terms = []
        for log_scale, scale_weight in _nodes(*weighed.log_scale, _SCALE_NODES):
            for log_pulse, pulse_weight in _nodes(*weighed.log_pulse, _PULSE_NODES):
                gain = self._ratio(patterns, zeros, log_scale, log_pulse)
                terms.append(scale_weight + pulse_weight + gain - self._pixels.log_ratio(seen, log_scale, log_pulse))
        return weighed.score + float(logsumexp(terms))

    def _patterns(self, frame: npt.NDArray[np.unsignedinteger]) -> tuple[list[_Patterns], Array]:
        grid = self._grid
        ss, fs = np.nonzero(frame[: grid.rows * SIDE, : grid.columns * SIDE])
        block = ss // SIDE * grid.columns + fs // SIDE
        whole = grid.ring[block] >= 0
        ss, fs, block = ss[whole], fs[whole], block[whole]
        lit, member = np.unique(block, return_inverse=True)
        counts = np.zeros((len(lit), AREA), np.int64)
        counts[member, ss % SIDE * SIDE + fs % SIDE] = frame[ss, fs]
        if self._pulses is not None:
            np.minimum(counts, self._pulses, out=counts)
        zeros = grid.ring_blocks - np.bincount(grid.ring[lit], minlength=len(grid.ring_blocks))
        keyed = np.concatenate([grid.ring[lit, None], grid.step[lit, None], counts], 1)
        kinds, number = np.unique(keyed, axis=0, return_counts=True)
        starts = np.flatnonzero(np.any(np.diff(kinds[:, :2], axis=0, prepend=-1) != 0, axis=1)).tolist()
        patterns = []
        for low, high in itertools.pairwise([*starts, len(kinds)]):
            background = math.exp(float(kinds[low, 1]) * _BACKGROUND_STEP)
            some = slice(low, high)
            patterns.append(
                _Patterns(int(kinds[low, 0]), background, kinds[some, 2:].astype(float), number[some].astype(float))
            )
        return patterns, zeros

    def _ratio(self, patterns: Sequence[_Patterns], zeros: Array, log_scale: float, log_pulse: float) -> float:
        pulse, scale = math.exp(log_pulse), math.exp(log_scale)
        total = 0.0
        for number, templates in zip(zeros, self._templates, strict=True):
            none = float(np.exp(templates.log_weight - pulse * templates.light.sum(1)).sum())
            total += float(number) * math.log(none + math.exp(templates.log_dark))
        for each in patterns:
            templates = self._templates[each.ring]
            background, light = scale * each.background, pulse * templates.light
            if self._pulses is None:
                gain = np.log1p(light / background)
            else:
                lit = np.log(-np.expm1(-(background + light) / self._pulses))
                gain = lit - math.log(-math.expm1(-background / self._pulses)) + light / self._pulses
            terms = each.counts @ gain.T + (templates.log_weight - light.sum(1))
            most = np.maximum(terms.max(1, initial=-math.inf), templates.log_dark)
            sums = np.exp(terms - most[:, None]).sum(1) + np.exp(templates.log_dark - most)
            total += float(each.number @ (np.log(sums) + most))
        return total
