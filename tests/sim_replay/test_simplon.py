"""The SIMPLON interface by real HTTP, its series by a real consumer."""

import base64
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from sim_replay import simplon_http
from sim_replay.replay import Replay, ReplayReport, ReplaySettings, run_replay
from sim_replay.simplon_http import SimplonServer
from streamer.files import CHANNEL, BadInput
from streamer.messages import ConfigMessage, EndMessage, ImageData, ImageMessage, Message, StartMessage
from streamer.receiver import parse
from tests.cxls.programs import wait_for
from tests.support import read_chunks, write_series


@pytest.fixture
def master(tmp_path: Path) -> Path:
    return write_series(tmp_path, images=4)


@dataclass
class Detector:
    """A replay with REST, a client for it and a consumer."""

    url: str
    endpoint: str
    context: zmq.Context[Any]
    stop: threading.Event
    report: Future[ReplayReport]
    pull: Any = None

    def connect(self) -> None:
        """A consumer, in the place of the one before."""
        self.pull = self.context.socket(zmq.PULL)
        self.pull.connect(self.endpoint)

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        request = urllib.request.Request(f"{self.url}/{path}", data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def get(self, path: str, module: str = "detector") -> Any:
        status, reply = self.request("GET", f"{module}/api/1.8.0/{path}")
        assert status == 200, reply
        return reply["value"] if isinstance(reply, dict) else reply

    def put(self, path: str, value: Any = None, module: str = "detector") -> Any:
        body = b"" if value is None else json.dumps({"value": value}).encode()
        status, reply = self.request("PUT", f"{module}/api/1.8.0/{path}", body)
        assert status == 200, reply
        return reply

    def arm(self, **config: Any) -> int:
        self.put("config/mode", "enabled", "stream")
        for name, value in config.items():
            self.put(f"config/{name}", value)
        return int(self.put("command/arm")["sequence id"])

    def receive(self, timeout_s: float = 30.0) -> Message:
        assert self.pull.poll(timeout_s * 1000), "nothing came"
        return parse([memoryview(part) for part in self.pull.recv_multipart()])

    def receive_all(self, quiet_s: float = 0.1, ends: bool = True) -> list[Message]:
        """What comes until nothing does for so long; ``ends``: not before the end of a series came."""
        messages: list[Message] = []
        while self.pull.poll(quiet_s * 1000) or (
            ends and not (messages and isinstance(messages[-1], EndMessage)) and self.pull.poll(20_000)
        ):
            messages.append(self.receive())
        return messages


@contextmanager
def serving(*inputs: Path, **changes: Any) -> Iterator[Detector]:
    settings = ReplaySettings(
        tuple(map(str, inputs)), **({"bind": "tcp://127.0.0.1:0", "rest": "127.0.0.1:0"} | changes)
    )
    stop, bound = threading.Event(), Future[dict[str, str]]()
    addresses: dict[str, str] = {}

    def announce(name: str, address: str) -> None:
        addresses[name] = address
        if len(addresses) == 2:
            bound.set_result(addresses)

    context: zmq.Context[Any] = zmq.Context()
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(run_replay, settings, stop, announce)
        try:
            found = bound.result(60)
            detector = Detector(found["simplon"], found["replay"], context, stop, report)
            detector.connect()
            yield detector
        finally:
            stop.set()
            context.destroy(linger=0)


@pytest.fixture
def detector(master: Path) -> Iterator[Detector]:
    with serving(master) as served:
        yield served


def kinds(messages: list[Message]) -> list[type]:
    return [type(message) for message in messages]


def test_the_api_says_its_version(detector: Detector) -> None:
    for module in ("detector", "stream"):
        for path in ("version", "version/"):
            reply = {"value": "1.8.0", "value_type": "string"}
            assert detector.request("GET", f"{module}/api/{path}") == (200, reply)


def test_the_configuration_is_that_of_the_file(detector: Detector) -> None:
    values = {
        "x_pixels_in_detector": 51,
        "y_pixels_in_detector": 37,
        "nimages": 4,
        "ntrigger": 1,
        "trigger_mode": "ints",
    }
    values |= {"photon_energy": 7000.0, "detector_distance": 0.15, "bit_depth_image": 16, "compression": "bslz4"}
    assert {name: detector.get(f"config/{name}") for name in values} == values
    status, reply = detector.request("GET", "detector/api/1.8.0/config/count_time")
    assert status == 200
    assert (reply["value_type"], reply["access_mode"], reply["unit"]) == ("float", "rw", "s")


def test_every_listed_key_can_be_read(detector: Detector) -> None:
    for module in ("detector", "stream"):
        for task in ("config", "status"):
            keys = detector.get(f"{task}/keys", module)
            assert keys
            for key in keys:
                assert detector.request("GET", f"{module}/api/1.8.0/{task}/{key}")[0] == 200, key


def test_the_pixel_mask_is_a_darray(detector: Detector) -> None:
    darray = detector.get("config/pixel_mask")
    assert (darray["type"], darray["shape"], darray["filters"]) == ("<u4", [51, 37], ["base64"])
    mask = np.frombuffer(base64.b64decode(darray["data"]), darray["type"]).reshape(darray["shape"][::-1])
    assert np.argwhere(mask).tolist() == [[3, 4]]


def test_a_written_key_says_what_changed_with_it(detector: Detector) -> None:
    assert detector.put("config/nimages", 3) == ["nimages"]
    changed = detector.put("config/photon_energy", 8000.0)
    assert {"photon_energy", "wavelength", "threshold_energy"} <= set(changed)
    assert detector.get("config/wavelength") == pytest.approx(12398.4198 / 8000)
    assert detector.put("config/count_time", 0.5) == ["count_time", "frame_time"]
    assert detector.get("config/frame_time") == 0.5
    detector.put("command/initialize")
    assert detector.get("config/photon_energy") == 7000.0


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("detector/api/1.8.0/config/no_such_key", b'{"value": 1}', 404, "no configuration key 'no_such_key'"),
        ("detector/api/1.8.0/config/x_pixels_in_detector", b'{"value": 9}', 403, "x_pixels_in_detector is read-only"),
        ("detector/api/1.8.0/config/pixel_mask", b'{"value": 9}', 403, "pixel_mask is read-only"),
        ("detector/api/1.8.0/config/nimages", b'{"value": 0}', 400, "nimages 0 is not between 1 and"),
        ("detector/api/1.8.0/config/nimages", b'{"value": "two"}', 400, "nimages takes a uint, not 'two'"),
        ("detector/api/1.8.0/config/nimages", b'{"value": 1.5}', 400, "nimages takes a uint"),
        ("detector/api/1.8.0/config/count_time", b'{"value": NaN}', 400, "count_time takes a float"),
        ("detector/api/1.8.0/config/compression", b'{"value": "lz4"}', 400, "compression cannot be 'lz4'"),
        ("detector/api/1.8.0/config/trigger_mode", b'{"value": "eies"}', 400, "allowed here: ints, inte, exts, exte"),
        ("detector/api/1.8.0/config/nimages", b'{"value": 3', 400, "the body is not JSON"),
        ("detector/api/1.8.0/config/nimages", b"\xff\xfe", 400, "the body is not JSON"),
        ("detector/api/1.8.0/config/nimages", b"[" * 100000, 400, "the body is not JSON"),
        ("detector/api/1.8.0/config/nimages", b"[3]", 400, "not a JSON object"),
        ("detector/api/1.8.0/config/nimages", b"{}", 400, 'the body has no "value"'),
        ("detector/api/1.8.0/config/nimages", b" " * (2 << 20), 400, "is not read"),
        ("stream/api/1.8.0/config", b'{"mode": "enabled"}', 400, "is not given as"),
        ("stream/api/1.8.0/config", b"{}", 400, "names no key"),
        ("stream/api/1.8.0/config/format", b'{"value": "xml"}', 400, "allowed here: legacy, cbor"),
        ("detector/api/1.8.0/command/explode", b"", 404, "no command 'explode'"),
        ("detector/api/1.8.0/command/trigger", b"", 409, "not armed"),
        ("detector/api/1.6.0/config/nimages", b'{"value": 3}', 404, "API version '1.6.0' is not served"),
        ("cook/api/1.8.0/config/nimages", b'{"value": 3}', 404, "module 'cook' is not served"),
        ("detector/api/1.8.0/status/state", b"", 405, "PUT is not for"),
        ("nowhere", b"", 404, "no part of SIMPLON"),
    ],
)
def test_a_bad_request_gets_a_status_and_a_sentence(
    detector: Detector, path: str, body: bytes, status: int, sentence: str
) -> None:
    got, reply = detector.request("PUT", path, body)
    assert got == status
    assert sentence in reply["error"]
    assert detector.get("config/nimages") == 4


