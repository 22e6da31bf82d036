"""HDF5 files behind the interface of the wire: a start, images, an end.

Read: Eiger masters with their data files, bare data files, multi-event and single-image
files (``entry/data/data``), CXI, globs and ``.lst`` lists of any of them. Chunks packed by
the detector are handed on as they lie in the file, to be decoded by the decoder of the
stream; everything else is read by h5py.
"""

import glob
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the HDF5 filters)
import numpy as np
import numpy.typing as npt

from streamer import bounds, links
from streamer.decoding import decode
from streamer.errors import first_line
from streamer.messages import (
    HC_EV_ANGSTROM,
    Algorithm,
    Defect,
    EndMessage,
    ImageData,
    ImageMessage,
    SeriesMetadata,
    StartMessage,
    UndecodableImage,
)
from streamer.receiver import Received
from streamer.text_files import read_text

CHANNEL = "threshold_1"
IMAGE_PATHS = (
    "entry/data/data",
    "entry_1/data_1/data",
    "entry_1/instrument_1/detector_1/data",
    "entry_1/image_1/data",
    "images",
    "data",
)
MAX_STACK_IMAGES = 1 << 24
"""A day and a half at 133 Hz. The shape of a stack is a claim: a file of a few kB may state any number."""

MAX_LIST_BYTES = 256 << 20
"""Two million lines of a hundred letters."""

_BITSHUFFLE, _LZ4 = 32008, 32004
_JOULE_PER_EV = 1.602176634e-19
_MOST_DIGITS = 18
"""Of an image's number in a list."""


Member = tuple[Path, list[int] | None]
"""A file and which of its images; ``None`` is all of them."""

_ALIKE = ("shape", "dtype", "photon_energy_eV", "camera_length_m", "beam_center_x_px", "beam_center_y_px")

log = logging.getLogger(__name__)


class BadInput(ValueError):
    """An input that cannot be analysed: one line with what, where and what to do."""


@dataclass(frozen=True, slots=True)
class _Stack:
    """A dataset of images and how its chunks are packed (``None``: h5py has to read it).

    ``first_id`` is the id of its first image in the series, where the data file says so.
    """

    dataset: h5py.Dataset
    images: int
    algorithm: Algorithm | None
    first_id: int | None = None


class FileSeries:
    """The images of one file as one series.

    ``metadata`` is what the file says of the detector; ``problems`` names parts that are
    announced but cannot be read, such as the data file of a master; ``data_files`` are those
    it links to, there or not.
    """

    def __init__(self, path: Path, events: Sequence[int] | None = None) -> None:
        self.path = path
        self.problems: list[str] = []
        self.data_files: list[Path] = []
        self._linked = links.Linked(_open(path), path)
        try:
            slots = list(self._find_stacks())
            self._stacks = [slot for slot in slots if slot is not None]
            if not self._stacks:
                known = ", ".join(IMAGE_PATHS[:3])
                missing = f" ({'; '.join(self.problems)})" if self.problems else ""
                raise BadInput(f"{path}: no images found at {known}{missing}")
            self.shape: tuple[int, int] = self._stacks[0].dataset.shape[-2:]
            self.dtype = _pixel_dtype(self._stacks[0].dataset.dtype)
            self._first_ids = _first_ids(slots)
            present = sum(stack.images for stack in self._stacks)
            self._events = range(present) if events is None else list(events)
            if bad := [event for event in self._events if not 0 <= event < present]:
                raise BadInput(f"{path}: event //{bad[0]} is not among its {present} images")
            self.metadata = _metadata(self._linked, self.shape, self.dtype, len(self._events), bool(self.problems))
        except BadInput:
            self._linked.close()
            raise
        except (OSError, RuntimeError, ValueError, UndecodableImage) as error:  # h5py's words for damage
            self._linked.close()
            raise BadInput(f"{path}: damaged: {first_line(error)}") from None
        except BaseException:
            self._linked.close()
            raise

    def __len__(self) -> int:
        return len(self._events)

    def close(self) -> None:
        self._linked.close()

    def _find_stacks(self) -> Iterator[_Stack | None]:
        """The stacks in order; ``None`` stands for one that is announced but cannot be read."""
        data = self._found("entry/data")
        group: Any = data if isinstance(data, h5py.Group) else {}
        names = [name for name in group if re.fullmatch(r"data_\d+", str(name))]
        names.sort(key=lambda name: int(name.removeprefix("data_")))
        for name in names:
            link = group.get(name, getlink=True)
            try:
                if isinstance(link, h5py.ExternalLink):
                    self.data_files.append(self._linked.target(link.filename, group))
                if (found := self._linked.get(f"entry/data/{name}")) is None:
                    raise KeyError(name)
                yield _stack(found, f"{self.path}:/entry/data/{name}")
            except links.Refused as error:
                self.problems.append(f"{self.path}:/entry/data/{name}: {error}")
                yield None
            except (KeyError, OSError):
                target = getattr(link, "filename", name)
                self.problems.append(
                    f"{self.path}: data file {target} is missing or unreadable; put it beside the master"
                )
                yield None
        if names:
            return
        for path in IMAGE_PATHS:
            found = self._found(path)
            if isinstance(found, h5py.Dataset):
                yield _stack(found, f"{self.path}:/{path}")
                return

    def _found(self, path: str) -> Any | None:
        """What is at a path; a link to nowhere is nothing. Raises ``BadInput`` for what is from elsewhere."""
        try:
            return self._linked.get(path)
        except links.Refused as error:
            raise BadInput(f"{self.path}:/{path}: {error}") from None
        except (KeyError, OSError):
            return None

    def image_id(self, position: int) -> int:
        """The id of the image at ``position``: the position, moved on by data files that are lost."""
        if not self.problems or not isinstance(self._events, range):
            return position
        index = position
        for stack, first_id in zip(self._stacks, self._first_ids, strict=True):
            if index < stack.images:
                return first_id + index
            index -= stack.images
        raise IndexError(position)

    def image(self, position: int) -> ImageData:
        """The image at ``position``, packed as it lies in the file. Raises ``OSError`` when unreadable."""
        index = self._events[position]
        for stack in self._stacks:
            if index < stack.images:
                return _read(stack, index)
            index -= stack.images
        raise IndexError(position)

    def image_or_defect(self, position: int) -> ImageData | Defect:
        """As ``image``, but one that cannot be read costs only itself."""
        try:
            return self.image(position)
        except (OSError, RuntimeError) as error:
            return Defect("missing_data", f"{self.path}: image {position} cannot be read: {error}")


