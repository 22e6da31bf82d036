"""Our peakfinder8 against OM's with the same parameters on the same frames, and against truth.

Frames are of the simulator, or of series that are given (``--masters``). The same peak is one within a
pixel of the other's; recall and false peaks are by the truth of the series, as ``cxls evaluate`` counts
them. CrystFEL is not run: what is quoted of it was measured with indexamajig 0.12.0 on frames of other
crystals, see ``CRYSTFEL``.
"""

import glob
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from analyzer.geometry import series_geometry
from analyzer.peakfinder8 import Peakfinder8, Peakfinder8Settings, Statistics
from cxls.bench import om_peer as om
from cxls.bench.inputs import decoded, image_data, packed_frames
from cxls.bench.peaks import OurFinder
from cxls.bench.report import Figure, Report
from cxls.settings import BadSettings, BenchSettings
from sim_replay.background import Surroundings
from sim_replay.crystal import proteinase_k
from sim_replay.detector import CONDITIONS
from sim_replay.diffraction import Sample
from sim_replay.scene import Scene
from sim_replay.simulation import Plan, simulate_series
from streamer.frames import Frame
from streamer.validity import saturation_of, series_validity
from training.dataset.series import open_series
from training.evaluation.facts import Facts, read_facts
from training.evaluation.peak_metrics import PHOTONS, PeakCount, match, spots_of

SAME_PX = 1.0
SIMULATED = {"normal": (3e8, 1.0), "bright-water": (3e8, 33.0), "low-flux": (3e6, 1.0)}
"""Photons a pulse, and water in units of the usual, of frames that are simulated where none are given."""

SIMULATED_CONDITIONS = (1, 5, 9)


@dataclass(frozen=True, slots=True)
class _Run:
    """Parameters of a comparison, and what indexamajig found with them in ``CRYSTFEL``'s scenarios."""

    name: str
    threshold: float
    snr: float
    pixels: int

    @property
    def text(self) -> str:
        return f"threshold {self.threshold:g}, SNR {self.snr:g}, {self.pixels} pixel" + "s" * (self.pixels > 1)


RUNS = (_Run("3/5/1", 3.0, 5.0, 1), _Run("5/5/2", 5.0, 5.0, 2))

CRYSTFEL = {
    ("normal", "3/5/1"): (28.2, 0.3, 0.95, 0.7),
    ("normal", "5/5/2"): (7.2, 0.0, 0.43, 0.1),
    ("bright-water", "3/5/1"): (656.5, 630.3, 0.95, 629.0),
    ("bright-water", "5/5/2"): (8.0, 0.1, 0.45, 0.3),
    ("low-flux", "3/5/1"): (0.4, None, 0.18, 0.0),
    ("low-flux", "5/5/2"): (0.0, None, 0.03, 0.0),
}
"""indexamajig 0.12.0 (CrystFEL), ``--peaks=peakfinder8 --max-pix-count=200 --local-bg-radius=3 --max-res=1600``: peaks
a frame with a crystal, peaks an empty frame, recall of spots whose brightest pixel expects more than 5 photons, false
peaks a frame. Mean over the nine conditions; patterns of pattern_sim 0.10.2 with water added, gapless panel,
measured once outside this repository: frames like the ones here, not the same."""


@dataclass(slots=True)
class _Found:
    """What one finder made of a scenario."""

    count: PeakCount
    with_crystal: list[int]
    empty: list[int]
    cpu_ms: list[float]

    def add(self, positions: npt.NDArray[np.float64], facts: Facts, frame: int, cpu_ms: float) -> None:
        ss, fs, photons = facts.truth.spots(frame)
        self.count.add(match(positions, spots_of(fs, ss), photons))
        hit = facts.hit is not None and bool(facts.hit[frame])
        (self.with_crystal if hit else self.empty).append(len(positions))
        self.cpu_ms.append(cpu_ms)


def run(settings: BenchSettings) -> Report:
    """Every scenario with both sets of parameters, and with counting statistics."""
    torch.set_num_threads(1)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder:
        for scenario, masters in _scenarios(settings, Path(folder)):
            for each in RUNS:
                figures += _compare(scenario, masters, each, settings.frames, Path(folder))
            figures += _counting(scenario, masters, settings.frames)
    return Report(
        f"peakfinder8: same parameters, same frames; peaks within {SAME_PX:g} pixel are the same",
        figures,
        (),
        (
            *(f"{each.name}: {each.text}" for each in RUNS),
            "max_pix_count 200, local_bg_radius 3, max_res 1600; CPU of finding alone, one thread, median over frames",
            f"recall: of spots with at least {PHOTONS[0]:g} and {PHOTONS[1]:g} expected photons",
            "peakfinder8-poisson: threshold 0, SNR 6, 1 pixel; built-in: CPU of the whole reduction",
            "CrystFEL: indexamajig 0.12.0, not run here; like frames of other crystals without gaps, nine conditions,"
            " recall of spots whose brightest pixel expects more than 5 photons",
        ),
    )


