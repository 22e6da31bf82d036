"""Kills with signal 9 at random moments, restarts, and a look at all that is left with readers that are none of ours.

kill_points.py POINTS [SEED] [--work DIR]: prints what was found, ends with 1 where anything was not as it should be.

Programs are real processes that run ``cxls`` from its first line; they are forked from this one, whose imports are made
already, so that a start takes a fraction of the time. Ctrl-C ends it with what was found so far.
"""

import contextlib
import csv
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
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # filters of the files that are read
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import zmq

import cxls.commands.analyze
import cxls.commands.replay  # noqa: F401  # imported before the forks
from cxls.cli import main
from tests.analyzer.builders import SHAPE, frames_of_a_run, write_bundle, write_series

SERIES, IMAGES, RATE = 3, 40, 60
ANNOUNCED = SERIES * IMAGES
DEADLINE_S = 120.0
VICTIMS = ("analysis", "replay", "indexer", "worker")
WEIGHTS = (84, 8, 5, 3)
AGAIN = 0.25
"""How often the restarted analysis is killed, too."""

REPORTS = 0.12
"""How often products and reports are kept, whose pictures take seconds to draw at the end."""

PHASES = (0.25, 0.5, 0.25)
"""Kills while it starts, while series come, at the end and in shutdown; within each at any moment alike."""

PER_RUN = ("received_at", "latency_s")


# --- processes --------------------------------------------------------------------------


class Process:
    """``cxls`` with these arguments, forked; what it says is in files."""

    def __init__(self, work: Path, name: str, *arguments: object) -> None:
        self.out, self.err = work / f"{name}.out", work / f"{name}.err"
        self.code: int | None = None
        self.began = time.monotonic()
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

    @property
    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
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

    def listening(self, name: str) -> str:
        found: list[str] = []

        def look() -> bool:
            found.extend(re.findall(rf"^listening {name} (\S+)$", self.said, re.M))
            return bool(found) or not self.running

        wait_for(look, DEADLINE_S, f"{name} to listen")
        assert found, self.said
        return found[0]


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
    lost: int = 0
    missing: int = 0
    records: int = 0
    hits_missing: int = 0
    unseen: int = 0
    unknown: int = 0
    differ: int = 0
    restarts: int = 0


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


def replay(site: Site, work: Path, stream: str, name: str = "replay", first: int = 1, series: int = SERIES) -> Process:
    return Process(
        work, name, "replay", *[site.master] * series, "--bind", "tcp://127.0.0.1:0", "--stream", stream, "--rate",
        RATE, "--header-detail", "all", "--series-id", first,
    )  # fmt: skip


def settle(sender: Process, analysis: Process) -> int:
    """Wait until all that was sent is analysed, then end the analysis as Ctrl-C does; returns what its metric said of
    images lost in crashes before that."""
    address = analysis.listening("http")
    wait_for(lambda: not sender.running or not analysis.running, DEADLINE_S, "the replay to hand over everything")
    before, since, deadline = -1, time.monotonic(), time.monotonic() + 20
    while analysis.running and time.monotonic() < deadline:
        status = json.load(urllib.request.urlopen(f"http://{address}/status", timeout=20))
        received = status["account"]["received"]
        if received != before:
            before, since = received, time.monotonic()
        # A series without an end is over a second after its last image, where its number was announced.
        if time.monotonic() - since > (1.6 if status["series_open"] else 0.5):
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
    suffix, stream = chance.choice([".jsonl", ".parquet"]), chance.choice(["v1", "v2"])
    found, pictures = Found("analysis"), chance.random() < REPORTS
    sender = replay(site, work, stream)
    address = sender.listening("replay")
    runs = [analyze(site, work, suffix, address, "run-1", "--series", SERIES, pictures=pictures)]
    time.sleep(moment(site, pictures, chance))
    ended = not runs[-1].running
    runs[-1].signal(signal.SIGKILL)
    runs[-1].wait()
    found.phase = "over already" if ended else phase_of(runs[-1].said)
    if chance.random() < AGAIN:
        look_at_what_is_left(site, work, suffix)
        runs.append(analyze(site, work, suffix, address, "run-2", pictures=pictures))
        time.sleep(moment(site, pictures, chance))
        runs[-1].signal(signal.SIGKILL)
        runs[-1].wait()
    look_at_what_is_left(site, work, suffix)
    runs.append(analyze(site, work, suffix, address, f"run-{len(runs) + 1}", pictures=pictures))
    metric = settle(sender, runs[-1])
    sender.signal(signal.SIGKILL)
    sender.wait()
    found.restarts = len(runs) - 1
    said = "".join(run.said for run in runs)
    out = runs[-1].out.read_text()
    found.lost, found.missing = number(r"lost in crashes: (\d+)", out), missing_of(out)
    # A series of which nothing came any more is given up at the end.
    assert metric <= found.lost
    seen = {int(each) for each in re.findall(r"series (\d+) (?:began|joined|was open)", said)}
    headless = {int(each) for each in re.findall(r"series (\d+) joined, no images announced", said)}
    check(site, work, suffix, found, seen, stream, headless)
    return found


