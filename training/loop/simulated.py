"""Samples made when they are asked for: shots that no file holds, whole frames or windows of them.

Every sample has a crystal orientation, a pulse energy, water and noise of its own, drawn from random numbers that are
counted by (seed, epoch, place): whatever batch a sample is in and whatever process makes it, it is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.framing import Framing
from sim_replay.background import Surroundings
from sim_replay.batch import Crop, CropBatch, make_crops
from sim_replay.crystal import Crystal, proteinase_k
from sim_replay.detector import CONDITIONS, eiger2_4m
from sim_replay.diffraction import Sample, random_orientation
from training.loop.disk import SPOT_PHOTONS
from training.loop.samples import Batch, Places, Source

_WATER_UNIT_M = 100e-6
_MOST_JITTER = 3.0
"""In standard deviations: a pulse fifty times brighter than meant would only cost time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is drawn: proteinase K at the paper's nine conditions, equally often.

    water_scale: in units of 100 micrometres. jitter: spread of pulse energy and of the water's thickness (log-normal),
    hits and empties alike. center_px: the beam centre's distance from the panel's middle, uniform on each axis.
    """

    samples: int
    flux_photons: float = 3e8
    water_scale: float = 1.0
    hit_fraction: float = 0.5
    crystal_size_m: float = 10e-6
    jitter: float = 0.3
    center_px: float = 5.0


class SimulatedSource:
    """An EIGER2 X 4M's frames, or what ``framing`` leaves of them, no more than which is simulated.

    fixed: every epoch has the same samples, as validation needs; else each its own.
    """

    def __init__(
        self, simulation: Simulation, seed: int, framing: Framing | None = None, *, fixed: bool = False, epoch: int = 0
    ) -> None:
        self.simulation, self.seed, self._framing = simulation, seed, framing or Framing()
        self._fixed, self._epoch = fixed, epoch
        self.name = f"simulation of seed {seed}"
        self.identity = f"simulation:{simulation}:{seed}:{self._framing}:{'fixed' if fixed else 'new every epoch'}"
        self.fields = frozenset({"image", "clean_image", "peak_map", "hit", "photon_energy_eV", "camera_length_m"})
        self._detector = eiger2_4m()
        panel, size = self._detector.shape, self._framing.size or self._detector.shape
        self._window = (min(size[0], panel[0]), min(size[1], panel[1]))

    @property
    def groups(self) -> NDArray[np.int64]:
        """Each sample its own: none shares a crystal's orientation, a background or a random number."""
        return np.arange(len(self))

    def __len__(self) -> int:
        return self.simulation.samples

    def lacking(self, field: str) -> str:
        return f"{self.name}: shots made on the fly have no {field}"

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        crops = [self._draw(int(place)) for place in places]
        out: Batch = {
            "hit": np.array([bool(crop.crystals) for crop in crops]),
            "photon_energy_eV": np.array([crop.condition.photon_energy_eV for crop in crops]),
            "camera_length_m": np.array([crop.condition.camera_length_m for crop in crops]),
        }
        if {"image", "clean_image", "peak_map"} & set(names):
            made = [self._make(crop, int(place)) for crop, place in zip(crops, places, strict=True)]
            if "image" in names:
                out["image"] = np.stack([self._framing.image(window.counts[0].numpy()) for window in made])
            if "clean_image" in names:
                clean = [_clean(window, self._rng(int(n), 2)) for window, n in zip(made, places, strict=True)]
                out["clean_image"] = np.stack([self._framing.image(counts) for counts in clean])
            if "peak_map" in names:
                out["peak_map"] = np.stack([self._framing.marks(_marks(window)) for window in made])
        return {name: out[name] for name in names}

    def at_epoch(self, epoch: int) -> Source:
        if self._fixed:
            return self
        return SimulatedSource(self.simulation, self.seed, self._framing, epoch=epoch)

    def _rng(self, place: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self._epoch, place, stream, self._fixed])

    def _draw(self, place: int) -> Crop:
        what, rng = self.simulation, self._rng(place, 0)
        panel = self._detector.shape
        condition = CONDITIONS[1 + int(rng.integers(len(CONDITIONS)))]
        energy, water = np.exp(what.jitter * np.clip(rng.standard_normal(2), -_MOST_JITTER, _MOST_JITTER))
        off_x, off_y = rng.uniform(-what.center_px, what.center_px, 2)
        hit = rng.random() < what.hit_fraction
        sample = Sample(_crystal(), size_m=what.crystal_size_m)
        return Crop(
            replace(
                condition,
                flux_photons=what.flux_photons * float(energy),
                beam_center_x_px=panel[1] / 2 + off_x,
                beam_center_y_px=panel[0] / 2 + off_y,
            ),
            Surroundings(water_thickness_m=what.water_scale * float(water) * _WATER_UNIT_M),
            (panel[0] - self._window[0]) // 2,
            (panel[1] - self._window[1]) // 2,
            ((sample, random_orientation(rng)),) if hit else (),
        )

    def _make(self, crop: Crop, place: int) -> CropBatch:
        generator = torch.Generator().manual_seed(int(self._rng(place, 1).integers(1 << 62)))
        return make_crops([crop], self._detector, self._window, generator=generator)


@lru_cache(maxsize=1)
def _crystal() -> Crystal:
    return proteinase_k()


def _clean(window: CropBatch, rng: np.random.Generator) -> NDArray[np.float32]:
    """Counts (ss, fs) without those of the background: of a Poisson sum, each photon is one part's by its share."""
    counts, bragg, background = (
        image[0].numpy().astype(np.float64) for image in (window.counts, window.bragg, window.background)
    )
    clean = np.zeros(counts.shape, np.float32)
    lit = (counts > 0) & (bragg > 0)
    clean[lit] = rng.binomial(counts[lit].astype(np.int64), bragg[lit] / (bragg[lit] + background[lit]))
    return clean


def _marks(window: CropBatch) -> NDArray[np.bool_]:
    marks = np.zeros(window.counts.shape[1:], np.bool_)
    bright = window.spots.photons >= SPOT_PHOTONS
    ss, fs = (axis[bright].round().long().numpy() for axis in (window.spots.ss, window.spots.fs))
    inside = (ss >= 0) & (ss < marks.shape[0]) & (fs >= 0) & (fs < marks.shape[1])
    marks[ss[inside], fs[inside]] = True
    live: NDArray[np.bool_] = window.valid[0].numpy()
    marks &= live
    return marks