def _scenarios(settings: BenchSettings, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    if settings.masters:
        for given in settings.masters:
            name, _, pattern = given.rpartition("=")
            masters = sorted(Path(path) for path in glob.glob(pattern))
            if not masters:
                raise BadSettings(f"--masters {given}: no such file; give NAME=GLOB of masters with truth")
            yield name or pattern, masters
        return
    for name, (flux, water) in SIMULATED.items():
        yield name, [_simulate(folder / f"{name}-{number}", number, flux, water, settings.frames)
                     for number in SIMULATED_CONDITIONS]  # fmt: skip


def _simulate(prefix: Path, condition: int, flux: float, water: float, frames: int) -> Path:
    usual = Surroundings()
    scene = Scene(
        Sample(proteinase_k()),
        replace(CONDITIONS[condition], flux_photons=flux),
        surroundings=replace(usual, water_thickness_m=usual.water_thickness_m * water),
    )
    return simulate_series(prefix, scene, Plan(frames, seed=condition))


def _finder(frame: Frame, settings: Peakfinder8Settings) -> Peakfinder8:
    metadata, image = frame.series.metadata, image_data(frame)
    validity = series_validity(metadata, image.shape, frame.channel, None)
    saturation = saturation_of(metadata, image.dtype)
    return Peakfinder8(series_geometry(metadata, image.shape), validity, image.dtype, saturation, settings)


def _facts(master: Path) -> Facts:
    with open_series(master) as series:
        return read_facts(series)


def _search(finder: Peakfinder8, frames: Sequence[Frame]) -> list[tuple[npt.NDArray[np.float64], float]]:
    """Positions (n, 2) fs and ss of each frame, and CPU milliseconds."""
    finder.find(decoded(frames[0]))
    found = []
    for frame in frames:
        pixels = decoded(frame)
        began = time.process_time()
        peaks = finder.find(pixels)
        spent = 1e3 * (time.process_time() - began)
        found.append((np.stack([peaks["fs"], peaks["ss"]], 1).astype(np.float64), spent))
    return found


def _nothing() -> _Found:
    return _Found(PeakCount(), [], [], [])


def _compare(scenario: str, masters: Sequence[Path], with_: _Run, most: int, folder: Path) -> list[Figure]:
    settings = Peakfinder8Settings(
        threshold=with_.threshold, min_snr=with_.snr, min_pix_count=with_.pixels, max_res=1600.0
    )
    ours, theirs = _nothing(), _nothing()
    same = [0, 0]
    for master in masters:
        frames, facts = packed_frames(master)[:most], _facts(master)
        found = _search(_finder(frames[0], settings), frames)
        for number, (positions, spent) in enumerate(found):
            ours.add(positions, facts, number, spent)
        if not om.available():
            continue
        exchange = folder / "om"
        om.lay_out(exchange, frames, with_.threshold, with_.snr, with_.pixels)
        for number, peer in enumerate(om.find_peaks(exchange)):
            theirs.add(peer.positions, facts, number, peer.cpu_ms)
            same[0] += _near(peer.positions, found[number][0])
            same[1] += _near(found[number][0], peer.positions)
    name = f"{scenario} {with_.name}"
    figures = [
        *_figures(f"{name}: ours", ours),
        *(_figures(f"{name}: OM", theirs) if theirs.cpu_ms else [Figure(f"{name}: OM", "", None, note=om.NOT_THERE)]),
    ]
    for text, shared, of in (
        ("OM's peaks that we have", same[0], theirs),
        ("our peaks that OM has", same[1], ours if theirs.cpu_ms else theirs),
    ):
        if of.count.peaks:
            figures.append(Figure(f"{name}: {text}", "", shared / of.count.peaks, note=f"{shared} of {of.count.peaks}"))
    if (scenario, with_.name) in CRYSTFEL:
        hits, empty, recall, false = CRYSTFEL[scenario, with_.name]
        note = f"not run here; empty frames {'-' if empty is None else empty}, recall {recall}, false {false} a frame"
        figures.append(Figure(f"{name}: CrystFEL peaks, with a crystal", "a frame", hits, note=note))
    return figures


def _counting(scenario: str, masters: Sequence[Path], most: int) -> list[Figure]:
    """Our finders that count photons, on the same frames."""
    settings = Peakfinder8Settings(threshold=0.0, min_snr=6.0, max_res=1600.0, statistics=Statistics.POISSON)
    torch_made, built_in = _nothing(), _nothing()
    for master in masters:
        frames, facts = packed_frames(master)[:most], _facts(master)
        reduction = OurFinder(frames[0])
        reduction.find(frames[0])
        for number, (positions, spent) in enumerate(_search(_finder(frames[0], settings), frames)):
            torch_made.add(positions, facts, number, spent)
            peaks, milliseconds = reduction.find(frames[number])
            built_in.add(peaks, facts, number, milliseconds)
    return [*_figures(f"{scenario}: peakfinder8-poisson", torch_made), *_figures(f"{scenario}: built-in", built_in)]


def _near(peaks: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> int:
    """How many of the peaks have another's within ``SAME_PX``."""
    if not len(peaks) or not len(others):
        return 0
    return int((cKDTree(others).query(peaks)[0] <= SAME_PX).sum())


def _figures(name: str, of: _Found) -> list[Figure]:
    count = of.count
    recall = ", ".join(
        f"{found / true:.3f} ({found} of {true})" if true else "-" for true, found in count.by_photons[:2]
    )
    empty = f"{np.mean(of.empty):.1f} an empty one" if of.empty else "no empty frame"
    least = count.by_photons[0]
    return [
        Figure(f"{name} peaks, with a crystal", "a frame", float(np.mean(of.with_crystal or [0])), note=empty),
        Figure(f"{name} recall", "", least[1] / least[0] if least[0] else None, note=recall),
        Figure(f"{name} false peaks", "a frame", count.false / count.frames, note=f"{count.false} of {count.peaks}"),
        Figure(f"{name} CPU", "ms CPU", float(np.min(of.cpu_ms)), float(np.median(of.cpu_ms))),
    ]
