"""Process variables over PVAccess: read by a real client on loopback while a real analysis runs."""

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.alarms import THRESHOLDS
from analyzer.epics_variables import QUANTITIES
from analyzer.state import State
from tests.cxls.programs import Analysis, Sender, refusal, wait_for
from tests.cxls.test_live import Wire
from tests.support import require

require("p4p")

from p4p.client.thread import Context, RemoteError  # noqa: E402

from analyzer.epics import BadEpics, EpicsServer  # noqa: E402

PREFIX = "TEST:CXLS"


@pytest.fixture(autouse=True)
def own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports of nobody else, and no search on any network."""
    monkeypatch.setenv("EPICS_PVAS_SERVER_PORT", "0")
    monkeypatch.setenv("EPICS_PVAS_BROADCAST_PORT", "0")


class Run:
    """An analysis of a stream with variables, and a client of them."""

    def __init__(self, bundle: Path, results: Path, **settings: Any) -> None:
        self.sender = Sender()
        self.analysis = Analysis([self.sender.endpoint], bundle, results, epics=PREFIX, **settings)
        assert self.analysis.session.epics is not None
        self.address = self.analysis.session.epics.address
        self.client = client(self.address)
        self.analysis.start()

    def analyse(self, images: int, series_id: int = 1) -> None:
        before = len(self.analysis.session.front.reports)
        for message in Wire("v2").series(images, series_id):
            self.sender.send(*message)
        wait_for(lambda: len(self.analysis.session.front.reports) > before)

    def get(self, name: str) -> Any:
        return self.client.get(f"{PREFIX}:{name}", timeout=60)

    def put(self, name: str, value: Any) -> None:
        self.client.put(f"{PREFIX}:{name}", value, timeout=60)

    def becomes(self, name: str, value: float) -> Any:
        wait_for(lambda: bool(self.get(name) == value))
        return self.get(name)

    def close(self) -> None:
        self.client.close()
        self.analysis.stop()
        self.sender.__exit__()


def client(address: str) -> Context:
    return Context("pva", conf={"EPICS_PVA_NAME_SERVERS": address, "EPICS_PVA_AUTO_ADDR_LIST": "NO"}, useenv=False)


@pytest.fixture
def run(bundle_folder: Path, tmp_path: Path) -> Iterator[Run]:
    running = Run(bundle_folder, tmp_path / "r.jsonl", epics_reset=True)
    yield running
    running.close()


def status(**changes: Any) -> dict[str, Any]:
    """What /status says of a run without alarms."""
    return {
        "time": 1_700_000_000.25,
        "ready": True,
        "connected": True,
        "series_open": True,
        "account": {"received": 5, "processed": {"hit": 2, "miss": 3}, "dropped": {"queue_full": 0}},
        "hit_ratio": {"100": 0.4, "1000": 0.4},
        "rates": {"frames_hz": 10.0, "latency_p99_s": 0.01},
        "estimate": {},
        "alarms": [],
        "queue_frames": 0,
        "series_id": 3,
    } | changes


# --- a real analysis --------------------------------------------------------------------


def test_every_variable_is_read_with_units_while_an_analysis_runs(run: Run) -> None:
    run.analyse(6)
    received = run.becomes("Received", 6)
    assert received.severity == 0
    assert abs(received.timestamp - time.time()) < 10
    for quantity in QUANTITIES:
        value = run.get(quantity.name)
        assert value.raw.display.units == quantity.units
        assert value.raw.display.description == quantity.text
        assert value.raw.display.precision == quantity.precision
        assert (value.raw.display.limitLow, value.raw.display.limitHigh) == (quantity.low, quantity.high)
    # Of what was published while frames came only some may be seen yet.
    run.becomes("Processed", 6)
    assert run.get("Dropped") == 0
    run.becomes("SeriesId", 1)
    hits = run.analysis.session.front.account.processed["hit"]
    wait_for(lambda: bool(run.get("HitRate100") == pytest.approx(100 * hits / 6)))
    wait_for(lambda: bool(run.get("Latency") > 0))
    wait_for(lambda: str(run.get("State")) == "idle")
    state = run.get("State")
    assert state.raw.value.choices == [str(each) for each in State]
    assert str(state) == "idle", "the series is over"


def test_the_state_is_running_while_a_series_is_open(run: Run) -> None:
    start, *images, end = Wire("v2").series(3)
    for message in (start, *images):
        run.sender.send(*message)
    wait_for(lambda: str(run.get("State")) == "running")
    run.sender.send(*end)
    wait_for(lambda: str(run.get("State")) == "idle")


def test_what_is_not_known_is_nan_and_invalid(run: Run) -> None:
    value = run.get("PhotonEnergy")
    assert np.isnan(value)
    assert value.severity == 3
    assert value.raw.alarm.message in ("nothing yet", "not known")


def test_a_monitor_follows_the_run(run: Run) -> None:
    seen: queue.Queue[Any] = queue.Queue()
    subscription = run.client.monitor(f"{PREFIX}:Received", seen.put)
    run.analyse(3, 1)
    run.analyse(4, 2)
    wait_for(lambda: run.get("Received") == 7)
    values = []
    wait_for(lambda: bool(values.append(int(seen.get(timeout=60))) or values[-1] == 7))
    assert values == sorted(values)
    subscription.close()


def test_the_preview_is_the_latest_frame_binned_by_its_largest_counts(run: Run) -> None:
    run.analyse(2)
    wait_for(lambda: run.get("Preview").size > 1)
    picture = run.get("Preview")
    shown = run.analysis.session.front.latest.latest()
    assert shown is not None
    rows, columns = shown.geometry.shape
    factor = picture.attrib["bin_px"]
    assert picture.shape == (-(-rows // factor), -(-columns // factor))
    assert max(picture.shape) <= 512
    assert picture.dtype == np.uint16
    assert [(d.fullSize, d.binning) for d in picture.raw.dimension] == [(columns, factor), (rows, factor)]
    assert picture.attrib["image_id"] == picture.raw.uniqueId == shown.result.image_id
    assert picture.timestamp == pytest.approx(shown.result.received_at, abs=1e-3)


@pytest.mark.parametrize("name", [*(each.name for each in QUANTITIES), "State", "Preview"])
def test_a_put_to_what_is_read_only_is_refused(server: "Served", name: str) -> None:
    value = np.zeros((2, 2), np.uint16) if name == "Preview" else 1
    with pytest.raises(RemoteError, match="read-only"):
        server.client.put(f"{PREFIX}:{name}", value, timeout=60)


def test_a_put_of_1_resets_and_other_values_are_refused(run: Run) -> None:
    run.analyse(6)
    run.becomes("Received", 6)
    with pytest.raises(RemoteError, match="put 1"):
        run.put("Reset", 2)
    assert run.analysis.session.front.running.hits.counts(100)[1] == 6
    run.put("Reset", 1)
    assert run.analysis.session.front.running.hits.counts(100)[1] == 0
    assert run.get("Reset") == 0
    wait_for(lambda: bool(np.isnan(run.get("HitRate100"))))
    assert run.get("Received") == 6, "the account goes on"


def test_without_a_word_at_the_start_reset_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    running = Run(bundle_folder, tmp_path / "r.jsonl")
    try:
        running.analyse(3)
        with pytest.raises(RemoteError, match="--epics-reset"):
            running.put("Reset", 1)
        assert running.analysis.session.front.running.hits.counts(100)[1] == 3
    finally:
        running.close()


def test_broken_clients_do_not_slow_the_analysis(run: Run) -> None:
    host, _, port = run.address.rpartition(":")
    broken = [socket.create_connection((host, int(port)), timeout=30) for _ in range(20)]
    script = (
        "import sys, time\nfrom p4p.client.thread import Context\n"
        f"c = Context('pva', conf={{'EPICS_PVA_NAME_SERVERS': {run.address!r}, 'EPICS_PVA_AUTO_ADDR_LIST': 'NO'}},"
        f" useenv=False)\nc.get('{PREFIX}:Preview', timeout=60)\n"
        f"s = [c.monitor('{PREFIX}:' + n, print) for n in ('Preview', 'Received', 'State')]\n"
        "print('watching', flush=True)\ntime.sleep(100)\n"
    )
    stopped = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert stopped.stdout is not None
        while "watching" not in stopped.stdout.readline():
            pass
        stopped.send_signal(signal.SIGSTOP)
        for connection in broken:
            connection.sendall(os.urandom(4000))
        for series in range(1, 4):
            run.analyse(20, series)
        run.becomes("Received", 60)
        assert run.analysis.account.processed.keys() == {"hit", "miss", "no_beam"}
        assert run.analysis.account.settled == 60
    finally:
        stopped.kill()
        stopped.wait()
        stopped.stdout.close()  # type: ignore[union-attr]
        for connection in broken:
            connection.close()
    began = time.monotonic()
    run.analysis.stop()
    assert time.monotonic() - began < 30


def test_after_the_run_nothing_is_served(bundle_folder: Path, tmp_path: Path) -> None:
    running = Run(bundle_folder, tmp_path / "r.jsonl")
    running.get("State")
    host, _, port = running.address.rpartition(":")
    running.close()
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=30)


# --- alarms -----------------------------------------------------------------------------


class Served:
    """Variables of a status that a test changes, and a client of them."""

    def __init__(self) -> None:
        self.status = status()
        self.server = EpicsServer(PREFIX, "127.0.0.1", lambda: self.status, lambda: None)
        self.client = client(self.server.address)
        self.server.start()

    def get(self, name: str) -> Any:
        return self.client.get(f"{PREFIX}:{name}", timeout=60)

    def alarm(self, name: str, severity: str) -> None:
        alarm = {"name": name, "severity": severity, "text": f"{name}: do this", "since": 0.0}
        self.status = status(alarms=[alarm], time=time.time())


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    for name in ("EPICS_PVAS_SERVER_PORT", "EPICS_PVAS_BROADCAST_PORT"):
        os.environ[name] = "0"
    served = Served()
    yield served
    served.client.close()
    served.server.close()
    for name in ("EPICS_PVAS_SERVER_PORT", "EPICS_PVAS_BROADCAST_PORT"):
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("alarm", "severity", "variable", "expected"),
    [
        ("CxlsFramesDropped", "critical", "Dropped", 2),
        ("CxlsLatencyOverDeadline", "warning", "Latency", 1),
        ("CxlsQueueFilling", "warning", "Queue", 1),
        ("CxlsNoFramesWhileArmed", "warning", "FrameRate", 1),
        ("CxlsHitRatioStuckAtOne", "warning", "HitRate1000", 1),
        ("CxlsHeaderDisagrees camera_length", "warning", "CameraLength", 3),
        ("CxlsUndecodable", "warning", "Received", 1),
    ],
)
def test_an_alarm_raises_its_variable_and_the_state(
    server: Served, alarm: str, severity: str, variable: str, expected: int
) -> None:
    server.alarm(alarm, severity)
    wait_for(lambda: alarm in server.get("State").raw.alarm.message)
    raised = server.get(variable)
    assert raised.severity == expected, "what is not known stays invalid"
    assert raised.raw.alarm.message == f"{alarm}: do this"
    assert server.get("State").severity == (2 if severity == "critical" else 1)
    assert server.get("SeriesId").severity == 0, "others are not touched"


def test_limits_for_displays_are_those_of_the_alarms(server: Served) -> None:
    assert server.get("Latency").raw.valueAlarm.highWarningLimit == THRESHOLDS.latency_p99_s
    assert server.get("HitRate1000").raw.valueAlarm.highWarningLimit == 100 * THRESHOLDS.stuck_hit_ratio


def test_a_status_that_fails_is_logged_once_in_a_while_and_the_next_is_published(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    server.status = {}
    wait_for(lambda: "could not be published" in caplog.text)
    server.status = status(series_id=77)
    wait_for(lambda: server.get("SeriesId") == 77)


def test_the_page_lists_every_variable_with_its_units() -> None:
    page = (Path(__file__).parents[2] / "docs" / "epics.md").read_text()
    for each in QUANTITIES:
        kind = {"d": "double", "l": "int64"}[each.code]
        assert f"| `{each.name}` | {kind} | {each.units} | {each.text} |" in page


# --- refused at the start ---------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "a b", "é", "x" * 61, "a\nb", "A/B"])
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(BadEpics, match="prefix"):
        EpicsServer(prefix, "127.0.0.1", status, lambda: None)


@pytest.mark.parametrize("interface", ["", "localhost", "eth0", "127.0.0.1:99999", "::1", "1.2.3", "300.0.0.1"])
def test_an_interface_that_is_no_address_is_refused(interface: str) -> None:
    with pytest.raises(BadEpics, match="interface"):
        EpicsServer(PREFIX, interface, status, lambda: None)


def test_an_address_of_another_machine_is_refused_in_a_line() -> None:
    with pytest.raises(BadEpics, match=r"^interface 192\.0\.2\.1: [^\n]+$"):
        EpicsServer(PREFIX, "192.0.2.1", status, lambda: None)


def test_a_wider_interface_is_warned_of(bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Sender() as sender:
        analysis = Analysis(
            [sender.endpoint], bundle_folder, tmp_path / "r.jsonl", epics=PREFIX, epics_interface="0.0.0.0"
        )
        assert "whoever reaches this address may read what this run shows" in caplog.text
        analysis.start()
        analysis.stop()


def test_reset_without_variables_is_refused() -> None:
    assert "--epics PREFIX" in refusal("analyze", "tcp://127.0.0.1:1", "--epics-reset")


def test_without_p4p_the_refusal_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "p4p", None)
    said = refusal("analyze", "tcp://127.0.0.1:1", "--epics", PREFIX)
    assert "pip install 'cxls-analyzer[epics]'" in said
