"""What the tests build on: packed images, frames, files, scripted sources and bundles of random weights."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bitshuffle
import h5py
import hdf5plugin
import numpy as np
import pytest
import torch

from analyzer.bundle import BundleCard, HitCard, ParametersCard, save_card, save_weights
from analyzer.cascade import Analyser
from analyzer.geometry import Geometry
from analyzer.networks import HitNetwork, ParameterNetwork
from analyzer.reduction import FramePlan, Workspace, make_plan
from analyzer.results import Decision
from streamer.account import Account
from streamer.frames import Frame
from streamer.messages import (
    Algorithm,
    Defect,
    EndMessage,
    ImageData,
    ImageMessage,
    InvalidMessage,
    Message,
    SeriesMetadata,
    StartMessage,
)
from streamer.receiver import Received
from streamer.series import Series
from streamer.validity import Validity, sentinel

CHANNEL = "threshold_1"
SHAPE = (61, 75)
"""An odd number of pixels, no multiple of the scan's words nor of the map's cells."""

CENTER = (37.5, 30.5)
SPOT = ((20, 30), (41, 52), (9, 11), (50, 15), (33, 60), (14, 47), (52, 66), (27, 8))
"""(ss, fs) of bright spots, far from each other and from the edges."""


# --- bundles ----------------------------------------------------------------------------


def write_bundle(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A bundle of random weights; ``changes`` replace fields of the hit card or of the card itself."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    hit_digest = save_weights(HitNetwork(), folder / "hit.safetensors")
    parameters_digest = save_weights(ParameterNetwork(), folder / "parameters.safetensors")
    scale = changes.pop("sigma_scale", (1.0, 1.0, 1.0))
    hit = {name: changes.pop(name) for name in ("threshold", "temperature", "bias", "prior") if name in changes}
    card = BundleCard(
        format=1,
        name="random",
        description="random weights, for tests",
        hit=HitCard(network="hit-zones-and-cells", weights="hit.safetensors", sha256=hit_digest, **hit),
        parameters=ParametersCard(
            network="parameters-radial-profile",
            weights="parameters.safetensors",
            sha256=parameters_digest,
            sigma_scale=scale,
        ),
        **changes,
    )
    save_card(card, folder)
    return folder


# --- images and frames ------------------------------------------------------------------


def water(mean: float, shape: tuple[int, int] = SHAPE, seed: int = 0, dtype: str = "u2") -> np.ndarray[Any, Any]:
    """A frame of background alone."""
    return np.random.default_rng(seed).poisson(mean, shape).astype(dtype)


def with_spots(pixels: np.ndarray[Any, Any], photons: int = 60, spots: int = len(SPOT)) -> np.ndarray[Any, Any]:
    """The frame with bright 2 x 2 spots added."""
    lit = pixels.copy()
    for ss, fs in SPOT[:spots]:
        lit[ss : ss + 2, fs : fs + 2] += np.array(photons // 4, lit.dtype)
    return lit


def packed(pixels: np.ndarray[Any, Any]) -> bytes:
    """Bitshuffle-LZ4 with its 12-byte header, as detectors send it."""
    head = pixels.nbytes.to_bytes(8, "big") + (8192).to_bytes(4, "big")
    return head + bitshuffle.compress_lz4(np.ascontiguousarray(pixels), 8192 // pixels.itemsize).tobytes()


def image_data(pixels: np.ndarray[Any, Any], algorithm: Algorithm = Algorithm.BSLZ4) -> ImageData:
    data = packed(pixels) if algorithm == Algorithm.BSLZ4 else pixels.tobytes()
    rows, columns = pixels.shape
    return ImageData(data, (rows, columns), pixels.dtype, algorithm, pixels.itemsize)


BROKEN = ImageData(b"\x01" * 40, SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 2)
"""Bytes that are no bitshuffle-LZ4."""


def metadata(images: int | None = None, shape: tuple[int, int] = SHAPE, **changes: Any) -> SeriesMetadata:
    facts: dict[str, Any] = {
        "number_of_images": images,
        "shape": shape,
        "dtype": np.dtype("u2"),
        "channels": (CHANNEL,),
        "beam_center_x_px": CENTER[0],
        "beam_center_y_px": CENTER[1],
        "camera_length_m": 0.15,
        "photon_energy_eV": 7000.0,
        "pixel_size_x_m": 75e-6,
        "pixel_size_y_m": 75e-6,
    }
    return SeriesMetadata(**(facts | changes))


def series(ordinal: int = 1, series_id: int = 1, **changes: Any) -> Series:
    return Series(ordinal, series_id, None, metadata(**changes))


def frame(
    pixels: np.ndarray[Any, Any] | ImageData | Defect,
    image_id: int = 0,
    of: Series | None = None,
    user_data: Any = None,
) -> Frame:
    image = image_data(pixels) if isinstance(pixels, np.ndarray) else pixels
    return Frame(of or series(), image_id, CHANNEL, image, 0.0, 0.001, 1e9, user_data)


# --- reductions -------------------------------------------------------------------------


def plan(
    shape: tuple[int, int] = SHAPE,
    dtype: str = "u2",
    valid: np.ndarray[Any, Any] | None = None,
    saturation: int | None = None,
    center: tuple[float, float] | None = None,
) -> FramePlan:
    fs, ss = center or (shape[1] / 2 - 0.5, shape[0] / 2 - 0.5)
    validity = Validity("test", np.ones(shape, np.uint8) if valid is None else valid)
    top = sentinel(np.dtype(dtype))
    return make_plan(
        Geometry(shape, fs, ss, 75e-6, 0.15, 7000.0), validity, top - 1 if saturation is None else saturation
    )


def workspace(pixels: np.ndarray[Any, Any], **changes: Any) -> Workspace:
    """A workspace that holds the frame, ready to reduce."""
    rows, columns = pixels.shape
    made = Workspace(plan((rows, columns), pixels.dtype.str[1:], **changes), pixels.dtype)
    made.pixels[:] = pixels
    return made


# --- messages and sources ---------------------------------------------------------------


def start(series_id: int = 1, images: int | None = None, unique_id: str | None = None, **changes: Any) -> StartMessage:
    return StartMessage(series_id, metadata(images, **changes), unique_id)


def image(
    image_id: int,
    series_id: int = 1,
    pixels: np.ndarray[Any, Any] | ImageData | Defect | None = None,
    user_data: Any = None,
) -> ImageMessage:
    content = water(0.05, seed=image_id % 1000) if pixels is None else pixels
    if isinstance(content, np.ndarray):
        content = image_data(content)
    return ImageMessage(
        series_id,
        image_id,
        {CHANNEL: content},
        start_time_s=0.001 * (image_id % 10**6),
        exposure_s=0.001,
        user_data=user_data,
    )


def end(series_id: int = 1) -> EndMessage:
    return EndMessage(series_id)


def whole_series(images: int, series_id: int = 1, announced: int | None = None) -> list[Message]:
    """Start, images, end."""
    return [
        start(series_id, images if announced is None else announced),
        *(image(n, series_id) for n in range(images)),
        end(series_id),
    ]


Step = Message | InvalidMessage | Callable[[], None] | float


def fourth_decision_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours in the fourth frame that is judged from here on, and in no other."""
    decide, asked = Analyser._decision, itertools.count()

    def fail_once(self: Analyser, fields: dict[str, Any], probability: float) -> Decision:
        if next(asked) == 3:
            raise ZeroDivisionError("a fault of ours")
        return decide(self, fields, probability)

    monkeypatch.setattr(Analyser, "_decision", fail_once)


