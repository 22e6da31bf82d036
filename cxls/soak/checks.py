"""What must hold of a soak: plain functions of what was seen, each a check that holds or does not, with its figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyzer.crew.flight import MOST_LOSSES
from cxls.soak.children import LONG_S, Replayed, Said
from cxls.soak.faults import Committed
from cxls.soak.outputs import Recorded
from cxls.soak.samples import Metrics, Sample, by_label, count


@dataclass(frozen=True, slots=True)
class Limits:
    """Most growth of memory after the warm-up, as a part of it, while nothing is played and while images come; of
    descriptors and threads, which may be open in one of two looks; most that latency and CPU time an image may become,
    as a multiple of what they were: other programs share the machine."""

    memory_at_rest: float
    memory: float
    descriptors: int
    threads: int
    latency: float
    cpu: float


LONG, SHORT = Limits(0.01, 0.1, 3, 2, 2.0, 1.5), Limits(math.inf, 0.25, 20, 10, math.inf, math.inf)
"""While images come, memory holds those in hand, of which some are five times as large as others, and by a tenth it is
now more, now less. In a short soak buffers still fill, outputs are made and the process that draws is started for the
first time, and a tenth of it is a moment, in which a fault may have stopped everything."""

DRIFT_FLOOR_S, DRIFT_FLOOR_IMAGES = 0.1, 32.0
"""Below it the histogram's steps are coarser than what they would show."""

STANDSTILL_S = 20.0
CUT_SHORT = 64
"""Images that a replay told to end may have queued: more than ZeroMQ's queues hold."""

_WARM_S, _WARM_SHARE = 180.0, 0.1
"""Until a hundred hits are held to be looked at, and the masks of their series."""

_PART, _LEAST = 0.1, 3
"""What is compared: the first and the last tenth, some looks at least."""

_MIB = 1 << 20
_TIMES, _SHARE = "{:g} times", "{:.0%}"


@dataclass(frozen=True, slots=True)
class Check:
    """``text`` says what was seen, and what is wrong where it does not hold; ``kept`` is ``None`` where that cannot be
    told."""

    name: str
    kept: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Growth:
    """Of a quantity over the settled samples: median of their first tenth, and how much more it became, by the median
    of the last tenth and by the median slope between any two samples (Theil and Sen)."""

    base: float
    by_medians: float
    by_slope: float

    @property
    def most(self) -> float:
        return max(self.by_medians, self.by_slope)


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """Samples after the warm-up: three minutes, a tenth of the time where that is longer, at most half of it."""
    if not samples:
        return []
    last_s = samples[-1].at_s
    warm_s = min(max(_WARM_S, _WARM_SHARE * last_s), last_s / 2)
    return [each for each in samples if each.at_s >= warm_s]


def growth(times_s: Sequence[float], values: Sequence[float]) -> Growth:
    """Raises ``ValueError`` for fewer than two values."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} samples show no growth; take 2 or more")
    at, seen = np.asarray(times_s, float), np.asarray(values, float)
    each = _end(len(seen))
    base = float(np.median(seen[:each]))
    return Growth(base, float(np.median(seen[-each:])) - base, _median_slope(at, seen) * float(at[-1] - at[0]))


def _end(number: int) -> int:
    """How many of so many looks are the beginning, or the end."""
    return max(1, min(number // 2, max(_LEAST, round(_PART * number))))


def _median_slope(at: npt.NDArray[np.float64], seen: npt.NDArray[np.float64]) -> float:
    first, second = np.triu_indices(len(at), 1)
    return float(np.median((seen[second] - seen[first]) / (at[second] - at[first])))


def limits(samples: Sequence[Sample]) -> Limits:
    """By the length of the soak."""
    return LONG if samples[-1].at_s >= LONG_S else SHORT


_SPANS = 60
"""Of memory the least in each of so many parts of the time counts: a file that is written or a picture that is drawn
takes some for a moment, and a leak is what never goes."""


def held(samples: Sequence[Sample]) -> Growth:
    """Growth of the own memory of all processes that is held at least, part of the time by part."""
    each = max(1, len(samples) // _SPANS)
    spans = [samples[first : first + each] for first in range(0, len(samples) - each + 1, each)]
    least = [min(span, key=lambda sample: sample.usage.own_bytes) for span in spans]
    return growth([s.at_s for s in least], [s.usage.own_bytes for s in least])


def memory(samples: Sequence[Sample]) -> Check:
    """Memory that is the analysis' own, of all its processes."""
    found, limit = held(samples), limits(samples).memory
    return Check("memory", found.most / found.base < limit, _grown(found, limit))


def memory_at_rest(rests: Sequence[Sample]) -> Check:
    """The same while nothing is played: what stays of all that was analysed until then."""
    found = growth([each.at_s for each in rests], [each.usage.own_bytes for each in rests])
    limit = limits(rests).memory_at_rest
    return Check("memory at rest", found.most / found.base < limit, f"{len(rests)} rests, {_grown(found, limit)}")


