"""A CrystFEL geometry file put to use: where each panel stands for the analysis, and which pixels it leaves out.

What the file states in numbers holds; what it takes from the image's metadata, or does not say, is the series'
header's: camera length, photon energy, the detector's shift. Panels may lean, turn, stand apart and have pixels of
their own size; they have to lie in one image.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzer.geometry import MAX_RADIUS_PX, Geometry, Panels, series_geometry
from analyzer.mask_file import BadMask, read_flags
from streamer.bounds import MAX_SIDE_PX
from streamer.geometry_file import BadArea, DetectorGeometry, Panel, Quantity, read_geometry, short
from streamer.messages import SeriesMetadata
from streamer.validity import Validity, digest

MAX_PIXELS = 1 << 26
"""Four times the largest Eiger."""

CONTRADICTS = 0.01
"""From this on, a number of the file and one of the header are of two different measurements."""

_ON_GRID_PX = 1e-3
"""Panels that keep to one grid within this are one flat detector, whose pixels need no map."""

_LEAST_AREA = 0.05
"""A pixel whose steps span less of its size squared is a line."""

_LONGEST_STEP = 20.0
_SHIFTS_KEPT = 4
_UNITS_M = {"": 1.0, "m": 1.0, "mm": 1e-3}

Floats = npt.NDArray[np.float64]


class BadGeometry(ValueError):
    """A geometry file that cannot be used: one line with what, where and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class GivenGeometry:
    """A geometry file. ``shape`` (ss, fs) is that of the images it is for; ``mask`` is what it leaves out.

    ``mask`` is ``None`` where it leaves out nothing. It lacks bad areas in x/y of a detector whose shift only a header
    says; ``left_out`` has them.
    """

    name: str
    shape: tuple[int, int]
    mask: Validity | None
    detector: DetectorGeometry
    _by_shift: dict[tuple[float, float], tuple[Validity | None]] = field(default_factory=dict, repr=False)

    def fit(self, metadata: SeriesMetadata, shape: tuple[int, int]) -> Geometry:
        """The geometry of a series' images. Raises ``BadGeometry`` where the file is not for them."""
        if shape != self.shape:
            raise BadGeometry(
                f"{self.name} covers images of {self.shape[0]} x {self.shape[1]} pixels, the images are "
                f"{shape[0]} x {shape[1]}; give the geometry of this detector"
            )
        return _fitted(self.name, self.shape, self.detector, metadata)

    def left_out(self, metadata: SeriesMetadata) -> Validity | None:
        """What the file leaves out of a series' images; kept for the latest shifts. Raises ``BadGeometry``."""
        if not (self.detector.bad_areas and has_shift_of_header(self.detector)):
            return self.mask
        shift = shift_of(self.name, self.detector, metadata)
        known = self._by_shift.get(shift)
        if known is None:
            valid = np.ones(self.shape, np.uint8) if self.mask is None else self.mask.valid.copy()
            for panel in self.detector.panels:
                good = np.ones(panel.shape, np.bool_)
                _leave_out_areas(good, panel, self.detector, shift)
                valid[panel.min_ss : panel.max_ss + 1, panel.min_fs : panel.max_fs + 1] &= good
            known = (_named(self.name, valid),)
            for old in list(self._by_shift)[: 1 - _SHIFTS_KEPT]:
                self._by_shift.pop(old, None)
            self._by_shift[shift] = known
        return known[0]


def open_geometry(path: Path) -> GivenGeometry:
    """Read a geometry file and the mask files it names. Raises ``BadGeometry``."""
    try:
        detector = read_geometry(path)
    except OSError as error:
        raise BadGeometry(f"{path}: {error.strerror or error}; give a CrystFEL .geom file") from None
    except ValueError as error:
        raise BadGeometry(str(error)) from None
    shape = _shape(path, detector)
    _check_panels(path, detector)
    # With a header that says nothing, what is wrong in the file itself shows now.
    _fitted(path.name, shape, _without_places(detector), SeriesMetadata())
    return GivenGeometry(path.name, shape, _named(path.name, _valid(path, detector, shape)), detector)


def _named(name: str, valid: npt.NDArray[np.uint8]) -> Validity | None:
    return None if valid.all() else Validity(f"{name} {digest(valid)}", valid)


def place(
    given: GivenGeometry | None, mask: Validity | None, metadata: SeriesMetadata, shape: tuple[int, int]
) -> tuple[Geometry, Validity | None]:
    """The geometry of a series' images and what is left out besides its own mask.

    A geometry file that is not for these images is left aside, mask and all: the header's geometry then says so in
    ``unfit``. A user's mask that is not for them is left to ``series_validity``, or says so in what is left out here.
    """
    header = series_geometry(metadata, shape)
    if given is None:
        return header, mask
    try:
        geometry, left_out = given.fit(metadata, shape), given.left_out(metadata)
    except BadGeometry as error:
        return replace(header, unfit=str(error)), mask
    if left_out is None:
        return geometry, mask
    if mask is not None and mask.valid.shape != shape:
        return geometry, replace(left_out, unfit=mask.misfit(shape))
    return geometry, left_out.joined(mask)


