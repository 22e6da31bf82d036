"""One table of all parts: in the order of series and images, the same bytes whatever the shards were."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.batch.manifest import Manifest
from analyzer.batch.parts import Parts
from analyzer.batch.report import Tally
from analyzer.batch.shares import Chunk, shares
from analyzer.sinks.files import RECORD_SCHEMA
from streamer.errors import first_line
from streamer.files import BadInput

TABLE = "records.parquet"
GROUP_ROWS = 10_000
"""Records of a row group, whatever the parts were: what is in memory at once."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What a shard has not finished: chunks and the frames in them."""

    shard: int
    chunks: int
    frames: int


def gaps(folder: Path, manifest: Manifest) -> tuple[list[Chunk], list[Gap]]:
    """The chunks that are there, in order, and of each shard what is not."""
    parts = Parts(folder, manifest.identity)
    there: list[Chunk] = []
    found: list[Gap] = []
    for shard, chunks in enumerate(shares(manifest.images, manifest.by, manifest.shards, manifest.chunk_frames)):
        missing = [chunk for chunk in chunks if not parts.done(chunk)]
        there += set(chunks) - set(missing)
        if missing:
            found.append(Gap(shard, len(missing), sum(map(len, missing))))
    return sorted(there), found


def refuse_gaps(folder: Path, manifest: Manifest, found: Sequence[Gap]) -> None:
    """Raise ``BadInput`` that names the shards of which something is missing."""
    if not found:
        return
    named = ", ".join(f"{gap.shard}/{manifest.shards} ({gap.frames} frames)" for gap in found[:20])
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    raise BadInput(f"{folder}: not finished: shard {named}{more}; run it again, or merge what is there with --partial")


def write_table(
    folder: Path,
    manifest: Manifest,
    chunks: Sequence[Chunk],
    on_chunk: Callable[[int, int], None] = lambda done, n: None,
) -> Tally:
    """Write the table of these chunks in place of any that was there; returns what is in it. Raises ``OSError``."""
    parts = Parts(folder, manifest.identity)
    tally = Tally()
    temporary = folder / f".{TABLE}.{os.getpid()}.tmp"
    try:
        with pq.ParquetWriter(temporary, RECORD_SCHEMA) as writer:
            for table in _groups(parts, chunks, on_chunk):
                tally.add(table)
                writer.write_table(table, row_group_size=GROUP_ROWS)
        fd = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(folder / TABLE)
    finally:
        temporary.unlink(missing_ok=True)
    return tally


def _groups(parts: Parts, chunks: Sequence[Chunk], on_chunk: Callable[[int, int], None]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    rows = 0
    for number, chunk in enumerate(chunks, 1):
        waiting.append(_read(parts.path(chunk)))
        rows += len(waiting[-1])
        while rows >= GROUP_ROWS:
            whole = pa.concat_tables(waiting)
            # One piece: how a column lies in memory would show in the file's pages.
            yield whole.slice(0, GROUP_ROWS).combine_chunks()
            waiting, rows = [whole.slice(GROUP_ROWS)], rows - GROUP_ROWS
        on_chunk(number, len(chunks))
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def _read(path: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(path).read()
        return table.replace_schema_metadata(None).cast(RECORD_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        line = first_line(error)
        raise BadInput(f"{path}: damaged: {line}; remove it and run its shard again") from None
