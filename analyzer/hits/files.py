"""Hit files: HDF5 made of a journal's records, the images as they were received.

    /entry                                NXmx, as the Eiger's file writer names things (`streamer.nxmx`): DIALS, and us
    /entry/data/data                      (N, ss, fs), one chunk an image, never packed anew (`packing`)
    /entry/event/...                      (N,): which frame it is, when, what was said of it; `record` has all as JSON
    /entry_1/result_1/nPeaks              (N,) int32; peakXPosRaw (fs), peakYPosRaw (ss), peakTotalIntensity, peakSNR,
                                          peakSaturated (N, P): CrystFEL's --peaks=cxi. Pixel indices
    /entry_1/data_1/data, instrument_1    the same images and distances by their CXI names

A file is written under another name, brought to the disk and renamed into place: what has its name is whole.
"""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt

from analyzer.coordinates import Convention, in_convention
from analyzer.hits.entries import HIT, SERIES, HitEntry, digest_of, read_hit, read_series, result_of
from analyzer.hits.journal import Damage, Entry, read_body, read_entries
from analyzer.hits.packing import Filter, chunk_of, dataset_options, filter_of
from analyzer.hits.places import file_path, sync_folder, temporary_path
from streamer import bounds, nxmx
from streamer.files import CHANNEL
from streamer.messages import Algorithm, ImageData, SeriesMetadata

PEAKS = "/entry_1/result_1"
EVENT = "/entry/event"
FORMAT = "cxls hits 1"
_JOULE_PER_EV = 1.602176634e-19