def test_arm_trigger_and_the_end_by_themselves(detector: Detector) -> None:
    assert detector.get("status/state") == "idle"
    series = detector.arm(nimages=3, ntrigger=2)
    start = detector.receive()
    assert isinstance(start, StartMessage)
    assert start.series_id == series
    assert start.metadata.number_of_images == 6
    assert detector.get("status/state") == "ready"
    assert detector.get("status/state", "stream") == "acquire"
    detector.put("command/trigger")
    assert [m.image_id for m in (detector.receive() for _ in range(3)) if isinstance(m, ImageMessage)] == [0, 1, 2]
    detector.put("command/trigger")
    *images, end = detector.receive_all()
    # The file has four images: the fifth is its first again.
    assert [m.image_id for m in images if isinstance(m, ImageMessage)] == [3, 4, 5]
    assert end == EndMessage(series, start.unique_id)
    assert detector.get("status/state") == "idle"
    assert detector.put("command/disarm") == {"sequence id": series}
    assert detector.receive_all(ends=False) == []


def test_images_wrap_around_the_file(detector: Detector, master: Path) -> None:
    detector.arm(nimages=6)
    detector.put("command/trigger")
    data = [
        bytes(image.data)
        for message in detector.receive_all()
        if isinstance(message, ImageMessage) and isinstance(image := message.channels[CHANNEL], ImageData)
    ]
    chunks = read_chunks(master)
    assert data == chunks + chunks[:2]


