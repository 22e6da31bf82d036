"""The processes of a soak: simulation, replay and analysis, each `cxls` as anybody runs it."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cxls.bench.children import Child, cxls
from cxls.bench.inputs import repeated
from cxls.settings import SoakSettings
from cxls.soak.faults import arguments as arguments_of

FRAMES = 100
SERIES_IMAGES = 300
"""A few seconds at the highest rate: series begin and end all the time, and still do not cost much."""

LONG_S = 1800.0
"""From here on a soak is long: memory has settled, and the neighbours' load is the same at both ends."""

QUEUE_MIB = 32
"""Small enough that it has been full, and all of its memory used, before memory is looked at."""

_CONDITION = 5
_SIMULATE_S = 600.0
_REPLAYED = re.compile(r"(\d+) series, (\d+) images sent, (\d+) dropped, (\d+) unreadable")
_WITHHELD = re.compile(r"(\d+) images withheld by faults")
_IDENTITY = re.compile(r"received (\d+) = processed (\d+) \+ dropped (\d+) \+ undecodable (\d+)( \+ in flight \d+)?")
_REASONS = re.compile(r"(.+?) (\d+)(?:, |$)")
_TITLES = {"dropped": "dropped", "undecodable": "undecodable", "missing": "missing", "messages refused": "invalid"}


class ToldToEnd(Exception):
    """The soak is to end before it has begun."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a soak writes; ``results`` ends in ``.parquet`` or ``.jsonl``.

    ``holding``: descriptors that every process inherits, by which others see that all have ended.
    """

    folder: Path
    results: Path
    holding: tuple[int, ...] = ()

    @property
    def hits(self) -> Path:
        return self.folder / "hits"

    @property
    def products(self) -> Path:
        return self.folder / "products"

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    def faults(self, leg: "Leg") -> Path:
        return self.folder / f"faults-{leg.number:02d}.jsonl"


