"""The running map of hot and twinkling pixels, and what tells them from crystals that come again.

A faulty pixel makes peaks of its own: single pixels with nothing around them, again and again, whatever else a frame
shows. So does a crystal that is stuck in the beam, or a replay that loops, with its single-pixel spots. The rule, in
the order in which it is asked (``docs/decisions/0010``):

1. Only frames that are no hits speak, and none of those with many spots that have surroundings.
2. A frame that came before, count by count, says nothing new: a loop speaks once.
3. Only lone peaks (``analyzer.frame_peaks``) speak against a pixel.
4. A pixel is hot from so many such frames that chance puts ``FALSE_PIXELS_PER_PANEL`` good pixels there, at least
   ``FEWEST_FIRINGS``, over at least ``SPAN_FRAMES`` frames from the first to the last.
5. Not where it is tied to other peaks. Places whose peaks come together far more than their shares let expect are a
   crystal that is repeated; a pixel that fires in such a crystal's frames and hardly elsewhere is one of its spots. So
   is one with three places of peaks with surroundings that come whenever it does and only then.

It is a product to look at. What frames are judged with changes only once someone applies it by name.
"""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import gammaln
from scipy.stats import poisson

from analyzer.frame_peaks import FramePeaks
from streamer.validity import Validity, digest

NAME = "hot-pixels"
"""What it is applied by."""

FEWEST_FIRINGS = 3
FALSE_PIXELS_PER_PANEL = 0.01
SPAN_FRAMES = 100
MOST_SPOTS = 20
"""A frame with more peaks that have surroundings shows a crystal, salt or ice, whatever it was called."""

FRAMES_KEPT = 16384
PEAKS_KEPT = 1 << 20
"""The map is made of the latest frames with peaks: so many, and of so many peaks at most."""

STRONG_CHANCE = 1e-5
"""Two places belong together when chance puts them into so many frames at once with less than this ..."""
STRONG_FACTOR = 2.0
"""... and one of them comes so many times as often with the other as without it."""

TIED_CHANCE = 0.01
"""A pixel is tied when chance puts as many of its firings into frames of repeated crystals with less than this ..."""
TIED_FACTOR = 2.0
"""... and it fires so many times as often there as elsewhere."""

CRYSTAL_SPOTS = 3
"""Spots that keep company with each other and with a pixel make a crystal of it, even one that is always there."""

_CLUSTERING = 30.0
"""How much denser than on average over the panel lone peaks of good pixels may lie, around rings and in the middle."""

_PLACE_PX = 4
_MOST_CANDIDATES = 4096
_MOST_PAIRS = 1 << 26
"""Company is looked at over the latest frames with so many pairs of peaks together: a second's work."""

_FINGERPRINTS = 1 << 18
"""Frames that are remembered so as to know them again; slots of a table, so that its size never grows."""


@dataclass(frozen=True, slots=True, eq=False)
class HotPixels:
    """The map at one time. ``pixel`` (n,) int64: flat indices, ascending; ``firings`` (n,): frames each made a peak in.

    Of ``frames`` distinct frames that spoke. ``tied`` pixels fire as often and are left out by rule 5;
    ``fewest_firings`` is what rule 4 asked.
    """

    shape: tuple[int, int]
    pixel: npt.NDArray[np.int64]
    firings: npt.NDArray[np.int64]
    frames: int
    tied: int
    fewest_firings: int

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """(ss, fs) uint8, 1 where a pixel is hot: as ``--mask`` takes it."""
        mask = np.zeros(self.shape, np.uint8)
        mask.reshape(-1)[self.pixel] = 1
        return mask

    def frozen(self, before: Validity | None = None) -> Validity:
        """The map, with what was applied ``before``, as a mask that has the name of the file it is saved as."""
        valid = 1 - self.mask
        if before is not None:
            valid &= before.valid
        return Validity(f"{NAME}-{digest(valid)}.npy", valid)


