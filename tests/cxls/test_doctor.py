"""The site check: what it finds here, on a replayed detector, on servers that misbehave, and at a rate."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
import torch

from analyzer.cuda.compiler import SOURCES
from cxls.doctor import detector, machine, places, software
from cxls.doctor.finding import Finding, Level, guarded
from cxls.doctor.rehearsal import FRAMES, Rehearsed, judged, repeat
from cxls.http_get import NoAnswer
from cxls.settings import AnalyzeSettings, BadSettings
from sim_replay.replay import Replay, ReplaySettings
from sim_replay.simplon_http import SimplonServer
from streamer.files import FileSource
from tests import support
from tests.analyzer.builders import frames_of_a_run, write_series
from tests.cxls.programs import LOOPBACK, Analysis, Sender, cxls, refusal, replaying


@pytest.fixture(scope="module")
def simplon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A replayed detector: its stream and its control unit."""
    master = write_series(tmp_path_factory.mktemp("series"), frames_of_a_run(4))
    wire = ReplaySettings((str(master),), bind=LOOPBACK, rest="127.0.0.1:0", header_detail="all")
    with Replay(wire) as replay, SimplonServer(replay, "127.0.0.1:0") as server:
        yield replay.endpoint, server.url


def put(url: str, path: str, value: Any) -> None:
    body = json.dumps({"value": value}).encode()
    with urlopen(Request(f"{url}{path}", body, method="PUT"), timeout=10):
        pass


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {each.check: each.level for each in findings}


def ask(url: str) -> detector.Told:
    return detector.ask(urlsplit(url))


def matched(url: str, endpoint: str | None = None, **settings: Any) -> list[Finding]:
    where = None if endpoint is None else detector.endpoint_of(endpoint)
    return list(detector.settings_match(ask(url), url, AnalyzeSettings(**settings), where))


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers each connection as it is told to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(65536)
                    answer(connection)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def reply(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


# --- the program --------------------------------------------------------------------------


def test_a_machine_in_order_is_a_line_a_check_and_exit_code_0(tmp_path: Path) -> None:
    report = tmp_path / "doctor.json"
    done = cxls("doctor", "--listen", "127.0.0.1:0", "--results", tmp_path / "r.jsonl", "--json", report)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["failed"] == 0
    checks = {each["check"]: each for each in found["findings"]}
    assert {"python", "packages", "compiled", "decoder", "device", "bundle", "cores", "memory", "disk", "port"} <= set(
        checks
    )
    assert len(done.stdout.splitlines()) == len(found["findings"]) + 1
    for line, each in zip(done.stdout.splitlines(), found["findings"], strict=False):
        assert line.split()[0] == each["level"]
        assert (each["todo"] == "") == (each["level"] == "ok")


def test_what_no_run_works_with_is_exit_code_1_and_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cxls("doctor", "--listen", address, "--mask", tmp_path / "none.npy", "--bundle", tmp_path / "nothing")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 3
    assert any("bundle" in line and "nothing" in line for line in failed)
    assert any(address in line and "address already in use" in line for line in failed)
    assert done.stderr.splitlines()[-1] == "cxls: 3 checks failed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:80"], "not a stream"),
        (["tcp://127.0.0.1"], "not a stream"),
        (["tcp://127.0.0.1:99999"], "not a stream"),
        (["127.0.0.1:31001"], "not a stream"),
        (["--rest", "ftp://dcu"], "--rest"),
        (["--rest", "http://user:secret@dcu"], "--rest"),
        (["--rehearse", "5"], "--rate"),
        (["--rehearse", "0"], "rehearse"),
        (["--rate", "0", "--rehearse", "1"], "rate"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
        (["--queue-mib", "1"], "queue"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    line = refusal("doctor", *arguments)
    assert said in line
    assert "secret" not in line or "not an address" in line


def test_a_check_that_breaks_is_a_finding_and_the_next_ones_are_made() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("a", Level.OK, "before")
        raise RuntimeError("first line\nsecond line")

    found = list(guarded("a", broken))
    assert [each.level for each in found] == [Level.OK, Level.FAIL]
    assert found[1].text == "RuntimeError: first line"


def test_what_a_detector_says_cannot_write_on_the_terminal() -> None:
    line = Finding("detector", Level.OK, "state \x1b[2J\nok    all is well").line
    assert "\x1b" not in line
    assert "\n" not in line


# --- software -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("3.11.7", ">=3.11,<3.13", True),
        ("3.13.0", ">=3.11,<3.13", False),
        ("3.10.12", ">=3.11", False),
        ("2.13.0+cpu", ">=2.6", True),
        ("2.10.0", ">=2.9", True),
        ("1.26.4", ">=2.0", False),
        ("2", "==2.0.0", True),
        ("2.1rc1", ">=2.0,!=2.1", False),
        ("unknown", ">=1", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, wanted: str, fits: bool) -> None:
    assert software.satisfies(version, wanted) is fits


def test_a_package_that_is_old_or_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda name: ["numpy>=99", "no-such-package>=1", "torch>=2.6", "pytest>=99; extra == 'test'"],
    )
    (found,) = software.packages()
    assert found.level == Level.FAIL
    assert "numpy" in found.text
    assert "no-such-package>=1 is not installed" in found.text
    assert "torch" not in found.text
    assert "pytest" not in found.text


def test_a_decoder_that_takes_damaged_bytes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(list(software.decoder())) == {"decoder": Level.OK}
    right = software.decoding.decode

    def careless(image: Any, out: Any) -> None:
        try:
            right(image, out)
        except software.UndecodableImage:
            return

    monkeypatch.setattr(software.decoding, "decode", careless)
    (found,) = software.decoder()
    assert found.level == Level.FAIL
    assert "is not refused" in found.text


def test_cuda_is_a_failure_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.torch.cuda, "is_available", lambda: False)
    assert levels(list(software.device("auto"))) == {"device": Level.OK}
    assert levels(list(software.device("cuda"))) == {"device": Level.FAIL}


