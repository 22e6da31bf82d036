"""CrystFEL beside the house: its geometry files for our detectors, and its pattern_sim as a source of patterns.

pattern_sim exists up to CrystFEL 0.10.2. It computes the interference function of a perfect crystal at every pixel;
`write_pattern_sim_inputs` writes all it needs, `read_pattern_sim` takes its images up again. What is kept of a pattern
is `Pattern`: the noise-free photons of its pixels, its orientation, and the spots they form. Water and noise come from
the house. `docs/crystfel.md` describes the files.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import secrets
import shlex
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sim_replay.crystal import Crystal, reciprocal_basis, symmetry_operations
from sim_replay.detector import HC_EV_ANGSTROM, Condition, Detector, beam_center_px
from streamer.bounds import BEAM_CENTER_PX, CAMERA_LENGTH_M, ENERGY_EV, PIXEL_SIZE_M, Range, image_shape
from streamer.flat_detector import FlatDetector, flat_detector
from streamer.geometry_file import BadPixels, DetectorGeometry, Mask, Panel, format_geometry, read_geometry
from streamer.links import Linked
from streamer.panel_grid import panels_between

MASK_PATH = "/entry/instrument/detector/pixel_mask"
"""Where an Eiger's master file has its mask; 0 is a good pixel."""

SMALLEST_PHOTONS = 5e-4
"""Pixels of a pattern_sim image with fewer expected photons are left out: at most 0.8 % of an image's photons."""

SPOT_PIXEL_PHOTONS = 0.5
"""Neighbouring pixels that expect more than this are one spot."""

CROP_PX = 1
"""A pattern may be so much larger than the detector: the paper's 2163 x 2069 panel is the EIGER2 4M and one more."""

MAX_PATTERNS = 100_000
"""Patterns of one file or folder; pattern_sim takes minutes for each."""

MAX_SPARSE_BYTES = 1 << 29
"""Of a sparse file once unpacked to 8 bytes a number: 30 million pixels, those of 6000 patterns."""

PULSE_PHOTONS: Range = (1.0, 1e15)
"""Photons of a pulse; a free-electron laser gives up to 1e13."""

_MAX_TEXT_BYTES = 16 << 20  # the quaternions of 100 000 patterns take 9 MB
_HEADER_BYTES = 1 << 14  # numpy refuses headers of arrays above 10 000 characters
_IMAGE_PATHS = ("/entry_1/data_1/data", "/entry/data/data", "/data/data0", "/data/data", "/data")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def geometry_of(detector: Detector, condition: Condition, mask_file: str | None = None) -> DetectorGeometry:
    """The CrystFEL geometry of series that `SeriesWriter` writes: a panel for each module, gaps left out.

    The data are (frame, ss, fs) at /entry/data/data, as in X_data_000001.h5. mask_file, if given, is the series' master
    file, whose pixel mask CrystFEL is told to use. bandwidth is that of the top hat with the spectrum's variance.
    """
    masks = () if mask_file is None else (Mask(0, MASK_PATH, mask_file, 0, 0x7FFFFFFF),)
    panels = _panels(detector, condition, masks=masks, dims=("%", "ss", "fs"), max_adu=float(detector.saturation_value))
    return _geometry(panels, detector, condition)


def _geometry(panels: tuple[Panel, ...], detector: Detector, condition: Condition) -> DetectorGeometry:
    bad: list[BadPixels] = []
    for ss_low, ss_high, fs_low, fs_high in detector.bad:
        for panel in panels:
            low_ss, high_ss = max(ss_low, panel.min_ss), min(ss_high - 1, panel.max_ss)
            low_fs, high_fs = max(fs_low, panel.min_fs), min(fs_high - 1, panel.max_fs)
            if low_ss <= high_ss and low_fs <= high_fs:
                bad.append(BadPixels(f"bad{len(bad)}", panel.name, low_fs, high_fs, low_ss, high_ss))
    edges, shares = np.array(condition.beam.spectrum.edges), np.array(condition.beam.spectrum.shares)
    middle, width = (edges[1:] + edges[:-1]) / 2.0, np.diff(edges)
    mean = float(np.sum(shares * middle))
    variance = float(np.sum(shares * ((middle - mean) ** 2 + width**2 / 12.0)))
    return DetectorGeometry(
        panels,
        photon_energy_eV=float(condition.photon_energy_eV),
        clen_m=float(condition.camera_length_m),
        bandwidth=round(math.sqrt(12.0 * variance), 12),
        bad_pixels=tuple(bad),
    )


