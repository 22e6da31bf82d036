"""Families of metrics that several modules make."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from analyzer.running import Histogram


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """A counter without labels."""
    return CounterMetricFamily(name, text, value=value)


def counters(
    name: str, text: str, label: str, known: Iterable[str], values: Mapping[Any, float]
) -> CounterMetricFamily:
    """A counter with one child for each of ``known``, whether it counted or not."""
    family = CounterMetricFamily(name, text, labels=[label])
    for key in known:
        family.add_metric([str(key)], values.get(key, 0))
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A gauge without labels."""
    return GaugeMetricFamily(name, text, value=value)


def gauge_if_known(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """A gauge without labels, that has no sample before there is a value."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Buckets and sum, as ``add_metric`` of a histogram's family takes them."""
    return histogram.buckets(), histogram.sum