# --- machine and places -------------------------------------------------------------------


def test_memory_is_short_when_the_queues_are_larger_than_it() -> None:
    assert levels(list(machine.memory(1 << 20, 1, 0))) == {"memory": Level.OK}
    assert levels(list(machine.memory(1 << 50, 1, 0))) == {"memory": Level.WARN}
    assert levels(list(machine.memory(1 << 20, 1, 10_000))) == {"memory": Level.WARN}


def test_few_open_files_are_warned_of() -> None:
    program = (
        "import resource; from cxls.doctor import machine; from cxls.open_files import raise_limit;"
        "print(next(iter(machine.limits())).text); resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096));"
        "print(next(iter(machine.limits())).level); raise_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    text, *rest = done.stdout.splitlines()
    assert text.endswith(" at most")
    assert rest == ["warn", "(4096, 4096)"]


def test_the_clock_is_asked_and_never_set() -> None:
    before = time.time() - time.monotonic()
    (found,) = machine.clock()
    assert found.level in (Level.OK, Level.WARN)
    assert "synchronised" in found.text
    assert abs(time.time() - time.monotonic() - before) < 0.5


def test_a_folder_is_measured_and_nothing_stays_in_it(tmp_path: Path) -> None:
    found = places.output("hits", tmp_path / "not" / "yet")
    assert found.level in (Level.OK, Level.WARN)
    assert "MB/s" in found.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails() -> None:
    assert places.output("hits", Path("/proc/1/nothing")).level == Level.FAIL
    assert places.output("hits", Path("/dev/null/hits")).level == Level.FAIL


@pytest.mark.parametrize("address", ["127.0.0.1:0", "tcp://127.0.0.1:0", "tcp://*:0", "[::1]:0"])
def test_a_port_that_is_free_is_free_afterwards(address: str) -> None:
    assert places.port("listen", address).level == Level.OK


@pytest.mark.parametrize("address", ["127.0.0.1:http", "127.0.0.1:-1", "127.0.0.1:65536", "nonsense", "192.0.2.1:8080"])
def test_an_address_that_cannot_be_bound_fails(address: str) -> None:
    assert places.port("listen", address).level == Level.FAIL


# --- the stream ---------------------------------------------------------------------------


def test_a_stream_is_reached_without_taking_a_message_from_who_is_attached() -> None:
    with Sender() as sender:
        found = list(detector.stream(detector.endpoint_of(sender.endpoint)))
    assert levels(found)["stream"] == Level.OK
    assert "MTU" in found[1].text


def test_looking_at_a_running_stream_costs_its_client_no_frame(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path / "series", frames_of_a_run(40))
    with replaying(master, rate_hz=40.0) as (endpoint, report):
        analysis = Analysis([endpoint], bundle_folder, tmp_path / "r.jsonl", series=1).start()
        for _ in range(8):
            assert levels(list(detector.stream(detector.endpoint_of(endpoint))))["stream"] == Level.OK
            time.sleep(0.1)
        analysis.join()
        assert report.result(10).sent == 40
    assert len(analysis.records) == 40
    analysis.assert_closes()


def test_a_port_that_is_closed_silent_or_no_zeromq_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert levels(list(detector.stream(detector.Endpoint("127.0.0.1", port)))) == {"stream": Level.FAIL}
    with server(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")) as url:
        where = detector.Endpoint("127.0.0.1", urlsplit(url).port or 0)
        began = time.monotonic()
        (found,) = detector.stream(where)
    assert found.level == Level.FAIL
    assert "no ZeroMQ" in found.text
    assert time.monotonic() - began < 2 * detector.TIMEOUT_S


# --- the control unit ---------------------------------------------------------------------


def test_a_detector_set_as_we_need_it_is_in_order(simplon: tuple[str, str]) -> None:
    endpoint, url = simplon
    put(url, "/stream/api/1.8.0/config/mode", "enabled")
    found = levels(matched(url, endpoint))
    assert {found[each] for each in ("detector", "stream mode", "stream format", "header detail", "channels")} == {"ok"}
    assert {found[each] for each in ("compression", "geometry", "frame rate", "clocks")} == {"ok"}


def test_each_setting_that_does_not_match_fails_and_says_how_to_set_it(simplon: tuple[str, str]) -> None:
    url = simplon[1]
    put(url, "/stream/api/1.8.0/config/mode", "disabled")
    off = {each.check: each for each in matched(url)}
    assert off["stream mode"].level == Level.FAIL
    assert f'curl -X PUT {url}/stream/api/1.8.0/config/mode -d \'{{"value": "enabled"}}\'' in off["stream mode"].todo
    assert levels(matched(url, stream="v1"))["stream format"] == Level.FAIL
    assert levels(matched(url, "tcp://127.0.0.1:9999"))["stream format"] == Level.FAIL
    assert levels(matched(url, "tcp://127.0.0.1:31001"))["stream format"] == Level.OK
    assert levels(matched(url, channel="threshold_2"))["channels"] == Level.FAIL
    assert levels(matched(url, channel="threshold_1"))["channels"] == Level.OK
    for detail, level in (("none", Level.FAIL), ("basic", Level.WARN), ("all", Level.OK)):
        put(url, "/stream/api/1.8.0/config/header_detail", detail)
        assert levels(matched(url))["header detail"] == level
    put(url, "/stream/api/1.8.0/config/format", "legacy")
    assert levels(matched(url, "tcp://127.0.0.1:31001"))["stream format"] == Level.FAIL
    assert levels(matched(url, "tcp://127.0.0.1:9999", stream="v1"))["stream format"] == Level.OK
    put(url, "/stream/api/1.8.0/config/format", "cbor")
    put(url, "/detector/api/1.8.0/config/detector_distance", 0.0)
    assert levels(matched(url))["geometry"] == Level.WARN


def test_only_gets_are_sent() -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(reply(b'{"value": "1.8.0"}'))

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536))
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        ask(f"http://127.0.0.1:{listening.getsockname()[1]}")
    assert len(asked) > 10
    assert all(each.startswith(b"GET /") for each in asked)