def test_series_ids_rise_with_every_arm(detector: Detector) -> None:
    ids = []
    for _ in range(3):
        ids.append(detector.arm())
        detector.put("command/disarm")
    assert ids == [1, 2, 3]
    messages = detector.receive_all()
    assert [m.series_id for m in messages if not isinstance(m, ConfigMessage)] == [1, 1, 2, 2, 3, 3]
    assert kinds(messages) == [StartMessage, EndMessage] * 3


@pytest.mark.parametrize(("name", "is_cbor"), [("legacy", False), ("cbor", True)])
def test_the_format_chooses_the_stream(detector: Detector, name: str, is_cbor: bool) -> None:
    changes = {
        "mode": "enabled",
        "format": name,
        "header_detail": "all",
        "header_appendix": "tray 3",
        "image_appendix": "x",
    }
    body = json.dumps({key: {"value": value} for key, value in changes.items()}).encode()
    status, reply = detector.request("PUT", "stream/api/1.8.0/config", body)
    assert (status, reply) == (200, sorted(changes))
    detector.put("command/arm")
    detector.put("command/trigger")
    first = detector.pull.recv_multipart()
    assert (first[0][:3] == b"\xd9\xd9\xf7") is is_cbor
    assert len(first) == (1 if is_cbor else 9)
    start = parse([memoryview(part) for part in first])
    assert isinstance(start, StartMessage)
    assert start.metadata.user_data == "tray 3"
    assert start.metadata.masks[CHANNEL][3, 4] == 1
    image = detector.receive()
    assert isinstance(image, ImageMessage)
    assert image.user_data == "x"


def test_a_written_energy_is_in_the_header(detector: Detector) -> None:
    detector.put("config/format", "legacy", "stream")
    detector.arm(photon_energy=9000.0, nimages=2, ntrigger=3)
    config = json.loads(detector.pull.recv_multipart()[1])
    assert (config["photon_energy"], config["nimages"], config["ntrigger"]) == (9000.0, 2, 3)
    assert config["data_collection_date"]


def test_a_disabled_stream_sends_nothing(detector: Detector) -> None:
    assert detector.get("config/mode", "stream") == "disabled"
    assert detector.get("status/state", "stream") == "disabled"
    detector.put("command/arm")
    detector.put("command/trigger")
    assert detector.receive_all(ends=False) == []
    detector.put("config/mode", "enabled", "stream")
    detector.put("command/initialize", module="stream")
    assert detector.get("config/mode", "stream") == "disabled"


@pytest.mark.parametrize("command", ["abort", "cancel", "disarm"])
def test_a_running_trigger_is_ended_from_another_request(master: Path, command: str) -> None:
    with serving(master, rate_hz=20.0) as detector:
        series = detector.arm(nimages=1000)
        with ThreadPoolExecutor(1) as pool:
            trigger = pool.submit(detector.put, "command/trigger")
            detector.receive()
            detector.receive()
            assert detector.get("status/state") == "acquire"
            began = time.monotonic()
            assert detector.put(f"command/{command}") == {"sequence id": series}
            trigger.result(30)
            assert time.monotonic() - began < 10, "of the 50 s that its images take"
        messages = detector.receive_all()
    assert isinstance(messages[-1], EndMessage)
    assert kinds(messages).count(EndMessage) == 1
    assert len(messages) < 500


def test_one_trigger_at_a_time(master: Path) -> None:
    with serving(master, rate_hz=20.0) as detector:
        detector.arm(nimages=1000, ntrigger=2)
        with ThreadPoolExecutor(1) as pool:
            trigger = pool.submit(detector.put, "command/trigger")
            detector.receive()
            detector.receive()
            assert detector.request("PUT", "detector/api/1.8.0/command/trigger")[0] == 409
            assert detector.request("PUT", "detector/api/1.8.0/command/arm")[0] == 409
            assert detector.request("PUT", "detector/api/1.8.0/config/nimages", b'{"value": 2}')[0] == 409
            detector.put("command/abort")
            trigger.result(30)


