"""What the images show: hits, scores, peaks, photon energy and camera length."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from analyzer.calibration import OperatingPoint
from analyzer.drift import score_drift, score_histogram
from analyzer.metrics.families import buckets, counter, gauge_if_known
from analyzer.metrics.ratios import corrected_ratio, expected_ratio
from analyzer.parameters.header import Quantity
from analyzer.parameters.running import BRAGG
from analyzer.products import Products
from analyzer.running import WINDOWS, Running
from streamer.messages import SeriesMetadata


def ratios(running: Running, point: OperatingPoint) -> Iterator[Metric]:
    """What the latest images show."""
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
            for bound, value in corrected_ratio(hits, counted, point.false_hits).items():
                corrected.add_metric([str(window), bound], value)
        flux, background = running.relative_flux, running.background_photons
    yield hit
    yield indexable
    yield corrected
    yield gauge_if_known("cxls_relative_flux_ratio", "Background against the bundle's reference", flux)
    yield gauge_if_known("cxls_background_photons", "Background of an image, summed over its valid pixels", background)


def scores(running: Running, point: OperatingPoint) -> Iterator[Metric]:
    """What the scores say beyond hit or miss."""
    with running.lock:
        latest = {window: running.scores.values(window) for window in WINDOWS}
        probabilities = buckets(running.hit_probabilities)
    histogram = HistogramMetricFamily("cxls_hit_probability", "Hit probability of each image with beam")
    histogram.add_metric([], *probabilities)
    yield histogram
    expected = GaugeMetricFamily(
        "cxls_hit_ratio_expected",
        "Share of the latest images with a crystal by all their scores, faint ones included",
        labels=["window", "bound"],
    )
    for window in WINDOWS:
        fraction = expected_ratio(latest[window], point)
        if fraction is not None:
            for bound, value in zip(("estimate", "low", "high"), fraction, strict=True):
                expected.add_metric([str(window), bound], value)
    yield expected
    drift = GaugeMetricFamily(
        "cxls_score_drift_ratio",
        "Divergence of the scores of the latest misses from a reference: 0 the same, 1 nothing in common",
        labels=["reference"],
    )
    observed = score_histogram(latest[max(WINDOWS)])
    for name, reference in point.references.items():
        found = score_drift(observed, reference, point.threshold)
        if found is not None:
            drift.add_metric([name], found.divergence)
    yield drift


def peaks(products: Products) -> Iterator[Metric]:
    """Peaks, saturation, hot pixels."""
    hot = products.hot_pixels()
    with products.lock:
        a_frame = HistogramMetricFamily("cxls_peaks_per_frame", "Peaks of each image with beam")
        a_frame.add_metric([], *buckets(products.peaks_per_frame))
        saturated, unfit = products.saturated_frames, products.unfit_frames
        mask_unfit = products.mask_unfit_frames
    yield a_frame
    yield counter("cxls_saturated_frames", "Images with saturated pixels", saturated)
    yield counter("cxls_geometry_unfit_frames", "Images that the geometry file given is not for", unfit)
    yield counter("cxls_mask_unfit_frames", "Images that the mask given is not for", mask_unfit)
    found = GaugeMetricFamily("cxls_hot_pixels", "Pixels in the running hot-pixel map, applied or not")
    if hot is not None:
        found.add_metric([], len(hot.pixel))
    yield found


def disagreement(running: Running) -> Iterator[Metric]:
    """A shadow finder's peaks beside the published ones; nothing without one."""
    with running.lock:
        of = running.disagreement
        if of is None:
            return
        names = {"published": of.published, "shadow": of.shadow}
        frames, failed, peaks, matched = of.frames, of.failed, tuple(of.peaks), of.matched
        means, fraction = of.mean_peaks, of.matched_fraction
    prefix = "cxls_peaks_disagreement"
    yield counter(f"{prefix}_frames", "Frames that both peak finders searched", frames)
    yield counter(f"{prefix}_failures", "Frames on which the shadow finder failed", failed)
    yield counter(f"{prefix}_matched", "Peaks that both finders have, within 4 pixels", matched)
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


def parameters(fields: Mapping[str, Any], metadata: SeriesMetadata | None) -> Iterator[Metric]:
    """Photon energy and camera length of the run so far, ``fields``, beside the header's."""
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


def _header_ratio(metadata: SeriesMetadata | None) -> float | None:
    if metadata is None or not metadata.camera_length_m or not metadata.photon_energy_eV:
        return None
    return metadata.camera_length_m / metadata.photon_energy_eV
