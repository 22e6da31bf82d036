"""What can be seen of an analysis from outside: memory, descriptors, threads and CPU of its processes, its metrics."""

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from cxls.bench.children import memory_bytes

LATENCY = "cxls_receive_to_result_seconds_bucket"
_TIMEOUT_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")

Metrics = Mapping[str, float]
"""Values by name with labels, as in ``cxls_frames_missing_total{where="gap"}``."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of an analysis and all processes that it started, added up. ``cpu_s`` counts those that ended, too.

    ``own_bytes`` leaves out pages of files, such as libraries, which count for less where other programs have them too;
    what was swapped out counts, and memory that several of the processes share counts once. Of a process of which the
    system does not show it, it is the resident size.
    """

    processes: int
    resident_bytes: int
    own_bytes: int
    descriptors: int
    threads: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. ``at_s`` is monotonic and counts from the first image.

    ``latency``: images by the upper edge (s) of their time from arrival to result, cumulative as Prometheus has it.
    """

    at_s: float
    usage: Usage
    received: int
    processed: int
    dropped: int
    undecodable: int
    queued: int
    latency: Mapping[float, int]

    @property
    def settled(self) -> int:
        """Images whose fate is known."""
        return self.processed + self.dropped + self.undecodable

    @property
    def unaccounted(self) -> int:
        """Images received of which nothing is known; 0 at any moment."""
        return self.received - self.settled - self.queued


def sample(pid: int, metrics: Metrics, at_s: float) -> Sample:
    """A look at the processes below ``pid`` beside metrics that were just read. Raises ``OSError`` or
    ``ValueError`` when it is gone."""
    return Sample(
        at_s,
        usage(pid),
        count(metrics, "cxls_frames_received_total"),
        count(metrics, "cxls_frames_processed_total"),
        count(metrics, "cxls_frames_dropped_total"),
        count(metrics, "cxls_frames_undecodable_total"),
        count(metrics, "cxls_queue_frames"),
        {float(edge): int(images) for edge, images in by_label(metrics, LATENCY).items()},
    )


def scrape(url: str) -> dict[str, float]:
    """Every value at ``url/metrics`` by name and labels. Raises ``OSError``."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as answer:
        text = answer.read().decode()
    return {
        _key(each.name, each.labels): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def _key(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def by_label(metrics: Metrics, name: str) -> dict[str, float]:
    """Values of a metric with a single label, by the label's value."""
    begin = name + "{"
    return {key.split('"')[1]: value for key, value in metrics.items() if key.startswith(begin)}


def count(metrics: Metrics, name: str) -> int:
    """A metric's value, summed over its labels."""
    return round(metrics.get(name, 0.0) + sum(by_label(metrics, name).values()))


def family(pid: int) -> list[int]:
    """A process and all those below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat(int(entry.name))[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def usage(pid: int) -> Usage:
    """Raises ``OSError`` or ``ValueError`` when the process itself is gone; those below may come and go."""
    looks = [_one(pid)]
    for each in family(pid)[1:]:
        try:
            looks.append(_one(each))
        except (OSError, ValueError):
            continue
    columns = zip(*looks, strict=True)
    resident, own, descriptors, threads, ticks = (sum(column) for column in columns)
    return Usage(len(looks), resident, own, descriptors, threads, ticks / _TICKS)


def _one(pid: int) -> tuple[int, int, int, int, int]:
    stat = _stat(pid)
    # Fields 14 to 17: its own time and that of its children that ended.
    ticks = sum(int(value) for value in stat[11:15])
    resident = memory_bytes(pid)
    return resident, _own(pid), len(os.listdir(f"/proc/{pid}/fd")), int(stat[17]), ticks


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, as the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _own(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (PermissionError, FileNotFoundError):  # a container that hides it, a kernel without it
        return memory_bytes(pid)
    sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
    if "Pss_Anon" not in sizes:  # before Linux 5.4
        return memory_bytes(pid)
    # Swapped out it is no less its own: a leak that nobody touches would go unseen. A kernel without swap has no line.
    own = ("Pss_Anon", "Pss_Shmem", "SwapPss")
    return sum(int(sizes[name].split()[0]) << 10 for name in own if name in sizes)
