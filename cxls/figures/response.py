"""What the three responses make of photons: one spot, a single pixel, and the spots of whole frames."""

import math
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from cxls.figures.drawing import (
    BLUE,
    GREEN,
    GREY,
    RED,
    SEED,
    Drawn,
    Request,
    condition_name,
    new_figure,
    show_counts,
    text_table,
)
from cxls.figures.frames import CHARGE_SIGMA_M, CRYSTAL, RESPONSES, response_of
from sim_replay.background import Surroundings, make_background
from sim_replay.cells import ready_crystal
from sim_replay.detector import CONDITIONS, eiger2_4m
from sim_replay.diffraction import Sample, diffract, footprint, random_orientation
from sim_replay.response import Response, ResponseWorkspace, count
from sim_replay.scene import Scene
from sim_replay.shots import frame_rng, simulate_shot
from sim_replay.truth import Lit, TrueSpots, expect, true_spots

PIXEL_M = 75e-6
COLOURS = dict(zip(RESPONSES, (GREY, BLUE, RED), strict=True))

_SPOT_PHOTONS = 80.0
_CROP_PX = 11
_REPEATS = 400
_PICKED = (1, 2, 5, 10, 30, 100, 1000)
_HITS = 40
_LEAST_PHOTONS = 5.0
_COUNTING = {
    "one_per_pulse": Response("one_per_pulse"),
    "one_per_pulse, shared": response_of("one_per_pulse"),
    "retrigger, shared": response_of("retrigger"),
}


def draw_response(request: Request) -> Drawn:
    """A spot under each response, counts against photons in a pulse, and what is left of the spots' photons."""
    del request
    figure = new_figure(10.4, 6.4)
    grid = figure.add_gridspec(2, 6, height_ratios=(1.0, 1.25))
    spot_lines = _one_spot([figure.add_subplot(grid[0, 2 * n : 2 * n + 2]) for n in range(3)])
    left, right = figure.add_subplot(grid[1, :3]), figure.add_subplot(grid[1, 3:])
    law_lines = _laws(left)
    shares = {label: _shares(response) for label, response in _COUNTING.items()}
    names = [condition_name(c.camera_length_m, c.photon_energy_eV) for c in CONDITIONS.values()]
    place = np.arange(len(names))
    for column, (label, each) in enumerate(shares.items()):
        offset, colour = 0.2 * (column - 1), (GREEN, BLUE, RED)[column]
        values, errors = zip(*[share.photons for share in each], strict=True)
        right.errorbar(place + offset, values, errors, fmt="o", color=colour, markersize=4, capsize=2, label=label)
        values, errors = zip(*[share.median_spot for share in each], strict=True)
        right.errorbar(place + offset + 0.07, values, errors, fmt="D", color=colour, markersize=4, mfc="white")
    right.set_xticks(place, names, rotation=40, ha="right")
    right.set_ylabel("expected counts / photons")
    right.set_ylim(0.0, 1.0)
    right.set_title(f"spots of {_HITS} hits: all their photons (●), median spot of ≥ {_LEAST_PHOTONS:g} photons (◇)")
    right.legend(loc="upper right", ncols=3)
    right.grid(alpha=0.3)
    rows = [
        [name, *(f"{value:.3f} +- {error:.3f}" for each in shares.values() for value, error in each[n].both)]
        for n, name in enumerate(names)
    ]
    heads = ["counts / photons", *(f"{label}: {what}" for label in shares for what in ("all", "median"))]
    return Drawn({"sim-response": figure}, (*spot_lines, "", *law_lines, "", *text_table(heads, rows)))


def _one_spot(panels: list[Axes]) -> tuple[str, ...]:
    """One spot of condition 2: the same photons, counted in three ways."""
    scene = Scene(Sample(ready_crystal(CRYSTAL)), CONDITIONS[2], eiger2_4m(), hit_fraction=1.0)
    shots = [simulate_shot(replace(scene, response=response_of(kind)), frame_rng(SEED, 2)) for kind in RESPONSES]
    spots, half = shots[0].truth.spots, _CROP_PX // 2
    # Away from the gaps, where nothing of the spot is lost.
    rows, columns = scene.detector.shape
    clear = np.array(
        [
            half < ss < rows - half - 1
            and half < fs < columns - half - 1
            and not scene.detector.mask[int(ss) - half : int(ss) + half + 2, int(fs) - half : int(fs) + half + 2].any()
            for ss, fs in zip(spots.ss, spots.fs, strict=True)
        ]
    )
    chosen = int(np.argmin(np.where(clear, np.abs(spots.photons - _SPOT_PHOTONS), np.inf)))
    ss, fs = (round(float(x[chosen])) - half for x in (spots.ss, spots.fs))
    crop = (slice(ss, ss + _CROP_PX), slice(fs, fs + _CROP_PX))
    rows_of_text = []
    for axes, kind, shot in zip(panels, RESPONSES, shots, strict=True):
        counts = shot.counts[crop]
        show_counts(axes, counts, LogNorm(0.3, 40.0), first=(ss, fs))
        for (row, column), value in np.ndenumerate(counts):
            if value:
                colour = "black" if value > 8 else "white"
                axes.text(fs + column, ss + row, str(value), ha="center", va="center", fontsize=7, color=colour)
        what = "photons, as integrating pixels count" if kind == "integrating" else f"{kind}, charge shared"
        axes.set_title(f"{what}: {int(counts.sum())} counts")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("fs (pixel)")
        axes.set_ylabel("ss (pixel)")
        rows_of_text.append(
            [kind, f"{spots.photons[chosen]:.1f}", f"{shot.truth.spots.counts[_same(shot.truth.spots, ss, fs)]:.1f}",
             str(int(counts.sum()))]
        )  # fmt: skip
    return text_table(["one spot of condition 2", "photons expected", "counts expected", "counts drawn"], rows_of_text)


