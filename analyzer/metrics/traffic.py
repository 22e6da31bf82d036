"""Images and series: what came, what became of it, what is open."""

import math
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from analyzer.front import Front
from analyzer.metrics.families import counter, counters, gauge, gauge_if_known
from analyzer.results import Decision
from streamer.account import DROP_REASONS, MISSING_PLACES, SERIES_ENDS
from streamer.messages import INVALID_REASONS, UNDECODABLE_REASONS
from streamer.oddities import Oddity

_LAST = {
    "frame": "image of a running series that was received",
    "result": "image analysed, when its record was published",
    "beam": "image analysed that saw beam, when its record was published",
}


def traffic(front: Front) -> Iterator[Metric]:
    """Images by what became of them, within one scrape: received is the sum of the others."""
    account = front.account
    # Settled before received: a frame in between then counts as in flight, never as lost.
    processed, dropped = dict(account.processed), dict(account.dropped)
    undecodable, invalid = dict(account.undecodable), dict(account.invalid)
    received = account.received
    settled = sum(processed.values()) + sum(dropped.values()) + sum(undecodable.values())
    waiting = min(front.results_waiting, received - settled)
    yield counter("cxls_frames_announced", "Images announced by the detector", account.announced)
    yield counter("cxls_frames_received", "Image messages whose series and image id could be read", received)
    yield counter("cxls_received_bytes", "Bytes received", account.received_bytes)
    yield counters("cxls_frames_processed", "Images analysed, by decision", "decision", tuple(Decision), processed)
    yield counters("cxls_frames_dropped", "Images not analysed, by reason", "reason", DROP_REASONS, dropped)
    yield counters(
        "cxls_frames_undecodable",
        "Images that did not decode, by reason",
        "reason",
        UNDECODABLE_REASONS,
        undecodable,
    )
    yield counters(
        "cxls_frames_missing",
        "Announced images that never came, by place",
        "where",
        MISSING_PLACES,
        account.missing,
    )
    yield counters("cxls_messages_invalid", "Messages refused, by reason", "reason", INVALID_REASONS, invalid)
    yield counters(
        "cxls_stream_oddities", "What was odd about the stream and cost no image", "kind", Oddity, account.oddities
    )
    collected = {"hits": processed.get(Decision.HIT, 0), "indexable": front.running.indexable_frames}
    yield counters("cxls_collected", "Images worth keeping, by kind", "of", tuple(collected), collected)
    if front.nulls:
        nulls = CounterMetricFamily(
            "cxls_attributes_null",
            "Frames of which a single model says nothing, by attribute and reason",
            labels=["attribute", "reason"],
        )
        for (name, reason), count in list(front.nulls.items()):
            nulls.add_metric([name, reason], count)
        yield nulls
    yield counter("cxls_results_lost", "Records that an output could not write", sum(s.lost for s in front.sinks))
    frames = GaugeMetricFamily("cxls_queue_frames", "Images waiting, by queue", labels=["queue"])
    frames.add_metric(["frames"], received - settled - waiting)
    frames.add_metric(["results"], waiting)
    yield frames
    yield gauge("cxls_sampled_ratio", "Share of images chosen for analysis by image id", front.sampler.ratio)


def series(front: Front) -> Iterator[Metric]:
    """The series and the source they come from."""
    running, account = front.running, front.account
    yield counter("cxls_series_begun", "Series seen", running.series_began)
    yield counters(
        "cxls_series_ended", "Series that are over, by what ended them", "why", SERIES_ENDS, account.series_ended
    )
    yield gauge("cxls_series_open", "1 while a series runs: it began and is not over", float(front.series_open))
    yield from _last_series(front)
    metadata = running.metadata
    period_s = metadata.frame_time_s if metadata is not None else None
    yield gauge(
        "cxls_detector_frame_rate_hertz",
        "Images a second that the detector's header promises, NaN where it says nothing",
        1.0 / period_s if period_s is not None and period_s > 0 else math.nan,
    )
    yield gauge("cxls_stream_connected", "Whether the source is connected", float(front.source.connected))
    for what, at in (
        ("frame", front.last_frame_at),
        ("result", running.last_result_at),
        ("beam", running.last_beam_at),
    ):
        yield gauge_if_known(f"cxls_last_{what}_timestamp_seconds", f"Unix time of the last {_LAST[what]}", at)


def _last_series(front: Front) -> Iterator[Metric]:
    """The series that was over last; no sample before there is one."""
    report = front.reports[-1] if front.reports else None
    series_id = None if report is None else float(report.closed.series.series_id)
    yield gauge_if_known("cxls_last_series_id", "Id of the series that was over last", series_id)
    frames = GaugeMetricFamily("cxls_last_series_frames", "Images of the series that was over last", labels=["what"])
    if report is not None:
        for what, count in (
            ("accepted", report.closed.accepted),
            ("analysed", report.analysed),
            ("hits", report.hits),
            ("missing", sum(report.closed.missing.values())),
        ):
            frames.add_metric([what], count)
    yield frames
