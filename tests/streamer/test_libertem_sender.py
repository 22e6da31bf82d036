"""LiberTEM's detector simulator, written by others, as the sender."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.account import Account
from streamer.decoding import decode
from streamer.messages import Algorithm, ImageData, InvalidMessage
from streamer.receiver import StreamReceiver
from streamer.series import ImageAccepted, SeriesClosed, SeriesTracker
from tests.support import pack, poisson, require

IMAGES, SHAPE, SERIES = 6, (64, 96), 34
ENCODINGS = {
    "bs8-lz4<": ("u1", Algorithm.BSLZ4),
    "bs16-lz4<": ("u2", Algorithm.BSLZ4),
    "bs32-lz4<": ("u4", Algorithm.BSLZ4),
    "lz4<": ("u2", Algorithm.LZ4_BLOCK),
}

# In a process of its own: it has threads that only the end of the process ends.
SENDER = """
import os, sys, time
import libertem_dectris
sim = libertem_dectris.DectrisSim("tcp://127.0.0.1", sys.argv[1], 2000, True)
print(sim.get_uri(), flush=True)
sys.stdin.readline()
sim.send_headers()
sim.send_frames()
sim.send_footer()
sys.stdin.readline()
os._exit(0)
"""


def write_dump(path: Path, pixels: Any, encoding: str) -> None:
    """The simulator's input: every part behind its length."""
    rows, columns = pixels.shape[1:]
    config = {
        "ntrigger": 1, "nimages": len(pixels), "trigger_mode": "ints", "x_pixels_in_detector": columns,
        "y_pixels_in_detector": rows, "bit_depth_image": 8 * pixels.dtype.itemsize, "photon_energy": 7000.0,
    }  # fmt: skip
    parts = [{"htype": "dheader-1.0", "series": SERIES, "header_detail": "basic"}, config]
    encoded = [json.dumps(part).encode() for part in parts]
    for n, image in enumerate(pixels):
        data = pack(image, ENCODINGS[encoding][1])
        layout = {
            "htype": "dimage_d-1.0", "shape": [columns, rows], "type": image.dtype.name, "encoding": encoding,
            "size": len(data),
        }  # fmt: skip
        times = {"htype": "dconfig-1.0", "start_time": n * 10**6, "stop_time": n * 10**6 + 5, "real_time": 5}
        head = {"htype": "dimage-1.0", "series": SERIES, "frame": n, "hash": "0" * 32}
        encoded += [json.dumps(head).encode(), json.dumps(layout).encode(), data, json.dumps(times).encode()]
    encoded.append(json.dumps({"htype": "dseries_end-1.0", "series": SERIES}).encode())
    path.write_bytes(b"".join(struct.pack("<q", len(part)) + part for part in encoded))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_libertems_simulator_sends_is_received_whole(tmp_path: Path, encoding: str) -> None:
    require("libertem_dectris", "libertem-dectris")
    pixels = poisson(IMAGES, SHAPE, ENCODINGS[encoding][0], mean=2.0)
    dump = tmp_path / "series.dump"
    write_dump(dump, pixels, encoding)
    account = Account()
    tracker = SeriesTracker(account)
    received: dict[int, Any] = {}
    closed: list[SeriesClosed] = []
    with subprocess.Popen(
        [sys.executable, "-c", SENDER, str(dump)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        try:
            receiver = StreamReceiver([sender.stdout.readline().strip()], protocol="v1")
            try:
                deadline = time.monotonic() + 60
                while not receiver.connected and time.monotonic() < deadline:
                    receiver.receive(0.02)
                sender.stdin.write("go\n")
                sender.stdin.flush()
                while not closed and time.monotonic() < deadline:
                    got = receiver.receive(0.1)
                    if got is None:
                        continue
                    assert not isinstance(got.message, InvalidMessage), got.message
                    for event in tracker.handle(got.message, time.monotonic()):
                        if isinstance(event, ImageAccepted):
                            image = event.image.channels["threshold_1"]
                            assert isinstance(image, ImageData)
                            received[event.image.image_id] = np.empty(image.shape, image.dtype)
                            decode(image, received[event.image.image_id])
                        elif isinstance(event, SeriesClosed):
                            closed.append(event)
            finally:
                receiver.close()
        finally:
            sender.kill()
    assert np.array_equal(np.array([received[n] for n in range(IMAGES)]), pixels)
    (series,) = closed
    assert (series.why, series.announced, series.accepted) == ("end message", IMAGES, IMAGES)
    assert series.series.metadata.photon_energy_eV == 7000.0
    assert account.received == IMAGES
