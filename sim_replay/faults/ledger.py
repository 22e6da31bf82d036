"""What was put on the wire, fault by fault, and what a consumer's account has to show for it."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sim_replay.faults.images import Expected
from streamer.files import BadInput


@dataclass(frozen=True, slots=True)
class Entry:
    """A fault put on the wire. ``image_id`` is ``None`` for one of a whole series; ``detail`` names one of several."""

    kind: str
    series_id: int
    image_id: int | None
    stream: str
    expected: Expected
    detail: str | None = None


class Totals:
    """``expected`` of many faults, added up.

    ``exact``: what the account differs by from one of the same series without faults. ``open``: how often one of these
    counters was to be raised by one; a name that is no counter stands for nothing seen.
    """

    def __init__(self) -> None:
        self.exact: Counter[str] = Counter()
        self.open: Counter[tuple[str, ...]] = Counter()

    def add(self, expected: Expected) -> None:
        for name, value in expected.items():
            if name == "any":
                self.open[tuple(value)] += 1
            else:
                self.exact[name] += value


class Ledger:
    """Counts faults by kind, adds up what they have to show, and writes each to ``path`` as it happens.

    Raises ``BadInput`` where the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.totals = Totals()
        self._path = path
        try:
            self._file = None if path is None else path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}; --fault-report names a file to write") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, entry: Entry) -> None:
        self.counts[entry.kind] += 1
        self.totals.add(entry.expected)
        if self._file is not None:
            try:
                self._file.write(json.dumps(asdict(entry)) + "\n")
            except OSError as error:
                raise BadInput(f"{self._path}: {error.strerror}; the report of faults ends here") from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_report(path: Path) -> list[Entry]:
    """The entries of a report."""
    return [Entry(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
