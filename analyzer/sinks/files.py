"""Results on disk: JSON lines, or Parquet as a folder of parts.

A line is written whole and flushed with its batch; a part is written under a hidden name, brought to the disk and
renamed when complete. So a killed run leaves every record it finished readable: the last line may be a part of one,
and is cut off by the run that goes on. Records of which there is no part yet are lines of a hidden file, of which the
run that goes on makes one.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.results import RECORD_FIELDS, FrameResult, record, to_json_line
from analyzer.sinks.base import ResultsExist, ResultsFile
from analyzer.sinks.recorded import Recorded

log = logging.getLogger(__name__)

PART_RECORDS = 10_000
PART_SECONDS = 2.0
"""Records are in a part, for readers, after this long."""

_PEAK = pa.struct(
    [("fs", pa.float32()), ("ss", pa.float32()), ("intensity_photons", pa.float32()), ("snr", pa.float32()),
     ("saturated", pa.bool_()), ("q_per_angstrom", pa.float32()), ("resolution_angstrom", pa.float32())]
)  # fmt: skip
_DOUBLES = (
    "start_time", "exposure_s", "received_at", "latency_s", "hit_probability", "resolution_angstrom",
    "background_photons", "relative_flux", "photon_energy_eV", "photon_energy_sigma_eV", "camera_length_m",
    "camera_length_sigma_m", "camera_length_over_energy_m_per_eV", "camera_length_over_energy_sigma_m_per_eV",
)  # fmt: skip
_TYPES = {
    **{name: pa.float64() for name in _DOUBLES},
    **{name: pa.int64() for name in ("series_id", "image_id", "peak_count", "saturated_pixels")},
    **{name: pa.bool_() for name in ("hit", "indexable")},
    "peaks": pa.list_(_PEAK),
}
RECORD_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in RECORD_FIELDS])
"""Of every table of records; ``tags`` and ``attributes`` are JSON in it."""

_FIRST_FIELD = b'{"series_id":'


class _Which(msgspec.Struct, frozen=True):
    """What of a line says whose it is."""

    series_id: int
    image_id: int


_which = msgspec.json.Decoder(_Which)


class _FileSink:
    """Common to both: pairs already on disk are not written again, faults are counted.

    ``recorded``: what was on disk when it was opened.
    """

    def __init__(self, path: Path, recorded: Recorded) -> None:
        self.path = path
        self.lost = self.repeated = 0
        self.recorded = recorded

    def tick(self) -> None:
        """Finish what waits, where a sink holds records back."""

    def _new(self, results: Sequence[FrameResult]) -> list[FrameResult]:
        if not self.recorded:
            return list(results)
        new = [result for result in results if (result.series_id, result.image_id) not in self.recorded]
        if len(new) < len(results) and not self.repeated:
            log.warning(
                "%s: holds records of series %d already; images of the same ids are not written again, but counted "
                "(cxls_results_repeated_total). Where the detector counts anew, give it another file",
                self.path,
                results[0].series_id,
            )
        self.repeated += len(results) - len(new)
        return new

    def _failed(self, records: int, error: Exception) -> None:
        if self.lost == 0:
            log.error("%s: results cannot be written: %s; analysis goes on, lost records are counted", self.path, error)
        self.lost += records


class JsonLinesSink(_FileSink):
    """One JSON object a line."""

    def __init__(self, path: Path, append: bool = False) -> None:
        super().__init__(path, _pairs_of_lines(path) if append and path.exists() else Recorded())
        # Unbuffered: what is written is in the kernel, whatever becomes of us.
        self._end = path.stat().st_size if append and path.exists() else 0
        self._file: IO[bytes] = open(path, "ab" if append else "wb", buffering=0)  # noqa: SIM115

    def write(self, results: Sequence[FrameResult]) -> None:
        new = self._new(results)
        try:
            data = b"".join(map(to_json_line, new))
        except (ValueError, TypeError) as error:
            self._failed(len(new), error)
            return
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            whole = data.rfind(b"\n", 0, written) + 1
            self._cut_back(whole)
            self._failed(len(new) - data.count(b"\n", 0, whole), error)
        else:
            self._end += len(data)

    def _cut_back(self, whole: int) -> None:
        """Take back the part of a line that was written when the disk filled up."""
        self._end += whole
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.fileno(), self._end)

    def close(self) -> None:
        self._file.close()


def _pairs_of_lines(path: Path) -> Recorded:
    """Pairs recorded in a file. A line that a kill cut short is removed from its end, as are the zeros that a power cut
    leaves in the place of what did not reach the disk."""
    found, whole, number, line = Recorded(), 0, 0, b""
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            number += 1
            try:
                which = _which.decode(line)
                found.add(which.series_id, which.image_id)
            except ValueError:
                raise ResultsExist(f"{path}: not a results file (line {number}); choose another name") from None
            whole += len(line)
        else:
            return found
    begun = line.rstrip(b"\0")
    if not begun.startswith(_FIRST_FIELD[: len(begun)]):
        raise ResultsExist(f"{path}: not a results file (its last line); choose another name")
    os.truncate(path, whole)
    log.warning("%s: its last record was cut short; its %d bytes are removed", path, len(line))
    return found


class ParquetSink(_FileSink):
    """A folder of Parquet parts, a new one every ``PART_RECORDS`` records or ``PART_SECONDS`` seconds."""

    def __init__(self, path: Path, append: bool = False) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for unfinished in (*path.glob(".part-*.tmp"), *path.glob("part-*.tmp")):
            unfinished.unlink()
        if append:
            for lines in sorted(path.glob(".part-*.jsonl")):
                _finish_part(lines)
        super().__init__(path, _pairs_of_parts(path) if append else Recorded())
        self._part = 1 + max((int(part.stem.split("-")[-1]) for part in path.glob("part-*.parquet")), default=-1)
        self._waiting: list[FrameResult] = []
        self._lines: IO[bytes] | None = None
        self._since = time.monotonic()

    def write(self, results: Sequence[FrameResult]) -> None:
        new = self._new(results)
        self._waiting += new
        # What fails here costs these records only where a kill comes before their part.
        with contextlib.suppress(OSError, ValueError, TypeError, OverflowError):
            if new and self._lines is None:
                self._lines = open(_lines_of(self._target), "wb", buffering=0)  # noqa: SIM115
            if self._lines is not None:
                self._lines.write(b"".join(map(to_json_line, new)))
        if len(self._waiting) >= PART_RECORDS:
            self._flush()
        self.tick()

    def tick(self) -> None:
        """A part is complete after ``PART_SECONDS`` even when no further record comes."""
        if self._waiting and time.monotonic() - self._since >= PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._since = time.monotonic()
        if not waiting:
            return
        try:
            _place(self._target, record_table(waiting))
        except (OSError, pa.ArrowException) as error:
            self._failed(len(waiting), error)
        lines, self._lines = self._lines, None
        with contextlib.suppress(OSError):
            _lines_of(self._target).unlink()
        if lines is not None:
            lines.close()
        self._part += self._target.exists()

    @property
    def _target(self) -> Path:
        return self.path / f"part-{self._part:06d}.parquet"

    def close(self) -> None:
        self._flush()


def _lines_of(part: Path) -> Path:
    """Where the records of a part are until it is there."""
    return part.with_name(f".{part.stem}.jsonl")


def _place(part: Path, table: pa.Table) -> None:
    """Write a part, whole or not at all. Raises ``OSError``, ``pa.ArrowException``."""
    # Hidden: readers of the whole folder pass it over.
    temporary = part.with_name(f".{part.stem}.tmp")
    try:
        with open(temporary, "wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(part)
    except (OSError, pa.ArrowException):
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _finish_part(lines: Path) -> None:
    """Make the part that a killed run had no time for. Raises ``OSError``."""
    part = lines.with_name(f"{lines.stem[1:]}.parquet")
    if not part.exists():
        rows = []
        for line in lines.read_bytes().split(b"\n")[:-1]:
            # One that is no record was never whole.
            with contextlib.suppress(ValueError):
                rows.append(dict.fromkeys(RECORD_FIELDS) | json.loads(line))
        if rows:
            _place(part, _table(rows))
            log.info("%s: %d records of an earlier run are in a part now", part, len(rows))
    lines.unlink()


def record_table(results: Sequence[FrameResult]) -> pa.Table:
    """Records as a table of ``RECORD_SCHEMA``, a row a result."""
    rows = [record(result) for result in results]
    for row in rows:
        if (peaks := row["peaks"]) is not None:
            row["peaks"] = [{f: getattr(p, f) for f in p.__slots__} for p in peaks]
    return _table(rows)


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    columns = []
    for name, kind in zip(RECORD_SCHEMA.names, RECORD_SCHEMA.types, strict=True):
        values = [row[name] for row in rows]
        if name in ("tags", "attributes"):
            values = [None if v is None else json.dumps(v) for v in values]
        columns.append(pa.array(values, kind))
    return pa.table(columns, RECORD_SCHEMA)


def _pairs_of_parts(path: Path) -> Recorded:
    found = Recorded()
    for part in sorted(path.glob("part-*.parquet")):
        try:
            table = pq.read_table(part, columns=["series_id", "image_id"])
        except (OSError, pa.ArrowException) as error:
            why = str(error).splitlines()[0]
            raise ResultsExist(f"{part}: cannot be read: {why}; move it out of the folder") from None
        for series_id, image_id in zip(table["series_id"].to_pylist(), table["image_id"].to_pylist(), strict=True):
            found.add(series_id, image_id)
    return found


def open_results(path: Path, *, append: bool = False, overwrite: bool = False) -> ResultsFile:
    """The sink for a results path by its suffix.

    Raises ``ResultsExist`` when it is there and neither option was given, ``ValueError`` for
    another suffix, ``OSError`` when it cannot be opened.
    """
    if append and overwrite:
        raise ValueError(f"{path}: --append and --overwrite exclude each other; give one")
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: results are written as .jsonl or .parquet; choose one of these endings")
    if path.exists() and not (append or overwrite):
        raise ResultsExist(f"{path}: exists already; use --append to add to it or --overwrite to replace it")
    if path.suffix == ".jsonl":
        return JsonLinesSink(path, append)
    if path.exists() and not path.is_dir():
        raise ResultsExist(f"{path}: is a file; .parquet results are a folder, remove the file or choose another name")
    if path.exists() and overwrite:
        _clear_parts(path)
    return ParquetSink(path, append)


def _clear_parts(path: Path) -> None:
    others = [entry.name for entry in path.iterdir() if not entry.name.startswith(("part-", ".part-"))]
    if others:
        raise ResultsExist(f"{path}: holds {others[0]!r}, which is not ours; choose another folder")
    shutil.rmtree(path)
