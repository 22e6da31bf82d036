"""One shot: what stands in the beam under a pulse, as a detector image with its truth.

Every photon comes from the same pulse and gets fresh Poisson noise. Expected photons (Bragg spots pixel by pixel,
diffuse light layer by layer) are drawn, then counted as the detector's pixels count, then the detector's own faults
are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim_replay import artefacts
from sim_replay.artefacts import FixedPixels
from sim_replay.background import Background, draw_background, make_background, mix, scales, shadow
from sim_replay.beam import lit_path_m
from sim_replay.crystfel import SPOT_PIXEL_PHOTONS, Pattern, group_spots
from sim_replay.detector import Condition, Detector
from sim_replay.diffraction import (
    MOST_ENTRIES,
    NO_FOOTPRINT,
    Footprint,
    Sample,
    diffract,
    footprint,
    in_one_pixel,
    lay_gaussians,
    random_orientation,
)
from sim_replay.distractors import Drawn as DrawnDistractors
from sim_replay.distractors import Kind, draw_distractors
from sim_replay.poisson import draw_sparse
from sim_replay.response import ResponseWorkspace, count
from sim_replay.scene import Drawn, Scene, jittered
from sim_replay.truth import Expected, Lit, ShotTruth, expect, true_spots

__all__ = ["Buffers", "Shot", "frame_rng", "simulate_shot"]


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An image, counts (ss, fs) in the detector's dtype, what is true of it, and the light of each crystal."""

    counts: NDArray[np.unsignedinteger]
    truth: ShotTruth
    light: tuple[Footprint, ...] = ()


class Buffers:
    """Memory that one process reuses from shot to shot."""

    def __init__(self, detector: Detector) -> None:
        self.photons = np.zeros(detector.shape, dtype=np.uint32)
        self.diffuse = np.zeros(detector.shape, dtype=np.float32)
        self.response = ResponseWorkspace()


