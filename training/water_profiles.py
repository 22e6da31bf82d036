"""Radial profiles of water and of what stands around it, fresh physics for each.

Whole images are not needed: the expected photons of a bin are those of a few radii (`training.placements`), so that
energy, distance, beam centre, temperature, gas, film, glass, stray light, an imperfect table of the water, left-over
Bragg light and the detector's way of counting are drawn anew for every profile.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sim_replay.detector import HC_EV_ANGSTROM
from sim_replay.scatter import (
    Q_INV_ANGSTROM,
    WATER_TEMPERATURE_RANGE_K,
    air_per_sr,
    glass_per_sr,
    polyimide_per_sr,
    water_per_sr,
)
from training.placements import BINS, NODES_PER_BIN, WINDOW, Placements, node_radii_m

PIXEL_M = 75e-6
WATER_M = 100e-6
_Q_EVERY, _Q_LAST = 2, 4.4
_TEMPERATURE_STEP_K = 1.0
_WAVES = 6
"""Cosines of random period and phase that a distortion is the sum of."""
_BRAGG_REFERENCE_M = (0.15, 0.075)
"""The camera length, and the radius up to there, at which left-over Bragg light is a given part of the water's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a profile may be of. Ranges are uniform unless said otherwise; lengths of materials are per 100 um of water.

    photons: in the whole profile, log-uniform. room_share: of water between room_C, the others anywhere in water_C.
    air_m, flat: at most; zero in none_share of the profiles, else the most times a uniform number squared (air) or
    cubed (flat, a part of the mean of all that scatters), so mostly little. wall_share: of profiles with a film or a
    glass wall, film_m or glass_m at most. distortion: r.m.s. of the smooth error of the water's S(q), log-uniform, over
    correlation_per_angstrom. bragg: the most light of Bragg peaks left over, in hit_share of the profiles, as a part of
    the water's at 0.15 m, mostly little; bragg_width_per_angstrom: of its fall (Gaussian); bragg_unevenness: the most
    log standard deviation of its bins. once_share: of detectors whose pixels count one photon a pulse at most, and see
    once_mean photons a frame (log-uniform).
    """

    photon_energy_eV: tuple[float, float] = (5000.0, 10000.0)
    camera_length_m: tuple[float, float] = (0.10, 0.45)
    photons: tuple[float, float] = (3e2, 2e8)
    water_C: tuple[float, float] = (1.0, 77.0)
    room_C: tuple[float, float] = (15.0, 30.0)
    room_share: float = 0.6
    none_share: float = 0.2
    air_m: float = 0.03
    flat: float = 0.3
    wall_share: float = 1 / 3
    film_m: float = 50e-6
    glass_m: float = 20e-6
    distortion: tuple[float, float] = (1e-3, 3e-2)
    correlation_per_angstrom: tuple[float, float] = (0.4, 1.0)
    hit_share: float = 0.5
    bragg: float = 0.05
    bragg_width_per_angstrom: tuple[float, float] = (0.5, 2.5)
    bragg_unevenness: float = 0.5
    once_share: float = 0.15
    once_mean: tuple[float, float] = (1e-3, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What scatters, for B profiles: (B,) float32 each, materials for 100 um of water."""

    photon_energy_eV: Tensor
    camera_length_m: Tensor
    water_C: Tensor
    air_m: Tensor
    film_m: Tensor
    glass_m: Tensor


def expected_profiles(placements: Placements, chosen: Tensor, scene: Scene) -> Tensor:
    """Expected photons of each bin (B, BINS) for one photon of the pulse, without stray light.

    chosen (B,) says which placement each has.
    """
    return _in_bins(placements, chosen, scene, _per_sr(scene)[:, None], torch.ones(len(chosen), 1))[:, 0]


