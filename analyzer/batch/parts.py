"""Parts: the records of a chunk as one Parquet file, put in its place when it is complete and on the disk."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.batch.shares import Chunk
from analyzer.results import FrameResult
from analyzer.sinks.files import RECORD_SCHEMA, record_table

PARTS = "parts"
_IDENTITY = b"cxls_batch"
PER_PROCESS = ("received_at", "latency_s")
"""When a process met a frame says nothing of the frame: null in a batch, so that equal work makes equal files."""


class Parts:
    """Those of one batch, in its folder; each bears the identity of the batch's manifest."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / PARTS
        self._identity = identity.encode()

    def path(self, chunk: Chunk) -> Path:
        return self._folder / chunk.name

    def prepare(self) -> None:
        """Make the folder. Raises ``OSError``."""
        self._folder.mkdir(exist_ok=True)

    def clean(self, chunks: Sequence[Chunk]) -> None:
        """Remove what killed processes left unfinished of these chunks. Raises ``OSError``."""
        ours = {chunk.name for chunk in chunks}
        for entry in self._folder.glob(".*.tmp"):
            if entry.name[1:].split("~")[0] in ours:
                entry.unlink(missing_ok=True)

    def done(self, chunk: Chunk) -> bool:
        """Whether the part of a chunk is there, whole, and of this batch."""
        try:
            with pq.ParquetFile(self.path(chunk)) as part:
                metadata = part.schema_arrow.metadata or {}
                return metadata.get(_IDENTITY) == self._identity and part.metadata.num_rows <= len(chunk)
        except (OSError, pa.ArrowException):
            return False

    def write(self, chunk: Chunk, results: Sequence[FrameResult]) -> None:
        """Write the part of a chunk, its records in the order of their images. Raises ``OSError``."""
        table = record_table(sorted(results, key=lambda result: result.image_id))
        for name in PER_PROCESS:
            column = RECORD_SCHEMA.get_field_index(name)
            table = table.set_column(column, RECORD_SCHEMA.field(column), pa.nulls(len(table), pa.float64()))
        table = table.replace_schema_metadata({_IDENTITY: self._identity})
        # Of its own even where the file system has no locks.
        temporary = self._folder / f".{chunk.name}~{socket.gethostname()}-{os.getpid()}.tmp"
        try:
            pq.write_table(table, temporary)
            _sync(temporary)
            temporary.rename(self.path(chunk))
            _sync(self._folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
