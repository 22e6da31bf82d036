"""What a service manager is told, by a real socket."""

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from analyzer.pulse import Busy, Pulse
from cxls.service import Manager, Notifier, manager_of, open_notifier
from tests.cxls.programs import Analysis, Sender, wait_for
from tests.cxls.test_live import Wire


class Listener:
    """The manager's end: a datagram socket and what came."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(0.02)
        self.heard: list[str] = []

    def hear(self) -> list[str]:
        try:
            while True:
                self.heard.append(self.socket.recv(65536).decode())
        except TimeoutError:
            return self.heard

    def wait(self, text: str, timeout_s: float = 60) -> None:
        wait_for(lambda: any(each.startswith(text) for each in self.hear()), timeout_s)

    def wait_until_silent(self, text: str, seconds: float, timeout_s: float = 30) -> int:
        """Until it is told this no more for so long; how often it was in all."""
        deadline, count = time.monotonic() + timeout_s, -1
        while count != (count := self.hear().count(text)):
            assert time.monotonic() < deadline, f"{text} does not end"
            time.sleep(seconds)
        return count

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def notifier(
    address: str,
    watchdog_s: float | None = None,
    ready: Callable[[], bool] = lambda: True,
    longest: Callable[[], Busy | None] = lambda: None,
    status: Callable[[], str] = lambda: "fine",
) -> Notifier:
    return Notifier(Manager(address, watchdog_s), ready, longest, status).start()


def test_without_a_manager_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert manager_of() is None
    assert open_notifier(lambda: True, lambda: None, lambda: "") is None


@pytest.mark.parametrize("address", ["", "relative/path", "tcp://127.0.0.1:1", "vsock:2:1234"])
def test_an_address_of_another_kind_is_no_manager(address: str) -> None:
    assert manager_of({"NOTIFY_SOCKET": address}) is None


@pytest.mark.parametrize(
    ("pid", "micros", "watchdog_s"),
    [
        (str(os.getpid()), "30000000", 30.0),
        ("", "500000", 0.5),
        ("1", "30000000", None),
        (str(os.getpid()), "", None),
        (str(os.getpid()), "0", None),
        (str(os.getpid()), "-5", None),
        (str(os.getpid()), "soon", None),
        (str(os.getpid()), "１２", None),
    ],
)
def test_the_watchdog_is_ours_alone_and_a_number(pid: str, micros: str, watchdog_s: float | None) -> None:
    found = manager_of({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_PID": pid, "WATCHDOG_USEC": micros})
    assert found == Manager("/run/x", watchdog_s)


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_status_and_stopping_are_told_once_each(tmp_path: Path, kind: str) -> None:
    with Listener(str(tmp_path / "notify") if kind == "path" else f"@cxls-test-{os.getpid()}") as manager:
        told = notifier(manager.address, status=lambda: "hit rate 44%\nREADY=1")
        manager.wait("READY=1")
        manager.wait("STATUS=")
        told.close()
        heard = manager.hear()
    assert heard.count("READY=1") == heard.count("STOPPING=1") == 1
    assert heard[-1] == "STOPPING=1"
    assert "STATUS=hit rate 44%\\nREADY=1" in heard
    assert "WATCHDOG=1" not in heard


def test_ready_is_told_when_it_is_so_and_the_end_when_it_is_so_no_more(tmp_path: Path) -> None:
    with Listener(str(tmp_path / "notify")) as manager:
        ready = threading.Event()
        told = notifier(manager.address, 0.4, ready.is_set)
        manager.wait("WATCHDOG=1")
        assert "READY=1" not in manager.hear()
        ready.set()
        manager.wait("READY=1")
        ready.clear()
        manager.wait("STOPPING=1")
        told.close()
        assert manager.hear().count("STOPPING=1") == 1


def test_the_watchdog_is_fed_until_a_thread_hangs_and_again_when_it_goes_on(tmp_path: Path) -> None:
    pulse = Pulse()
    with Listener(str(tmp_path / "notify")) as manager:
        told = notifier(manager.address, 0.4, longest=pulse.longest)
        manager.wait("WATCHDOG=1")
        pulse.beat()  # and never again: this thread hangs from here on
        before = manager.wait_until_silent("WATCHDOG=1", 0.4)
        pulse.rest()
        wait_for(lambda: manager.hear().count("WATCHDOG=1") > before)
        told.close()


def test_a_manager_that_is_gone_or_never_listens_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = notifier(str(tmp_path / "nobody"), 0.2)
    wait_for(lambda: "NOTIFY_SOCKET" in caplog.text)
    time.sleep(0.4)
    gone.close()
    assert sum("NOTIFY_SOCKET" in record.message for record in caplog.records) == 1
    with Listener(str(tmp_path / "deaf")) as manager:
        deaf = notifier(manager.address, 0.02)
        time.sleep(1.0)  # more datagrams than its queue holds
        began = time.monotonic()
        deaf.close()
        assert time.monotonic() - began < 5.0


def test_the_longest_at_one_piece_of_work_is_named() -> None:
    pulse, go = Pulse(), threading.Event()
    assert pulse.longest() is None

    def work() -> None:
        pulse.beat()
        go.wait()
        pulse.rest()

    worker = threading.Thread(target=work, name="worker-0")
    worker.start()
    wait_for(lambda: pulse.longest() is not None)
    time.sleep(0.05)
    pulse.beat()
    longest = pulse.longest()
    assert longest is not None
    assert longest.who == "worker-0"
    assert longest.seconds >= 0.05
    go.set()
    worker.join()
    here = pulse.longest()
    assert here is not None
    assert here.who == threading.current_thread().name


def test_a_live_analysis_is_ready_fed_and_silent_while_a_worker_hangs(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Listener(str(tmp_path / "notify")) as manager, Sender() as sender:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", workers=1)
        front = analysis.session.front
        assert "READY=1" not in manager.hear()
        analysis.start()
        manager.wait("READY=1")
        manager.wait("WATCHDOG=1")
        manager.wait("STATUS=")
        go_on, hangs = threading.Event(), threading.Event()
        analyser = front._workers[0].analyser
        judged = analyser.process

        def hang(batch: object) -> object:
            hangs.set()
            go_on.wait(120)
            return judged(batch)  # type: ignore[arg-type]

        monkeypatch.setattr(analyser, "process", hang)
        for message in Wire("v2").series(3, 1):
            sender.send(*message)
        assert hangs.wait(60)
        before = manager.wait_until_silent("WATCHDOG=1", 0.8)
        go_on.set()
        wait_for(lambda: manager.hear().count("WATCHDOG=1") > before)
        analysis.stop()
        # It gets on while it ends, and says so.
        after = manager.hear()[manager.heard.index("STOPPING=1") + 1 :]
        assert {each.partition("=")[0] for each in after} <= {"WATCHDOG", "STATUS"}
        assert any("received 0 = processed 0" in each for each in manager.heard if each.startswith("STATUS="))
        analysis.assert_closes()
