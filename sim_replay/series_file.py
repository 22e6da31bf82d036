"""Series on disk as the Eiger file writer lays them out, with the truth of a simulation added.

    PREFIX_master.h5            /entry/data/data_000001 ... (external links), /entry/instrument/..., /entry/truth/...
    PREFIX_data_000001.h5 ...   /entry/data/data (N, ss, fs), one bitshuffle-LZ4 chunk an image

/entry/truth holds, per frame (N): hit bool, class 'protein' or 'water', orientation (N, 3, 3) float64 (NaN without a
crystal), frame_index int64 (the frame's number in the unsharded series), bragg_photons float64; per true spot:
spot_frame int64 (position in this file, from 0), spot_ss, spot_fs (pixel index), spot_photons (expected), spot_h,
spot_k, spot_l; and for the series: photon_energy_eV, camera_length_m, flux_photons, water_scale, seed and what else
the writer was given.

Everything is written under temporary names and renamed when complete, the master last: a master that exists is whole.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from sim_replay.crystal import Crystal, proteinase_k, read_hkl
from sim_replay.detector import CONDITIONS, HC_EV_ANGSTROM, Condition, Detector, beam_center_px, eiger2_4m
from sim_replay.diffraction import Sample
from sim_replay.shots import Shot, TrueSpots, frame_rng, simulate_shot

IMAGES_PER_FILE = 1000
"""The file writer's default."""

MAX_FLUX_PHOTONS = 1e15
"""A thousand times a free-electron laser's pulse; from 1e23 a pixel's counts pass 64 bits."""

MAX_WATER_SCALE = 1e4
"""A metre of water."""

MAX_MOSAICITY_DEG = 3.0
"""Protein crystals stay below 1; the memory of a frame grows with the length of its streaks."""

TruthValue = float | int | str | NDArray[Any]