class ScriptedSource:
    """A source that says what the script says: messages; a number is seconds of silence, a function is called."""

    connected = True

    def __init__(self, script: Sequence[Step], live: bool = False) -> None:
        self._script = deque(script)
        self._live = live
        self.closed = threading.Event()

    @property
    def exhausted(self) -> bool:
        return not self._script and not self._live

    def receive(self, timeout_s: float) -> Received | None:
        if not self._script:
            if self._live:
                time.sleep(min(timeout_s, 0.01))
            return None
        step = self._script.popleft()
        if isinstance(step, float):
            time.sleep(step)
            return None
        if callable(step):
            step()
            return None
        return Received(step, time.time(), 100)

    def close(self) -> None:
        self.closed.set()


class Collector:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.lost = 0
        self.results: list[Any] = []

    def write(self, results: Sequence[Any]) -> None:
        self.results += results

    def close(self) -> None:
        pass

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(result.series_id, result.image_id) for result in self.results]


def assert_account_closes(account: Account, over: bool = True) -> None:
    """The identities of the contract; ``over``: every series was announced and is over."""
    assert account.in_flight == 0, account.identity()
    assert account.received == account.settled, account.identity()
    if over:
        assert account.announced == account.accepted + sum(account.missing.values()), (account, account.identity())


# --- files ------------------------------------------------------------------------------


def write_series(
    folder: Path,
    pixels: np.ndarray[Any, Any],
    name: str = "run",
    mask: np.ndarray[Any, Any] | None = None,
    **detector: Any,
) -> Path:
    """An Eiger series as the file writer lays it out: ``pixels`` (N, ss, fs), one bitshuffle-LZ4 chunk an image."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = pixels.shape[1:]
    with h5py.File(folder / f"{name}_data_000001.h5", "w") as data:
        data.create_dataset("entry/data/data", data=pixels, chunks=(1, *shape), **hdf5plugin.Bitshuffle())
    master = folder / f"{name}_master.h5"
    facts = {
        "beam_center_x": CENTER[0], "beam_center_y": CENTER[1], "detector_distance": 0.15,
        "x_pixel_size": 75e-6, "y_pixel_size": 75e-6, "count_time": 0.004, "frame_time": 0.005,
    }  # fmt: skip
    with h5py.File(master, "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink(f"{name}_data_000001.h5", "/entry/data/data")
        for key, value in (facts | detector).items():
            file[f"entry/instrument/detector/{key}"] = value
        file["entry/instrument/detector/detectorSpecific/photon_energy"] = 7000.0
        if mask is not None:
            file["entry/instrument/detector/detectorSpecific/pixel_mask"] = mask.astype("u4")
    return master


def frames_of_a_run(images: int, shape: tuple[int, int] = SHAPE, dtype: str = "u2") -> np.ndarray[Any, Any]:
    """Every second frame with spots."""
    return np.stack(
        [with_spots(water(0.2, shape, n, dtype)) if n % 2 else water(0.2, shape, n, dtype) for n in range(images)]
    )
