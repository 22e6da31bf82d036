"""peakfinder8 on torch, CPU or CUDA, whole batches: connected pixels over a threshold that follows the radius.

The steps are those of Barty et al., J. Appl. Cryst. 47 (2014) 1118: mean and spread of each ring of
pixels, estimated again and again without what lies above; pixels above their ring's threshold,
connected; a circle of background around each such spot; its signal against that background's
spread. Parameters have CrystFEL's names and meaning.

Counting statistics replaces mean and spread by the exact tail of the Poisson distribution, which at a
hundredth of a photon a pixel has little in common with a normal one (see ``Statistics``).

Sums are of integers, so that a result depends neither on the order in which a device adds nor on the
frames beside it. On CUDA nothing waits for the device before the peaks are fetched: lists have a
fixed length there, and a frame that needs longer ones is done again on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analyzer.geometry import Geometry
from analyzer.kernels import PEAK_DTYPE
from analyzer.poisson_tail import TailTable, normal_tail
from streamer.validity import Validity, sentinel

ROUNDS = 5
"""Times that the statistics of the rings are made; all but the first leave out what lies above."""

LARGEST_COUNT = (1 << 23) - 1
"""Higher counts are taken as this: a ring's sum of squares then fits 63 bits."""

GROWTH_CHANCE = 1e-3
"""Chance that a pixel of background belongs to a spot's shape, in counting statistics."""

CLIP_CHANCE = 1e-4
"""Chance beyond which a count is left out of its ring's mean, in counting statistics."""

_TABLE = 128
"""Counts below this are tabulated by ring; the few above are summed one by one."""

_JOIN_ROUNDS = 40
"""Far more than the logarithm of the longest list, after which no label moves."""

_ONE = 1 << 16
"""A count in the fixed-point arithmetic of weights."""

_REACH = 2
"""Pixels from a spot's middle to the edge of the square that counting statistics integrates."""

_PART_PIXELS = 1 << 17
"""Pixels of a frame that are listed at once on the CPU; a multiple of what fits into eight bytes."""

_WINDOW_PIXELS = 1 << 22
"""Pixels of windows around spots that are looked at together."""

_NO_SPREAD = 0.01
"""Standard deviation taken where no background is left around a spot."""

_RING_PHOTONS = 25
"""Counts that a ring's mean has to rest on; rings with fewer take their neighbours in."""

_PRIOR_PIXELS = 50.0
"""Pixels that a ring's mean weighs against the local background around a spot."""

_COLUMNS = ("fs", "ss", "intensity", "snr", "saturated", "accepted")
_TYPES = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32}

Frame = npt.NDArray[Any]
Moments = Callable[[torch.Tensor], torch.Tensor]


class Statistics(StrEnum):
    """How thresholds follow from the background."""

    GAUSSIAN = "gaussian"
    """Mean and standard deviation of the counts, as peakfinder8 has it."""
    POISSON = "poisson"
    """The tail of the Poisson distribution. A spot is improbable in its brightest pixel, its best 2 x 2 or its
    3 x 3; ``min_snr`` stands for that chance a pixel, its snr is net photons over their standard deviation,
    and spots that touch a masked pixel are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peakfinder8Settings:
    """CrystFEL's parameters: counts for its ADU, lengths in pixels. Raises ``ValueError`` for values without sense.

    ``threshold``: counts that a pixel must exceed whatever its ring says. ``min_snr``: standard deviations, of
    the ring for a pixel and of the local background for a spot. ``max_res`` ``None``: to the corners.
    """

    threshold: float = 3.0
    min_snr: float = 5.0
    min_pix_count: int = 1
    max_pix_count: int = 200
    local_bg_radius: int = 3
    min_res: float = 0.0
    max_res: float | None = None
    max_peaks: int = 2048
    statistics: Statistics = Statistics.GAUSSIAN

    def __post_init__(self) -> None:
        for name, least in (("threshold", 0), ("min_snr", 0.01), ("min_res", 0), ("max_peaks", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} is {value}; give a number from {least}")
        fewest, most = self.min_pix_count, self.max_pix_count
        if not 1 <= fewest <= most <= 1000:
            raise ValueError(f"min_pix_count {fewest}, max_pix_count {most}: give 1 <= fewest <= most <= 1000")
        if not 1 <= self.local_bg_radius <= 20:
            raise ValueError(f"local_bg_radius is {self.local_bg_radius}; give 1 to 20 pixels")
        if self.max_res is not None and not self.max_res > self.min_res:
            raise ValueError(f"max_res {self.max_res} is not above min_res {self.min_res}; give pixels from the beam")


@dataclass(frozen=True, slots=True)
class _Limits:
    """Pixels beyond the table, pixels above threshold, and spots that are looked at in one frame."""

    tail: int
    strong: int
    spots: int


_CUDA_LIMITS = _Limits(tail=1 << 16, strong=1 << 16, spots=1 << 13)
_LIMITS = _Limits(tail=1 << 62, strong=1 << 18, spots=1 << 15)
"""On the CPU; a frame with more has the first ones looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class _Lit:
    """Pixels of frames that may count, (B, L) each: int32 count and ring, and their place from ``start`` on.

    ``place`` ``None``: one after the other.
    """

    counts: torch.Tensor
    ring: torch.Tensor
    place: torch.Tensor | None
    start: int


