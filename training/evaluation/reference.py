"""The references of all series of an evaluation: the scores that `ideal`, `blocks` and the bare total count give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analyzer.geometry import Geometry, series_geometry
from streamer.files import CHANNEL
from streamer.validity import series_validity
from training.dataset.series import OpenSeries, UnreadableFrame, open_series
from training.evaluation.blocks import BlockObserver, cut_blocks, draw_templates, make_grid
from training.evaluation.facts import Facts
from training.evaluation.ideal import Observer, evened, make_panel, spot_light
from training.evaluation.library import Library, Unknown, library_of
from training.evaluation.scoring import Progress

Array = npt.NDArray[np.float64]

CLEAN = ("protein", "water", "hit", "empty")
"""Contents of frames that the reference knows how to explain."""


@dataclass(frozen=True, slots=True, eq=False)
class Referred:
    """Of one series, a frame each (N,): log likelihood ratios by blocks and by pixels, NaN where there are none, and
    all counts of a frame on valid pixels. why_not says what kept the ratios from being made."""

    blocks: Array
    pixels: Array
    total: Array
    why_not: str = ""


def refer(facts: Sequence[Facts], crystals: Path | None, progress: Progress | None = None) -> list[Referred]:
    """The references of series, frame by frame. crystals: folder of sparse patterns."""
    total, done = sum(each.frames for each in facts), 0
    found = []
    for each in facts:
        with open_series(each.path) as series:

            def after_frame(number: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + number, total)

            found.append(_refer(each, series, crystals, after_frame))
        done += each.frames
    return found


def _refer(facts: Facts, series: OpenSeries, crystals: Path | None, after_frame: Callable[[int], None]) -> Referred:
    geometry = series_geometry(series.metadata, series.shape)
    valid = series_validity(series.metadata, series.shape, CHANNEL).valid != 0
    blocks, pixels, total = (np.full(facts.frames, np.nan) for _ in range(3))
    why_not = ""
    observers: list[Observers] = []
    try:
        library = library_of(facts, series.shape, crystals)
        observers = make_observers(library, valid, geometry)
    except Unknown as error:
        why_not = str(error)
    contents = facts.by_column["content"]
    empties = 0
    for n in range(facts.frames):
        try:
            frame = series.pixels(n)
        except UnreadableFrame:
            continue
        total[n] = float(frame[valid].sum(dtype=np.int64))
        if observers and not facts.no_beam[n] and contents[n] in CLEAN:
            number = int(facts.crystal[n]) if library.numbered else -1
            if number < 0:
                # Without a crystal to leave out: each observer in turn, as hits have them.
                number, empties = empties % len(observers), empties + 1
            # What is no use reads as the dtype's largest value; it is no count.
            counts = np.where(valid, frame, 0)
            pixels[n], blocks[n] = observers[number].pixels.score(counts), observers[number].blocks.score(counts)
        after_frame(n + 1)
    return Referred(blocks, pixels, total, why_not)


@dataclass(frozen=True, slots=True, eq=False)
class Observers:
    """The two references, told the same: see `ideal` and `blocks`."""

    pixels: Observer
    blocks: BlockObserver


def make_observers(library: Library, valid: npt.NDArray[np.bool_], geometry: Geometry) -> list[Observers]:
    """Observers for each crystal of a numbered library, which they have not seen; else some that have seen all."""
    center = geometry.beam_center_fs, geometry.beam_center_ss
    panel = make_panel(library.background, valid, *center)
    grid = make_grid(panel, valid.shape, *center)
    cuts = [cut_blocks(crystal, panel, grid, valid.shape[1]) for crystal in library.crystals]
    everyone = range(len(library.crystals))
    if library.numbered and len(library.crystals) < 2:
        raise Unknown("a library of one crystal leaves none to compare it with")
    sets = [[k for k in everyone if k != n] for n in everyone] if library.numbered else [list(everyone)]
    observers = []
    for seed, chosen in enumerate(sets):
        some = [library.crystals[k] for k in chosen]
        plain = Observer(panel, spot_light(some, panel), library.spread, library.pulses)
        brighter, sigma = evened(some, panel)
        even = [(index, photons / by) for (index, photons), by in zip(some, brighter, strict=True)]
        spread = replace(library.spread, brightness_sigma=sigma)
        scales = Observer(panel, spot_light(even, panel), spread, library.pulses)
        templates = draw_templates([cuts[k].dimmed(by) for k, by in zip(chosen, brighter, strict=True)], grid, seed)
        observers.append(Observers(plain, BlockObserver(scales, grid, templates, library.pulses)))
    return observers
