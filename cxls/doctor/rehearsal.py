"""A dry run: simulated frames at the detector's rate, over loopback, into an analysis as it would be."""

import logging
import math
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py

from analyzer.alarms import THRESHOLDS
from cxls.bench.children import cxls
from cxls.commands.analyze import Session
from cxls.commands.simulate import write
from cxls.doctor.finding import Finding, fail, ok, warn
from cxls.settings import AnalyzeSettings, SimulationOptions

FRAMES = 40
CONDITION = 5
_SETTLE_S = 1.0
"""Left out at the beginning, while connections are made."""

_BEGIN_S = 30.0
_KEPT_PACE = 0.95
_WAITING = 64
"""Frames in hand when the counting ends: a few batches."""

_MOST_REPEATS = 2000
_SENT = re.compile(r"(\d+) images sent, (\d+) dropped")


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a dry run came to. ``unsent`` images found no room at the sender; latency is of the last ten seconds."""

    rate_hz: float
    seconds: float
    received: int
    analysed: int
    dropped: int
    sampled: int
    unsent: int
    latency_p99_s: float | None


def rehearse(settings: AnalyzeSettings, seconds: float, rate_hz: float) -> Rehearsed:
    """Replay for ``seconds``, with the settings that decide how long a frame takes and without outputs.

    Raises ``RuntimeError`` where no frame comes.
    """
    protocol = "v1" if settings.stream == "v1" else "v2"
    with tempfile.TemporaryDirectory(prefix="cxls-rehearsal-") as folder:
        master = write(Path(folder) / "rehearsal", SimulationOptions(condition=CONDITION), FRAMES)
        repeat(master, min(_MOST_REPEATS, math.ceil(rate_hz * (seconds + 2 * _SETTLE_S) / FRAMES)))
        arguments = ["--bind", "tcp://127.0.0.1:0", "--stream", protocol, "--loop"]
        with cxls("replay", str(master), *arguments, "--rate", str(rate_hz), "--on-full", "drop") as replay:
            session = Session(_without_outputs(settings), [replay.address("replay")])
            with _running(session):
                _wait_for_frames(session)
                time.sleep(_SETTLE_S)
                began, before = time.monotonic(), _counts(session)
                time.sleep(seconds)
                took, after = time.monotonic() - began, _counts(session)
                latency = session.front.history.rates(time.time())["latency_p99_s"]
                replay.interrupt()
        words = _SENT.search(" ".join(replay.output))
    received, analysed, dropped, sampled = (now - then for now, then in zip(after, before, strict=True))
    return Rehearsed(rate_hz, took, received, analysed, dropped, sampled, int(words[2]) if words else 0, latency)


def repeat(master: Path, times: int) -> None:
    """Make the series so many times as long, by links to the same images: a short one's beginnings would cost more."""
    with h5py.File(master, "r+") as file:
        data, images = file["entry/data"], file["entry/instrument/detector/detectorSpecific/nimages"]
        first = data.get("data_000001", getlink=True)
        for number in range(2, times + 1):
            data[f"data_{number:06d}"] = h5py.ExternalLink(first.filename, first.path)
        images[()] = FRAMES * times


def _without_outputs(settings: AnalyzeSettings) -> AnalyzeSettings:
    """Those of the analysis, on a detector that is simulated: without its mask and geometry, and writing nothing."""
    kept = (
        "bundle", "device", "workers", "batch", "queue_mib", "hit_rule", "min_peaks", "peak_finder", "shadow_finder",
        "model", "sample", "processes",
    )  # fmt: skip
    given = {name: getattr(settings, name) for name in kept}
    return AnalyzeSettings(**given, on_full="drop", listen="127.0.0.1:0")


@contextmanager
def _running(session: Session) -> Iterator[None]:
    thread = threading.Thread(target=session.run, name="rehearsal", daemon=True)
    level = logging.root.level
    # Its series are nobody's; what goes wrong is told.
    logging.root.setLevel(logging.WARNING)
    thread.start()
    try:
        yield
    finally:
        session.stop.set()
        thread.join()
        logging.root.setLevel(level)


def _wait_for_frames(session: Session) -> None:
    deadline = time.monotonic() + _BEGIN_S
    while session.front.account.received == 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no frame came over loopback in {_BEGIN_S:.0f} s")
        time.sleep(0.05)


def _counts(session: Session) -> tuple[int, int, int, int]:
    account = session.front.account
    dropped = account.dropped["queue_full"]
    return account.received, sum(account.processed.values()), dropped, account.dropped["sampled"]


def judged(run: Rehearsed) -> Finding:
    """Whether the machine keeps up."""
    received, analysed = run.received / run.seconds, run.analysed / run.seconds
    latency = "latency unknown" if run.latency_p99_s is None else f"99 % within {1e3 * run.latency_p99_s:.0f} ms"
    text = (
        f"{run.rate_hz:g} Hz for {run.seconds:.0f} s: {received:.1f} frames/s received, {analysed:.1f} analysed, "
        f"{run.dropped + run.unsent} dropped, {run.sampled} sampled, {latency}"
    )
    more = "more cores, a GPU or more hosts (docs/capacity.md) analyse all"
    waiting = run.received - run.analysed - run.dropped - run.sampled
    if run.dropped or waiting > _WAITING + (1.0 - _KEPT_PACE) * run.received:
        left = f"{waiting} still waiting" if not run.dropped else "some were dropped"
        return fail(
            "rehearsal", f"{text}; {left}", f"it does not keep up: --sample auto analyses one image in so many; {more}"
        )
    if received < _KEPT_PACE * run.rate_hz or run.unsent:
        return warn(
            "rehearsal", text, "the replay, on the same cores, did not reach the rate: replay from another machine"
        )
    if run.sampled:
        return warn("rehearsal", text, f"it keeps up by analysing one image in so many; {more}")
    if run.latency_p99_s is not None and run.latency_p99_s > THRESHOLDS.latency_p99_s:
        return warn("rehearsal", text, f"results come late; {more}")
    return ok("rehearsal", text)
