"""Finders side by side on the same reduced frames, whose spots are known: recall, false peaks, places.

Matching is that of `training.evaluation.peak_metrics`: one to one, nearest first, within 4 pixels; a peak on light of a
spot is not false. Spots within 3 pixels of an invalid pixel count neither way. Spots are told by the counts they are
expected to add, and by SNR: those over the root of them and of the background of 3 x 3 pixels.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import minimum_filter
from scipy.stats import chi2

from analyzer.geometry import series_geometry
from analyzer.intervals import wilson
from analyzer.learned_finder import LearnedFinder
from analyzer.reduction import Reduced, Workspace, make_plan
from sim_replay.detector import beam_center_px
from sim_replay.distractors import Kind, Ring
from sim_replay.scene import Scene
from streamer.files import CHANNEL, BadInput
from streamer.validity import saturation_of, series_validity
from training.dataset.series import open_series
from training.dataset.truth import SPOT_PLACE
from training.evaluation.facts import read_facts
from training.evaluation.peak_metrics import Matches, match
from training.peak_finder.light import Light
from training.peak_finder.tiles import reduced_shots
from training.shots import ShotRecipe

CLASSICAL, LEARNED = "classical", "learned"
COUNT_BINS = (2.0, 5.0, 10.0, 20.0, 50.0, math.inf)
SNR_BINS = (1.0, 2.0, 3.0, 5.0, 8.0, math.inf)
FLOOR = 0.02
"""Heat from which peaks are kept for comparison at any threshold above."""

_EDGE_PX = 3
_BORDER_PX = 6
_RING_PX = 12.0
_CLEAN = int(Kind.PROTEIN | Kind.WATER)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class FoundPeaks:
    """Peaks (m, 2) fs, ss of one finder in one frame; surprise (m,), its certainty; beside, on_ring, lit (m,) bool:
    within 6 pixels of an invalid one, within 12 pixels of a powder ring, on light of a crystal."""

    places: Array
    surprise: Array
    beside: npt.NDArray[np.bool_]
    on_ring: npt.NDArray[np.bool_]
    lit: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One frame. spots (n, 2) fs, ss; counts, background (n,): expected, of the spot and of a pixel beneath; edge (n,)
    bool: near an invalid pixel. clean: protein and water alone. one_pixel: all light of a spot falls in one.
    beside_share: of the valid pixels, those within 6 of an invalid one."""

    group: int
    response: str
    clean: bool
    ring: bool
    one_pixel: bool
    spots: Array
    counts: Array
    background: Array
    edge: npt.NDArray[np.bool_]
    beside_share: float
    peaks: dict[str, FoundPeaks]


@dataclass(slots=True)
class Cost:
    """CPU seconds over so many frames: of the reduction with the classical finder in it, and of the learned one."""

    frames: int = 0
    reduce_s: float = 0.0
    learned_s: float = 0.0


class Borders:
    """Where a plan's pixels lie near invalid ones; remembered for the latest plan."""

    def __init__(self) -> None:
        self._valid: npt.NDArray[np.uint8] | None = None
        self._near: dict[int, npt.NDArray[np.bool_]] = {}

    def near(self, workspace: Workspace, reach: int) -> npt.NDArray[np.bool_]:
        """(ss, fs) bool: an invalid pixel is at most so many rows and columns away; the panel's rim counts."""
        valid = workspace.plan.validity.valid
        if valid is not self._valid:
            self._valid, self._near = valid, {}
        if reach not in self._near:
            whole = (valid != 0).astype(np.uint8)
            self._near[reach] = minimum_filter(whole, 2 * reach + 1, mode="constant", cval=0) == 0
        return self._near[reach]


