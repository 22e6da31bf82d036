"""Many small windows of simulated frames at once, in torch on any device: the fast way to training images.

Each window (crop) shows part of a frame of its own: other conditions, crystals, surroundings. What is expected in it
is what `sim_replay.shots` expects in those pixels of the whole frame: Bragg streaks by `sim_replay.batch_diffraction`,
diffuse light from w(q) of `sim_replay.scatter` over a table along the radius, as `sim_replay.background` does. Then
photons are drawn and counted. Left out are faulty pixels, charge sharing and retriggering.

Images are float32; angles and places float64. On one device the same generator state gives the same counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from sim_replay.background import PENUMBRA_PX, REFERENCE_PHOTONS, Surroundings
from sim_replay.batch_diffraction import LitCrystal, Streaks, excite
from sim_replay.batch_footprint import Patch, lay, lay_round
from sim_replay.detector import Condition, Detector, beam_center_px
from sim_replay.diffraction import Sample
from sim_replay.response import Response
from sim_replay.scatter import (
    Q_INV_ANGSTROM,
    Q_STEP_INV_ANGSTROM,
    air_per_sr,
    glass_per_sr,
    helium_per_sr,
    polyimide_per_sr,
    water_per_sr,
)
from sim_replay.truth import LEAST_BACKGROUND_COUNTS, MERGE_RADIUS_PX, TRUE_SPOT_MIN_PHOTONS

MEMORY_BYTES = 1 << 28
"""Bound on what is alive at once besides the result and the reflection lists, by default."""

_PIXEL_BYTES = 4 * 16  # images of float32 alive at once
_CACHED_PIXELS = 1 << 19  # on a CPU images are worked on in blocks of 2 MB, which stay in its caches
_LIT_PIXEL_BYTES = 8 * 14
_RADIUS_STEP_PX = 0.25  # of the table over the distance from the beam
_UNIT_M = 0.01  # every material may be this thick; w is linear in it


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One window and what the frame it is cut from shows.

    ss0, fs0: the window's first pixel. crystals and salts: sample and orientation (3, 3) of each lit crystal, none in
    a frame without; salts count as background, as do grains (n, 4) float64: fs and ss in the frame, expected photons
    and standard deviation in pixels of round spots. extra_per_sr (2001,) float64: more diffuse light w(q) on the grid
    of `scatter.Q_INV_ANGSTROM`. The condition's flux is that of one of the response's pulses; grains are of the frame.
    """

    condition: Condition
    surroundings: Surroundings
    ss0: int
    fs0: int
    crystals: tuple[tuple[Sample, NDArray[np.float64]], ...] = ()
    salts: tuple[tuple[Sample, NDArray[np.float64]], ...] = ()
    grains: NDArray[np.float64] | None = None
    extra_per_sr: NDArray[np.float64] | None = None
    response: Response = field(default_factory=Response)


@dataclass(frozen=True, slots=True, eq=False)
class CropSpots:
    """True spots of n in all windows, by window and falling photons: item (n,) int64, the rest (n,) float64.

    fs, ss: centroid of the counts expected on the window's live pixels, as pixel indices of the window; photons and
    counts expected there. Reflections within 2 pixels are one spot; those below 0.5 photons are left out.
    """

    item: torch.Tensor
    fs: torch.Tensor
    ss: torch.Tensor
    photons: torch.Tensor
    counts: torch.Tensor

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True, slots=True, eq=False)
class CropBatch:
    """B windows on one device.

    counts (B, H, W) float32, whole numbers, 0 where not valid; bragg and background (B, H, W) float32, photons a frame
    expected from the crystals and from all else, 0 where not valid; valid (B, H, W) bool, False in gaps; hit (B,) bool,
    whether a crystal of the sample is lit, wherever its spots fall; log_likelihood_ratio (B,) float64, of the window's
    counts, as in `truth.Expected`; spots as in `CropSpots`.
    """

    counts: torch.Tensor
    bragg: torch.Tensor
    background: torch.Tensor
    valid: torch.Tensor
    hit: torch.Tensor
    log_likelihood_ratio: torch.Tensor
    spots: CropSpots


