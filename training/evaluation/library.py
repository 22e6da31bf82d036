"""What the ideal observer knows of a set: its background, how its shots vary, and crystals that are not in the test.

Two sources serve: sparse patterns of pattern_sim in a folder (`--crystfel`), from which a series was made that names
the crystal of each frame; and the scene that `cxls simulate` writes into the truth, from which crystals of other
orientations are simulated.
"""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sim_replay.background import Surroundings, expected_water, make_background, mix, scales, shadow
from sim_replay.cells import READY_CELLS, ready_crystal
from sim_replay.crystfel import Pattern, read_sparse_patterns
from sim_replay.detector import Condition, Detector, plain_panel
from sim_replay.diffraction import Sample, diffract, footprint, random_orientation
from sim_replay.response import Response
from sim_replay.scene import Jitter
from streamer.files import BadInput
from training.dataset.opening import require_ordinary
from training.evaluation.facts import Facts
from training.evaluation.ideal import Pixels, Spread

SIMULATED_CRYSTALS = 30
_SEED = 20_260_101
_MOST_WATER_BYTES = 1 << 28
_NAMED = re.compile(r"(.*) \(random intensities, seed (\d{1,10})\)")
_ALIKE_EV, _ALIKE_M = 1.0, 1e-5


class Unknown(Exception):
    """What the reference needs is not known of this series: one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """background (ss, fs) photons of a nominal shot; crystals: light of a nominal shot on the same panel.

    numbered: whether crystal n of the truth is crystals[n], which then is left out of what its frames are held to.
    """

    background: npt.NDArray[np.float64]
    crystals: tuple[Pixels, ...]
    numbered: bool
    spread: Spread
    pulses: int | None


def library_of(facts: Facts, shape: tuple[int, int], folder: Path | None) -> Library:
    """The library of a series of that shape (ss, fs). Raises Unknown, or BadInput for a damaged folder."""
    pulses = _pulses(facts)
    if facts.scene is not None and not (folder is not None and (facts.crystal >= 0).any()):
        return _from_scene(facts, facts.scene, shape, pulses)
    if not (facts.crystal >= 0).any():
        raise Unknown(facts.missing("frame_crystal"))
    if folder is None:
        raise Unknown(f"{facts.path}: which light its crystals send is not known; name their folder with --crystfel")
    return _from_patterns(facts, shape, folder, pulses)


def _pulses(facts: Facts) -> int | None:
    if facts.response is None:
        raise Unknown(facts.missing("response"))
    if facts.response == "integrating":
        return None
    if facts.response == "one_per_pulse":
        return facts.pulses
    raise Unknown(f"{facts.path}: the likelihood of response '{facts.response}' is not known here")


# --- patterns of pattern_sim ------------------------------------------------------------


def _from_patterns(facts: Facts, shape: tuple[int, int], folder: Path, pulses: int | None) -> Library:
    truth = facts.truth
    energy, length, flux, water = (
        _constant(facts, name) for name in ("photon_energy_eV", "camera_length_m", "flux_photons", "water_scale")
    )
    if facts.flux_factor is None:
        raise Unknown(facts.missing("flux_factor"))
    path, patterns = _find_patterns(folder, energy, length)
    if int(facts.crystal.max()) >= len(patterns):
        raise BadInput(f"{path}: {len(patterns)} crystals, {truth.file} names crystal {facts.crystal.max()}")
    factor = flux / patterns[0].flux_photons
    background = _water(path, patterns[0], energy, length)
    if any(have < want for have, want in zip(background.shape, shape, strict=True)):
        raise Unknown(f"{path}: patterns of {background.shape} pixels do not cover frames of {shape}")
    spread = float(np.sqrt(np.mean(np.log(facts.flux_factor) ** 2)))
    return Library(
        background[: shape[0], : shape[1]] * (factor * water),
        tuple(_cut(pattern, shape, factor) for pattern in patterns),
        True,
        Spread(spread, spread),
        pulses,
    )


def _constant(facts: Facts, name: str) -> float:
    value = facts.truth.per_frame(name)
    if value is None:
        raise Unknown(facts.missing({"flux_photons": "flux"}.get(name, name)))
    if np.ptp(value) > 1e-6 * abs(float(value[0])):
        raise Unknown(f"{facts.path}: {name} differs from frame to frame, and the reference needs one")
    return float(value[0])


def _find_patterns(folder: Path, energy_eV: float, length_m: float) -> tuple[Path, list[Pattern]]:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; --crystfel names a folder of .npz files of sparse patterns")
    for path in sorted(folder.glob("*.npz")):
        try:
            patterns = list(read_sparse_patterns(path))
        except (OSError, ValueError) as error:
            raise BadInput(str(error)) from None
        first = patterns[0] if patterns else None
        if first is None or abs(first.photon_energy_eV - energy_eV) > _ALIKE_EV:
            continue
        if abs(first.camera_length_m - length_m) <= _ALIKE_M:
            return path, patterns
    raise Unknown(f"{folder}: no patterns of {length_m:g} m and {energy_eV:g} eV")


def _cut(pattern: Pattern, shape: tuple[int, int], factor: float) -> Pixels:
    ss, fs = np.divmod(pattern.index, pattern.shape[1])
    inside = (ss < shape[0]) & (fs < shape[1])
    return ss[inside] * shape[1] + fs[inside], pattern.photons[inside] * factor


def _water(path: Path, pattern: Pattern, energy_eV: float, length_m: float) -> npt.NDArray[np.float64]:
    """Expected photons a pixel from 100 um of water for the pattern's pulse: the file's own, else ours."""
    name = "water_f32_high16"
    try:
        require_ordinary(path)
        with np.load(path, allow_pickle=False) as table:
            size = {entry.filename: entry.file_size for entry in table.zip.infolist()}.get(f"{name}.npy")
            high = table[name] if size is not None and size <= _MOST_WATER_BYTES else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: its water cannot be read: {error}") from None
    if high is None:
        condition = Condition(
            energy_eV, length_m, pattern.flux_photons, pattern.beam_center_x_px, pattern.beam_center_y_px
        )
        panel = plain_panel(pattern.shape, pixel_size_m=pattern.pixel_size_m)
        own: npt.NDArray[np.float64] = expected_water(condition, panel).astype(np.float64)
        return own
    if high.dtype != np.uint16 or high.shape != pattern.shape:
        raise BadInput(f"{path}: {name} is {high.dtype} of shape {high.shape}, uint16 of {pattern.shape} is expected")
    water: npt.NDArray[np.float64] = (high.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if not (np.isfinite(water) & (water >= 0.0)).all():
        raise BadInput(f"{path}: {name} holds numbers that are no photons")
    return water


# --- scenes of our own simulator --------------------------------------------------------


class _Sample(msgspec.Struct, frozen=True):
    size_m: float
    mosaicity_deg: float
    strain: float
    offset_m: tuple[float, float]


class _Scene(msgspec.Struct, frozen=True):
    """The parts of a scene that the reference follows."""

    sample: _Sample
    condition: Condition
    detector: Detector
    surroundings: Surroundings
    jitter: Jitter
    response: Response
    crystals: int = 1


def _from_scene(facts: Facts, text: str, shape: tuple[int, int], pulses: int | None) -> Library:
    try:
        scene = msgspec.json.decode(text, type=_Scene)
    except msgspec.DecodeError as error:
        raise BadInput(f"{facts.truth.file}:{facts.truth.where('scene')}: no scene: {error}") from None
    if scene.detector.shape != shape:
        raise BadInput(f"{facts.truth.file}: a scene of {scene.detector.shape} pixels, frames of {shape}")
    if pulses is not None and scene.response.charge_sigma_m > 0.0:
        raise Unknown(f"{facts.path}: the likelihood of pixels that share charge is not known here")
    named = _NAMED.fullmatch(facts.crystal_name or "")
    ready = [name for name, entry in READY_CELLS.items() if named is not None and entry.title == named[1]]
    if named is None or not ready:
        raise Unknown(f"{facts.path}: crystal '{facts.crystal_name}' cannot be made anew; only ready crystals can")
    condition = replace(scene.condition, flux_photons=scene.condition.flux_photons * scene.response.pulses)
    detector, surroundings = scene.detector, scene.surroundings
    background = mix(
        make_background(condition, detector, surroundings),
        scales(condition, surroundings),
        np.zeros(shape, np.float32),
    )
    sample = Sample(ready_crystal(ready[0], int(named[2])), **msgspec.structs.asdict(scene.sample))
    stop, rng = shadow(condition, detector, surroundings), np.random.default_rng(_SEED)
    crystals = []
    for _ in range(SIMULATED_CRYSTALS):
        laid = [
            footprint(diffract(sample, condition, detector, random_orientation(rng)), condition, detector, stop)
            for _ in range(scene.crystals)
        ]
        crystals.append(_joined([each.index for each in laid], [each.photons for each in laid]))
    jitter = scene.jitter
    spread = Spread(
        jitter.pulse_energy, jitter.thickness, -(jitter.pulse_energy**2) / 2.0, -(jitter.thickness**2) / 2.0
    )
    return Library(background.astype(np.float64), tuple(crystals), False, spread, pulses)


def _joined(index: Sequence[npt.NDArray[Any]], photons: Sequence[npt.NDArray[Any]]) -> Pixels:
    """Each pixel once, with the light of all."""
    pixel, place = np.unique(np.concatenate(index).astype(np.int64), return_inverse=True)
    return pixel, np.bincount(place, np.concatenate(photons), len(pixel)).astype(np.float64)
