"""Profiles of the twin's diffuse scattering: expected ones, and draws of a frame's or of many frames' sum.

The twin makes an image of the expected counts a pixel, with its own tables and geometry; a draw gives each bin of the
reduction its Poisson number. So thousands of frames are one draw, and nothing of the fit's model is in it.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analyzer import diffuse
from analyzer.geometry import bin_map, series_geometry
from analyzer.kernels import QUADRANTS
from analyzer.networks import coarse_profile, profile_index
from analyzer.parameters.profile import PHOTONS, PIXELS, SQUARES, sectors
from sim_replay.background import Surroundings, make_background, mix, scales
from sim_replay.detector import Condition, Detector
from streamer.messages import SeriesMetadata

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """``counts`` (fine bins,) expected in a frame, ``pairs`` of them a pixel (n squared, summed); ``once``: a pixel
    counts no more than one a pulse, and a frame is one pulse."""

    counts: Floats
    pairs: float
    once: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A sum of frames: ``profile`` (3, bins) and ``pairs`` as the fit takes them, ``coarse`` (2, bins) as networks."""

    profile: Floats
    pairs: float
    coarse: npt.NDArray[np.float32]


class Profiles:
    """Makes profiles of one detector whose header has the beam in the middle of the panel."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.middle_px = (detector.shape[1] / 2.0, detector.shape[0] / 2.0)
        metadata = SeriesMetadata(
            beam_center_x_px=self.middle_px[0],
            beam_center_y_px=self.middle_px[1],
            pixel_size_x_m=detector.pixel_size_m,
        )
        geometry = series_geometry(metadata, detector.shape)
        bins = bin_map(geometry)
        place = diffuse.places(geometry, bins)
        live = ~detector.mask.reshape(-1)
        self.sectors, _ = sectors(geometry, bins, place, live.astype(np.uint8))
        self.center_px = (geometry.beam_center_fs, geometry.beam_center_ss)
        self._live, self._place = np.flatnonzero(live), place[live].astype(np.intp)
        self._fine = bins.bins * QUADRANTS
        self._pixels = np.bincount(self._place, minlength=self._fine).astype(np.float64)
        self._coarse = profile_index(geometry, bins.radial_bins)
        self._image = np.zeros(detector.shape, np.float32)

    def expected(
        self, condition: Condition, shift_px: npt.ArrayLike, surroundings: Surroundings | None = None,
        extra_per_sr: Floats | None = None, once: bool = False,
    ) -> Expected:  # fmt: skip
        """A frame whose beam is ``shift_px`` (2,) (fs, ss) from where the header has it; about 50 ms."""
        surroundings = surroundings or Surroundings()
        shift = np.asarray(shift_px, np.float64)
        there = replace(
            condition, beam_center_x_px=self.middle_px[0] + shift[0], beam_center_y_px=self.middle_px[1] + shift[1]
        )
        background = make_background(there, self.detector, surroundings, extra_per_sr)
        mix(background, scales(there, surroundings), self._image)
        counts = self._image.reshape(-1)[self._live].astype(np.float64)
        if once:
            counts = -np.expm1(-counts)
        summed = np.bincount(self._place, counts, self._fine).astype(np.float64)
        return Expected(summed, float((summed**2 / np.maximum(self._pixels, 1.0)).sum()), once)

    def draw(self, expected: Expected, flux: float, frames: int, rng: np.random.Generator) -> Drawn:
        """The sum of ``frames`` at ``flux`` times the expected counts; flux must be 1 where a pixel counts once."""
        pairs = expected.pairs * flux**2 * frames
        if expected.once:
            trials = np.rint(self._pixels * frames).astype(np.int64)
            share = np.clip(expected.counts / np.maximum(self._pixels, 1.0), 0.0, 1.0)
            photons, seen = rng.binomial(trials, share).astype(np.float64), 0.0
        else:
            photons = rng.poisson(expected.counts * flux * frames).astype(np.float64)
            # Each pair is counted twice in n (n - 1).
            seen = 2.0 * float(rng.poisson(pairs / 2.0))
        bins = self.sectors.bins
        profile = np.zeros((3, bins))
        profile[PHOTONS] = np.bincount(self.sectors.place, photons, bins)
        profile[SQUARES] = profile[PHOTONS] + seen / bins
        profile[PIXELS] = self.sectors.pixels * frames
        whole, pixels = (each.reshape(-1, QUADRANTS).sum(1) for each in (photons, self._pixels * frames))
        return Drawn(profile, pairs, coarse_profile(whole, pixels, self._coarse))