def _grown(memory: Growth, limit: float) -> str:
    text = (
        f"{memory.base / _MIB:.1f} MiB, growth {_mib(memory.by_medians)} by medians, {_mib(memory.by_slope)} by slope"
    )
    return f"{text}: {memory.most / memory.base:+.2%}, {_limit(limit, _SHARE)}"


def _mib(value: float) -> str:
    return f"{value / _MIB:+.2f} MiB"


def descriptors(samples: Sequence[Sample]) -> Check:
    """Open file descriptors."""
    return _few(samples, "descriptors", [s.usage.descriptors for s in samples], limits(samples).descriptors)


def threads(samples: Sequence[Sample]) -> Check:
    """Threads."""
    return _few(samples, "threads", [s.usage.threads for s in samples], limits(samples).threads)


def _few(samples: Sequence[Sample], name: str, values: Sequence[float], most: int) -> Check:
    found = growth([s.at_s for s in samples], values)
    text = f"{found.base:.0f}, growth {found.by_medians:+.1f} by medians, {found.by_slope:+.1f} by slope, limit {most}"
    return Check(name, found.most <= most, text)


@dataclass(frozen=True, slots=True)
class Pace:
    """Of the images whose result came in a span of time: rate, seconds from arrival to result, CPU seconds an image."""

    rate_hz: float
    median_s: float
    p99_s: float
    cpu_s: float


def pace(first: Sample, last: Sample) -> Pace:
    """Between two samples; NaN where no image came in between."""
    images = last.settled - first.settled
    return Pace(
        images / (last.at_s - first.at_s),
        quantile(first.latency, last.latency, 0.5),
        quantile(first.latency, last.latency, 0.99),
        (last.usage.cpu_s - first.usage.cpu_s) / images if images else math.nan,
    )


def ends(samples: Sequence[Sample]) -> tuple[Pace, Pace]:
    """The pace of the first and of the last tenth."""
    each = _end(len(samples) - 1)
    return pace(samples[0], samples[each]), pace(samples[-1 - each], samples[-1])


def quantile(before: Mapping[float, int], after: Mapping[float, int], share: float) -> float:
    """Of a histogram's images between two looks, linear within a bucket; NaN without images."""
    edges = sorted(after)
    counts = [after[edge] - before.get(edge, 0) for edge in edges]
    if not counts or counts[-1] == 0:
        return math.nan
    wanted, lower, below = share * counts[-1], 0.0, 0
    for edge, images in zip(edges, counts, strict=True):
        if images >= wanted:
            return lower if math.isinf(edge) else lower + (edge - lower) * (wanted - below) / max(1, images - below)
        lower, below = edge, images
    return lower


def latency(samples: Sequence[Sample], flat_out: bool) -> Check:
    """Latency at the end against the beginning.

    ``flat_out``: the queue is always full then, so latency is its length over a rate that other programs change; what
    is compared is their product, the images in hand (Little).
    """
    first, last = ends(samples)
    values = [(first.median_s, last.median_s), (first.p99_s, last.p99_s)]
    floor, unit, limit = DRIFT_FLOOR_S, "s", limits(samples).latency
    if flat_out:
        values = [(a * first.rate_hz, b * last.rate_hz) for a, b in values]
        floor, unit = DRIFT_FLOOR_IMAGES, "images in hand"
    kept = math.isinf(limit) or all(math.isfinite(a + b) and b <= max(floor, limit * a) for a, b in values)
    (a, b), (c, d) = values
    return Check(
        "latency",
        kept,
        f"median {a:.3g} then {b:.3g}, 99 % {c:.3g} then {d:.3g} {unit}, {_limit(limit, _TIMES)}",
    )


def _limit(limit: float, words: str) -> str:
    return "no limit below 30 min" if math.isinf(limit) else f"limit {words.format(limit)}"


def cpu(samples: Sequence[Sample]) -> Check:
    """CPU time an image at the end against the beginning."""
    (first, last), limit = ends(samples), limits(samples).cpu
    kept = math.isinf(limit) or (math.isfinite(first.cpu_s + last.cpu_s) and last.cpu_s <= limit * first.cpu_s)
    text = f"{1e3 * first.cpu_s:.2f} then {1e3 * last.cpu_s:.2f} ms an image, {_limit(limit, _TIMES)}"
    return Check("CPU", kept, text)


def standstill(samples: Sequence[Sample], until_s: float) -> Check:
    """The longest time in which nothing was analysed; images were sent until ``until_s``, counted as samples are."""
    if not samples:
        return Check("no standstill", False, "no look at the metrics")
    longest, since, seen = 0.0, samples[0].at_s, -1
    for each in samples:
        if each.settled != seen:
            since, seen = each.at_s, each.settled
        longest = max(longest, each.at_s - since)
    longest = max(longest, until_s - since)
    return Check("no standstill", longest <= STANDSTILL_S, f"{longest:.1f} s without a result, limit {STANDSTILL_S:g}")


