"""The running hot-pixel map: faulty pixels found, and good ones taken for faulty, where crystals and frames repeat.

Frames of an EIGER2 4M: Poisson background, artefacts of the simulator, and a crystal that comes again and again the
same way, with fresh noise each time. Its spots are blurred as the simulator's detector blurs them, or, which is the
hardest, lie in one pixel each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from analyzer.frame_peaks import frame_peaks
from analyzer.geometry import Geometry
from analyzer.hot_pixels import HotPixelWatch
from analyzer.reduction import Workspace, make_plan
from cxls.bench.report import Figure, Report
from cxls.settings import BenchSettings
from sim_replay.artefacts import Artefacts, FixedPixels, apply, fixed_pixels
from sim_replay.detector import eiger2_4m
from streamer.validity import Validity

FRAMES_EACH = 10
"""So many frames a scenario for each of ``--frames``."""

_SPOTS, _SPOT_PHOTONS = 40, 8.0
_FAULTY = Artefacts(hot_pixels=50, flickering_pixels=50, cosmics=0.1)
_SOUND = Artefacts(cosmics=0.1)

Image = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Scenario:
    """``crystal`` is in this share of the frames, always the same way; ``loop`` frames come again and again.

    ``blur_px`` is the standard deviation of its spots, 0 for spots of one pixel.
    """

    background: float
    artefacts: Artefacts = field(default=_SOUND)
    crystal: float = 0.0
    blur_px: float = 0.4
    loop: int = 0


SCENARIOS = {
    "faulty, 0.0005 photons a pixel": _Scenario(0.0005, _FAULTY),
    "faulty, 0.02 photons a pixel": _Scenario(0.02, _FAULTY),
    "faulty, 0.2 photons a pixel": _Scenario(0.2, _FAULTY),
    "sound": _Scenario(0.02),
    "sound, 20 frames in a loop": _Scenario(0.02, loop=20),
    "faulty, 20 frames in a loop": _Scenario(0.02, _FAULTY, loop=20),
    "crystal stuck in 5 % of frames": _Scenario(0.005, crystal=0.05),
    "crystal stuck in 30 % of frames": _Scenario(0.005, crystal=0.3),
    "crystal stuck in all frames": _Scenario(0.005, crystal=1.0),
    "faulty, crystal stuck in 30 %": _Scenario(0.005, _FAULTY, crystal=0.3),
    "faulty, crystal stuck in all": _Scenario(0.005, _FAULTY, crystal=1.0),
    "one-pixel spots stuck in 30 %": _Scenario(0.005, crystal=0.3, blur_px=0.0),
    "one-pixel spots stuck in 90 %": _Scenario(0.005, crystal=0.9, blur_px=0.0),
    "one-pixel spots stuck in all": _Scenario(0.005, crystal=1.0, blur_px=0.0),
}


def run(settings: BenchSettings) -> Report:
    """Every scenario on frames of its own."""
    frames = FRAMES_EACH * settings.frames
    figures: list[Figure] = []
    for name, scenario in SCENARIOS.items():
        figures += _measure(name, scenario, frames)
    return Report(f"hot pixels: {frames} frames a scenario", figures)


def _measure(name: str, scenario: _Scenario, frames: int) -> list[Figure]:
    detector = eiger2_4m()
    rows, columns = detector.shape
    valid = (~detector.mask).astype(np.uint8)
    plan = make_plan(
        Geometry(detector.shape, columns / 2 - 0.5, rows / 2 - 0.5, detector.pixel_size_m, 0.15, 7000.0),
        Validity("gaps", valid),
        65534,
    )
    places = fixed_pixels(scenario.artefacts, detector.mask, 1)
    workspace, watch = Workspace(plan, np.dtype(np.uint16)), HotPixelWatch(detector.shape)
    for image in _frames(scenario, frames, places, valid):
        workspace.pixels[:] = image
        reduced = workspace.reduce()
        seen = frame_peaks(plan, workspace.pixels, reduced.peaks, workspace.background)
        watch.add(seen, np.stack([reduced.photons, reduced.pixels_counted]).astype(np.float32))
    found = watch.find()
    faulty = np.concatenate([places.hot, places.flickering])
    figures = []
    if len(faulty):
        right = len(np.intersect1d(found.pixel, faulty))
        figures.append(Figure(f"{name}: found", "%", 100.0 * right / len(faulty), note=f"of {len(faulty)}"))
    false = len(np.setdiff1d(found.pixel, faulty))
    note = f"{found.frames} distinct frames, {found.tied} pixels left out as tied"
    return [*figures, Figure(f"{name}: false", "pixels", float(false), note=note)]


def _frames(scenario: _Scenario, frames: int, places: FixedPixels, valid: npt.NDArray[np.uint8]) -> Iterator[Image]:
    rng = np.random.default_rng(5)
    spots, photons = _crystal(rng, valid, scenario.blur_px)
    kept: list[Image] = []
    for number in range(frames):
        if scenario.loop and number >= scenario.loop:
            yield kept[number % scenario.loop]
            continue
        image: Image = np.zeros(valid.shape, np.uint16)
        flat = image.reshape(-1)
        # So many photons at random places: a Poisson number in each pixel.
        np.add.at(flat, rng.integers(0, flat.size, rng.poisson(scenario.background * flat.size)), np.uint16(1))
        if rng.random() < scenario.crystal:
            np.add.at(flat, spots, rng.poisson(photons).astype(np.uint16))
            flat[valid.reshape(-1) == 0] = 0
        apply(scenario.artefacts, places, image, rng, 65534, 65535)
        if scenario.loop:
            kept.append(image)
        yield image


def _crystal(
    rng: np.random.Generator, valid: npt.NDArray[np.uint8], blur_px: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Flat pixels (n,) of a crystal's spots, and the photons each expects."""
    rows, columns = valid.shape
    ss, fs = np.divmod(rng.choice(np.flatnonzero(valid), _SPOTS, replace=False), columns)
    photons = rng.exponential(_SPOT_PHOTONS, _SPOTS)
    if not blur_px:
        return ss * columns + fs, photons
    ss, fs = np.clip(ss, 2, rows - 3), np.clip(fs, 2, columns - 3)
    place, around = rng.uniform(-0.5, 0.5, (2, _SPOTS, 1)), np.arange(-2, 3)
    share = [ndtr((around + 0.5 - at) / blur_px) - ndtr((around - 0.5 - at) / blur_px) for at in place]
    pixels = (ss[:, None, None] + around[:, None]) * columns + fs[:, None, None] + around
    return pixels.reshape(-1), (photons[:, None, None] * share[0][:, :, None] * share[1][:, None, :]).reshape(-1)
