"""Judgements of frames to be held against the truth: made here by a bundle, or read from results of an analysis."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings, PlanCache
from analyzer.results import FrameResult
from streamer.files import CHANNEL, BadInput
from streamer.frames import Frame
from streamer.series import Series
from training.dataset.opening import require_ordinary
from training.dataset.series import open_series
from training.evaluation.facts import Facts, read_facts

Progress = Callable[[int, int], None]
"""Called with (done, total); may raise to end the work."""

BATCH = 8
_LONGEST_LINE = 1 << 24


class FoundPeak(msgspec.Struct, frozen=True):
    """A peak as records have it, pixel indices."""

    fs: float
    ss: float
    intensity_photons: float
    snr: float = 0.0


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a result record that evaluation needs; None where the frame could not be analysed."""

    series_id: int
    image_id: int
    status: str
    decision: str | None = None
    hit: bool | None = None
    hit_probability: float | None = None
    peaks: list[FoundPeak] | None = None
    photon_energy_eV: float | None = None
    photon_energy_sigma_eV: float | None = None
    camera_length_m: float | None = None
    camera_length_sigma_m: float | None = None
    bundle: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A series: what is true of its frames, and what was said of them, in the order of the frames."""

    facts: Facts
    judgements: tuple[Judgement, ...]


def all_facts(masters: Sequence[Path]) -> list[Facts]:
    """The facts of series. Raises BadInput for one without truth."""
    found = []
    for master in masters:
        with open_series(master) as series:
            found.append(read_facts(series))
    return found


def judge(facts: Sequence[Facts], bundle: Bundle, workers: int, progress: Progress | None = None) -> list[Judged]:
    """Judge all frames of series by a bundle at its own threshold, in so many threads."""
    plans, local = PlanCache(), threading.local()

    def work(frames: list[Frame]) -> list[FrameResult]:
        if not hasattr(local, "analyser"):
            local.analyser = Analyser(bundle, CascadeSettings(), plans=plans)
        results: list[FrameResult] = local.analyser.process(frames).results
        return results

    total = sum(each.frames for each in facts)
    results: list[list[FrameResult]] = [[] for _ in facts]
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[list[FrameResult]]]] = deque()
        try:
            for number, frames in _batches(facts):
                waiting.append((number, pool.submit(work, frames)))
                while len(waiting) > 2 * workers:
                    done += _collect(waiting, results)
                    if progress is not None:
                        progress(done, total)
            while waiting:
                done += _collect(waiting, results)
                if progress is not None:
                    progress(done, total)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return [
        Judged(each, tuple(_judgement(result) for result in some)) for each, some in zip(facts, results, strict=True)
    ]


def _batches(facts: Sequence[Facts]) -> Iterator[tuple[int, list[Frame]]]:
    for number, each in enumerate(facts):
        with open_series(each.path) as opened:
            series = Series(number + 1, number + 1, None, opened.metadata)
            for start in range(0, len(opened), BATCH):
                positions = range(start, min(start + BATCH, len(opened)))
                yield (
                    number,
                    [Frame(series, n, CHANNEL, opened.files.image_or_defect(n), None, None, 0.0) for n in positions],
                )


def _collect(waiting: deque[tuple[int, Future[list[FrameResult]]]], results: list[list[FrameResult]]) -> int:
    number, future = waiting.popleft()
    made = future.result()
    results[number] += made
    return len(made)


def _judgement(result: FrameResult) -> Judgement:
    fields = {name: getattr(result, name) for name in Judgement.__struct_fields__ if name != "peaks"}
    peaks = result.peaks
    found = None if peaks is None else [FoundPeak(p.fs, p.ss, p.intensity_photons, p.snr) for p in peaks]
    return Judgement(**fields, peaks=found)


def read_judgements(path: Path, facts: Sequence[Facts]) -> list[Judged]:
    """Judgements from the results (.jsonl) of `cxls analyze` on the same series in the same order.

    Raises BadInput for a line that is no record, and when a frame of the series has no record or more than one.
    """
    sizes = [each.frames for each in facts]
    found: list[dict[int, Judgement]] = [{} for _ in facts]
    for number, judgement in _records(path):
        series, image = judgement.series_id - 1, judgement.image_id
        if not 0 <= series < len(facts) or not 0 <= image < sizes[series]:
            where = f"series {judgement.series_id}, image {image}"
            raise BadInput(f"{path}: line {number} is of {where}, which is not among these {len(facts)} series")
        if image in found[series]:
            raise BadInput(f"{path}: line {number} repeats series {judgement.series_id}, image {image}")
        found[series][image] = judgement
    for each, records in zip(facts, found, strict=True):
        for image in range(each.frames):
            if image not in records:
                raise BadInput(
                    f"{path}: no record of image {image} of {each.path}; analyse the same series in the same order"
                )
    return [
        Judged(each, tuple(records[image] for image in range(each.frames)))
        for each, records in zip(facts, found, strict=True)
    ]


def _records(path: Path) -> Iterator[tuple[int, Judgement]]:
    decoder = msgspec.json.Decoder(Judgement)
    try:
        require_ordinary(path)
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                try:
                    yield number, decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise BadInput(f"{path}: line {number} is no result record: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; --results names a .jsonl file of `cxls analyze`") from None