@dataclass(frozen=True, slots=True, eq=False)
class _Rings:
    """(B, R + 1) float64: mean count a pixel, and the count that a pixel of a spot exceeds."""

    mean: torch.Tensor
    threshold: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Spots:
    """Sums over connected pixels, (B, S) int64 each, 0 where there is no spot.

    ``weight`` is counts over the ring's mean in units of 2^-16, ``_fs`` and ``_ss`` mean times that index.
    ``peak`` is the brightest pixel's count over its place counted from behind, see ``_key``.
    """

    pixels: torch.Tensor
    weight: torch.Tensor
    weight_fs: torch.Tensor
    weight_ss: torch.Tensor
    counts: torch.Tensor
    counts_fs: torch.Tensor
    counts_ss: torch.Tensor
    sum_fs: torch.Tensor
    sum_ss: torch.Tensor
    at_edge: torch.Tensor
    peak: torch.Tensor

    def at(self, index: torch.Tensor) -> "_Spots":
        return _Spots(**{name: _at(getattr(self, name), index, 0) for name in self.__dataclass_fields__})


class Peakfinder8:
    """Finds peaks in frames of one shape, type, geometry and mask, on one device.

    Ring r holds the pixels whose distance from the beam rounds to r; ring R those that never count.
    """

    def __init__(
        self,
        geometry: Geometry,
        validity: Validity,
        dtype: np.dtype[Any],
        saturation: int,
        settings: Peakfinder8Settings | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """``saturation``: counts from which a pixel is saturated. Raises ``ValueError`` for a mask of another shape."""
        if validity.valid.shape != geometry.shape:
            raise ValueError(f"mask {validity.name} is {validity.valid.shape}, the images are {geometry.shape}")
        self.settings = settings or Peakfinder8Settings()
        self.device = torch.device(device)
        self._slow: Peakfinder8 | None = None
        self._again = geometry, validity, dtype, saturation
        self._type = _TYPES[dtype.itemsize]
        self._no_data = min(sentinel(dtype), LARGEST_COUNT + 1)
        self._saturation = min(saturation, LARGEST_COUNT)
        self._shape = geometry.shape
        ring, self._rings = _ring_map(geometry, validity, self.settings)
        self._ring = torch.from_numpy(ring).to(self.device)
        self._ring_pixels = torch.from_numpy(np.bincount(ring, minlength=self._rings + 1)).to(self.device)
        self._real = (torch.arange(self._rings + 1, device=self.device) < self._rings).long()
        usable = ring.reshape(self._shape) < self._rings
        # peakfinder8 begins no spot on the panel's outermost pixels.
        rim = usable if self.settings.statistics == Statistics.POISSON else np.ones_like(usable)
        self._edge = torch.from_numpy(_edges(rim)).to(self.device)
        self._powers = torch.arange(_TABLE, device=self.device)
        around = _square(1)
        self._around = around[:, around.abs().amax(0) > 0].to(self.device)
        self._circle = _circle(2 * self.settings.local_bg_radius).to(self.device)
        self._square = _square(_REACH).to(self.device)
        chance = normal_tail(self.settings.min_snr)
        self._rare, self._clip, self._grow = (
            TailTable(each, self.device) for each in (max(chance, 1e-300), CLIP_CHANCE, GROWTH_CHANCE)
        )

    def find(self, pixels: Frame) -> Frame:
        """Peaks of one frame (ss, fs), ``PEAK_DTYPE``, in the order of their first pixels."""
        return self.find_batch(torch.from_numpy(np.ascontiguousarray(pixels)[None]))[0]

    @torch.inference_mode()
    def find_batch(self, frames: torch.Tensor) -> list[Frame]:
        """Peaks of each of the frames (B, ss, fs), of the type given, on any device.

        Raises ``ValueError`` for frames of another shape or type.
        """
        if tuple(frames.shape[1:]) != self._shape or frames.dtype != self._type:
            raise ValueError(f"frames are {tuple(frames.shape[1:])} {frames.dtype}, not {self._shape} {self._type}")
        flat = frames.to(self.device).flatten(1)
        if self.device.type == "cpu":
            return [self._search(one[None], self._list_lit(one), fixed=False)[0] for one in flat]
        # All pixels, as a list would have to be waited for.
        every = _Lit(self._counts(flat), self._ring.expand(flat.shape), None, 0)
        return self._search(flat, [every], fixed=True)

    def _counts(self, raw: torch.Tensor) -> torch.Tensor:
        """Pixels as int32; ``_no_data`` where they have none."""
        if raw.dtype == torch.uint32:
            signed = raw.view(torch.int32)
            large = torch.where((signed < 0) | (signed > LARGEST_COUNT), LARGEST_COUNT, signed)
            return torch.where(signed == -1, self._no_data, large)
        return raw.int() if raw.dtype == torch.uint8 else raw.view(torch.int16).int() & 0xFFFF

    def _list_lit(self, one: torch.Tensor) -> list[_Lit]:
        """The pixels of one frame (N,) that are not zero, in parts that stay in the processor's cache.

        Zeros, which most pixels are, are passed over eight bytes at once.
        """
        per_word = 8 // one.itemsize
        # A frame of an odd number of pixels puts the next one of its batch between two words.
        one = one if one.storage_offset() % per_word == 0 else one.clone()
        parts = []
        for start in range(0, one.numel(), _PART_PIXELS):
            part, ring = one[start : start + _PART_PIXELS], self._ring[start : start + _PART_PIXELS]
            whole = part.numel() // per_word * per_word
            words = torch.nonzero(part[:whole].view(torch.int64))[:, 0]
            if len(words) * per_word > part.numel() // 4:
                parts.append(_Lit(self._counts(part)[None], ring[None], None, start))
                continue
            near = (words[:, None] * per_word + torch.arange(per_word)).flatten()
            near = torch.cat([near, torch.arange(whole, part.numel())])
            counts, ring = self._counts(_take(part, near)), ring[near]
            keep = torch.nonzero((counts != 0) & (ring < self._rings))[:, 0]
            parts.append(_Lit(counts[keep][None], ring[keep][None], near[keep][None], start))
        return parts

    def _search(self, flat: torch.Tensor, lit: Sequence[_Lit], fixed: bool) -> list[Frame]:
        """Peaks of each of the frames (B, N). ``fixed``: lists have a fixed length, and nothing is waited for."""
        limits = _CUDA_LIMITS if fixed else _LIMITS
        rings, tails = self._statistics(len(flat), lit, fixed)
        place, counts, ring, strongs = self._strong(lit, rings, flat.shape[1], limits.strong, fixed)
        spots = self._connect(place, counts, ring, rings, fixed)
        fits = (spots.pixels >= self.settings.min_pix_count) & (spots.pixels <= self.settings.max_pix_count)
        chosen, candidates = _choose(fits & (spots.weight > 0), limits.spots, fixed)
        measured = self._measure(flat, spots.at(chosen), rings)
        too_many = (tails > limits.tail) | (strongs > limits.strong) | (candidates > limits.spots)
        fetched = torch.cat([measured.flatten(1), too_many[:, None].double()], 1).cpu().numpy()
        found: list[Frame] = []
        for one, row in zip(flat, fetched, strict=True):
            if fixed and row[-1]:
                found.append(self._on_cpu(one))
            else:
                found.append(_as_peaks(row[:-1].reshape(len(_COLUMNS), -1), self.settings.max_peaks))
        return found

    def _strong(
        self, lit: Sequence[_Lit], rings: _Rings, beyond: int, most: int, fixed: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Place, count and ring (B, K) of pixels over their ring's threshold, and how many there are.

        Where there is none any more: place ``beyond``, count 0 and the last ring.
        """
        chosen, number = [], torch.zeros(1, dtype=torch.int64, device=self.device)
        # As an integer: a comparison of integers with floats converts them all.
        least = rings.threshold.min().clamp_max(LARGEST_COUNT).floor().int()
        for part in lit:
            counts, ring, place = part.counts, part.ring, part.place
            if not fixed:
                some = torch.nonzero(counts[0] > least)[:, 0]
                counts, ring = counts[:, some], ring[:, some]
                place = some[None] if place is None else place[:, some]
            ring = torch.where(counts == self._no_data, self._rings, ring)
            index, found = _choose(counts > rings.threshold.gather(1, ring.long()), most, fixed)
            number = number + found
            there = index if place is None else _at(place, index, beyond - part.start)
            chosen.append((there + part.start, _at(counts, index, 0), _at(ring, index, self._rings)))
        place, counts, ring = (torch.cat(each, 1)[:, :most].long() for each in zip(*chosen, strict=True))
        return place, counts, ring, number

    def _on_cpu(self, one: torch.Tensor) -> Frame:
        """A frame with more than the device's lists hold; rare, and the peaks are the same."""
        if self._slow is None:
            self._slow = Peakfinder8(*self._again, self.settings, "cpu")
        return self._slow.find_batch(one.cpu().reshape(1, *self._shape))[0]

    def _statistics(self, frames: int, lit: Sequence[_Lit], fixed: bool) -> tuple[_Rings, torch.Tensor]:
        """Mean and threshold of each ring, and how many pixels lie beyond the table in each frame."""
        rings, limits = self._rings + 1, _CUDA_LIMITS if fixed else _LIMITS
        table = torch.zeros(frames, rings * _TABLE, dtype=torch.int32, device=self.device)
        tails = torch.zeros(frames, dtype=torch.int64, device=self.device)
        rare: list[tuple[torch.Tensor, torch.Tensor]] = []
        one = torch.ones(1, 1, dtype=torch.int32, device=self.device)
        for part in lit:
            index = part.ring * _TABLE + part.counts.clamp_max(_TABLE - 1)
            table.scatter_add_(1, index.long(), one.expand(index.shape))
            # Most of these are pixels without data in gaps, which are left out of the list.
            chosen, number = self._choose_usable(part.counts >= _TABLE - 1, part.ring, limits.tail, fixed)
            tails = tails + number
            rare.append((_at(part.counts, chosen, LARGEST_COUNT), _at(part.ring, chosen, self._rings)))
        rare_counts, rare_ring = (torch.cat(each, 1).long() for each in zip(*rare, strict=True))
        lost = rare_counts == self._no_data
        without = _sum_by(rare_ring, lost.long(), rings)
        rare_ring = torch.where(lost, self._rings, rare_ring)
        by_ring = table.view(frames, rings, _TABLE).long()
        by_ring[:, self._rings] = 0
        usable = (self._ring_pixels - without) * self._real
        occupied = (by_ring[:, :, 1:].sum(2) - without) * self._real
        by_ring[:, :, 0] = usable - occupied
        # A leading zero: no count is below a threshold of 0.
        below = [torch.nn.functional.pad((by_ring * self._powers**k).cumsum(2), (1, 0)) for k in range(3)]
        powers = [rare_counts**k for k in range(3)]

        def moments(threshold: torch.Tensor) -> torch.Tensor:
            """(3, B, R + 1): pixels below the threshold of their ring, their counts and the squares of these."""
            last = threshold.ceil().clamp(0, _TABLE - 1).long()[:, :, None]
            kept = rare_counts < threshold.gather(1, rare_ring)
            return torch.stack(
                [
                    (sums.gather(2, last)[:, :, 0] + _sum_by(rare_ring, kept * power, rings)).double()
                    for sums, power in zip(below, powers, strict=True)
                ]
            )

        everything = torch.full((frames, rings), math.inf, dtype=torch.float64, device=self.device)
        if self.settings.statistics == Statistics.GAUSSIAN:
            return self._by_spread(moments, everything), tails
        return self._by_tail(moments, everything, usable.double(), occupied.double()), tails

    def _choose_usable(
        self, mask: torch.Tensor, ring: torch.Tensor, most: int, fixed: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``_choose`` of those pixels that may count."""
        if fixed:
            return _choose(mask & (ring < self._rings), most, fixed)
        index = torch.nonzero(mask[0])[:, 0]
        index = index[ring[0, index] < self._rings]
        return index[None, :most], torch.tensor([len(index)])

    def _by_spread(self, moments: Moments, upper: torch.Tensor) -> _Rings:
        """Pixels as far below the mean are left out as well; a ring without spread so has nothing left.

        Such a ring has no threshold, and the next round begins anew with all that counted. Of a ring that shows a
        spot and else no photon, the last round decides: mostly peakfinder8 finds nothing there.
        """
        lower = -upper
        mean = torch.zeros_like(upper)
        for _ in range(ROUNDS):
            # Up to the lower threshold, itself included.
            pixels, total, squares = moments(upper) - moments(lower.floor() + 1.0)
            some = pixels > 0
            mean = total / pixels.clamp_min(1.0)
            spread = (squares / pixels.clamp_min(1.0) - mean**2).clamp_min(0.0).sqrt() * self.settings.min_snr
            mean = torch.where(some, mean, 0.0)
            lower = torch.where(some, mean - spread, 0.0)
            upper = torch.where(some, (mean + spread).clamp_min(self.settings.threshold), math.inf)
        return _Rings(mean, upper)

    def _by_tail(
        self, moments: Moments, everything: torch.Tensor, usable: torch.Tensor, occupied: torch.Tensor
    ) -> _Rings:
        """The first mean is from how many pixels counted at all, which Bragg light, however bright, hardly moves."""
        share = occupied / usable.clamp_min(1.0)
        first = torch.where(share < 0.8, -torch.log1p(-share.clamp_max(0.8)) * usable, moments(everything)[1])
        mean = _widened(first, usable)
        for _ in range(2):
            pixels, total, _ = moments(self._clip.least(mean))
            mean = _widened(total, pixels)
        # Of a pixel that exceeds the threshold there are at least one more.
        threshold = (self._grow.least(mean) - 1.0).clamp_min(self.settings.threshold)
        return _Rings(mean, torch.where(usable > 0, threshold, math.inf))

    def _connect(
        self, place: torch.Tensor, counts: torch.Tensor, ring: torch.Tensor, rings: _Rings, fixed: bool
    ) -> _Spots:
        """Sums over the spots that pixels (B, K), in order of place, make with their eight neighbours."""
        rows, columns = self._shape
        live = place < rows * columns
        ss, fs = place // columns, place % columns
        own = torch.arange(place.shape[1], device=self.device).expand(place.shape)
        label = own
        if place.shape[1]:
            beside_ss, beside_fs = ss[:, :, None] + self._around[0], fs[:, :, None] + self._around[1]
            wanted = (beside_ss * columns + beside_fs).flatten(1)
            slot = torch.searchsorted(place.contiguous(), wanted).clamp_max(place.shape[1] - 1)
            there = (beside_fs >= 0) & (beside_fs < columns) & (beside_ss < rows) & live[:, :, None]
            there &= (place.gather(1, slot) == wanted).view(there.shape)
            label = _join(torch.where(there, slot.view(there.shape), own[:, :, None]), fixed)
        mean = (rings.mean.gather(1, ring) * _ONE).round().long()
        weight = counts * _ONE - mean
        one = live.long()
        size = place.shape[1]

        def over_spot(values: torch.Tensor) -> torch.Tensor:
            return _sum_by(label, torch.where(live, values, 0), size)

        peak = torch.zeros_like(place).scatter_reduce(1, label, torch.where(live, _key(counts, place), 0), "amax")
        return _Spots(
            over_spot(one), over_spot(weight), over_spot(weight * fs), over_spot(weight * ss),
            over_spot(counts), over_spot(counts * fs), over_spot(counts * ss), over_spot(fs), over_spot(ss),
            over_spot(self._edge[place.clamp_max(rows * columns - 1)].long()), peak,
        )  # fmt: skip

    def _measure(self, flat: torch.Tensor, spots: _Spots, rings: _Rings) -> torch.Tensor:
        """``_COLUMNS`` (B, 6, S) of spots, a part of them at a time, so that windows take little memory."""
        measure = self._by_background if self.settings.statistics == Statistics.GAUSSIAN else self._by_chance
        part = max(1, _WINDOW_PIXELS // self._circle.shape[1])
        parts = [
            measure(flat, spots.at(index.expand(len(flat), -1)), rings)
            for index in torch.split(torch.arange(spots.pixels.shape[1], device=self.device), part)
        ]
        return torch.cat(parts, 2)

    def _window(
        self, flat: torch.Tensor, ss: torch.Tensor, fs: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts and rings (B, S, W) around places; ring R where there is no data."""
        rows, columns = self._shape
        y, x = ss[:, :, None] + offsets[0], fs[:, :, None] + offsets[1]
        inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        place = torch.where(inside, y * columns + x, 0).flatten(1)
        counts = self._counts(_gather(flat, place)).long().view(inside.shape)
        ring = torch.where(inside & (counts != self._no_data), self._ring[place].long().view(inside.shape), self._rings)
        return torch.where(ring < self._rings, counts, 0), ring

    def _by_background(self, flat: torch.Tensor, spots: _Spots, rings: _Rings) -> torch.Tensor:
        """peakfinder8's own test: signal over the spread of the background around."""
        exists = spots.pixels > 0
        weight = spots.weight.clamp_min(1).double()
        ss, fs = (spots.weight_ss / weight).round().long(), (spots.weight_fs / weight).round().long()
        counts, ring = self._window(flat, ss, fs, self._circle)
        mean, threshold = (_of_rings(each, ring) for each in (rings.mean, rings.threshold))
        weak = (ring < self._rings) & (counts < threshold)
        counts = torch.where(weak, counts, 0)
        pixels = weak.sum(2).double()
        local = torch.where(pixels > 0, counts.sum(2) / pixels.clamp_min(1.0), mean[:, :, 0])
        variance = (counts**2).sum(2) / pixels.clamp_min(1.0) - local**2
        spread = torch.where(pixels > 0, variance.clamp_min(0.0).sqrt(), _NO_SPREAD)
        net = spots.counts - spots.pixels * local
        # A background without spread, such as zeros alone, decides against the spot.
        snr = torch.where(spread > 1e-9, net / spread.clamp_min(1e-9), 0.0)
        brightest, _ = _unkey(spots.peak)
        highest = counts.amax(2)
        return _columns(
            (spots.counts_fs - local * spots.sum_fs) / net,
            (spots.counts_ss - local * spots.sum_ss) / net,
            net,
            snr,
            brightest >= self._saturation,
            exists
            & (spots.at_edge < spots.pixels)
            & (net > 1e-10)
            & (snr >= self.settings.min_snr)
            & (brightest >= highest),
        )

    def _by_chance(self, flat: torch.Tensor, spots: _Spots, rings: _Rings) -> torch.Tensor:
        """Whether chance makes the brightest pixel, its best 2 x 2 or its 3 x 3 less often than ``min_snr`` says."""
        brightest, place = _unkey(spots.peak)
        ss, fs = place // self._shape[1], place % self._shape[1]
        counts, ring = self._window(flat, ss, fs, self._circle)
        mean, threshold = (_of_rings(each, ring) for each in (rings.mean, rings.threshold))
        apart = self._circle.abs().amax(0) > _REACH
        weak = (ring < self._rings) & (counts <= threshold) & apart
        pixels = weak.sum(2).double()
        prior = mean[:, :, 0] * _PRIOR_PIXELS
        local = ((torch.where(weak, counts, 0).sum(2) + prior) / (pixels + _PRIOR_PIXELS)).clamp_min(1e-9)

        counts, ring = self._window(flat, ss, fs, self._square)
        valid = ring < self._rings
        box = counts.view(*counts.shape[:2], 2 * _REACH + 1, 2 * _REACH + 1)
        near = box[:, :, _REACH - 1 : _REACH + 2, _REACH - 1 : _REACH + 2]
        best = torch.stack([near[:, :, y : y + 2, x : x + 2].sum((2, 3)) for y in (0, 1) for x in (0, 1)]).amax(0)
        rare = (
            (brightest >= self._rare.least(local))
            | (best >= self._rare.least(4.0 * local))
            | (near.sum((2, 3)) >= self._rare.least(9.0 * local))
        )
        # Of two spots closer than the window one is the other's tail.
        own = _key(counts.amax(2), place) <= spots.peak
        near_edge = (self._square.abs().amax(0) <= 1) & ~valid
        gross, area = counts.sum(2).double(), valid.sum(2).double()
        net = gross - area * local
        weight = torch.where(valid, counts * _ONE - (local * _ONE).round().long()[:, :, None], 0).clamp_min(0)
        total = weight.sum(2).clamp_min(1).double()
        sigma = (gross + area**2 * local / (pixels + _PRIOR_PIXELS)).clamp_min(1e-12).sqrt()
        return _columns(
            fs + (weight * self._square[1]).sum(2) / total,
            ss + (weight * self._square[0]).sum(2) / total,
            net,
            net / sigma,
            (counts >= self._saturation).any(2),
            (spots.pixels > 0) & (spots.at_edge == 0) & ~near_edge.any(2) & rare & own & (net > 0),
        )


def _ring_map(geometry: Geometry, validity: Validity, settings: Peakfinder8Settings) -> tuple[npt.NDArray[Any], int]:
    """Ring of each pixel (N,) int32, and the number of rings, which is the ring of what never counts."""
    rows, columns = geometry.shape
    if geometry.panels is None:
        # As OM and CrystFEL have it, to the last bit: rings are rounded radii.
        y = (np.arange(rows) - geometry.beam_center_ss)[:, None]
        x = (np.arange(columns) - geometry.beam_center_fs)[None, :]
        radius = np.hypot(y, x).astype(np.float32)
    else:
        radius = geometry.radius_map()
    usable = (validity.valid != 0) & (radius >= settings.min_res)
    if settings.max_res is not None:
        usable &= radius <= settings.max_res
    ring = np.rint(radius).astype(np.int32)
    # A beam centre far off the panel would make rings without pixels, and tables without end.
    ring -= ring.min()
    rings = int(ring.max()) + 1
    return np.where(usable, ring, rings).astype(np.int32).reshape(-1), rings


def _edges(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels (N,) with a neighbour that never counts, beyond the panel's edge or not."""
    rows, columns = usable.shape
    padded = np.zeros((rows + 2, columns + 2), bool)
    padded[1:-1, 1:-1] = usable
    clear = np.ones((rows, columns), bool)
    for dy in range(3):
        for dx in range(3):
            clear &= padded[dy : dy + rows, dx : dx + columns]
    return ~clear.reshape(-1)


def _square(reach: int) -> torch.Tensor:
    """(2, W) offsets along ss and fs in a square."""
    y, x = torch.meshgrid(torch.arange(-reach, reach + 1), torch.arange(-reach, reach + 1), indexing="ij")
    return torch.stack([y.flatten(), x.flatten()])


def _circle(reach: int) -> torch.Tensor:
    """(2, W) offsets in a circle, its middle first; without the last row and column, as peakfinder8 has it."""
    offsets = _square(reach)
    offsets = offsets[:, ((offsets**2).sum(0) <= reach**2) & (offsets < reach).all(0)]
    return offsets[:, torch.argsort((offsets**2).sum(0), stable=True)]


def _sum_by(key: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """Sums (B, size) of values (B, L) by key."""
    return torch.zeros(len(key), size, dtype=torch.int64, device=key.device).scatter_add_(1, key, values)


def _choose(mask: torch.Tensor, most: int, fixed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (B, K) of what is true in (B, L), ascending, L where there is no more; and how many there are.

    At most ``most`` of each row; K is ``most`` if ``fixed``, else as long as it has to be for one row.
    """
    length = mask.shape[1]
    if not fixed:
        index = torch.nonzero(mask[0])[:, 0]
        return index[None, :most], torch.tensor([len(index)])
    rank = mask.cumsum(1)
    slot = torch.where(mask & (rank <= most), rank - 1, most)
    index = torch.full((len(mask), most + 1), length, dtype=torch.int64, device=mask.device)
    index.scatter_(1, slot, torch.arange(length, device=mask.device).expand(mask.shape))
    return index[:, :most], rank[:, -1]


def _at(values: torch.Tensor, index: torch.Tensor, filler: int) -> torch.Tensor:
    """Values (B, L) at indices (B, K); ``filler`` where the index is L."""
    length = values.shape[1]
    if not length:
        return torch.full_like(index, filler)
    return torch.where(index < length, values.gather(1, index.clamp_max(length - 1)), filler)


def _of_rings(values: torch.Tensor, ring: torch.Tensor) -> torch.Tensor:
    """Values (B, R + 1) at rings (B, S, W)."""
    return values.gather(1, ring.flatten(1)).view(ring.shape)


def _join(beside: torch.Tensor, fixed: bool) -> torch.Tensor:
    """The lowest index of each connected group; ``beside`` (B, K, 8) are neighbours, oneself where there is none.

    Each takes the lowest label around, hangs its group's head there, and labels are shortened.
    """
    frames, size, around = beside.shape
    label = torch.arange(size, device=beside.device).expand(frames, size)
    beside = beside.reshape(frames, size * around)
    for _ in range(_JOIN_ROUNDS):
        lowest = torch.minimum(label.gather(1, beside).view(frames, size, around).amin(2), label)
        joined = torch.minimum(label.scatter_reduce(1, label, lowest, "amin"), lowest)
        joined = joined.gather(1, joined)
        if not fixed and torch.equal(joined, label):
            break
        label = joined
    return label


def _key(counts: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """One number that orders pixels by count, and equal ones by the earlier place."""
    return (counts << 32) + (0xFFFFFFFF - place)


def _unkey(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    counts = key >> 32
    return counts, torch.where(key > 0, 0xFFFFFFFF - (key & 0xFFFFFFFF), 0)


def _widened(total: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Mean (B, R) of each ring, with as many rings to both sides as it takes to rest on ``_RING_PHOTONS``."""
    rings = total.shape[1]
    sums, areas = (torch.nn.functional.pad(each.cumsum(1), (1, 0)) for each in (total, area))
    ring = torch.arange(rings, device=total.device)
    mean, done, reach = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool), 0
    while True:
        low, high = (ring - reach).clamp_min(0), (ring + reach + 1).clamp_max(rings)
        counts, pixels = sums[:, high] - sums[:, low], areas[:, high] - areas[:, low]
        enough = (counts >= _RING_PHOTONS) | (reach >= rings)
        mean = torch.where(enough & ~done, counts.clamp_min(0.5) / pixels.clamp_min(1.0), mean)
        done |= enough
        if reach >= rings:
            return mean
        reach = 2 * reach + 1


def _columns(*columns: torch.Tensor) -> torch.Tensor:
    """Columns (B, S) as (B, columns, S) float64."""
    return torch.stack([column.double() for column in columns], 1)


def _as_peaks(columns: npt.NDArray[np.float64], most: int) -> Frame:
    """Accepted peaks of one frame from its ``_COLUMNS``."""
    of = dict(zip(_COLUMNS, columns[:, columns[-1] > 0][:, :most], strict=True))
    peaks = np.zeros(len(of["fs"]), PEAK_DTYPE)
    for name in _COLUMNS[:-1]:
        peaks[name] = of[name]
    return peaks


def _take(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Values (N,) of an unsigned type, of which torch knows few operations, at places."""
    return values.view(_SIGNED[values.itemsize])[place].view(values.dtype)


def _gather(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The same of (B, N) at places (B, K)."""
    return values.view(_SIGNED[values.itemsize]).gather(1, place).view(values.dtype)