def contradictions(given: GivenGeometry | None, metadata: SeriesMetadata | None) -> list[str]:
    """Numbers of a geometry file, which hold, that are more than ``CONTRADICTS`` from the header's: a line each."""
    if given is None or metadata is None or metadata.shape not in (None, given.shape):
        return []
    detector = given.detector
    clens = [panel.clen_m if panel.clen_m is not None else detector.clen_m for panel in detector.panels]
    length = None
    if all(isinstance(clen, float) for clen in clens):
        # With coffset, as what a refined geometry adds to a nominal clen may be what makes the two agree.
        length = _fitted(given.name, given.shape, _without_places(detector), SeriesMetadata()).camera_length_m
    pairs = (
        ("camera length", "m", length, metadata.camera_length_m),
        ("photon energy", "eV", detector.stated_photon_energy_eV, metadata.photon_energy_eV),
    )
    return [
        f"{given.name} has a {what} of {ours:.6g} {unit}, the header {theirs:.6g} {unit}; the file's is used"
        for what, unit, ours, theirs in pairs
        if ours and theirs and abs(ours / theirs - 1.0) > CONTRADICTS
    ]


def _shape(path: Path, detector: DetectorGeometry) -> tuple[int, int]:
    panels = detector.panels
    shape = max(p.max_ss for p in panels) + 1, max(p.max_fs for p in panels) + 1
    if max(shape) > MAX_SIDE_PX or shape[0] * shape[1] > MAX_PIXELS:
        raise BadGeometry(f"{path}: an image of {shape[0]} x {shape[1]} pixels, which no detector has")
    return shape


def _check_panels(path: Path, detector: DetectorGeometry) -> None:
    first = detector.panels[0]
    for panel in detector.panels:
        if (panel.data, panel.dims) != (first.data, first.dims):
            raise BadGeometry(
                f"{path}: panels {short(first.name)} and {short(panel.name)} lie in different datasets or slices of "
                "one; only a detector in one image can be used here"
            )
        fs, ss = np.array(panel.fs), np.array(panel.ss)
        short_enough = max(np.abs(fs).max(), np.abs(ss).max()) <= _LONGEST_STEP
        if not (short_enough and float(np.linalg.norm(np.cross(fs, ss))) >= _LEAST_AREA):
            raise BadGeometry(
                f"{path}: panel {short(panel.name)} has fs {panel.fs} and ss {panel.ss}, which span no pixel; "
                "they are directions of about one pixel, as '+1.0x -0.002y'"
            )


def _without_places(detector: DetectorGeometry) -> DetectorGeometry:
    def number(value: Quantity) -> Quantity:
        return None if isinstance(value, str) else value

    return replace(detector, shift_x_m=number(detector.shift_x_m), shift_y_m=number(detector.shift_y_m))


def _fitted(name: str, shape: tuple[int, int], detector: DetectorGeometry, metadata: SeriesMetadata) -> Geometry:
    panels = detector.panels
    shift = np.array([*shift_of(name, detector, metadata), 0.0])
    size = np.array([panel.pixel_size_m for panel in panels])[:, None]
    fs_m, ss_m = (np.array([getattr(panel, key) for panel in panels]) * size for key in ("fs", "ss"))
    corner = np.array([(panel.corner_x, panel.corner_y, 0.0) for panel in panels]) * size + shift
    clens = [
        camera_length_of(panel.clen_m if panel.clen_m is not None else detector.clen_m, metadata) for panel in panels
    ]
    known = [clen for clen in clens if clen is not None]
    reference = known[0] if len(known) == len(clens) else None
    corner[:, 2] = [
        panel.coffset_m + (0.0 if reference is None or clen is None else clen - reference)
        for panel, clen in zip(panels, clens, strict=True)
    ]
    extent = np.array([(panel.shape[1], panel.shape[0]) for panel in panels], np.float64)
    middle_z = corner[:, 2] + extent[:, 0] / 2 * fs_m[:, 2] + extent[:, 1] / 2 * ss_m[:, 2]
    # The plane of radii stands where the detector's pixels stand on average.
    plane_z = float(np.average(middle_z, weights=extent.prod(1)))
    corner[:, 2] -= plane_z
    length = None if reference is None else reference + plane_z
    pixel_m = float(np.average(size[:, 0], weights=extent.prod(1)))
    _check_places(name, panels, corner, fs_m, ss_m, extent, length, pixel_m)
    energy = detector.stated_photon_energy_eV or metadata.photon_energy_eV
    low = np.array([(panel.min_fs, panel.min_ss) for panel in panels], np.float64)
    flat = _grid(corner, fs_m, ss_m, extent, low, pixel_m)
    if flat is not None:
        return Geometry(shape, -flat[0] - 0.5, -flat[1] - 0.5, pixel_m, length, energy)
    bounds = [(p.min_ss, p.max_ss + 1, p.min_fs, p.max_fs + 1) for p in panels]
    there = Panels(bounds, corner + 0.5 * (fs_m + ss_m), fs_m, ss_m)
    fs, ss = _beam_center(there, shape)
    return Geometry(shape, fs, ss, pixel_m, length, energy, there)


