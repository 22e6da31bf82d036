"""The running map of hot and twinkling pixels, and what tells them from crystals that come again.

A faulty pixel makes peaks of its own: single pixels with nothing around them, again and again, whatever else a frame
shows. So does a crystal that is stuck in the beam, or a replay that loops, with its single-pixel spots. The rule, in
the order in which it is asked (``docs/decisions/0010``):

1. Frames with many spots that have surroundings say nothing. Hits speak as well as misses: twenty hot pixels are enough
   to make every frame a hit, and then there would be nothing to learn from.
2. A frame that came before, count by count, says nothing new: a loop speaks once.
3. Only lone peaks (``analyzer.frame_peaks``) speak against a pixel.
4. A pixel is hot from so many such frames that chance puts ``FALSE_PIXELS_PER_PANEL`` good pixels there, at least
   ``FEWEST_FIRINGS``, over at least ``SPAN_FRAMES`` frames from the first to the last.
5. Not where the peak moves: a spot's brightest pixel is now this, now the next one, and now and then it has
   surroundings. A faulty pixel is the same one every time.
6. Not in the frames of a crystal that is repeated. Places whose peaks come together far more than their shares let
   expect are such a crystal's. A pixel has to fire often enough in frames that show none of them, and not twice as
   often in those that do.
7. Not in constant company: three places of peaks with surroundings that come whenever it does and only then are a
   crystal that is in every frame.

It is a product to look at. What frames are judged with changes only once someone applies it by name.
"""

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import gammaln
from scipy.stats import poisson

from analyzer.frame_peaks import FramePeaks
from analyzer.latest_codes import Latest, LatestCodes
from analyzer.product_snapshot import HotPixels

FEWEST_FIRINGS = 3
FALSE_PIXELS_PER_PANEL = 0.01
SPAN_FRAMES = 100
MOST_SPOTS = 20
"""A frame with more peaks that have surroundings shows a crystal, salt or ice, whatever it was called."""

FRAMES_KEPT = 16384
PEAKS_KEPT = 1 << 20
"""The map is made of the latest frames with peaks: so many, and of so many peaks at most."""

MOVING_SHARE = 0.05
MOVING_CHANCE = 0.01
"""Peaks beside a pixel, or on it with surroundings, that are so many for each of its firings, and more than chance."""

STRONG_CHANCE = 1e-5
FALSE_PAIRS = 0.1
"""Two places belong together when chance puts them into so many frames at once with less than the one, and into the map
fewer such pairs than the other ..."""
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

_CLUSTERING_BESIDE = 3.0
"""The same, where too much is asked of a pixel and not too little."""

_PLACE_PX = 4
_MOST_CANDIDATES = 4096
_MOST_PAIRS = 1 << 25
"""Company is looked at over the latest frames with so many pairs of peaks together: a second's work."""

_FINGERPRINTS = 1 << 18
"""Frames that are remembered so as to know them again; slots of a table, so that its size never grows."""


