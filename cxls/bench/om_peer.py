"""OM's peakfinder8 as a peer: a child under its own interpreter, with files in between."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from analyzer.geometry import series_geometry
from cxls.bench.children import peer_python
from cxls.bench.inputs import decoded, image_data
from cxls.bench.timing import take_turns
from streamer.frames import Frame
from streamer.validity import series_validity

ADC, SNR, MIN_PIXELS = 3.0, 5.0, 1
"""The parameters that served OM best on frames of a compact source (reference measurements)."""

NOT_THERE = "not measured: run `make peers`"
Mode = Literal["full", "fast"]
"""fast: the background of each radius from a hundred of its pixels."""

MODES: tuple[Mode, ...] = ("full", "fast")
_TIMEOUT_S = 600.0
_SCRIPT = Path(__file__).with_name("om_peakfinder8.py")


@dataclass(frozen=True, slots=True)
class OmPeaks:
    """Peaks of one frame, (n, 2) fs and ss as pixel indices, and the CPU they took."""

    positions: npt.NDArray[np.float64]
    cpu_ms: float


def available() -> bool:
    return peer_python(".venv-om") is not None


def lay_out(
    folder: Path, frames: Sequence[Frame], adc: float = ADC, snr: float = SNR, min_pixels: int = MIN_PIXELS
) -> None:
    """Write the decoded frames and what OM has to know of them."""
    folder.mkdir(exist_ok=True)
    first, image = frames[0], image_data(frames[0])
    geometry = series_geometry(first.series.metadata, image.shape)
    np.save(folder / "frames.npy", np.stack([decoded(frame) for frame in frames]))
    np.save(folder / "valid.npy", series_validity(first.series.metadata, image.shape, first.channel, None).valid)
    task = {
        "beam_center_fs": geometry.beam_center_fs,
        "beam_center_ss": geometry.beam_center_ss,
        "adc": adc,
        "snr": snr,
        "min_pixels": min_pixels,
    }
    (folder / "task.json").write_text(json.dumps(task))


class Om:
    """A running OM, in which the finders of earlier calls are kept. A context manager."""

    def __init__(self) -> None:
        python = peer_python(".venv-om")
        if python is None:
            raise RuntimeError(NOT_THERE)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [str(python), "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def find_peaks(self, folder: Path, mode: Mode = "full") -> list[OmPeaks]:
        """Run OM on what ``lay_out`` wrote. Raises ``RuntimeError`` with its last line when it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{mode} {folder}\n")
            self._process.stdin.flush()
        # A hung OM would hang us: it is ended, and its silence reported.
        watch = threading.Timer(_TIMEOUT_S, self._process.kill)
        watch.start()
        try:
            answer = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"OM failed: {(self._errors.read().strip().splitlines() or ['?'])[-1]}")
        return [
            OmPeaks(np.array([each["fs"], each["ss"]], np.float64).T.reshape(-1, 2), each["cpu_ms"])
            for each in json.loads(answer)
        ]


def find_peaks(folder: Path) -> list[OmPeaks]:
    """Run OM, full mode, once on what ``lay_out`` wrote. Raises ``RuntimeError`` with its last line when it fails."""
    with Om() as running:
        return running.find_peaks(folder)


def cpu_ms(peer: Om, folder: Path, mode: Mode) -> float:
    """CPU milliseconds a frame of one run."""
    return float(np.mean([each.cpu_ms for each in peer.find_peaks(folder, mode)]))


def take_turns_with(
    peer: Om | None, exchange: Path, frames: Sequence[Frame], measure: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """``timing.take_turns`` with OM, where there is one, on these frames, in each of its modes."""
    turns = dict(measure)
    if peer is not None:
        lay_out(exchange, frames)
        for mode in MODES:
            turns[f"OM {mode}"] = partial(cpu_ms, peer, exchange, mode)
    times = take_turns(turns, rounds)
    shutil.rmtree(exchange, ignore_errors=True)
    return times
