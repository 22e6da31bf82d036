"""Runs of a beam time: a number, a sample, notes, and what the frames in between add up to.

A run is what lies between two moments of one analysis. Its counts are differences of counts that are never reset; what
it shows as a whole (products, estimates) begins anew with it.
"""

import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analyzer.changes import Changed
from analyzer.front import Front
from analyzer.intervals import wilson
from analyzer.product_snapshot import Snapshot
from analyzer.results import Decision
from analyzer.tallies import Counts, Totals

MOST_NUMBER = 999_999_999
MOST_SAMPLE = 200
MOST_NOTES = 10_000
RUNS_KEPT = 1000
"""Summaries of runs that are over, the latest, for ``GET /runs.csv``."""

_LETTERS_OF_SCRIPTS = "\u200c\u200d"
"""Joiners: format characters that words of some scripts need."""


class BadRun(ValueError):
    """A run number or a text that cannot be: one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a run is called. ``began_at``: Unix seconds. Raises ``BadRun``."""

    number: int | None = None
    sample: str = ""
    notes: str = ""
    began_at: float = 0.0

    def __post_init__(self) -> None:
        if self.number is not None and not 0 <= self.number <= MOST_NUMBER:
            raise BadRun(f"number is out of range; give a whole number from 0 to {MOST_NUMBER}, or null")
        _check_text("sample", self.sample, MOST_SAMPLE)
        _check_text("notes", self.notes, MOST_NOTES, allowed="\n\t")

    @property
    def name(self) -> str:
        """A name for files and titles: the number, else the time it began."""
        if self.number is not None:
            return f"{self.number:04d}"
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.began_at))


def _check_text(key: str, text: str, most: int, allowed: str = "") -> None:
    if len(text) > most:
        raise BadRun(f"{key} has {len(text)} characters; give {most} at most")
    for character in text:
        if character not in allowed + _LETTERS_OF_SCRIPTS and unicodedata.category(character) in _CONTROL:
            raise BadRun(f"{key} has a control character (U+{ord(character):04X}); give plain text")


_CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How frames are judged at a moment; see ``Control.judging``."""

    bundle: str = ""
    threshold: float | None = None
    hit_rule: str = ""
    min_peaks: int | None = None
    indexable_peaks: int | None = None
    finder: str = ""
    mask: str | None = None
    channel: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantity of the run: from the data with its standard deviation, and what the header says."""

    value: float | None = None
    sigma: float | None = None
    header: float | None = None

    @property
    def pull(self) -> float | None:
        """How many standard deviations the header is away."""
        if self.value is None or self.header is None or not self.sigma:
            return None
        return (self.header - self.value) / self.sigma


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunSummary:
    """A run in numbers. ``over``: it has ended at ``until`` (Unix seconds), else it goes on.

    ``answers``: the nearest keV and cm, see ``parameters.answers.plain_answers``.
    """

    info: RunInfo
    until: float
    over: bool
    counts: Counts
    photon_energy_eV: Estimate
    camera_length_m: Estimate
    estimate_reason: str | None
    mismatches: tuple[str, ...]
    judging: Judging
    changes: int
    answers: Mapping[str, float] | None = None

    @property
    def duration_s(self) -> float:
        return max(0.0, self.until - self.info.began_at)

    @property
    def hits(self) -> int:
        return self.counts.processed[Decision.HIT]

    @property
    def beam(self) -> int:
        """Analysed frames with beam."""
        return self.hits + self.counts.processed[Decision.MISS]

    @property
    def hit_rate(self) -> tuple[float, float, float] | None:
        """Hits among frames with beam and Wilson's 95 % interval; ``None`` without a frame."""
        return (self.hits / self.beam, *wilson(self.hits, self.beam)) if self.beam else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capture:
    """All that a report shows of a run. ``products`` and ``curves`` are since ``gathered_since`` (Unix seconds);
    ``curves`` are those of the live history, where there is one."""

    summary: RunSummary
    products: Snapshot | None
    curves: Mapping[str, Any] | None
    changes: Sequence[Changed]
    gathered_since: float


@dataclass(frozen=True, slots=True)
class _Moment:
    """A run at one moment: what it is called, the totals when it began and those of now (Unix seconds)."""

    info: RunInfo
    began: Totals
    totals: Totals
    now: float