def _read(stack: _Stack, index: int) -> ImageData:
    """One image of a stack, packed where that can be handed on. Raises ``OSError`` when unreadable."""
    # Data files of one master can differ; each image says what it is.
    dataset, dtype = stack.dataset, _pixel_dtype(stack.dataset.dtype)
    shape: tuple[int, int] = dataset.shape[-2:]
    if stack.algorithm is not None:
        offset = (index, 0, 0) if dataset.ndim == 3 else (0, 0)
        filter_mask, chunk = dataset.id.read_direct_chunk(offset)
        if filter_mask == 0:
            return ImageData(memoryview(chunk), shape, dtype, stack.algorithm, dtype.itemsize)
    pixels = dataset[index] if dataset.ndim == 3 else dataset[()]
    if pixels.dtype != dtype:
        top = np.iinfo(dtype).max
        pixels = np.clip(np.rint(np.nan_to_num(pixels, nan=top)), 0, top).astype(dtype)
    data = memoryview(np.ascontiguousarray(pixels).tobytes())
    return ImageData(data, shape, dtype, Algorithm.RAW, dtype.itemsize)


def _read_mask(dataset: h5py.Dataset) -> npt.NDArray[np.uint32]:
    """A mask (ss, fs). By our own decoder where it is packed: HDF5's filter does not survive damaged bytes."""
    if dataset.dtype.str[1:] not in ("u1", "u2", "u4"):
        return np.asarray(dataset[()]).astype(np.uint32)
    packed = _read(_Stack(dataset, 1, _packing(dataset)), 0)
    mask = np.empty(packed.shape, packed.dtype)
    decode(packed, mask)
    return mask.astype(np.uint32)


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise BadInput(f"{path}: no such file")
    if path.is_dir():
        raise BadInput(f"{path}: a folder; name its files, for instance '{path}/*_master.h5'")
    if not path.is_file():  # to open a pipe is to wait for its writer
        raise BadInput(f"{path}: not a regular file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not h5py.is_hdf5(path):
            raise BadInput(
                f"{path}: not an HDF5 file; give an Eiger master or data file, a CXI file or a .lst list"
            ) from None
        raise BadInput(f"{path}: cannot be opened: {error}") from None


def _stack(dataset: Any, where: str) -> _Stack:
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in (2, 3) or dataset.dtype.kind not in "uif":
        raise BadInput(f"{where}: not a stack of images (ss, fs) or (N, ss, fs)")
    images = dataset.shape[0] if dataset.ndim == 3 else 1
    rows, columns = dataset.shape[-2:]
    if bounds.image_shape(rows, columns) is None or rows * columns * dataset.dtype.itemsize > bounds.MAX_DECODED_BYTES:
        raise BadInput(f"{where}: images of {rows} x {columns} pixels of {dataset.dtype} are beyond any detector")
    if images > MAX_STACK_IMAGES:
        raise BadInput(f"{where}: {images} images, a stack of at most {MAX_STACK_IMAGES} is read")
    low = dataset.attrs.get("image_nr_low")
    first_id = int(low) - 1 if isinstance(low, np.integer) and 1 <= low < 1 << 40 else None
    return _Stack(dataset, images, _packing(dataset), first_id)


def _first_ids(slots: Sequence[_Stack | None]) -> list[int]:
    """The id of the first image of each stack that is there; a lost one is taken as long as the longest."""
    longest = max((slot.images for slot in slots if slot is not None), default=0)
    first_ids, position = [], 0
    for slot in slots:
        if slot is None:
            position += longest
        else:
            first_ids.append(max(position, slot.first_id or 0))
            position = first_ids[-1] + slot.images
    return first_ids


def _packing(dataset: h5py.Dataset) -> Algorithm | None:
    """How each chunk is packed, if a chunk is an image and the packing is one of the stream's."""
    one_image = (1, *dataset.shape[1:]) if dataset.ndim == 3 else dataset.shape
    if dataset.chunks != one_image or dataset.dtype.str[1:] not in ("u1", "u2", "u4") or dataset.is_virtual:
        return None
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(n) for n in range(properties.get_nfilters())]
    if len(filters) != 1:
        return None
    code, _, options, _ = filters[0]
    if code == _BITSHUFFLE and len(options) > 4 and options[4] == 2:
        return Algorithm.BSLZ4
    return Algorithm.LZ4_HDF5 if code == _LZ4 else None