def test_a_clock_that_differs_is_told_with_how_well_it_is_known() -> None:
    told = detector.Told("1.8.0", clock_ahead_s=12.0, clock_sigma_s=0.5)
    (found,) = detector._clock(told)
    assert found.level == Level.WARN
    assert "+12.00 s from ours, known to 0.50 s" in found.text
    (found,) = detector._clock(detector.Told("1.8.0", clock_ahead_s=1.2, clock_sigma_s=0.5))
    assert found.level == Level.OK
    (found,) = detector._clock(detector.Told("1.8.0"))
    assert found.level == Level.WARN


@pytest.mark.parametrize("time_told", [b"1.8.0", b"2026-11-30T12:00:00"])
def test_the_clock_is_read_from_the_http_header_where_there_is_no_other(time_told: bytes) -> None:
    """Such as a time without its zone, which may be any."""
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        body = b'{"value": "%s"}' % (time_told if asked else b"1.8.0")
        asked.append(body)
        connection.sendall(reply(body).replace(b"OK\r\n", b"OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"))

    with server(answer) as url:
        told = ask(url)
    assert told.clock_ahead_s is not None
    assert told.clock_ahead_s < -(10**8)
    assert told.clock_sigma_s >= 0.5


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 20,
    "no version": reply(b'{"value": "../../etc"}'),
    "a version with a line end": reply(b'{"value": "1.8.0\\n"}'),
    "a list": reply(b"[1, 2]"),
    "deep": reply(b"[" * 50_000),
    "huge": reply(b" " * (detector._MOST_BYTES + 100)),
    "promises more than it sends": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}",
    "an error": reply(b'{"value": "1.8.0"}', "500 Internal Server Error"),
    "a redirection": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_server_that_is_no_control_unit_is_a_failure_in_one_line(kind: str) -> None:
    with server(lambda connection: connection.sendall(HOSTILE[kind])) as url:
        began = time.monotonic()
        with pytest.raises(NoAnswer) as refused:
            ask(url)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < detector.TIMEOUT_S + 2