def camera_length_of(stated: Quantity, metadata: SeriesMetadata) -> float | None:
    """A camera length in metres: the file's number, else the header's."""
    return stated if isinstance(stated, float) else metadata.camera_length_m


def has_shift_of_header(detector: DetectorGeometry) -> bool:
    """Whether only a header says where the detector stands across the beam."""
    return isinstance(detector.shift_x_m, str) or isinstance(detector.shift_y_m, str)


def shift_of(name: str, detector: DetectorGeometry, metadata: SeriesMetadata) -> tuple[float, float]:
    """The detector's shift along x and y in metres. Raises ``BadGeometry``."""
    return (
        shift_m(name, "detector_shift_x", detector.shift_x_m, metadata),
        shift_m(name, "detector_shift_y", detector.shift_y_m, metadata),
    )


def shift_m(name: str, key: str, stated: Quantity, metadata: SeriesMetadata) -> float:
    """A shift in metres, from the file or from the place in the header that it names. Raises ``BadGeometry``."""
    if not isinstance(stated, str):
        return stated or 0.0
    where, _, unit = stated.partition(" ")
    node: Any = metadata.raw
    for part in where.strip("/").split("/"):
        node = node.get(part) if hasattr(node, "get") else None
    if node is None:
        node = metadata.raw.get(where.rpartition("/")[2])
    if isinstance(node, bool) or not isinstance(node, (int, float)) or not abs(node) * _UNITS_M[unit] <= 10.0:
        raise BadGeometry(f"{name} takes {key} from {short(where)}, which the header does not say; give it in numbers")
    return float(node) * _UNITS_M[unit]


def _corners(corner: Floats, fs_m: Floats, ss_m: Floats, extent: Floats) -> Iterator[tuple[float, float, Floats]]:
    """The outer corners of all panels, (P, 3) each, with whether they are the far ones along fs and ss."""
    for along_fs in (0.0, 1.0):
        for along_ss in (0.0, 1.0):
            yield along_fs, along_ss, corner + along_fs * extent[:, :1] * fs_m + along_ss * extent[:, 1:] * ss_m


def _check_places(
    name: str,
    panels: tuple[Panel, ...],
    corner: Floats,
    fs_m: Floats,
    ss_m: Floats,
    extent: Floats,
    length: float | None,
    pixel_m: float,
) -> None:
    """Raises ``BadGeometry`` for a panel whose pixels no ray from the sample reaches within bounds."""
    for _, _, at in _corners(corner, fs_m, ss_m, extent):
        with np.errstate(all="ignore"):
            distance = np.hypot(at[:, 0], at[:, 1])
            if length is not None:
                behind = ~(at[:, 2] + length > 0.0)
                if behind.any():
                    panel = panels[int(behind.argmax())]
                    z = float(at[int(behind.argmax()), 2] + length)
                    raise BadGeometry(
                        f"{name}: panel {short(panel.name)} reaches to {z:.3g} m from the sample along the beam, which "
                        "has to be above 0; look at clen and coffset"
                    )
                distance = distance * length / (at[:, 2] + length)
            far = ~(distance / pixel_m < MAX_RADIUS_PX)
        if far.any():
            panel = panels[int(far.argmax())]
            raise BadGeometry(
                f"{name}: panel {short(panel.name)} stands {distance[int(far.argmax())] / pixel_m:.3g} pixels from the "
                f"beam, farther than {MAX_RADIUS_PX:.0f}; look at its corner_x, corner_y and res"
            )


def _grid(
    corner: Floats, fs_m: Floats, ss_m: Floats, extent: Floats, low: Floats, pixel_m: float
) -> tuple[float, float] | None:
    """Where the image's outer corner stands from the beam in pixels, if all panels keep to one flat grid."""
    found = []
    for along_fs, along_ss, at in _corners(corner, fs_m, ss_m, extent):
        index = low + extent * (along_fs, along_ss)
        found.append(at / pixel_m - np.concatenate([index, np.zeros((len(index), 1))], 1))
    offsets = np.concatenate(found)
    if not np.ptp(offsets, axis=0).max() <= _ON_GRID_PX:
        return None
    return float(offsets[:, 0].mean()), float(offsets[:, 1].mean())