def every_look(samples: Sequence[Sample]) -> Check:
    """Received = processed + dropped + undecodable + queued, in every look at the metrics."""
    wrong = [each for each in samples if each.unaccounted]
    text = f"{len(samples)} looks at the metrics"
    if wrong:
        text += f", {len(wrong)} do not add up, the first after {wrong[0].at_s:.1f} s by {wrong[0].unaccounted}"
    return Check("account at any time", bool(samples) and not wrong, text)


_REASONED = {
    "dropped": "cxls_frames_dropped_total",
    "undecodable": "cxls_frames_undecodable_total",
    "missing": "cxls_frames_missing_total",
    "invalid": "cxls_messages_invalid_total",
}


def reasons(metrics: Metrics) -> dict[str, int]:
    """Counts by reason above 0, keyed as in ``missing.gap``."""
    return {
        f"{group}.{reason}": round(value)
        for group, name in _REASONED.items()
        for reason, value in by_label(metrics, name).items()
        if value
    }


def account(metrics: Metrics, words: Said | None) -> Check:
    """Received = processed + dropped + undecodable with empty queues, and as the analysis printed it at its end."""
    received, processed, dropped, undecodable = (
        count(metrics, f"cxls_frames_{each}_total") for each in ("received", "processed", "dropped", "undecodable")
    )
    text = f"received {received} = processed {processed} + dropped {dropped} + undecodable {undecodable}"
    wrong = []
    if received != processed + dropped + undecodable:
        wrong.append(f"{received - processed - dropped - undecodable} unaccounted")
    if words is None:
        wrong.append("the analysis printed none")
    elif (words.received, words.processed, words.dropped, words.undecodable) != (
        received, processed, dropped, undecodable,
    ) or words.in_flight:  # fmt: skip
        wrong.append(f"the analysis printed otherwise: {words}")
    return Check("account at the end", not wrong and received > 0, "; ".join([text, *wrong]))


def accepted(metrics: Metrics) -> int:
    """Images that have a record each."""
    by_reason = by_label(metrics, "cxls_frames_dropped_total")
    refused = sum(by_reason.get(reason, 0.0) for reason in ("duplicate", "stale_series", "out_of_range"))
    return count(metrics, "cxls_frames_received_total") - round(refused)


def announced(metrics: Metrics, words: Said | None, headless: int, cut: bool) -> Check:
    """Announced = accepted + missing, of series whose start was seen; ``headless`` images are of others.

    ``cut``: a replay was told to end, and a series without a start with it, of which less came.
    """
    promised, images = count(metrics, "cxls_frames_announced_total"), accepted(metrics) - headless
    # What the end of the analysis closed is in its last words alone.
    missing = sum(n for key, n in (words.reasons if words else reasons(metrics)).items() if key.startswith("missing."))
    over = promised - images - missing
    text = f"announced {promised} = accepted {images} + missing {missing}"
    text += f", {headless} images without a start left out" if headless else ""
    return Check(
        "announced", over == 0 or (cut and headless >= over > 0), text + (f"; {over} unaccounted" if over else "")
    )


def sent(metrics: Metrics, replay: Replayed, difference: int) -> Check:
    """What replay handed over came; ``difference``: what its faults took and added."""
    received = count(metrics, "cxls_frames_received_total")
    lost = replay.sent + replay.withheld + difference - received
    text = f"replay sent {replay.sent} images in {replay.series} series, {received} received"
    if difference or replay.withheld:
        text += f", {replay.withheld} withheld, {difference:+d} by faults"
    if not replay.cut:
        return Check("sent", lost == 0, text + (f"; {lost} lost" if lost else ""))
    return Check("sent", 0 <= lost <= CUT_SHORT, f"{text}; {lost} were queued at the sender when it was told to end")


_OWN = ("dropped.queue_full", "dropped.shutdown", "missing.head")
"""Counts that no fault makes."""