def _pixel_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.str[1:] in ("u1", "u2", "u4") else np.dtype("u4")


def _metadata(
    linked: links.Linked, shape: tuple[int, int], dtype: np.dtype[Any], images: int, incomplete: bool
) -> SeriesMetadata:
    def number(allowed: bounds.Range, *paths: str) -> float | None:
        """The first of the paths that holds a sensible number; of one an image, the first image's."""
        for path in paths:
            found = _dataset(linked, path)
            if found is not None and found.size and found.dtype.kind in "uif":
                value = bounds.number(float(found[(0,) * found.ndim]), allowed)
                if value is not None:
                    return value
        return None

    def attribute(allowed: bounds.Range, name: str) -> float | None:
        value = np.asarray(linked.file.attrs.get(name, "absent"))
        return (
            bounds.number(float(value.ravel()[0]), allowed) if value.size == 1 and value.dtype.kind in "uif" else None
        )

    def text(path: str) -> str | None:
        found = _dataset(linked, path)
        value = found[()] if found is not None and found.shape == () else None
        return bounds.text(value.decode("utf-8", "replace")) if isinstance(value, bytes) else None

    det, spec = "entry/instrument/detector/", "entry/instrument/detector/detectorSpecific/"
    cxi = "entry_1/instrument_1/detector_1/"
    energy = (
        number(bounds.ENERGY_EV, spec + "photon_energy")
        or attribute(bounds.ENERGY_EV, "photon_energy")
        or number(bounds.ENERGY_EV, "photon_energy_eV")
    )
    wavelength = number(bounds.WAVELENGTH_A, "entry/instrument/beam/incident_wavelength")
    joule = number((_JOULE_PER_EV, 1e7 * _JOULE_PER_EV), "entry_1/instrument_1/source_1/energy")
    if energy is None and wavelength is not None:
        energy = HC_EV_ANGSTROM / wavelength
    if energy is None and joule is not None:
        energy = joule / _JOULE_PER_EV
    announced = images
    if incomplete:
        # What a lost data file held is missing, not unannounced.
        count = (1.0, 1e9)
        announced = max(images, int((number(count, spec + "nimages") or 0) * (number(count, spec + "ntrigger") or 1)))
    mask = next(
        (
            found
            for path in (spec + "pixel_mask", det + "pixel_mask", cxi + "mask", "entry_1/data_1/mask")
            if (found := _dataset(linked, path)) is not None and found.shape == shape and found.dtype.kind in "uib"
        ),
        None,
    )
    masks = {CHANNEL: _read_mask(mask)} if mask is not None else {}
    saturation = number(
        (1.0, bounds.MAX_SATURATION),
        det + "saturation_value",
        spec + "countrate_correction_count_cutoff",
        spec + "saturation_value",
    )
    threshold = number(bounds.ENERGY_EV, det + "threshold_energy")
    center_x, center_y = (number(bounds.BEAM_CENTER_PX, det + f"beam_center_{axis}") for axis in "xy")
    if not center_x and not center_y:
        center_x = center_y = None
    return SeriesMetadata(
        number_of_images=announced,
        shape=shape,
        dtype=dtype,
        channels=(CHANNEL,),
        beam_center_x_px=center_x,
        beam_center_y_px=center_y,
        camera_length_m=number(bounds.CAMERA_LENGTH_M, det + "detector_distance", cxi + "distance")
        or attribute(bounds.CAMERA_LENGTH_M, "clen")
        or number(bounds.CAMERA_LENGTH_M, "detector_distance"),
        photon_energy_eV=energy,
        threshold_energy_eV={CHANNEL: threshold} if threshold else {},
        pixel_size_x_m=number(bounds.PIXEL_SIZE_M, det + "x_pixel_size", cxi + "x_pixel_size"),
        pixel_size_y_m=number(bounds.PIXEL_SIZE_M, det + "y_pixel_size", cxi + "y_pixel_size"),
        count_time_s=number(bounds.DURATION_S, det + "count_time"),
        frame_time_s=number(bounds.DURATION_S, det + "frame_time"),
        saturation_value=int(saturation) if saturation else None,
        sensor_material=text(det + "sensor_material"),
        sensor_thickness_m=number(bounds.THICKNESS_M, det + "sensor_thickness"),
        detector_description=text(det + "description"),
        detector_serial=text(det + "detector_number"),
        arm_date=text(spec + "data_collection_date"),
        masks=masks,
    )