def frame_rng(seed: int, frame_index: int) -> np.random.Generator:
    """The random numbers of frame `frame_index` of seed `seed`, whichever process draws them.

    Philox counts its blocks in 256 bits; the frame stands in the highest 64, so that no two frames can meet.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, frame_index]))


def simulate_shot(
    scene: Scene,
    rng: np.random.Generator,
    *,
    pattern: Pattern | None = None,
    fixed: FixedPixels | None = None,
    buffers: Buffers | None = None,
    out: NDArray[np.unsignedinteger] | None = None,
    pixel_spots: bool = False,
) -> Shot:
    """Simulate one frame of a scene.

    pattern: light of a crystal computed elsewhere, fitted to the detector, which takes the place of the scene's own
    crystals. fixed: the faulty pixels of the series. buffers: made anew when None. out, if given, is a C-contiguous
    array (ss, fs) of the detector's dtype that becomes `counts`. pixel_spots: all light of a spot falls in one pixel.
    Raises ValueError when out or pattern does not fit the detector.
    """
    detector = scene.detector
    if out is None:
        out = np.zeros(detector.shape, dtype=detector.dtype)
    elif out.shape != detector.shape or out.dtype != np.dtype(detector.dtype) or not out.flags.c_contiguous:
        raise ValueError(f"out must be a C-contiguous {detector.shape} array of {detector.dtype}")
    if pattern is not None and pattern.shape != detector.shape:
        raise ValueError(f"the pattern has {pattern.shape} pixels, the detector {detector.shape}")
    buffers = Buffers(detector) if buffers is None else buffers

    cast = _draw_cast(scene, rng, pattern is not None)
    stop = shadow(cast.frame_condition, detector, cast.drawn.surroundings)
    if pattern is not None and cast.hit:
        crystals: tuple[Lit, ...] = (_from_pattern(pattern, cast.frame_condition, stop),)
        cast = dataclasses.replace(cast, orientations=pattern.orientation[None])
    else:
        samples = [dataclasses.replace(scene.sample, offset_m=offset) for offset in cast.drawn.offsets_m]
        crystals = _lit(samples, cast.orientations, cast.frame_condition, detector, stop, pixel_spots)
    light = _shine(scene, cast, crystals, stop, buffers, rng, pixel_spots)
    truth = _tell(scene, cast, light, buffers.response)
    _expose(scene, light, buffers, rng, out)
    if fixed is not None:
        faults = artefacts.apply(
            scene.artefacts, fixed, out, rng, detector.largest_count, detector.sentinel, light.diffuse, light.scale
        )
        for name in faults.names:
            truth = dataclasses.replace(truth, kinds=truth.kinds | _FAULTS[name])
    detector.fill_gaps(out)
    truth = dataclasses.replace(truth, kinds=truth.kinds or Kind.WATER)
    return Shot(out, truth, tuple(each.footprint for each in light.crystals))


_FAULTS = {"hot": Kind.HOT_PIXEL, "flicker": Kind.FLICKER, "cosmic": Kind.COSMIC, "edge": Kind.EDGE}
_LARGEST_PHOTON_NUMBER = (1 << 32) - 1


@dataclass(frozen=True, slots=True, eq=False)
class _Cast:
    """What the dice decided: frame_condition has the photons of all pulses of the frame."""

    hit: bool
    drawn: Drawn
    frame_condition: Condition
    orientations: NDArray[np.float64]
    distractors: DrawnDistractors


def _draw_cast(scene: Scene, rng: np.random.Generator, given_crystal: bool) -> _Cast:
    hit = bool(rng.random() < scene.hit_fraction) or given_crystal
    drawn = jittered(scene, rng)
    flux = drawn.condition.flux_photons
    condition = dataclasses.replace(drawn.condition, flux_photons=flux * scene.response.pulses)
    if hit and scene.fixed_orientation is not None:
        turn = np.array(scene.fixed_orientation).reshape(1, 3, 3)
        orientations = np.tile(turn, (scene.crystals, 1, 1))
    else:
        orientations = np.array([random_orientation(rng) for _ in range(scene.crystals if hit else 0)])
    distractors = draw_distractors(scene.distractors, condition, scene.detector, rng)
    if Kind.NO_BEAM in distractors.kinds:
        hit, orientations = False, np.empty(0)
        condition = dataclasses.replace(condition, flux_photons=0.0)
        drawn = dataclasses.replace(drawn, condition=dataclasses.replace(drawn.condition, flux_photons=0.0))
    return _Cast(hit, drawn, condition, orientations.reshape(-1, 3, 3), distractors)


@dataclass(frozen=True, slots=True, eq=False)
class _Light:
    """Expected photons of a frame. diffuse (ss, fs) times scale is all but the crystals' and the salts' spots; it
    lives in a buffer or in the remembered background."""

    crystals: tuple[Lit, ...]
    salts: tuple[Lit, ...]
    grains: Footprint
    background: Background
    layer_scales: tuple[float, float]
    diffuse: NDArray[np.float32]
    scale: float


def _shine(
    scene: Scene,
    cast: _Cast,
    crystals: tuple[Lit, ...],
    stop: NDArray[np.float32] | None,
    buffers: Buffers,
    rng: np.random.Generator,
    pixel_spots: bool,
) -> _Light:
    condition, detector, drawn = cast.frame_condition, scene.detector, cast.distractors
    turns = [random_orientation(rng) for _ in drawn.salts]
    salts = _lit(drawn.salts, turns, condition, detector, stop, pixel_spots)
    grains = NO_FOOTPRINT
    if len(drawn.grain_photons):
        place = (drawn.grain_fs, drawn.grain_ss, drawn.grain_photons, drawn.grain_sigma_px)
        grains = lay_gaussians(*place, detector, stop)
    background = make_background(condition, detector, cast.drawn.surroundings, drawn.smooth_per_sr)
    layer_scales = scales(condition, cast.drawn.surroundings)
    diffuse, scale = background.water.expected, layer_scales[0]
    if background.rest is not None or salts or len(grains.index):
        diffuse, scale = mix(background, layer_scales, buffers.diffuse), 1.0
        np.add.at(diffuse.reshape(-1), grains.index, grains.photons)
    return _Light(crystals, salts, grains, background, layer_scales, diffuse, scale)


def _tell(scene: Scene, cast: _Cast, light: _Light, workspace: ResponseWorkspace) -> ShotTruth:
    """The truth, but for the detector's faults."""
    detector, response = scene.detector, scene.response

    def expected(lit: tuple[Lit, ...]) -> Expected:
        footprints = tuple(each.footprint for each in lit)
        dark = scene.artefacts.dark_counts
        return expect(footprints, light.diffuse, light.scale, response, detector, workspace, dark)

    def photons(lit: tuple[Lit, ...]) -> float:
        return sum(float(each.footprint.photons.sum()) for each in lit)

    salt_spots = true_spots(light.salts, expected(light.salts).counts, detector)
    # A crystal is to be told from all that is beside it, salt as well.
    for salt in light.salts:
        np.add.at(light.diffuse.reshape(-1), salt.footprint.index, salt.footprint.photons)
    protein = expected(light.crystals)
    bragg_photons = photons(light.crystals)
    kinds = cast.distractors.kinds | (Kind.PROTEIN if bragg_photons > 0.0 else Kind(0))
    return ShotTruth(
        kinds=kinds if len(salt_spots) else kinds & ~Kind.SALT,
        condition=cast.drawn.condition,
        water_thickness_m=cast.drawn.surroundings.water_thickness_m,
        orientations=cast.orientations,
        offsets_m=np.array(cast.drawn.offsets_m)[: len(cast.orientations)],
        spots=true_spots(light.crystals, protein.counts, detector),
        distractor_spots=salt_spots,
        bragg_photons=bragg_photons,
        background_photons=photons(light.salts)
        + float(light.grains.photons.sum())
        + light.background.photons(light.layer_scales),
        log_likelihood_ratio=protein.log_likelihood_ratio,
        crystal=bragg_photons > 0.0 or (cast.hit and _lights(scene, cast.drawn)),
        rings=cast.distractors.rings,
        salt_names=cast.distractors.salt_names if len(salt_spots) else (),
    )


