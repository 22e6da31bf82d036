"""Hits to an indexer while the run goes on, what it finds of them back, and records to whoever listens."""

from analyzer.indexing.broadcast import Broadcast
from analyzer.indexing.server import IndexingSettings, IndexServer
from analyzer.indexing.sockets import CannotBind

__all__ = ["Broadcast", "CannotBind", "IndexServer", "IndexingSettings"]