def _beam_center(there: Panels, shape: tuple[int, int]) -> tuple[float, float]:
    """Where the beam meets the panel next to it, in pixel indices; the image's middle where all are seen edge-on."""
    best, nearest = (shape[1] / 2 - 0.5, shape[0] / 2 - 0.5), MAX_RADIUS_PX
    for p, (low_ss, high_ss, low_fs, high_fs) in enumerate(there.bounds.tolist()):
        origin, plane = there.origin_m[p], np.stack([there.fs_m[p], there.ss_m[p]], 1)
        # The beam is the line x = y = 0, wherever along it the panel stands.
        try:
            i, j = np.linalg.solve(plane[:2], -origin[:2])
        except np.linalg.LinAlgError:
            continue
        fs, ss = float(i) + low_fs, float(j) + low_ss
        away = math.hypot(
            max(low_fs - 0.5 - fs, fs - high_fs + 0.5, 0.0), max(low_ss - 0.5 - ss, ss - high_ss + 0.5, 0.0)
        )
        if away < nearest:
            best, nearest = (fs, ss), away
    return best


def _valid(path: Path, detector: DetectorGeometry, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(ss, fs) uint8, 1 where a panel has a pixel that no bad region, mask file or no_index leaves out."""
    valid = np.zeros(shape, np.uint8)
    read: dict[tuple[Path, str], npt.NDArray[Any]] = {}
    for panel in detector.panels:
        part = slice(panel.min_ss, panel.max_ss + 1), slice(panel.min_fs, panel.max_fs + 1)
        good = np.full(panel.shape, not panel.no_index)
        for mask in panel.masks:
            if mask.file is None or mask.data is None:
                continue  # a mask in the image's own file comes with the series
            key = _beside(path, mask.file), mask.data
            if key not in read:
                read[key] = _flags(path, *key, shape)
            flags = read[key][part]
            good &= (flags & np.uint64(mask.bad_bits)) == 0
            good &= (flags & np.uint64(mask.good_bits)) == np.uint64(mask.good_bits)
        if detector.bad_areas and not has_shift_of_header(detector):
            # Shifts in numbers need no header.
            _leave_out_areas(good, panel, detector, shift_of(path.name, detector, SeriesMetadata()))
        valid[part] = good
    for bad in detector.bad_pixels:
        valid[bad.min_ss : bad.max_ss + 1, bad.min_fs : bad.max_fs + 1] = 0
    return valid


def _beside(path: Path, name: str) -> Path:
    """A mask file's place: as the file names it, beside the geometry or where we run."""
    beside = path.parent / name
    return beside if beside.exists() or os.path.isabs(name) else Path(name)


def _flags(path: Path, file: Path, dataset: str, shape: tuple[int, int]) -> npt.NDArray[np.uint64]:
    try:
        flags = read_flags(file, dataset)
    except BadMask as error:
        raise BadGeometry(f"{path}: mask {error}") from None
    if flags.shape != shape:
        raise BadGeometry(
            f"{path}: mask {file}:{dataset} is {flags.shape[0]} x {flags.shape[1]} pixels, the panels cover "
            f"{shape[0]} x {shape[1]}; give one of their shape"
        )
    if flags.dtype.kind not in "uib":
        raise BadGeometry(f"{path}: mask {file}:{dataset} has values of {flags.dtype}; bits are whole numbers")
    return flags.astype(np.uint64)


def _leave_out_areas(
    good: npt.NDArray[np.bool_], panel: Panel, detector: DetectorGeometry, shift_m: tuple[float, float]
) -> None:
    """Pixels whose first corner lies inside a bad area of the laboratory, in pixels from the beam."""
    rows, columns = panel.shape
    i, j = np.arange(columns, dtype=np.float64)[None, :], np.arange(rows, dtype=np.float64)[:, None]
    shift = [value * panel.res_per_m for value in shift_m]
    x = panel.corner_x + shift[0] + i * panel.fs[0] + j * panel.ss[0]
    y = panel.corner_y + shift[1] + i * panel.fs[1] + j * panel.ss[1]
    box = x.min(), x.max(), y.min(), y.max()
    for area in detector.bad_areas:
        if _meets(area, *box):
            good &= ~((x > area.min_x) & (x < area.max_x) & (y > area.min_y) & (y < area.max_y))


def _meets(area: BadArea, low_x: float, high_x: float, low_y: float, high_y: float) -> bool:
    return area.min_x < high_x and area.max_x > low_x and area.min_y < high_y and area.max_y > low_y
