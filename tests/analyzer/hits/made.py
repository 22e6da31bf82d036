"""What the tests of hits build on: hits to offer, settings, and what CrystFEL would read of the files."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from analyzer.hits import HitFolder, HitFolderSettings
from analyzer.panels import GivenGeometry
from analyzer.results import FrameResult, Peak
from streamer.files import FileSource
from streamer.frames import Frame
from streamer.geometry_file import DetectorGeometry, read_geometry
from streamer.messages import ImageData, ImageMessage, SeriesMetadata, StartMessage
from streamer.series import Series
from tests.analyzer import builders
from tests.analyzer.writer_child import result as some_result
from tests.support import packed_image, poisson

SHAPE = builders.SHAPE
QUICK = HitFolderSettings(journal_hits=5, journal_s=0.3)


def pixels(number: int, dtype: str = "u2", shape: tuple[int, int] = SHAPE) -> npt.NDArray[Any]:
    """Counts of the image of that number."""
    return np.asarray(poisson(1, shape, dtype, seed=number)[0])


def hit(number: int, image: ImageData | None = None, of: Series | None = None, **changes: Any) -> Any:
    """A frame and its result, as workers offer them."""
    frame = builders.frame(image or pixels(number), number, of)
    result = some_result(number)
    facts: dict[str, Any] = {
        "series_id": frame.series.series_id,
        "received_at": 1e9 + number,
        "photon_energy_eV": 7001.5,
        "camera_length_m": None,
    }
    return frame, replace(result, **(facts | changes))


def peak(fs: float, ss: float, photons: float = 20.0) -> Peak:
    return Peak(fs, ss, photons, 4.5, False)


def write(
    folder: Path,
    hits: list[tuple[Frame, FrameResult]],
    settings: HitFolderSettings = QUICK,
    geometry: GivenGeometry | None = None,
) -> HitFolder:
    """A run that takes these hits and ends."""
    output = HitFolder(folder, settings, geometry)
    for frame, result in hits:
        output.offer(frame, result)
        wait_for(lambda: output.facts()["waiting"] < 1000)
    output.close()
    return output


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("hits-*-*.h5"))


def image_ids(folder: Path) -> list[int]:
    """The images in all files, in order."""
    found: list[int] = []
    for path in files(folder):
        with h5py.File(path) as file:
            found += file["entry/event/image_id"][()].tolist()
    return sorted(found)


def read_back(sources: list[Path]) -> tuple[list[SeriesMetadata], list[ImageData]]:
    """Headers and images as our own source reads them."""
    source = FileSource([str(path) for path in sources])
    headers, images = [], []
    while (received := source.receive(0)) is not None:
        if isinstance(received.message, StartMessage):
            headers.append(received.message.metadata)
        elif isinstance(received.message, ImageMessage):
            (image,) = received.message.channels.values()
            assert isinstance(image, ImageData), image
            images.append(image)
    return headers, images


@dataclass(frozen=True)
class CrystfelImage:
    """What indexamajig has of one line of a list: the panels' pixels in place, mask, energy, distance, peaks.

    ``peaks`` are panel name, fs and ss in CrystFEL's coordinates within the panel, intensity.
    """

    pixels: npt.NDArray[np.float32]
    bad: npt.NDArray[np.bool_]
    photon_energy_eV: float
    clen_m: float
    peaks: list[tuple[str, float, float, float]]


_LINE = re.compile(r"(\S+) (//\d+)")


def read_as_crystfel(line: str, geometry: DetectorGeometry) -> CrystfelImage:
    """Read one line of a list by CrystFEL's rules (0.10 to 0.12, image-hdf5.c), written anew from what they do.

    A list's line is a name without spaces, a space and the event; the event's number picks the slice of every axis
    that is '%', the row of the peak tables and of per-event values. A mask may lack that axis. Peaks are floats of 32
    bit, the first nPeaks of a row, moved by half a pixel; one outside all panels is dropped.
    """
    found = _LINE.fullmatch(line)
    assert found is not None, line
    assert len(line) < 1023
    number = int(found[2].removeprefix("//"))
    extra = dict(geometry.extra)
    assert extra["peak_list_type"] == "cxi"
    with h5py.File(found[1]) as file:
        rows, columns = (max(getattr(p, name) for p in geometry.panels) + 1 for name in ("max_ss", "max_fs"))
        image, bad = np.zeros((rows, columns), np.float32), np.ones((rows, columns), np.bool_)
        for panel in geometry.panels:
            where = np.s_[panel.min_ss : panel.max_ss + 1, panel.min_fs : panel.max_fs + 1]
            assert panel.dims == ("%", "ss", "fs")
            assert file[panel.data].ndim == 3
            image[where] = file[panel.data][(number, *where)]
            bad[where] = False
            for mask in panel.masks:
                assert mask.data is not None
                assert mask.file is None
                assert file[mask.data].ndim == 2
                bits = np.minimum(file[mask.data][where], 2**31 - 1)  # read as signed integers
                bad[where] |= (bits & mask.bad_bits != 0) | (bits & mask.good_bits != mask.good_bits)
        table = file[extra["peak_list"]]
        assert table["nPeaks"].ndim == 1
        assert number < len(table["nPeaks"])
        count = int(table["nPeaks"][number])
        row = {name: table[name][number].astype(np.float32) for name in ("peakXPosRaw", "peakYPosRaw")}
        intensity = table["peakTotalIntensity"][number].astype(np.float32)
        peaks = []
        for k in range(count):
            fs, ss = float(row["peakXPosRaw"][k]) + 0.5, float(row["peakYPosRaw"][k]) + 0.5
            for panel in geometry.panels:
                if panel.min_fs <= fs < panel.max_fs + 1 and panel.min_ss <= ss < panel.max_ss + 1:
                    peaks.append((panel.name, fs - panel.min_fs, ss - panel.min_ss, float(intensity[k])))
        return CrystfelImage(
            image, bad, _value(file, geometry.photon_energy_eV, "eV"), _value(file, geometry.clen_m, "m"), peaks
        )


def _value(file: h5py.File, said: Any, unit: str) -> float:
    path, said_unit = str(said).split()
    assert said_unit == unit
    assert file[path].shape == ()
    return float(file[path][()])


def the_geometry(folder: Path) -> DetectorGeometry:
    (path,) = folder.glob("hits-*.geom")
    return read_geometry(path)


def packed(image: npt.NDArray[Any]) -> ImageData:
    """Counts as a detector packs them."""
    return packed_image(image)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
