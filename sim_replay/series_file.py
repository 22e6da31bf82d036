"""Series on disk as the Eiger file writer lays them out, with the truth of a simulation added.

    PREFIX_master.h5            /entry/data/data_000001 ... (external links), /entry/instrument/..., /entry/truth/...
    PREFIX_data_000001.h5 ...   /entry/data/data (N, ss, fs), one bitshuffle-LZ4 chunk an image

The master is NXmx too, a series of stills: one detector module whose place follows from the beam centre and the camera
length, and /entry/data/data, all images as one virtual dataset. DIALS reads these; without the latter it would see
the first data file alone.

/entry/truth holds, for each of N frames: crystal (bool, a crystal was in the light), hit (bool, it sends light to live
pixels, however little), class (its main kind, text),
classes (uint32, the bits of `distractors.Kind`, named by the attribute 'names'), log_likelihood_ratio and detectable
(bool, above 3), orientation (N, 3, 3) of the first crystal and orientation_all (N, C, 3, 3) where C > 1 are in a shot,
crystal_offset_m (N, C, 2), all NaN without a crystal, frame_index (int64, the frame's number in the unsharded series),
bragg_photons and background_photons (expected on live pixels), and what the shot was made with: photon_energy_eV,
camera_length_m, flux_photons (a pulse), water_thickness_m, beam_center_x_px, beam_center_y_px (edge-based).
For each true spot: spot_frame (int64, position in this file, from 0), spot_ss, spot_fs (pixel index, centroid of the
expected counts), spot_photons and spot_counts (expected), spot_h, spot_k, spot_l, spot_partiality, spot_crystal; for
each spot of a salt crystal the same as salt_spot_*; for each powder ring in reach ring_frame, ring_kind (a bit of
classes), ring_d_angstrom, ring_photons (expected in the whole ring) and ring_spotty (their share in grains); salt, the
names of a frame's salt crystals. For the series: seed, scene (JSON) and what else the writer is
given.

Everything is written under temporary names and renamed when complete, the master last: a master that exists is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import bitshuffle
import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from sim_replay.detector import Condition, Detector, beam_center_px
from sim_replay.distractors import Kind, main_class
from sim_replay.shots import Shot
from sim_replay.truth import ShotTruth, TrueSpots
from streamer.messages import SeriesMetadata
from streamer.nxmx import nexus_group, write_instrument

IMAGES_PER_FILE = 1000
"""The file writer's default."""

TruthValue = float | int | str | NDArray[Any]


def packed(image: NDArray[np.unsignedinteger]) -> bytes:
    """An image (ss, fs) as the chunk that HDF5's bitshuffle-LZ4 filter stores.

    Twelve bytes of header (total size, block size, big-endian), then the blocks; see the bitshuffle filter's
    documentation (filter 32008).
    """
    block = 8192 // image.itemsize  # elements; the filter's own default
    body: NDArray[np.uint8] = bitshuffle.compress_lz4(image.reshape(-1), block)
    return struct.pack(">QI", image.nbytes, block * image.itemsize) + body.tobytes()


def write_chunk(images: h5py.Dataset, number: int, chunk: bytes) -> None:
    """Store a `packed` image as it is. Raises OSError when the disk is full, of one line where HDF5's has several."""
    try:
        images.id.write_direct_chunk((number, 0, 0), chunk)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), images.file.filename) from None


