"""Diamond's Eiger simulator (tickit-devices), driven over its REST interface, into the analysis."""

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitshuffle
import cbor2
import numpy as np
import pytest

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.front import Front, FrontSettings
from analyzer.results import Status
from streamer.decoding import decode
from streamer.messages import ImageData, ImageMessage
from streamer.receiver import Received, StreamReceiver
from tests.analyzer.builders import Collector, assert_account_closes
from tests.cxls.programs import wait_for
from tests.support import REPOSITORY, required

VENV = REPOSITORY / ".venv-tickit"
SHAPE = (4362, 4148)
IMAGES = 3


class RecordingReceiver(StreamReceiver):
    """Keeps the images that it passes on."""

    images: list[ImageMessage]

    def receive(self, timeout_s: float) -> Received | None:
        received = super().receive(timeout_s)
        if received is not None and isinstance(received.message, ImageMessage):
            self.images.append(received.message)
        return received


@dataclass
class Simulator:
    """The simulator's addresses and its hands on it."""

    rest: str
    streams: dict[str, str]

    def put(self, path: str, value: Any = None) -> None:
        body = b"{}" if value is None else json.dumps({"value": value}).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.rest}/{path}", body, headers, method="PUT")
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.rest}/detector/api/1.8.0/status/state", timeout=2).close()
        except (urllib.error.URLError, OSError):
            return False
        return True


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    if not (VENV / "bin" / "tickit").exists():
        if required("tickit"):
            pytest.fail("tickit is required (CXLS_TEST_REQUIRE); `make peers` builds .venv-tickit")
        pytest.skip("tickit-devices is not installed: `make peers` builds .venv-tickit")
    rest, legacy, cbor = free_ports(3)
    folder = tmp_path_factory.mktemp("tickit")
    (folder / "eiger.yaml").write_text(
        f"- type: tickit_devices.eiger.Eiger\n  name: eiger\n  inputs: {{}}\n  host: 127.0.0.1\n  port: {rest}\n"
        f"  stream_host: 127.0.0.1\n  stream_legacy_port: {legacy}\n  stream_cbor_port: {cbor}\n"
    )
    launcher = Path(__file__).parent / "tickit_launcher.py"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [VENV / "bin" / "python", launcher, folder / "eiger.yaml"], stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
        try:
            found = Simulator(
                f"http://127.0.0.1:{rest}", {"v1": f"tcp://127.0.0.1:{legacy}", "v2": f"tcp://127.0.0.1:{cbor}"}
            )
            wait_for(lambda: found.answers() or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield found
        finally:
            process.kill()
            process.wait()


def expected(stream: str) -> np.ndarray[Any, Any]:
    """The simulator's one image in each protocol, decoded by bitshuffle itself."""
    (data,) = VENV.glob("lib/*/site-packages/tickit_devices/eiger/data")
    if stream == "v1":
        packed = (data / "frame_sample").read_bytes()
    else:
        message = cbor2.loads((data / "stream2" / "image.cbor").read_bytes())
        (array,) = getattr(message, "value", message)["data"].values()
        _, typed = array.value
        _, _, packed = typed.value.value
    blob = np.frombuffer(packed, np.uint8)
    block = int.from_bytes(blob[8:12].tobytes(), "big") // 2
    pixels: np.ndarray[Any, Any] = bitshuffle.decompress_lz4(blob[12:].copy(), SHAPE, np.dtype("u2"), block)
    return pixels


@pytest.mark.parametrize("stream", ["v1", "v2"])
def test_the_frames_of_the_simulator_arrive_equal_and_are_analysed(
    simulator: Simulator, bundle_folder: Path, stream: str
) -> None:
    receiver = RecordingReceiver([simulator.streams[stream]])
    receiver.images = []
    kept, stop = Collector(), threading.Event()
    analyser = Analyser(load_bundle(bundle_folder), CascadeSettings())
    front = Front(receiver, [analyser], [kept], FrontSettings(block=True, series=1, batch_frames=1))
    runner = threading.Thread(target=front.run, args=(stop,), daemon=True)
    runner.start()
    wait_for(lambda: receiver.connected)

    simulator.put("stream/api/1.8.0/config/format", "cbor" if stream == "v2" else "legacy")
    simulator.put("detector/api/1.8.0/command/initialize")
    simulator.put("detector/api/1.8.0/config/trigger_mode", "ints")
    simulator.put("detector/api/1.8.0/config/nimages", IMAGES)
    simulator.put("detector/api/1.8.0/command/arm")
    # What the simulator holds when it wakes goes out as one message: the header has to leave before the first image.
    time.sleep(0.5)
    simulator.put("detector/api/1.8.0/command/trigger")
    try:
        runner.join(60)
        assert not runner.is_alive(), front.account.identity()
    finally:
        stop.set()
        runner.join()
        receiver.close()

    assert_account_closes(front.account)
    assert front.account.missing == {"head": 0, "gap": 0, "tail": 0}
    assert [(r.image_id, r.status) for r in kept.results] == [(n, Status.OK) for n in range(IMAGES)]
    assert len({(r.background_photons, r.peak_count, r.hit_probability) for r in kept.results}) == 1
    sent = expected(stream)
    for message in receiver.images:
        (image,) = message.channels.values()
        assert isinstance(image, ImageData)
        assert image.shape == SHAPE
        pixels = np.empty(SHAPE, "u2")
        decode(image, pixels)
        np.testing.assert_array_equal(pixels, sent)