def ledger(seen: Mapping[str, int], faults: Committed, cut: bool, killed: int) -> Check:
    """The account shows every fault, with its reason, and nothing else.

    ``seen``: counts by reason. ``cut``: a replay was told to end, so that the last images are lost, and faults with
    them. ``killed``: so many images at most are undecodable because workers were killed with them.
    """
    exact = {key: n for key, n in faults.totals.exact.items() if key.partition(".")[0] in _REASONED}
    left = {key: seen.get(key, 0) - exact.get(key, 0) for key in (seen.keys() | exact.keys()) - set(_OWN)}
    if 0 <= left.get("undecodable.failed", 0) <= killed:
        left.pop("undecodable.failed", None)
    if cut:
        left = {key: n for key, n in left.items() if abs(n) > CUT_SHORT and key != "missing.tail"}
    open_ = {names: n for names, n in faults.totals.open.items() if any(_is_reason(name) for name in names)}
    wrong = [
        f"{key}: {seen.get(key, 0)}, not {exact.get(key, 0)}" for key, n in left.items() if _too_far(key, n, open_)
    ]
    most = sum(open_.values())
    least = sum(n for names, n in open_.items() if all(map(_is_reason, names)))
    somewhere = sum(left.values())
    if not wrong and not cut and not least <= somewhere <= most:
        wrong.append(f"{somewhere} images with a reason that may be one of several, not {least} to {most}")
    text = f"{sum(faults.kinds.values())} faults of {len(faults.kinds)} kinds, each in its counter"
    return Check("faults", not wrong, "; ".join(wrong) or text)


def _is_reason(name: str) -> bool:
    return name.partition(".")[0] in _REASONED


def _too_far(key: str, difference: int, open_: Mapping[tuple[str, ...], int]) -> bool:
    return not 0 <= difference <= sum(n for names, n in open_.items() if key in names)


def records(metrics: Metrics, recorded: Recorded, same_id: bool = False) -> Check:
    """One record an accepted image, none twice, each with the fate that was counted.

    ``same_id``: a series 1 was followed by another series 1, whose images cannot be told from its own.
    """
    images = accepted(metrics)
    wrong = []
    if recorded.records != images:
        wrong.append(f"{images - recorded.records:+d} missing")
    twice = sum(n for series, n in recorded.repeated().items() if not (same_id and series == 1))
    if twice:
        wrong.append(f"{twice} of images that had one already")
    processed = {k: round(v) for k, v in by_label(metrics, "cxls_frames_processed_total").items() if v}
    if dict(recorded.decisions) != processed:
        wrong.append(f"decisions {dict(recorded.decisions)} where {processed} were counted")
    dropped = {
        f"dropped {reason}": round(value)
        for reason, value in by_label(metrics, "cxls_frames_dropped_total").items()
        if value and reason not in ("duplicate", "stale_series", "out_of_range")
    }
    undecodable = count(metrics, "cxls_frames_undecodable_total")
    others = {kind: n for kind, n in recorded.statuses.items() if kind != "ok"}
    counted = dropped | ({"undecodable": undecodable} if undecodable else {})
    if others != counted:
        wrong.append(f"statuses {others} where {counted} were counted")
    text = f"{recorded.records} records for {images} images accepted"
    return Check("records", not wrong, "; ".join([text, *wrong]))


def hits(metrics: Metrics, found: int) -> Check:
    """Every hit is in a file that could be read, or counted as lost."""
    judged = round(by_label(metrics, "cxls_frames_processed_total").get("hit", 0.0))
    lost = count(metrics, "cxls_hits_lost_total")
    text = f"{found} hits in files, {judged} found"
    return Check("hits", found + lost == judged, text + (f", {lost} counted as lost" if lost else ""))


def readable(problems: Sequence[str], looked_at: str) -> Check:
    """Every output could be read."""
    return Check("outputs", not problems, _first(problems, looked_at))


_BAD_WORDS = ("Traceback (most recent call last)", "internal error", "Fatal Python error", "Segmentation fault")


def words_on_stderr(lines: Mapping[str, Sequence[str]]) -> Check:
    """No process told of a fault of its own."""
    bad = [
        f"{name}: {line}" for name, said in lines.items() for line in said if any(word in line for word in _BAD_WORDS)
    ]
    return Check("no faults of our own", not bad, _first(bad, f"{sum(map(len, lines.values()))} lines of log"))


def ended(codes: Mapping[str, tuple[int, int]]) -> Check:
    """Every process ended as it should; exit codes seen and expected by name."""
    wrong = [f"{name}: exit code {seen}, not {meant}" for name, (seen, meant) in codes.items() if seen != meant]
    return Check("clean ends", not wrong if codes else None, _first(wrong, f"{len(codes)} processes"))


def most_failed(kills_made: int, room: int) -> int:
    """Images that are given up at most where workers are killed that hold up to ``room`` images each: one that was lost
    ``MOST_LOSSES`` times."""
    return kills_made * room // MOST_LOSSES


def kills(made: int, metrics: Metrics) -> Check:
    """Worker processes were killed, and every one was missed."""
    lost = count(metrics, "cxls_crew_workers_lost_total")
    anew = count(metrics, "cxls_crew_frames_resent_total")
    text = f"{made} worker processes killed, {lost} missed, {anew} images sent anew"
    return Check("kills", 0 < made == lost, text)


def _first(wrong: Sequence[str], otherwise: str) -> str:
    if not wrong:
        return otherwise
    return wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