class Runs:
    """The present run and those before it. ``estimate`` gives the fields of the running estimate, ``curves`` those of
    the history; ``on_end`` takes each run that is over and must not wait for anything."""

    def __init__(
        self,
        front: Front,
        info: RunInfo | None = None,
        estimate: Callable[[], Mapping[str, Any]] = dict,
        curves: Callable[[], Mapping[str, Any] | None] = lambda: None,
        indexed: Callable[[], int | None] = lambda: None,
        on_end: Callable[[Capture], None] = lambda capture: None,
    ) -> None:
        self._front, self._estimate, self._curves, self._indexed = front, estimate, curves, indexed
        self._on_end = on_end
        self._lock = threading.Lock()
        self._info = replace(info or RunInfo(), began_at=time.time())
        self._began = self._totals()
        self._over: deque[RunSummary] = deque(maxlen=RUNS_KEPT)

    @property
    def info(self) -> RunInfo:
        return self._info

    @property
    def over(self) -> list[RunSummary]:
        """The runs that are over, oldest first."""
        with self._lock:
            return list(self._over)

    def edit(self, given: Mapping[str, Any]) -> RunInfo:
        """Call the present run by these fields of ``RunInfo``. Raises ``BadRun``."""
        with self._lock:
            self._info = replace(self._info, **given)
            return self._info

    def next_info(self, given: Mapping[str, Any]) -> RunInfo:
        """What the next run is called: its sample stays unless given, its number is one more. Raises ``BadRun``."""
        number = self._info.number
        plain = {"number": None if number is None else number + 1, "sample": self._info.sample}
        return RunInfo(**(plain | dict(given)))

    def turn(self, following: RunInfo, judging: Judging, changes: Sequence[Changed], fields: Mapping[str, Any]) -> None:
        """End the present run and begin ``following``; for ``Front.reset``, which knows when."""
        moment = self._moment()
        try:
            capture = self._capture(judging, changes, fields, moment, over=True)
        finally:
            with self._lock:
                self._info, self._began = replace(following, began_at=moment.now), moment.totals
        with self._lock:
            self._over.append(capture.summary)
        self._on_end(capture)

    def capture(self, judging: Judging, changes: Sequence[Changed], *, over: bool = False) -> Capture:
        """The run so far; ``over``: nothing will come any more."""
        return self._capture(judging, changes, self.estimate_fields(), self._moment(), over)

    def summary(self, judging: Judging, changes: Sequence[Changed]) -> RunSummary:
        """The run so far in numbers alone."""
        return _summary(judging, len(changes), self.estimate_fields(), self._moment(), over=False)

    def estimate_fields(self) -> dict[str, Any]:
        """The running estimate, and the header's values beside it."""
        fields, header = dict(self._estimate()), self._front.running.shown_header
        for name in ("photon_energy_eV", "camera_length_m"):
            fields[f"header_{name}"] = None if header is None else getattr(header, name)
        return fields

    def _capture(
        self,
        judging: Judging,
        changes: Sequence[Changed],
        fields: Mapping[str, Any],
        moment: _Moment,
        over: bool,
    ) -> Capture:
        return Capture(
            summary=_summary(judging, len(changes), fields, moment, over),
            products=self._front.products.snapshot(),
            curves=self._curves(),
            changes=changes,
            gathered_since=max(self._front.gathered_since, moment.info.began_at),
        )

    def _moment(self) -> _Moment:
        """The present run as it is: no turn comes between its name and its counts."""
        with self._lock:
            return _Moment(self._info, self._began, self._totals(), time.time())

    def _totals(self) -> Totals:
        return self._front.tallies.totals(self._front.account, self._indexed())


def _summary(judging: Judging, changes: int, fields: Mapping[str, Any], moment: _Moment, over: bool) -> RunSummary:
    return RunSummary(
        info=moment.info,
        until=moment.now,
        over=over,
        counts=moment.totals.since(moment.began),
        photon_energy_eV=Estimate(
            value=fields.get("photon_energy_eV"),
            sigma=fields.get("photon_energy_sigma_eV"),
            header=fields.get("header_photon_energy_eV"),
        ),
        camera_length_m=Estimate(
            value=fields.get("camera_length_m"),
            sigma=fields.get("camera_length_sigma_m"),
            header=fields.get("header_camera_length_m"),
        ),
        estimate_reason=fields.get("estimate_reason"),
        mismatches=tuple(str(each["text"]) for each in fields.get("mismatches", ())),
        judging=judging,
        changes=changes,
        answers=fields.get("answers"),
    )