def make_crops(
    crops: Sequence[Crop],
    detector: Detector,
    shape: tuple[int, int] = (256, 256),
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> CropBatch:
    """Simulate windows of `shape` (ss, fs) on one detector.

    generator lives on the device; None takes torch's own. memory_bytes bounds what is alive at once besides the result,
    the reflection lists and one window's own needs (64 bytes a pixel); counts may change with it, as random numbers are
    drawn block by block. On a CPU one thread a process is the most economical. Raises ValueError, naming the crop, for
    windows off the panel, orientations, grains or tables of the wrong shape, a beam stop behind the detector, and
    responses other than integrating or one_per_pulse without charge sharing.
    """
    device = torch.device(device)
    _check(crops, detector, shape)
    # A training loop may have turned products down to 10 bits, which is not enough to find reflections with.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            return _made(crops, detector, shape, device, generator, memory_bytes)
    finally:
        torch.set_float32_matmul_precision(precision)


def _made(
    crops: Sequence[Crop],
    detector: Detector,
    shape: tuple[int, int],
    device: torch.device,
    generator: torch.Generator | None,
    memory_bytes: int,
) -> CropBatch:
    frames = [
        replace(crop.condition, flux_photons=crop.condition.flux_photons * crop.response.pulses) for crop in crops
    ]
    counts, background = (torch.empty((len(crops), *shape), dtype=torch.float32, device=device) for _ in range(2))
    bragg = torch.zeros_like(background)
    valid = torch.empty(background.shape, dtype=torch.bool, device=device)
    stops = any(crop.surroundings.beam_stop_radius_m > 0.0 for crop in crops)
    live = torch.empty_like(background) if stops else valid
    most = memory_bytes // _PIXEL_BYTES if device.type != "cpu" else min(memory_bytes // _PIXEL_BYTES, _CACHED_PIXELS)
    step = max(1, most // (shape[0] * shape[1]))
    blocks = [slice(first, first + step) for first in range(0, len(crops), step)]
    for block in blocks:
        _fill_valid(crops[block], detector, valid[block])
        _fill_diffuse(crops[block], frames[block], detector, valid[block], live[block], background[block])
    spots = _add_spots(crops, frames, detector, bragg, background, live, memory_bytes)
    for block in blocks:
        _count(bragg[block] + background[block], crops[block], detector.largest_count, generator, counts[block])
    return CropBatch(
        counts=counts,
        bragg=bragg,
        background=background,
        valid=valid,
        hit=torch.tensor([bool(crop.crystals) and crop.condition.flux_photons > 0.0 for crop in crops], device=device),
        log_likelihood_ratio=torch.cat(
            [_log_likelihood_ratio(bragg[block], background[block], crops[block], memory_bytes) for block in blocks]
        ),
        spots=spots,
    )


def _check(crops: Sequence[Crop], detector: Detector, shape: tuple[int, int]) -> None:
    if not crops:
        raise ValueError("no crops to make; give at least one")
    for number, crop in enumerate(crops):
        for name, first, size, panel in zip(("ss0", "fs0"), (crop.ss0, crop.fs0), shape, detector.shape, strict=True):
            if first < 0 or size < 1 or first + size > panel:
                raise ValueError(
                    f"crop {number}: {name} {first} and {size} pixels from there leave the panel of {panel}; "
                    "give a window inside"
                )
        for _, orientation in (*crop.crystals, *crop.salts):
            if orientation.shape != (3, 3):
                raise ValueError(f"crop {number}: an orientation is a (3, 3) matrix, not {orientation.shape}")
        if crop.response.kind == "retrigger" or (crop.response.kind != "integrating" and crop.response.charge_sigma_m):
            raise ValueError(
                f"crop {number}: response '{crop.response.kind}' with a charge cloud of "
                f"{crop.response.charge_sigma_m:g} m cannot be made in a batch; give integrating or one_per_pulse "
                "without charge sharing, or use simulate_shot"
            )
        extra = crop.extra_per_sr
        if extra is not None and (
            extra.shape != Q_INV_ANGSTROM.shape or not np.all(np.isfinite(extra) & (extra >= 0.0))
        ):
            raise ValueError(f"crop {number}: extra_per_sr must be {len(Q_INV_ANGSTROM)} finite numbers of 0 or more")
        grains = crop.grains
        if grains is not None and (
            grains.ndim != 2
            or grains.shape[1] != 4
            or not np.all(np.isfinite(grains))
            or not np.all(grains[:, 3] > 0.0)
        ):
            raise ValueError(
                f"crop {number}: grains must be rows of four finite numbers (fs, ss, photons, sigma above 0 in pixels)"
            )
        stop, length = crop.surroundings, crop.condition.camera_length_m
        if stop.beam_stop_radius_m > 0.0 and stop.beam_stop_distance_m > length:
            raise ValueError(
                f"crop {number}: beam_stop_distance_m is {stop.beam_stop_distance_m}, behind the detector at "
                f"{length:g} m; put the stop in front"
            )


def _fill_valid(crops: Sequence[Crop], detector: Detector, out: torch.Tensor) -> None:
    rows, columns = (
        torch.tensor(first, device=out.device)[:, None] + torch.arange(size, device=out.device)
        for first, size in zip(([crop.ss0 for crop in crops], [crop.fs0 for crop in crops]), out.shape[1:], strict=True)
    )
    if detector.bad:
        good = torch.from_numpy(~detector.mask).to(out.device)
        out.copy_(good[rows[:, :, None], columns[:, None, :]])
        return
    sensor = []
    for gaps, size in zip((detector.gaps_ss, detector.gaps_fs), detector.shape, strict=True):
        line = np.ones(size, dtype=np.bool_)
        for low, high in gaps:
            line[low:high] = False
        sensor.append(torch.from_numpy(line).to(out.device))
    torch.logical_and(sensor[0][rows][:, :, None], sensor[1][columns][:, None, :], out=out)


@lru_cache(maxsize=64)
def _water_unit(temperature_K: float) -> NDArray[np.float64]:
    return water_per_sr(_UNIT_M, temperature_K) / _UNIT_M


@lru_cache(maxsize=1)
def _material_units() -> NDArray[np.float64]:
    materials = (air_per_sr, helium_per_sr, glass_per_sr, polyimide_per_sr)
    return np.stack([material(_UNIT_M) / _UNIT_M for material in materials])


def _per_sr(crops: Sequence[Crop], device: torch.device) -> torch.Tensor:
    """w(q) of each crop, (B, 2001) float64."""
    temperatures = list(dict.fromkeys(crop.surroundings.water_temperature_K for crop in crops))
    units = np.concatenate([_material_units(), np.stack([_water_unit(each) for each in temperatures])])
    lengths = np.zeros((len(crops), len(units)))
    for i, crop in enumerate(crops):
        s = crop.surroundings
        lengths[i, :4] = s.air_path_m, s.helium_path_m, s.capillary_wall_m, s.film_thickness_m
        lengths[i, 4 + temperatures.index(s.water_temperature_K)] = s.water_thickness_m
    per_sr = lengths @ units
    for i, crop in enumerate(crops):
        if crop.extra_per_sr is not None:
            per_sr[i] += crop.extra_per_sr
    return torch.from_numpy(per_sr).to(device)


def _fill_diffuse(
    crops: Sequence[Crop],
    frames: Sequence[Condition],
    detector: Detector,
    valid: torch.Tensor,
    live: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Expected diffuse photons into out, and what gaps and beam stops let through into live unless that is valid."""
    device, shape = valid.device, valid.shape[1:]
    rows = []
    for crop, frame in zip(crops, frames, strict=True):
        center_x, center_y = beam_center_px(frame, detector)
        stop, distance_px = crop.surroundings, frame.camera_length_m / detector.pixel_size_m
        per_px = distance_px / stop.beam_stop_distance_m
        angle = math.radians(stop.beam_stop_arm_deg)
        rows.append((
            center_x - 0.5 - crop.fs0, center_y - 0.5 - crop.ss0, distance_px, frame.wavelength_angstrom,
            frame.flux_photons, stop.flat_photons_per_pixel * frame.flux_photons / REFERENCE_PHOTONS,
            *frame.beam.polarisation_terms,
            stop.beam_stop_radius_m * per_px if stop.beam_stop_radius_m > 0.0 else -math.inf,
            stop.beam_stop_arm_width_m * per_px / 2.0 if stop.beam_stop_arm_width_m > 0.0 else -math.inf,
            math.cos(angle), math.sin(angle),
        ))  # fmt: skip
    host = np.array(rows).T
    beam_fs, beam_ss, distance, wavelength, flux, flat, xx, xy, yy, radius, half_arm, arm_x, arm_y = torch.from_numpy(
        np.ascontiguousarray(host)
    ).to(device)[:, :, None]
    x = torch.arange(shape[1], dtype=torch.float64, device=device) - beam_fs
    y = torch.arange(shape[0], dtype=torch.float64, device=device) - beam_ss

    # Distances of a window's pixels from the beam lie between the nearest one and that plus the diagonal.
    near = torch.hypot(
        *((axis.abs().amin(1, True) * ((axis > 0).all(1, True) | (axis < 0).all(1, True))) for axis in (x, y))
    )
    steps = int(math.hypot(*shape) / _RADIUS_STEP_PX) + 3
    r = near + torch.arange(steps, dtype=torch.float64, device=device) * _RADIUS_STEP_PX
    r2 = r.square() + distance.square()
    cosine = distance / r2.sqrt()
    # sin^2(theta) = (1 - cos 2theta)/2, written so that it keeps its digits near the beam
    q = 4.0 * math.pi * (r.square() / r2 / (1.0 + cosine) / 2.0).sqrt() / wavelength
    per_sr = _per_sr(crops, device)
    place = (q / Q_STEP_INV_ANGSTROM).clamp(max=per_sr.shape[1] - 1.0)
    low = place.to(torch.int64).clamp(max=per_sr.shape[1] - 2)
    w = torch.lerp(per_sr.gather(1, low), per_sr.gather(1, low + 1), place - low)
    table = (flux * w * cosine / r2).to(torch.float32).flatten()

    def image(values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.float32)[:, :, None]

    fx, fy = x.to(torch.float32)[:, None, :], y.to(torch.float32)[:, :, None]
    radius2 = fx.square() + fy.square()
    from_beam = radius2.sqrt()
    at = (from_beam - image(near)).mul_(1.0 / _RADIUS_STEP_PX).clamp_(0.0, steps - 2.0)
    index = at.to(torch.int32)
    at -= index
    index += (torch.arange(len(crops), dtype=torch.int32, device=device) * steps)[:, None, None]
    index = index.flatten()
    first, second = (table.index_select(0, index + step).view_as(at) for step in (0, 1))
    photons = torch.lerp(first, second, at)
    across = image(xx) * fx.square() + image(yy) * fy.square()
    if np.any(host[7]):
        across = across + 2.0 * image(xy) * fx * fy
    photons *= 1.0 - across / (radius2 + image(distance.square()))
    if live.dtype != torch.bool:
        outside = from_beam - image(radius)
        beside = (fx * image(arm_y) - fy * image(arm_x)).abs() - image(half_arm)
        is_arm = (fx * image(arm_x) + fy * image(arm_y)) > 0.0
        outside = torch.where(is_arm, torch.minimum(outside, beside), outside)
        live.copy_((outside / PENUMBRA_PX + 0.5).clamp(0.0, 1.0).mul_(valid))
    torch.mul(photons, live, out=out)
    if np.any(host[5]):
        out += image(flat) * valid


def _add_spots(
    crops: Sequence[Crop],
    frames: Sequence[Condition],
    detector: Detector,
    bragg: torch.Tensor,
    background: torch.Tensor,
    live: torch.Tensor,
    memory_bytes: int,
) -> CropSpots:
    """Add the crystals' light to bragg, the salts' and grains' to the background; the crystals' true spots."""
    shape = (bragg.shape[1], bragg.shape[2])
    lit = [
        LitCrystal(sample, frame, orientation, item, crop.ss0, crop.fs0, own)
        for item, (crop, frame) in enumerate(zip(crops, frames, strict=True))
        for own, each in ((True, crop.crystals), (False, crop.salts))
        for sample, orientation in each
    ]
    none = torch.empty(0, dtype=torch.float64, device=bragg.device)
    spots = [(none.to(torch.int64), none, none, none, none)]
    once = any(crop.response.kind == "one_per_pulse" for crop in crops)

    def on_live(patches: Iterator[Patch]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for patch in patches:
            pixel = patch.pixel.flatten()
            yield patch.row, pixel, patch.photons * live.view(-1).index_select(0, pixel).view_as(patch.photons)

    grains = [
        np.column_stack([np.full(len(each.grains), item), each.grains - (each.fs0, each.ss0, 0.0, 0.0)])
        for item, each in enumerate(crops)
        if each.grains is not None
    ]
    if grains:
        item, fs, ss, expected, sigma_px = torch.from_numpy(np.concatenate(grains)).to(bragg.device).unbind(1)
        rounds = lay_round(item.to(torch.int64), fs, ss, expected, sigma_px, shape, memory_bytes)
        for _, pixel, photons in on_live(rounds):
            _add_at(background.view(-1), pixel, photons.flatten())
    if not lit:
        return CropSpots(*spots[0])
    streaks, spectra = excite(lit, detector, shape, bragg.device, memory_bytes)
    # Salts first: what a spot's photons count depends on all that is beside them.
    for own, image in ((False, background), (True, bragg)):
        mine = streaks.at((streaks.own == own).nonzero().squeeze(1))
        for row, pixel, photons in on_live(lay(mine, spectra, shape, memory_bytes)):
            _add_at(image.view(-1), pixel, photons.flatten())
            if own and not once:
                spots.append(_summed(mine, row, photons, photons))
    if once:  # laid again: kept, they would fill the memory
        settings = _pulses(crops, bragg.device)
        for row, pixel, photons in on_live(lay(mine, spectra, shape, memory_bytes)):
            of_pixels = (image.view(-1).index_select(0, pixel).view_as(photons) for image in (bragg, background))
            of_items = (each[mine.item[row]][:, None, None] for each in settings)
            spots.append(_summed(mine, row, photons, photons * _counted_share(*of_pixels, *of_items)))
    return _joined(CropSpots(*(torch.cat(column) for column in zip(*spots, strict=True))), shape[0])


def _summed(
    streaks: Streaks, row: torch.Tensor, photons: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Item, fs, ss, photons and counts of the streaks of a patch on live pixels, the places times counts."""
    by_ss, by_fs = counts.sum(2, dtype=torch.float64), counts.sum(1, dtype=torch.float64)
    ss, fs = ((sums * torch.arange(sums.shape[1], device=sums.device)).sum(1) for sums in (by_ss, by_fs))
    total = by_ss.sum(1)
    return (
        streaks.item.index_select(0, row),
        fs + total * streaks.box_fs.index_select(0, row),
        ss + total * streaks.box_ss.index_select(0, row),
        photons.sum((1, 2), dtype=torch.float64),
        total,
    )


def _add_at(values: torch.Tensor, index: torch.Tensor, more: torch.Tensor) -> None:
    """Add in place at an index that may repeat, in an order that does not change from run to run."""
    if values.is_cuda:
        values.index_put_((index,), more, accumulate=True)  # sorts; index_add_ would add as threads come
    else:
        values.index_add_(0, index, more)


def _pulses(crops: Sequence[Crop], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pulses (B,) float32, and which crops count at most once a pulse (B,) bool."""
    pulses = torch.tensor([float(crop.response.pulses) for crop in crops], device=device)
    return pulses, torch.tensor([crop.response.kind == "one_per_pulse" for crop in crops], device=device)


def _counted_share(
    bragg: torch.Tensor, background: torch.Tensor, pulses: torch.Tensor, once: torch.Tensor
) -> torch.Tensor:
    """Counts that all spots are expected to add for each of their photons, in pixels."""
    a_pulse = bragg / pulses
    share = torch.where(a_pulse > 0.0, -torch.expm1(-a_pulse) / a_pulse, 1.0) * torch.exp(-background / pulses)
    return torch.where(once, share, 1.0)


def _log_likelihood_ratio(
    bragg: torch.Tensor, background: torch.Tensor, crops: Sequence[Crop], memory_bytes: int
) -> torch.Tensor:
    """See `CropBatch`; only pixels with Bragg light tell anything."""
    ratio = torch.zeros(len(crops), dtype=torch.float64, device=bragg.device)
    settings = _pulses(crops, bragg.device)
    lit = (bragg.reshape(-1) > 0.0).nonzero().squeeze(1)
    for pixel in torch.split(lit, max(1, memory_bytes // _LIT_PIXEL_BYTES)):
        item = torch.div(pixel, bragg[0].numel(), rounding_mode="floor")
        spots, other = (image.view(-1).index_select(0, pixel).to(torch.float64) for image in (bragg, background))
        pulses, once = (each.index_select(0, item) for each in settings)
        least = other.clamp(min=LEAST_BACKGROUND_COUNTS)
        told = (least + spots) * torch.log1p(spots / least) - spots
        # With 1 - exp(-m) of m photons a pulse, ln((1 - p)/(1 - q)) is minus the spots' photons.
        added = -torch.expm1(-spots / pulses) * torch.exp(-other / pulses)
        without = (-torch.expm1(-other / pulses)).clamp(min=LEAST_BACKGROUND_COUNTS)
        p = (without + added).clamp(max=1.0)
        told_once = pulses * p * torch.log1p(added / without) - (1.0 - p) * spots
        _add_at(ratio, item, torch.where(once, told_once, told))
    return ratio


def _count(
    mean: torch.Tensor,
    crops: Sequence[Crop],
    largest_count: int,
    generator: torch.Generator | None,
    out: torch.Tensor,
) -> None:
    """Draw photons and count them."""
    laws: dict[int, list[int]] = {}
    for number, crop in enumerate(crops):
        laws.setdefault(0 if crop.response.kind == "integrating" else crop.response.pulses, []).append(number)
    for pulses, numbers in laws.items():
        mine = torch.tensor(numbers, device=mean.device)
        out.index_copy_(0, mine, _drawn(mean.index_select(0, mine), pulses, largest_count, generator))


def _drawn(mean: torch.Tensor, pulses: int, largest_count: int, generator: torch.Generator | None) -> torch.Tensor:
    """Counts of pixels that count every photon (pulses 0) or at most once in each of `pulses`."""
    if pulses == 0:
        return torch.poisson(mean, generator).clamp_(max=largest_count)
    chance = -torch.expm1(-mean / pulses)
    if pulses == 1:
        uniform = torch.rand(mean.shape, generator=generator, device=mean.device)
        return (uniform < chance).to(torch.float32)
    return torch.binomial(torch.full_like(mean, pulses), chance, generator).clamp_(max=largest_count)


def _joined(reflections: CropSpots, height: int) -> CropSpots:
    """Join reflections closer than the merging radius, as `truth.true_spots` does; fs and ss come times counts."""
    item, fs, ss = reflections.item, reflections.fs, reflections.ss
    photons, counts = reflections.photons, reflections.counts
    # Reflections too weak to lift a spot over the limit are left out of the search for neighbours.
    rows = ((photons > 0.02 * TRUE_SPOT_MIN_PHOTONS) & (counts > 0.0)).nonzero().squeeze(1)
    key = item.index_select(0, rows) * (2.0 * height) + (ss / counts).index_select(0, rows)
    key, order = torch.sort(key, stable=True)
    rows = rows.index_select(0, order)
    item, fs, ss, photons, counts = (each.index_select(0, rows) for each in (item, fs, ss, photons, counts))
    place = torch.arange(len(rows), device=rows.device)
    following = torch.searchsorted(key, key + MERGE_RADIUS_PX, right=True) - place - 1
    one = torch.repeat_interleave(place, following)
    other = (
        one + 1 + torch.arange(len(one), device=rows.device) - (following.cumsum(0) - following).index_select(0, one)
    )
    fs_px, ss_px = fs / counts, ss / counts
    away = torch.hypot(fs_px[one] - fs_px[other], ss_px[one] - ss_px[other])
    pairs = ((away <= MERGE_RADIUS_PX) & (item[one] == item[other])).nonzero().squeeze(1)
    one, other = one.index_select(0, pairs), other.index_select(0, pairs)
    label = place
    while len(one):
        lower = label.scatter_reduce(0, one, label[other], "amin").scatter_reduce(0, other, label[one], "amin")
        lower = lower[lower]
        if torch.equal(lower, label):
            break
        label = lower
    sums = torch.zeros(4, len(rows), dtype=torch.float64, device=rows.device)
    for total, values in zip(sums, (fs, ss, photons, counts), strict=True):
        _add_at(total, label, values)
    heads = ((label == place) & (sums[2] >= TRUE_SPOT_MIN_PHOTONS)).nonzero().squeeze(1)
    heads = heads.index_select(0, torch.argsort(-sums[2].index_select(0, heads), stable=True))
    heads = heads.index_select(0, torch.argsort(item.index_select(0, heads), stable=True))
    fs, ss, photons, counts = sums.index_select(1, heads)
    return CropSpots(item.index_select(0, heads), fs / counts, ss / counts, photons, counts)