def test_a_server_that_trickles_is_left_in_time() -> None:
    def trickle(connection: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" * 50:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    with server(trickle) as url:
        began = time.monotonic()
        with pytest.raises(NoAnswer):
            ask(url)
        assert time.monotonic() - began < detector.TIMEOUT_S + 1


WRONG_VALUES: list[bytes] = [
    b"null", b"true", b"[]", b"{}", b'"x"', b"-1", b"1e400", b"NaN", b"0", b'"\\u001b[2J"', b"1" * 4000, b"1e-300",
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG_VALUES)
def test_a_value_of_the_wrong_kind_is_as_one_that_is_not_told(value: bytes) -> None:
    version = reply(b'{"value": "1.8.0"}')
    first = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(reply(b'{"value": %s}' % value) if first.is_set() else version)
        first.set()

    with server(answer) as url:
        found = matched(url)
    assert levels(found)["stream mode"] == Level.FAIL
    for each in found:
        assert "\x1b" not in each.line
        assert len(each.line) < 500


def test_no_detector_at_the_address_is_a_failed_check_and_the_rest_is_looked_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = cxls("doctor", "--listen", "127.0.0.1:0", "--rest", f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert "FAIL  detector" in done.stdout
    assert "ok    decoder" in done.stdout


def test_an_endpoint_is_host_and_port() -> None:
    assert detector.endpoint_of("tcp://dcu.example.org:31001") == detector.Endpoint("dcu.example.org", 31001)
    for wrong in ("tcp://:31001", "tcp://dcu:0", "tcp://dcu:x", "tcp://[::1:2", "tcp://dcu:31001\n"):
        with pytest.raises(BadSettings):
            detector.endpoint_of(wrong)


# --- the rehearsal ------------------------------------------------------------------------

KEPT_UP = Rehearsed(100.0, 10.0, 1000, 995, 0, 0, 0, 0.05)


@pytest.mark.parametrize(
    ("run", "level"),
    [
        (KEPT_UP, Level.OK),
        (replace(KEPT_UP, analysed=500), Level.FAIL),
        (replace(KEPT_UP, analysed=900, dropped=100), Level.FAIL),
        (replace(KEPT_UP, received=500, analysed=495), Level.WARN),
        (replace(KEPT_UP, unsent=10), Level.WARN),
        (replace(KEPT_UP, analysed=495, sampled=500), Level.WARN),
        (replace(KEPT_UP, latency_p99_s=3.0), Level.WARN),
        (replace(KEPT_UP, latency_p99_s=None), Level.OK),
    ],
)
def test_a_machine_keeps_up_or_does_not(run: Rehearsed, level: Level) -> None:
    assert judged(run).level == level


def test_a_series_is_made_longer_by_links_to_the_same_images(tmp_path: Path) -> None:
    master = support.write_series(tmp_path, images=FRAMES)
    size = sum(each.stat().st_size for each in master.parent.iterdir())
    repeat(master, 50)
    assert sum(each.stat().st_size for each in master.parent.iterdir()) < 2 * size
    with closing(FileSource([str(master)])) as files:
        assert files.first.number_of_images == 50 * FRAMES


def test_a_rehearsal_plays_frames_at_the_rate_into_an_analysis(tmp_path: Path) -> None:
    report = tmp_path / "doctor.json"
    done = cxls("doctor", "--listen", "127.0.0.1:0", "--rehearse", "2", "--rate", "10", "--json", report)
    found = {each["check"]: each for each in json.loads(report.read_text())["findings"]}
    assert found["rehearsal"]["level"] in ("ok", "warn"), found["rehearsal"]
    received = float(found["rehearsal"]["text"].split(" frames/s received")[0].split()[-1])
    assert 8.0 < received < 12.0
    assert done.returncode == 0, done.stdout


def test_the_rate_of_a_rehearsal_is_the_detectors_where_it_is_asked(simplon: tuple[str, str]) -> None:
    assert ask(simplon[1]).rate_hz == pytest.approx(1 / ask(simplon[1]).values["detector"]["frame_time"])


def test_every_kernel_is_compiled_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(software, "compiled", lambda source, *others: asked.append(source))
    cuda = {
        "is_available": True, "mem_get_info": (2, 2), "get_device_name": "a GPU", "get_device_capability": (9, 0),
    }  # fmt: skip
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, partial(lambda value: value, value))
    told = list(software.device("auto"))
    assert "the decoder and the reduction" in str(told[-1])
    assert sorted(asked) == sorted(path.name for path in SOURCES.glob("*.cu"))