def look_at_what_is_left(site: Site, work: Path, suffix: str) -> None:
    read_results(work / f"r{suffix}", torn=True)
    read_hits(work / "hits", site.pixels)
    read_rest(work)


def check(site: Site, work: Path, suffix: str, found: Found, seen: set[int], stream: str, headless: set[int]) -> None:
    """All outputs by plain readers; records, lost and missing images add up to those that were announced."""
    records = read_results(work / f"r{suffix}", torn=False)
    pairs = [(each["series_id"], each["image_id"]) for each in records]
    assert len(pairs) == len(set(pairs)), "a pair is recorded twice"
    found.records = len(records)
    hits = read_hits(work / "hits", site.pixels)
    assert len(hits) == len(set(hits)), "a hit is there twice"
    assert not list((work / "hits").glob("journal/*")), "a journal is left"
    read_rest(work)
    found.hits_missing = len({pair for pair, each in zip(pairs, records, strict=True) if each["hit"]} - set(hits))
    seen |= {series for series, _ in pairs}
    found.unseen = SERIES - len(seen)
    if suffix == ".jsonl":
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
    assert not list(work.glob(".r*.running*")), "the note of a run that ended by itself stays"


def kill_replay(site: Site, work: Path, chance: random.Random) -> Found:
    """The analysis lives through it: the account says what did not come, and the next series is analysed."""
    suffix, found = chance.choice([".jsonl", ".parquet"]), Found("replay")
    sender = replay(site, work, "v2")
    address = sender.listening("replay")
    run = analyze(site, work, suffix, address, "run-1", pictures=False)
    run.listening("http")
    time.sleep(chance.uniform(0, ANNOUNCED / RATE + 0.3))
    sender.signal(signal.SIGKILL)
    sender.wait()
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
    found.phase = "a series"
    return found


def kill_indexer(site: Site, work: Path, chance: random.Random) -> Found:
    """A client that asks for hits and is killed costs the analysis nothing."""
    found = Found("indexer", "a series")
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
    os.kill(client, signal.SIGKILL)
    os.waitpid(client, 0)
    assert run.wait() == 0, run.said[-3000:]
    sender.wait()
    check(site, work, ".jsonl", found, set(range(1, SERIES + 1)), "v2", set())
    assert found.records == ANNOUNCED
    return found


def kill_worker(site: Site, work: Path, chance: random.Random) -> Found:
    """A worker of another process: its frames go to the one that takes its place."""
    found = Found("worker", "a series")
    sender = replay(site, work, "v2")
    run = analyze(site, work, ".jsonl", sender.listening("replay"), "run-1", "--series", SERIES, "--processes", 1,
                  pictures=False)  # fmt: skip
    http = run.listening("http")

    def workers() -> list[dict[str, Any]]:
        status = json.load(urllib.request.urlopen(f"http://{http}/status", timeout=20))
        return [each for each in status["crew"]["workers"] if each["state"] == "ready"]

    wait_for(lambda: bool(workers()), DEADLINE_S, "a worker")
    (victim, *_) = workers()
    time.sleep(chance.uniform(0, ANNOUNCED / RATE))
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim["pid"], signal.SIGKILL)
    assert run.wait() == 0, run.said[-3000:]
    sender.wait()
    check(site, work, ".jsonl", found, set(range(1, SERIES + 1)), "v2", set())
    assert found.records == ANNOUNCED
    return found


KILL = {"analysis": kill_analysis, "replay": kill_replay, "indexer": kill_indexer, "worker": kill_worker}


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
    site = prepare(work)
    chance = random.Random(seed)
    every: list[Found] = []
    faults: list[str] = []
    for point in range(points):
        (victim,) = chance.choices(VICTIMS, WEIGHTS) if points >= 20 else ("analysis",)
        folder = work / f"{point:04d}"
        folder.mkdir()
        before = time.monotonic()
        try:
            found = KILL[victim](site, folder, random.Random(chance.random()))
            every.append(found)
            text = f"{found}"
        except KeyboardInterrupt:
            points = point
            break
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"point {point} ({victim}): {type(error).__name__} at line {where.lineno}: {error}")
            text = faults[-1]
        print(f"{point}: {time.monotonic() - before:.1f} s, {text}", file=sys.stderr, flush=True)
    of = [each for each in every if each.victim == "analysis"]
    lost = sorted(each.lost for each in of)
    print(f"kill points: {points}, seed {seed}, {SERIES} series of {IMAGES} images at {RATE}/s, "
          f"a run of {site.spans[False][2]:.1f} s, {time.monotonic() - began:.0f} s in all")  # fmt: skip
    print("killed: " + ", ".join(f"{who} {n}" for who, n in Counter(each.victim for each in every).items()))
    print("analysis killed in: " + ", ".join(f"{phase} {n}" for phase, n in Counter(e.phase for e in of).items()))
    print(f"restarts: {sum(each.restarts for each in of)}")
    print(f"points with something unreadable, repeated or not adding up: {len(faults)}")
    if of:
        print(f"images recorded {sum(e.records for e in of)}, lost and counted {sum(lost)}, "
              f"missing and counted {sum(e.missing for e in of)}")  # fmt: skip
        print(f"lost at a point: median {lost[len(lost) // 2]}, most {lost[-1]} of {ANNOUNCED}")
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