def judge_twin(
    finder: LearnedFinder, recipe: ShotRecipe, seed: int, groups: range, cost: Cost,
    after_group: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Judged]:  # fmt: skip
    """Both finders on simulated shots of these groups of a seed. ``finder`` should keep peaks from ``FLOOR``."""
    borders = Borders()
    for done, group in enumerate(groups, 1):
        for shot in reduced_shots(recipe, seed, range(group, group + 1)):
            truth, scene = shot.truth, shot.scene
            spots = truth.spots
            places = np.stack([spots.fs, spots.ss], 1).reshape(-1, 2)
            radii = [_ring_radius_px(scene, ring) for ring in truth.rings]
            center = beam_center_px(truth.condition, scene.detector)
            peaks = _find(finder, shot.workspace, shot.reduced, cost, borders, radii, center, shot.light)
            kinds = int(truth.kinds)
            near = borders.near(shot.workspace, _EDGE_PX)
            yield Judged(
                group,
                scene.response.kind,
                kinds & ~_CLEAN == 0,
                bool(kinds & int(Kind.ICE | Kind.LIPID | Kind.POLYMER)),
                len(places) > 0 and bool(np.all(np.abs(places - np.round(places)) < 1e-6)),
                places,
                spots.counts,
                _background(shot.workspace, places),
                _at(near, places),
                _beside_share(shot.workspace, borders),
                peaks,
            )
        after_group(done, len(groups))


def judge_series(
    finder: LearnedFinder, masters: Sequence[Path], cost: Cost, most_frames: int,
    after_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Judged]:  # fmt: skip
    """Both finders on series with truth, the first so many frames of each. Raises ``BadInput`` where there is none.

    Spots have the photons of the truth for counts: what a pixel that counts once a pulse makes of them is not in it.
    """
    borders = Borders()
    for number, master in enumerate(masters):
        with open_series(master) as series:
            facts = read_facts(series)
            if missing := facts.truth.missing(*SPOT_PLACE):
                raise BadInput(missing)
            geometry = series_geometry(series.metadata, series.shape)
            validity = series_validity(series.metadata, series.shape, CHANNEL)
            dtype = series.files.dtype.newbyteorder("=")
            plan = make_plan(geometry, validity, saturation_of(series.metadata, dtype))
            workspace = Workspace(plan, dtype)
            frames = min(len(series), most_frames)
            for frame in range(frames):
                workspace.pixels[:] = series.pixels(frame)
                began = time.process_time()
                reduced = workspace.reduce()
                cost.reduce_s += time.process_time() - began
                ss, fs, photons = facts.truth.spots(frame)
                places = np.stack([fs, ss], 1).reshape(-1, 2).astype(np.float64)
                yield Judged(
                    number,
                    facts.response or "integrating",
                    True,
                    False,
                    False,
                    places,
                    np.asarray(photons, np.float64),
                    _background(workspace, places),
                    _at(borders.near(workspace, _EDGE_PX), places),
                    _beside_share(workspace, borders),
                    _find(finder, workspace, reduced, cost, borders, [], (0.0, 0.0), None),
                )
                after_frame(frame + 1, frames)


def _find(
    finder: LearnedFinder, workspace: Workspace, reduced: Reduced, cost: Cost, borders: Borders,
    radii: Sequence[float], center: tuple[float, float], light: Light | None,
) -> dict[str, FoundPeaks]:  # fmt: skip
    classical = reduced.peaks.copy()
    began = time.process_time()
    learned = finder.find(workspace, reduced)
    cost.learned_s += time.process_time() - began
    cost.frames += 1
    beside = borders.near(workspace, _BORDER_PX)
    found = {}
    for name, peaks in ((CLASSICAL, classical), (LEARNED, learned)):
        places = np.stack([peaks["fs"], peaks["ss"]], 1).astype(np.float64).reshape(-1, 2)
        away = np.hypot(places[:, 0] - center[0] + 0.5, places[:, 1] - center[1] + 0.5)
        on_ring = np.zeros(len(places), np.bool_)
        for radius in radii:
            on_ring |= abs(away - radius) <= _RING_PX
        lit = np.zeros(len(places), np.bool_) if light is None else light.at(places)
        found[name] = FoundPeaks(places, peaks["surprise"].astype(np.float64), _at(beside, places), on_ring, lit)
    return found


def _ring_radius_px(scene: Scene, ring: Ring) -> float:
    condition = scene.condition
    sine = min(1.0, condition.wavelength_angstrom / (2.0 * ring.d_angstrom))
    return condition.camera_length_m * math.tan(2.0 * math.asin(sine)) / scene.detector.pixel_size_m


