"""Workers as processes of their own: killed, cut off, added while frames come; every frame is accounted for."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analyzer.bundle import load_bundle
from analyzer.cascade import CascadeSettings, PlanCache
from analyzer.crew.dispatch import Crew
from analyzer.judge import Judge
from cxls import crew
from streamer.ring import FrameRing
from tests.cxls.programs import CXLS, Child, environment, refusal, wait_for
from tests.cxls.test_http import get
from tests.deploy.test_prometheus import promtool
from tests.support import REPOSITORY, require, required

LOOPBACK = "127.0.0.1:0"
IMAGES = 12
"""Of the series ``master``, which is sent over and over."""

KILLS = int(os.environ.get("CXLS_TEST_KILLS", "3"))
EVERY_S = 5.0
"""Between kills, of which a few need no such pace."""


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def status(address: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(address, "/status")[2])
    return found


def assert_whole(path: Path, child: Child, dropped: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """One record an image, none twice, none lost but those left out at the end; the account says so too."""
    found = records(path)
    pairs = [(each["series_id"], each["image_id"]) for each in found]
    assert len(pairs) == len(set(pairs))
    assert child.process.stdout is not None
    said = child.process.stdout.read()
    identity = next(line for line in said.splitlines() if line.startswith("received "))
    received, processed, lost, undecodable = (int(word) for word in identity.split() if word.isdigit())
    assert received == processed + lost + undecodable == len(found)
    assert {each["status_text"] for each in found if each["status"] == "dropped"} <= set(dropped)
    # Every series is whole, but for the one that the end of the run cut off.
    last = max(each["series_id"] for each in found)
    for series in {each["series_id"] for each in found}:
        images = sorted(each["image_id"] for each in found if each["series_id"] == series)
        assert images == list(range(len(images) if series == last else IMAGES))
    return found


class Site:
    """A replay, a front that only workers elsewhere serve, and its addresses."""

    def __init__(
        self, opened: ExitStack, master: Path, bundle: Path, results: Path, *more: object, rate: int = 100
    ) -> None:
        self.results = results
        replay = opened.enter_context(
            Child("replay", master, "--bind", "tcp://127.0.0.1:0", "--loop", "--rate", rate, "--on-full", "block")
        )
        self.front = opened.enter_context(
            Child(
                "analyze", replay.listening("replay"), "--bundle", bundle, "--results", results, "--on-full", "block",
                "--device", "cpu", "--listen", LOOPBACK, *more,
            )
        )  # fmt: skip
        self.http = self.front.listening("http")

    @property
    def processed(self) -> int:
        return sum(status(self.http)["account"]["processed"].values())

    @property
    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = status(self.http)["crew"]["workers"]
        return found

    @property
    def lost(self) -> int:
        return int(status(self.http)["crew"]["lost_workers"])

    def ready(self, count: int) -> bool:
        return sum(each["state"] == "ready" for each in self.workers) >= count


def test_workers_killed_one_after_the_other_under_load_lose_no_frame(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)
    with ExitStack() as opened:
        site = Site(opened, master, bundle_folder, tmp_path / "r.jsonl", "--worker-listen", "tcp://127.0.0.1:0")
        address = site.front.listening("workers")

        def hire() -> Child:
            return opened.enter_context(Child("worker", address, "--processes", "1", "--device", "cpu", "--batch", "4"))

        fleet = [hire() for _ in range(3)]
        began = time.monotonic()
        for killed in range(KILLS):
            # Not before the last one is known to be gone: else one that has not attached yet may be the next.
            wait_for(lambda killed=killed: site.lost >= killed and site.ready(3), 90)  # type: ignore[misc]
            before = site.processed
            wait_for(lambda before=before: site.processed > before + 40, 60)  # type: ignore[misc]
            if KILLS > 3:
                time.sleep(max(0.0, began + EVERY_S * killed - time.monotonic()))
            victim = fleet.pop(chance.randrange(3))
            victim.process.kill()
            victim.process.wait()
            fleet.append(hire())
        took = time.monotonic() - began
        # More than those killed on a busy machine, where one that lives may fall silent for a moment.
        wait_for(lambda: site.lost >= KILLS and site.ready(3), 90)
        before = site.processed
        wait_for(lambda: site.processed > before + 40, 60)
        resent = status(site.http)["crew"]["resent"]
        assert site.front.end(signal.SIGINT) == 130
        found = assert_whole(site.results, site.front, ("shutdown",))
    assert {each["status"] for each in found} <= {"ok", "dropped"}
    assert len(found) > 200
    print(f"{KILLS} workers killed in {took:.0f} s: {len(found)} images, each recorded once; {resent} given to another")


def test_what_a_worker_holds_that_stands_still_goes_to_the_other_and_it_comes_back(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    with ExitStack() as opened:
        listen = ("--worker-listen", "tcp://127.0.0.1:0")
        site = Site(opened, master, bundle_folder, tmp_path / "r.jsonl", *listen, rate=2000)
        address = site.front.listening("workers")
        still, other = (
            opened.enter_context(Child("worker", address, "--processes", "1", "--device", "cpu", "--name", name))
            for name in ("still", "other")
        )
        wait_for(lambda: site.ready(2), 90)
        wait_for(lambda: all(each["in_flight"] for each in site.workers), 60)
        still.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: [each["name"] for each in site.workers] == ["other"], 60)
        crew = status(site.http)["crew"]
        # More than this one on a busy machine, where one that lives may fall silent for a moment.
        assert crew["lost_workers"] >= 1
        assert crew["resent"] > 0
        still.process.send_signal(signal.SIGCONT)
        wait_for(lambda: any(each["name"] == "still" and each["frames"] > 5 for each in site.workers), 90)
        assert other.process.poll() is None
        assert site.front.end(signal.SIGINT) == 130
        found = assert_whole(site.results, site.front, ("shutdown",))
    assert {each["status"] for each in found} <= {"ok", "dropped"}


def test_a_local_worker_that_is_killed_is_started_again(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    with ExitStack() as opened:
        site = Site(opened, master, bundle_folder, tmp_path / "r.jsonl", "--processes", "2")
        wait_for(lambda: site.ready(2), 90)
        wait_for(lambda: site.processed > 30, 60)
        victim = site.workers[0]
        assert victim["shared_memory"]
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for(lambda: site.ready(2) and victim["pid"] not in {each["pid"] for each in site.workers}, 90)
        pids = [each["pid"] for each in site.workers]
        before = site.processed
        wait_for(lambda: site.processed > before + 30, 60)
        assert site.front.end(signal.SIGINT) == 130
        found = assert_whole(site.results, site.front, ("shutdown",))
    assert {each["status"] for each in found} <= {"ok", "dropped"}
    for pid in pids:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 20)  # type: ignore[misc]


def test_a_local_worker_that_hangs_is_killed_and_started_again(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "WATCHDOG_S", 6.0)
    # Of the service manager that watches this process they know nothing.
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_PID", "1")
    judge = Judge(load_bundle(bundle_folder), CascadeSettings())
    front = Crew("tcp://127.0.0.1:0", judge, PlanCache())
    front.start(FrameRing(), 0.01, (), lambda frames, outcome: None)
    workers = crew.LocalWorkers(front.address, 1, ["--device", "cpu", "--once", "--processes", "1"])
    workers.start()
    try:
        wait_for(lambda: front.threads == 1, 90)
        (first,) = front.facts()["workers"]
        os.kill(first["pid"], signal.SIGSTOP)
        wait_for(lambda: workers.restarts > 0, 90)
        wait_for(lambda: front.threads == 1 and front.facts()["workers"][0]["pid"] != first["pid"], 90)
    finally:
        front.close()
        workers.close()
    assert workers.running == 0


def test_files_are_analysed_by_processes_as_by_threads(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    plain = []
    for number, more in enumerate(((), ("--processes", "2"))):
        results = tmp_path / f"{number}.jsonl"
        with Child("analyze", master, "--bundle", bundle_folder, "--results", results, "--device", "cpu", *more) as one:
            assert one.end(timeout_s=90) == 0, "".join(one.errors)
        found = sorted(records(results), key=lambda each: each["image_id"])
        plain.append([each | {"received_at": 0, "latency_s": 0} for each in found])
    assert plain[0] == plain[1]


def test_a_worker_has_metrics_of_its_own(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    with ExitStack() as opened:
        site = Site(opened, master, bundle_folder, tmp_path / "r.jsonl", "--worker-listen", "tcp://127.0.0.1:0")
        served = ("--processes", "1", "--device", "cpu", "--listen", LOOPBACK)
        worker = opened.enter_context(Child("worker", site.front.listening("workers"), *served))
        address = worker.listening("http")
        wait_for(lambda: get(address, "/readyz")[0] == 200, 60)
        wait_for(lambda: site.processed > 10, 60)
        text = get(address, "/metrics")[2]
        frames = next(line for line in text.splitlines() if line.startswith('cxls_worker_frames_total{worker="0"}'))
        assert float(frames.split()[1]) > 0
        assert "cxls_worker_ready 1.0" in text
        assert 'cxls_crew_workers{state="ready"} 1.0' in get(site.http, "/metrics")[2]
        assert worker.end(signal.SIGTERM) == 143
        assert site.front.end(signal.SIGINT) == 130
        assert_whole(site.results, site.front, ("shutdown",))
    documented = (REPOSITORY / "docs" / "metrics.md").read_text()
    for name in re.findall(r"^# TYPE (cxls_\S+) ", text, re.M):
        assert f"`{name}" in documented, name
    done = promtool("check", "metrics", given=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@dataclass(frozen=True)
class Away:
    """A network ``namespace`` with one ``link`` to this one, of which this is our end: 10.213.77.1, the other is .2."""

    namespace: str
    link: str


@pytest.fixture
def away() -> Iterator[Away]:
    require("ip")
    name, here, there = (f"{kind}{os.getpid()}" for kind in ("cxls", "cxh", "cxt"))

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        why = f"network namespaces cannot be made here: {error.stderr.decode().strip()}"
        pytest.fail(why) if required("ip") else pytest.skip(why)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", name)
        ip("addr", "add", "10.213.77.1/30", "dev", here)
        ip("link", "set", here, "up")
        ip("netns", "exec", name, "ip", "addr", "add", "10.213.77.2/30", "dev", there)
        ip("netns", "exec", name, "ip", "link", "set", there, "up")
        yield Away(name, here)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", here], capture_output=True)


def test_a_worker_whose_link_is_cut_loses_nothing_and_comes_back(
    away: Away, master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    with ExitStack() as opened:
        site = Site(opened, master, bundle_folder, tmp_path / "r.jsonl", "--worker-listen", "tcp://0.0.0.0:0")
        port = site.front.listening("workers").rpartition(":")[2]
        far = subprocess.Popen(
            ["ip", "netns", "exec", away.namespace, *CXLS, "worker", f"tcp://10.213.77.1:{port}", "--processes", "1",
             "--device", "cpu", "--name", "far"],
            env=environment(), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        opened.callback(far.wait)
        opened.callback(far.kill)
        opened.enter_context(
            Child("worker", f"tcp://127.0.0.1:{port}", "--processes", "1", "--device", "cpu", "--name", "near")
        )
        wait_for(lambda: site.ready(2), 90)
        wait_for(lambda: any(each["name"] == "far" and each["frames"] > 10 for each in site.workers), 60)
        subprocess.run(["ip", "link", "set", away.link, "down"], check=True)
        wait_for(lambda: [each["name"] for each in site.workers] == ["near"], 60)
        before = site.processed
        wait_for(lambda: site.processed > before + 30, 60)
        subprocess.run(["ip", "link", "set", away.link, "up"], check=True)
        wait_for(lambda: any(each["name"] == "far" and each["frames"] > 5 for each in site.workers), 90)
        assert site.front.end(signal.SIGINT) == 130
        found = assert_whole(site.results, site.front, ("shutdown",))
    assert {each["status"] for each in found} <= {"ok", "dropped"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("worker", "127.0.0.1:31100"), "tcp://front:31100"),
        (("worker", "tcp://nowhere"), "tcp://nowhere"),
        (("worker", "tcp://front:65536"), "tcp://front:65536"),
        (("worker", "tcp://[::1]:0"), "tcp://[::1]:0"),
        (("worker", "tcp://127.0.0.1:9", "--processes", "2", "--once"), "--once"),
        (("analyze", "tcp://127.0.0.1:9", "--worker-listen", "tcp://203.0.113.7:1"), "--worker-listen"),
        (("analyze", "tcp://127.0.0.1:9", "--worker-listen", "nonsense"), "--worker-listen"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(arguments: tuple[str, ...], said: str) -> None:
    assert said in refusal(*arguments)


def test_a_worker_waits_for_a_front_and_ends_when_told() -> None:
    with Child("worker", "tcp://127.0.0.1:1", "--processes", "1", "--device", "cpu", "--listen", LOOPBACK) as worker:
        address = worker.listening("http")
        assert get(address, "/healthz")[0] == 200
        assert get(address, "/readyz")[0] == 503
        assert worker.end(signal.SIGTERM) == 143


def test_several_workers_whose_settings_are_refused_are_not_started_over_and_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal("worker", "tcp://127.0.0.1:9", "--processes", 2, "--device", "cpu", "--listen", listen)
    assert "a worker refuses these settings" in said