class SeriesWriter:
    """Write one series; a context manager.

    threshold: of the pixels, as a part of the photon energy. dead: flat indices of pixels that the mask names as dead.
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
        threshold: float = 0.5,
        dead: NDArray[np.int64] | None = None,
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
        self._threshold = threshold
        self._dead = np.empty(0, dtype=np.int64) if dead is None else dead
        self._truth_constants = dict(truth_constants or {})
        self._temporaries: list[tuple[Path, Path]] = []  # (where it is, where it goes)
        self._file: h5py.File | None = None
        self._images: h5py.Dataset | None = None
        self._truths: list[ShotTruth] = []
        self._frame_indices: list[int] = []

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
        self._clear_leftovers()
        return self

    def _clear_leftovers(self) -> None:
        """Remove what runs left here that were killed on this machine."""
        pattern = re.compile(rf"\.{re.escape(self._prefix.name)}_.*\.h5\.{re.escape(_host())}-(\d+)\.part")
        for path in self._prefix.parent.iterdir():
            found = pattern.fullmatch(path.name)
            if found is not None and not Path(f"/proc/{found[1]}").exists():
                path.unlink(missing_ok=True)

    def _refuse_existing(self) -> None:
        existing = self._existing()
        for path in existing:
            if not path.is_file():
                raise IsADirectoryError(errno.EISDIR, "is no file that could be replaced; remove it", str(path))
        if existing and not self._overwrite:
            raise FileExistsError(f"{existing[0]} exists already; choose another prefix or allow overwriting")

    def describe(self, **truth_constants: TruthValue) -> None:
        """Say more of the series in its truth."""
        self._truth_constants.update(truth_constants)

    def append(
        self, image: NDArray[np.unsignedinteger] | bytes, truth: ShotTruth, frame_index: int | None = None
    ) -> None:
        """Add one frame, an image or its `packed` chunk; frame_index is its number in the whole series, by default
        its position in this one."""
        position = len(self._truths)
        within = position % self._images_per_file
        if within == 0:
            self._close_data()
            self._open_data(position // self._images_per_file + 1)
        assert self._images is not None
        self._images.resize(within + 1, axis=0)
        write_chunk(self._images, within, image if isinstance(image, bytes) else packed(image))
        self._truths.append(truth)
        self._frame_indices.append(position if frame_index is None else frame_index)

    def _temporary(self, final: Path) -> Path:
        temporary = final.with_name(f".{final.name}.{_owner()}.part")
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
        last = len(self._truths)
        self._images.attrs["image_nr_low"] = last - self._images.shape[0] + 1
        self._images.attrs["image_nr_high"] = last
        self._file["entry"].attrs["NX_class"] = "NXentry"
        self._file["entry/data"].attrs["NX_class"] = "NXdata"
        try:
            self._file.close()
        except RuntimeError as error:  # HDF5's word for a write that fails this late
            raise OSError(f"{self._data_path(1).parent}: closing a data file failed: {error}") from None
        self._file = self._images = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                with contextlib.suppress(RuntimeError, OSError):  # on a full disk it cannot even be closed
                    self._file.close()
                self._file = self._images = None
            for temporary, _ in self._temporaries:
                temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self._truths:
            raise ValueError("a series needs at least one frame")
        self._close_data()
        data_files = len(self._temporaries)
        try:
            self._write_master(self._temporary(self.master_path), data_files)
        except RuntimeError as error:  # HDF5's word for a write that fails when it closes the file
            raise OSError(f"{self.master_path}: writing failed: {error}") from None
        self._refuse_existing()  # another writer may have been quicker
        self._replace_existing()

    def _replace_existing(self) -> None:
        """Put the new files in the old ones' place, or leave the old ones as they were."""
        aside: list[tuple[Path, Path]] = []
        placed: list[Path] = []
        try:
            # The master goes first and comes last, so that no reader can mix old metadata with new images.
            for old in sorted(self._existing(), key=lambda path: path != self.master_path):
                aside.append((old, old.with_name(f".{old.name}.{_owner()}.old")))
                os.replace(*aside[-1])
            for temporary, final in self._temporaries:
                os.replace(temporary, final)
                placed.append(final)
        except BaseException:
            for final in placed:
                final.unlink(missing_ok=True)
            for old, kept in reversed(aside):
                if kept.exists():
                    os.replace(kept, old)
            raise
        for _, kept in aside:
            kept.unlink()

    def _write_master(self, path: Path, data_files: int) -> None:
        detector, condition = self._detector, self._condition
        rows, columns = detector.shape
        center_x, center_y = beam_center_px(condition, detector)
        energy = condition.photon_energy_eV
        mask = detector.mask.astype("u4")
        if len(self._dead):
            mask.reshape(-1)[self._dead] |= _DEAD_PIXEL
        with h5py.File(path, "w") as master:
            entry = nexus_group(master, "entry", "NXentry")
            data = nexus_group(entry, "data", "NXdata")
            together = h5py.VirtualLayout((len(self._truths), rows, columns), detector.dtype)
            for number in range(1, data_files + 1):
                name, first = self._data_path(number).name, (number - 1) * self._images_per_file
                images = min(self._images_per_file, len(self._truths) - first)
                data[f"data_{number:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
                source = h5py.VirtualSource(name, "/entry/data/data", (images, rows, columns), detector.dtype)
                together[first : first + images] = source
            data.create_virtual_dataset("data", together)
            data.attrs["signal"] = "data"
            metadata = SeriesMetadata(
                detector_description=detector.name,
                detector_serial="E-18-0000",
                pixel_size_x_m=detector.pixel_size_m,
                pixel_size_y_m=detector.pixel_size_m,
                camera_length_m=condition.camera_length_m,
                beam_center_x_px=float(center_x),
                beam_center_y_px=float(center_y),
                count_time_s=self._count_time_s,
                frame_time_s=self._frame_time_s,
                sensor_material="Si",
                sensor_thickness_m=4.5e-4,
                threshold_energy_eV={"threshold_1": energy * self._threshold},
                saturation_value=detector.saturation_value,
                photon_energy_eV=energy,
            )
            write_instrument(
                master,
                metadata,
                images=len(self._truths),
                shape=detector.shape,
                dtype=np.dtype(detector.dtype),
                mask=mask,
            )
            self._write_truth(entry.create_group("truth"))

    def _write_truth(self, truth: h5py.Group) -> None:
        shots = self._truths
        truth["hit"] = np.array([shot.hit for shot in shots], dtype=np.bool_)
        truth["crystal"] = np.array([shot.crystal for shot in shots], dtype=np.bool_)
        truth["class"] = np.array([main_class(shot.kinds).encode() for shot in shots], dtype="S16")
        truth["classes"] = np.array([int(shot.kinds) for shot in shots], dtype=np.uint32)
        truth["classes"].attrs["names"] = ", ".join(f"{int(kind)} {kind.name.lower()}" for kind in Kind if kind.name)
        truth["log_likelihood_ratio"] = np.array([shot.log_likelihood_ratio for shot in shots])
        truth["detectable"] = np.array([shot.detectable for shot in shots], dtype=np.bool_)
        crystals = max(1, *(len(shot.orientations) for shot in shots))
        turns = np.full((len(shots), crystals, 3, 3), np.nan)
        offsets = np.full((len(shots), crystals, 2), np.nan)
        for n, shot in enumerate(shots):
            turns[n, : len(shot.orientations)] = shot.orientations
            offsets[n, : len(shot.offsets_m)] = shot.offsets_m
        truth["orientation"] = turns[:, 0]
        if crystals > 1:
            truth["orientation_all"] = turns
        truth["crystal_offset_m"] = offsets
        truth["frame_index"] = np.array(self._frame_indices, dtype=np.int64)
        for name in ("bragg_photons", "background_photons", "water_thickness_m"):
            truth[name] = np.array([getattr(shot, name) for shot in shots])
        for name in ("photon_energy_eV", "camera_length_m", "flux_photons"):
            truth[name] = np.array([getattr(shot.condition, name) for shot in shots])
        centers = np.array([beam_center_px(shot.condition, self._detector) for shot in shots])
        truth["beam_center_x_px"], truth["beam_center_y_px"] = centers[:, 0], centers[:, 1]
        _write_spots(truth, "spot", [shot.spots for shot in shots])
        _write_spots(truth, "salt_spot", [shot.distractor_spots for shot in shots])
        rings = [(n, ring) for n, shot in enumerate(shots) for ring in shot.rings]
        truth["ring_frame"] = np.array([n for n, _ in rings], dtype=np.int64)
        truth["ring_kind"] = np.array([int(ring.kind) for _, ring in rings], dtype=np.uint32)
        for name in ("d_angstrom", "photons", "spotty"):
            truth[f"ring_{name}"] = np.array([getattr(ring, name) for _, ring in rings], dtype=np.float64)
        truth["salt"] = np.array([", ".join(shot.salt_names).encode() for shot in shots])
        truth["seed"] = self._seed
        for name, value in self._truth_constants.items():
            truth[name] = value


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", platform.node()) or "here"


def _owner() -> str:
    """Whose temporary file this is."""
    return f"{_host()}-{os.getpid()}"


_DEAD_PIXEL = 2  # the bit of the Eiger's pixel mask for a dead pixel; a gap has bit 0


def _write_spots(truth: h5py.Group, prefix: str, spots: list[TrueSpots]) -> None:
    truth[f"{prefix}_frame"] = np.concatenate([np.full(len(s), n, dtype=np.int64) for n, s in enumerate(spots)])
    for name in ("ss", "fs", "photons", "counts", "partiality", "crystal"):
        truth[f"{prefix}_{name}"] = np.concatenate([getattr(s, name) for s in spots])
    hkl = np.concatenate([s.hkl for s in spots])
    for column, name in enumerate("hkl"):
        truth[f"{prefix}_{name}"] = hkl[:, column]


def write_series(
    prefix: str | os.PathLike[str], shots: Iterable[Shot], detector: Detector, condition: Condition, **options: Any
) -> Path:
    """Write shots as one series and return the master's path; options as of `SeriesWriter`."""
    writer = SeriesWriter(prefix, detector, condition, **options)
    with writer:
        for shot in shots:
            writer.append(shot.counts, shot.truth)
    return writer.master_path
