"""The log: how a line looks, how often the same is said, and who counts it.

In: records of stdlib ``logging``; their event and fields ride along as ``extra=event(...)``.
Out: lines on stderr, as text or as JSON, written by a thread of their own.
May import: the standard library alone; ``counting`` prometheus_client too.
"""

from analyzer.logs.formats import event, printable
from analyzer.logs.output import Format, as_json, configure, settle
from analyzer.logs.repeats import Repeats

__all__ = ["Format", "Repeats", "as_json", "configure", "event", "printable", "settle"]
