"""Kills with signal 9 at random moments, restarts, and a look at all that is left with readers that are none of ours.

kill_points.py POINTS [SEED] [--work DIR]: prints what was found, ends with 1 where anything was not as it should be.

A point is one kill of a process that was alive when the signal came, as its exit status says; others are drawn anew.
What a kill may cost is measured from outside: half a second before it the analysis is asked how many images it has
received, and all of those must have a record at the end.

Programs are real processes that run ``cxls`` from its first line; they are forked from this one, whose imports are made
already, so that a start takes a fraction of the time. Ctrl-C ends it with what was found so far.
"""

import contextlib
import csv
import ctypes
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import h5py
import hdf5plugin  # noqa: F401  # filters of the files that are read
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import zmq

import cxls.commands.analyze
import cxls.commands.replay  # noqa: F401  # imported before the forks
from cxls.cli import main
from sim_replay.wire import SEND_HWM
from streamer.receiver import RECEIVE_HWM
from streamer.series import JOIN_AFTER
from tests.analyzer.builders import SHAPE, frames_of_a_run, write_bundle, write_series
from tests.support import free_port

SERIES, IMAGES, RATE = 3, 40, 60
ANNOUNCED = SERIES * IMAGES
DEADLINE_S = 120.0
VICTIMS = ("analysis", "front", "replay", "indexer", "worker")
"""``front``: the analysis with its workers in another process, which the kill leaves to themselves."""

WEIGHTS = (64, 16, 8, 5, 7)
AGAIN = 0.25
"""How often the restarted analysis is killed, too."""

REPORTS = 0.12
"""How often products and reports are kept, whose pictures take seconds to draw at the end."""

PHASES = (0.25, 0.5, 0.25)
"""Kills while it starts, while series come, at the end and in shutdown; within each at any moment alike."""

PER_RUN = ("received_at", "latency_s")

IN_FLIGHT_S = 0.5
"""What was received longer before a kill must have a record, and its hit a file."""

BUFFERED = SEND_HWM + RECEIVE_HWM
"""Messages that the two sockets hold between them."""

KEEPS_UP = 8
"""Images that wait in an analysis that keeps up, at most; from one that does not, those that were analysed are due."""

GONE_S = 10.0
"""How long a process may live on whose program was killed."""

DRAWS = 20


# --- processes --------------------------------------------------------------------------


class Over(Exception):
    """The victim had ended by itself: no kill."""


