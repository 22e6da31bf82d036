"""Series on disk reduced to what the hit network sees, by the analyser that would judge them live.

A frame costs its zones and its strongest cells, 9 kB whatever its size, of which 229,000 frames fill the `MOST_BYTES`
that are allowed. Frames are read one at a time; of a longer run take so many, evenly over it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analyzer import zones
from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.results import Decision, FrameResult, Status
from analyzer.zones import header_of
from streamer.files import CHANNEL, BadInput, FileSeries
from streamer.frames import Frame
from streamer.messages import ImageData
from streamer.series import Series
from streamer.validity import Validity
from training.dataset.series import OpenSeries, open_series
from training.evaluation.facts import Facts, read_facts
from training.shots import FACTS, ShotSet

Progress = Callable[[int, int], None]
"""Called with (done, total); may raise to end the work."""

MOST_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class SeriesCount:
    """What became of a series: frames it has, those reduced, undecodable and without beam; the first's problem."""

    path: Path
    frames: int
    reduced: int
    bad: int
    no_beam: int
    problem: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ReducedSeries:
    """Good frames with beam, series after series.

    shots (N): `hit` is the truth where `known` (N,) bool, False elsewhere; a series is a group; of the facts, those
    that truth or header tell, NaN for others (kinds 0). peak_count (N,) of the classical finder. probability (N,) that
    the bundle gave. position (N,) in the series. crystal (N,): frames of one number show one pattern of light. counts:
    the series in order.
    """

    shots: ShotSet
    known: npt.NDArray[np.bool_]
    peak_count: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    position: npt.NDArray[np.int64]
    crystal: npt.NDArray[np.int64]
    counts: tuple[SeriesCount, ...]

    def __len__(self) -> int:
        return len(self.shots)


def reduce_series(
    masters: Sequence[Path],
    bundle: Bundle,
    *,
    mask: Validity | None = None,
    frames: int | None = None,
    progress: Progress | None = None,
) -> ReducedSeries:
    """Reduce the frames of series, or so many of them at even distances; undecodable ones are counted and left out.

    Raises BadInput for files that hold no series, for images of different shapes, for a mask of another, for more
    frames than fit in `MOST_BYTES`, and when no frame is good.
    """
    lengths, shape = _survey(masters)
    if mask is not None and mask.valid.shape != shape:
        raise BadInput(f"mask {mask.misfit(shape)}")
    chosen = _choose(lengths, frames)
    reducer = _Reducer(bundle, mask, shape, sum(map(len, chosen)), progress)
    for number, (path, positions) in enumerate(zip(masters, chosen, strict=True)):
        with open_series(path) as opened:
            reducer.add(number, opened, positions)
    return reducer.finish()


def _survey(masters: Sequence[Path]) -> tuple[list[int], tuple[int, int]]:
    lengths: list[int] = []
    shape: tuple[int, int] | None = None
    for path in masters:
        files = FileSeries(path)
        files.close()
        lengths.append(len(files))
        if shape is not None and files.shape != shape:
            raise BadInput(
                f"{path}: images of {files.shape}, {masters[0]} has {shape}; give series of one detector at a time"
            )
        shape = files.shape
    if shape is None:
        raise BadInput("no series given; name Eiger masters, a folder of them or a glob")
    return lengths, shape


def _choose(lengths: Sequence[int], frames: int | None) -> list[list[int]]:
    """Positions of the frames to take of each series."""
    total = sum(lengths)
    wanted = total if frames is None else min(frames, total)
    most = MOST_BYTES // (4 * (zones.ZONES * zones.COLUMNS + zones.STRONGEST * zones.CELL_COLUMNS))
    if wanted > most:
        raise BadInput(
            f"{wanted} frames take more than {MOST_BYTES >> 30} GiB once reduced; take {most} or fewer, evenly over "
            "the run"
        )
    overall = np.unique(np.rint(np.linspace(0, total - 1, wanted)).astype(np.int64))
    starts = np.cumsum([0, *lengths])
    return [
        (overall[(overall >= start) & (overall < end)] - start).tolist() for start, end in itertools.pairwise(starts)
    ]