def simulated(places: Places, settings: SoakSettings, stop: threading.Event) -> Path:
    """A series of ``SERIES_IMAGES`` images; its master. Raises ``RuntimeError``, ``ToldToEnd``."""
    prefix = places.folder / "simulated"
    arguments = ["--frames", str(FRAMES), "--condition", str(_CONDITION), "--seed", str(settings.seed)]
    arguments += ["--hit-fraction", str(settings.hit_fraction), "--overwrite"]
    latest = time.monotonic() + _SIMULATE_S
    with cxls("simulate", str(prefix), *arguments, apart=True, holding=places.holding) as child:
        while child.process.poll() is None:
            if stop.wait(0.1):
                raise ToldToEnd
            if time.monotonic() > latest:
                raise RuntimeError(f"the simulation did not end in {_SIMULATE_S:.0f} s")
    if child.process.returncode:
        raise RuntimeError(f"the simulation failed: {' | '.join(child.errors[-3:])}")
    return repeated(prefix.with_name("simulated_master.h5"), SERIES_IMAGES // FRAMES)


@contextmanager
def analysing(endpoint: str, settings: SoakSettings, places: Places) -> Iterator[Child]:
    """The analysis with every output."""
    arguments = [
        endpoint, "--on-full", settings.on_full, "--listen", "127.0.0.1:0", "--queue-mib", str(QUEUE_MIB),
        "--results", str(places.results), "--hits", str(places.hits), "--products", str(places.products),
        "--reports", str(places.reports),
    ]  # fmt: skip
    if settings.processes:
        arguments += ["--processes", str(settings.processes)]
    if settings.bundle is not None:
        arguments += ["--bundle", str(settings.bundle)]
    with cxls("analyze", *arguments, apart=True, holding=places.holding) as child:
        yield child


@dataclass(frozen=True, slots=True)
class Leg:
    """A part of the soak that one replay process plays, counted from 0; ``calm`` without a fault, and with a rest after
    it."""

    number: int
    protocol: str
    seconds: float
    calm: bool = False


_LEGS = 20
_CALM_S = 15.0
"""Some series as most are, so that the same is kept at each rest: what a rare one needs stays for the next few."""

_LEG_S = 4.0
"""Protocols take turns often enough that a soak's begin and its end are alike."""


def legs(settings: SoakSettings) -> list[Leg]:
    """What is played, one after the other; a long soak is calm after every second leg."""
    protocols = ("v2", "v1") if settings.stream == "both" else (settings.stream,)
    number = max(len(protocols), min(_LEGS, int(settings.time / _LEG_S) // 2 * 2))
    calm_s = _CALM_S if settings.time >= LONG_S else 0.0
    seconds = settings.time / number - calm_s / 2
    found: list[Leg] = []
    for n in range(number):
        protocol = protocols[n % len(protocols)]
        found.append(Leg(len(found), protocol, seconds))
        if calm_s and n % 2:
            found.append(Leg(len(found), protocol, calm_s, calm=True))
    return found


@contextmanager
def replaying(
    files: list[Path], endpoint: str, leg: Leg, settings: SoakSettings, first_series: int, places: Places
) -> Iterator[Child]:
    """A replay that ends by itself when the leg is over and all is handed over; its faults are told in a file."""
    arguments = [
        *map(str, files), "--bind", endpoint, "--stream", leg.protocol, "--time", str(leg.seconds),
        "--series-id", str(first_series), "--on-full", "block", "--header-detail", "all",
    ]  # fmt: skip
    if settings.rate is not None:
        arguments += ["--rate", str(settings.rate)]
    faults = arguments_of("none" if leg.calm else settings.faults, leg.protocol, leg.number == 0)
    if faults:
        arguments += [
            *faults,
            "--fault-seed",
            str(settings.seed + leg.number),
            "--fault-report",
            str(places.faults(leg)),
        ]
    with cxls("replay", *arguments, apart=True, holding=places.holding) as child:
        yield child


@dataclass(frozen=True, slots=True)
class Replayed:
    """What replays said at their end; ``cut`` ones were told to end, which loses what they had queued."""

    series: int = 0
    sent: int = 0
    dropped: int = 0
    unreadable: int = 0
    withheld: int = 0
    cut: int = 0

    def __add__(self, other: "Replayed") -> "Replayed":
        return Replayed(
            self.series + other.series,
            self.sent + other.sent,
            self.dropped + other.dropped,
            self.unreadable + other.unreadable,
            self.withheld + other.withheld,
            self.cut + other.cut,
        )


def replayed(output: list[str], cut: bool) -> Replayed:
    """From a replay's last words. Raises ``ValueError`` where there are none."""
    for line in output:
        if found := _REPLAYED.match(line):
            withheld = next((int(match[1]) for other in output if (match := _WITHHELD.match(other))), 0)
            series, sent, dropped, unreadable = map(int, found.groups())
            return Replayed(series, sent, dropped, unreadable, withheld, int(cut))
    raise ValueError("replay did not say what it sent")


@dataclass(frozen=True, slots=True)
class Said:
    """The account as the analysis printed it at its end; ``reasons`` are keyed as in ``missing.gap``."""

    received: int
    processed: int
    dropped: int
    undecodable: int
    in_flight: bool
    reasons: dict[str, int]


def said(output: list[str]) -> Said | None:
    """From the last words of an analysis; ``None`` where it did not come to them."""
    identity: Said | None = None
    reasons: dict[str, int] = {}
    for line in output:
        if found := _IDENTITY.fullmatch(line):
            received, processed, dropped, undecodable = map(int, found.groups()[:4])
            identity = Said(received, processed, dropped, undecodable, found[5] is not None, reasons)
        title, _, rest = line.partition(": ")
        if title in _TITLES:
            reasons |= {f"{_TITLES[title]}.{reason}": int(count) for reason, count in _REASONS.findall(rest)}
    return identity