class Process:
    """``cxls`` with these arguments, forked; what it says is in files."""

    alive: ClassVar[list["Process"]] = []

    def __init__(self, work: Path, name: str, *arguments: object) -> None:
        self.out, self.err = work / f"{name}.out", work / f"{name}.err"
        self.code: int | None = None
        self.began, self.began_at = time.monotonic(), time.time()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                for number, path in ((1, self.out), (2, self.err)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
                sys.argv = ["cxls", *map(str, arguments)]
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(Exception):
                        stream.flush()
                os._exit(code)
        Process.alive.append(self)

    @property
    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                Process.alive.remove(self)
        return self.code is None

    @property
    def said(self) -> str:
        return self.err.read_text(errors="replace") if self.err.exists() else ""

    def signal(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        wait_for(lambda: not self.running, timeout_s, f"{self.err.name} to end: {self.said[-2000:]}")
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """Raises ``Over`` when it was not this that ended it."""
        self.signal(signal.SIGKILL)
        if self.wait() != -signal.SIGKILL:
            raise Over

    def listening(self, name: str) -> str:
        found: list[str] = []

        def look() -> bool:
            found.extend(re.findall(rf"^listening {name} (\S+)$", self.said, re.M))
            return bool(found) or not self.running

        wait_for(look, DEADLINE_S, f"{name} to listen")
        assert found, self.said
        return found[0]


def adopt_orphans() -> None:
    """Processes whose own parent was killed become ours (PR_SET_CHILD_SUBREAPER), so that none goes unseen."""
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0):
        raise OSError("prctl: orphans cannot be adopted")


def orphans() -> list[int]:
    """Processes below this one that are left, those that have ended reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def end_all() -> list[int]:
    """Kill what a point left behind; returns the orphans that had not ended by themselves in time."""
    for each in list(Process.alive):
        each.signal(signal.SIGKILL)
        each.wait()
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not orphans(), GONE_S, "orphans")
    left = orphans()
    while pids := orphans():  # those below them become ours in turn
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return left


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.01)


# --- what is there ----------------------------------------------------------------------


def read_results(path: Path, torn: bool) -> list[dict[str, Any]]:
    """Every record. ``torn``: right after a kill the last line may be a part of one."""
    if path.suffix == ".parquet":
        if not path.exists() or not any(path.glob("[!.]*")):
            return []
        # As anybody reads a folder of parts: a leftover that is no Parquet would be refused.
        rows: list[dict[str, Any]] = pq.read_table(path, use_threads=False).to_pylist()
        return rows
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    assert torn or not last, "a line that was cut short stays in the file"
    return [json.loads(line) for line in lines]


def pairs_of_lines(folder: Path) -> set[tuple[int, int]]:
    """Ids of records that wait in a folder of parts to become one."""
    found: set[tuple[int, int]] = set()
    for path in folder.glob(".part-*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            each = json.loads(line)
            found.add((each["series_id"], each["image_id"]))
    return found


def read_hits(folder: Path, pixels: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Ids of every hit, whose images are those that were sent; lists name what is there."""
    found: list[tuple[int, int]] = []
    events: dict[str, int] = {}
    for path in sorted(folder.glob("hits-*-*.h5")):
        with h5py.File(path) as file:
            series, images = (file[f"entry/event/{name}_id"][()].tolist() for name in ("series", "image"))
            ids = list(zip(series, images, strict=True))
            assert np.array_equal(file["entry/data/data"][()], pixels[[image for _, image in ids]])
            assert len(file["entry_1/result_1/nPeaks"]) == len(ids)
            events[str(path)] = len(ids)
            found += ids
    if (folder / "hits.lst").exists():
        for line in (folder / "hits.lst").read_text().splitlines():
            name, _, event = line.rpartition(" //")
            assert int(event) < events[name]
    for text in folder.glob("*.geom"):
        assert text.read_text().endswith("\n")
    return found


def read_rest(work: Path) -> None:
    """Products, reports and their table, the indexer's geometry."""
    if (work / "live.geom").exists():
        assert (work / "live.geom").read_text().endswith("\n")
    for path in (work / "products").glob("products*.h5"):
        with h5py.File(path) as file:
            assert np.isfinite(file["powder/data"][()]).all()
    for path in (work / "products").glob("*.npy"):
        assert np.load(path).shape == SHAPE
    for path in (work / "products").glob("*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    for path in (work / "reports").glob("*.html"):
        assert path.read_text().rstrip().endswith("</html>")
    table = work / "reports" / "runs.csv"
    if table.exists():
        content = table.read_bytes()
        if content.endswith(b"\r\n"):
            rows = list(csv.reader(content.decode().splitlines()))
            assert {len(row) for row in rows} == {len(rows[0])}


# --- one point --------------------------------------------------------------------------


@dataclass
class Site:
    """What all points share."""

    work: Path
    bundle: Path
    master: Path
    pixels: npt.NDArray[Any]
    reference: dict[tuple[str, int, int], dict[str, Any]] = field(default_factory=dict)
    spans: dict[bool, tuple[float, float, float]] = field(default_factory=dict)
    """Seconds from a start until it listens, until the last series is over, to the end; with reports and without."""


@dataclass
class Found:
    """Of one point: who was killed and when, and what the runs that followed said."""

    victim: str
    phase: str = ""
    suffix: str = ""
    due: int = 0
    behind: int = 0
    allowed: int = 0
    lost: int = 0
    missing: int = 0
    records: int = 0
    hits_missing: int = 0
    unseen: int = 0
    unknown: int = 0
    differ: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class Kill:
    """When a run began and was killed (Unix s), whether it listened by then, and what its account was ``IN_FLIGHT_S``
    before that: images received, and of those analysed."""

    began_at: float
    killed_at: float
    listened: bool
    received: int
    analysed: int


@dataclass
class Left:
    """What could be read right after kills: records by pair, hits."""

    records: dict[tuple[int, int], dict[str, Any] | None] = field(default_factory=dict)
    hits: set[tuple[int, int]] = field(default_factory=set)


def account_of(run: Process) -> tuple[int, int]:
    """Images received and analysed so far, without those of no running series, which have no record. Nothing of a run
    that does not listen yet: it receives only after that."""
    if not (found := re.search(r"^listening http (\S+)$", run.said, re.M)):
        return 0, 0
    try:
        account = json.load(urllib.request.urlopen(f"http://{found[1]}/status", timeout=5))["account"]
    except OSError:
        return 0, 0
    processed, dropped, undecodable = (sum(account[name].values()) for name in ("processed", "dropped", "undecodable"))
    return account["received"] - dropped, processed + undecodable


def kill(run: Process, at_s: float) -> Kill:
    """Kill a run so many seconds after its start. Raises ``Over``."""
    time.sleep(max(0.0, run.began + at_s - IN_FLIGHT_S - time.monotonic()))
    account = account_of(run)
    time.sleep(IN_FLIGHT_S if any(account) else max(0.0, run.began + at_s - time.monotonic()))
    killed_at = time.time()
    run.kill()
    return Kill(run.began_at, killed_at, "listening http" in run.said, *account)


def moment(site: Site, pictures: bool, chance: random.Random) -> float:
    """When to kill, seconds after the start."""
    starts, series, end = site.spans[pictures]
    (span,) = chance.choices([(0.0, starts), (starts, series), (series, end)], PHASES)
    return chance.uniform(*span)


def analyze(
    site: Site, work: Path, suffix: str, address: str, name: str, *more: object, pictures: bool = True
) -> Process:
    kept = ("--products", work / "products", "--reports", work / "reports") if pictures else ()
    return Process(
        work, name, "analyze", address, "--bundle", site.bundle, "--device", "cpu", "--hit-rule", "peaks",
        "--min-peaks", 3, "--results", work / f"r{suffix}", "--hits", work / "hits", "--append",
        "--on-full", "block", "--listen", "127.0.0.1:0", *kept, *more,
    )  # fmt: skip


def replay(site: Site, work: Path, stream: str, port: int = 0) -> Process:
    return Process(
        work, "replay", "replay", *[site.master] * SERIES, "--bind", f"tcp://127.0.0.1:{port}", "--stream", stream,
        "--rate", RATE, "--header-detail", "all",
    )  # fmt: skip


def status_of(address: str) -> dict[str, Any]:
    found: dict[str, Any] = json.load(urllib.request.urlopen(f"http://{address}/status", timeout=20))
    return found


def settle(sender: Process, analysis: Process) -> int:
    """Wait until all that was sent is analysed, then end the analysis as Ctrl-C does; returns what its metric said of
    images lost in crashes before that."""
    address = analysis.listening("http")
    wait_for(lambda: not sender.running or not analysis.running, DEADLINE_S, "the replay to hand over everything")
    before, since, deadline = (-1, -1), time.monotonic(), time.monotonic() + DEADLINE_S
    while analysis.running and time.monotonic() < deadline:
        account, open_series = account_of(analysis), status_of(address)["series_open"]
        if account != before:
            before, since = account, time.monotonic()
        # A series without an end is over a second after its last image, where its number was announced.
        if account[0] == account[1] and time.monotonic() - since > (1.6 if open_series else 0.5):
            break
        time.sleep(0.05)
    metrics = urllib.request.urlopen(f"http://{address}/metrics", timeout=20).read().decode()
    analysis.signal(signal.SIGINT)
    assert analysis.wait() == 130, analysis.said[-3000:]
    (lost,) = re.findall(r"^cxls_frames_lost_in_crash_total (\S+)$", metrics, re.M)
    return int(float(lost))


def phase_of(said: str) -> str:
    over = re.findall(r"series (\d+) over", said)
    if "listening http" not in said:
        return "start-up"
    if " began" not in said and " joined" not in said:
        return "before the first image"
    if len(over) >= SERIES:
        return "end and shutdown"
    return "a series" if len(re.findall(r"series \d+ (?:began|joined)", said)) > len(over) else "between series"


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def missing_of(out: str) -> int:
    line = next((line for line in out.splitlines() if line.startswith("missing: ")), "")
    return number(r"gap (\d+)", line) + number(r"tail (\d+)", line)


def kill_analysis(site: Site, work: Path, chance: random.Random) -> Found:
    stream, pictures = chance.choice(["v1", "v2"]), chance.random() < REPORTS
    found = Found("analysis", suffix=chance.choice([".jsonl", ".parquet"]))
    sender = replay(site, work, stream)
    address = sender.listening("replay")
    run = analyze(site, work, found.suffix, address, "run-1", "--series", SERIES, pictures=pictures)
    first = kill(run, moment(site, pictures, chance))
    return go_on(site, work, chance, found, stream, sender, [run], [first], pictures)


def kill_front(site: Site, work: Path, chance: random.Random) -> Found:
    """The analysis dies, its worker process lives: it must end, and be in nobody's way until then."""
    stream, port = chance.choice(["v1", "v2"]), free_port()
    found = Found("front", suffix=chance.choice([".jsonl", ".parquet"]))
    address, crew = f"tcp://127.0.0.1:{port}", ("--processes", 1)
    run = analyze(site, work, found.suffix, address, "run-1", "--series", SERIES, *crew, pictures=False)
    worker_of(run)
    sender = replay(site, work, stream, port=port)
    sender.listening("replay")
    first = kill(run, time.monotonic() - run.began + chance.uniform(0, ANNOUNCED / RATE + 0.5))
    return go_on(site, work, chance, found, stream, sender, [run], [first], False, *crew)


def go_on(
    site: Site,
    work: Path,
    chance: random.Random,
    found: Found,
    stream: str,
    sender: Process,
    runs: list[Process],
    kills: list[Kill],
    pictures: bool,
    *more: object,
) -> Found:
    """What comes after the first kill: perhaps a second one, a run to the end, and the look at what all of it left."""
    suffix, left = found.suffix, Left()
    found.phase = phase_of(runs[-1].said)
    look_at_what_is_left(site, work, suffix, left)
    if chance.random() < AGAIN:
        runs.append(analyze(site, work, suffix, sender.listening("replay"), "run-2", *more, pictures=pictures))
        kills.append(kill(runs[-1], moment(site, pictures, chance)))
        look_at_what_is_left(site, work, suffix, left)
    name = f"run-{len(runs) + 1}"
    runs.append(analyze(site, work, suffix, sender.listening("replay"), name, *more, pictures=pictures))
    metric = settle(sender, runs[-1])
    sender.wait()
    found.restarts = len(runs) - 1
    said = "".join(run.said for run in runs)
    out = runs[-1].out.read_text()
    found.lost, found.missing = number(r"lost in crashes: (\d+)", out), missing_of(out)
    # A series of which nothing came any more is given up at the end.
    assert metric <= found.lost
    seen = {int(each) for each in re.findall(r"series (\d+) (?:began|joined|was open)", said)}
    headless = {int(each) for each in re.findall(r"series (\d+) joined, no images announced", said)}
    check(site, work, found, seen, stream, headless, kills, left)
    return found


def look_at_what_is_left(site: Site, work: Path, suffix: str, left: Left) -> None:
    path = work / f"r{suffix}"
    if suffix == ".parquet":
        left.records.update(dict.fromkeys(pairs_of_lines(path)))
    left.records.update({(each["series_id"], each["image_id"]): each for each in read_results(path, torn=True)})
    left.hits.update(read_hits(work / "hits", site.pixels))
    read_rest(work)


def check_costs(found: Found, kills: list[Kill], records: dict[tuple[int, int], dict[str, Any]]) -> None:
    """No more is lost than what was in flight; ``hits_missing`` are of images whose hit was on its way to the disk."""
    for number, each in enumerate(kills):
        own = sum(each.began_at <= record["received_at"] <= each.killed_at for record in records.values())
        # What a front received waits where no worker is ready, and any analysis may be behind on a busy machine. Images
        # of a series that is not joined yet wait for another.
        behind = found.victim == "front" or each.received - each.analysed > KEEPS_UP
        due = each.analysed if behind else max(0, each.received - (JOIN_AFTER - 1 if number else 0))
        found.behind += behind
        found.due += due
        assert own >= due, (
            f"{due - own} images received more than {IN_FLIGHT_S} s before a kill are in no record: {each}"
        )
        # Before it listens it receives nothing, but its socket may.
        found.allowed += BUFFERED + each.listened * (each.received - due + round(RATE * IN_FLIGHT_S))
    assert found.lost <= found.allowed, f"{found.lost} images are lost, at most {found.allowed} were in flight"


def check_hits(found: Found, kills: list[Kill], records: dict[tuple[int, int], dict[str, Any]], hits: set[Any]) -> None:
    missing = [each for pair, each in records.items() if each["hit"] and pair not in hits]
    found.hits_missing = len(missing)
    for each in missing:
        judged_at = each["received_at"] + each["latency_s"]
        assert any(kill.killed_at - IN_FLIGHT_S <= judged_at <= kill.killed_at for kill in kills), (
            f"a hit that was no kill's to take is in no file: {each['series_id']}/{each['image_id']}"
        )


def check(
    site: Site,
    work: Path,
    found: Found,
    seen: set[int],
    stream: str,
    headless: set[int],
    kills: list[Kill],
    left: Left,
) -> None:
    """All outputs by plain readers; records, lost and missing images add up to those that were announced."""
    records = read_results(work / f"r{found.suffix}", torn=False)
    pairs = [(each["series_id"], each["image_id"]) for each in records]
    assert len(pairs) == len(set(pairs)), "a pair is recorded twice"
    found.records, recorded = len(records), dict(zip(pairs, records, strict=True))
    hits = read_hits(work / "hits", site.pixels)
    assert len(hits) == len(set(hits)), "a hit is there twice"
    assert not list((work / "hits").glob("journal/*")), "a journal is left"
    read_rest(work)
    for pair, before in left.records.items():
        assert pair in recorded, f"a record that was there after a kill is gone: {pair}"
        assert before is None or before == recorded[pair], f"a record is another than after the kill: {pair}"
    assert left.hits <= set(hits), "a hit that was there after a kill is gone"
    seen |= {series for series, _ in pairs}
    found.unseen = SERIES - len(seen)
    if found.suffix == ".jsonl":
        for each in records:
            expected = site.reference[stream, each["series_id"], each["image_id"]]
            if {k: v for k, v in each.items() if k not in PER_RUN} != expected:
                found.differ += 1
                assert each["series_id"] in headless, f"a record differs from that of a run without a kill: {each}"
    sent, counted = len(seen) * IMAGES, found.records + found.lost + found.missing
    # No run saw the start of a headless series: what came behind its last record, when a run was killed in it and
    # nothing of it came to the next, nobody knows of.
    behind = {series: IMAGES - 1 - max((i for s, i in pairs if s == series), default=-1) for series in headless}
    found.unknown = sent - counted
    assert counted == sent or 0 < found.unknown <= sum(behind.values()), (
        f"{found.records} recorded + {found.lost} lost + {found.missing} missing are not the {sent} sent"
    )
    check_costs(found, kills, recorded)
    check_hits(found, kills, recorded, set(hits))
    assert not list(work.glob(".r*.running*")), "the note of a run that ended by itself stays"


def kill_replay(site: Site, work: Path, chance: random.Random) -> Found:
    """The analysis lives through it: the account says what did not come, and the next series is analysed."""
    suffix = chance.choice([".jsonl", ".parquet"])
    found = Found("replay", suffix=suffix)
    sender = replay(site, work, "v2")
    address = sender.listening("replay")
    run = analyze(site, work, suffix, address, "run-1", pictures=False)
    run.listening("http")
    time.sleep(chance.uniform(0, ANNOUNCED / RATE + 0.3))
    sender.kill()
    found.phase = phase_of(run.said)
    port = address.rpartition(":")[2]
    second = Process(work, "replay-2", "replay", site.master, "--bind", f"tcp://127.0.0.1:{port}", "--rate", RATE,
                     "--header-detail", "all", "--series-id", 9)  # fmt: skip
    second.listening("replay")
    settle(second, run)
    records = read_results(work / f"r{suffix}", torn=False)
    pairs = [(each["series_id"], each["image_id"]) for each in records]
    assert len(pairs) == len(set(pairs))
    assert sum(series == 9 for series, _ in pairs) == IMAGES
    hits = read_hits(work / "hits", site.pixels)
    assert sorted(hits) == sorted(pair for pair, each in zip(pairs, records, strict=True) if each["hit"])
    read_rest(work)
    found.records, found.missing = len(records), missing_of(run.out.read_text())
    seen = {int(each) for each in re.findall(r"series (\d+) (?:began|joined)", run.said)}
    assert found.records + found.missing == len(seen) * IMAGES
    return found


def kill_indexer(site: Site, work: Path, chance: random.Random) -> Found:
    """A client that asks for hits and is killed costs the analysis nothing."""
    found = Found("indexer", suffix=".jsonl")
    sender = replay(site, work, "v2")
    run = analyze(site, work, ".jsonl", sender.listening("replay"), "run-1", "--series", SERIES, "--index-listen",
                  "tcp://127.0.0.1:0", "--index-geometry", work / "live.geom", pictures=False)  # fmt: skip
    address = run.listening("indexing")
    client = os.fork()
    if client == 0:
        socket = zmq.Context().socket(zmq.REQ)
        socket.connect(address)
        while True:
            socket.send(b"next")
            socket.recv()
    time.sleep(chance.uniform(0, ANNOUNCED / RATE))
    live = run.running
    os.kill(client, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(client, 0)[1]) == -signal.SIGKILL
    if not live:
        raise Over
    found.phase = phase_of(run.said)
    assert run.wait() == 0, run.said[-3000:]
    sender.wait()
    check(site, work, found, set(range(1, SERIES + 1)), "v2", set(), [], Left())
    assert found.records == ANNOUNCED
    return found


def kill_worker(site: Site, work: Path, chance: random.Random) -> Found:
    """A worker of another process: its frames go to the one that takes its place."""
    found, port = Found("worker", suffix=".jsonl"), free_port()
    run = analyze(site, work, ".jsonl", f"tcp://127.0.0.1:{port}", "run-1", "--series", SERIES, "--processes", 1,
                  pictures=False)  # fmt: skip
    victim = worker_of(run)
    sender = replay(site, work, "v2", port=port)
    sender.listening("replay")
    time.sleep(chance.uniform(0, ANNOUNCED / RATE))
    if not run.running or not is_alive(victim):
        raise Over
    os.kill(victim, signal.SIGKILL)
    found.phase = phase_of(run.said)
    assert run.wait() == 0, run.said[-3000:]
    sender.wait()
    check(site, work, found, set(range(1, SERIES + 1)), "v2", set(), [], Left())
    assert found.records == ANNOUNCED
    return found


def worker_of(run: Process) -> int:
    """The process that serves a front, once it is ready."""
    http = run.listening("http")

    def ready() -> list[int]:
        return [each["pid"] for each in status_of(http)["crew"]["workers"] if each["state"] == "ready"]

    wait_for(lambda: bool(ready()), DEADLINE_S, "a worker")
    return ready()[0]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


KILL = {
    "analysis": kill_analysis,
    "front": kill_front,
    "replay": kill_replay,
    "indexer": kill_indexer,
    "worker": kill_worker,
}


# --- all points -------------------------------------------------------------------------


def prepare(work: Path) -> Site:
    """A bundle of random weights and a small series with a mask, and runs without a kill to compare with."""
    pixels = frames_of_a_run(IMAGES)
    mask = np.zeros(SHAPE, "u4")
    mask[9:11, 11:13] = 1
    site = Site(work, write_bundle(work / "bundle"), write_series(work, pixels, mask=mask), pixels)
    for stream, pictures in (("v1", False), ("v2", True)):
        folder = work / f"reference-{stream}"
        folder.mkdir()
        sender = replay(site, folder, stream)
        address = sender.listening("replay")
        run = analyze(site, folder, ".jsonl", address, "run", "--series", SERIES, pictures=pictures)
        run.listening("http")
        starts = time.monotonic() - run.began
        over = f"series {SERIES} over"
        wait_for(lambda run=run, over=over: over in run.said, DEADLINE_S, "the last series")  # type: ignore[misc]
        series = time.monotonic() - run.began
        assert run.wait() == 0, run.said
        site.spans[pictures] = starts, series, time.monotonic() - run.began
        sender.wait()
        for each in read_results(folder / "r.jsonl", torn=False):
            plain = {k: v for k, v in each.items() if k not in PER_RUN}
            site.reference[stream, each["series_id"], each["image_id"]] = plain
    assert len(site.reference) == 2 * ANNOUNCED
    return site


def run_points(points: int, seed: int, work: Path) -> int:
    began = time.monotonic()
    adopt_orphans()
    site = prepare(work)
    chance = random.Random(seed)
    every: list[Found] = []
    faults: list[str] = []
    anew = 0
    for point in range(points):
        before, done = time.monotonic(), len(every) + len(faults)
        (victim,) = chance.choices(VICTIMS, WEIGHTS) if points >= 20 else ("analysis",)
        for draw in range(DRAWS):
            folder = work / f"{point:04d}-{draw}"
            folder.mkdir()
            try:
                found = KILL[victim](site, folder, random.Random(chance.random()))
                if live := end_all():
                    raise AssertionError(f"{len(live)} processes live {GONE_S:.0f} s after the one that started them")
                every.append(found)
                text = f"{found}"
                break
            except Over:
                anew += 1
                end_all()
            except KeyboardInterrupt:
                end_all()
                points = point
                break
            except Exception as error:
                end_all()
                where = traceback.extract_tb(error.__traceback__)[-1]
                faults.append(f"point {point} ({victim}): {type(error).__name__} at line {where.lineno}: {error}")
                text = faults[-1]
                break
        else:
            faults.append(f"point {point} ({victim}): {DRAWS} times over before the kill")
            text = faults[-1]
        if len(every) + len(faults) == done:
            break
        print(f"{point}: {time.monotonic() - before:.1f} s, {text}", file=sys.stderr, flush=True)
    of = [each for each in every if each.victim in ("analysis", "front")]
    lost = sorted(each.lost for each in of)
    print(f"kill points: {points}, seed {seed}, {SERIES} series of {IMAGES} images at {RATE}/s, "
          f"a run of {site.spans[False][2]:.1f} s, {time.monotonic() - began:.0f} s in all")  # fmt: skip
    print("killed: " + ", ".join(f"{who} {n}" for who, n in Counter(each.victim for each in every).items()))
    for who in VICTIMS:
        if phases := Counter(each.phase for each in every if each.victim == who):
            print(f"{who} killed in: " + ", ".join(f"{phase} {n}" for phase, n in phases.items()))
    print(f"not counted, as the victim had ended by itself, and drawn anew: {anew}")
    print(f"restarts: {sum(each.restarts for each in of)}")
    print(f"points with something unreadable, repeated, gone, not adding up or left running: {len(faults)}")
    if of:
        print(f"images recorded {sum(e.records for e in of)}, lost and counted {sum(lost)}, "
              f"missing and counted {sum(e.missing for e in of)}")  # fmt: skip
        print(f"lost at a point: median {lost[len(lost) // 2]}, most {lost[-1]} of {ANNOUNCED}")
        print(
            f"images that came more than {IN_FLIGHT_S} s before a kill: {sum(each.due for each in of)}, each recorded; "
            f"kills of an analysis that was behind, or had its workers elsewhere: {sum(each.behind for each in of)}"
        )
        print(f"images of series whose start no run saw, that nobody could count: {sum(e.unknown for e in of)}")
        print(f"series that began and ended unseen: {sum(each.unseen for each in of)}")
        print(f"records that differ from those of a run without a kill: {sum(each.differ for each in of)}")
        print(f"hits in records and in no file: {sum(each.hits_missing for each in of)}")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    arguments = sys.argv[1:]
    place = arguments[arguments.index("--work") + 1] if "--work" in arguments else None
    numbers = [int(each) for each in arguments[: arguments.index("--work") if place else None]]
    with tempfile.TemporaryDirectory() if place is None else contextlib.nullcontext(place) as name:
        sys.exit(run_points(numbers[0], numbers[1] if len(numbers) > 1 else 1, Path(name)))
