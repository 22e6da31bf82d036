"""Whole frames: the nine conditions under each response, and one of every distractor."""

from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cxls.figures.drawing import (
    SEED,
    Drawn,
    Request,
    binned,
    condition_name,
    most_nearby,
    new_figure,
    show_counts,
    text_table,
)
from sim_replay.artefacts import Artefacts, fixed_pixels
from sim_replay.cells import ready_crystal
from sim_replay.detector import CONDITIONS, Detector, eiger2_4m
from sim_replay.diffraction import Sample
from sim_replay.distractors import Distractors, kinds_names, main_class
from sim_replay.response import Response
from sim_replay.scene import Scene
from sim_replay.shots import Shot, frame_rng, simulate_shot

CRYSTAL = "proteinase-k"
CHARGE_SIGMA_M = 8e-6
RESPONSES: tuple[str, ...] = get_args(get_type_hints(Response)["kind"])

_INNER_PX, _OUTER_PX = 4, 16
_ZOOM_PX = 16
_NORM = LogNorm(0.2, 300.0)
_QUANTITY = f"largest sum of {_INNER_PX} × {_INNER_PX} pixels in each {_OUTER_PX} × {_OUTER_PX}"


def response_of(kind: Any) -> Response:
    """A response with the usual charge sharing; the integrating one has none."""
    return Response(kind, charge_sigma_m=0.0 if kind == "integrating" else CHARGE_SIGMA_M)


def draw_conditions(request: Request) -> Drawn:
    """One hit under each of the nine conditions, the same crystals and photons for the three responses."""
    del request
    detector, sample = eiger2_4m(), Sample(ready_crystal(CRYSTAL))
    shots = {
        (kind, number): simulate_shot(
            Scene(sample, condition, detector, response=response_of(kind), hit_fraction=1.0),
            frame_rng(SEED, number),
        )
        for kind in RESPONSES
        for number, condition in CONDITIONS.items()
    }
    rows = []
    for number, condition in CONDITIONS.items():
        truth = shots["integrating", number].truth
        counted = [int(shots[kind, number].counts[~detector.mask].sum(dtype=np.int64)) for kind in RESPONSES]
        largest = [int(shots[kind, number].counts[~detector.mask].max()) for kind in RESPONSES]
        rows.append(
            [
                f"{number}: {condition_name(condition.camera_length_m, condition.photon_energy_eV)}",
                f"{truth.bragg_photons:.0f}",
                f"{truth.background_photons:.0f}",
                f"{int(np.sum(truth.spots.photons >= 5.0))}",
                " / ".join(map(str, counted)),
                " / ".join(map(str, largest)),
            ]
        )
    heads = [
        "condition", "Bragg photons", "water photons", "spots >= 5 photons",
        f"counts: {' / '.join(RESPONSES)}", "largest count",
    ]  # fmt: skip
    figures = {
        f"sim-conditions-{kind.replace('_', '-')}": _nine({n: shots[kind, n] for n in CONDITIONS}, detector)
        for kind in RESPONSES
    }
    return Drawn(figures, text_table(heads, rows))


def _nine(shots: dict[int, Shot], detector: Detector) -> Figure:
    figure = new_figure(9.6, 10.0)
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    for axes, (number, shot) in zip(grid.flat, shots.items(), strict=True):
        condition = CONDITIONS[number]
        shown = show_counts(axes, most_nearby(shot.counts, detector.mask, _INNER_PX, _OUTER_PX), _NORM, _OUTER_PX)
        axes.set_title(f"{number}: {condition_name(condition.camera_length_m, condition.photon_energy_eV)}")
        _zoom(axes, shot, detector)
    for axes in grid[-1]:
        axes.set_xlabel("fs (pixel)")
    for axes in grid[:, 0]:
        axes.set_ylabel("ss (pixel)")
    bar = figure.colorbar(
        shown, ax=grid, location="bottom", shrink=0.6, aspect=40, pad=0.015, extend="both", ticks=[1, 10, 100]
    )
    bar.ax.minorticks_off()
    bar.set_label(f"counts: {_QUANTITY} (frame); each pixel (inset)")
    return figure


