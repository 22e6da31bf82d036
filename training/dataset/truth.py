"""What is known of a simulated series, and what can be wrong with it.

Names are those of `sim_replay.series_file`; what is a constant of the series may be given once instead of a frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from streamer import bounds
from training.dataset.problems import Problem

SPOT_SIGMA_PX = 0.6
"""Standard deviation of a spot as the simulator's detector sees it."""

ROTATION_TOLERANCE = 1e-3

_PER_FRAME: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("hit", "class", "frame_index", "bragg_photons"), ()),
    "orientation": (3, 3),
}
"""Names that have a value (of this shape) for every frame."""

_FRAME_OR_SERIES = (
    "classes", "detectable", "log_likelihood_ratio", "orientation_all", "crystal_offset_m", "background_photons",
    "photon_energy_eV", "camera_length_m", "flux_photons", "water_scale", "water_thickness_m", "beam_center_x_px",
    "beam_center_y_px", "seed", "background_seed", "crystal_seed", "crystal_id",
)  # fmt: skip

SPOT_PLACE = ("spot_frame", "spot_ss", "spot_fs", "spot_photons")
"""What a list of spots must say of each."""

TABLE_NAMES = {
    "peak_frame": "spot_frame", "peak_ss": "spot_ss", "peak_fs": "spot_fs", "peak_photons": "spot_photons",
    "flux": "flux_photons",
}  # fmt: skip
"""Names in a table beside a master, and the names that a master has for them."""

_NAMES_IN_TABLES = {name: table_name for table_name, name in TABLE_NAMES.items()}

MAX_PHOTONS = 1e15
"""More than any pulse has."""

