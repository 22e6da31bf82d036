"""The endpoints of a running analysis."""

import json
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analyzer.builders import image
from tests.cxls.programs import Analysis, Sender, wait_for
from tests.cxls.test_live import Wire


def get(address: str, path: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("content-type", ""), error.read().decode()


class Live:
    """A live analysis with a sender of its own and its HTTP address."""

    def __init__(self, sender: Sender, analysis: Analysis) -> None:
        self.sender, self.analysis = sender, analysis
        assert analysis.session.web is not None
        self.address: str = analysis.session.web.address

    def analyse(self, images: int, series_id: int = 1) -> None:
        before = len(self.analysis.session.front.reports)
        for message in Wire("v2").series(images, series_id):
            self.sender.send(*message)
        wait_for(lambda: len(self.analysis.session.front.reports) > before)


@pytest.fixture
def idle(bundle_folder: Path, tmp_path: Path) -> Iterator[Live]:
    """Made, not yet running."""
    with Sender() as sender:
        yield Live(sender, Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl"))


@pytest.fixture
def live(idle: Live) -> Iterator[Live]:
    idle.analysis.start()
    wait_for(lambda: get(idle.address, "/readyz")[0] == 200)
    yield idle
    idle.analysis.stop()


def test_an_analysis_is_alive_before_it_is_ready(idle: Live) -> None:
    assert get(idle.address, "/healthz")[0] == 200
    assert get(idle.address, "/readyz")[0] == 503
    assert json.loads(get(idle.address, "/status")[2])["ready"] is False
    idle.analysis.start()
    wait_for(lambda: get(idle.address, "/readyz")[0] == 200)
    idle.analysis.stop()


def test_an_analysis_that_has_ended_serves_no_more(idle: Live) -> None:
    idle.analysis.start()
    idle.analysis.stop()
    with pytest.raises(OSError):
        get(idle.address, "/healthz")


def test_the_status_is_json_with_the_account(live: Live) -> None:
    empty = json.loads(get(live.address, "/status")[2])
    assert empty["hit_ratio"] == {"100": None, "1000": None}
    live.analyse(6)
    # Events of a connection are looked at each tenth of a second: frames may be read before its news.
    wait_for(lambda: json.loads(get(live.address, "/status")[2])["connected"])
    code, kind, body = get(live.address, "/status")
    status = json.loads(body)
    assert (code, kind) == (200, "application/json")
    assert status["ready"] is True
    assert status["connected"] is True
    assert status["account"]["received"] == sum(status["account"]["processed"].values()) == 6
    assert status["account"]["identity"] == "received 6 = processed 6 + dropped 0 + undecodable 0"
    assert status["last"]["image_id"] in range(6)
    assert status["header"]["photon_energy_eV"] == 7000.0
    assert len(status["history"]) == 6


def test_the_metrics_are_prometheus_text(live: Live) -> None:
    live.analyse(3)
    code, kind, text = get(live.address, "/metrics")
    assert code == 200
    assert kind.startswith("text/plain")
    assert re.search(r"^cxls_frames_received_total 3\.0$", text, re.M)
    assert re.search(r'^cxls_build_info{.*bundle="random-[0-9a-f]{12}".*} 1\.0$', text, re.M)


def test_the_metrics_tell_of_the_series_the_workers_the_disk_and_the_process(live: Live) -> None:
    live.analyse(5)
    live.sender.send(*Wire("v2").start(2, 9))
    wait_for(lambda: "cxls_series_open 1.0" in get(live.address, "/metrics")[2])
    text = get(live.address, "/metrics")[2]
    assert 'cxls_series_ended_total{why="end message"} 1.0' in text
    taken = re.findall(r'^cxls_worker_frames_total{worker="([01])"} (\d)\.0$', text, re.M)
    assert [worker for worker, _ in taken] == ["0", "1"]
    assert sum(int(frames) for _, frames in taken) == 5
    assert re.search(r'^cxls_disk_free_bytes{output="results"} [1-9]', text, re.M)
    assert not re.search(r'^cxls_disk_\w+{output="hits"}', text, re.M), "only outputs in use"
    assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.M)
    assert "cxls_gpu_" not in text


def test_a_results_folder_that_vanishes_breaks_no_scrape(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.metrics.disk.LOOK_S", 0.0)
    folder = tmp_path / "results"
    folder.mkdir()
    with Sender() as sender:
        live = Live(sender, Analysis([sender.endpoint], bundle_folder, folder / "r.jsonl"))
        live.analysis.start()
        live.analyse(2)
        shutil.rmtree(folder)
        code, _, text = get(live.address, "/metrics")
        assert code == 200
        assert 'cxls_disk_free_bytes{output="results"} NaN' in text
        assert "cxls_frames_received_total 2.0" in text
        live.analysis.stop()


def test_the_live_page_has_a_script_and_needs_nothing_from_elsewhere(live: Live) -> None:
    code, kind, page = get(live.address, "/")
    assert code == 200
    assert kind.startswith("text/html")
    assert "<script" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_a_path_that_is_not_there_is_404_and_a_wrong_method_405(live: Live) -> None:
    assert get(live.address, "/nothing")[0] == 404
    assert get(live.address, "/../../etc/passwd")[0] == 404
    request = urllib.request.Request(f"http://{live.address}/status", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 405


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x00" * 1000, b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n",
     b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
     b"POST /status HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
     b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", b""],
)  # fmt: skip
def test_a_malformed_request_harms_nobody(live: Live, request_bytes: bytes) -> None:
    host, _, port = live.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request_bytes)
        assert get(live.address, "/healthz")[0] == 200
    assert get(live.address, "/healthz")[0] == 200
    live.analyse(2)


def test_silent_connections_leave_room_for_the_next(live: Live) -> None:
    host, _, port = live.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(100)]
    try:
        assert get(live.address, "/metrics")[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_senseless_numbers_of_a_header_do_not_break_the_status(live: Live) -> None:
    wire = Wire("v2")
    live.sender.send(*wire.start(1, (1 << 63) - 1))
    live.sender.send(*wire.image(image(0)))
    live.sender.send(*wire.start(2, (1 << 63) - 1))
    live.sender.send(*wire.start(3, (1 << 63) - 1))
    live.sender.send(*wire.image(image((1 << 63) - 3, 3)))
    live.sender.send(*wire.end(3))
    wait_for(lambda: len(live.analysis.session.front.reports) == 3)
    for path in ("/status", "/metrics"):
        assert get(live.address, path)[0] == 200
    live.analyse(3, 4)
    assert json.loads(get(live.address, "/status")[2])["series_id"] == 4