class HotPixelWatch:
    """Gathers what frames say; one thread feeds it, others ask."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._lock = threading.Lock()
        self._frames: deque[tuple[int, npt.NDArray[np.int64]]] = deque()
        self._fed = self._peaks = self._forgotten = 0
        self._known = np.zeros(_FINGERPRINTS, np.int64)

    def add(self, seen: FramePeaks, profile: npt.NDArray[np.float32]) -> None:
        """Take in a frame that is no hit, with its radial profile (2, bins) of photons and pixels."""
        if np.count_nonzero(~seen.lone) > MOST_SPOTS:
            return
        if len(seen.peaks) or profile[0].any():
            fingerprint = hash((seen.peaks.tobytes(), profile.tobytes()))
            slot = fingerprint % _FINGERPRINTS
            if self._known[slot] == fingerprint:
                return
            self._known[slot] = fingerprint
        codes = _codes(seen)
        with self._lock:
            self._fed += 1
            if not len(codes):
                return
            self._frames.append((self._fed, codes))
            self._peaks += len(codes)
            while len(self._frames) > FRAMES_KEPT or (self._peaks > PEAKS_KEPT and len(self._frames) > 1):
                self._forgotten, gone = self._frames.popleft()
                self._peaks -= len(gone)

    def find(self) -> HotPixels:
        """The map as it stands."""
        with self._lock:
            frames, fed, forgotten = list(self._frames), self._fed, self._forgotten
        return _find(self.shape, frames, fed, fed - forgotten)


def _codes(seen: FramePeaks) -> npt.NDArray[np.int64]:
    """The places of a frame's peaks, each once: lone ones by their pixel, others by their square, negative."""
    ss, fs = np.divmod(seen.pixel, seen.plan.shape[1])
    across = seen.plan.shape[1] // _PLACE_PX + 1
    places = -1 - (ss // _PLACE_PX * across + fs // _PLACE_PX)
    return np.unique(np.where(seen.lone, seen.pixel, places))


def _find(shape: tuple[int, int], frames: list[tuple[int, npt.NDArray[np.int64]]], fed: int, counted: int) -> HotPixels:
    """The map of ``frames`` (each its number and the codes of its peaks), of the latest ``counted`` of ``fed``."""
    none = np.empty(0, np.int64)
    if not frames:
        return HotPixels(shape, none, none, counted, 0, FEWEST_FIRINGS)
    codes = np.concatenate([codes for _, codes in frames])
    sizes = [len(codes) for _, codes in frames]
    numbers = np.array([number for number, _ in frames])
    order, row = np.repeat(numbers, sizes), np.repeat(np.arange(len(frames)), sizes)
    code, column, firings = np.unique(codes, return_inverse=True, return_counts=True)
    fewest = _fewest(firings[code >= 0], shape)
    first, last = np.zeros(len(code), np.int64), np.zeros(len(code), np.int64)
    first[column[::-1]], last[column] = order[::-1], order
    candidates = np.flatnonzero((code >= 0) & (firings >= fewest) & (last - first >= SPAN_FRAMES))
    if len(candidates) > _MOST_CANDIDATES:
        candidates = np.sort(candidates[np.argsort(-firings[candidates], kind="stable")[:_MOST_CANDIDATES]])
    there = csr_array((np.ones(len(codes)), (row, column)), (len(frames), len(code)))
    tied = _tied(there, candidates, code, firings, fed - numbers + 1, counted)
    kept = candidates[~tied]
    return HotPixels(shape, code[kept], firings[kept], counted, int(tied.sum()), fewest)


def _tied(
    there: csr_array,
    candidates: npt.NDArray[np.int64],
    code: npt.NDArray[np.int64],
    firings: npt.NDArray[np.int64],
    ages: npt.NDArray[np.int64],
    counted: int,
) -> npt.NDArray[np.bool_]:
    """Which candidates are tied to other peaks. ``there`` (frames, places) says which came together.

    ``ages`` (frames,): how many frames were fed from each on.
    """
    company = np.flatnonzero(firings >= FEWEST_FIRINGS)
    work = np.asarray(there[:, company].sum(1)) * np.asarray(there[:, candidates].sum(1))
    first = int(np.searchsorted(-np.cumsum(work[::-1])[::-1], -_MOST_PAIRS))
    if first:
        there, counted = there[first:], int(ages[min(first, len(ages) - 1)])
        firings = np.asarray(there.sum(0)).astype(np.int64)
    together = (there[:, candidates].T @ there[:, company]).tocoo()
    one, other = candidates[together.coords[0]], company[together.coords[1]]
    apart = one != other
    pairs = _Pairs(one[apart], other[apart], together.data[apart])
    repeated = _in_repeated(there, candidates, _repeated(pairs, firings, counted), firings, counted)
    constant: npt.NDArray[np.bool_] = _in_constant(pairs, code, firings)[candidates]
    return repeated | constant


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Places (by column) that came together, and in how many frames."""

    one: npt.NDArray[np.int64]
    other: npt.NDArray[np.int64]
    both: npt.NDArray[np.float64]


def _fewest(firings: npt.NDArray[np.int64], shape: tuple[int, int]) -> int:
    """How often a pixel has to fire so that chance makes few good ones do so."""
    pixels = shape[0] * shape[1]
    mean = _CLUSTERING * float(firings[firings < FEWEST_FIRINGS].sum()) / pixels
    return max(FEWEST_FIRINGS, 1 + int(poisson.isf(FALSE_PIXELS_PER_PANEL / pixels, mean)) if mean > 0 else 0)


def _repeated(pairs: _Pairs, firings: npt.NDArray[np.int64], frames: int) -> npt.NDArray[np.bool_]:
    """Which places belong to a crystal that is repeated: they come with another as chance would not have it."""
    one, other, both = firings[pairs.one], firings[pairs.other], pairs.both
    more = _share(both, other) >= STRONG_FACTOR * _share(one - both, frames - other)
    more |= _share(both, one) >= STRONG_FACTOR * _share(other - both, frames - one)
    strong = more & (both >= FEWEST_FIRINGS) & (_chance(both, one, other, frames) < STRONG_CHANCE)
    found = np.zeros(len(firings), bool)
    found[pairs.one[strong]] = found[pairs.other[strong]] = True
    return found


def _in_repeated(
    there: csr_array,
    candidates: npt.NDArray[np.int64],
    repeated: npt.NDArray[np.bool_],
    firings: npt.NDArray[np.int64],
    frames: int,
) -> npt.NDArray[np.bool_]:
    """Which candidates fire in frames of repeated crystals and hardly elsewhere; a place is no witness of its own."""
    members = np.asarray(there @ repeated.astype(np.float64))
    own = repeated[candidates]
    fired = there[:, candidates]
    by_itself = np.asarray(fired.T @ (members == 1.0).astype(np.float64)) * own
    inside = np.asarray(fired.T @ (members >= 1.0).astype(np.float64)) - by_itself
    crystal = np.count_nonzero(members) - by_itself
    total = firings[candidates]
    more = _share(inside, crystal) >= TIED_FACTOR * _share(total - inside, frames - crystal)
    found: npt.NDArray[np.bool_] = more & (inside > 0) & (_chance(inside, total, crystal, frames) < TIED_CHANCE)
    return found


def _in_constant(pairs: _Pairs, code: npt.NDArray[np.int64], firings: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which places keep company with spots that have surroundings: of a crystal that is there in every frame."""
    faithful = (code[pairs.other] < 0) & (2 * pairs.both >= np.maximum(firings[pairs.one], firings[pairs.other]))
    found: npt.NDArray[np.bool_] = np.bincount(pairs.one[faithful], minlength=len(code)) >= CRYSTAL_SPOTS
    return found


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """A part of a whole, 1 where there is no whole: what never was says nothing."""
    return np.divide(part, whole, out=np.ones(np.shape(part)), where=np.asarray(whole) > 0)


def _chance(
    both: npt.NDArray[Any], one: npt.NDArray[Any], other: npt.NDArray[Any], frames: int
) -> npt.NDArray[np.float64]:
    """The chance that so many frames or more are common to two sets drawn apart; 1 where fewer are than on average.

    The hypergeometric tail by its first term and the geometric bound of the rest.
    """
    left = frames - one - other + both

    def log_choose(n: Any, k: Any) -> Any:
        return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)

    with np.errstate(all="ignore"):
        term = np.exp(log_choose(one, both) + log_choose(frames - one, other - both) - log_choose(frames, other))
        ratio = (one - both) * (other - both) / ((both + 1.0) * (left + 1.0))
        tail = np.where(ratio < 1.0, term / (1.0 - ratio), 1.0)
    chance: npt.NDArray[np.float64] = np.where(both * frames > one * other, np.minimum(tail, 1.0), 1.0)
    return chance
