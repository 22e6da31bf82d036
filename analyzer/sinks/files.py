"""Results on disk: JSON lines, or Parquet as a folder of parts.

A line is written whole and flushed with its batch; a part is written under a hidden name, brought to the disk and
given its name when complete. So a killed run leaves every record it finished readable: the last line may be a part of
one, and is cut off by the run that goes on. Records of which there is no part yet are lines of a hidden file. Where the
part could not be written, they stay there: it is made when there is room again, or by the run that goes on.

One process at a time writes to results, see ``analyzer.sinks.hold``.
"""

import contextlib
import itertools
import json
import logging
import os
import re
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
from analyzer.sinks.hold import Hold, hold, note_path
from analyzer.sinks.recorded import Recorded
from streamer.errors import first_line

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

_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)
"""What Arrow raises for values that its types cannot hold."""

_PART = re.compile(r"\.?part-(\d+)\.(?:parquet|jsonl)")
_FIRST_FIELD = b'{"series_id":'


class _Which(msgspec.Struct, frozen=True):
    """What of a line says whose it is."""

    series_id: int
    image_id: int


_which = msgspec.json.Decoder(_Which)


class _FileSink:
    """Common to both: pairs already on disk are not written again, faults are counted.

    ``recorded``: what was on disk when it was opened; ``hold``: the results are ours until it is released.
    """

    def __init__(self, path: Path, recorded: Recorded, hold: Hold | None) -> None:
        self.path = path
        self.hold = hold
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

    def _release(self) -> None:
        held, self.hold = self.hold, None
        if held is not None:
            held.release()