def _zoom(axes: Axes, shot: Shot, detector: Detector) -> None:
    """The brightest spot off the panel's rim, if there is one, pixel by pixel in the corner farthest from it."""
    spots, half = shot.truth.spots, _ZOOM_PX // 2
    rows, columns = detector.shape
    inside = (spots.ss > half) & (spots.ss < rows - half) & (spots.fs > half) & (spots.fs < columns - half)
    if not inside.any():
        return
    best = int(np.argmax(spots.photons * inside))
    ss, fs = round(spots.ss[best]) - half, round(spots.fs[best]) - half
    left = 0.01 if fs > columns / 2 else 0.68
    bottom = 0.01 if ss < rows / 2 else 0.68
    inset = axes.inset_axes((left, bottom, 0.31, 0.31))
    crop = (slice(ss, ss + _ZOOM_PX), slice(fs, fs + _ZOOM_PX))
    show_counts(inset, np.where(detector.mask[crop], np.nan, shot.counts[crop]), _NORM, first=(ss, fs))
    inset.set_xticks([])
    inset.set_yticks([])
    for spine in inset.spines.values():
        spine.set_visible(True)
        spine.set_color("white")
    box = 4 * _ZOOM_PX
    axes.add_patch(
        Rectangle((fs + half - box / 2, ss + half - box / 2), box, box, fill=False, edgecolor="white", linewidth=0.8)
    )
    largest = int(np.where(detector.mask[crop], 0, shot.counts[crop]).max())
    for place, text in ((0.04, f"{spots.photons[best]:.0f} photons"), (0.88, f"largest {largest}")):
        inset.text(0.04, place, text, color="white", fontsize=7, transform=inset.transAxes)


@dataclass(frozen=True, slots=True)
class _Exhibit:
    """A frame without crystals; of it a square of `side_px` pixels from (ss, fs) `first`, or all where that is 0."""

    title: str
    distractors: Distractors = field(default_factory=Distractors)
    artefacts: Artefacts = field(default_factory=Artefacts)
    frame: int = 1
    first: tuple[int, int] = (0, 0)
    side_px: int = 0
    bin_px: int = 1


_EXHIBITS = (
    _Exhibit("salt", Distractors(salt=1.0), frame=30, first=(0, 1588), side_px=480, bin_px=4),
    _Exhibit("ice", Distractors(ice_ring=1.0), frame=25),
    _Exhibit("lipid", Distractors(lipid_ring=1.0), frame=12, first=(921, 874), side_px=320, bin_px=2),
    _Exhibit("PEG", Distractors(polymer_ring=1.0), frame=39),
    _Exhibit("faulty pixels", artefacts=Artefacts(hot_pixels=20, flickering_pixels=60, flicker_share=0.5)),
    _Exhibit("cosmic rays", artefacts=Artefacts(cosmics=400.0), first=(860, 545), side_px=96),
    _Exhibit("module edge", artefacts=Artefacts(edge_glow_share=1.0)),
    _Exhibit("no beam", Distractors(no_beam=1.0), Artefacts(dark_counts=1e-4)),
)


def draw_distractors(request: Request) -> Drawn:
    """A frame of each distractor, named as its truth names it."""
    del request
    detector, condition = eiger2_4m(), CONDITIONS[2]
    sample = Sample(ready_crystal(CRYSTAL))
    figure = new_figure(11.0, 6.9)
    grid = figure.subplots(2, 4)
    rows = []
    for axes, exhibit in zip(grid.flat, _EXHIBITS, strict=True):
        scene = Scene(
            sample, condition, detector, distractors=exhibit.distractors, artefacts=exhibit.artefacts, hit_fraction=0.0
        )
        fixed = fixed_pixels(exhibit.artefacts, detector.mask, SEED)
        shot = simulate_shot(scene, frame_rng(SEED, exhibit.frame), fixed=fixed)
        if exhibit.side_px:
            crop = tuple(slice(start, start + exhibit.side_px) for start in exhibit.first)
            counts = binned(shot.counts[crop], detector.mask[crop], exhibit.bin_px)
            shown = show_counts(axes, counts, _NORM, exhibit.bin_px, exhibit.first)
            seen = f"sums of {exhibit.bin_px} × {exhibit.bin_px}" if exhibit.bin_px > 1 else "each pixel"
        else:
            counts = most_nearby(shot.counts, detector.mask, _INNER_PX, _OUTER_PX)
            shown, seen = show_counts(axes, counts, _NORM, _OUTER_PX), "whole frame"
        names = ", ".join(kinds_names(shot.truth.kinds))
        axes.set_title(f"{exhibit.title} ({seen})\n{names}; class {main_class(shot.truth.kinds)}")
        truth = shot.truth
        rows.append(
            [
                exhibit.title, names, main_class(truth.kinds), f"{truth.background_photons:.0f}",
                f"{len(truth.rings)}", f"{sum(ring.photons for ring in truth.rings):.0f}",
                f"{len(truth.distractor_spots)}", ", ".join(truth.salt_names[:1]) or "-",
            ]
        )  # fmt: skip
    for axes in grid[1]:
        axes.set_xlabel("fs (pixel)")
    for axes in grid[:, 0]:
        axes.set_ylabel("ss (pixel)")
    bar = figure.colorbar(
        shown, ax=grid, location="bottom", shrink=0.6, aspect=50, pad=0.02, extend="both", ticks=[1, 10, 100]
    )
    bar.ax.minorticks_off()
    bar.set_label(f"counts (whole frames: {_QUANTITY})")
    heads = ["frame", "classes", "class", "photons, not protein", "rings", "photons in rings", "salt spots", "salt"]
    return Drawn({"sim-distractors": figure}, text_table(heads, rows))