def test_inte_takes_one_image_a_trigger_with_its_count_time(detector: Detector) -> None:
    detector.arm(trigger_mode="inte", ntrigger=2)
    detector.put("command/trigger")
    detector.put("command/trigger", 0.25)
    start, first, second, end = detector.receive_all()
    assert isinstance(start, StartMessage)
    assert start.metadata.number_of_images == 2
    assert isinstance(first, ImageMessage)
    assert isinstance(second, ImageMessage)
    assert isinstance(end, EndMessage)
    assert second.exposure_s == pytest.approx(0.25)


def test_exts_needs_no_trigger_command(detector: Detector) -> None:
    detector.arm(trigger_mode="exts", nimages=2, ntrigger=2)
    assert kinds(detector.receive_all(0.3)) == [StartMessage, *[ImageMessage] * 4, EndMessage]


def test_each_arm_plays_the_next_file(tmp_path: Path) -> None:
    first, second = (
        write_series(tmp_path, name, metadata={"detectorSpecific/photon_energy": energy})
        for name, energy in (("a", 6000.0), ("b", 8000.0))
    )
    with serving(first, second) as detector:
        energies = []
        for _ in range(3):
            energies.append(detector.get("config/photon_energy"))
            detector.arm()
            detector.put("command/trigger")
            start, *_ = detector.receive_all()
            assert isinstance(start, StartMessage)
            assert start.metadata.photon_energy_eV == energies[-1]
    assert energies == [6000.0, 8000.0, 6000.0]


def test_dropped_images_are_in_the_stream_status(master: Path) -> None:
    with serving(master, on_full="drop") as detector:
        detector.arm(nimages=3)
        detector.receive()
        detector.pull.close()
        time.sleep(0.2)
        with ThreadPoolExecutor(1) as pool:
            # The end waits for room, the images do not.
            trigger = pool.submit(detector.put, "command/trigger")
            wait_for(lambda: detector.get("status/dropped", "stream") == 3)
            detector.connect()
            trigger.result(7)
        assert isinstance(detector.receive(), EndMessage)
        detector.arm()
        assert detector.get("status/dropped", "stream") == 0


def test_an_arm_without_a_consumer_can_be_aborted(master: Path) -> None:
    with serving(master) as detector:
        detector.pull.close()
        detector.put("config/mode", "enabled", "stream")
        time.sleep(0.1)
        with ThreadPoolExecutor(1) as pool:
            arm = pool.submit(detector.request, "PUT", "detector/api/1.8.0/command/arm")
            time.sleep(0.2)
            detector.put("command/abort")
            status, reply = arm.result(30)
        assert status == 409
        assert "before a consumer took its start" in reply["error"]
        assert detector.get("status/state") == "idle"


def test_stop_ends_a_running_series_and_the_server(master: Path) -> None:
    with serving(master, rate_hz=20.0) as detector:
        detector.arm(nimages=1000)
        with ThreadPoolExecutor(1) as pool:
            trigger = pool.submit(detector.request, "PUT", "detector/api/1.8.0/command/trigger")
            detector.receive()
            detector.receive()
            began = time.monotonic()
            detector.stop.set()
            report = detector.report.result(30)
            assert time.monotonic() - began < 10, "of the 50 s that its images take"
            trigger.exception(30)
        assert isinstance(detector.receive_all()[-1], EndMessage)
    assert report.series == 1
    assert 0 < report.sent < 500


@pytest.mark.parametrize("address", ["8000", "127.0.0.1:http", "127.0.0.1:70000", "no.such.host.invalid:8000"])
def test_a_rest_address_that_cannot_be_bound_is_one_clear_line(master: Path, address: str) -> None:
    settings = ReplaySettings((str(master),), bind="tcp://127.0.0.1:0")
    with Replay(settings) as replay, pytest.raises(BadInput, match=address):
        SimplonServer(replay, address)


def test_a_rest_port_in_use_is_one_clear_line(detector: Detector, master: Path) -> None:
    address = detector.url.removeprefix("http://")
    settings = ReplaySettings((str(master),), bind="tcp://127.0.0.1:0")
    with Replay(settings) as replay, pytest.raises(BadInput, match=f"{address}: cannot be bound: Address already"):
        SimplonServer(replay, address)


def test_a_body_that_does_not_come_is_not_waited_for(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplon_http, "BODY_TIMEOUT_S", 0.3)
    host, _, port = detector.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(
            b"PUT /detector/api/1.8.0/config/count_time HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n" + b"{"
        )
        assert b" 408 " in slow.recv(100)


def test_more_connections_than_are_served_are_told_so(detector: Detector) -> None:
    host, _, port = detector.url.removeprefix("http://").rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(simplon_http.MOST_CONNECTIONS)]
    idle[-1].sendall(b"GET /detector/api/version HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b" 503 " in idle[-1].recv(100)
    for each in idle:
        each.close()
