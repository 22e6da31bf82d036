"""Outcomes of batches as messages, and back: records and the arrays that running products are made of."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from analyzer.cascade import STAGES, BatchOutcome
from analyzer.crew.wire import ArrayFacts, BadMessage, Done, Item, Kind, describe, header_of, message, read_array
from analyzer.frame_peaks import FramePeaks
from analyzer.kernels import PEAK_DTYPE
from analyzer.peak_finder import Comparison
from analyzer.reduction import Coverage, FramePlan, FrameProfile
from analyzer.results import Decision, FrameResult, Status
from streamer.frames import Frame
from streamer.messages import UNDECODABLE_REASONS, Defect

_ROWS, _DIFFUSE_ROWS = 2, 3
_FLOAT, _PIXEL, _FLAG = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)


def pack_outcome(batch: int, outcome: BatchOutcome, busy_s: float, fault: str | None) -> list[Any]:
    """The message of a batch's outcome: its arrays lie in one part, all of a kind together."""
    items = [
        Item(profile.shape[1], len(seen.peaks), diffuse.profile.shape[1], diffuse.pairs)
        for profile, seen, diffuse in zip(outcome.profiles, outcome.peaks, outcome.diffuse, strict=True)
    ]
    arrays: list[npt.NDArray[Any]] = [
        *(seen.pixel for seen in outcome.peaks),
        *outcome.profiles,
        *(diffuse.profile for diffuse in outcome.diffuse),
        *(seen.peaks for seen in outcome.peaks),
        *(seen.lone for seen in outcome.peaks),
    ]
    comparisons = [
        None if each is None else (each.published, each.shadow, each.matched) for each in outcome.comparisons
    ]
    done = Done(batch, outcome.results, items, outcome.stage_seconds, busy_s, comparisons, fault)
    return message(Kind.OUTCOME, done, [b"".join(array.tobytes() for array in arrays)])


def read_outcome(
    done: Done, parts: Sequence[Any], frames: Sequence[Frame], plan_of: Callable[[Frame], FramePlan]
) -> BatchOutcome:
    """The outcome of ``frames``. Raises ``BadMessage`` where it is not of them, or its arrays do not belong to them."""
    if len(done.results) != len(frames):
        raise BadMessage(f"{len(done.results)} results of {len(frames)} frames")
    for frame, result in zip(frames, done.results, strict=True):
        if _which(result) != (frame.series.ordinal, frame.series.series_id, frame.image_id, frame.received_at):
            raise BadMessage(f"image {result.image_id} of series {result.series_id}, not {frame.image_id}")
        _check(frame, result)
    _check_times(done)
    good = [frame for frame, result in zip(frames, done.results, strict=True) if result.status == Status.OK]
    if len(done.items) != len(good) or len(parts) != 1:
        raise BadMessage(f"{len(done.items)} items and {len(parts)} parts of {len(good)} good frames")
    if len(done.comparisons) not in (0, len(good)):
        raise BadMessage(f"{len(done.comparisons)} comparisons of {len(good)} good frames")
    outcome = BatchOutcome(list(done.results), stage_seconds=dict(done.stage_seconds))
    outcome.comparisons = [None if each is None else Comparison(*each) for each in done.comparisons]
    if good:
        _read_arrays(outcome, done.items, parts[0], [plan_of(frame) for frame in good])
    return outcome


def _read_arrays(outcome: BatchOutcome, items: Sequence[Item], data: Any, plans: Sequence[FramePlan]) -> None:
    """Enter what frames of these plans show: views of ``data``. Raises ``BadMessage``."""
    for item, plan in zip(items, plans, strict=True):
        if item.profile < 1 or item.peaks < 0 or item.diffuse != plan.sectors.bins:
            raise BadMessage("arrays that do not belong together")
    profiles, diffuse, peaks = ([getattr(item, name) for item in items] for name in ("profile", "diffuse", "peaks"))
    kinds = (
        (_PIXEL, sum(peaks)), (_FLOAT, _ROWS * sum(profiles)), (_FLOAT, _DIFFUSE_ROWS * sum(diffuse)),
        (PEAK_DTYPE, sum(peaks)), (_FLAG, sum(peaks)),
    )  # fmt: skip
    if len(data) != sum(dtype.itemsize * count for dtype, count in kinds):
        raise BadMessage(f"{len(data)} bytes are not the arrays of {len(items)} frames")
    arrays: list[npt.NDArray[Any]] = []
    place = 0
    for dtype, count in kinds:
        arrays.append(np.frombuffer(data, dtype, count, place))
        place += dtype.itemsize * count
    pixel, profile, scattering, found, lone = arrays
    in_profile, in_diffuse, in_peaks = ([0, *itertools.accumulate(each)] for each in (profiles, diffuse, peaks))
    for plan, (first, end) in _runs(plans):
        # Of many frames at once, which costs little more than of one.
        begin, beyond = in_peaks[first], in_peaks[end]
        where = pixel[begin:beyond]
        if where.size and not (where.min() >= 0 and where.max() < plan.inside.size):
            raise BadMessage("a peak outside the image")
        radius = plan.geometry.radius_px(found["fs"][begin:beyond], found["ss"][begin:beyond])
        q = plan.geometry.q_at(radius)
        for number in range(first, end):
            of = slice(in_peaks[number], in_peaks[number + 1])
            near = slice(of.start - begin, of.stop - begin)
            outcome.peaks.append(
                FramePeaks(plan, found[of], radius[near], None if q is None else q[near], pixel[of], lone[of])
            )
            rows = slice(_ROWS * in_profile[number], _ROWS * in_profile[number + 1])
            outcome.profiles.append(profile[rows].reshape(_ROWS, -1))
            rows = slice(_DIFFUSE_ROWS * in_diffuse[number], _DIFFUSE_ROWS * in_diffuse[number + 1])
            outcome.diffuse.append(FrameProfile(plan, scattering[rows].reshape(_DIFFUSE_ROWS, -1), items[number].pairs))


