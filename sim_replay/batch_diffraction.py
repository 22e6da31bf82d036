"""Bragg spots of many crystals at once, on small windows of one detector, in torch.

The physics is that of `sim_replay.diffraction`, whose docstring has the formulas; this module only orders the work for
vectors. A matrix product finds the reflections that could meet Bragg's condition: for q = U B hkl and any reach s, a
reflection is met between the wavelengths a and b only if -q_z >= a q^2/2 - s q and -q_z <= b q^2/2 + s q, two planes
over the products of h, k and l, since the sine is flatter than its argument. What is left is tested exactly, in
float64; `sim_replay.batch_footprint` lays the result over the pixels.

Nothing loops over crystals of one reflection list, over reflections or over pixels. The device is asked for sizes (the
count of what is left, which sizes of streaks there are), which waits for it; there is no other wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from sim_replay.beam import lit_path_m, lit_sigma_m
from sim_replay.crystal import Crystal, reciprocal_basis
from sim_replay.detector import Condition, Detector, beam_center_px
from sim_replay.diffraction import (
    LARGEST_THETA_RAD,
    LARGEST_TWO_THETA_RAD,
    REACH_SIGMA,
    SIZE_SIGMA_TIMES_LENGTH,
    WEAK_SPOT_PHOTONS,
    Sample,
    largest_q_inv_angstrom,
)
from sim_replay.scatter import CLASSICAL_ELECTRON_RADIUS_M

_DROP_NATS = 9.2  # pieces whose density is below exp(-9.2) = 1e-4 of the streak's densest are not laid
KERNEL_REACH_SIGMA = 4.5
NODE_REACH_SIGMA = 3.5
_MARGIN_SIGMA = 6.0  # no light of a streak falls farther off it than this, wide or blurred
LARGEST_TANGENT_RAD = 1.5
_LEAST_STREAK_PX = 0.05

_PIECES = (1, 4, 8, 16, 32, 64, 128, 256, 512)
_NODES = (1, 5, 9, 17, 29, 41)
_BOX_PX = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)

_FLOAT32_SLACK = 1e-5  # 1/angstrom, for planes in float32
_CACHED_BYTES = 1 << 22  # on a CPU blocks of this size stay in its caches
_CANDIDATE_BYTES = 8 * 60  # of a reflection that is tested exactly: arrays of float64 alive at once
BIN_BYTES = 8 * 12  # the same for each bin of the spectrum


@dataclass(frozen=True, slots=True, eq=False)
class LitCrystal:
    """A crystal in a pulse and the window it is seen through.

    orientation (3, 3) as for `diffract`; the condition's flux is that of the whole frame; item is the number of the
    window, ss0 and fs0 its first pixel; own says whether the crystal is the sample's, not a salt's.
    """

    sample: Sample
    condition: Condition
    orientation: NDArray[np.float64]
    item: int
    ss0: int
    fs0: int
    own: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Tensors of one length on one device."""

    def at(self, rows: torch.Tensor) -> Self:
        return type(self)(*(getattr(self, each.name).index_select(0, rows) for each in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass(frozen=True, slots=True, eq=False)
class _Settings(_Columns):
    """What a lit crystal's reflections share; (n,) float64 each, place in pixels of the window.

    Only reflections of q_min to q_max (1/angstrom) can light the window, in directions around the beam that make an
    angle of that cosine at most with (toward_fs, toward_ss).
    """

    shortest_angstrom: torch.Tensor
    longest_angstrom: torch.Tensor
    mosaic_rad: torch.Tensor
    divergence_rad: torch.Tensor
    size_sigma: torch.Tensor
    strain: torch.Tensor
    q_min: torch.Tensor
    q_max: torch.Tensor
    toward_fs: torch.Tensor
    toward_ss: torch.Tensor
    toward_cosine: torch.Tensor
    strength: torch.Tensor
    polarisation_xx: torch.Tensor
    polarisation_xy: torch.Tensor
    polarisation_yy: torch.Tensor
    distance_px: torch.Tensor
    beam_fs: torch.Tensor
    beam_ss: torch.Tensor
    blur_px: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Streaks(_Columns):
    """Reflections whose light meets their window, (n,) each, float64 where nothing else is said.

    item int64 and own bool as in `LitCrystal`, crystal int64 its place in the list; photons into the whole spot.
    theta_mean, theta_sigma, d (angstrom), slope, direction_fs and direction_ss are those of `Spots`; low and high bound
    the angles that are laid. kernel_px: the round Gaussian; wide_px: how much wider it is one way, 0 for round, along
    the radius where along_radius (bool) says so. pieces and nodes (int64): Gaussians along the streak and for its
    width; box_px (int64): side of its pixel box, whose first pixel is (box_ss, box_fs) int64 in the window.
    """

    item: torch.Tensor
    crystal: torch.Tensor
    own: torch.Tensor
    photons: torch.Tensor
    theta_mean: torch.Tensor
    theta_sigma: torch.Tensor
    d: torch.Tensor
    slope: torch.Tensor
    direction_fs: torch.Tensor
    direction_ss: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    kernel_px: torch.Tensor
    wide_px: torch.Tensor
    along_radius: torch.Tensor
    distance_px: torch.Tensor
    beam_fs: torch.Tensor
    beam_ss: torch.Tensor
    pieces: torch.Tensor
    nodes: torch.Tensor
    box_px: torch.Tensor
    box_ss: torch.Tensor
    box_fs: torch.Tensor

    def __len__(self) -> int:
        return len(self.photons)


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """Band edges (crystals, bins + 1) in angstrom and share of the photons an angstrom (crystals, bins), float64.

    A spectrum of fewer bins than the longest ends in bins of no width.
    """

    edges: torch.Tensor
    density: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _List:
    """The indices of a reflection list; equal only to themselves, so that what is made of them can be remembered."""

    hkl: NDArray[np.int32]

    def __hash__(self) -> int:
        return id(self.hkl)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _List) and other.hkl is self.hkl


@lru_cache(maxsize=8)
def _reflections(listed: _List, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (N, 3) float64, and features (10, N) float32: what q and q^2 are sums of, whatever the cell."""
    hkl = torch.from_numpy(listed.hkl).to(device)
    h, k, m = hkl.to(torch.float32).unbind(1)
    features = torch.stack([h, k, m, h * h, k * k, m * m, h * k, h * m, k * m, torch.ones_like(h)])
    return hkl.to(torch.float64), features


def excite(
    lit: Sequence[LitCrystal],
    detector: Detector,
    shape: tuple[int, int],
    device: torch.device,
    memory_bytes: int,
    min_photons: float = 1e-3,
) -> tuple[Streaks, Spectra]:
    """The streaks of every crystal that meet its window of `shape` (ss, fs), and the spectra that they are met with.

    Reflections of fewer than min_photons expected photons are left out. memory_bytes bounds what is alive at once
    besides the result, as long as one reflection list and one streak fit.
    """
    settings, spectra = _settings(lit, detector, shape, device)
    ub = np.stack([each.orientation @ reciprocal_basis(each.sample.crystal.cell) for each in lit])
    bases = torch.from_numpy(ub).to(device)
    items = torch.tensor([each.item for each in lit], device=device)
    own = torch.tensor([each.own for each in lit], device=device)
    members: dict[_List, list[int]] = {}
    for number, each in enumerate(lit):
        members.setdefault(_List(each.sample.crystal.hkl), []).append(number)
    rows = max(1, memory_bytes // (BIN_BYTES * spectra.edges.shape[1]))
    parts = []
    for listed, numbers in members.items():
        hkl, features = _reflections(listed, device)
        group = torch.tensor(numbers, device=device)
        crystals = [lit[number].sample.crystal for number in numbers]
        for reflection, member in _candidates(features, settings.at(group), bases[group], memory_bytes):
            near = _met(hkl, reflection, member, group.index_select(0, member), settings, bases, shape)
            for start in range(0, len(near), rows):
                some = near.at(torch.arange(start, min(start + rows, len(near)), device=device))
                intensity = _intensity(crystals, some.reflection, some.member)
                parts.append(_streaks(some, intensity, settings, spectra, items, own, shape, min_photons))
    return (Streaks.joined(parts) if parts else _no_streaks(device)), spectra


def _no_streaks(device: torch.device) -> Streaks:
    kinds = dict.fromkeys(("item", "crystal", "pieces", "nodes", "box_px", "box_ss", "box_fs"), torch.int64)
    kinds |= dict.fromkeys(("own", "along_radius"), torch.bool)
    return Streaks(
        *(torch.empty(0, dtype=kinds.get(each.name, torch.float64), device=device) for each in fields(Streaks))
    )


def _settings(
    lit: Sequence[LitCrystal], detector: Detector, shape: tuple[int, int], device: torch.device
) -> tuple[_Settings, Spectra]:
    bins = max(len(each.condition.beam.spectrum.shares) for each in lit)
    rows, edges, density = [], np.empty((len(lit), bins + 1)), np.zeros((len(lit), bins))
    for i, each in enumerate(lit):
        sample, condition, beam = each.sample, each.condition, each.condition.beam
        own_edges = condition.wavelength_angstrom * np.asarray(beam.spectrum.edges)
        own_bins = len(own_edges) - 1
        edges[i, : own_bins + 1], edges[i, own_bins + 1 :] = own_edges, own_edges[-1]
        density[i, :own_bins] = np.asarray(beam.spectrum.shares) / np.diff(own_edges)
        center_x, center_y = beam_center_px(condition, detector)
        distance_px = condition.camera_length_m / detector.pixel_size_m
        size_sigma = SIZE_SIGMA_TIMES_LENGTH / (sample.size_m * 1e10)
        blur_px = math.hypot(detector.point_spread_px, lit_sigma_m(beam, sample.size_m) / detector.pixel_size_m)
        strength = (
            condition.flux_photons
            * lit_path_m(beam, sample.size_m, sample.offset_m)
            * (CLASSICAL_ELECTRON_RADIUS_M / (sample.crystal.volume_angstrom3 * 1e-30)) ** 2
            * 1e-30  # the spectrum's integral is in cubic angstrom
        )
        rows.append((
            own_edges[0], own_edges[-1], sample.mosaic_sigma_rad, beam.divergence_rad, size_sigma, sample.strain,
            *_limits(each, detector, shape, own_edges[0], own_edges[-1], size_sigma, blur_px), strength,
            *beam.polarisation_terms, distance_px, center_x - 0.5 - each.fs0, center_y - 0.5 - each.ss0, blur_px,
        ))  # fmt: skip
    table = torch.from_numpy(np.array(rows, dtype=np.float64).T.copy()).to(device)
    return (
        _Settings(*table.unbind(0)),
        Spectra(torch.from_numpy(edges).to(device), torch.from_numpy(density).to(device)),
    )


def _limits(
    lit: LitCrystal,
    detector: Detector,
    shape: tuple[int, int],
    shortest_angstrom: float,
    longest_angstrom: float,
    size_sigma: float,
    blur_px: float,
) -> tuple[float, float, float, float, float]:
    """q_min, q_max, toward_fs, toward_ss and toward_cosine of `_Settings`, drawn wide."""
    center_x, center_y = beam_center_px(lit.condition, detector)
    distance_px = lit.condition.camera_length_m / detector.pixel_size_m
    x_low, y_low = lit.fs0 - center_x, lit.ss0 - center_y
    x_high, y_high = x_low + shape[1], y_low + shape[0]

    # Light leaves a reflection up to 2 reach sigma off the angle that Bragg's condition gives, and is blurred about it.
    flat = math.hypot(lit.sample.mosaic_sigma_rad, lit.condition.beam.divergence_rad)
    spread = 4.0 * REACH_SIGMA * (flat + lit.sample.strain) + 2.0 * _MARGIN_SIGMA * blur_px / distance_px
    nearest = math.hypot(max(x_low, -x_high, 0.0), max(y_low, -y_high, 0.0))
    farthest = math.hypot(max(-x_low, x_high), max(-y_low, y_high))
    inner = max(math.atan(nearest / distance_px) - spread, 0.0)
    outer = min(math.atan(farthest / distance_px) + spread, math.pi / 2.0)
    by_size = 4.0 * REACH_SIGMA * size_sigma
    q_min = 2.0 * math.sin(inner / 2.0) / longest_angstrom / 1.01 - by_size
    q_max = 2.0 * math.sin(outer / 2.0) / shortest_angstrom * 1.01 + by_size
    q_max = min(q_max, largest_q_inv_angstrom(lit.sample, lit.condition, detector))

    # Streaks run along a radius; how wide they are at the far end.
    sine = longest_angstrom * q_max / 2.0
    wide_rad = (
        2.0 * sine * lit.sample.mosaic_sigma_rad + lit.condition.beam.divergence_rad + size_sigma * longest_angstrom
    )
    margin = _MARGIN_SIGMA * (blur_px + wide_rad * distance_px / math.cos(outer * 0.95) ** 2) + 1.0
    x_low, x_high, y_low, y_high = x_low - margin, x_high + margin, y_low - margin, y_high + margin
    if x_low <= 0.0 <= x_high and y_low <= 0.0 <= y_high:
        return q_min, q_max, 0.0, 0.0, -1.0
    middle = math.atan2(y_low + y_high, x_low + x_high)
    widest = max(
        abs(math.remainder(math.atan2(y, x) - middle, 2.0 * math.pi)) for x in (x_low, x_high) for y in (y_low, y_high)
    )
    return q_min, q_max, math.cos(middle), math.sin(middle), math.cos(widest) - 1e-9


def _candidates(
    features: torch.Tensor, settings: _Settings, bases: torch.Tensor, memory_bytes: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Reflections that could be met, as (reflection, member of the group) int64, a bounded number at a time."""
    x, y, z = bases.unbind(1)
    square = [
        x[:, i] * x[:, j] + y[:, i] * y[:, j] + z[:, i] * z[:, j]
        for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    ]
    q2 = torch.stack([part if i < 3 else 2.0 * part for i, part in enumerate(square)], dim=1)
    # Of the Gaussian of angles, times q; the size's part e d q = e twice, as cos(theta) is above 1/2. A q is at most
    # (q^2/a + a)/2, whatever a.
    per_q = REACH_SIGMA * (torch.hypot(settings.mosaic_rad, settings.divergence_rad) + settings.strain)[:, None]
    middle = 0.7 * settings.q_max[:, None]
    constant = per_q * middle / 2.0 + (REACH_SIGMA * 2.0 * settings.size_sigma + _FLOAT32_SLACK)[:, None]
    spread2 = per_q / middle / 2.0
    shortest, longest = settings.shortest_angstrom[:, None] / 2.0, settings.longest_angstrom[:, None] / 2.0
    planes = torch.stack(
        [
            torch.cat([-z, (spread2 - shortest) * q2, constant], dim=1),
            torch.cat([z, (spread2 + longest) * q2, constant], dim=1),
        ]
    ).to(torch.float32)
    block_bytes = memory_bytes if features.is_cuda else min(memory_bytes, _CACHED_BYTES)
    columns = max(1, block_bytes // (16 * len(z)))
    rows = max(1, memory_bytes // _CANDIDATE_BYTES)
    found, waiting = [], 0
    for start in range(0, features.shape[1], columns):
        margin = torch.matmul(planes, features[:, start : start + columns])
        near = (torch.minimum(margin[0], margin[1]) >= 0.0).nonzero()
        near[:, 1] += start
        found.append(near)
        waiting += len(near)
        if waiting >= rows or start + columns >= features.shape[1]:
            for some in torch.split(torch.cat(found), rows):
                yield some[:, 1].contiguous(), some[:, 0].contiguous()
            found, waiting = [], 0


@dataclass(frozen=True, slots=True, eq=False)
class _Met(_Columns):
    """Reflections that may light their window: reflection (n,) int64 in its list, member of the group and crystal (n,)
    int64, the rest (n,) float64 as in `Streaks`."""

    reflection: torch.Tensor
    member: torch.Tensor
    crystal: torch.Tensor
    theta_mean: torch.Tensor
    theta_sigma: torch.Tensor
    d: torch.Tensor
    direction_fs: torch.Tensor
    direction_ss: torch.Tensor

    def __len__(self) -> int:
        return len(self.reflection)


def _met(
    hkl: torch.Tensor,
    reflection: torch.Tensor,
    member: torch.Tensor,
    crystal: torch.Tensor,
    settings: _Settings,
    bases: torch.Tensor,
    shape: tuple[int, int],
) -> _Met:
    """Candidates within reach of the band whose streak may meet the window."""
    qx, qy, qz = (bases.index_select(0, crystal) * hkl.index_select(0, reflection)[:, None, :]).sum(dim=2).unbind(1)
    q = (qx * qx + qy * qy + qz * qz).sqrt()
    in_plane = torch.hypot(qx, qy)
    q_min, q_max, toward_fs, toward_ss, cosine = (
        each.index_select(0, crystal)
        for each in (
            settings.q_min, settings.q_max, settings.toward_fs, settings.toward_ss, settings.toward_cosine
        )
    )  # fmt: skip
    keep = (q >= q_min) & (q <= q_max) & (qx * toward_fs + qy * toward_ss >= cosine * in_plane) & (in_plane > 0.0)
    row = keep.nonzero().squeeze(1)
    qx, qy, qz, q, in_plane = torch.stack([qx, qy, qz, q, in_plane]).index_select(1, row).unbind(0)
    reflection, member, crystal = (each.index_select(0, row) for each in (reflection, member, crystal))

    own = settings.at(crystal)
    sine = (-qz / q).clamp(-1.0, 1.0)
    cosine2 = (1.0 - sine * sine).clamp(min=1e-6)
    flat2 = own.mosaic_rad.square() + own.divergence_rad.square()
    sigma = (flat2 + ((own.size_sigma / q).square() + own.strain.square() * sine * sine) / cosine2).sqrt()
    theta = torch.asin(sine)
    reach = REACH_SIGMA * sigma
    lowest, highest = (
        torch.asin((edge * q / 2.0).clamp(max=1.0)) for edge in (own.shortest_angstrom, own.longest_angstrom)
    )
    keep = (own.longest_angstrom * q < 2.0) & (theta >= lowest - reach) & (theta <= highest + reach)

    # The streak runs along a radius from the smallest to the largest angle that is left; widths are at their largest.
    low, high = torch.maximum(lowest, theta - reach), torch.minimum(highest, theta + reach)
    turn2 = own.mosaic_rad.square() + (own.size_sigma / q).square()
    slope = (2.0 * turn2 + own.divergence_rad.square()) / sigma.square()
    ends = (exit_radius(theta, slope, end, own.distance_px) for end in (low, high))
    ux, uy = qx / in_plane, qy / in_plane
    stretch = own.distance_px / torch.cos((2.0 * high).clamp(0.0, LARGEST_TANGENT_RAD)).square()
    across2 = 4.0 * turn2 + own.divergence_rad.square() + (own.size_sigma * own.longest_angstrom).square()
    margin = _MARGIN_SIGMA * (own.blur_px + across2.sqrt() * stretch) + 1.0
    near, far = ends
    for beam, direction, size in ((own.beam_fs, ux, shape[1]), (own.beam_ss, uy, shape[0])):
        first, last = beam + near * direction, beam + far * direction
        keep &= (torch.maximum(first, last) + margin >= -0.5) & (torch.minimum(first, last) - margin <= size - 0.5)
    row = keep.nonzero().squeeze(1)
    return _Met(reflection, member, crystal, theta, sigma, 1.0 / q, ux, uy).at(row)


def exit_radius(
    theta_mean: torch.Tensor, slope: torch.Tensor, theta: torch.Tensor, distance_px: torch.Tensor
) -> torch.Tensor:
    """How far from the beam light of the angle theta falls, in pixels."""
    exit_angle = 2.0 * theta_mean + slope * (theta - theta_mean)
    return distance_px * torch.tan(exit_angle.clamp(0.0, LARGEST_TANGENT_RAD))


def _intensity(crystals: list[Crystal], place: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """|F|^2 of reflections (n,) of the group's crystals, which share a list but not always the intensities."""
    numbers: dict[int, list[int]] = {}
    for number, crystal in enumerate(crystals):
        numbers.setdefault(id(crystal.intensity), []).append(number)
    values = torch.zeros(len(place), dtype=torch.float64, device=place.device)
    for mine in numbers.values():
        table = torch.from_numpy(crystals[mine[0]].intensity).to(place.device)
        who = torch.zeros(len(crystals), dtype=torch.bool)
        who[mine] = True
        values = torch.where(who.to(place.device)[member], table.index_select(0, place), values)
    return values


def _streaks(
    met: _Met,
    intensity: torch.Tensor,
    settings: _Settings,
    spectra: Spectra,
    items: torch.Tensor,
    is_own: torch.Tensor,
    shape: tuple[int, int],
    min_photons: float,
) -> Streaks:
    own = settings.at(met.crystal)
    mean, sigma, d = met.theta_mean, met.theta_sigma, met.d
    density = spectra.density.index_select(0, met.crystal)
    edges = band_angles(spectra, met.crystal, d)
    lowest, highest = edges[:, 0], edges[:, -1]
    reflected, theta = _meet(edges, mean, sigma, density)

    size_angle2 = (own.size_sigma * d).square()
    turn2 = own.mosaic_rad.square() + size_angle2
    divergence2 = own.divergence_rad.square()
    slope = (2.0 * turn2 + divergence2) / sigma.square()
    exit_angle = 2.0 * mean + slope * (theta - mean)
    ux, uy = met.direction_fs, met.direction_ss
    dipole = own.polarisation_xx * ux * ux + 2.0 * own.polarisation_xy * ux * uy + own.polarisation_yy * uy * uy
    wavelength = 2.0 * d * torch.sin(theta)
    photons = own.strength * (1.0 - torch.sin(exit_angle).square() * dipole) * intensity * 8.0 * d**4 * reflected
    keep = (photons >= min_photons) & (photons > 0.0) & (exit_angle < LARGEST_TWO_THETA_RAD) & (exit_angle > 0.0)

    # What the angle leaves open, as a round Gaussian and what one direction has more of than the other.
    low = torch.maximum(lowest, mean - REACH_SIGMA * sigma)
    high = torch.minimum(highest, mean + REACH_SIGMA * sigma).clamp(max=LARGEST_THETA_RAD)
    cosine = torch.cos((2.0 * mean).clamp(0.0, LARGEST_TANGENT_RAD))
    stretch = own.distance_px / cosine.square()
    left_open = (4.0 * turn2 + divergence2 - slope.square() * sigma.square()).clamp(min=0.0)
    cross2 = (2.0 * torch.sin(theta) * own.mosaic_rad).square() + (own.size_sigma * wavelength).square() + divergence2
    radial, across = left_open * stretch.square(), cross2 * (own.distance_px / cosine).square()
    round2 = own.blur_px.square() + torch.minimum(radial, across)
    scale_px = slope * stretch
    length_px = (high - low).clamp(min=0.0) * scale_px
    streak2 = torch.minimum(length_px.square() / 12.0, (sigma * scale_px).square())
    excess = (across - radial).abs()
    unseen = excess < 0.1 * (round2 + streak2)
    kernel = (round2 + torch.where(unseen, excess, 0.0)).sqrt()
    wide = torch.where(unseen, 0.0, excess).sqrt()

    # Of the angles keep those that are dense enough to show.
    reach = ((torch.maximum(lowest - mean, mean - highest) / sigma).clamp(min=0.0).square() + 2.0 * _DROP_NATS).sqrt()
    low, high = torch.maximum(low, mean - reach * sigma), torch.minimum(high, mean + reach * sigma)
    sharp = torch.minimum(torch.maximum(mean, lowest), highest)
    is_sharp = ~(low < high)
    low, high = torch.where(is_sharp, sharp, low), torch.where(is_sharp, sharp, high)

    spacing = (1.5 * kernel).clamp(min=0.5) * torch.where(photons < WEAK_SPOT_PHOTONS, 2.0, 1.0)
    length_px = (high - low) * scale_px
    pieces = torch.where(length_px > _LEAST_STREAK_PX, (length_px / spacing).clamp(min=4.0), 1.0)
    nodes = torch.where(wide > 0.0, 2.0 * torch.ceil(NODE_REACH_SIGMA * wide / spacing) + 1.0, 1.0)

    across_reach = NODE_REACH_SIGMA * wide
    margin = KERNEL_REACH_SIGMA * kernel + 0.5
    ends = [exit_radius(mean, slope, end, own.distance_px) for end in (low, high)]
    along_radius = radial > across
    lows, highs = [], []
    for beam, direction, other in ((own.beam_ss, uy, ux), (own.beam_fs, ux, uy)):
        one, two = (beam + end * direction for end in ends)
        more = margin + across_reach * torch.where(along_radius, direction, other).abs()
        lows.append(torch.minimum(one, two) - more)
        highs.append(torch.maximum(one, two) + more)
    inside, box, (box_ss, box_fs) = fit_boxes(lows, highs, shape)
    keep &= inside
    return Streaks(
        items.index_select(0, met.crystal), met.crystal, is_own.index_select(0, met.crystal), photons, mean, sigma, d,
        slope, ux, uy, low, high, kernel, wide, along_radius, own.distance_px, own.beam_fs, own.beam_ss,
        _rounded_up(pieces, _PIECES), _rounded_up(nodes, _NODES), box, box_ss, box_fs,
    ).at(keep.nonzero().squeeze(1))  # fmt: skip


def fit_boxes(
    lows: Sequence[torch.Tensor], highs: Sequence[torch.Tensor], shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Square boxes over the part of a window of `shape` that lies between two places, given for (ss, fs), (n,) each.

    Whether there is such a part (n,) bool; the boxes' sides (n,) int64, few different ones; their first pixels (ss,
    fs), (n,) int64 each. Boxes stay inside the window, so that no pixel needs a check; one larger than the window
    begins and is to end where it does.
    """
    firsts = [torch.floor(low).clamp(0.0, float(size)) for low, size in zip(lows, shape, strict=True)]
    lasts = [torch.ceil(high + 1.0).clamp(0.0, float(size)) for high, size in zip(highs, shape, strict=True)]
    height, width = (last - first for first, last in zip(firsts, lasts, strict=True))
    box = _rounded_up(torch.maximum(height, width), _BOX_PX)
    begin = [
        torch.minimum(first.to(torch.int64), (size - box).clamp(min=0))
        for first, size in zip(firsts, shape, strict=True)
    ]
    return (height > 0.0) & (width > 0.0), box, begin


def _rounded_up(values: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """The smallest of the sizes that is no smaller, or the largest there is."""
    table = torch.tensor(sizes, device=values.device)
    place = torch.searchsorted(table.to(values.dtype), values.contiguous()).clamp(max=len(sizes) - 1)
    return table.index_select(0, place)


def band_angles(spectra: Spectra, crystal: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Angles (n, bins + 1) that reflect the spectrum's edges."""
    return torch.asin((spectra.edges.index_select(0, crystal) / (2.0 * d[:, None])).clamp(max=1.0))


def bell(x: torch.Tensor) -> torch.Tensor:
    """The normal distribution's density."""
    return torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _meet(
    edges: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor, density: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `diffraction._meet`: integral of the spectrum's density times sin^2 under each Gaussian of angles, and the
    mean angle of the light."""
    x = (edges - mean[:, None]) / sigma[:, None]
    low, high = x[:, :-1], x[:, 1:]
    above = low > 0.0  # of the two tails take the one that does not cancel
    share = torch.special.ndtr(torch.where(above, -low, high)) - torch.special.ndtr(torch.where(above, -high, low))
    at_edges = bell(x)
    places = mean[:, None] + sigma[:, None] * torch.nan_to_num(
        (at_edges[:, :-1] - at_edges[:, 1:]) / share, nan=0.0, posinf=0.0, neginf=0.0
    )
    places = torch.minimum(torch.maximum(places, edges[:, :-1]), edges[:, 1:])
    weight = share * density * torch.sin(places).square()
    reflected = weight.sum(dim=1)
    theta = torch.nan_to_num((weight * places).sum(dim=1) / reflected, nan=0.0, posinf=0.0, neginf=0.0)
    return reflected, torch.minimum(torch.maximum(theta, edges[:, 0]), edges[:, -1])
