"""Simulate a series: frame after frame into a file, by as many processes as there are, the same frames by any number.

A frame depends on the scene, the seed and its number alone. Workers simulate and compress; the writer stores their
chunks in order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim_replay.artefacts import fixed_pixels
from sim_replay.crystal import reciprocal_basis
from sim_replay.crystfel import Pattern
from sim_replay.scene import Scene
from sim_replay.series_file import IMAGES_PER_FILE, SeriesWriter, packed
from sim_replay.shots import Buffers, Shot, frame_rng, simulate_shot
from sim_replay.truth import ShotTruth

MOST_FRAMES = 10**9
"""Of a series: eleven days at a kilohertz."""

_FRAMES_WORTH_A_PROCESS = 200
"""Below this a process spends longer on starting than it saves."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which frames to simulate; shard (i, n) is the i-th of n contiguous parts of the whole.

    workers: processes; 0 takes one a core where the series is long enough. Raises ValueError naming the setting.
    """

    frames: int = 100
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    workers: int = 0
    images_per_file: int = IMAGES_PER_FILE
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= MOST_FRAMES:
            raise ValueError(f"frames is {self.frames}; give 1 to {MOST_FRAMES:g}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; give an integer from 0 to 2^63 - 1")
        if self.images_per_file < 1:
            raise ValueError(f"images_per_file is {self.images_per_file}; give 1 or more")
        if not 0 <= self.workers <= 256:
            raise ValueError(f"workers is {self.workers}; give 1 to 256 processes, or 0 for one a core")
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"shard is {index}/{count}; give i/n with i from 0 to n - 1")
        if not self.frame_range:
            raise ValueError(f"shard {index}/{count} of {self.frames} frames is empty; give fewer shards")

    @property
    def frame_range(self) -> range:
        """The frames of the whole series that this shard writes."""
        index, count = self.shard
        return range(index * self.frames // count, (index + 1) * self.frames // count)

    @property
    def processes(self) -> int:
        """How many processes simulate; 1 is this one."""
        if self.workers:
            return min(self.workers, len(self.frame_range))
        return max(1, min(len(os.sched_getaffinity(0)), len(self.frame_range) // _FRAMES_WORTH_A_PROCESS))


class FrameMaker:
    """Simulates frames of one scene and seed, one at a time, in the same memory."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene, self.seed = scene, seed
        self.fixed = fixed_pixels(scene.artefacts, scene.detector.mask, seed)
        self._buffers = Buffers(scene.detector)
        self._image = np.zeros(scene.detector.shape, dtype=scene.detector.dtype)

    def frame(self, frame_index: int, pattern: Pattern | None = None) -> Shot:
        """Frame `frame_index`, of a pattern if given; its image is a view that the next call overwrites."""
        rng = frame_rng(self.seed, frame_index)
        return simulate_shot(self.scene, rng, pattern=pattern, fixed=self.fixed, buffers=self._buffers, out=self._image)

    def packed_frame(self, frame_index: int) -> tuple[bytes, ShotTruth]:
        """Frame `frame_index` as a compressed chunk, with its truth."""
        shot = self.frame(frame_index)
        return packed(shot.counts), shot.truth

    def writer(self, prefix: str | os.PathLike[str], images_per_file: int, overwrite: bool) -> SeriesWriter:
        """What writes the frames as a series, with the truth of the scene."""
        scene = self.scene
        frame_time_s = 1e-3 * scene.response.pulses
        return SeriesWriter(
            prefix,
            scene.detector,
            scene.condition,
            seed=self.seed,
            overwrite=overwrite,
            images_per_file=images_per_file,
            frame_time_s=frame_time_s,
            count_time_s=frame_time_s,
            threshold=scene.response.threshold,
            dead=self.fixed.dead,
            truth_constants=describe(scene),
        )


def simulate_series(
    prefix: str | os.PathLike[str], scene: Scene, plan: Plan, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Simulate a series, or a shard of one, into PREFIX_master.h5 and its data files; returns the master's path.

    progress, if given, is called with (frames done, frames to do) after each frame. Raises FileExistsError when
    outputs exist and overwriting is not allowed, OSError when writing fails; neither leaves a file behind.
    """
    maker = FrameMaker(scene, plan.seed)
    writer = maker.writer(prefix, plan.images_per_file, plan.overwrite)
    frames = plan.frame_range
    with writer, contextlib.closing(_frames(maker, frames, plan.processes)) as made:
        for done, (frame_index, (chunk, truth)) in enumerate(zip(frames, made, strict=True), start=1):
            writer.append(chunk, truth, frame_index)
            if progress is not None:
                progress(done, len(frames))
    return writer.master_path


def _frames(maker: FrameMaker, frames: range, processes: int) -> Generator[tuple[bytes, ShotTruth], None, None]:
    if processes == 1:
        yield from map(maker.packed_frame, frames)
        return
    # Spawned, because a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start_worker, (maker.scene, maker.seed)
    )
    waiting: deque[Future[tuple[bytes, ShotTruth]]] = deque()
    try:
        for frame_index in frames:
            with _signals_held():
                waiting.append(pool.submit(_work, frame_index))
            if len(waiting) > 4 * processes:  # bounds the memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ChildProcessError("a process that simulates died, probably for lack of memory; use fewer") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back what ends a program; a process started meanwhile never hears it.

    Ctrl-C and a scheduler's SIGTERM reach every process of a group. A worker that died of one while it starts would
    leave us writing to nobody; the first process ends the others when it has heard it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_maker: FrameMaker | None = None


def _start_worker(scene: Scene, seed: int) -> None:
    global _maker
    _maker = FrameMaker(scene, seed)


def _work(frame_index: int) -> tuple[bytes, ShotTruth]:
    assert _maker is not None
    return _maker.packed_frame(frame_index)


def describe(scene: Scene) -> dict[str, Any]:
    """What the truth says of a scene: the crystal, and all settings as JSON."""
    crystal = scene.sample.crystal
    basis = reciprocal_basis(crystal.cell)
    plain = dataclasses.replace(scene, sample=dataclasses.replace(scene.sample, crystal=None))  # type: ignore[arg-type]
    return {
        "crystal_name": crystal.name,
        "cell": np.array(crystal.cell),
        "d_min_angstrom": 1.0 / math.sqrt(float(np.max(np.sum((crystal.hkl @ basis.T) ** 2, axis=1)))),
        "crystal_size_m": scene.sample.size_m,
        "mosaicity_deg": scene.sample.mosaicity_deg,
        "spectrum_full_width": scene.condition.beam.spectrum.width,
        "pulses_per_frame": scene.response.pulses,
        "response": scene.response.kind,
        "scene": json.dumps(dataclasses.asdict(plain)),
    }
