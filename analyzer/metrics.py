"""Prometheus metrics, read from the account and the running products when they are scraped.

Nothing is incremented a frame: the collector takes a snapshot, so that the account's
identity holds within one scrape. Names, labels and units are a contract; every label value
is present from the start.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from analyzer.calibration import OperatingPoint, Rate
from analyzer.cascade import STAGES
from analyzer.drift import score_drift, score_histogram
from analyzer.front import Front
from analyzer.intervals import wilson
from analyzer.parameters.header import Quantity
from analyzer.parameters.running import BRAGG
from analyzer.prior import FEWEST_FRAMES, hit_fraction
from analyzer.results import Decision
from analyzer.running import STAGE_BUCKETS_S, WINDOWS, Histogram
from streamer.account import DROP_REASONS, MISSING_PLACES
from streamer.messages import INVALID_REASONS, UNDECODABLE_REASONS, SeriesMetadata

Estimate = Callable[[], dict[str, Any]]
PERFECT_RECALL = Rate(1.0, 1.0, 1.0)
_STEPS = 40
_RARE = (0.0, 0.0513, 0.3554, 0.8177)
"""The 5 % quantile of the mean behind 1, 2, 3 Poisson counts: half of chi-squared's with 2, 4, 6 degrees of freedom."""


def make_registry(front: Front, estimate: Estimate, point: OperatingPoint, build: dict[str, str]) -> CollectorRegistry:
    """A registry that exports one run.

    ``estimate`` gives the parameter fields of the running profile; ``point`` says how hits are
    called and what is known of it; ``build`` labels the program.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_RunCollector(front, estimate, point, build))
    return registry


class _RunCollector(Collector):
    def __init__(self, front: Front, estimate: Estimate, point: OperatingPoint, build: dict[str, str]) -> None:
        self._front = front
        self._estimate = estimate
        self._point = point
        self._build = build

    def collect(self) -> Iterator[Metric]:
        yield from self._account()
        yield from self._ratios()
        yield from self._scores()
        yield from self._parameters()
        yield from self._times()
        yield from self._disagreement()
        yield from self._products()
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
        if front.nulls:
            nulls = CounterMetricFamily(
                "cxls_attributes_null",
                "Frames of which a single model says nothing, by attribute and reason",
                labels=["attribute", "reason"],
            )
            for (name, reason), count in list(front.nulls.items()):
                nulls.add_metric([name, reason], count)
            yield nulls
        yield _counter("cxls_results_lost", "Records that an output could not write", sum(s.lost for s in front.sinks))
        yield _counter("cxls_series_begun", "Series seen", front.running.series_began)
        frames = GaugeMetricFamily("cxls_queue_frames", "Images waiting, by queue", labels=["queue"])
        frames.add_metric(["frames"], received - settled - waiting)
        frames.add_metric(["results"], waiting)
        yield frames
        yield GaugeMetricFamily(
            "cxls_sampled_ratio", "Share of images chosen for analysis by image id", value=front.sampler.ratio
        )
        faults = len(front.device_faults)
        yield GaugeMetricFamily("cxls_device_faults", "Workers whose device failed, that use the CPU now", value=faults)
        connected = 1.0 if front.source.connected else 0.0
        yield GaugeMetricFamily("cxls_stream_connected", "Whether the source is connected", value=connected)

    def _ratios(self) -> Iterator[Metric]:
        running = self._front.running
        hit = GaugeMetricFamily("cxls_hit_ratio", "Hits among the latest images with beam", labels=["window"])
        indexable = GaugeMetricFamily(
            "cxls_indexable_ratio", "Images with enough peaks to index among the latest with beam", labels=["window"]
        )
        corrected = GaugeMetricFamily(
            "cxls_hit_ratio_corrected", "Hit ratio with false hits removed", labels=["window", "bound"]
        )
        with running.lock:
            for window in WINDOWS:
                hits, counted = running.hits.counts(window)
                ready, _ = running.indexable.counts(window)
                if not counted:
                    continue
                hit.add_metric([str(window)], hits / counted)
                indexable.add_metric([str(window)], ready / counted)
                for bound, value in corrected_ratio(hits, counted, self._point.false_hits).items():
                    corrected.add_metric([str(window), bound], value)
            flux = running.relative_flux
        yield hit
        yield indexable
        yield corrected
        metric = GaugeMetricFamily("cxls_relative_flux_ratio", "Background against the bundle's reference")
        if flux is not None:
            metric.add_metric([], flux)
        yield metric

    def _scores(self) -> Iterator[Metric]:
        """What the scores say beyond hit or miss."""
        point, running = self._point, self._front.running
        with running.lock:
            scores = {window: running.scores.values(window) for window in WINDOWS}
        expected = GaugeMetricFamily(
            "cxls_hit_ratio_expected",
            "Share of the latest images with a crystal by all their scores, faint ones included",
            labels=["window", "bound"],
        )
        for window in WINDOWS:
            fraction = expected_ratio(scores[window], point)
            if fraction is not None:
                for bound, value in zip(("estimate", "low", "high"), fraction, strict=True):
                    expected.add_metric([str(window), bound], value)
        yield expected
        drift = GaugeMetricFamily(
            "cxls_score_drift_ratio",
            "Divergence of the scores of the latest misses from a reference: 0 the same, 1 nothing in common",
            labels=["reference"],
        )
        observed = score_histogram(scores[max(WINDOWS)])
        for name, reference in point.references.items():
            found = score_drift(observed, reference, point.threshold)
            if found is not None:
                drift.add_metric([name], found.divergence)
        yield drift

    def _parameters(self) -> Iterator[Metric]:
        fields, metadata = self._estimate(), self._front.running.metadata
        for name, text, key, sigma, header in (
            ("cxls_photon_energy_electronvolts", "Photon energy", "photon_energy_eV", "photon_energy_sigma_eV",
             metadata.photon_energy_eV if metadata else None),
            ("cxls_camera_length_meters", "Camera length", "camera_length_m", "camera_length_sigma_m",
             metadata.camera_length_m if metadata else None),
            ("cxls_camera_length_over_energy_meters_per_electronvolt", "Camera length over photon energy",
             "camera_length_over_energy_m_per_eV", "camera_length_over_energy_sigma_m_per_eV", _header_ratio(metadata)),
        ):  # fmt: skip
            metric = GaugeMetricFamily(
                name, f"{text} from the running radial profile, its sigma, and the header's", labels=["statistic"]
            )
            for statistic, value in (("estimate", fields.get(key)), ("sigma", fields.get(sigma)), ("header", header)):
                metric.add_metric([statistic], math.nan if value is None else value)
            yield metric
        if "mismatches" not in fields:
            return
        shift = GaugeMetricFamily(
            "cxls_beam_center_shift_pixels", "Where the beam is by the data, from the header's centre",
            labels=["axis", "statistic"],
        )  # fmt: skip
        for statistic, key in (("estimate", "beam_center_shift_px"), ("sigma", "beam_center_sigma_px")):
            for axis, value in zip(("x", "y"), fields[key] or (math.nan, math.nan), strict=True):
                shift.add_metric([axis, statistic], value)
        yield shift
        found = {mismatch["quantity"] for mismatch in fields["mismatches"]}
        wrong = GaugeMetricFamily(
            "cxls_header_mismatch", "1 where the data contradict the header beyond their uncertainty",
            labels=["quantity"],
        )  # fmt: skip
        for quantity in Quantity:
            wrong.add_metric([str(quantity)], float(quantity in found))
        yield wrong
        source = GaugeMetricFamily(
            "cxls_parameter_source", "1 for what the running photon energy and camera length are from",
            labels=["source"],
        )  # fmt: skip
        from_bragg = fields["source"] == BRAGG
        source.add_metric(["water"], float(not from_bragg))
        source.add_metric([BRAGG], float(from_bragg))
        yield source
        yield GaugeMetricFamily(
            "cxls_parameter_frames",
            "Frames that the running photon energy and camera length are of",
            value=fields["frames"],
        )

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

    def _disagreement(self) -> Iterator[Metric]:
        """A shadow finder's peaks beside the published ones; nothing without one."""
        running = self._front.running
        if running.disagreement is None:
            return
        with running.lock:
            of = running.disagreement
            names = {"published": of.published, "shadow": of.shadow}
            frames, failed, peaks, matched = of.frames, of.failed, tuple(of.peaks), of.matched
            means, fraction = of.mean_peaks, of.matched_fraction
        prefix = "cxls_peaks_disagreement"
        yield _counter(f"{prefix}_frames", "Frames that both peak finders searched", frames)
        yield _counter(f"{prefix}_failures", "Frames on which the shadow finder failed", failed)
        yield _counter(f"{prefix}_matched", "Peaks that both finders have, within 4 pixels", matched)
        totals = CounterMetricFamily(
            f"{prefix}_peaks", "Peaks of each finder on the frames that both searched", labels=["role", "finder"]
        )
        mean = GaugeMetricFamily(
            f"{prefix}_mean_peaks", "Peaks a frame of each finder, latest 1000 frames", labels=["role", "finder"]
        )
        for place, (role, name) in enumerate(names.items()):
            totals.add_metric([role, name], peaks[place])
            if means is not None:
                mean.add_metric([role, name], means[place])
        yield totals
        yield mean
        ratio = GaugeMetricFamily(
            f"{prefix}_ratio", "Share of both finders' peaks that the other has not, latest 1000 frames"
        )
        if fraction is not None:
            ratio.add_metric([], 1.0 - fraction)
        yield ratio

    def _products(self) -> Iterator[Metric]:
        products = self._front.products
        hot = products.hot_pixels()
        with products.lock:
            peaks = HistogramMetricFamily("cxls_peaks_per_frame", "Peaks of each image with beam")
            peaks.add_metric([], products.peaks_per_frame.buckets(), products.peaks_per_frame.sum)
            saturated, unfit = products.saturated_frames, products.unfit_frames
        yield peaks
        yield _counter("cxls_saturated_frames", "Images with saturated pixels", saturated)
        yield _counter("cxls_geometry_unfit_frames", "Images that the geometry file given is not for", unfit)
        found = GaugeMetricFamily("cxls_hot_pixels", "Pixels in the running hot-pixel map, applied or not")
        if hot is not None:
            found.add_metric([], len(hot.pixel))
        yield found


