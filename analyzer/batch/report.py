"""What a batch has found: totals and file by file, as JSON and as a page of Markdown."""

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from analyzer.batch.manifest import Manifest
from analyzer.intervals import wilson

REPORT_JSON, REPORT_PAGE = "report.json", "report.md"
PARAMETERS = ("photon_energy_eV", "camera_length_m", "camera_length_over_energy_m_per_eV")
_LINES = 50


@dataclass(slots=True)
class _Sum:
    """Of a number that a record may have."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.count += 1
            self.total += value
            self.squares += value * value

    @property
    def facts(self) -> dict[str, Any]:
        if not self.count:
            return {"frames": 0, "mean": None, "standard_deviation": None}
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean * mean)
        return {"frames": self.count, "mean": mean, "standard_deviation": math.sqrt(variance)}


@dataclass(slots=True)
class Tally:
    """Counts of a table: decisions and failures by series, and the parameters' sums."""

    decisions: dict[int, Counter[str]] = field(default_factory=dict)
    failures: dict[int, Counter[str]] = field(default_factory=dict)
    hit_peaks: _Sum = field(default_factory=_Sum)
    parameters: dict[str, _Sum] = field(default_factory=lambda: {name: _Sum() for name in PARAMETERS})

    def add(self, table: pa.Table) -> None:
        """Count in the records of a table."""
        names = ("series_id", "status", "status_text", "decision", "hit", "peak_count")
        for series, status, text, decision, hit, peaks in zip(*(table[n].to_pylist() for n in names), strict=True):
            counts = self.decisions.setdefault(series, Counter())
            if status != "ok":
                counts[status] += 1
                self.failures.setdefault(series, Counter())[text or status] += 1
                continue
            counts["hit" if hit else decision] += 1
            if hit:
                self.hit_peaks.add(peaks)
        for name, found in self.parameters.items():
            for value in table[name].to_pylist():
                found.add(value)


def summary(manifest: Manifest, tally: Tally, missing_frames: int) -> dict[str, Any]:
    """The report. The same for equal records, whatever the shards were."""
    whole: Counter[str] = Counter()
    files = []
    for series, group in enumerate(manifest.series, 1):
        counts = tally.decisions.get(series, Counter())
        whole.update(counts)
        members = manifest.members(series)
        files.append(
            {
                "file": str(members[0][0]),
                "files": group.files,
                "series_id": series,
                "images": group.images,
                **_rates(counts),
                "failures": dict(tally.failures.get(series, Counter()).most_common(_LINES)),
                "problems": group.problems,
            }
        )
    return {
        "program": manifest.analysis.program,
        "bundle": manifest.analysis.bundle,
        "device": manifest.analysis.device,
        "settings": manifest.analysis.settings,
        "totals": {
            "files": len(manifest.sources),
            "series": len(manifest.series),
            "images": sum(manifest.images),
            **_rates(whole),
            "frames_missing": missing_frames,
            "files_unreadable": len(manifest.unreadable),
        },
        "peaks_of_hits": tally.hit_peaks.facts,
        "parameters": {name: found.facts for name, found in tally.parameters.items()},
        "series": files,
        "unreadable": [
            {"file": manifest.sources[each.file].path, "problem": each.problem} for each in manifest.unreadable
        ],
    }


def _rates(counts: Counter[str]) -> dict[str, Any]:
    hits, misses = counts["hit"], counts["miss"]
    low, high = wilson(hits, hits + misses)
    return {
        "records": counts.total(),
        "hits": hits,
        "misses": misses,
        "no_beam": counts["no_beam"],
        "undecodable": counts["undecodable"],
        "hit_rate": hits / (hits + misses) if hits + misses else None,
        "hit_rate_interval": [low, high] if hits + misses else None,
    }


def write_report(folder: Path, facts: dict[str, Any]) -> None:
    """Write both forms. Raises ``OSError``."""
    _replace(folder / REPORT_JSON, msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    _replace(folder / REPORT_PAGE, page(facts).encode())


def page(facts: dict[str, Any]) -> str:
    """The report to read."""
    totals = facts["totals"]
    lines = [
        "# Batch",
        "",
        f"{totals['images']} images in {totals['series']} series of {totals['files']} files, "
        f"{totals['records']} records: {totals['hits']} hits, {totals['misses']} misses, {totals['no_beam']} without "
        f"beam, {totals['undecodable']} undecodable.",
        "",
        f"Hit rate {_rate(totals)}.",
        "",
        f"cxls-analyzer {facts['program']}, bundle {facts['bundle']}, on {facts['device']}.",
        "",
    ]
    if totals["frames_missing"]:
        lines += [f"**Not finished: {totals['frames_missing']} frames are missing.**", ""]
    lines += ["| of frames | frames | mean | standard deviation |", "|---|---|---|---|"]
    for name, found in {"peaks of hits": facts["peaks_of_hits"], **facts["parameters"]}.items():
        mean, deviation = (_number(found[key]) for key in ("mean", "standard_deviation"))
        lines.append(f"| {name} | {found['frames']} | {mean} | {deviation} |")
    lines += [
        "",
        "| series | file | images | hits | hit rate | no beam | undecodable |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in facts["series"]:
        more = f" and {each['files'] - 1} more" if each["files"] > 1 else ""
        lines.append(
            f"| {each['series_id']} | {_cell(each['file'])}{more} | {each['images']} | {each['hits']} | {_rate(each)} "
            f"| {each['no_beam']} | {each['undecodable']} |"
        )
    lines += _problems(facts)
    return "\n".join(lines) + "\n"


def _problems(facts: dict[str, Any]) -> list[str]:
    told = [f"- {each['problem']}" for each in facts["unreadable"]]
    for each in facts["series"]:
        told += [f"- {problem}" for problem in each["problems"]]
        told += [f"- {each['file']}: {count} images: {why}" for why, count in each["failures"].items()]
    return ["", "## What could not be read", "", *told] if told else []


def _rate(counts: dict[str, Any]) -> str:
    if counts["hit_rate"] is None:
        return "none analysed"
    low, high = counts["hit_rate_interval"]
    return f"{counts['hit_rate']:.2%} ({low:.2%} to {high:.2%})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