class HotPixelWatch:
    """Gathers what frames say; one thread feeds it, others ask."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._lock = threading.Lock()
        self._kept = LatestCodes(FRAMES_KEPT, PEAKS_KEPT)
        self._fed = 0
        self._known = np.zeros(_FINGERPRINTS, np.int64)

    def add(self, seen: FramePeaks, profile: npt.NDArray[np.float32]) -> None:
        """Take in a frame, with its radial profile (2, bins) of photons and pixels."""
        if np.count_nonzero(~seen.lone) > MOST_SPOTS:
            return
        if len(seen.peaks) or profile[0].any():
            fingerprint = _fingerprint(seen.peaks, profile)
            slot = fingerprint % _FINGERPRINTS
            if self._known[slot] == fingerprint:
                return
            self._known[slot] = fingerprint
        codes = _codes(seen)
        with self._lock:
            self._fed += 1
            if len(codes):
                self._kept.append(self._fed, codes)

    def find(self) -> HotPixels:
        """The map as it stands."""
        with self._lock:
            frames, fed, forgotten = self._kept.latest(), self._fed, self._kept.forgotten
        return _find(self.shape, frames, fed, fed - forgotten)


def _fingerprint(peaks: npt.NDArray[Any], profile: npt.NDArray[np.float32]) -> int:
    """Of a frame, 64 bits; the same in every process, which Python's own ``hash`` is not."""
    digest = hashlib.blake2b(peaks.tobytes(), digest_size=8)
    digest.update(profile.tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def _codes(seen: FramePeaks) -> npt.NDArray[np.int64]:
    """A frame's peaks by their brightest pixel, each once: twice its index, and one more where it has surroundings."""
    return np.unique(2 * seen.pixel + ~seen.lone)


@dataclass(frozen=True, slots=True, eq=False)
class _Company:
    """Which places came in which frames. ``places`` (frames, cells) counts peaks by squares of ``_PLACE_PX`` pixels.

    ``cell`` (cells,) is each square's number in rows of ``across``; ``supported`` (cells,) the share of its frames in
    which its peak had surroundings. ``fired`` (frames, n) says in which frames each candidate fired alone, ``own`` (n,)
    is its square's column. ``frames`` is how many were fed, those without a peak included.
    """

    places: csr_array
    cell: npt.NDArray[np.int64]
    across: int
    supported: npt.NDArray[np.float64]
    fired: csr_array
    own: npt.NDArray[np.int64]
    frames: int


def _find(shape: tuple[int, int], frames: Latest, fed: int, counted: int) -> HotPixels:
    """The map of ``frames`` (see ``_codes``), of the latest ``counted`` of ``fed``."""
    none = np.empty(0, np.int64)
    codes, numbers = frames.codes, frames.number
    if not len(codes):
        return HotPixels(shape, none, none, counted, 0, FEWEST_FIRINGS)
    row = np.repeat(np.arange(len(numbers)), frames.size)
    code, column, count = np.unique(codes, return_inverse=True, return_counts=True)
    fewest = _fewest(count[code % 2 == 0], shape)
    first, last = np.zeros(len(code), np.int64), np.zeros(len(code), np.int64)
    first[column[::-1]], last[column] = numbers[row[::-1]], numbers[row]
    asked = np.flatnonzero((code % 2 == 0) & (count >= fewest) & (last - first >= SPAN_FRAMES))
    if len(asked) > _MOST_CANDIDATES:
        asked = np.sort(asked[np.argsort(-count[asked], kind="stable")[:_MOST_CANDIDATES]])
    pixel, firings = code[asked] // 2, count[asked]
    company = _company(shape, codes, row, pixel, fed - numbers + 1, counted)
    out = _moving(shape, pixel, firings, code, count) | _in_repeated(company, fewest) | _in_constant(company)
    return HotPixels(shape, pixel[~out], firings[~out], counted, int(out.sum()), fewest)


def _company(
    shape: tuple[int, int],
    codes: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    pixel: npt.NDArray[np.int64],
    ages: npt.NDArray[np.int64],
    counted: int,
) -> _Company:
    """The company of candidate pixels, over the latest frames as far as the work is bounded.

    ``codes`` and ``row`` (peaks,): see ``_codes``, and which frame each is of; ``ages`` (frames,): how many frames were
    fed from each on, ``counted`` from all.
    """
    across = shape[1] // _PLACE_PX + 1

    def cell_of(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        ss, fs = np.divmod(pixels, shape[1])
        found: npt.NDArray[np.int64] = ss // _PLACE_PX * across + fs // _PLACE_PX
        return found

    peak_cell = cell_of(codes // 2)
    cell, count = np.unique(peak_cell, return_counts=True)
    cell = cell[(count >= FEWEST_FIRINGS) | np.isin(cell, cell_of(pixel))]
    place = np.minimum(np.searchsorted(cell, peak_cell), max(0, len(cell) - 1))
    kept = np.flatnonzero(cell[place] == peak_cell) if len(cell) else np.empty(0, np.int64)
    work = np.cumsum(np.bincount(row[kept], minlength=len(ages))[::-1].astype(np.float64) ** 2)[::-1]
    first = int(np.searchsorted(-work, -_MOST_PAIRS))
    if 0 < first < len(ages):
        counted, kept = int(ages[first]), kept[row[kept] >= first]
    size = len(ages), len(cell)
    ones = np.ones(len(kept))
    places = csr_array((ones, (row[kept], place[kept])), size)
    places.sum_duplicates()
    places.data[:] = 1.0
    supported = np.bincount(place[kept], codes[kept] % 2, len(cell)) / np.maximum(
        np.bincount(place[kept], minlength=len(cell)), 1
    )
    who = np.minimum(np.searchsorted(pixel, codes[kept] // 2), max(0, len(pixel) - 1))
    alone = np.flatnonzero((codes[kept] % 2 == 0) & (pixel[who] == codes[kept] // 2)) if len(pixel) else kept[:0]
    fired = csr_array((np.ones(len(alone)), (row[kept][alone], who[alone])), (len(ages), len(pixel)))
    return _Company(places, cell, across, supported, fired, np.searchsorted(cell, cell_of(pixel)), counted)


def _moving(
    shape: tuple[int, int],
    pixel: npt.NDArray[np.int64],
    firings: npt.NDArray[np.int64],
    code: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Which candidates are one of several pixels that a peak is brightest in, or have surroundings now and then."""
    peaks = np.zeros(len(code) + 1, np.int64)
    peaks[:-1] = count

    def seen(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        at = np.searchsorted(code, codes)
        found = (at < len(code)) & (code[np.minimum(at, len(code) - 1)] == codes)
        return peaks[np.where(found, at, -1)]

    ss, fs = np.divmod(pixel, shape[1])
    beside = np.zeros(len(pixel), np.int64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inside = (ss + dy >= 0) & (ss + dy < shape[0]) & (fs + dx >= 0) & (fs + dx < shape[1])
            other = pixel + dy * shape[1] + dx
            beside += inside * seen(2 * other + 1)
            if dy or dx:
                beside += inside * seen(2 * other)
    by_chance = _CLUSTERING_BESIDE * 9.0 * float(count[count < FEWEST_FIRINGS].sum()) / (shape[0] * shape[1])
    found: npt.NDArray[np.bool_] = (beside >= MOVING_SHARE * firings) & (
        poisson.sf(beside - 1, max(by_chance, 1e-12)) < MOVING_CHANCE
    )
    return found


def _fewest(firings: npt.NDArray[np.int64], shape: tuple[int, int]) -> int:
    """How often a pixel has to fire so that chance makes few good ones do so."""
    pixels = shape[0] * shape[1]
    mean = _CLUSTERING * float(firings[firings < FEWEST_FIRINGS].sum()) / pixels
    return max(FEWEST_FIRINGS, 1 + int(poisson.isf(FALSE_PIXELS_PER_PANEL / pixels, mean)) if mean > 0 else 0)


def _repeated(company: _Company) -> npt.NDArray[np.bool_]:
    """Which places (cells,) are of a crystal that is repeated: they come with another as chance would not have it."""
    one, other, both, counts = _pairs(company)
    frames, n, m = company.frames, counts[one], counts[other]
    more = _share(both, m) >= STRONG_FACTOR * _share(n - both, frames - m)
    more |= _share(both, n) >= STRONG_FACTOR * _share(m - both, frames - n)
    limit = min(STRONG_CHANCE, FALSE_PAIRS / max(1, len(one) // 2))
    strong = more & (both >= FEWEST_FIRINGS) & (_chance(both, n, m, frames) < limit)
    found = np.zeros(len(company.cell), bool)
    found[one[strong]] = found[other[strong]] = True
    return found


def _pairs(
    company: _Company, of: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Places apart (columns, the first ``of`` these) that came together, in how many frames; each place's frames."""
    places = company.places
    columns = np.arange(len(company.cell)) if of is None else of
    together = (places[:, columns].T @ places).tocoo()
    one, other = columns[together.coords[0]], together.coords[1].astype(np.int64)
    ss, fs = np.divmod(company.cell, company.across)
    # A spot on the border of two squares is no company of its own.
    apart = np.maximum(np.abs(ss[one] - ss[other]), np.abs(fs[one] - fs[other])) > 1
    return one[apart], other[apart], together.data[apart], np.asarray(places.sum(0), np.float64)


def _in_repeated(company: _Company, fewest: int) -> npt.NDArray[np.bool_]:
    """Which candidates fire too rarely outside frames of repeated crystals; a place is no witness of its own."""
    repeated = _repeated(company)
    members = np.asarray(company.places @ repeated.astype(np.float64))
    own = repeated[company.own]
    alone = (members == 1.0).astype(np.float64)
    fired, at_own = company.fired, company.places[:, company.own]
    total = np.asarray(fired.sum(0), np.float64)
    inside = np.asarray(fired.T @ (members >= 1.0).astype(np.float64)) - own * np.asarray(fired.T @ alone)
    crystal = np.count_nonzero(members) - own * np.asarray(at_own.T @ alone)
    outside = total - inside
    tied = _share(inside, crystal) >= TIED_FACTOR * _share(outside, company.frames - crystal)
    tied &= _chance(inside, total, crystal, company.frames) < TIED_CHANCE
    found: npt.NDArray[np.bool_] = (inside > 0) & (tied | (outside < fewest))
    return found


def _in_constant(company: _Company) -> npt.NDArray[np.bool_]:
    """Which candidates keep company with spots that have surroundings: of a crystal that is there in every frame."""
    one, other, both, counts = _pairs(company, np.unique(company.own))
    faithful = (company.supported[other] >= 0.5) & (2 * both >= np.maximum(counts[one], counts[other]))
    faithful &= both >= FEWEST_FIRINGS
    spots = np.bincount(one[faithful], minlength=len(company.cell))
    found: npt.NDArray[np.bool_] = spots[company.own] >= CRYSTAL_SPOTS
    return found


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """A part of a whole, 1 where there is no whole: what never was says nothing."""
    share: npt.NDArray[np.float64] = np.divide(part, whole, out=np.ones(np.shape(part)), where=np.asarray(whole) > 0)
    return share


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
