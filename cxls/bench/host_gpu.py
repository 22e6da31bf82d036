"""What the host's processors take of a frame on the device's path, all threads together, and the rate in the same run.

Whatever the device does, staging, the fit and the records are made here, in part under the interpreter's lock.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from analyzer.cascade import MOST_FRAMES, Analyser
from cxls.bench.report import Figure, over_rounds
from cxls.bench.roofs_gpu import NOT_MEASURED
from cxls.bench.timing import together_s
from cxls.bench.worker import make_worker
from cxls.commands.analyze import DEVICE_WORKERS
from streamer.frames import Frame

ROUNDS = 3
BATCHES = 40
"""Of each worker in a round."""

_CPU = "GPU: host's CPU, all threads", "ms CPU a frame"
_RATE = f"GPU: {DEVICE_WORKERS} workers in process", "frames/s"


def measure(frames: Sequence[Frame], bundle: Path) -> list[Figure]:
    """As many workers as the program has on a device, each with full batches; without a GPU rows that say so."""
    if not torch.cuda.is_available():
        return [Figure(*row, None, note=NOT_MEASURED) for row in (_CPU, _RATE)]
    workers = [make_worker(bundle, "cuda") for _ in range(DEVICE_WORKERS)]
    found = host_cpu(workers, frames, BATCHES, ROUNDS)
    if lost := [worker.fault for worker in workers if worker.fault is not None]:
        raise RuntimeError(f"the device failed: {lost[0]}")
    return found


def host_cpu(workers: Sequence[Analyser], frames: Sequence[Frame], batches: int, rounds: int) -> list[Figure]:
    """CPU milliseconds a frame of the whole process, and frames a second, of all workers together."""
    batch = [frames[number % len(frames)] for number in range(MOST_FRAMES)]
    works = [partial(_judge, worker, batch) for worker in workers]
    together_s(works, 1)
    count = len(works) * batches * len(batch)
    cpu, rates = [], []
    for _ in range(rounds):
        began = time.process_time()
        seconds = together_s(works, batches)
        cpu.append(1e3 * (time.process_time() - began) / count)
        rates.append(count / seconds)
    return [
        over_rounds(*_CPU, cpu, f"{len(works)} workers, batches of {len(batch)}"),
        Figure(*_RATE, max(rates), sorted(rates)[len(rates) // 2], "best, not least"),
    ]


def _judge(worker: Analyser, batch: Sequence[Frame], number: int) -> object:
    return worker.process(batch)
