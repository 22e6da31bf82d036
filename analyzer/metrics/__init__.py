"""Prometheus metrics, read from the account and the running products when they are scraped."""

from analyzer.metrics.disk import DiskSpace
from analyzer.metrics.gpu import GpuLoad
from analyzer.metrics.ratios import PERFECT_RECALL, corrected_ratio, expected_ratio
from analyzer.metrics.registry import make_registry

__all__ = ["PERFECT_RECALL", "DiskSpace", "GpuLoad", "corrected_ratio", "expected_ratio", "make_registry"]
