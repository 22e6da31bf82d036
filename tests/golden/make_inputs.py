"""How the inputs of the golden records were made: ``python -m tests.golden.make_inputs``.

The files are committed, and ``inputs/SHA256SUMS`` holds what they are, so that neither the simulator nor this program
moves a golden record: run again, it writes only what is not there. A new frame belongs into a series of its own.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import msgspec
import numpy as np
import numpy.typing as npt
import torch

from analyzer.architectures import build
from analyzer.framing import Framing
from analyzer.single_model import SingleModelCard, save_model
from streamer import stream_v2
from streamer.messages import Algorithm, ImageData, ImageMessage, SeriesMetadata
from tests.cxls.programs import cxls
from tests.golden.cases import INPUTS, SUMS
from tests.support import pack

SHAPE = (224, 288)
CENTER = (140.0, 118.5)
"""Of hand-made frames: the beam (fs, ss), edge-based."""

CUT = (slice(825, 1337), slice(1000, 2068))
"""Of simulated EIGER2 4M frames: an eighth that has the beam at its rim and gaps on both axes."""

_GAP = (slice(None), slice(150, 156))
_SPOTS = ((60, 40), (30, 210), (180, 60), (150, 250), (100, 260), (200, 200), (45, 120), (90, 80))
_WATER = 0.05

Pixels = npt.NDArray[Any]


def _detector(images: int, center: tuple[float, float] | None, distance: float | None, energy: float | None) -> Any:
    facts = {
        "beam_center_x": None if center is None else center[0],
        "beam_center_y": None if center is None else center[1],
        "detector_distance": distance,
        "x_pixel_size": 75e-6,
        "y_pixel_size": 75e-6,
        "count_time": 0.001,
        "frame_time": 0.001,
        "detectorSpecific/photon_energy": energy,
        "detectorSpecific/nimages": images,
        "detectorSpecific/ntrigger": 1,
    }
    return {name: value for name, value in facts.items() if value is not None}


def write(
    name: str,
    pixels: Sequence[Pixels],
    mask: Pixels | None,
    center: tuple[float, float] | None = CENTER,
    distance: float | None = 0.15,
    energy: float | None = 7000.0,
    damaged: Sequence[bytes] = (),
) -> None:
    """A series as the file writer lays it out; ``damaged`` are packed images behind the others."""
    shape, dtype = pixels[0].shape, pixels[0].dtype
    images = len(pixels) + len(damaged)
    with h5py.File(INPUTS / f"{name}_data_000001.h5", "w") as file:
        data = file.create_dataset(
            "entry/data/data", (images, *shape), dtype, chunks=(1, *shape), **hdf5plugin.Bitshuffle()
        )
        for number, frame in enumerate(pixels):
            data[number] = frame
        for number, chunk in enumerate(damaged, len(pixels)):
            data.id.write_direct_chunk((number, 0, 0), chunk)
    with h5py.File(INPUTS / f"{name}_master.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink(f"{name}_data_000001.h5", "/entry/data/data")
        for path, value in _detector(images, center, distance, energy).items():
            file[f"entry/instrument/detector/{path}"] = value
        if mask is not None:
            where = "entry/instrument/detector/detectorSpecific/pixel_mask"
            file.create_dataset(where, data=mask.astype("u4"), chunks=mask.shape, **hdf5plugin.Bitshuffle())


def _simulated(name: str, condition: int, flux: float, chosen: Sequence[int], cut: bool = False) -> None:
    """Frames of the nine conditions, those of four that were chosen to hold a hit and a miss."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "run"
        done = cxls(
            "simulate", prefix, "--condition", condition, "--frames", 4, "--flux", flux, "--seed", 100 + condition,
            "--hit-fraction", 0.6, "--crystal-size", 3e-5,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with h5py.File(f"{prefix}_master.h5") as file:
            pixels, detector = file["entry/data/data"][()][list(chosen)], file["entry/instrument/detector"]
            mask = detector["detectorSpecific/pixel_mask"][()]
            facts = ("detector_distance", "detectorSpecific/photon_energy", "beam_center_x", "beam_center_y")
            distance, energy, *center = (float(detector[each][()]) for each in facts)
    if cut:
        pixels, mask = pixels[:, *CUT], mask[CUT]
        center = [center[0] - CUT[1].start, center[1] - CUT[0].start]
    # A whole EIGER2 4M goes without its mask: its gaps are known.
    write(name, list(pixels), mask if cut else None, (center[0], center[1]), distance, energy)


def _water(seed: int, mean: float = _WATER, dtype: str = "u2") -> Pixels:
    return np.random.default_rng(seed).poisson(mean, SHAPE).astype(dtype)


def _spots(pixels: Pixels, photons: Sequence[int], places: Sequence[tuple[int, int]] = _SPOTS) -> Pixels:
    """The frame with spots of a pixel and its neighbours, by strength."""
    lit = pixels.copy()
    shares = np.array([[1, 2, 1], [2, 6, 3], [1, 2, 1]]) / 19
    for (ss, fs), count in zip(places, photons, strict=False):
        lit[ss : ss + 3, fs : fs + 3] += np.rint(shares * count).astype(lit.dtype)
    return lit


def _mask() -> Pixels:
    mask = np.zeros(SHAPE, np.uint32)
    mask[_GAP] = 1
    mask[20:24, 30:33] = 2
    return mask


def _edges() -> list[Pixels]:
    rows, columns = np.indices(SHAPE)
    radius = np.hypot(rows - CENTER[1] + 0.5, columns - CENTER[0] + 0.5)
    empty, few = np.zeros(SHAPE, "u2"), np.zeros(SHAPE, "u2")
    few[[10, 80, 140, 200], [20, 90, 30, 250]] = 1
    burnt, hot, ring = _water(1), _water(2), _water(3)
    burnt[60:72, 200:212] = 65534
    hot.flat[np.random.default_rng(4).choice(hot.size, 40, replace=False)] = 500
    ring += np.random.default_rng(5).poisson(4.0 * np.exp(-0.5 * ((radius - 85) / 1.5) ** 2)).astype("u2")
    board = ((rows + columns) % 2 * 3).astype("u2")
    grid = np.zeros(SHAPE, "u2")
    grid[::8, ::8] = 1
    rim = _spots(_water(6), [300] * 6, [(0, 0), (221, 285), (100, 151), (102, 147), (18, 31), (50, 60)])
    rim = _spots(rim, [80, 60, 9, 14], [(150, 200), (150, 204), (190, 40), (40, 40)])
    return [
        empty, few, np.full(SHAPE, 65535, "u2"), np.full(SHAPE, 65534, "u2"), burnt, hot, ring,
        np.random.default_rng(7).poisson(6.0, SHAPE).astype("u2"), board, grid, rim,
    ]  # fmt: skip


def _damaged() -> list[bytes]:
    whole = pack(_spots(_water(8), [100] * 8), Algorithm.BSLZ4)
    broken = bytearray(whole)
    broken[2000:2040] = b"\xff" * 40
    return [bytes(broken), whole[: len(whole) // 2]]


def _write_edges() -> None:
    for pixels in (frames := _edges()):
        pixels[_GAP] = 65535
    write("edges-16", frames, _mask(), damaged=_damaged())


def _write_32() -> None:
    frames = [_spots(_water(20 + n, dtype="u4"), [200, 90, 60, 40, 30, 20, 15, 10]) for n in range(3)]
    frames[1][120, 200] = 3_000_000
    frames[2][40:44, 40:44] = 70_000
    write("edges-32", [*frames, np.full(SHAPE, 0xFFFFFFFF, "u4")], None)


def _write_8() -> None:
    lit = _spots(_water(30, dtype="u1"), [150, 90, 60, 40, 30, 20, 15, 10])
    lit[100:102, 60:62] = 254
    write("edges-8", [lit, np.full(SHAPE, 255, "u1")], None)


def _write_placeless() -> None:
    lit = [_spots(_water(40), [200, 90, 60, 40, 30, 20, 15, 10])]
    write("all-masked", lit, np.ones(SHAPE, "u4"))
    write("no-header", lit, None, None, None, None)
    write("beam-off", lit, None, (-300.0, 100.0))


def _write_geometry() -> None:
    lines = ["photon_energy = 7100 eV", "clen = 0.16", "res = 13333.3", "adu_per_photon = 1", ""]
    halves = (("left", 0, 511, -33.0), ("right", 512, 1067, 480.5))
    for name, first, last, corner in halves:
        lines += [
            f"{name}/min_fs = {first}", f"{name}/max_fs = {last}", f"{name}/min_ss = 0", f"{name}/max_ss = 511",
            f"{name}/fs = +0.999950x +0.010000y", f"{name}/ss = -0.010000x +0.999950y",
            f"{name}/corner_x = {corner}", f"{name}/corner_y = -255.5", "",
        ]  # fmt: skip
    lines += ["bad_patch/min_fs = 300", "bad_patch/max_fs = 340", "bad_patch/min_ss = 100", "bad_patch/max_ss = 160"]
    lines += ["bad_patch/panel = left", ""]
    (INPUTS / "moved.geom").write_text("\n".join(lines))


def _write_mask() -> None:
    mask = np.zeros((512, 1068), np.uint8)
    mask[300:420, 600:760] = 1
    with h5py.File(INPUTS / "patch.h5", "w") as file:
        file.create_dataset("mask", data=mask, compression="gzip")


def _write_channels() -> None:
    """Two thresholds a message of stream v2, the second with fewer photons, and an image that lacks it."""
    shape, names = (96, 128), ("threshold_1", "threshold_2")
    meta = SeriesMetadata(
        number_of_images=4, shape=shape, dtype=np.dtype("u2"), channels=names, beam_center_x_px=64.0,
        beam_center_y_px=48.0, camera_length_m=0.15, photon_energy_eV=7000.0, pixel_size_x_m=75e-6,
        pixel_size_y_m=75e-6, saturation_value=60_000,
    )  # fmt: skip
    messages = [stream_v2.encode_start(1, meta)]
    for number in range(4):
        low = np.random.default_rng(50 + number).poisson(0.1, shape).astype("u2")
        for n, place in enumerate(((20, 30), (60, 100), (70, 40), (15, 90), (50, 64), (85, 110))):
            low[place[0] : place[0] + 2, place[1] : place[1] + 2] += np.uint16(6 * n)
        both = {names[0]: low, names[1]: (low * 2 // 3).astype("u2")}
        channels = {
            name: ImageData(pack(pixels, Algorithm.BSLZ4), shape, pixels.dtype, Algorithm.BSLZ4, 2)
            for name, pixels in both.items()
        }
        if number == 3:
            del channels[names[1]]
        message = ImageMessage(
            1, number, channels, start_time_s=0.01 * number, exposure_s=0.009, user_data={"sample": "a"}
        )
        messages.append(stream_v2.encode_image(message))
    messages.append(stream_v2.encode_end(1))
    (INPUTS / "two-channels.msgpack").write_bytes(msgspec.msgpack.encode([bytes(each) for each in messages]))


def _write_models() -> None:
    torch.manual_seed(60)
    settings = {"channels": 8, "hidden": 16}
    card = SingleModelCard(network="hit-zones-and-cells", settings=settings, attribute="peak")
    save_model(build(card.network, settings), card, INPUTS / "peak-model")
    linear: dict[str, Any] = {"shape": [8, 16], "classes": 3}
    framing = Framing(bin=32, size=(256, 512))
    card = SingleModelCard(
        network="paper-linear", settings=linear, attribute="energy", values=[6000.0, 7000.0, 8000.0], framing=framing
    )
    save_model(build(card.network, linear), card, INPUTS / "energy-model")


MADE: dict[str, Callable[[], None]] = {
    "near_master.h5": lambda: _simulated("near", 1, 5e7, (0, 1)),
    "middle_master.h5": lambda: _simulated("middle", 5, 1e8, (0, 2)),
    "far_master.h5": lambda: _simulated("far", 9, 1e8, (3,)),
    "part_master.h5": lambda: _simulated("part", 2, 1e8, (0, 1, 2, 3), cut=True),
    "faint_master.h5": lambda: _simulated("faint", 5, 3e6, (0,)),
    "edges-16_master.h5": _write_edges,
    "edges-32_master.h5": _write_32,
    "edges-8_master.h5": _write_8,
    "beam-off_master.h5": _write_placeless,
    "moved.geom": _write_geometry,
    "patch.h5": _write_mask,
    "two-channels.msgpack": _write_channels,
    "energy-model": _write_models,
}


def sums() -> str:
    """A line for each file of the inputs: SHA-256 and name, as ``sha256sum`` writes it."""
    files = sorted(path for path in INPUTS.rglob("*") if path.is_file() and path != SUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(INPUTS)}\n" for path in files)


def main() -> None:
    INPUTS.mkdir(exist_ok=True)
    for name, make in MADE.items():
        if not (INPUTS / name).exists():
            make()
            print(f"made {name}")
    SUMS.write_text(sums())


if __name__ == "__main__":
    main()
