"""Warm-up: everything compiled, loaded and allocated before the first real frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from analyzer.bundle import BadBundle, Bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.judge import Judge
from analyzer.results import FrameResult, Status
from analyzer.worker_thread import WorkerThread, all_do
from streamer.errors import first_line
from streamer.frames import Frame
from streamer.messages import Algorithm, ImageData, SeriesMetadata
from streamer.series import Series

_SHAPE = (512, 1028)
_EVERY = 8
"""One photon in so many rows and columns: more than a shot without beam, so that the networks are heard."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameKind:
    """What frames of a series have in common; ``dtype`` in this machine's byte order."""

    metadata: SeriesMetadata
    channel: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]


def check_bundle(bundle: Bundle) -> None:
    """Refuse, before any work, a bundle that ``warm_up`` refuses. Raises ``BadBundle``."""
    judge = Judge(bundle, CascadeSettings())
    warm_up(Analyser(bundle, judge.settings), judge)


def warm_threads(analysers: Sequence[Analyser], judge: Judge) -> list[WorkerThread]:
    """Threads for analysers on a device to judge in, in which each of them is warm; none where none is on a device.

    What torch opens of a device's libraries is a thread's own, and what an analyser holds of the device its own. Raises
    as ``warm_up``.
    """
    if not any(analyser.on_device for analyser in analysers):
        return []
    threads = [WorkerThread(f"worker-{number}") for number in range(len(analysers))]
    for thread in threads:
        thread.start()
    try:
        all_do(threads, [partial(warm_up, analyser, judge) for analyser in analysers])
    except BadBundle:
        for thread in threads:
            thread.end()
        raise
    return threads


def warm_up(analyser: Analyser, judge: Judge, kind: FrameKind | None = None) -> None:
    """Judge a made-up frame of ``kind``, else a module of each pixel type, so that no first frame pays for it.

    Raises ``BadBundle`` where the networks of the bundle fail on them or answer with no number: the card may
    name a network that is not for this place, and the weights of a training that diverged load as any others.
    """
    for each in [kind] if kind else _any_kind(judge):
        series = Series(0, 0, None, each.metadata)
        try:
            (result,) = analyser.process([_frame(series, each)]).results
        except Exception as error:
            raise BadBundle(f"{judge.bundle.label}: its networks fail on a frame: {first_line(error)}") from error
        finally:
            analyser.forget(series)
            if kind is None:
                # Buffers for frames that are none of the run's; what is compiled, loaded and opened stays.
                analyser.release()
        if not _says_something(result):
            raise BadBundle(
                f"{judge.bundle.label}: its networks answer a frame with no number; its weights are damaged"
            )


def _any_kind(judge: Judge) -> list[FrameKind]:
    mask = judge.cascade.mask
    shape = _SHAPE if mask is None else (mask.valid.shape[0], mask.valid.shape[1])
    return [FrameKind(SeriesMetadata(shape=shape), "threshold_1", shape, np.dtype(name)) for name in ("u1", "u2", "u4")]


def _frame(series: Series, kind: FrameKind) -> Frame:
    pixels = np.zeros(kind.shape, kind.dtype)
    pixels[::_EVERY, ::_EVERY] = 1
    image = ImageData(pixels.tobytes(), kind.shape, kind.dtype, Algorithm.RAW, kind.dtype.itemsize)
    return Frame(series, 0, kind.channel, image, None, None, 0.0)


def _says_something(result: FrameResult) -> bool:
    if result.status != Status.OK:
        return True  # a mask of another shape: nothing was asked of the networks
    said = (result.hit_probability, result.camera_length_over_energy_m_per_eV)
    return all(value is None or math.isfinite(value) for value in said)