def _dataset(linked: links.Linked, path: str) -> h5py.Dataset | None:
    """What lies at the path, if it is a dataset; a link to nowhere is nothing, nor is one out of the file's folder."""
    try:
        found = linked.get(path)
    except (KeyError, OSError):
        return None
    return found if isinstance(found, h5py.Dataset) else None


def expand(sources: Sequence[str]) -> list[Member]:
    """As ``named_files``, every one of them there and HDF5. Raises ``BadInput``."""
    found = named_files(sources)
    for path, _ in found:
        _open(path).close()
    return found


def named_files(sources: Sequence[str]) -> list[Member]:
    """Files (and, from a list, the events of each) that the given paths, globs and lists name, whatever they hold.

    Raises ``BadInput`` for a glob without a match and for a list that is empty or cannot be read.
    """
    found: list[Member] = []
    for source in sources:
        if source.endswith(".lst"):
            found += _read_list(Path(source))
        elif glob.has_magic(source) and not Path(source).exists():
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise BadInput(f"{source}: no file matches; check the folder and the pattern")
            found += [(Path(match), None) for match in _without_parts(matches)]
        else:
            found.append((Path(source), None))
    return found


def _without_parts(matches: Sequence[str]) -> list[str]:
    """Without the data files whose master is there too: their images come with the master."""
    masters = {match.removesuffix("_master.h5") for match in matches if match.endswith("_master.h5")}
    part = re.compile(r"(.*)_data_\d+\.h5")
    return [match for match in matches if not ((found := part.fullmatch(match)) and found[1] in masters)]