class _Reducer:
    """Arrays that fill up frame by frame."""

    def __init__(
        self,
        bundle: Bundle,
        mask: Validity | None,
        shape: tuple[int, int],
        total: int,
        progress: Progress | None,
    ) -> None:
        self._analyser = Analyser(bundle, CascadeSettings(mask=mask))
        self._shape, self._total, self._progress = shape, total, progress
        self._done = self._kept = 0
        self._zones = np.zeros((total, zones.ZONES, zones.COLUMNS), np.float32)
        self._cells = np.zeros((total, zones.STRONGEST, zones.CELL_COLUMNS), np.float32)
        self._header = np.zeros((total, 2), np.float32)
        self._series, self._position, self._peak_count, self._crystal = np.zeros((4, total), np.int64)
        self._hit, self._known = np.zeros((2, total), bool)
        self._probability = np.zeros(total)
        self._facts = {name: np.full(total, np.nan) for name in FACTS}
        self._crystals: dict[str, int] = {}
        self._counts: list[SeriesCount] = []

    def add(self, number: int, opened: OpenSeries, positions: Sequence[int]) -> None:
        """Reduce these frames of a series."""
        facts = read_facts(opened) if opened.truth is not None and opened.truth.hits is not None else None
        series = Series(number + 1, number + 1, None, opened.metadata)
        before, bad, no_beam, problem = self._kept, 0, 0, ""
        for position in positions:
            image = opened.files.image_or_defect(position)
            (result,) = self._analyser.process([Frame(series, position, CHANNEL, image, None, None, 0.0)]).results
            if result.status != Status.OK or not isinstance(image, ImageData) or image.shape != self._shape:
                bad += 1
                problem = problem or result.status_text or f"image of {image.shape}"  # type: ignore[union-attr]
            elif result.decision == Decision.NO_BEAM:
                no_beam += 1
            else:
                self._keep(number, series, image, position, result)
                self._tell(opened, facts, position)
                self._kept += 1
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
        self._analyser.forget(series)
        self._counts.append(SeriesCount(opened.path, len(opened), self._kept - before, bad, no_beam, problem))

    def _keep(self, number: int, series: Series, image: ImageData, position: int, result: FrameResult) -> None:
        """What the analyser has just made of a frame still lies in its workspace."""
        dtype, n = image.dtype.newbyteorder("="), self._kept
        workspace = next(
            each for each in self._analyser.workspaces(series) if (each.plan.shape, each.dtype) == (self._shape, dtype)
        )
        self._zones[n], self._cells[n] = workspace.zones, workspace.cells
        self._header[n] = header_of(workspace.plan.geometry)
        self._series[n], self._position[n] = number, position
        self._peak_count[n], self._probability[n] = result.peak_count or 0, result.hit_probability or 0.0

    def _tell(self, opened: OpenSeries, facts: Facts | None, position: int) -> None:
        """What header and truth know of the frame."""
        n = self._kept
        length, energy = opened.condition
        stated = {"photon_energy_eV": energy, "camera_length_m": length, "kinds": 0.0}
        for name, value in stated.items():
            self._facts[name][n] = np.nan if value is None else value
        name = f"{opened.path} frame {position}"
        if facts is not None and facts.hit is not None:
            self._known[n], self._hit[n] = True, facts.hit[position]
            name = facts.group[position] if facts.hit[position] else name
            for fact in set(FACTS) - {"kinds"}:
                values = facts.truth.per_frame(fact)
                if values is not None and values.ndim == 1 and values.dtype.kind in "iuf":
                    self._facts[fact][n] = values[position]
        self._crystal[n] = self._crystals.setdefault(name, len(self._crystals))

    def finish(self) -> ReducedSeries:
        """The frames so far. Raises BadInput when there are none."""
        n = self._kept
        if not n:
            bad, dark = sum(count.bad for count in self._counts), sum(count.no_beam for count in self._counts)
            problem = next((f" ({count.path}: {count.problem})" for count in self._counts if count.problem), "")
            raise BadInput(f"no frame to learn from: {bad} undecodable, {dark} without beam{problem}")
        shots = ShotSet(
            self._zones[:n],
            self._cells[:n],
            self._header[:n],
            self._series[:n],
            self._hit[:n],
            {name: values[:n] for name, values in self._facts.items()},
        )
        return ReducedSeries(
            shots,
            self._known[:n],
            self._peak_count[:n],
            self._probability[:n],
            self._position[:n],
            self._crystal[:n],
            tuple(self._counts),
        )
