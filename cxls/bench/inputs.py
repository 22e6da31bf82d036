"""What benchmarks measure on: frames of our own simulator, so that anybody can run them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from cxls.settings import AnalyzeSettings, resolve
from sim_replay.background import Surroundings
from sim_replay.crystal import proteinase_k
from sim_replay.detector import CONDITIONS, Detector, eiger2_4m
from sim_replay.diffraction import Sample
from sim_replay.scene import Scene
from sim_replay.simulation import Plan, simulate_series
from streamer.decoding import decode
from streamer.files import CHANNEL, FileSeries
from streamer.frames import Frame
from streamer.messages import ImageData
from streamer.series import Series

NORMAL_FLUX = 3e8
BRIGHT_FLUX = 3e10
"""A hundred times the usual: 4M frames of 1.1 MB packed, as at a synchrotron."""


USUAL_WATER_M = 100e-6


def simulate(
    folder: Path,
    frames: int,
    condition: int = 5,
    flux: float = NORMAL_FLUX,
    water: float = 1.0,
    detector: Detector | None = None,
) -> Path:
    """A series, half of its frames with a crystal; its master file.

    ``water`` in units of the usual thickness; ``detector``: by default an EIGER2 4M, uint16.
    """
    detector = detector or eiger2_4m()
    scene = Scene(
        Sample(proteinase_k()),
        replace(CONDITIONS[condition], flux_photons=flux),
        detector,
        Surroundings(water_thickness_m=water * USUAL_WATER_M),
    )
    rows, columns = detector.shape
    name = f"condition{condition}-{flux:.0e}-water{water:g}-{rows}x{columns}-{detector.dtype}"
    return simulate_series(folder / name, scene, Plan(frames, seed=1))


def repeated(master: Path, times: int) -> Path:
    """A longer series of the same images: a master that links the same data ``times`` over."""
    long = master.with_name(f"x{times}-{master.name}")
    shutil.copy(master, long)
    with h5py.File(long, "r+") as file:
        link = file["entry/data"].get("data_000001", getlink=True)
        for number in range(2, times + 1):
            file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(link.filename, link.path)
        images = file["entry/instrument/detector/detectorSpecific/nimages"]
        images[...] = times * int(images[()])
        # The truth is of the short series.
        del file["entry/truth"]
    return long


def packed_frames(master: Path) -> list[Frame]:
    """The frames of a series as a worker gets them, their packed bytes in memory."""
    series = FileSeries(master)
    try:
        opened = Series(1, 1, None, series.metadata)
        return [Frame(opened, number, CHANNEL, series.image(number), None, None, 0.0) for number in range(len(series))]
    finally:
        series.close()


def image_data(frame: Frame) -> ImageData:
    """The packed image of a frame that is known to be good."""
    assert isinstance(frame.image, ImageData)
    return frame.image


def decoded(frame: Frame) -> npt.NDArray[Any]:
    """The pixels of a good frame."""
    image = image_data(frame)
    pixels = np.empty(image.shape, image.dtype.newbyteorder("="))
    decode(image, pixels)
    return pixels


def chosen_bundle() -> Path | None:
    """The bundle of the settings (``CXLS_BUNDLE`` or the file of ``CXLS_CONFIG``); ``None``: the one shipped."""
    return resolve(AnalyzeSettings, {}, None).settings.bundle
