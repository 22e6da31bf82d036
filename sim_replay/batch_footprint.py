"""Laying many spots over the pixels of many windows at once, in torch.

A streak is a sum of round Gaussians, as in `diffraction.footprint`, each the product of two rows of error functions, so
over a box of pixels it is a product of two matrices; streaks of like size share one batched product. Its pieces have
one width in angle, weighted by the share of what reflects into them; there are more of them than the reference has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sim_replay.batch_diffraction import (
    BIN_BYTES,
    KERNEL_REACH_SIGMA,
    NODE_REACH_SIGMA,
    Spectra,
    Streaks,
    band_angles,
    bell,
    exit_radius,
    fit_boxes,
)

_PATCH_PIXEL_BYTES = 24


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Some spots over boxes of one size: row (m,) int64 of the spots, pixel (m, h, w) int64 flat over (items, ss, fs),
    photons (m, h, w) float32 expected without regard to gaps."""

    row: torch.Tensor
    pixel: torch.Tensor
    photons: torch.Tensor


def lay(streaks: Streaks, spectra: Spectra, shape: tuple[int, int], memory_bytes: int) -> Iterator[Patch]:
    """Lay streaks over the pixels of their windows, those of like size together, within the memory given."""
    if len(streaks) == 0:
        return
    sizes = torch.stack([streaks.pieces, streaks.nodes, streaks.box_px], dim=1)
    for (pieces, nodes, box), rows in _by_size(sizes):
        gaussians, height, width = pieces * nodes, min(box, shape[0]), min(box, shape[1])
        each_bytes = (
            16 * gaussians * (height + width + 2)
            + _PATCH_PIXEL_BYTES * height * width
            + 16 * BIN_BYTES * (pieces + spectra.edges.shape[1])
        )
        for row in torch.split(rows, max(1, memory_bytes // each_bytes)):
            yield _patch(row, streaks.at(row), spectra, pieces, nodes, height, width, shape)


def lay_round(
    item: torch.Tensor,
    fs: torch.Tensor,
    ss: torch.Tensor,
    photons: torch.Tensor,
    sigma_px: torch.Tensor,
    shape: tuple[int, int],
    memory_bytes: int,
) -> Iterator[Patch]:
    """Lay round Gaussian spots (n,) over the pixels of their windows; places are pixel indices of the window."""
    margin = KERNEL_REACH_SIGMA * sigma_px + 0.5
    inside, box_px, (box_ss, box_fs) = fit_boxes((ss - margin, fs - margin), (ss + margin, fs + margin), shape)
    seen = inside.nonzero().squeeze(1)
    if len(seen) == 0:
        return
    for (box,), rows in _by_size(box_px.index_select(0, seen)[:, None]):
        height, width = min(box, shape[0]), min(box, shape[1])
        for some in torch.split(rows, max(1, memory_bytes // (_PATCH_PIXEL_BYTES * height * width))):
            row = seen.index_select(0, some)
            scale = (1.0 / (math.sqrt(2.0) * sigma_px[row])).to(torch.float32)
            by_ss = _pixel_shares((ss - box_ss)[row][:, None], scale, height).transpose(1, 2)
            by_fs = _pixel_shares((fs - box_fs)[row][:, None], scale, width)
            weight = photons[row].to(torch.float32)[:, None, None]
            yield Patch(row, _pixels(item[row], box_ss[row], box_fs[row], height, width, shape), weight * by_ss * by_fs)


def _by_size(sizes: torch.Tensor) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Each kind of row in sizes (n, k), n above 0, and which rows are of that kind."""
    kinds, kind, counts = torch.unique(sizes, dim=0, return_inverse=True, return_counts=True)
    rows = torch.split(torch.argsort(kind, stable=True), counts.tolist())
    yield from zip(kinds.tolist(), rows, strict=True)


def _pixels(
    item: torch.Tensor, box_ss: torch.Tensor, box_fs: torch.Tensor, height: int, width: int, shape: tuple[int, int]
) -> torch.Tensor:
    first = (item * shape[0] + box_ss) * shape[1] + box_fs
    rows, columns = (torch.arange(size, device=item.device) for size in (height, width))
    return first[:, None, None] + rows[:, None] * shape[1] + columns


def _patch(
    row: torch.Tensor, streaks: Streaks, spectra: Spectra, pieces: int, nodes: int, height: int, width: int,
    shape: tuple[int, int],
) -> Patch:  # fmt: skip
    theta, weight = _split(streaks, spectra, pieces)
    radius = exit_radius(streaks.theta_mean[:, None], streaks.slope[:, None], theta, streaks.distance_px[:, None])
    ux, uy = streaks.direction_fs[:, None], streaks.direction_ss[:, None]
    fs = (streaks.beam_fs - streaks.box_fs)[:, None] + radius * ux
    ss = (streaks.beam_ss - streaks.box_ss)[:, None] + radius * uy
    weight = weight * streaks.photons[:, None]
    if nodes > 1:
        step = 2.0 * NODE_REACH_SIGMA / (nodes - 1)
        at = torch.arange(nodes, dtype=theta.dtype, device=theta.device) * step - NODE_REACH_SIGMA
        share = torch.special.ndtr(at + step / 2.0) - torch.special.ndtr(at - step / 2.0)
        share = share / share.sum()
        away = streaks.wide_px[:, None] * at
        along = streaks.along_radius[:, None]
        fs = (fs[:, :, None] + (away * torch.where(along, ux, -uy))[:, None, :]).flatten(1)
        ss = (ss[:, :, None] + (away * torch.where(along, uy, ux))[:, None, :]).flatten(1)
        weight = (weight[:, :, None] * share).flatten(1)
    scale = (1.0 / (math.sqrt(2.0) * streaks.kernel_px)).to(torch.float32)
    rows, columns = (_pixel_shares(place, scale, size) for place, size in ((ss, height), (fs, width)))
    photons = torch.bmm((rows * weight.to(torch.float32)[:, :, None]).transpose(1, 2), columns)
    return Patch(row, _pixels(streaks.item, streaks.box_ss, streaks.box_fs, height, width, shape), photons)


def _pixel_shares(place: torch.Tensor, scale: torch.Tensor, size: int) -> torch.Tensor:
    """Shares (n, gaussians, size) float32 of Gaussians at `place` (n, gaussians) in the pixels 0 to size - 1."""
    edge = torch.arange(size + 1, dtype=torch.float32, device=place.device) - 0.5
    return (0.5 * torch.erf((edge - place.to(torch.float32)[:, :, None]) * scale[:, None, None])).diff(dim=2)


def _split(streaks: Streaks, spectra: Spectra, pieces: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the angles of streaks into pieces of one width: mean angle and share of the photons, (n, pieces) each."""
    cuts = torch.linspace(0.0, 1.0, pieces + 1, dtype=torch.float64, device=streaks.low.device)
    cuts = streaks.low[:, None] + (streaks.high - streaks.low)[:, None] * cuts
    mean, sigma = streaks.theta_mean[:, None], streaks.theta_sigma[:, None]
    below, moment = (each.diff(dim=1) for each in _cumulative(streaks, spectra, (cuts - mean) / sigma))
    some = below > 0.0
    theta = mean + sigma * torch.where(some, moment / torch.where(some, below, 1.0), 0.0)
    theta = torch.where(some, torch.minimum(torch.maximum(theta, cuts[:, :-1]), cuts[:, 1:]), cuts[:, :-1])
    reflects = below * torch.sin(theta).square()
    total = reflects.sum(dim=1, keepdim=True)
    return theta, torch.where(total > 0.0, reflects / torch.where(total > 0.0, total, 1.0), 1.0 / pieces)


def _cumulative(streaks: Streaks, spectra: Spectra, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the spectrum's density times the Gaussian of angles, and times its argument, sum to below x (n, m)."""
    if spectra.density.shape[1] == 1:
        return torch.special.ndtr(x), -bell(x)
    edges = (band_angles(spectra, streaks.crystal, streaks.d) - streaks.theta_mean[:, None]) / streaks.theta_sigma[
        :, None
    ]
    density = spectra.density.index_select(0, streaks.crystal)
    bin_of = (torch.searchsorted(edges, x.contiguous(), right=True) - 1).clamp(0, density.shape[1] - 1)
    sums = []
    for at_edges, at_x in ((torch.special.ndtr(edges), torch.special.ndtr(x)), (-bell(edges), -bell(x))):
        before = torch.nn.functional.pad((at_edges.diff(dim=1) * density).cumsum(dim=1), (1, 0))
        within = density.gather(1, bin_of) * (at_x - at_edges.gather(1, bin_of))
        sums.append(before.gather(1, bin_of) + within)
    return sums[0], sums[1]
