"""One shot: what stands in the beam under a pulse, as a detector image with its truth.

Every photon comes from the same pulse and gets fresh Poisson noise. Expected photons (Bragg spots pixel by pixel,
diffuse light layer by layer) are drawn, then counted as the detector's pixels count, then the detector's own faults
are added.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim_replay import artefacts
from sim_replay.artefacts import FixedPixels
from sim_replay.background import draw_background, make_background, mix, scales, shadow
from sim_replay.detector import Condition, Detector
from sim_replay.diffraction import NO_FOOTPRINT, Sample, diffract, footprint, lay_gaussians, random_orientation
from sim_replay.distractors import Kind, draw_distractors
from sim_replay.poisson import draw_sparse
from sim_replay.response import ResponseWorkspace, count
from sim_replay.scene import Scene, jittered
from sim_replay.truth import NO_SPOTS, Lit, ShotTruth, expect, true_spots

__all__ = ["Buffers", "Shot", "frame_rng", "simulate_shot"]


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An image, counts (ss, fs) in the detector's dtype, and what is true of it."""

    counts: NDArray[np.unsignedinteger]
    truth: ShotTruth


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
    fixed: FixedPixels | None = None,
    buffers: Buffers | None = None,
    out: NDArray[np.unsignedinteger] | None = None,
) -> Shot:
    """Simulate one frame of a scene.

    fixed: the faulty pixels of the series. buffers: made anew when None. out, if given, is a C-contiguous array
    (ss, fs) of the detector's dtype that becomes `counts`. Raises ValueError when out does not fit the detector.
    """
    detector = scene.detector
    if out is None:
        out = np.zeros(detector.shape, dtype=detector.dtype)
    elif out.shape != detector.shape or out.dtype != np.dtype(detector.dtype) or not out.flags.c_contiguous:
        raise ValueError(f"out must be a C-contiguous {detector.shape} array of {detector.dtype}")
    buffers = Buffers(detector) if buffers is None else buffers

    hit = bool(rng.random() < scene.hit_fraction)
    drawn = jittered(scene, rng)
    pulses = scene.response.pulses
    frame_condition = dataclasses.replace(drawn.condition, flux_photons=drawn.condition.flux_photons * pulses)
    orientations = _orientations(scene, hit, rng)
    distractors = draw_distractors(scene.distractors, frame_condition, detector, rng)
    if Kind.NO_BEAM in distractors.kinds:
        hit, orientations = False, np.empty((0, 3, 3))
        frame_condition = dataclasses.replace(frame_condition, flux_photons=0.0)
        drawn = dataclasses.replace(drawn, condition=dataclasses.replace(drawn.condition, flux_photons=0.0))

    stop = shadow(frame_condition, detector, drawn.surroundings)
    crystals = tuple(
        _lit(dataclasses.replace(scene.sample, offset_m=offset), frame_condition, detector, turn, stop)
        for offset, turn in zip(drawn.offsets_m, orientations, strict=False)
    )
    salts = tuple(_lit(each, frame_condition, detector, random_orientation(rng), stop) for each in distractors.salts)
    grains = NO_FOOTPRINT
    if len(distractors.grain_photons):
        grains = lay_gaussians(
            distractors.grain_fs, distractors.grain_ss, distractors.grain_photons, distractors.grain_sigma_px,
            detector, stop,
        )  # fmt: skip
    background = make_background(frame_condition, detector, drawn.surroundings, distractors.smooth_per_sr)
    diffuse = scales(frame_condition, drawn.surroundings)

    salt_spots, image, scale = NO_SPOTS, background.water.expected, diffuse[0]
    if background.rest is not None or salts or len(grains.index):
        image, scale = mix(background, diffuse, buffers.diffuse), 1.0
        footprints = tuple(each.footprint for each in salts)
        salt = expect(footprints, image, scale, scene.response, detector, buffers.response)
        salt_spots = true_spots(salts, salt.counts, detector)
        for each in (*footprints, grains):
            np.add.at(image.reshape(-1), each.index, each.photons)
    footprints = tuple(each.footprint for each in crystals)
    protein = expect(footprints, image, scale, scene.response, detector, buffers.response)

    counts_once = scene.response.kind == "integrating"
    target, limit = (out, detector.largest_count) if counts_once else (buffers.photons, _LARGEST_PHOTON_NUMBER)
    target[...] = 0
    sparse = [*(each.footprint for each in (*crystals, *salts)), grains]
    draw_sparse(
        np.concatenate([each.index for each in sparse]), np.concatenate([each.photons for each in sparse]),
        rng, target, limit,
    )  # fmt: skip
    draw_background(background, diffuse, rng, target, limit)
    if not counts_once:
        count(target, scene.response, detector.pixel_size_m, rng, out, detector.largest_count, buffers.response)
    kinds = distractors.kinds
    if not len(salt_spots):
        kinds &= ~Kind.SALT
    if hit:
        kinds |= Kind.PROTEIN
    if fixed is not None:
        faults = artefacts.apply(
            scene.artefacts, fixed, out, rng, detector.largest_count, detector.sentinel, image, scale
        )
        for name in faults.names:
            kinds |= _FAULTS[name]
    detector.fill_gaps(out)

    def photons(lit: tuple[Lit, ...]) -> float:
        return sum(float(each.footprint.photons.sum()) for each in lit)

    return Shot(
        out,
        ShotTruth(
            kinds=kinds or Kind.WATER,
            condition=drawn.condition,
            water_thickness_m=drawn.surroundings.water_thickness_m,
            orientations=orientations,
            offsets_m=np.array(drawn.offsets_m if hit else ()).reshape(-1, 2),
            spots=true_spots(crystals, protein.counts, detector),
            distractor_spots=salt_spots,
            bragg_photons=photons(crystals),
            background_photons=photons(salts) + float(grains.photons.sum()) + background.photons(diffuse),
            log_likelihood_ratio=protein.log_likelihood_ratio,
            rings=distractors.rings,
            salt_names=distractors.salt_names if len(salt_spots) else (),
        ),
    )


_LARGEST_PHOTON_NUMBER = (1 << 32) - 1
_FAULTS = {"hot": Kind.HOT_PIXEL, "flicker": Kind.FLICKER, "cosmic": Kind.COSMIC, "edge": Kind.EDGE}


def _orientations(scene: Scene, hit: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    if not hit:
        return np.empty((0, 3, 3))
    if scene.fixed_orientation is not None:
        return np.tile(np.array(scene.fixed_orientation).reshape(1, 3, 3), (scene.crystals, 1, 1))
    return np.stack([random_orientation(rng) for _ in range(scene.crystals)])


def _lit(
    sample: Sample,
    condition: Condition,
    detector: Detector,
    orientation: NDArray[np.float64],
    transmission: NDArray[np.float32] | None,
) -> Lit:
    spots = diffract(sample, condition, detector, orientation)
    return Lit(spots, footprint(spots, condition, detector, transmission))
