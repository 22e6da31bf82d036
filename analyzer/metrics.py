"""Prometheus metrics, read from the account and the running products when they are scraped.

Nothing is incremented a frame: the collector takes a snapshot, so that the account's
identity holds within one scrape. Names, labels and units are a contract; every label value
is present from the start.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from analyzer.cascade import STAGES
from analyzer.front import Front
from analyzer.intervals import wilson
from analyzer.results import Decision
from analyzer.running import STAGE_BUCKETS_S, WINDOWS, Histogram
from streamer.account import DROP_REASONS, MISSING_PLACES
from streamer.messages import INVALID_REASONS, UNDECODABLE_REASONS

Estimate = Callable[[], dict[str, Any]]


def make_registry(
    front: Front, estimate: Estimate, false_hit_rate: tuple[float, float, float], build: dict[str, str]
) -> CollectorRegistry:
    """A registry that exports one run.

    ``estimate`` gives the parameter fields of the running profile; ``false_hit_rate`` is the
    bundle's (estimate, low, high) on frames without crystals; ``build`` labels the program.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_RunCollector(front, estimate, false_hit_rate, build))
    return registry


class _RunCollector(Collector):
    def __init__(
        self, front: Front, estimate: Estimate, false_hit_rate: tuple[float, float, float], build: dict[str, str]
    ) -> None:
        self._front = front
        self._estimate = estimate
        self._false_hit_rate = false_hit_rate
        self._build = build

    def collect(self) -> Iterator[Metric]:
        yield from self._account()
        yield from self._ratios()
        yield from self._parameters()
        yield from self._times()
        info = InfoMetricFamily("cxls_build", "Version of the program, its libraries and the model bundle")
        info.add_metric([], self._build)
        yield info

    def _account(self) -> Iterator[Metric]:
        front, account = self._front, self._front.account
        # Settled before received: a frame in between then counts as in flight, never as lost.
        processed, dropped = dict(account.processed), dict(account.dropped)
        undecodable, invalid = dict(account.undecodable), dict(account.invalid)
        received = account.received
        settled = sum(processed.values()) + sum(dropped.values()) + sum(undecodable.values())
        waiting = min(front.results_waiting, received - settled)
        yield _counter("cxls_frames_announced", "Images announced by the detector", account.announced)
        yield _counter("cxls_frames_received", "Image messages whose series and image id could be read", received)
        yield _counter("cxls_received_bytes", "Bytes received", account.received_bytes)
        yield _counters("cxls_frames_processed", "Images analysed, by decision", "decision", tuple(Decision), processed)
        yield _counters("cxls_frames_dropped", "Images not analysed, by reason", "reason", DROP_REASONS, dropped)
        yield _counters(
            "cxls_frames_undecodable",
            "Images that did not decode, by reason",
            "reason",
            UNDECODABLE_REASONS,
            undecodable,
        )
        yield _counters(
            "cxls_frames_missing",
            "Announced images that never came, by place",
            "where",
            MISSING_PLACES,
            account.missing,
        )
        yield _counters("cxls_messages_invalid", "Messages refused, by reason", "reason", INVALID_REASONS, invalid)
        yield _counter("cxls_results_lost", "Records that an output could not write", sum(s.lost for s in front.sinks))
        yield _counter("cxls_series_begun", "Series seen", front.running.series_began)
        frames = GaugeMetricFamily("cxls_queue_frames", "Images waiting, by queue", labels=["queue"])
        frames.add_metric(["frames"], received - settled - waiting)
        frames.add_metric(["results"], waiting)
        yield frames
        connected = 1.0 if front.source.connected else 0.0
        yield GaugeMetricFamily("cxls_stream_connected", "Whether the source is connected", value=connected)

    def _ratios(self) -> Iterator[Metric]:
        running = self._front.running
        hit = GaugeMetricFamily("cxls_hit_ratio", "Hits among the latest images with beam", labels=["window"])
        indexable = GaugeMetricFamily(
            "cxls_indexable_ratio", "Images with enough peaks to index among the latest with beam", labels=["window"]
        )
        corrected = GaugeMetricFamily(
            "cxls_hit_ratio_corrected", "Hit ratio with the bundle's false hits removed", labels=["window", "bound"]
        )
        with running.lock:
            for window in WINDOWS:
                hits, counted = running.hits.counts(window)
                ready, _ = running.indexable.counts(window)
                if not counted:
                    continue
                hit.add_metric([str(window)], hits / counted)
                indexable.add_metric([str(window)], ready / counted)
                for bound, value in corrected_ratio(hits, counted, self._false_hit_rate).items():
                    corrected.add_metric([str(window), bound], value)
            flux = running.relative_flux
        yield hit
        yield indexable
        yield corrected
        metric = GaugeMetricFamily("cxls_relative_flux_ratio", "Background against the bundle's reference")
        if flux is not None:
            metric.add_metric([], flux)
        yield metric

    def _parameters(self) -> Iterator[Metric]:
        fields, metadata = self._estimate(), self._front.running.metadata
        for name, text, key, sigma, header in (
            ("cxls_photon_energy_electronvolts", "Photon energy", "photon_energy_eV", "photon_energy_sigma_eV",
             metadata.photon_energy_eV if metadata else None),
            ("cxls_camera_length_meters", "Camera length", "camera_length_m", "camera_length_sigma_m",
             metadata.camera_length_m if metadata else None),
        ):  # fmt: skip
            metric = GaugeMetricFamily(
                name, f"{text} from the running radial profile, its sigma, and the header's", labels=["statistic"]
            )
            for statistic, value in (("estimate", fields.get(key)), ("sigma", fields.get(sigma)), ("header", header)):
                metric.add_metric([statistic], math.nan if value is None else value)
            yield metric

    def _times(self) -> Iterator[Metric]:
        running = self._front.running
        with running.lock:
            latency = HistogramMetricFamily(
                "cxls_receive_to_result_seconds", "From the message's arrival to its published result"
            )
            latency.add_metric([], running.latency.buckets(), running.latency.sum)
            stages = HistogramMetricFamily(
                "cxls_stage_seconds", "Time a frame spends in each stage, observed once a batch", labels=["stage"]
            )
            for stage in STAGES:
                histogram = running.stages.get(stage) or Histogram(STAGE_BUCKETS_S)
                stages.add_metric([stage], histogram.buckets(), histogram.sum)
        yield latency
        yield stages


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, known: tuple[str, ...], values: dict[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key in known:
        family.add_metric([str(key)], values.get(key, 0))
    return family


def corrected_ratio(hits: int, counted: int, false_hit_rate: tuple[float, float, float]) -> dict[str, float]:
    """The share of frames with a crystal behind an observed hit ratio.

    p = r + (1 - r) f solved for r, with f the false-hit rate on empty frames; the interval
    joins Wilson's 95 % interval of p with the interval of f.
    """
    estimate, low, high = false_hit_rate
    ratio_low, ratio_high = wilson(hits, counted)

    def solve(ratio: float, false: float) -> float:
        return min(1.0, max(0.0, (ratio - false) / (1.0 - false)))

    return {
        "estimate": solve(hits / counted, estimate),
        "low": solve(ratio_low, high),
        "high": solve(ratio_high, low),
    }