def _runs(plans: Sequence[FramePlan]) -> Iterator[tuple[FramePlan, tuple[int, int]]]:
    """Each plan with the first frame that has it and the one after the last, one after the other."""
    first = 0
    for _, run in itertools.groupby(plans, id):
        end = first + len(list(run))
        yield plans[first], (first, end)
        first = end


def _check(frame: Frame, result: FrameResult) -> None:
    """What the account and the metrics count by has to be of the few values that it can have. Raises ``BadMessage``."""
    if result.channel != frame.channel or result.nulls or result.attributes:
        raise BadMessage(f"image {result.image_id} with what no worker says")
    if result.status == Status.UNDECODABLE:
        if result.reason not in UNDECODABLE_REASONS or result.decision is not None or result.hit is not None:
            raise BadMessage(f"image {result.image_id} is undecodable for {str(result.reason)[:40]!r}")
        return
    said = result.decision is not None and result.hit is (result.decision == Decision.HIT)
    if result.status != Status.OK or not said or isinstance(frame.image, Defect):
        raise BadMessage(f"image {result.image_id} is {result.status}, {result.decision}")
    if result.hit_probability is None or not 0.0 <= result.hit_probability <= 1.0:
        raise BadMessage(f"image {result.image_id} is a hit with probability {result.hit_probability}")


def _check_times(done: Done) -> None:
    times = [*done.stage_seconds.values(), done.busy_s]
    if not set(done.stage_seconds) <= set(STAGES) or not all(math.isfinite(each) and each >= 0 for each in times):
        raise BadMessage("times that are none")


def _which(result: FrameResult) -> tuple[int, int, int, float]:
    return result.ordinal, result.series_id, result.image_id, result.received_at


class _Covered(msgspec.Struct, frozen=True):
    """Of a series, plan by plan: the image's shape, the two arrays' facts."""

    ordinal: int
    plans: list[tuple[tuple[int, int], ArrayFacts, ArrayFacts]]


def pack_coverage(ordinal: int, covered: Sequence[Coverage]) -> list[Any]:
    """The message of what a worker's frames of a series covered."""
    facts = _Covered(ordinal, [(each.plan.shape, describe(each.seen), describe(each.expected)) for each in covered])
    return message(
        Kind.COVERAGE, facts, [array.tobytes() for each in covered for array in (each.seen, each.expected)]
    )  # fmt: skip


def read_coverage(
    parts: Sequence[Any], plans: Sequence[tuple[tuple[Any, ...], FramePlan]]
) -> tuple[int, list[Coverage]]:
    """The series' ordinal and what was covered, of ``plans`` (by key, the ordinal first) that are known here.

    Raises ``BadMessage``.
    """
    facts = header_of(parts, _Covered)
    if len(parts) != 2 + 2 * len(facts.plans):
        raise BadMessage(f"{len(parts)} parts for {len(facts.plans)} plans")
    found = []
    for place, (shape, seen_facts, expected_facts) in enumerate(facts.plans):
        plan = next((plan for key, plan in plans if key[0] == facts.ordinal and plan.shape == shape), None)
        if plan is None:
            continue
        seen = read_array(seen_facts, parts[2 + 2 * place], np.dtype(np.uint64), 1)
        expected = read_array(expected_facts, parts[3 + 2 * place], np.dtype(np.float64), 1)
        if seen.shape != plan.surrounded.shape or expected.shape != plan.bin_pixels.shape:
            raise BadMessage("a coverage of another detector")
        found.append(Coverage(plan, seen, expected))
    return facts.ordinal, found