def _panels(detector: Detector, condition: Condition, **common: Any) -> tuple[Panel, ...]:
    return panels_between(
        detector.gaps_ss,
        detector.gaps_fs,
        detector.shape,
        beam_center_px(condition, detector),
        detector.pixel_size_m,
        "/entry/data/data",
        **common,
    )


@dataclass(frozen=True, slots=True)
class ImportedDetector:
    """A detector from a geometry file and where it stands; None is what the file leaves to the image's metadata."""

    detector: Detector
    beam_center_x_px: float
    beam_center_y_px: float
    camera_length_m: float | None
    photon_energy_eV: float | None


def detector_from_geometry(
    geometry: DetectorGeometry, dtype: str = "uint16", name: str = "CrystFEL geometry"
) -> ImportedDetector:
    """The flat detector that a geometry describes. Raises ValueError when it describes another kind.

    Rows and columns without a live pixel become gaps, other dead rectangles the detector's `bad`; dtype is the type
    that images are to have, which a geometry file does not say.
    """
    flat = flat_detector(geometry)
    detector = Detector(name, flat.shape, flat.pixel_size_m, flat.gaps_ss, flat.gaps_fs, dtype, bad=flat.bad)
    return ImportedDetector(
        detector, flat.beam_center_x_px, flat.beam_center_y_px, flat.camera_length_m, flat.photon_energy_eV
    )


