"""Small trees and series, written by h5py alone so that our own writers are not their judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

SHAPE = (24, 30)
CONDITION = {
    number: (length, energy, index)
    for number, (length, energy, index) in enumerate(
        ((m, ev, i) for i, m in enumerate((0.15, 0.25, 0.35), 1) for ev in (6000, 7000, 8000)), 1
    )
}
"""Camera length (m), photon energy (eV) and camera length index of the paper's data sets."""


def write_h5(path: Path, pixels: Any, **attributes: Any) -> Path:
    """A single-image file; an attribute that is None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = pixels
        file.attrs.update({name: value for name, value in attributes.items() if value is not None})
    return path


def image_name(kind: str, dataset: int, index: int, empty: bool = False) -> str:
    """The paper's name."""
    word = {"peaks": "peak", "labels": "label", "peaks_water_overlay": "overlay"}[kind]
    if empty:
        return f"empty_{word}_{dataset:02d}_{index:05d}.h5"
    length, energy, number = CONDITION[dataset]
    del length
    prefix = "" if kind == "peaks" else f"{word}_"
    return f"{prefix}img_{energy // 1000}keV_clen{number:02d}_{index:05d}.h5"


def build_tree(
    root: Path,
    datasets: Sequence[int] = (1,),
    hits: int = 3,
    empties: int = 1,
    *,
    frozen: bool = False,
    shape: tuple[int, int] = SHAPE,
    seed: int = 5,
) -> Path:
    """A good tree (or, frozen, one as the paper's program left it); returns its `images` folder."""
    images = root / "images"
    for dataset in datasets:
        rng = np.random.default_rng([seed, dataset])
        length, energy, _ = CONDITION[dataset]
        facts: dict[str, Any] = {"clen": length, "photon_energy": energy}
        folder = f"{dataset:02d}"
        water = rng.poisson(2.0, shape).astype(np.int64)
        path = images / "water" / folder / f"water{folder}.h5"
        if frozen:
            write_h5(path, water, peak=False, **facts)
        else:
            write_h5(path, np.full(shape, 2.0, np.float32), peak=False, expectation=True, **facts)
        for number in range(hits + empties):
            empty = number >= hits
            index = number - hits + 1 if empty else number + 1
            peaks = np.zeros(shape, np.float32)
            if not empty:
                spots = rng.choice(shape[0] * shape[1], 4, replace=False)
                peaks.reshape(-1)[spots] = rng.integers(5, 50, 4)
            background = water if frozen else rng.poisson(2.0, shape)
            for kind, pixels in (
                ("peaks", peaks),
                ("labels", (peaks > 1).astype(np.float32)),
                ("peaks_water_overlay", peaks + background),
            ):
                write_h5(
                    images / kind / folder / image_name(kind, dataset, index, empty), pixels, peak=not empty, **facts
                )
    return images


def rotation(seed: int) -> npt.NDArray[np.float64]:
    """A proper rotation."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def good_truth(frames: int = 4, seed: int = 0) -> dict[str, Any]:
    """Truth of a series whose frames are hits by turns, with two spots a hit."""
    hit = np.arange(frames) % 2 == 0
    where = np.repeat(np.flatnonzero(hit), 2)
    return {
        "hit": hit,
        "class": np.array([b"protein" if h else b"water" for h in hit]),
        "orientation": np.stack(
            [rotation(100 * seed + n) if h else np.full((3, 3), np.nan) for n, h in enumerate(hit)]
        ),
        "frame_index": np.arange(frames),
        "bragg_photons": np.where(hit, 100.0, 0.0),
        "spot_frame": where,
        "spot_ss": np.tile([4.0, 15.2], len(where) // 2),
        "spot_fs": np.tile([5.0, 20.7], len(where) // 2),
        "spot_photons": np.tile([60.0, 40.0], len(where) // 2),
        "photon_energy_eV": 6000.0,
        "camera_length_m": 0.15,
        "flux_photons": 3e8,
        "water_scale": 1.0,
        "seed": seed,
    }


def build_series(
    folder: Path,
    name: str = "run",
    frames: int = 4,
    *,
    truth: dict[str, Any] | None = None,
    pixels: npt.NDArray[Any] | None = None,
    condition: tuple[float, float] = (0.15, 6000.0),
    per_file: int = 2,
    seed: int = 0,
) -> Path:
    """An Eiger series with truth (default `good_truth`) and one bad column, 10; returns the master."""
    folder.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(seed).poisson(2.0, (frames, *SHAPE)).astype("u2")
    mask = np.zeros(pixels.shape[1:], "u4")
    mask[:, 10] = 1
    master = folder / f"{name}_master.h5"
    with h5py.File(master, "w") as file:
        for number, start in enumerate(range(0, len(pixels), per_file), 1):
            data = folder / f"{name}_data_{number:06d}.h5"
            with h5py.File(data, "w") as part:
                stack = pixels[start : start + per_file]
                part.create_dataset(
                    "entry/data/data", data=stack, chunks=(1, *stack.shape[1:]), **hdf5plugin.Bitshuffle()
                )
            file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(data.name, "/entry/data/data")
        detector = file.create_group("entry/instrument/detector")
        detector["detector_distance"] = condition[0]
        detector["x_pixel_size"] = detector["y_pixel_size"] = 75e-6
        detector["beam_center_x"], detector["beam_center_y"] = pixels.shape[2] / 2, pixels.shape[1] / 2
        detector["detectorSpecific/photon_energy"] = condition[1]
        detector["detectorSpecific/pixel_mask"] = mask
        detector["detectorSpecific/nimages"] = len(pixels)
        detector["detectorSpecific/ntrigger"] = 1
        for key, value in (good_truth(frames, seed) if truth is None else truth).items():
            file[f"entry/truth/{key}"] = value
    return master


def change(path: Path, dataset: str, value: Any) -> None:
    """Replace a dataset of a file; None deletes it."""
    with h5py.File(path, "r+") as file:
        del file[dataset]
        if value is not None:
            file[dataset] = value


def change_attributes(path: Path, **attributes: Any) -> None:
    """Set attributes of a file's root; None deletes one."""
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = value
