"""Outputs of results: one method to write, one to close, chosen by the file's name; and of hits with their frames."""

from analyzer.sinks.base import HitOutput, Reporting, ResultsExist, ResultsFile, Sink
from analyzer.sinks.detached import DetachedSink
from analyzer.sinks.files import JsonLinesSink, ParquetSink, open_results

__all__ = [
    "DetachedSink",
    "HitOutput",
    "JsonLinesSink",
    "ParquetSink",
    "Reporting",
    "ResultsExist",
    "ResultsFile",
    "Sink",
    "open_results",
]