def _pixel(places: Array, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    fs = np.clip(np.round(places[:, 0]), 0, shape[1] - 1).astype(np.intp)
    ss = np.clip(np.round(places[:, 1]), 0, shape[0] - 1).astype(np.intp)
    return ss, fs


def _at(image: npt.NDArray[np.bool_], places: Array) -> npt.NDArray[np.bool_]:
    values: npt.NDArray[np.bool_] = image[_pixel(places, image.shape)]
    return values


def _background(workspace: Workspace, places: Array) -> Array:
    ss, fs = _pixel(places, workspace.pixels.shape)
    values: Array = workspace.background[workspace.plan.bins.bin_of[ss * workspace.pixels.shape[1] + fs]]
    return values


def _beside_share(workspace: Workspace, borders: Borders) -> float:
    valid = workspace.plan.validity.valid != 0
    beside = borders.near(workspace, _BORDER_PX) & valid
    return float(beside.sum()) / max(1.0, float(valid.sum()))


# --- counting ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """One finder on one frame at one threshold; ``kept``: which of its peaks those are."""

    frame: Judged
    matches: Matches
    kept: FoundPeaks

    @property
    def false(self) -> npt.NDArray[np.bool_]:
        """(m,) bool: which of the peaks are false."""
        wrong: npt.NDArray[np.bool_] = (self.matches.spot_of == -2) & ~self.kept.lit
        return wrong


def matched(frames: Iterable[Judged], finder: str, least_surprise: float = -math.inf) -> list[Matched]:
    """The peaks of a finder that are this sure, matched frame by frame."""
    made = []
    for frame in frames:
        peaks = frame.peaks[finder]
        sure = peaks.surprise >= least_surprise
        kept = FoundPeaks(*(getattr(peaks, each.name)[sure] for each in fields(FoundPeaks)))
        made.append(Matched(frame, match(kept.places, frame.spots, frame.counts), kept))
    return made


def false_peaks(some: Sequence[Matched]) -> int:
    return sum(int(each.false.sum()) for each in some)


def threshold_for(frames: Sequence[Judged], finder: str, false_a_frame: float) -> float:
    """The least surprise at which clean frames have no more false peaks than this, in the mean."""
    clean = [frame for frame in frames if frame.clean]
    surprises = np.sort(np.concatenate([[0.0], *(each.kept.surprise[each.false] for each in matched(clean, finder))]))[
        ::-1
    ]
    allowed = int(false_a_frame * len(clean))
    if allowed >= len(surprises):
        return float(surprises[-1])
    return float(np.nextafter(surprises[allowed], math.inf))


def poisson_interval(count: int, chance: float = 0.95) -> tuple[float, float]:
    """Exact interval of the mean of a Poisson count (Garwood 1936)."""
    tail = (1.0 - chance) / 2.0
    low = 0.0 if count == 0 else float(chi2.ppf(tail, 2 * count)) / 2.0
    return low, float(chi2.ppf(1.0 - tail, 2 * count + 2)) / 2.0


def spot_table(some: Sequence[Matched]) -> dict[str, Array]:
    """Of every merged true spot that counts: counts, snr, found (0, 1), distance of its peak (NaN), one_pixel."""
    columns: dict[str, list[Array]] = {name: [] for name in ("counts", "snr", "found", "distance", "one_pixel")}
    for each in some:
        matches, frame = each.matches, each.frame
        found, distance = np.zeros(len(matches.photons)), np.full(len(matches.photons), np.nan)
        taken = matches.spot_of >= 0
        found[matches.spot_of[taken]] = 1.0
        distance[matches.spot_of[taken]] = matches.distance[taken]
        # A merged spot stands at its brightest, which is one of the frame's own.
        own = np.array([np.flatnonzero((frame.spots == spot).all(1))[0] for spot in matches.spots], np.intp)
        counted = ~frame.edge[own]
        snr = matches.photons / np.sqrt(matches.photons + 9.0 * frame.background[own])
        one_pixel = np.full(len(own), float(frame.one_pixel))
        for name, values in zip(columns, (matches.photons, snr, found, distance, one_pixel), strict=True):
            columns[name].append(values[counted])
    return {name: np.concatenate([np.empty(0), *parts]) for name, parts in columns.items()}


Row = dict[str, Any]


def recall_rows(sets: Mapping[str, Sequence[Matched]], by: str, edges: Sequence[float]) -> list[Row]:
    """Recall with Wilson's interval in bins of ``counts`` or ``snr``: a row a bin, a column a set."""
    tables = {name: spot_table(some) for name, some in sets.items()}
    rows = []
    for low, high in itertools.pairwise(edges):
        row: Row = {by: f"{low:g} and more" if high == math.inf else f"{low:g} to {high:g}"}
        for name, table in tables.items():
            inside = (table[by] >= low) & (table[by] < high)
            found, true = int(table["found"][inside].sum()), int(inside.sum())
            row["spots"] = true
            row[name] = _share(found, true)
        rows.append(row)
    return rows


def least_rows(sets: Mapping[str, Sequence[Matched]], least: Sequence[float] = (5.0, 10.0, 20.0)) -> list[Row]:
    """The issue's figures: recall of spots from so many counts, and false peaks a frame."""
    rows = []
    for name, some in sets.items():
        table = spot_table(some)
        row: Row = {"finder": name, "frames": len(some)}
        for counts in least:
            inside = table["counts"] >= counts
            row[f"recall from {counts:g}"] = _share(int(table["found"][inside].sum()), int(inside.sum()))
        row["false peaks a frame"] = _rate(false_peaks(some), len(some))
        rows.append(row)
    return rows


def false_rows(sets: Mapping[str, Sequence[Matched]]) -> list[Row]:
    """False peaks where they might be more: beside invalid pixels, on powder rings, in frames with faults.

    Those beside invalid pixels are given for a frame's worth of such pixels, as those elsewhere.
    """
    rows = []
    for name, some in sets.items():
        clean = [each for each in some if each.frame.clean]
        rings = [each for each in some if each.frame.ring]
        others = [each for each in some if not each.frame.clean and not each.frame.ring]
        beside = sum(int((each.kept.beside & each.false).sum()) for each in clean)
        share = sum(each.frame.beside_share for each in clean)
        on_ring = sum(int((each.kept.on_ring & each.false).sum()) for each in rings)
        rows.append({
            "finder": name,
            "clean frames": len(clean),
            "elsewhere": _rate(false_peaks(clean) - beside, len(clean) - share),
            "beside gaps": _rate(beside, share),
            "ring frames": len(rings),
            "on rings": _rate(on_ring, len(rings)),
            "off them": _rate(false_peaks(rings) - on_ring, len(rings)),
            "salt, faults": f"{_rate(false_peaks(others), len(others))} in {len(others)}",
        })  # fmt: skip
    return rows


def place_rows(sets: Mapping[str, Sequence[Matched]]) -> list[Row]:
    """Median distance of peak and spot, pixels, of spots of one pixel and of larger ones, by counts."""
    rows = []
    for name, some in sets.items():
        table = spot_table(some)
        found = np.isfinite(table["distance"])
        row: Row = {"finder": name}
        for low, high in ((5.0, 20.0), (20.0, 50.0), (50.0, math.inf)):
            for one, text in ((1.0, "one pixel"), (0.0, "larger")):
                inside = found & (table["one_pixel"] == one) & (table["counts"] >= low) & (table["counts"] < high)
                title = f"{text}, {low:g}" + (f" to {high:g}" if high < math.inf else "+")
                row[title] = f"{np.median(table['distance'][inside]):.2f} ({inside.sum()})" if inside.any() else "–"
        rows.append(row)
    return rows


def _share(found: int, true: int) -> str:
    if not true:
        return "–"
    low, high = wilson(found, true)
    return f"{found / true:.3f} ({low:.3f} to {high:.3f})"


def _rate(count: int, frames: float) -> str:
    if frames <= 0:
        return "–"
    low, high = poisson_interval(count)
    return f"{count / frames:.3f} ({low / frames:.3f} to {high / frames:.3f})"
