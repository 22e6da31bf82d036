"""Outcomes of batches as messages, and back: records and the arrays that running products are made of."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from analyzer.cascade import STAGES, BatchOutcome
from analyzer.crew.wire import ArrayFacts, BadMessage, Done, Item, Kind, describe, header_of, message, read_array
from analyzer.frame_peaks import FramePeaks
from analyzer.kernels import PEAK_DTYPE
from analyzer.peak_finder import Comparison
from analyzer.reduction import Coverage, FramePlan, FrameProfile
from analyzer.results import Decision, FrameResult, Status
from streamer.frames import Frame
from streamer.messages import UNDECODABLE_REASONS, Defect

_ROWS = 3
_DTYPES: tuple[np.dtype[Any], ...] = (
    np.dtype(np.float32), PEAK_DTYPE, np.dtype(np.int64), np.dtype(np.bool_), np.dtype(np.float32),
)  # fmt: skip


def pack_outcome(batch: int, outcome: BatchOutcome, busy_s: float, fault: str | None) -> list[Any]:
    """The message of a batch's outcome."""
    items, parts = [], []
    for profile, seen, diffuse in zip(outcome.profiles, outcome.peaks, outcome.diffuse, strict=True):
        arrays = [np.ascontiguousarray(each) for each in (profile, seen.peaks, seen.pixel, seen.lone, diffuse.profile)]
        of_profile, of_peaks, of_pixel, of_lone, of_diffuse = map(describe, arrays)
        items.append(Item(of_profile, of_peaks, of_pixel, of_lone, of_diffuse, diffuse.pairs))
        parts += [array.view(np.uint8).reshape(-1) if array.size else b"" for array in arrays]
    comparisons = [
        None if each is None else (each.published, each.shadow, each.matched) for each in outcome.comparisons
    ]
    return message(
        Kind.OUTCOME, Done(batch, outcome.results, items, outcome.stage_seconds, busy_s, comparisons, fault), parts
    )


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
    if len(done.items) != len(good) or len(parts) != 5 * len(good):
        raise BadMessage(f"{len(done.items)} items and {len(parts)} arrays of {len(good)} good frames")
    if len(done.comparisons) not in (0, len(good)):
        raise BadMessage(f"{len(done.comparisons)} comparisons of {len(good)} good frames")
    outcome = BatchOutcome(list(done.results), stage_seconds=dict(done.stage_seconds))
    outcome.comparisons = [None if each is None else Comparison(*each) for each in done.comparisons]
    for place, (frame, item) in enumerate(zip(good, done.items, strict=True)):
        plan = plan_of(frame)
        profile, peaks, pixel, lone, diffuse = (
            read_array(facts, data, dtype, ndim)
            for facts, data, dtype, ndim in zip(
                (item.profile, item.peaks, item.pixel, item.lone, item.diffuse),
                parts[5 * place : 5 * place + 5],
                _DTYPES,
                (2, 1, 1, 1, 2),
                strict=True,
            )
        )
        alike = len(peaks) == len(pixel) == len(lone)
        if profile.shape[0] != 2 or diffuse.shape != (_ROWS, plan.sectors.bins) or not alike:
            raise BadMessage("arrays that do not belong together")
        if pixel.size and not (pixel.min() >= 0 and pixel.max() < plan.inside.size):
            raise BadMessage("a peak outside the image")
        radius = plan.geometry.radius_px(peaks["fs"], peaks["ss"])
        outcome.profiles.append(profile)
        outcome.peaks.append(FramePeaks(plan, peaks, radius, plan.geometry.q_at(radius), pixel, lone))
        outcome.diffuse.append(FrameProfile(plan, diffuse, item.pairs))
    return outcome


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
