"""A run as a row of ``runs.csv``: RFC 4180, UTF-8, a unit in each name that has one."""

import time
from collections.abc import Callable
from typing import Any

from analyzer.runs import RunSummary
from streamer.account import DROP_REASONS

_FORMULA = ("=", "+", "-", "@")


def utc(at: float) -> str:
    """Unix seconds as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _rate(place: int) -> Callable[[RunSummary], Any]:
    return lambda run: None if run.hit_rate is None else round(run.hit_rate[place], 6)


def _dropped(reason: str) -> Callable[[RunSummary], Any]:
    return lambda run: run.counts.dropped.get(reason, 0)


COLUMNS: dict[str, Callable[[RunSummary], Any]] = {
    "run_number": lambda run: run.info.number,
    "sample": lambda run: run.info.sample,
    "notes": lambda run: run.info.notes,
    "began_utc": lambda run: utc(run.info.began_at),
    "ended_utc": lambda run: utc(run.until) if run.over else None,
    "duration_s": lambda run: round(run.duration_s, 1),
    "series": lambda run: len(run.counts.series_ids),
    "series_ids": lambda run: " ".join(map(str, run.counts.series_ids)),
    "frames": lambda run: run.counts.frames,
    "frames_hit": lambda run: run.hits,
    "frames_miss": lambda run: run.counts.processed["miss"],
    "frames_no_beam": lambda run: run.counts.processed["no_beam"],
    "frames_undecodable": lambda run: run.counts.undecodable,
    "frames_dropped": lambda run: sum(run.counts.dropped.values()),
    **{f"frames_dropped_{reason}": _dropped(reason) for reason in DROP_REASONS},
    "frames_missing": lambda run: run.counts.missing,
    "frames_indexable": lambda run: run.counts.indexable,
    "frames_indexed": lambda run: run.counts.indexed,
    "hit_rate": _rate(0),
    "hit_rate_low": _rate(1),
    "hit_rate_high": _rate(2),
    "median_peaks_per_hit": lambda run: run.counts.median_peaks,
    "median_resolution_angstrom": lambda run: run.counts.median_resolution_angstrom,
    "photon_energy_eV": lambda run: run.photon_energy_eV.value,
    "photon_energy_sigma_eV": lambda run: run.photon_energy_eV.sigma,
    "photon_energy_header_eV": lambda run: run.photon_energy_eV.header,
    "camera_length_m": lambda run: run.camera_length_m.value,
    "camera_length_sigma_m": lambda run: run.camera_length_m.sigma,
    "camera_length_header_m": lambda run: run.camera_length_m.header,
    "bundle": lambda run: run.judging.bundle,
    "threshold": lambda run: run.judging.threshold,
    "hit_rule": lambda run: run.judging.hit_rule,
    "min_peaks": lambda run: run.judging.min_peaks,
    "indexable_peaks": lambda run: run.judging.indexable_peaks,
    "peak_finder": lambda run: run.judging.finder,
    "mask": lambda run: run.judging.mask,
    "channel": lambda run: run.judging.channel,
    "changes": lambda run: run.changes,
}
"""Every column, and how it follows from a run; nothing where nothing is known."""


def header_line() -> bytes:
    """The first line of the file."""
    return _line(list(COLUMNS))


def row_line(run: RunSummary) -> bytes:
    """The run's line, line end included; notes may span several."""
    return _line([_cell(take(run)) for take in COLUMNS.values()])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    # Before a text that a spreadsheet would take for a formula stands an apostrophe, which says that it is none.
    if isinstance(value, str) and value.lstrip().startswith(_FORMULA):
        return f"'{value}"
    return str(value)


def _line(cells: list[str]) -> bytes:
    return (",".join(_quoted(cell) for cell in cells) + "\r\n").encode()


def _quoted(cell: str) -> str:
    if any(special in cell for special in ',"\r\n') or cell != cell.strip():
        return '"' + cell.replace('"', '""') + '"'
    return cell
