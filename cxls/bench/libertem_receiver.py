"""LiberTEM's receiver of stream v1 as a peer, in a process of its own: its threads end with it.

Run as ``python -m cxls.bench.libertem_receiver ADDRESS SECONDS BYTES``; it prints frames and CPU seconds as JSON.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import libertem_dectris

_SLOTS, _STACK = 2000, 16
_WARM = 200
"""Frames before the clock starts."""


def main() -> None:
    address, seconds, size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder:
        connection = libertem_dectris.DectrisConnection(
            address, _STACK, str(Path(folder) / "handle"), bytes_per_frame=size + 4096, num_slots=_SLOTS, huge=False
        )
        client = libertem_dectris.CamClient(connection.get_socket_path())
        connection.start_passive()
        if connection.wait_for_arm(30) is None:
            raise SystemExit("no header came")
        frames, began, cpu = -_WARM, time.monotonic(), time.process_time()
        while frames < 0 or time.monotonic() - began < seconds:
            stack = connection.get_next_stack(max_size=_STACK)
            if stack is None:
                continue
            before = frames
            frames += len(stack)
            client.done(stack)
            if before < 0 <= frames:
                frames, began, cpu = 0, time.monotonic(), time.process_time()
        took = time.monotonic() - began
        print(json.dumps({"frames": frames, "seconds": took, "cpu_seconds": time.process_time() - cpu}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
