"""Where each pixel is: its angle from the beam, radial and azimuthal bins, resolution, rings.

A ``Geometry`` comes from the header of a series, or from a CrystFEL geometry file (``analyzer.panels``). Either way
one object serves peaks, profiles and rings. Radii are pixels in one plane across the beam, at the camera length: a
pixel of a panel that stands elsewhere, or leans, is where its ray from the sample meets that plane, so that a radius
stands for one scattering angle. Azimuth is folded into ``AZIMUTH_CLASSES`` classes between the first and the second
axis (fast and slow scan; the laboratory's x and y with panels), so that a polarised background needs no knowledge of
the beam to be followed.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamer.messages import HC_EV_ANGSTROM, SeriesMetadata

RADIAL_BIN_PX = 8.0
AZIMUTH_CLASSES = 3
DEFAULT_PIXEL_SIZE_M = 75e-6
MAX_RADIAL_BINS = 4096
MAX_RADIUS_PX = MAX_RADIAL_BINS * RADIAL_BIN_PX
RING_SPACINGS_ANGSTROM = (
    200.0, 100.0, 50.0, 30.0, 20.0, 15.0, 10.0, 7.0, 5.0, 4.0, 3.5, 3.0, 2.7, 2.5, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0
)  # fmt: skip
"""What rings are drawn at; those on the panel, thinned out."""

_CHUNK = 1 << 22
"""Points times panels looked at together."""

_RING_POINTS = 720

PANEL_NUMBERS = 14
"""Of a row of ``Geometry.panel_table``."""

Floats = npt.NDArray[np.float64]


class Panels:
    """Where the panels of a detector stand. Equal when every number is.

    ``bounds`` (P, 4): ss low, ss high, fs low, fs high of the image, half-open. ``origin_m`` (P, 3): the middle of each
    panel's first pixel; ``fs_m``, ``ss_m`` (P, 3): the step to the next pixel. x and y are from the beam, z is from the
    plane across the beam at the camera length.
    """

    __slots__ = ("_digest", "bounds", "fs_m", "origin_m", "ss_m")

    def __init__(self, bounds: npt.ArrayLike, origin_m: npt.ArrayLike, fs_m: npt.ArrayLike, ss_m: npt.ArrayLike):
        self.bounds: npt.NDArray[np.int64] = np.asarray(bounds, np.int64).reshape(-1, 4)
        self.origin_m, self.fs_m, self.ss_m = (
            np.asarray(each, np.float64).reshape(-1, 3) for each in (origin_m, fs_m, ss_m)
        )
        arrays = (self.bounds, self.origin_m, self.fs_m, self.ss_m)
        for each in arrays:
            each.setflags(write=False)
        self._digest = hashlib.sha256(b"".join(each.tobytes() for each in arrays)).digest()

    def __len__(self) -> int:
        return len(self.bounds)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Panels) and self._digest == other._digest)

    def __hash__(self) -> int:
        return hash(self._digest)

    def panel_of(self, fs: Floats, ss: Floats) -> npt.NDArray[np.intp]:
        """The panel that holds each position (N,), -1 for none."""
        found = np.full(len(fs), -1, np.intp)
        low_ss, high_ss, low_fs, high_fs = (self.bounds - 0.5).T
        step = max(1, _CHUNK // max(1, len(self)))
        for first in range(0, len(fs), step):
            x, y = fs[first : first + step, None], ss[first : first + step, None]
            inside = (x >= low_fs) & (x < high_fs) & (y >= low_ss) & (y < high_ss)
            held = inside.any(1)
            found[first : first + step][held] = inside[held].argmax(1)
        return found


@dataclass(frozen=True, slots=True)
class Geometry:
    """A detector. Beam centre as pixel indices (fs, ss).

    ``panels`` is ``None`` for a flat detector perpendicular to the beam; with panels the beam centre is where the beam
    meets the panel next to it. ``unfit`` says why a geometry file that was given is not used; empty when it is.
    """

    shape: tuple[int, int]
    beam_center_fs: float
    beam_center_ss: float
    pixel_size_m: float
    camera_length_m: float | None = None
    photon_energy_eV: float | None = None
    panels: Panels | None = None
    unfit: str = ""

    @property
    def measures_angles(self) -> bool:
        """Whether distance and photon energy are known, without which there is no q and no resolution."""
        return bool(self.camera_length_m and self.photon_energy_eV)

    def positions_px(self, fs: npt.ArrayLike, ss: npt.ArrayLike) -> tuple[Floats, Floats]:
        """x and y from the beam, in pixels of the plane at the camera length, of positions in pixel indices.

        The arguments broadcast. Positions on no panel are taken as on one flat detector.
        """
        fs, ss = np.broadcast_arrays(np.asarray(fs, np.float64), np.asarray(ss, np.float64))
        x, y = np.asarray(fs - self.beam_center_fs), np.asarray(ss - self.beam_center_ss)
        if self.panels is None:
            return x, y
        panels, shape = self.panels, fs.shape
        fs, ss, x, y = (each.reshape(-1) for each in (fs, ss, x, y))
        which = panels.panel_of(fs, ss)
        there = np.flatnonzero(which >= 0)
        p = which[there]
        i, j = fs[there] - panels.bounds[p, 2], ss[there] - panels.bounds[p, 0]
        place = panels.origin_m[p] + i[:, None] * panels.fs_m[p] + j[:, None] * panels.ss_m[p]
        x[there], y[there] = self._projected(place[:, 0], place[:, 1], place[:, 2])
        return x.reshape(shape), y.reshape(shape)

    def _projected(self, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Places in metres as pixels of the plane at the camera length; as they are where that is not known."""
        scale = 1.0 / self.pixel_size_m
        if self.camera_length_m:
            along = self.camera_length_m / (self.camera_length_m + z)
            return x * scale * along, y * scale * along
        return x * scale, y * scale

    def radius_px(self, fs: npt.ArrayLike, ss: npt.ArrayLike) -> Floats:
        """Detector radius of positions in pixel indices, in pixels of the plane at the camera length."""
        x, y = self.positions_px(fs, ss)
        return np.asarray(np.hypot(y, x), np.float64)

    @property
    def reach_px(self) -> float:
        """The largest radius of a pixel, which is one in a corner of a panel."""
        rows, columns = self.shape
        panels = [[0, rows, 0, columns]] if self.panels is None else self.panels.bounds.tolist()
        corners = [(fs, ss) for top, end, left, right in panels for ss in (top, end - 1) for fs in (left, right - 1)]
        fs, ss = np.array(corners, np.float64).T
        return float(self.radius_px(fs, ss).max())

    def radius_map(self) -> npt.NDArray[np.float32]:
        """``radius_px`` of every pixel (ss, fs)."""
        x, y = self.position_maps()
        return np.asarray(np.hypot(x, y), np.float32)

    def position_maps(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """x and y of every pixel, shapes that broadcast to (ss, fs)."""
        rows, columns = self.shape
        y = (np.arange(rows, dtype=np.float32) - self.beam_center_ss)[:, None]
        x = (np.arange(columns, dtype=np.float32) - self.beam_center_fs)[None, :]
        if self.panels is None:
            return x, y
        x, y = np.repeat(x, rows, 0), np.repeat(y, columns, 1)
        for (low_ss, high_ss, low_fs, high_fs), origin, fs_m, ss_m in zip(
            self.panels.bounds.tolist(), self.panels.origin_m, self.panels.fs_m, self.panels.ss_m, strict=True
        ):
            i = np.arange(high_fs - low_fs, dtype=np.float64)[None, :]
            j = np.arange(high_ss - low_ss, dtype=np.float64)[:, None]
            place = [origin[axis] + i * fs_m[axis] + j * ss_m[axis] for axis in range(3)]
            part = slice(low_ss, high_ss), slice(low_fs, high_fs)
            x[part], y[part] = self._projected(*place)
        return x, y

    def panel_table(self) -> Floats:
        """Where pixels are, for compiled loops: (P + 1, 14), the last row all that is on no panel.

        ss low, ss high, fs low, fs high of the image, half-open; then in pixels x, y, z of the first pixel's middle,
        the steps along fs and ss, each x, y, z, and one over the camera length, 0 where that is not known. A place
        times 1 / (1 + z / camera length) is what ``positions_px`` says.
        """
        rows, columns = self.shape
        flat = [0, rows, 0, columns, -self.beam_center_fs, -self.beam_center_ss, 0, 1, 0, 0, 0, 1, 0, 0]
        if self.panels is None:
            return np.array([flat], np.float64)
        panels, scale = self.panels, 1.0 / self.pixel_size_m
        table = np.zeros((len(panels) + 1, PANEL_NUMBERS))
        table[-1] = flat
        table[:-1, :4] = panels.bounds
        table[:-1, 4:13] = np.hstack([panels.origin_m, panels.fs_m, panels.ss_m]) * scale
        table[:-1, 13] = self.pixel_size_m / self.camera_length_m if self.camera_length_m else 0.0
        return table

    def q_per_angstrom(self, fs: npt.ArrayLike, ss: npt.ArrayLike) -> Floats | None:
        """q = 4 pi sin(theta) / lambda of positions in pixel indices; ``None`` without distance and energy."""
        return self.q_at(self.radius_px(fs, ss))

    def resolution_angstrom(self, fs: npt.ArrayLike, ss: npt.ArrayLike) -> Floats | None:
        """Bragg's d = 2 pi / q of positions in pixel indices, infinite in the beam; ``None`` as for q."""
        q = self.q_per_angstrom(fs, ss)
        if q is None:
            return None
        with np.errstate(divide="ignore"):
            return 2 * math.pi / q

    def q_at(self, radius_px: npt.ArrayLike) -> Floats | None:
        """q in 1/angstrom at detector radii; ``None`` without distance and energy."""
        if not self.camera_length_m or not self.photon_energy_eV:
            return None
        two_theta = np.arctan(np.asarray(radius_px, np.float64) * (self.pixel_size_m / self.camera_length_m))
        return np.asarray(4 * math.pi * self.photon_energy_eV / HC_EV_ANGSTROM * np.sin(two_theta / 2))

    def resolution_at(self, radius_px: float) -> float | None:
        """Bragg's d at one detector radius; ``None`` without distance and energy, and in the beam."""
        q = self.q_at(radius_px)
        return None if q is None or not q > 0 else float(2 * math.pi / q)

    def radius_of(self, spacing_angstrom: float) -> float | None:
        """The detector radius of a ring of spacing d; ``None`` without distance and energy, or from 2 theta = 90°."""
        if not self.camera_length_m or not self.photon_energy_eV or spacing_angstrom <= 0:
            return None
        sine = HC_EV_ANGSTROM / self.photon_energy_eV / (2 * spacing_angstrom)
        if sine >= math.sqrt(0.5):
            return None
        return self.camera_length_m * math.tan(2 * math.asin(sine)) / self.pixel_size_m

    def ring(self, radius_px: float, points: int = _RING_POINTS) -> list[Floats]:
        """The ring of a radius as lines on the image: arrays (n, 2) of fs, ss, pixel indices, within its edges.

        With panels, each carries its own arcs.
        """
        angle = np.linspace(0.0, 2 * math.pi, points + 1)
        x, y = radius_px * np.cos(angle), radius_px * np.sin(angle)
        if self.panels is None:
            fs, ss = x + self.beam_center_fs, y + self.beam_center_ss
            rows, columns = self.shape
            return _runs(fs, ss, (fs >= -0.5) & (fs <= columns - 0.5) & (ss >= -0.5) & (ss <= rows - 0.5))
        lines = []
        for p, (low_ss, high_ss, low_fs, high_fs) in enumerate(self.panels.bounds.tolist()):
            fs, ss = self._on_panel(p, x, y)
            inside = (fs >= low_fs - 0.5) & (fs <= high_fs - 0.5) & (ss >= low_ss - 0.5) & (ss <= high_ss - 0.5)
            lines += _runs(fs, ss, inside)
        return lines

    def _on_panel(self, p: int, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Where rays through the plane at the camera length, at x and y in pixels, meet a panel: fs, ss.

        NaN for a panel that is seen edge-on.
        """
        assert self.panels is not None
        origin, fs_m, ss_m = self.panels.origin_m[p], self.panels.fs_m[p], self.panels.ss_m[p]
        length = self.camera_length_m
        if length:
            # origin + i fs + j ss = t (x, y, length), all from the sample.
            rays = np.stack([x * self.pixel_size_m, y * self.pixel_size_m, np.full_like(x, length)], 1)
            columns = np.stack([np.broadcast_to(fs_m, rays.shape), np.broadcast_to(ss_m, rays.shape), -rays], 2)
            aims = np.broadcast_to(-(origin + np.array([0.0, 0.0, length])), rays.shape)
        else:
            plane = np.array([fs_m[:2], ss_m[:2]]).T
            columns = np.broadcast_to(plane, (len(x), 2, 2))
            aims = np.stack([x, y], 1) * self.pixel_size_m - origin[:2]
        try:
            solved = np.linalg.solve(columns, aims[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            solved = np.full((len(x), 2), np.nan)
        return solved[:, 0] + self.panels.bounds[p, 2], solved[:, 1] + self.panels.bounds[p, 0]

    def rings(self, spacings_angstrom: Sequence[float] = RING_SPACINGS_ANGSTROM, most: int = 6) -> list["Ring"]:
        """Up to ``most`` of these spacings as rings that reach the image, well apart, widest spacing first."""
        reach = self.reach_px
        chosen: list[tuple[float, float]] = []
        for spacing in sorted(spacings_angstrom, reverse=True):
            radius = self.radius_of(spacing)
            apart = radius is not None and radius - (chosen[-1][1] if chosen else 0.0) >= reach / (most + 1)
            if radius is not None and apart and radius < reach:
                chosen.append((spacing, radius))
        found = [Ring(spacing, radius, self.ring(radius)) for spacing, radius in chosen]
        return [ring for ring in found if ring.lines][:most]


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """A resolution ring: its radius in pixels, and ``lines`` (n, 2) of fs, ss on the image."""

    spacing_angstrom: float
    radius_px: float
    lines: list[Floats]


def _runs(fs: Floats, ss: Floats, inside: npt.NDArray[np.bool_]) -> list[Floats]:
    """The parts of a line that lie inside, each of two points or more."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return [np.stack([fs[low:high], ss[low:high]], 1) for low, high in edges.reshape(-1, 2) if high - low > 1]


@dataclass(frozen=True, slots=True, eq=False)
class BinMap:
    """``bin_of`` (ss * fs,) uint16: radial bin * AZIMUTH_CLASSES + azimuth class of each pixel."""

    bin_of: npt.NDArray[np.uint16]
    radial_bins: int

    @property
    def bins(self) -> int:
        return self.radial_bins * AZIMUTH_CLASSES


def series_geometry(metadata: SeriesMetadata, shape: tuple[int, int]) -> Geometry:
    """The geometry a header describes; the middle of the panel where it names no beam centre."""
    center_x, center_y = metadata.beam_center_x_px, metadata.beam_center_y_px
    reach = 4 * max(shape)
    if center_x is None or center_y is None or not (abs(center_x) < reach and abs(center_y) < reach):
        center_x, center_y = shape[1] / 2, shape[0] / 2
    return Geometry(
        shape,
        # Edge-based on the wire and in files, index-based here: the one place of the half pixel.
        center_x - 0.5,
        center_y - 0.5,
        metadata.pixel_size_x_m or DEFAULT_PIXEL_SIZE_M,
        metadata.camera_length_m,
        metadata.photon_energy_eV,
    )


def bin_map(geometry: Geometry) -> BinMap:
    """Radial and azimuthal bin of every pixel."""
    x, y = geometry.position_maps()
    radial = np.minimum(np.hypot(x, y) / RADIAL_BIN_PX, MAX_RADIAL_BINS - 1).astype(np.uint16)
    azimuth = np.arctan2(np.abs(y), np.abs(x)) * (AZIMUTH_CLASSES / (math.pi / 2))
    np.minimum(azimuth, AZIMUTH_CLASSES - 1, out=azimuth)
    bin_of = radial * np.uint16(AZIMUTH_CLASSES) + azimuth.astype(np.uint16)
    return BinMap(bin_of.reshape(-1), int(radial.max()) + 1)
