"""Room on the disks that a run writes to."""

import math
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LOOK_S = 5.0
"""Between two looks at the disks, at least."""

STALE_S = 60.0
"""A look that takes longer, as at a file server that does not answer, leaves its disk unknown."""

_PATIENCE_S = 0.1

Room = tuple[float, float]
_UNKNOWN = (math.nan, math.nan)


class DiskSpace(Collector):
    """``cxls_disk_free_bytes`` and ``cxls_disk_size_bytes`` of the folders that outputs go to, by output.

    A folder that is gone is NaN. While one scrape waits for a disk, the others show the last look.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self._rooms: dict[str, Room] = {}
        self._looked_s = -math.inf
        self._looking = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        rooms = self.rooms()
        free = GaugeMetricFamily("cxls_disk_free_bytes", "Room left for an output on its disk", labels=["output"])
        size = GaugeMetricFamily("cxls_disk_size_bytes", "Size of the disk of an output", labels=["output"])
        for output in self._folders:
            size_bytes, free_bytes = rooms.get(output, _UNKNOWN)
            free.add_metric([output], free_bytes)
            size.add_metric([output], size_bytes)
        yield free
        yield size

    def rooms(self) -> Mapping[str, Room]:
        """Size and free bytes of each output's disk, as last looked at; NaN, or no entry, where they are not known.

        Returns at once: a look at a file server that does not answer waits in a thread of its own.
        """
        now = time.monotonic()
        if self._folders and now - self._looked_s >= LOOK_S and self._looking.acquire(blocking=False):
            look = threading.Thread(target=self._look, name="disks", daemon=True)
            look.start()
            # A disk at hand answers at once, and a first scrape is to have it.
            look.join(_PATIENCE_S)
        return self._rooms if time.monotonic() - self._looked_s < STALE_S else {}

    def _look(self) -> None:
        try:
            self._rooms = {output: _room(folder) for output, folder in self._folders.items()}
            self._looked_s = time.monotonic()
        finally:
            self._looking.release()


def _room(folder: Path) -> Room:
    """Size and free bytes; what only root may use is not free."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return _UNKNOWN
    return usage.total, usage.free
