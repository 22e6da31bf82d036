"""Worker processes of the tests, whose decoder ends them with a segmentation fault on images packed with LZ4 in blocks.

fatal_child.py ADDRESS WORKERS: keeps so many, started again when they die, until the front's run is over; prints how
each that died ended.
"""

import ctypes
import os
import sys
import threading

from analyzer.crew.worker import Worker
from analyzer.reduction import Workspace
from streamer.messages import Algorithm, ImageData
from tests.analyzer.crew.made import BATCH, make

_load = Workspace.load


def load(self: Workspace, image: ImageData) -> None:
    """Unpack, or read from where there is no memory, as a native decoder with a fault would."""
    if image.algorithm == Algorithm.LZ4_HDF5:
        ctypes.string_at(0)
    _load(self, image)


def fork(address: str) -> int:
    """A worker in a process of its own, whose imports are made already."""
    if child := os.fork():
        return child
    Worker(address, make, name=f"fatal-{os.getpid()}", batch_frames=BATCH, once=True).run(threading.Event())
    os._exit(0)


if __name__ == "__main__":
    Workspace.load = load  # type: ignore[method-assign]
    for _ in range(int(sys.argv[2])):
        fork(sys.argv[1])
    while True:
        try:
            _, status = os.wait()
        except ChildProcessError:
            break
        if status:
            print(os.waitstatus_to_exitcode(status), flush=True)
            fork(sys.argv[1])