def _header_ratio(metadata: SeriesMetadata | None) -> float | None:
    if metadata is None or not metadata.camera_length_m or not metadata.photon_energy_eV:
        return None
    return metadata.camera_length_m / metadata.photon_energy_eV


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, known: tuple[str, ...], values: dict[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key in known:
        family.add_metric([str(key)], values.get(key, 0))
    return family


def corrected_ratio(hits: int, counted: int, false_hits: Rate, recall: Rate = PERFECT_RECALL) -> dict[str, float]:
    """The share of frames with a crystal behind an observed hit ratio, with its interval of 95 %.

    With f the share of frames without a crystal that are called hits and r that of frames with one,
    the observed ratio is p = h r + (1 - h) f, so that h = (p - f) / (r - f). The interval holds
    every h that p - (1 - h) f - h r = 0 does not rule out; the interval of that sum recovers
    each term's variance from the term's own interval (MOVER: Zou and Donner, Statistics in
    Medicine 27, 2008, 1693), Wilson's for p, modified where hits or misses are rare. A recall
    of 1 makes it the share of frames that can be found.
    """
    p = hits / counted
    p_low, p_high = _wilson_of_rare(hits, counted)
    # Fewer than the false hits alone, or more than all crystals, is chance: no reason to be surer than at that edge.
    possible = min(max(p, false_hits.estimate), max(recall.estimate, false_hits.estimate))

    def reach(h: float, side: int) -> float:
        """How far the sum lies from 0 towards one side, less what chance allows."""
        centre = possible - (1 - h) * false_hits.estimate - h * recall.estimate
        if side > 0:
            parts = (p - p_low, (1 - h) * (false_hits.high - false_hits.estimate), h * (recall.high - recall.estimate))
        else:
            parts = (p_high - p, (1 - h) * (false_hits.estimate - false_hits.low), h * (recall.estimate - recall.low))
        return side * centre - math.hypot(*parts)

    def bound(side: int) -> float:
        """The smallest h (side 1) or largest (side -1) that is not ruled out."""
        out, inside = (0.0, 1.0) if side > 0 else (1.0, 0.0)
        if reach(out, side) <= 0:
            return out
        for _ in range(_STEPS):
            middle = (out + inside) / 2
            out, inside = (middle, inside) if reach(middle, side) > 0 else (out, middle)
        return inside

    spread = recall.estimate - false_hits.estimate
    estimate = min(1.0, max(0.0, (p - false_hits.estimate) / spread)) if spread > 0 else 0.0
    return {"estimate": estimate, "low": min(bound(1), estimate), "high": max(bound(-1), estimate)}


def expected_ratio(scores: npt.NDArray[np.float64], point: OperatingPoint) -> tuple[float, float, float] | None:
    """The share of frames with a crystal, (estimate, low, high), from all their scores; ``None`` for too few frames.

    With a calibration: from how many more frames than in the blank run reach a level that a tenth of
    blank frames does, which asks nothing of the probabilities but their order. Without: the share
    under which the scores are likeliest, which asks that they are calibrated for this beam line.
    """
    if point.blank_level is None or len(scores) < FEWEST_FRAMES:
        return hit_fraction(scores, point.prior)
    level, rate = point.blank_level
    found = corrected_ratio(int((scores >= level).sum()), len(scores), rate)
    return found["estimate"], found["low"], found["high"]


def _wilson_of_rare(hits: int, counted: int) -> tuple[float, float]:
    """Wilson's interval, wider for 1 to 3 hits or misses, where it covers too little (Brown, Cai, DasGupta 2001)."""
    low, high = wilson(hits, counted)
    misses = counted - hits
    if 0 < hits < len(_RARE):
        low = min(low, _RARE[hits] / counted)
    if 0 < misses < len(_RARE):
        high = max(high, 1 - _RARE[misses] / counted)
    return low, high