def draw_profiles(
    placements: Placements, world: World, count: int, generator: torch.Generator, draws: int = 1
) -> tuple[Tensor, Tensor]:
    """Noisy profiles (count draws, 2, BINS) of photons and pixels, and their (ln L/E, ln E) (count draws, 2); m, eV.

    Each of `count` scenes is drawn so many times, every time with its own number of photons. float32.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def between(limits: tuple[float, float]) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * uniform(count)

    def log_between(limits: tuple[float, float]) -> Tensor:
        return torch.exp(between((math.log(limits[0]), math.log(limits[1]))))

    def some(share: float) -> Tensor:
        return (uniform(count) < share).float()

    chosen = torch.randint(len(placements), (count,), generator=generator)
    wall, of_glass = some(world.wall_share), some(0.5)
    scene = Scene(
        photon_energy_eV=between(world.photon_energy_eV),
        camera_length_m=between(world.camera_length_m),
        water_C=torch.where(some(world.room_share) > 0, between(world.room_C), between(world.water_C)),
        air_m=world.air_m * uniform(count) ** 2 * some(1 - world.none_share),
        film_m=world.film_m * uniform(count) * wall * (1 - of_glass),
        glass_m=world.glass_m * uniform(count) * wall * of_glass,
    )
    size, length = log_between(world.distortion), between(world.correlation_per_angstrom)
    distortion = torch.exp(size[:, None] * _smooth(length, generator))
    bragg = _bragg_per_sr(scene, between(world.bragg_width_per_angstrom), world.bragg * uniform(count) ** 2)
    bragg = bragg * some(world.hit_share)[:, None]
    polarised = torch.stack([torch.ones(count), some(0.5)], 1)
    laws = torch.stack([_per_sr(scene, distortion), bragg], 1)
    scattered, left_over = _in_bins(placements, chosen, scene, laws, polarised).unbind(1)
    uneven = torch.exp(world.bragg_unevenness * uniform(count, 1) * torch.randn(count, BINS, generator=generator))
    left_over = left_over * uneven
    pixels = torch.from_numpy(placements.pixels)[chosen]
    share = pixels / pixels.sum(1, keepdim=True)
    flat = world.flat * uniform(count) ** 3 * some(1 - world.none_share)
    mean = scattered + left_over + (flat * scattered.sum(1))[:, None] * share
    ratio = scene.camera_length_m / scene.photon_energy_eV
    target = torch.stack([ratio.log(), scene.photon_energy_eV.log()], 1)
    mean, pixels, target = (each.repeat(draws, 1) for each in (mean, pixels, target))
    count *= draws
    mean = mean * (log_between(world.photons) / mean.sum(1))[:, None]
    photons = _counted(mean, pixels, some(world.once_share) > 0, log_between(world.once_mean), generator)
    return torch.stack([photons, pixels], 1), target


def _counted(mean: Tensor, pixels: Tensor, once: Tensor, once_mean: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson counts, or, where pixels count once a pulse, binomial ones of the frames that the photons came in."""
    photons = torch.poisson(mean, generator=generator)
    rows = torch.nonzero(once)[:, 0]
    if len(rows):
        frames = (mean[rows].sum(1) / pixels[rows].sum(1) / once_mean[rows]).round().clamp(min=1.0)[:, None]
        trials = frames * pixels[rows]
        chance = -torch.expm1(-mean[rows] / trials.clamp(min=1.0))
        photons[rows] = torch.binomial(trials, chance, generator=generator)
    return photons