_RANGES: dict[str, bounds.Range] = {
    "photon_energy_eV": bounds.ENERGY_EV,
    "camera_length_m": bounds.CAMERA_LENGTH_M,
    "flux_photons": (0.0, MAX_PHOTONS),  # a frame without beam has none
    "water_scale": (0.0, 1e6),
    "water_thickness_m": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Truth of a series of `images` frames: values by name, and the file and group they stand in.

    problems are of what the file holds under these names and is not in the values: too large, or of a wrong kind.
    """

    images: int
    values: dict[str, NDArray[Any]]
    file: Path
    group: str
    problems: tuple[Problem, ...] = ()

    def where(self, name: str) -> str:
        """The dataset that a name stands for, as problems print it."""
        return f"{self.group}/{name}" if self.group else name

    def missing(self, *names: str) -> str:
        """One line that names those of the datasets that are not there; '' when all are."""
        gone = [name for name in names if name not in self.values]
        if not gone:
            return ""
        where = [self.where(name if self.group else _NAMES_IN_TABLES.get(name, name)) for name in gone]
        return f"{self.file}:{', '.join(where)} {'is' if len(gone) == 1 else 'are'} missing"

    def per_frame(self, name: str) -> NDArray[Any] | None:
        """A value a frame (N, ...), a constant of the series repeated; None when absent or of another length."""
        value = self.values.get(name)
        if value is None:
            return None
        if value.ndim == 0:
            return np.broadcast_to(value, (self.images,))
        return value if len(value) == self.images else None

    @property
    def hits(self) -> NDArray[np.bool_] | None:
        """Which frames are hits (N,); None when the truth does not say."""
        hit = self.per_frame("hit")
        return hit.astype(np.bool_) if hit is not None and hit.ndim == 1 and hit.dtype.kind in "bui" else None

    @property
    def classes(self) -> list[str]:
        """The class of every frame, as text; 'hit' and 'empty' where the truth has no classes."""
        named = self.per_frame("class")
        if named is not None and named.ndim == 1:
            names = (c.decode("utf-8", "replace") if isinstance(c, bytes) else str(c) for c in named.tolist())
            return [bounds.text(name) or "" for name in names]
        hits = self.hits
        return [] if hits is None else ["hit" if hit else "empty" for hit in hits]

    @property
    def has_spots(self) -> bool:
        """Whether the truth lists spots, all with place and photons."""
        lengths = {self.values[name].shape for name in SPOT_PLACE if name in self.values}
        return not self.missing(*SPOT_PLACE) and len(lengths) == 1

    def spots(self, frame: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """ss, fs (pixel index) and expected photons of a frame's true spots, (n,) each."""
        mine = np.flatnonzero(self.values["spot_frame"] == frame)
        ss, fs, photons = (self.values[f"spot_{name}"][mine].astype(np.float64) for name in ("ss", "fs", "photons"))
        return ss, fs, photons

    def signal(self, frame: int, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Photons expected of a frame's crystal, (ss, fs): each true spot a Gaussian integrated over the pixels.

        The streak of a mosaic crystal is not in the truth; a spot here is round, of SPOT_SIGMA_PX.
        """
        image = np.zeros(shape, np.float32)
        ss, fs, photons = self.spots(frame)
        reach = np.arange(-4, 5)
        rows, in_rows = _spread(ss, reach, shape[0])
        columns, in_columns = _spread(fs, reach, shape[1])
        value = photons[:, None, None] * in_rows[:, :, None] * in_columns[:, None, :]
        place = (np.broadcast_to(rows[:, :, None], value.shape), np.broadcast_to(columns[:, None, :], value.shape))
        np.add.at(image, place, value.astype(np.float32))
        return image


def _spread(
    center: NDArray[np.float64], reach: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pixels (n, w) around spots and the share of a Gaussian in each, 0 off the panel."""
    pixel = np.rint(center).astype(np.int64)[:, None] + reach
    edge = (np.append(pixel - 0.5, pixel[:, -1:] + 0.5, axis=1) - center[:, None]) / (np.sqrt(2.0) * SPOT_SIGMA_PX)
    share = np.diff(erf(edge), axis=1) / 2.0
    inside = (pixel >= 0) & (pixel < length)
    return np.clip(pixel, 0, length - 1), np.where(inside, share, 0.0)


def truth_problems(truth: Truth, shape: tuple[int, int], mask: NDArray[Any] | None) -> Iterator[Problem]:
    """All that is wrong with a truth on a panel (ss, fs) whose bad pixels are nonzero in mask."""
    yield from truth.problems
    yield from _lengths_wrong(truth)
    if "hit" not in truth.values and truth.where("hit") not in {problem.dataset for problem in truth.problems}:
        yield Problem(truth.file, truth.where("hit"), "the dataset is missing")
    yield from _classes_wrong(truth)
    yield from _orientations_wrong(truth)
    yield from _values_wrong(truth)
    yield from _indices_wrong(truth)
    yield from _spots_wrong(truth, shape)
    if mask is not None and mask.shape == shape:
        yield from _spots_dead(truth, shape, mask)


def unusable(truth: Truth, shape: tuple[int, int]) -> Iterator[Problem]:
    """Those problems of a truth that keep labels and images from being made of it."""
    yield from truth.problems
    yield from _lengths_wrong(truth)
    yield from _values_wrong(truth)
    yield from _spots_wrong(truth, shape)


def _lengths_wrong(truth: Truth) -> Iterator[Problem]:
    n = truth.images
    for name, inner in _PER_FRAME.items():
        value = truth.values.get(name)
        if value is not None and value.shape != (n, *inner):
            yield Problem(truth.file, truth.where(name), f"shape {value.shape}, {(n, *inner)} for {n} frames")
    for name in _FRAME_OR_SERIES:
        value = truth.values.get(name)
        if value is not None and value.ndim and len(value) != n:
            yield Problem(truth.file, truth.where(name), f"length {len(value)} for {n} frames")
    spots = truth.values.get("spot_frame")
    for name in ("ss", "fs", "photons", "counts", "h", "k", "l", "partiality", "crystal"):
        value = truth.values.get(f"spot_{name}")
        if value is not None and spots is not None and value.shape != spots.shape:
            yield Problem(
                truth.file, truth.where(f"spot_{name}"), f"shape {value.shape}, {spots.shape} as spot_frame has"
            )


def _classes_wrong(truth: Truth) -> Iterator[Problem]:
    hits = truth.hits
    if hits is None or truth.per_frame("class") is None:
        return
    protein = np.array(["protein" in name for name in truth.classes])
    if (bad := np.flatnonzero(protein != hits)).size:
        frame = int(bad[0])
        said = "a hit" if hits[frame] else "no hit"
        yield Problem(
            truth.file,
            truth.where("class"),
            f"frame {frame} is {said}, its class is '{truth.classes[frame]}'{_more(bad)}",
        )


def _orientations_wrong(truth: Truth) -> Iterator[Problem]:
    hits, orientation = truth.hits, truth.values.get("orientation")
    if hits is None or orientation is None or orientation.shape != (truth.images, 3, 3):
        return
    finite = np.isfinite(orientation).all(axis=(1, 2))
    if (bad := np.flatnonzero(hits & ~finite)).size:
        where = truth.where("orientation")
        yield Problem(truth.file, where, f"frame {bad[0]} is a hit and its orientation is not finite{_more(bad)}")
    yield from _no_rotations(truth, "orientation")
    if truth.per_frame("orientation_all") is not None:
        yield from _no_rotations(truth, "orientation_all")


def _no_rotations(truth: Truth, name: str) -> Iterator[Problem]:
    """Matrices (N, ..., 3, 3) that are finite and turn nothing."""
    value = truth.values[name]
    if value.ndim < 3 or value.shape[-2:] != (3, 3) or value.dtype.kind != "f" or not value.size:
        return
    matrices = value.reshape(truth.images, -1, 3, 3).astype(np.float64)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(matrices).all(axis=(2, 3)))
    # An entry of a rotation is at most 1; what is larger would overflow.
    matrices = np.clip(np.where(known[..., None, None], matrices, np.eye(3)), -2.0, 2.0)
    error = np.abs(matrices @ matrices.swapaxes(2, 3) - np.eye(3)).max(axis=(2, 3))
    wrong: NDArray[np.bool_] = np.logical_or(error > ROTATION_TOLERANCE, np.linalg.det(matrices) < 0)
    if (bad := np.flatnonzero(wrong.any(axis=1))).size:
        yield Problem(truth.file, truth.where(name), f"the matrix of frame {bad[0]} is no rotation{_more(bad)}")


def _values_wrong(truth: Truth) -> Iterator[Problem]:
    for name, (least, most) in _RANGES.items():
        value = truth.per_frame(name)
        if value is None:
            continue
        good: NDArray[np.bool_] = np.logical_and(value >= least, value <= most)  # NaN is neither
        if (bad := np.flatnonzero(~good)).size:
            text = f"{value[bad[0]]:g} in frame {bad[0]} is out of bounds{_more(bad)}"
            yield Problem(truth.file, truth.where(name), text)


def _indices_wrong(truth: Truth) -> Iterator[Problem]:
    index = truth.values.get("frame_index")
    if index is not None and index.shape == (truth.images,):
        values, counts = np.unique(index, return_counts=True)
        if (counts > 1).any():
            repeated = values[counts > 1]
            yield Problem(
                truth.file, truth.where("frame_index"), f"{repeated[0]} stands for more than one frame{_more(repeated)}"
            )


def _spots_wrong(truth: Truth, shape: tuple[int, int]) -> Iterator[Problem]:
    frame = truth.values.get("spot_frame")
    if frame is None:
        return
    if (bad := np.flatnonzero((frame < 0) | (frame >= truth.images))).size:
        yield Problem(
            truth.file,
            truth.where("spot_frame"),
            f"spot {bad[0]} is of frame {frame[bad[0]]}, there are {truth.images} frames{_more(bad)}",
        )
    photons = truth.values.get("spot_photons")
    if photons is not None and (bad := np.flatnonzero(~((photons >= 0) & (photons <= MAX_PHOTONS)))).size:
        text = f"{photons[bad[0]]:g} of spot {bad[0]} is out of bounds{_more(bad)}"
        yield Problem(truth.file, truth.where("spot_photons"), text)
    if (places := _places(truth)) is None:
        return
    ss, fs = places
    if (bad := np.flatnonzero(~_on_panel(ss, fs, shape))).size:
        n = bad[0]
        text = f"spot {n} at ss {ss[n]:g}, fs {fs[n]:g} is outside the panel of {shape[0]} x {shape[1]}{_more(bad)}"
        yield Problem(truth.file, truth.where("spot_ss"), text)


def _spots_dead(truth: Truth, shape: tuple[int, int], mask: NDArray[Any]) -> Iterator[Problem]:
    if (places := _places(truth)) is None:
        return
    ss, fs = places
    inside = _on_panel(ss, fs, shape)
    # A centroid may lie a part of a pixel inside a gap whose edge the spot lights.
    dead = np.ones(int(inside.sum()), dtype=np.bool_)
    for row in (np.floor(ss[inside]), np.ceil(ss[inside])):
        for column in (np.floor(fs[inside]), np.ceil(fs[inside])):
            place = (np.clip(row, 0, shape[0] - 1).astype(int), np.clip(column, 0, shape[1] - 1).astype(int))
            dead &= mask[place] != 0
    if (bad := np.flatnonzero(inside)[dead]).size:
        n = bad[0]
        text = f"spot {n} at ss {ss[n]:g}, fs {fs[n]:g} is in a gap or on a bad pixel{_more(bad)}"
        yield Problem(truth.file, truth.where("spot_ss"), text)


def _places(truth: Truth) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """ss and fs of the spots, where there is one of each for every spot."""
    frame, ss, fs = (truth.values.get(name) for name in ("spot_frame", "spot_ss", "spot_fs"))
    if frame is None or ss is None or fs is None or not ss.shape == fs.shape == frame.shape:
        return None
    return ss, fs


def _on_panel(ss: NDArray[Any], fs: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (ss >= -0.5) & (ss < shape[0] - 0.5) & (fs >= -0.5) & (fs < shape[1] - 0.5)
    return inside


def _more(bad: NDArray[Any]) -> str:
    return f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