def _same(spots: TrueSpots, ss: int, fs: int) -> int:
    middle = _CROP_PX // 2
    return int(np.argmin(np.hypot(spots.ss - ss - middle, spots.fs - fs - middle)))


def _laws(axes: Axes) -> tuple[str, ...]:
    """Counts of a pixel and its eight neighbours that a pulse puts n photons into."""
    photons = np.unique([*np.rint(np.geomspace(1.0, 1000.0, 40)).astype(np.int64), *_PICKED])
    found = {}
    for kind in RESPONSES:
        for sigma_m, style in ((0.0, "-"), (CHARGE_SIGMA_M, "--")):
            if kind == "integrating" and sigma_m:
                continue
            mean = np.array([_mean_counts(int(n), Response(kind, charge_sigma_m=sigma_m)) for n in photons])  # type: ignore[arg-type]
            found[kind, sigma_m] = mean
            label = f"{kind}, {'charge shared' if sigma_m else 'no sharing'}" if kind != "integrating" else kind
            axes.plot(photons, mean, style, color=COLOURS[kind], label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 200.0)
    axes.set_xlabel("photons into one pixel in one pulse")
    axes.set_ylabel("counts, the 8 neighbours' included")
    axes.set_title(
        f"threshold 0.5, retrigger ratio 1, charge cloud {CHARGE_SIGMA_M * 1e6:g} µm in {PIXEL_M * 1e6:g} µm"
    )
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    picks = np.searchsorted(photons, _PICKED)
    rows = [[str(photons[i]), *(f"{mean[i]:.2f}" for mean in found.values())] for i in picks]
    heads = ["photons in a pulse", *(f"{kind}{', shared' if sigma else ''}" for kind, sigma in found)]
    return text_table(heads, rows)


def _mean_counts(photons: int, response: Response) -> float:
    """Mean counts of 3 x 3 pixels of which the middle one gets so many photons, at random places in it."""
    image = np.zeros((5, 5 * _REPEATS), dtype=np.uint32)
    image[2, 2::5] = photons
    counts = np.zeros_like(image)
    count(image, response, PIXEL_M, frame_rng(SEED, photons), counts, 2**31, ResponseWorkspace())
    return float(counts.sum()) / _REPEATS


@dataclass(frozen=True, slots=True)
class _Share:
    """Expected counts over photons with its standard error: of all photons of all hits, and of a hit's median spot."""

    photons: tuple[float, float]
    median_spot: tuple[float, float]

    @property
    def both(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return self.photons, self.median_spot


def _shares(response: Response) -> list[_Share]:
    """For each condition, over the same hits."""
    sample, detector, workspace = Sample(ready_crystal(CRYSTAL)), eiger2_4m(), ResponseWorkspace()
    found = []
    for number, condition in CONDITIONS.items():
        water = make_background(condition, detector, Surroundings()).water.expected
        rng = frame_rng(SEED, 1000 + number)
        photons, counts, medians = np.zeros(_HITS), np.zeros(_HITS), []
        for hit in range(_HITS):
            spots = diffract(sample, condition, detector, random_orientation(rng))
            lit = Lit(spots.hkl, spots.partiality, footprint(spots, condition, detector))
            expected = expect((lit.footprint,), water, 1.0, response, detector, workspace)
            photons[hit], counts[hit] = lit.footprint.photons.sum(), expected.counts[0].sum()
            true = true_spots((lit,), expected.counts, detector, _LEAST_PHOTONS)
            if len(true):
                medians.append(float(np.median(true.counts / true.photons)))
        share = counts.sum() / photons.sum()
        # Of a ratio of sums: the spread of what each hit adds to it.
        error = math.sqrt(float(np.sum((counts - share * photons) ** 2))) / photons.sum()
        found.append(
            _Share((share, error), (float(np.mean(medians)), float(np.std(medians, ddof=1) / math.sqrt(len(medians)))))
        )
    return found
