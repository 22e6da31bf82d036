"""From message to result at a rate: percentiles of the records' latency, and what was lost on the way."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analyzer.front import Source
from cxls.bench.children import replaying
from cxls.bench.pace import SETTLED_PART
from cxls.bench.report import Grid
from cxls.commands.analyze import Session
from cxls.settings import AnalyzeSettings
from sim_replay.pace import Pace
from streamer.receiver import Received

COLUMNS = ("offered frames/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "analysed", "dropped", "never came")
_PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one run: frames a second offered, milliseconds from message to result of the frames after the first quarter,
    frames analysed, dropped by us for want of room, and never received because the sender found no room."""

    rate_hz: float
    ms: npt.NDArray[np.float64]
    analysed: int
    dropped: int
    missing: int


class PacedSource:
    """Another source's messages, none before its time."""

    def __init__(self, source: Source, rate_hz: float, stop: threading.Event) -> None:
        self._source, self._pace, self._stop = source, Pace(rate_hz), stop
        self._pace.restart()

    @property
    def connected(self) -> bool:
        return self._source.connected

    @property
    def exhausted(self) -> bool:
        return self._source.exhausted

    def receive(self, timeout_s: float) -> Received | None:
        self._pace.wait(self._stop)
        return self._source.receive(timeout_s)

    def close(self) -> None:
        self._source.close()


def in_process(master: Path, rate_hz: float, settings: AnalyzeSettings) -> Latency:
    """From a file, message after message at the rate."""
    session = Session(settings.model_copy(update={"on_full": "drop"}), [str(master)])
    session.front.source = PacedSource(session.front.source, rate_hz, session.stop)
    return _run(session, settings, rate_hz)


def over_zeromq(master: Path, rate_hz: float, settings: AnalyzeSettings, protocol: str = "v2") -> Latency:
    """From a sender in a process of its own, which waits for nobody."""
    live = settings.model_copy(update={"on_full": "drop", "series": 1, "listen": "127.0.0.1:0"})
    with replaying(master, protocol, loop=False, rate_hz=rate_hz) as endpoint:
        return _run(Session(live, [endpoint]), live, rate_hz)


def _run(session: Session, settings: AnalyzeSettings, rate_hz: float) -> Latency:
    session.run()
    account = session.front.account
    if account.received != account.settled:
        raise RuntimeError(f"the account does not close: {account.identity()}")
    assert settings.results is not None
    records = [json.loads(line) for line in settings.results.read_bytes().splitlines()]
    done = [record for record in records if record["status"] == "ok"]
    first = max(record["image_id"] for record in records) // SETTLED_PART
    steady = [record["latency_s"] * 1e3 for record in done if record["image_id"] >= first]
    if not steady:
        raise RuntimeError(f"nothing was analysed at {rate_hz:.0f} frames a second: {account.identity()}")
    return Latency(rate_hz, np.array(steady), len(done), sum(account.dropped.values()), sum(account.missing.values()))


def grid(rows: Sequence[str], found: Sequence[Latency]) -> Grid:
    """A row for each run."""
    return Grid(
        "message to result",
        rows,
        COLUMNS,
        [
            [each.rate_hz, *np.percentile(each.ms, _PERCENTILES).tolist(), each.analysed, each.dropped, each.missing]
            for each in found
        ],
    )