class SeriesWriter:
    """Write one series; a context manager.

    Leaving the block normally renames the files into place; leaving it with any exception, Ctrl-C included, removes
    what was written. Raises FileExistsError on entry when outputs are there and overwrite is false.
    """

    def __init__(
        self,
        prefix: str | os.PathLike[str],
        detector: Detector,
        condition: Condition,
        *,
        seed: int = 0,
        overwrite: bool = False,
        images_per_file: int = IMAGES_PER_FILE,
        frame_time_s: float = 1e-3,
        count_time_s: float = 1e-3,
        truth_constants: Mapping[str, TruthValue] | None = None,
    ) -> None:
        if images_per_file < 1:
            raise ValueError(f"images_per_file must be 1 or more, not {images_per_file}")
        if not 0.0 < count_time_s <= frame_time_s:
            raise ValueError(f"count_time_s must be above 0 and at most frame_time_s, not {count_time_s}")
        self._prefix = Path(prefix)
        if not self._prefix.name:
            raise ValueError(f"output prefix '{prefix}' must end in a file name, as in runs/lysozyme")
        self._detector = detector
        self._condition = condition
        self._seed = seed
        self._overwrite = overwrite
        self._images_per_file = images_per_file
        self._frame_time_s = frame_time_s
        self._count_time_s = count_time_s
        self._truth_constants = dict(truth_constants or {})
        self._temporaries: list[tuple[Path, Path]] = []  # (where it is, where it goes)
        self._file: h5py.File | None = None
        self._images: h5py.Dataset | None = None
        self._hits: list[bool] = []
        self._orientations: list[NDArray[np.float64]] = []
        self._frame_indices: list[int] = []
        self._bragg_photons: list[float] = []
        self._spots: list[tuple[int, TrueSpots]] = []

    @property
    def master_path(self) -> Path:
        """Where the master file goes."""
        return self._prefix.with_name(self._prefix.name + "_master.h5")

    def _data_path(self, number: int) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}_data_{number:06d}.h5")

    def _existing(self) -> list[Path]:
        pattern = re.compile(re.escape(self._prefix.name) + r"_(master|data_\d{6})\.h5")
        if not self._prefix.parent.is_dir():
            return []
        return sorted(path for path in self._prefix.parent.iterdir() if pattern.fullmatch(path.name))

    def __enter__(self) -> SeriesWriter:
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_existing()
        return self

    def _refuse_existing(self) -> None:
        existing = self._existing()
        if existing and not self._overwrite:
            raise FileExistsError(f"{existing[0]} exists already; choose another prefix or allow overwriting")

    def describe_sample(self, sample: Sample) -> None:
        """Say in the truth what crystal the hits have."""
        self._truth_constants.update(
            crystal=sample.crystal.name,
            cell=np.array(sample.crystal.cell),
            crystal_size_m=sample.size_m,
            mosaicity_deg=sample.mosaicity_deg,
            bandwidth=sample.bandwidth,
        )

    def append(self, shot: Shot, frame_index: int | None = None) -> None:
        """Add one frame; frame_index is its number in the whole series, by default its position in this one."""
        position = len(self._hits)
        within = position % self._images_per_file
        if within == 0:
            self._close_data()
            self._open_data(position // self._images_per_file + 1)
        assert self._images is not None
        self._images.resize(within + 1, axis=0)
        self._images[within] = shot.counts
        self._hits.append(shot.hit)
        self._orientations.append(shot.orientation)
        self._frame_indices.append(position if frame_index is None else frame_index)
        self._bragg_photons.append(shot.bragg_photons)
        self._spots.append((position, shot.spots))

    def _temporary(self, final: Path) -> Path:
        temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
        self._temporaries.append((temporary, final))
        return temporary

    def _open_data(self, number: int) -> None:
        rows, columns = self._detector.shape
        self._file = h5py.File(self._temporary(self._data_path(number)), "w")
        self._images = self._file.create_dataset(
            "entry/data/data",
            (0, rows, columns),
            self._detector.dtype,
            maxshape=(self._images_per_file, rows, columns),
            chunks=(1, rows, columns),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )

    def _close_data(self) -> None:
        if self._file is None or self._images is None:
            return
        last = len(self._hits)
        self._images.attrs["image_nr_low"] = last - self._images.shape[0] + 1
        self._images.attrs["image_nr_high"] = last
        self._file["entry"].attrs["NX_class"] = "NXentry"
        self._file["entry/data"].attrs["NX_class"] = "NXdata"
        self._file.close()
        self._file = self._images = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = self._images = None
            for temporary, _ in self._temporaries:
                temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self._hits:
            raise ValueError("a series needs at least one frame")
        self._close_data()
        data_files = len(self._temporaries)
        self._write_master(self._temporary(self.master_path), data_files)
        self._refuse_existing()  # another writer may have been quicker
        # Without the old master no reader can mix old metadata with new images, whenever this is interrupted.
        self.master_path.unlink(missing_ok=True)
        for old in self._existing():
            old.unlink()
        placed: list[Path] = []
        try:
            for temporary, final in self._temporaries:  # the master is last
                os.replace(temporary, final)
                placed.append(final)
        except BaseException:
            for final in placed:
                final.unlink(missing_ok=True)
            raise

    def _write_master(self, path: Path, data_files: int) -> None:
        detector, condition = self._detector, self._condition
        rows, columns = detector.shape
        center_x, center_y = beam_center_px(condition, detector)
        energy = condition.photon_energy_eV
        mask = detector.mask.astype("u4")
        with h5py.File(path, "w") as master:
            entry = _group(master, "entry", "NXentry")
            data = _group(entry, "data", "NXdata")
            for number in range(1, data_files + 1):
                data[f"data_{number:06d}"] = h5py.ExternalLink(self._data_path(number).name, "/entry/data/data")
            _group(entry, "instrument", "NXinstrument")
            group = _group(entry, "instrument/detector", "NXdetector")
            for key, value, units in (
                ("description", detector.name, None),
                ("detector_number", "E-18-0000", None),
                ("x_pixel_size", detector.pixel_size_m, "m"),
                ("y_pixel_size", detector.pixel_size_m, "m"),
                ("detector_distance", condition.camera_length_m, "m"),
                ("beam_center_x", float(center_x), "pixel"),
                ("beam_center_y", float(center_y), "pixel"),
                ("count_time", self._count_time_s, "s"),
                ("frame_time", self._frame_time_s, "s"),
                ("sensor_material", "Si", None),
                ("sensor_thickness", 4.5e-4, "m"),
                ("bit_depth_image", 8 * np.dtype(detector.dtype).itemsize, None),
                ("bit_depth_readout", 16, None),
                ("threshold_energy", energy / 2.0, "eV"),
                ("saturation_value", detector.saturation_value, None),
            ):
                group[key] = value
                if units is not None:
                    group[key].attrs["units"] = units
            group.create_dataset("pixel_mask", data=mask, chunks=mask.shape, **hdf5plugin.Bitshuffle(cname="lz4"))
            specific = _group(group, "detectorSpecific", "NXcollection")
            for name, number_value in (
                ("nimages", len(self._hits)),
                ("ntrigger", 1),
                ("photon_energy", energy),
                ("countrate_correction_count_cutoff", detector.saturation_value),
                ("x_pixels_in_detector", columns),
                ("y_pixels_in_detector", rows),
            ):
                specific[name] = number_value
            specific["pixel_mask"] = group["pixel_mask"]  # a hard link: one copy under both names
            _group(entry, "instrument/beam", "NXbeam")
            entry["instrument/beam/incident_wavelength"] = HC_EV_ANGSTROM / energy
            entry["instrument/beam/incident_wavelength"].attrs["units"] = "angstrom"
            entry["sample/goniometer/omega_range_average"] = 0.0
            self._write_truth(entry.create_group("truth"))

    def _write_truth(self, truth: h5py.Group) -> None:
        condition = self._condition
        truth["hit"] = np.array(self._hits, dtype=np.bool_)
        truth["class"] = np.array([b"protein" if hit else b"water" for hit in self._hits], dtype="S7")
        truth["orientation"] = np.stack(self._orientations)
        truth["frame_index"] = np.array(self._frame_indices, dtype=np.int64)
        truth["bragg_photons"] = np.array(self._bragg_photons)
        truth["spot_frame"] = np.concatenate([np.full(len(s), n, dtype=np.int64) for n, s in self._spots])
        for name in ("ss", "fs", "photons"):
            truth[f"spot_{name}"] = np.concatenate([getattr(s, name) for _, s in self._spots])
        hkl = np.concatenate([s.hkl for _, s in self._spots])
        for column, name in enumerate("hkl"):
            truth[f"spot_{name}"] = hkl[:, column]
        for name in ("photon_energy_eV", "camera_length_m", "flux_photons", "water_scale"):
            truth[name] = float(getattr(condition, name))
        truth["seed"] = self._seed
        for name, value in self._truth_constants.items():
            truth[name] = value


def _group(parent: h5py.Group, name: str, nexus_class: str) -> h5py.Group:
    group = parent.require_group(name)
    group.attrs["NX_class"] = nexus_class
    return group


def write_series(
    prefix: str | os.PathLike[str],
    shots: Iterable[Shot],
    detector: Detector,
    condition: Condition,
    *,
    seed: int = 0,
    overwrite: bool = False,
    images_per_file: int = IMAGES_PER_FILE,
    truth_constants: Mapping[str, TruthValue] | None = None,
) -> Path:
    """Write shots as one series and return the master's path; see `SeriesWriter`."""
    writer = SeriesWriter(
        prefix,
        detector,
        condition,
        seed=seed,
        overwrite=overwrite,
        images_per_file=images_per_file,
        truth_constants=truth_constants,
    )
    with writer:
        for shot in shots:
            writer.append(shot)
    return writer.master_path


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """What to simulate. Checked when made: ValueError names the setting and what to do.

    Either condition (1 to 9, the paper's) or camera_length_m with photon_energy_eV; neither means condition 5.
    flux_photons is photons a pulse; water_scale the water in units of 100 um; hkl_path a CrystFEL reflection list of
    proteinase K's cell, None for random intensities of the same statistics. shard (i, n) writes the i-th of n
    contiguous parts, frame for frame what the whole series holds there.
    """

    frames: int = 100
    condition: int | None = None
    camera_length_m: float | None = None
    photon_energy_eV: float | None = None
    flux_photons: float = 3e8
    water_scale: float = 1.0
    hit_fraction: float = 0.5
    seed: int = 0
    hkl_path: str | os.PathLike[str] | None = None
    crystal_size_m: float = 10e-6
    mosaicity_deg: float = 0.05
    bandwidth: float = 0.01
    dtype: str = "uint16"
    shard: tuple[int, int] = (0, 1)
    overwrite: bool = False
    images_per_file: int = IMAGES_PER_FILE

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; give 1 or more")
        if self.condition is not None:
            if self.condition not in CONDITIONS:
                raise ValueError(f"condition is {self.condition}; give 1 to 9")
            if self.camera_length_m is not None or self.photon_energy_eV is not None:
                raise ValueError(
                    "condition fixes camera_length_m and photon_energy_eV; give either the condition or those two"
                )
        elif (self.camera_length_m is None) != (self.photon_energy_eV is None):
            missing = "camera_length_m" if self.camera_length_m is None else "photon_energy_eV"
            raise ValueError(f"{missing} is missing; give camera_length_m and photon_energy_eV together")
        for name, unit in (
            ("camera_length_m", "a length in metres"),
            ("photon_energy_eV", "an energy in eV"),
            ("flux_photons", "photons a pulse"),
            ("crystal_size_m", "a length in metres"),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} is {value}; give {unit} above 0")
        if self.flux_photons > MAX_FLUX_PHOTONS:
            raise ValueError(f"flux_photons is {self.flux_photons}; give photons a pulse up to {MAX_FLUX_PHOTONS:g}")
        for name, unit, most in (
            ("water_scale", "multiples of 100 um", MAX_WATER_SCALE),
            ("mosaicity_deg", "degrees", MAX_MOSAICITY_DEG),
        ):
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise ValueError(f"{name} is {value}; give {unit}, from 0 to {most:g}")
        if not 0.0 <= self.hit_fraction <= 1.0:
            raise ValueError(f"hit_fraction is {self.hit_fraction}; give a number from 0 to 1")
        if not 0.0 < self.bandwidth < 1.0:
            raise ValueError(f"bandwidth is {self.bandwidth}; give a relative width between 0 and 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; give an integer from 0 to 2^63 - 1")
        if self.dtype not in ("uint16", "uint32"):
            raise ValueError(f"dtype is '{self.dtype}'; give uint16 or uint32")
        if self.images_per_file < 1:
            raise ValueError(f"images_per_file is {self.images_per_file}; give 1 or more")
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"shard is {index}/{count}; give i/n with i from 0 to n - 1")
        if not self.frame_range:
            raise ValueError(f"shard {index}/{count} of {self.frames} frames is empty; give fewer shards")

    @property
    def frame_range(self) -> range:
        """The frames of the whole series that this shard writes."""
        index, count = self.shard
        return range(index * self.frames // count, (index + 1) * self.frames // count)

    @property
    def shot_condition(self) -> Condition:
        """The condition with flux and water filled in."""
        if self.camera_length_m is not None and self.photon_energy_eV is not None:
            energy, length = self.photon_energy_eV, self.camera_length_m
        else:
            paper = CONDITIONS[5 if self.condition is None else self.condition]
            energy, length = paper.photon_energy_eV, paper.camera_length_m
        return Condition(energy, length, self.flux_photons, self.water_scale)


def simulate_frame(
    settings: SimulationSettings, frame_index: int, sample: Sample, detector: Detector, out: NDArray[Any] | None = None
) -> Shot:
    """Frame `frame_index` of the series that settings describe; depends on nothing but these."""
    rng = frame_rng(settings.seed, frame_index)
    hit = bool(rng.random() < settings.hit_fraction)
    return simulate_shot(settings.shot_condition, sample if hit else None, detector, rng, out)


def simulate_series(
    prefix: str | os.PathLike[str],
    settings: SimulationSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    detector: Detector | None = None,
) -> Path:
    """Simulate a series, or a shard of one, into PREFIX_master.h5 and its data files; returns the master's path.

    progress, if given, is called with (frames done, frames to do) after each frame. detector defaults to the EIGER2
    X 4M in the settings' dtype. Raises FileExistsError when outputs exist and overwriting is not allowed, ValueError
    for a malformed reflection list, OSError when reading or writing fails.
    """
    settings = SimulationSettings() if settings is None else settings
    detector = eiger2_4m(settings.dtype) if detector is None else detector
    condition = settings.shot_condition
    writer = SeriesWriter(
        prefix,
        detector,
        condition,
        seed=settings.seed,
        overwrite=settings.overwrite,
        images_per_file=settings.images_per_file,
    )
    with writer:
        crystal = _crystal(settings)
        sample = Sample(
            crystal,
            size_m=settings.crystal_size_m,
            mosaicity_deg=settings.mosaicity_deg,
            bandwidth=settings.bandwidth,
        )
        writer.describe_sample(sample)
        frames = settings.frame_range
        image = np.zeros(detector.shape, dtype=detector.dtype)
        for done, frame_index in enumerate(frames, start=1):
            writer.append(simulate_frame(settings, frame_index, sample, detector, image), frame_index)
            if progress is not None:
                progress(done, len(frames))
    return writer.master_path


def _crystal(settings: SimulationSettings) -> Crystal:
    return proteinase_k() if settings.hkl_path is None else read_hkl(settings.hkl_path)