def _read_list(path: Path) -> list[Member]:
    try:
        lines = read_text(path, "list of files (.lst)", MAX_LIST_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: the list cannot be read: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: the list cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BadInput(str(error)) from None
    found: list[Member] = []
    for line in lines:
        name, image = _named_image(line.strip())
        if not name or name.startswith("#"):
            continue
        # Beside the list, else where we run, as CrystFEL reads it.
        file = path.parent / name
        if not _exists(file) and _exists(Path(name)):
            file = Path(name)
        if image is None:
            found.append((file, None))
        elif found and found[-1][0] == file and found[-1][1] is not None:
            found[-1][1].append(image)
        else:
            found.append((file, [image]))
    if not found:
        raise BadInput(f"{path}: the list names no file")
    return found


def _named_image(line: str) -> tuple[str, int | None]:
    """File and image of a line such as ``run_1.h5 //17``; without an image the whole line is a name."""
    name, mark, number = line.rpartition("//")
    if mark and name[-1:].isspace() and number.isdecimal() and len(number) <= _MOST_DIGITS:
        return name.rstrip(), int(number)
    return line, None


def _exists(path: Path) -> bool:
    """Whether there is such a file; no name that no file can have is one."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def grouped(
    files: Sequence[Member], refuse: Callable[[BadInput], None] | None = None
) -> Iterator[tuple[FileSeries, Sequence[Member]]]:
    """Series by series: the first file, open, and all files of the series.

    Consecutive single-image files of the same layout and metadata make one series. A file
    that holds no series goes to ``refuse`` and is passed over; without it, it raises.
    """
    position = 0
    while position < len(files):
        try:
            first, end = FileSeries(*files[position]), position + 1
        except BadInput as error:
            if refuse is None:
                raise
            refuse(error)
            position += 1
            continue
        while len(first) == 1 and end < len(files) and _continues(first, files[end]):
            end += 1
        yield first, files[position:end]
        position = end


def _continues(first: FileSeries, member: Member) -> bool:
    try:
        other = FileSeries(*member)
    except BadInput:
        return False
    other.close()
    return len(other) == 1 and all(getattr(first.metadata, key) == getattr(other.metadata, key) for key in _ALIKE)


class FileSource:
    """Series of files, in order, as messages; series ids count from 1, image ids are positions.

    Consecutive single-image files of the same layout and metadata make one series. ``first`` is what the first file
    says of the detector.
    """

    connected = True

    def __init__(self, sources: Sequence[str]) -> None:
        self._files = expand(sources)
        # The first file has to be good, so that a wrong name is refused before anything is written.
        first = FileSeries(*self._files[0])
        self.first = first.metadata
        first.close()
        self.problems: list[str] = []
        self.exhausted = False
        self._messages = self._run()

    def receive(self, timeout_s: float) -> Received | None:
        """The next message at once; ``None`` when there are no more."""
        del timeout_s
        received = next(self._messages, None)
        self.exhausted = received is None
        return received

    def close(self) -> None:
        self._messages.close()

    def _run(self) -> Generator[Received, None, None]:
        for number, (first, group) in enumerate(grouped(self._files, self._refuse), 1):
            yield from self._series(number, first, group)

    def _refuse(self, error: BadInput) -> None:
        self._report([str(error)])

    def _report(self, problems: Sequence[str]) -> None:
        for problem in problems:
            log.warning("%s", problem)
        self.problems += problems

    def _series(self, series_id: int, first: FileSeries, group: Sequence[Member]) -> Iterator[Received]:
        announced = announced_images(first, len(group))
        yield _now(StartMessage(series_id, first.metadata.with_changes(number_of_images=announced)))
        ids = count()
        alone = len(group) == 1
        for member in group:
            series = first if member is group[0] else FileSeries(*member)
            self._report(series.problems)
            try:
                for position in range(len(series)):
                    image_id = series.image_id(position) if alone else next(ids)
                    yield self._image(series_id, image_id, series, position)
            finally:
                series.close()
        yield _now(EndMessage(series_id))

    @staticmethod
    def _image(series_id: int, image_id: int, series: FileSeries, position: int) -> Received:
        message = image_message(series_id, image_id, series, position)
        image = message.channels[CHANNEL]
        return Received(message, time.time(), len(image.data) if isinstance(image, ImageData) else 0)


def announced_images(first: FileSeries, files: int) -> int | None:
    """How many images a series of so many files, this one first, announces."""
    return first.metadata.number_of_images if files == 1 else files


def image_message(series_id: int, image_id: int, series: FileSeries, position: int) -> ImageMessage:
    """The image at ``position`` of a file as the message of a stream; one that cannot be read is a defect."""
    frame_time, count_time = series.metadata.frame_time_s, series.metadata.count_time_s
    return ImageMessage(
        series_id,
        image_id,
        {CHANNEL: series.image_or_defect(position)},
        # Whole nanoseconds, as a detector's clock gives them.
        start_time_s=None if frame_time is None else round(image_id * frame_time, 9),
        exposure_s=None if count_time is None else round(count_time, 9),
    )


def _now(message: StartMessage | EndMessage) -> Received:
    return Received(message, time.time(), 0)