def _in_bins(placements: Placements, chosen: Tensor, scene: Scene, per_sr: Tensor, polarised: Tensor) -> Tensor:
    """Photons of each bin (B, K, BINS) from K laws w(q) (B, K, q).

    polarised (B, K) is 1 where their light is polarised as the beam, else 0.
    """
    radius = torch.from_numpy(node_radii_m()).float()
    length = scene.camera_length_m[:, None]
    distance2 = radius**2 + length**2
    cosine = length / distance2.sqrt()
    wavelength = HC_EV_ANGSTROM / scene.photon_energy_eV[:, None]
    sine2 = radius**2 / distance2
    # sin^2(theta) = (1 - cos 2theta)/2, written so that it keeps its digits near the beam
    q = 4 * math.pi * torch.sqrt(sine2 / (1 + cosine) / 2) / wavelength
    place = (q / float(_q_grid()[1])).clamp(max=per_sr.shape[2] - 1.001)
    low = place.floor()
    index = low.long()[:, None].expand(-1, per_sr.shape[1], -1)
    light = torch.lerp(per_sr.gather(2, index), per_sr.gather(2, index + 1), (place - low)[:, None])
    light = light * (cosine / distance2 * PIXEL_M**2)[:, None]
    turned = light * sine2[:, None] * polarised[:, :, None]

    def windows(values: Tensor) -> Tensor:
        return values.unfold(2, WINDOW, NODES_PER_BIN).permute(0, 2, 3, 1)

    area, across = (torch.from_numpy(each)[chosen] for each in (placements.area, placements.across))
    return (area @ windows(light) - across @ windows(turned)).flatten(1, 2).transpose(1, 2)


def _per_sr(scene: Scene, distortion: Tensor | None = None) -> Tensor:
    """w(q) of the scene (B, q), the water's times its distortion."""
    tables = _tables()
    place = ((scene.water_C - tables.coldest_C) / _TEMPERATURE_STEP_K).clamp(0, len(tables.water) - 1.001)
    low = place.long()
    water = tables.water[low] + (place - low)[:, None] * (tables.water[low + 1] - tables.water[low])
    if distortion is not None:
        water = water * distortion
    others = torch.stack([scene.air_m, scene.film_m, scene.glass_m], 1)
    return water + others @ tables.others


def _bragg_per_sr(scene: Scene, width: Tensor, part: Tensor) -> Tensor:
    """A Gaussian of q (B, q) whose light is this part of the water's within 75 mm at 0.15 m."""
    q, tables = _q_grid(), _tables()
    bragg = torch.exp(-0.5 * (q / width[:, None]) ** 2)
    length, radius = _BRAGG_REFERENCE_M
    sine = math.sin(math.atan(radius / length) / 2)
    seen = (q < 4 * math.pi * sine * scene.photon_energy_eV[:, None] / HC_EV_ANGSTROM) * q
    water = tables.water[round((25.0 - tables.coldest_C) / _TEMPERATURE_STEP_K)]
    return bragg * (part * (seen * water).sum(1) / (seen * bragg).sum(1))[:, None]


def _smooth(length: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth functions of q (B, q) of variance 1, Gaussian in their correlation of this length: random cosines."""
    size = (len(length), _WAVES, 1)
    rate = torch.randn(size, generator=generator) / length[:, None, None]
    phase = 2 * math.pi * torch.rand(size, generator=generator)
    return torch.cos(rate * _q_grid() + phase).sum(1) * math.sqrt(2 / _WAVES)


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """w(q): ``water`` (T, q) of 100 um at temperatures 1 K apart, ``others`` (3, q) of 1 m of air, film, glass."""

    water: Tensor
    coldest_C: float
    others: Tensor


@lru_cache(maxsize=1)
def _q_grid() -> Tensor:
    q = Q_INV_ANGSTROM[::_Q_EVERY]
    return torch.from_numpy(q[q <= _Q_LAST + 1e-9]).float()


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    coldest, hottest = WATER_TEMPERATURE_RANGE_K
    kelvin = np.arange(coldest, hottest + 0.5, _TEMPERATURE_STEP_K)
    # Lengths within what the tables take; all are linear in them.
    others = [air_per_sr(1.0), polyimide_per_sr(1e-3) * 1e3, glass_per_sr(1e-3) * 1e3]
    water = [water_per_sr(WATER_M, min(each, hottest)) for each in kelvin]

    def kept(tables: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]) -> Tensor:
        return torch.from_numpy(np.stack(tables)[:, ::_Q_EVERY][:, : len(_q_grid())].copy()).float()

    return _Tables(kept(water), coldest - 273.15, kept(others))