_INTEGERS = ("series_id", "image_id", "peak_count", "saturated_pixels")
_NUMBERS = (
    "start_time", "exposure_s", "received_at", "hit_probability", "resolution_angstrom", "background_photons",
    "relative_flux", "photon_energy_eV", "photon_energy_sigma_eV", "camera_length_m", "camera_length_sigma_m",
    "camera_length_over_energy_m_per_eV", "camera_length_over_energy_sigma_m_per_eV",
)  # fmt: skip
_TEXTS = ("channel", "hit_rule", "bundle", "mask")
_PEAK_DATASETS = (
    # the first two are coordinates
    ("peakXPosRaw", "fs", np.float64), ("peakYPosRaw", "ss", np.float64), ("peakTotalIntensity", "intensity_photons",
     np.float64), ("peakSNR", "snr", np.float64), ("peakSaturated", "saturated", np.uint8),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Hit:
    entry: HitEntry
    body: Entry
    peaks: int
    order: tuple[float, int]

    def image(self, data: bytes = b"") -> ImageData:
        entry = self.entry
        return ImageData(data, entry.shape, np.dtype(entry.dtype), Algorithm(entry.algorithm), entry.element_bytes)


@dataclass(slots=True)
class _Group:
    """Hits that go into one file; ``series`` is the record of theirs, None where it was lost."""

    series: Entry | None
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    packed_with: Filter
    hits: list[_Hit] = field(default_factory=list)


@dataclass(slots=True)
class Made:
    """What became of a journal: files and hits in them; what could not be read, and what could not be stored."""

    files: list[Path] = field(default_factory=list)
    hits: int = 0
    damage: list[Damage] = field(default_factory=list)
    unstored: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the journal holds nothing that is not in a file, but for a last write cut short by a kill."""
        return not self.unstored and all(damage.torn for damage in self.damage)


def make_files(fd: int, folder: Path, journal: Path, after_image: Callable[[], None] = lambda: None) -> Made:
    """Make the files of a journal that is open as ``fd``; those that are there already are left as they are.

    ``after_image`` is called whenever an image is written. Raises ``OSError`` when the disk does not take them (what is
    then missing is made by the next call) and ``UnreadableJournal``.
    """
    made = Made()
    for number, group in enumerate(_groups(fd, made)):
        path = file_path(folder, journal, number)
        if not path.exists():
            _write(fd, path, group, after_image)
        made.files.append(path)
        made.hits += len(group.hits)
    if made.files:
        sync_folder(folder)
    return made


def _groups(fd: int, made: Made) -> list[_Group]:
    """The hits of a journal by file, in the order of their first; notes what cannot be read or stored."""
    series: dict[str, Entry] = {}
    groups: dict[tuple[Any, ...], _Group] = {}
    for found in read_entries(fd):
        if isinstance(found, Damage):
            made.damage.append(found)
        elif found.kind == SERIES:
            series[digest_of(found.head)] = found
        elif found.kind == HIT:
            try:
                hit = _hit(fd, found)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                made.unstored.append(f"the hit at byte {found.body_offset}: {str(error).splitlines()[0]}")
                continue
            image = hit.image()
            packed_with = filter_of(image, found.body_bytes)
            key = (hit.entry.series, image.shape, image.dtype.str, packed_with)
            if key not in groups:
                groups[key] = _Group(series.get(hit.entry.series), image.shape, image.dtype, packed_with)
            groups[key].hits.append(hit)
        else:
            made.unstored.append(f"the record at byte {found.body_offset}: unknown kind {found.kind}")
    for group in groups.values():
        group.hits.sort(key=lambda hit: hit.order)  # as they were measured, whichever worker was quicker
    return list(groups.values())


def _hit(fd: int, found: Entry) -> _Hit:
    """A hit that can be stored: one that cannot must not keep the others from their file. Raises as conversions do."""
    entry = read_hit(found.head)
    result = result_of(entry)
    numbers, integers = _numbers_of(result), _integers_of(result)
    hit = _Hit(entry, found, len(_peaks_of(result)), (numbers["received_at"], int(integers["image_id"])))
    image = hit.image()
    if image.dtype.str[1:] not in ("u1", "u2", "u4") or bounds.image_shape(*image.shape) is None:
        raise ValueError(f"an image of {image.shape} pixels of {image.dtype}")
    if filter_of(image, found.body_bytes) == Filter.NONE and image.algorithm != Algorithm.RAW:
        chunk_of(hit.image(read_body(fd, found)))  # looked at now, so that a file has the chunks that it was made for
    return hit


def _integers_of(record: dict[str, Any]) -> dict[str, np.int64]:
    return {name: np.int64(int(record.get(name) or 0)) for name in _INTEGERS}


def _numbers_of(record: dict[str, Any]) -> dict[str, float]:
    values = {name: record.get(name) for name in _NUMBERS}
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _peaks_of(record: dict[str, Any]) -> npt.NDArray[np.float64]:
    """(peaks, 5): the columns of ``_PEAK_DATASETS``."""
    rows = [[peak[key] for _, key, _ in _PEAK_DATASETS] for peak in record.get("peaks") or ()]
    return np.array(rows, np.float64).reshape(-1, len(_PEAK_DATASETS))


class _Output:
    """A file for HDF5 whose faults come when asked for: HDF5 cannot let go of a file that it failed to write."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first fault."""
        if self._error is not None:
            raise OSError(self._error.errno, os.strerror(self._error.errno or 0))

    def read(self, count: int) -> bytes:
        """What h5py knows a file by."""
        found = os.pread(self._fd, count, self._position)
        self._position += len(found)
        return found

    def readinto(self, buffer: memoryview) -> int:
        count = os.preadv(self._fd, [buffer], self._position)
        self._position += count
        return count

    def write(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(view) and self._error is None:
                done += os.pwrite(self._fd, view[done:], self._position + done)
        except OSError as error:
            self._error = error
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        try:
            if self._error is None:
                os.ftruncate(self._fd, size)
        except OSError as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Nothing is held back."""


def _write(journal_fd: int, path: Path, group: _Group, after_image: Callable[[], None]) -> None:
    """Write one file and rename it into place. Raises ``OSError``; nothing is then left."""
    temporary = temporary_path(path)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        output = _Output(fd)
        try:
            with h5py.File(output, "w") as file:
                _fill(journal_fd, file, group, output, after_image)
        finally:
            output.check()
        os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(fd)


def _fill(journal_fd: int, file: h5py.File, group: _Group, output: _Output, after_image: Callable[[], None]) -> None:
    hits, shape = group.hits, group.shape
    metadata = SeriesMetadata(channels=(CHANNEL,))
    if group.series is not None:
        metadata = read_series(group.series.head, read_body(journal_fd, group.series))
    file.attrs["creator"], file.attrs["format"] = "cxls analyze", FORMAT
    nxmx.write_instrument(
        file, metadata, images=len(hits), shape=shape, dtype=group.dtype, mask=metadata.masks.get(CHANNEL)
    )
    data = nxmx.nexus_group(file["entry"], "data", "NXdata")
    data.attrs["signal"] = "data"
    images = data.create_dataset(
        "data", (len(hits), *shape), group.dtype, chunks=(1, *shape), **dataset_options(group.packed_with)
    )
    for number, hit in enumerate(hits):
        images.id.write_direct_chunk((number, 0, 0), chunk_of(hit.image(read_body(journal_fd, hit.body))))
        output.check()
        after_image()
    records = [result_of(hit.entry) for hit in hits]
    _write_events(file.create_group(EVENT), group, records)
    _write_peaks(file.create_group(PEAKS), group, records)
    _write_cxi(file, metadata)


def _write_events(event: h5py.Group, group: _Group, records: list[dict[str, Any]]) -> None:
    text = h5py.string_dtype()
    integers, numbers = list(map(_integers_of, records)), list(map(_numbers_of, records))
    for name in _INTEGERS:
        event[name] = np.array([values[name] for values in integers])
    for name in _NUMBERS:
        event[name] = np.array([values[name] for values in numbers])
    event["indexable"] = np.array([bool(record.get("indexable")) for record in records])
    for name in _TEXTS:
        event.create_dataset(name, data=[str(record.get(name) or "") for record in records], dtype=text)
    tags = [record.get("tags") for record in records]
    event.create_dataset("tags", data=["" if tag is None else _json(tag) for tag in tags], dtype=text)
    event.create_dataset("record", data=[bytes(hit.entry.record).decode() for hit in group.hits], dtype=text)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _write_peaks(result: h5py.Group, group: _Group, records: list[dict[str, Any]]) -> None:
    """CrystFEL takes a row's first nPeaks; the rest is 0."""
    result["nPeaks"] = np.array([hit.peaks for hit in group.hits], np.int32)
    table = np.zeros((len(records), max(1, *(hit.peaks for hit in group.hits)), len(_PEAK_DATASETS)))
    for rows, record in zip(table, records, strict=True):
        peaks = _peaks_of(record)
        peaks[:, :2] = in_convention(peaks[:, :2], Convention.CRYSTFEL_PEAKS)
        rows[: len(peaks)] = peaks
    for column, (name, _, dtype) in enumerate(_PEAK_DATASETS):
        result[name] = table[:, :, column].astype(dtype)


def _write_cxi(file: h5py.File, metadata: SeriesMetadata) -> None:
    file["cxi_version"] = 150
    file["entry_1/data_1/data"] = file["entry/data/data"]
    detector = file.create_group("entry_1/instrument_1/detector_1")
    detector["data"] = file["entry/data/data"]
    for name, value in (
        ("distance", metadata.camera_length_m),
        ("x_pixel_size", metadata.pixel_size_x_m),
        ("y_pixel_size", metadata.pixel_size_y_m),
    ):
        if value is not None:
            detector[name] = value
    if metadata.masks:
        detector["mask"] = file[nxmx.PIXEL_MASK]
    if metadata.photon_energy_eV is not None:
        file["entry_1/instrument_1/source_1/energy"] = metadata.photon_energy_eV * _JOULE_PER_EV
