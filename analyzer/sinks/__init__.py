"""Outputs of results: one method to write, one to close, chosen by the file's name."""

from analyzer.sinks.base import ResultsExist, Sink
from analyzer.sinks.detached import DetachedSink
from analyzer.sinks.files import JsonLinesSink, ParquetSink, open_results

__all__ = ["DetachedSink", "JsonLinesSink", "ParquetSink", "ResultsExist", "Sink", "open_results"]