def _lights(scene: Scene, drawn: Drawn) -> bool:
    """Whether any crystal has a part in the beam that is not a vanishing one."""
    size = scene.sample.size_m
    return any(lit_path_m(scene.condition.beam, size, offset) > _LEAST_LIT_SHARE * size for offset in drawn.offsets_m)


_LEAST_LIT_SHARE = 1e-6  # of the beam; a Gaussian's tail lights everything


def _expose(
    scene: Scene, light: _Light, buffers: Buffers, rng: np.random.Generator, out: NDArray[np.unsignedinteger]
) -> None:
    """Draw the photons and count them."""
    detector = scene.detector
    ideal = scene.response.kind == "integrating"
    photons, limit = (out, detector.largest_count) if ideal else (buffers.photons, _LARGEST_PHOTON_NUMBER)
    photons[...] = 0
    sparse = [*(each.footprint for each in (*light.crystals, *light.salts)), light.grains]
    index, expected = (np.concatenate([getattr(each, name) for each in sparse]) for name in ("index", "photons"))
    draw_sparse(index, expected, rng, photons, limit)
    draw_background(light.background, light.layer_scales, rng, photons, limit)
    if not ideal:
        count(photons, scene.response, detector.pixel_size_m, rng, out, detector.largest_count, buffers.response)


def _lit(
    samples: Sequence[Sample],
    orientations: Iterable[NDArray[np.float64]],
    condition: Condition,
    detector: Detector,
    transmission: NDArray[np.float32] | None,
    pixel_spots: bool,
) -> tuple[Lit, ...]:
    lit, left = [], MOST_ENTRIES
    for sample, orientation in zip(samples, orientations, strict=False):
        spots = diffract(sample, condition, detector, orientation)
        laid = footprint(spots, condition, detector, transmission, left)
        left -= len(laid.index)
        lit.append(Lit(spots.hkl, spots.partiality, in_one_pixel(laid) if pixel_spots else laid))
    return tuple(lit)


def _from_pattern(pattern: Pattern, condition: Condition, transmission: NDArray[np.float32] | None) -> Lit:
    photons = pattern.photons * (condition.flux_photons / pattern.flux_photons)
    if transmission is not None:
        photons *= transmission.reshape(-1)[pattern.index]
    spot = group_spots(pattern.index, photons, pattern.shape[1])
    order = np.argsort(spot, kind="stable")
    spots = int(spot.max(initial=-1)) + int(bool(np.all(photons > SPOT_PIXEL_PHOTONS)))
    return Lit(
        hkl=np.zeros((spots, 3), dtype=np.int32),
        partiality=np.full(spots, np.nan),
        footprint=Footprint(pattern.index[order], photons[order], spot[order].astype(np.int32)),
    )