def orientation_of(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """The orientation U (3, 3) that CrystFEL gives a crystal for a quaternion (w, x, y, z).

    It is the inverse of the usual rotation matrix of a unit quaternion: CrystFEL turns the laboratory, not the crystal.
    Raises ValueError when the quaternion is not of length 1 to 1e-3, as pattern_sim asks.
    """
    length = math.hypot(*np.asarray(quaternion, dtype=np.float64).tolist())
    if not abs(length - 1.0) < 1e-3:
        raise ValueError(f"a quaternion must have the length 1, not {length:g}")
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
            [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
            [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quaternion (w, x, y, z), w >= 0, for which CrystFEL orients a crystal by U (3, 3).

    Raises ValueError when U is no rotation. It is the eigenvector, for the largest eigenvalue, of the symmetric matrix
    whose quadratic form is trace(R(q)^T U), R being linear in the products of q (Davenport's q method).
    """
    u = np.asarray(orientation, dtype=np.float64)
    if u.shape != (3, 3) or not np.allclose(u @ u.T, np.eye(3), atol=1e-4) or np.linalg.det(u) < 0.0:
        raise ValueError("an orientation must be a rotation matrix of 3 x 3")
    z = np.array([u[1, 2] - u[2, 1], u[2, 0] - u[0, 2], u[0, 1] - u[1, 0]])
    form = np.zeros((4, 4))
    form[0, 0] = np.trace(u)
    form[0, 1:] = form[1:, 0] = z
    form[1:, 1:] = u + u.T - np.trace(u) * np.eye(3)
    quaternion = np.linalg.eigh(form)[1][:, -1]
    return np.asarray(quaternion if quaternion[0] >= 0.0 else -quaternion, dtype=np.float64)


def write_pattern_sim_inputs(
    folder: str | os.PathLike[str],
    name: str,
    crystal: Crystal,
    condition: Condition,
    detector: Detector,
    orientations: NDArray[np.float64],
    *,
    point_group: str,
    crystal_size_m: float = 10e-6,
    spectrum_samples: int = 7,
    overwrite: bool = False,
) -> Path:
    """Write what pattern_sim of CrystFEL 0.10.2 needs for patterns of a crystal in given orientations (n, 3, 3).

    NAME.geom, NAME.cell, NAME.hkl (unique reflections of point_group, CrystFEL's name for it), NAME.quaternions and
    run.sh, whose path is returned, in folder. pattern_sim has no polarisation, divergence or mosaicity and lights the
    whole crystal with the fluence of the beam's disc, so these of the condition's beam are not used. Raises ValueError
    when the spectrum is no top hat, the crystal does not have the symmetry of point_group, or the folder holds images
    that pattern_sim made with other orientations; FileExistsError and OSError like `write_files`.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} must be of letters, digits and _ . + -")
    spectrum = condition.beam.spectrum
    if np.ptp(np.asarray(spectrum.shares) / np.diff(spectrum.edges)) > 1e-6 / spectrum.width:
        raise ValueError("pattern_sim's spectrum is a top hat; give a beam with one")
    quaternions = [quaternion_of(orientation) for orientation in orientations]
    if not quaternions:
        raise ValueError("no orientations were given")
    if len(quaternions) > MAX_PATTERNS:
        raise ValueError(f"{len(quaternions)} orientations are too many; give at most {MAX_PATTERNS}")
    hkl, intensity = unique_reflections(crystal, point_group)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(folder))
    images = _numbered(folder, name) if folder.is_dir() else {}
    if images:
        # They would be read with the orientations written now.
        raise ValueError(f"{_shown(images[min(images)])}: is of an earlier run; remove it, or take another folder")
    # pattern_sim writes each panel into a dataset of two dimensions, and cuts at max_adu if there is one.
    panels = _panels(detector, condition)
    rows = [
        f"{h:4d} {k:4d} {m:4d} {i!r} - 0.00 1" for (h, k, m), i in zip(hkl.tolist(), intensity.tolist(), strict=True)
    ]
    head = ["CrystFEL reflection list version 2.0", f"Symmetry: {point_group}"]
    head.append("   h    k    l          I    phase   sigma(I)   nmeas")
    lines = [" ".join(f"{value:.17g}" for value in quaternion) for quaternion in quaternions]
    size_nm = f"{crystal_size_m * 1e9:.10g}"
    # One pattern is written under the very name that is given, several under NAME-1.h5, NAME-2.h5 ...
    output = name if len(lines) > 1 else f"{name}-1.h5"
    command = [
        "pattern_sim",
        *("-g", f"{name}.geom", "-p", f"{name}.cell", "-i", f"{name}.hkl", "-y", point_group),
        *("-n", str(len(lines)), "-o", output, f"--min-size={size_nm}", f"--max-size={size_nm}"),
        *("--spectrum=tophat", "-s", str(spectrum_samples), "--background=0"),
        *(f"--nphotons={condition.flux_photons:.10g}", f"--beam-radius={condition.beam.radius_m:.10g}", "--no-noise"),
    ]
    script = folder / "run.sh"
    texts = {
        folder / f"{name}.geom": format_geometry(_geometry(panels, detector, condition)),
        folder / f"{name}.cell": _cell_text(crystal, point_group),
        folder / f"{name}.hkl": "\n".join([*head, *rows, "End of reflections"]) + "\n",
        folder / f"{name}.quaternions": "\n".join(lines) + "\n",
        script: "#!/bin/sh\n# For CrystFEL 0.10.2, the last version with pattern_sim.\nset -e\n"
        f'cd "$(dirname "$0")"\n{shlex.join(command)} < {name}.quaternions\n',
    }
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contents = {path: text.encode() for path, text in texts.items()}
        write_files(contents, overwrite=overwrite, executable=(script,))
    except BaseException:
        for each in made:
            if each.is_dir():
                each.rmdir()
        raise
    return script


def write_files(contents: Mapping[Path, bytes], *, overwrite: bool = False, executable: Collection[Path] = ()) -> None:
    """Write whole files, all of them or none: under other names in their folders first, then renamed.

    Raises FileExistsError when one is there and overwrite is false, IsADirectoryError when what is there is no file,
    OSError when writing fails. A symbolic link stays, and the file it leads to is replaced.
    """
    for path in contents:
        if os.path.lexists(path) and not path.is_file():
            raise IsADirectoryError(errno.EISDIR, "is no file that could be replaced; remove it", str(path))
    existing = [path for path in contents if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{_shown(existing[0])} exists already")
    staged: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            target = Path(os.path.realpath(path))
            part = target.with_name(f".{secrets.token_hex(8)}.part")
            staged[part] = target
            try:
                with open(part, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
            if path in executable:
                part.chmod(part.stat().st_mode | 0o111)
        for part, target in staged.items():
            os.replace(part, target)
    except BaseException:
        for part in staged:
            part.unlink(missing_ok=True)
        raise


def _shown(path: str | os.PathLike[str]) -> str:
    """A path as a message of one line has it."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def unique_reflections(crystal: Crystal, point_group: str) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """One reflection of each set of mates in point_group: hkl (m, 3) int32 and intensity (m,) float64.

    Raises ValueError when the cell or the intensities do not have that symmetry.
    """
    operations = symmetry_operations(point_group)
    basis = reciprocal_basis(crystal.cell)
    metric = basis.T @ basis
    turned = operations.transpose(0, 2, 1) @ metric @ operations
    if np.abs(turned - metric).max() > 1e-3 * metric.max():
        raise ValueError(f"the cell of {crystal.name}, {crystal.cell}, does not have the symmetry {point_group}")
    base = 2 * (int(np.abs(crystal.hkl).max(initial=0)) * 2 + 1)
    highest = np.full(len(crystal.hkl), -1, dtype=np.int64)
    wide = crystal.hkl.astype(np.int64)
    for operation in operations.astype(np.int64):
        h, k, m = ((wide @ operation.T) + base // 2).T
        np.maximum(highest, (h * base + k) * base + m, out=highest)
    keys, first, group = np.unique(highest, return_index=True, return_inverse=True)
    intensity = crystal.intensity[first]
    differ = np.abs(crystal.intensity - intensity[group]) > 1e-6 * crystal.intensity.max(initial=0.0)
    if differ.any():
        one = tuple(int(i) for i in crystal.hkl[int(differ.argmax())])
        raise ValueError(f"{crystal.name} does not have the symmetry {point_group}: {one} differs from a mate")
    hkl = np.stack([keys // base**2, keys // base % base, keys % base], axis=1) - base // 2
    return hkl.astype(np.int32), intensity


def _cell_text(crystal: Crystal, point_group: str) -> str:
    bare, _, suffix = point_group.partition("_")
    unique_axis = suffix[2:] if suffix.startswith("ua") else "c"
    if bare in ("1", "-1"):
        lattice = ["triclinic"]
    elif bare in ("2", "m", "2/m"):
        lattice = ["monoclinic", unique_axis]
    elif bare in ("222", "mm2", "mmm"):
        lattice = ["orthorhombic"]
    elif bare in ("23", "m-3", "432", "-43m", "m-3m"):
        lattice = ["cubic"]
    elif suffix == "R":
        lattice = ["rhombohedral"]
    else:
        lattice = ["tetragonal" if "4" in bare else "hexagonal", unique_axis]
    lines = ["CrystFEL unit cell file version 1.0", "", f"lattice_type = {lattice[0]}"]
    # Absent reflections are absent from the list; the lattice's centring need not be said a second time.
    lines.append(f"centering = {'R' if suffix == 'R' else 'P'}")
    lines += [f"unique_axis = {axis}" for axis in lattice[1:]]
    edges = [f"{key} = {value!r} A" for key, value in zip("abc", crystal.cell[:3], strict=True)]
    angles = [f"{key} = {value!r} deg" for key, value in zip(("al", "be", "ga"), crystal.cell[3:], strict=True)]
    return "\n".join([*lines, *edges, *angles]) + "\n"


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """A noise-free pattern of one crystal.

    index (m,) int64, each flat pixel (ss * columns + fs) once, and photons (m,) float64 expected there; shape (ss, fs).
    orientation (3, 3) float64 is U. The spots are n groups of neighbouring pixels (8 neighbours) that each expect more
    than SPOT_PIXEL_PHOTONS: centroids spot_ss, spot_fs in pixel indices and spot_photons, (n,) float64. The beam centre
    is edge-based pixels, flux_photons the photons of the pulse.
    """

    index: NDArray[np.int64]
    photons: NDArray[np.float64]
    shape: tuple[int, int]
    orientation: NDArray[np.float64]
    spot_ss: NDArray[np.float64]
    spot_fs: NDArray[np.float64]
    spot_photons: NDArray[np.float64]
    photon_energy_eV: float
    camera_length_m: float
    flux_photons: float
    beam_center_x_px: float
    beam_center_y_px: float
    pixel_size_m: float


def group_spots(index: NDArray[np.int64], photons: NDArray[np.float64], columns: int) -> NDArray[np.int64]:
    """Which of n spots each entry (m,) belongs to, numbered from 0; n for pixels of none.

    A spot is a group of neighbouring pixels (8 neighbours) above SPOT_PIXEL_PHOTONS.
    """
    bright = np.flatnonzero(photons > SPOT_PIXEL_PHOTONS)
    groups, spot = 0, np.empty(0, dtype=np.int64)
    if len(bright):
        places = np.stack(np.divmod(index[bright], columns), axis=1)
        pairs = cKDTree(places).query_pairs(1.0, p=math.inf, output_type="ndarray")
        links = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(bright),) * 2)
        groups, spot = connected_components(links, directed=False)
    labels = np.full(len(photons), groups, dtype=np.int64)
    labels[bright] = spot
    return labels


def find_spots(
    index: NDArray[np.int64], photons: NDArray[np.float64], columns: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centroids ss, fs and photons, (n,) float64 each, of the spots of a pattern (see `group_spots`)."""
    label = group_spots(index, photons, columns)
    of_a_spot = photons > SPOT_PIXEL_PHOTONS
    label, weight = label[of_a_spot], photons[of_a_spot]
    ss, fs = np.divmod(index[of_a_spot], columns)
    total = np.bincount(label, weight).astype(np.float64)
    return np.bincount(label, weight * ss) / total, np.bincount(label, weight * fs) / total, total


def read_patterns(sources: Iterable[str | os.PathLike[str]], detector: Detector | None = None) -> Iterator[Pattern]:
    """The patterns of several sources in turn: folders of pattern_sim's output, or .npz files of sparse patterns.

    With a detector each is fitted to it (`fit_to`). Raises OSError, or ValueError naming the file.
    """
    for source in sources:
        path = Path(source)
        for pattern in read_pattern_sim(path) if path.is_dir() else read_sparse_patterns(path):
            try:
                yield pattern if detector is None else fit_to(pattern, detector)
            except ValueError as error:
                raise ValueError(f"{_shown(path)}: {error}") from None


def fit_to(pattern: Pattern, detector: Detector) -> Pattern:
    """The part of a pattern that the detector's live pixels see, its spots found anew.

    A pattern one pixel larger than the detector loses its last row and column. Raises ValueError when it is larger
    still, or smaller, or has pixels of another size.
    """
    over = pattern.shape[0] - detector.shape[0], pattern.shape[1] - detector.shape[1]
    if not all(0 <= pixels <= CROP_PX for pixels in over):
        raise ValueError(f"patterns of {pattern.shape} pixels do not fit a detector of {detector.shape}")
    if abs(pattern.pixel_size_m / detector.pixel_size_m - 1.0) > 1e-3:
        raise ValueError(
            f"patterns have pixels of {pattern.pixel_size_m:g} m, the detector {detector.pixel_size_m:g} m"
        )
    ss, fs = np.divmod(pattern.index, pattern.shape[1])
    kept = (ss < detector.shape[0]) & (fs < detector.shape[1])
    kept[kept] = ~detector.mask[ss[kept], fs[kept]]
    index = ss[kept] * detector.shape[1] + fs[kept]
    photons = pattern.photons[kept]
    spot_ss, spot_fs, spot_photons = find_spots(index, photons, detector.shape[1])
    return replace(
        pattern,
        index=index,
        photons=photons,
        shape=detector.shape,
        spot_ss=spot_ss,
        spot_fs=spot_fs,
        spot_photons=spot_photons,
    )


def read_pattern_sim(folder: str | os.PathLike[str]) -> Iterator[Pattern]:
    """The patterns that pattern_sim left in a folder of `write_pattern_sim_inputs`, as far as it came, in order.

    The geometry comes from the folder's .geom file, orientations from the .quaternions file, the pulse's photons from
    --nphotons in run.sh. An image is the float dataset at the geometry's data path, or where other programs have it.
    Raises OSError, or ValueError naming file and fault: images with noise in them, of another shape or wavelength.
    """
    folder = Path(folder)
    geometries = sorted(folder.glob("*.geom"))
    if len(geometries) != 1:
        raise ValueError(
            f"{_shown(folder)}: needs one .geom file to tell what pattern_sim made, and has {len(geometries)}"
        )
    geometry = read_geometry(geometries[0])
    try:
        flat = flat_detector(geometry)
    except ValueError as error:
        raise ValueError(f"{_shown(geometries[0])}: {error}") from None
    if flat.photon_energy_eV is None or flat.camera_length_m is None:
        raise ValueError(f"{_shown(geometries[0])}: states no photon energy or camera length in numbers")
    name = geometries[0].stem
    orientations = _read_quaternions(folder / f"{name}.quaternions")
    flux_photons = _stated_photons(folder / "run.sh")
    numbered = _numbered(folder, name)
    if not numbered:
        raise ValueError(f"{_shown(folder)}: holds no {_shown(name)}-1.h5; run run.sh there first")
    for number, path in sorted(numbered.items()):
        if not 1 <= number <= len(orientations):
            raise ValueError(f"{_shown(path)}: there are {len(orientations)} quaternions, none for this pattern")
        image = _read_image(path, geometry.panels[0].data, flat, flux_photons)
        index = np.flatnonzero(image >= SMALLEST_PHOTONS).astype(np.int64)
        photons = image.reshape(-1)[index].astype(np.float64)
        spots = find_spots(index, photons, flat.shape[1])
        yield Pattern(
            index,
            photons,
            flat.shape,
            orientations[number - 1],
            *spots,
            photon_energy_eV=flat.photon_energy_eV,
            camera_length_m=flat.camera_length_m,
            flux_photons=flux_photons,
            beam_center_x_px=flat.beam_center_x_px,
            beam_center_y_px=flat.beam_center_y_px,
            pixel_size_m=flat.pixel_size_m,
        )


def _numbered(folder: Path, name: str) -> dict[int, Path]:
    """pattern_sim's images of that name, by their number."""
    pattern = re.compile(re.escape(name) + r"-(\d{1,9})\.h5")
    return {int(m[1]): path for path in folder.iterdir() if (m := pattern.fullmatch(path.name))}


def _read_text(path: Path) -> str:
    with open(path, "rb") as file:
        content = file.read(_MAX_TEXT_BYTES + 1)
    if len(content) > _MAX_TEXT_BYTES:
        raise ValueError(f"{_shown(path)}: is larger than {_MAX_TEXT_BYTES >> 20} MB")
    return content.decode("utf-8", errors="replace")


def _read_quaternions(path: Path) -> list[NDArray[np.float64]]:
    if not path.is_file():
        raise ValueError(f"{_shown(path)}: is missing; pattern_sim's images do not hold their orientation")
    lines = _read_text(path).splitlines()
    if len(lines) > MAX_PATTERNS:
        raise ValueError(f"{_shown(path)}: has {len(lines)} lines; at most {MAX_PATTERNS} patterns are read")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            values = np.array([float(word) for word in line.split()])
            if values.shape != (4,):
                raise ValueError("expected w x y z")
            found.append(orientation_of(values))
        except ValueError as error:
            raise ValueError(f"{_shown(path)}, line {number}: {error}, found {line[:60]!r}") from None
    return found


def _stated_photons(path: Path) -> float:
    match = re.search(r"--nphotons=([0-9.eE+-]+)", _read_text(path) if path.is_file() else "")
    try:
        photons = float(match[1]) if match else math.nan
    except ValueError:
        photons = math.nan
    low, high = PULSE_PHOTONS
    if not low <= photons <= high:
        raise ValueError(f"{_shown(path)}: has no --nphotons=NUMBER, the photons of a pulse, from {low:g} to {high:g}")
    return photons


def _read_image(path: Path, data: str, flat: FlatDetector, flux_photons: float) -> NDArray[np.float32]:
    said = _shown(path)
    if not path.is_file():  # opening a pipe would wait for a writer
        raise ValueError(f"{said}: is not a file; pattern_sim's images are HDF5 files")
    try:
        with Linked(h5py.File(path, "r"), path) as linked:
            places = ((place, linked.get(place)) for place in (data, *_IMAGE_PATHS))
            place, dataset = next((each for each in places if isinstance(each[1], h5py.Dataset)), (data, None))
            if dataset is None:
                raise ValueError(f"{said}: has no image at {data}")
            if dataset.dtype.kind != "f" or dataset.shape not in (flat.shape, (1, *flat.shape)):
                raise ValueError(
                    f"{said}: {place} is {dataset.dtype} of shape {dataset.shape}; the geometry file describes "
                    f"floats of shape {flat.shape}"
                )
            with np.errstate(over="ignore"):  # a number too large is not finite, which is refused below
                image: NDArray[np.float32] = np.asarray(dataset[()], dtype=np.float32).reshape(flat.shape)
            stated = linked.get("wavelength")
            wavelength_m = (
                float(np.ravel(stated[()])[0])
                if isinstance(stated, h5py.Dataset) and stated.size == 1 and stated.dtype.kind == "f"
                else None
            )
    except (OSError, RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{said}: not a readable HDF5 file ({text[:200]})") from None
    # NaN compares as not below 0.
    if not np.isfinite(image).all() or image.min(initial=0.0) < 0.0:
        raise ValueError(f"{said}: holds photons that are negative or not finite")
    if image.max(initial=0.0) > flux_photons:
        raise ValueError(f"{said}: has {image.max():g} photons in a pixel, more than the pulse of {flux_photons:g}")
    if wavelength_m is not None and flat.photon_energy_eV is not None:
        energy = HC_EV_ANGSTROM / (wavelength_m * 1e10) if wavelength_m > 0.0 else math.nan
        if not abs(energy / flat.photon_energy_eV - 1.0) < 1e-4:
            raise ValueError(f"{said}: made with {energy:.1f} eV, but the geometry says {flat.photon_energy_eV:.1f} eV")
    bright = image[image >= SPOT_PIXEL_PHOTONS]
    if len(bright) and np.all(bright == np.rint(bright)):
        raise ValueError(f"{said}: holds whole numbers of photons, so noise is in it; run pattern_sim with --no-noise")
    return image


_COUNTS = ("shape", "start", "index")
_SCALARS: dict[str, Range] = {
    "photon_energy_eV": ENERGY_EV,
    "camera_length_m": CAMERA_LENGTH_M,
    "n_photons": PULSE_PHOTONS,
    "pixel_size_m": PIXEL_SIZE_M,
}
_SPARSE_KEYS = (*_COUNTS, "photons", "quaternion_wxyz", "beam_center_px_fs_ss", *_SCALARS)


def read_sparse_patterns(path: str | os.PathLike[str]) -> Iterator[Pattern]:
    """The patterns of a sparse .npz file (docs/crystfel.md). Raises OSError, or ValueError naming file and fault."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise ValueError("it is a folder, a pipe or a device")
        z = _read_members(path)
        rows, columns, start, index, photons = _checked_entries(z)
        energy_eV, camera_length_m, flux_photons, pixel_size_m = (
            _number_in(key, z[key], allowed) for key, allowed in _SCALARS.items()
        )
        if np.any(photons > flux_photons):
            raise ValueError(f"a pixel has {photons.max():g} photons, more than the pulse of {flux_photons:g}")
        center = z["beam_center_px_fs_ss"]
        if center.shape != (2,):
            raise ValueError("beam_center_px_fs_ss must be two numbers")
        center_x, center_y = (_number_in("beam_center_px_fs_ss", value, BEAM_CENTER_PX) for value in center)
        orientations = [orientation_of(quaternion) for quaternion in z["quaternion_wxyz"].astype(np.float64)]
    except (ValueError, TypeError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        text = (str(error).splitlines() or ["it is cut short"])[0]
        raise ValueError(f"{_shown(path)}: not a file of sparse patterns: {text}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a seek to where the archive's damaged directory points
            raise
        raise ValueError(f"{_shown(path)}: not a file of sparse patterns: its directory is damaged") from None
    for number, orientation in enumerate(orientations):
        part = slice(start[number], start[number + 1])
        spots = find_spots(index[part], photons[part], columns)
        yield Pattern(
            index[part],
            photons[part],
            (rows, columns),
            orientation,
            *spots,
            photon_energy_eV=energy_eV,
            camera_length_m=camera_length_m,
            flux_photons=flux_photons,
            beam_center_x_px=center_x,
            beam_center_y_px=center_y,
            pixel_size_m=pixel_size_m,
        )


def _read_members(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the sparse keys, numbers all, none unpacked before all are known to be of a bearable size."""
    with zipfile.ZipFile(path) as archive:
        there = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [key for key in _SPARSE_KEYS if key not in there]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        members = {key: there[key] for key in _SPARSE_KEYS}
        total = 0
        for key, info in members.items():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{key} is compressed in a way that numpy does not write")
            with archive.open(info) as member:
                shape, dtype = _announced(key, member.read(_HEADER_BYTES))
            kinds = "ui" if key in _COUNTS else "uif"
            if dtype.kind not in kinds:
                raise ValueError(f"{key} must be of {'integers' if kinds == 'ui' else 'real numbers'}, not {dtype}")
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(f"{key} claims the shape {shape}, more than the {info.file_size} bytes it has")
            total += max(math.prod(shape) * 8, info.file_size)
        if total > MAX_SPARSE_BYTES:
            raise ValueError(
                f"its arrays would take {total / 1e6:.0f} MB, more than the {MAX_SPARSE_BYTES / 1e6:.0f} MB allowed; "
                "spread the patterns over several files"
            )
        found = {}
        for key, info in members.items():
            with archive.open(info) as member:
                found[key] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _announced(key: str, head: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype in the first bytes of a .npy file. Raises ValueError."""
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):  # (3, 0) is for names of fields, and those are no numbers
            raise ValueError
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        raise ValueError(f"{key} is no array as numpy writes it") from None
    if len(shape) > 2 or any(size < 0 for size in shape):
        raise ValueError(f"{key} has the shape {str(shape)[:60]}")
    return shape, dtype


def _number_in(key: str, value: NDArray[Any], allowed: Range) -> float:
    if value.size != 1:
        raise ValueError(f"{key} must be one number")
    number = float(value.reshape(()))
    if not allowed[0] <= number <= allowed[1]:
        raise ValueError(f"{key} must be from {allowed[0]:g} to {allowed[1]:g}, not {number:g}")
    return number


def _checked_entries(
    z: Mapping[str, NDArray[Any]],
) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Rows, columns, and start, index, photons as `Pattern` has them. Raises ValueError."""
    start, index = z["start"].astype(np.int64), z["index"].astype(np.int64)
    with np.errstate(over="ignore"):
        photons = z["photons"].astype(np.float64)
    if start.ndim != 1 or index.ndim != 1 or index.shape != photons.shape:
        raise ValueError("start, index and photons must be of one dimension, and index and photons of one length")
    count = len(start) - 1
    # Between these bounds no difference overflows.
    inside = count >= 0 and start.min() == start[0] == 0 and start.max() == start[-1] == len(index)
    if not inside or np.any(np.diff(start) < 0):
        raise ValueError("start must rise from 0 to the length of index")
    if count > MAX_PATTERNS:
        raise ValueError(
            f"it has {count} patterns, and at most {MAX_PATTERNS} are read; spread them over several files"
        )
    if z["quaternion_wxyz"].shape != (count, 4):
        raise ValueError(f"quaternion_wxyz must have the shape {count, 4}, one row for each pattern")
    if z["shape"].shape != (2,):
        raise ValueError("shape must be two numbers, rows and columns")
    panel = image_shape(*z["shape"].tolist())
    if panel is None or np.any(index < 0) or np.any(index >= panel[0] * panel[1]):
        raise ValueError(f"index must be pixels of a panel of shape {tuple(z['shape'].tolist())}")
    places = np.repeat(np.arange(count) * (panel[0] * panel[1]), np.diff(start)) + index
    places.sort()
    if np.any(places[1:] == places[:-1]):
        raise ValueError("index must have each pixel once in a pattern; some come twice")
    if not np.isfinite(photons).all() or np.any(photons < 0.0):
        raise ValueError("photons must be finite and not negative")
    return *panel, start, index, photons


def write_sparse_patterns(path: str | os.PathLike[str], patterns: Iterable[Pattern]) -> None:
    """Write patterns of one condition and shape as a sparse .npz file (docs/crystfel.md), photons as float32.

    A file that is there is replaced. Raises ValueError when there are none, or they differ in what the file says once.
    """
    patterns = list(patterns)
    if not patterns:
        raise ValueError(f"{_shown(path)}: no patterns to write")
    once = {_said_once(pattern) for pattern in patterns}
    if len(once) > 1:
        raise ValueError(f"{_shown(path)}: patterns of different conditions or panels; write one file for each")
    first = patterns[0]
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        shape=np.array(first.shape),
        start=np.cumsum([0, *(len(pattern.index) for pattern in patterns)]),
        index=np.concatenate([pattern.index for pattern in patterns]).astype(np.uint32),
        photons=np.concatenate([pattern.photons for pattern in patterns]).astype(np.float32),
        quaternion_wxyz=np.stack([quaternion_of(pattern.orientation) for pattern in patterns]),
        photon_energy_eV=first.photon_energy_eV,
        camera_length_m=first.camera_length_m,
        n_photons=first.flux_photons,
        pixel_size_m=first.pixel_size_m,
        beam_center_px_fs_ss=np.array([first.beam_center_x_px, first.beam_center_y_px]),
    )
    write_files({Path(path): packed.getvalue()}, overwrite=True)


def _said_once(pattern: Pattern) -> tuple[object, ...]:
    return (
        pattern.shape,
        pattern.photon_energy_eV,
        pattern.camera_length_m,
        pattern.flux_photons,
        pattern.beam_center_x_px,
        pattern.beam_center_y_px,
        pattern.pixel_size_m,
    )
