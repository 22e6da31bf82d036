"""LiberTEM's receiver, written by others against real detectors, takes our stream v1.

It is strict: an image that is missing, out of order or not as announced ends it.
"""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hdf5plugin
import numpy as np
import pytest

from sim_replay.replay import ReplaySettings, run_replay
from tests.support import poisson, require, write_data_file

IMAGES, SHAPE = 6, (64, 96)

# In a process of its own: it has threads that only the end of the process ends.
RECEIVER = """
import os, sys, tempfile, time
import libertem_dectris, numpy as np
uri, images, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
handle = os.path.join(tempfile.mkdtemp(dir=os.path.dirname(out)), "h")
connection = libertem_dectris.DectrisConnection(
    uri, 2, handle, bytes_per_frame=1 << 16, num_slots=50, huge=False
)
client = libertem_dectris.CamClient(connection.get_socket_path())
connection.start_passive()
assert connection.wait_for_arm(20) is not None, "no header came"
frames, deadline = [], time.monotonic() + 20
while len(frames) < images and time.monotonic() < deadline:
    stack = connection.get_next_stack(max_size=4)
    if stack is None:
        continue
    buffer = np.zeros((len(stack), *reversed(stack.get_shape())), stack.get_dtype_string())
    client.decode_range_into_buffer(stack, buffer, 0, len(stack))
    client.done(stack)
    frames += list(buffer)
np.save(out, np.array(frames))
os._exit(0)
"""


@pytest.mark.parametrize(
    ("dtype", "filters", "first_id"),
    [
        ("u1", hdf5plugin.Bitshuffle(), 1),
        ("u2", hdf5plugin.Bitshuffle(), 1),
        ("u4", hdf5plugin.Bitshuffle(), 4711),
        # One block an image: the only LZ4 of the file writer that stream v1 can carry.
        ("u2", hdf5plugin.LZ4(nbytes=2 * SHAPE[0] * SHAPE[1]), 1),
    ],
    ids=["bs8-lz4", "bs16-lz4", "bs32-lz4", "lz4"],
)
def test_libertem_receives_what_lies_in_the_file(
    tmp_path: Path, dtype: str, filters: Mapping[str, Any], first_id: int
) -> None:
    require("libertem_dectris", "libertem-dectris")
    pixels = poisson(IMAGES, SHAPE, dtype)
    file = write_data_file(tmp_path / "run_data_000001.h5", pixels, filters)
    # A Unix socket's path has to be short, and pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="lt") as folder:
        out = Path(folder) / "frames.npy"
        receivers: list[subprocess.Popen[bytes]] = []

        def announce(_: str, endpoint: str) -> None:
            command = [sys.executable, "-c", RECEIVER, endpoint, str(IMAGES), str(out)]
            receivers.append(subprocess.Popen(command, stderr=subprocess.PIPE))

        stop = threading.Event()
        limit = threading.Timer(20, stop.set)
        limit.start()
        settings = ReplaySettings(
            (str(file),), bind="tcp://127.0.0.1:0", protocol="v1", rate_hz=200.0, first_series_id=first_id
        )
        try:
            report = run_replay(settings, stop, announce)
            _, problem = receivers[0].communicate(timeout=30)
        finally:
            limit.cancel()
            for receiver in receivers:
                receiver.kill()
        assert report.sent == IMAGES
        assert out.exists(), problem.decode(errors="replace")
        assert np.array_equal(np.load(out), pixels)