class _LineFile:
    """Lines added whole, or not at all, to a file of ours alone. ``lines``: how many were added."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path, self.lines = path, 0
        # Unbuffered: what is written is in the kernel, whatever becomes of us.
        self._file: IO[bytes] = open(path, mode, buffering=0, opener=_appending)  # noqa: SIM115
        self._end = os.fstat(self._file.fileno()).st_size

    def add(self, data: bytes) -> None:
        """Raises ``OSError``; the lines that were written whole are then there and counted."""
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            # A part of a line, written when the disk filled up, is taken back.
            written = data.rfind(b"\n", 0, written) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._end + written)
            raise
        finally:
            self._end += written
            self.lines += data.count(b"\n", 0, written)

    def close(self) -> None:
        self._file.close()


def _appending(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND, 0o666)


class JsonLinesSink(_FileSink):
    """One JSON object a line."""

    def __init__(self, path: Path, append: bool = False, hold: Hold | None = None) -> None:
        super().__init__(path, _pairs_of_lines(path) if append and path.exists() else Recorded(), hold)
        self._lines = _LineFile(path, "ab" if append else "wb")

    def write(self, results: Sequence[FrameResult]) -> None:
        new = self._new(results)
        try:
            data = b"".join(map(to_json_line, new))
        except (ValueError, TypeError) as error:
            self._failed(len(new), error)
            return
        before = self._lines.lines
        try:
            self._lines.add(data)
        except OSError as error:
            self._failed(len(new) - (self._lines.lines - before), error)

    def close(self) -> None:
        self._lines.close()
        self._release()


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

    def __init__(self, path: Path, append: bool = False, hold: Hold | None = None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        super().__init__(path, Recorded(), hold)
        for unfinished in (*path.glob(".part-*.tmp"), *path.glob("part-*.tmp")):
            unfinished.unlink()
        self._left: dict[Path, int] = {}
        """Files of lines of which no part could be made, with their records."""
        if append:
            for lines in sorted(path.glob(".part-*.jsonl")):
                self._finish(lines)
            self.recorded = _pairs_of_parts(path)
        for lines in self._left:
            for row in _rows_of(lines)[0]:
                self.recorded.add(row["series_id"], row["image_id"])
        numbers = [int(found[1]) for each in path.iterdir() if (found := _PART.fullmatch(each.name))]
        self._part = 1 + max(numbers, default=-1)
        self._waiting: list[FrameResult] = []
        self._lines: _LineFile | None = None
        self._since = time.monotonic()

    def write(self, results: Sequence[FrameResult]) -> None:
        new = self._new(results)
        self._waiting += new
        # What fails here costs these records only where a kill comes before their part, or it cannot be written.
        with contextlib.suppress(OSError):
            if new and self._lines is None:
                self._lines = self._new_lines()
            if self._lines is not None:
                self._lines.add(_good_lines(new))
        if len(self._waiting) >= PART_RECORDS:
            self._flush()
        self.tick()

    def tick(self) -> None:
        """A part is complete after ``PART_SECONDS`` even when no further record comes."""
        if self._waiting and time.monotonic() - self._since >= PART_SECONDS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._finish_left()
        if self._left:
            records = sum(self._left.values())
            log.error(
                "%s: %d records are in no part, but in hidden files of lines (.part-*.jsonl); where there is room, a "
                "run with --append makes parts of them",
                self.path, records,
            )  # fmt: skip
            self.lost += records
        self._release()

    def _new_lines(self) -> _LineFile:
        while True:
            try:
                return _LineFile(_lines_of(self._target), "xb")
            except FileExistsError:
                self._part += 1

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        lines, self._lines = self._lines, None
        self._since = time.monotonic()
        if lines is not None:
            lines.close()
        if not waiting:
            return
        try:
            self._place_next(record_table(waiting))
        except (OSError, *_UNFIT) as error:
            self._keep(lines, len(waiting), error)
        else:
            if lines is not None:
                with contextlib.suppress(OSError):
                    lines.path.unlink()
            self._finish_left()
        self._part += 1

    def _place_next(self, table: pa.Table) -> None:
        while True:
            try:
                _place(self._target, table)
                return
            except FileExistsError:
                self._part += 1

    def _keep(self, lines: _LineFile | None, records: int, error: Exception) -> None:
        """No part could be made of records: what is in their file of lines stays there."""
        kept = 0
        if lines is not None and lines.lines:
            kept = lines.lines
            if not self._left:
                log.warning(
                    "%s: a part cannot be written: %s; its records stay in %s until one can",
                    self.path, first_line(error), lines.path.name,
                )  # fmt: skip
            self._left[lines.path] = kept
        elif lines is not None:
            with contextlib.suppress(OSError):
                lines.path.unlink()
        if records > kept:
            self._failed(records - kept, error)

    def _finish_left(self) -> None:
        """Make the parts that could not be made, now that there may be room."""
        for lines in list(self._left):
            if not self._finish(lines):
                return

    def _finish(self, lines: Path) -> bool:
        try:
            _finish_part(lines)
        except FileNotFoundError:
            self.lost += self._left.pop(lines, 0)
            return True
        except (OSError, *_UNFIT) as error:
            if lines not in self._left:
                log.warning("%s: no part can be made of it: %s; it stays until one can", lines, first_line(error))
                self._left[lines] = len(_rows_of(lines)[0])
            return False
        self._left.pop(lines, None)
        return True

    @property
    def _target(self) -> Path:
        return self.path / f"part-{self._part:06d}.parquet"


def _lines_of(part: Path) -> Path:
    """Where the records of a part are until it is there."""
    return part.with_name(f".{part.stem}.jsonl")


def _good_lines(results: Sequence[FrameResult]) -> bytes:
    found = []
    for result in results:
        with contextlib.suppress(ValueError, TypeError):
            found.append(to_json_line(result))
    return b"".join(found)


def _place(part: Path, table: pa.Table) -> None:
    """Write a part, whole or not at all. Raises ``OSError``, ``FileExistsError`` where it is there, and what Arrow
    does."""
    # Hidden: readers of the whole folder pass it over.
    temporary = part.with_name(f".{part.stem}.tmp")
    try:
        with open(temporary, "wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        _name(temporary, part)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _name(temporary: Path, part: Path) -> None:
    """Give a file its name, never that of another."""
    try:
        os.link(temporary, part)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        if part.exists():
            raise FileExistsError(f"{part}: exists") from None
        temporary.rename(part)


def _finish_part(lines: Path) -> None:
    """Make the part that a killed run, or a full disk, left as lines. Raises ``OSError``.

    Lines that are no records stay in a file that is named.
    """
    part = lines.with_name(f"{lines.stem[1:]}.parquet")
    if part.exists():
        lines.unlink()
        return
    rows, bad = _rows_of(lines)
    try:
        table = _table(rows)
    except _UNFIT:
        fit = [row for row in rows if _fits(row)]
        bad += len(rows) - len(fit)
        rows, table = fit, _table(fit)
    if rows:
        _place(part, table)
        log.info("%s: %d records of which there was no part are in one now", part, len(rows))
    if bad:
        aside = next(p for n in itertools.count() if not (p := lines.with_suffix(f".damaged-{n}")).exists())
        lines.rename(aside)
        log.warning("%s: %d lines are no records and are in no part; the file stays as it was", aside, bad)
        return
    lines.unlink()


def _rows_of(lines: Path) -> tuple[list[dict[str, Any]], int]:
    """Records in a file of lines, and how many whole lines are none. Raises ``OSError``."""
    rows: list[dict[str, Any]] = []
    # What follows the last newline was never whole.
    whole = lines.read_bytes().split(b"\n")[:-1]
    for line in whole:
        with contextlib.suppress(ValueError, RecursionError):
            _which.decode(line)
            rows.append(dict.fromkeys(RECORD_FIELDS) | json.loads(line))
    return rows, len(whole) - len(rows)


def _fits(row: dict[str, Any]) -> bool:
    try:
        _table([row])
    except _UNFIT:
        return False
    return True


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
            why = first_line(error)
            raise ResultsExist(f"{part}: cannot be read: {why}; move it out of the folder") from None
        for series_id, image_id in zip(table["series_id"].to_pylist(), table["image_id"].to_pylist(), strict=True):
            found.add(series_id, image_id)
    return found


def open_results(path: Path, *, append: bool = False, overwrite: bool = False) -> ResultsFile:
    """The sink for a results path by its suffix.

    Raises ``ResultsExist`` when it is there and neither option was given, or when another process writes to it,
    ``ValueError`` for another suffix, ``OSError`` when it cannot be opened.
    """
    if append and overwrite:
        raise ValueError(f"{path}: --append and --overwrite exclude each other; give one")
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: results are written as .jsonl or .parquet; choose one of these endings")
    if path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
    # Before anything is looked at: what is there may be in the making.
    held = hold(path)
    try:
        return _open(path, append, overwrite, held)
    except BaseException:
        if held is not None:
            held.release()
        raise


def _open(path: Path, append: bool, overwrite: bool, held: Hold | None) -> ResultsFile:
    there = path.exists()
    if there and not (append or overwrite):
        raise ResultsExist(f"{path}: exists already; use --append to add to it or --overwrite to replace it")
    if path.suffix == ".parquet" and there:
        if not path.is_dir():
            raise ResultsExist(
                f"{path}: is a file; .parquet results are a folder, remove the file or choose another name"
            )
        if overwrite:
            _clear_parts(path)
    if overwrite or not there:
        # Of results that are no more.
        with contextlib.suppress(OSError):
            note_path(path).unlink()
    return JsonLinesSink(path, append, held) if path.suffix == ".jsonl" else ParquetSink(path, append, held)


def _clear_parts(path: Path) -> None:
    others = [entry.name for entry in path.iterdir() if not entry.name.startswith(("part-", ".part-"))]
    if others:
        raise ResultsExist(f"{path}: holds {others[0]!r}, which is not ours; choose another folder")
    shutil.rmtree(path)
