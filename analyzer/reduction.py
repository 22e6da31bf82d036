"""One pass from pixels to what every decision needs: background, significance, peaks.

A frame at a compact source is nearly empty, so one fast scan lists its nonzero pixels and
everything after works on that list. The background is a mean count for each radial and
azimuthal bin, estimated so that Bragg light does not enter. Significance of n counts where
b are expected is the surprise -ln Poisson(n; b) of an excess: a scale on which frames of any
flux and any water compare, and on which ln(number of pixels) is what chance reaches once a
frame. It is taken over one pixel, the best 2 x 2 and the 3 x 3 around each nonzero pixel,
and its largest value in each 8 x 8 cell makes a map, so that a single bright pixel survives the
reduction; what supports a pixel, the eight around it, tells a spot from a hot pixel, and that of
the cell as a whole gathers streaks and spots too weak to hold two photons side by side. The
network sees how many cells are how significant at which radius, what all windows at that radius together say of spots,
and the strongest cells one by one. Peaks are among the pixels that are surprising on any scale; what decides is how
much likelier the counts around one are with a spot than without (``analyzer.spots``), and on a powder ring with a spot
than by what its own radius counts (``analyzer.arcs``).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import minimum_filter

from analyzer import arcs, diffuse, evidence, kernels, zones
from analyzer.geometry import BinMap, Geometry, bin_map
from analyzer.kernels import CELL, PEAK_DTYPE
from analyzer.parameters.profile import Sectors, fill_profile, sectors
from analyzer.spots import DISTANCES, REACH
from streamer.buffers import touched
from streamer.listing import Listing, bitmap
from streamer.messages import ImageData
from streamer.validity import Validity, sentinel

CANDIDATE_NATS = 9.0
"""A pixel is looked at for a spot when it, or the 2 x 2 or 3 x 3 around it, is at least this surprising."""

PEAK_MARGIN_NATS = -0.3
"""Evidence that a peak needs beyond the logarithm of the number of pixels."""

MAX_PEAKS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class FramePlan:
    """Everything about a series' frames that does not change from frame to frame.

    ``inside`` (ss * fs,) uint8: 0 invalid, 1 valid, 2 valid with all eight neighbours valid; ``surrounded``: a bit for
    each pixel that is 2, 64 a word; ``roomy``: for each around which the whole window of ``analyzer.spots`` is valid.
    ``bin_pixels`` (bins,) float64: valid pixels of each bin. ``cell_valid`` (rows, columns)
    float32: valid share of each cell of the map; ``cell_pixels``, ``log_cell_pixels`` (rows * columns,): how many they
    are, and the logarithm; ``cell_bin``, ``cell_zone`` and ``cell_radius_m``
    (rows * columns,): of its middle. ``bin_zone`` (bins,): zone of each bin. ``place`` (ss * fs,) uint16:
    see ``analyzer.diffuse``; ``place_pixels`` (2, bins * 4) float64: valid pixels of each place, those with an invalid
    neighbour and the others. ``sectors``: bins of the profile that parameters are estimated from.
    ``panels``: see ``Geometry.panel_table``.
    """

    geometry: Geometry
    validity: Validity
    bins: BinMap
    inside: npt.NDArray[np.uint8]
    surrounded: npt.NDArray[np.uint64]
    roomy: npt.NDArray[np.uint64]
    bin_pixels: npt.NDArray[np.float64]
    cell_valid: npt.NDArray[np.float32]
    cell_pixels: npt.NDArray[np.float64]
    log_cell_pixels: npt.NDArray[np.float64]
    cell_bin: npt.NDArray[np.intp]
    cell_zone: npt.NDArray[np.uint8]
    cell_radius_m: npt.NDArray[np.float64]
    bin_zone: npt.NDArray[np.intp]
    place: npt.NDArray[np.uint16]
    place_pixels: npt.NDArray[np.float64]
    sectors: Sectors
    saturation: int
    peak_threshold: float
    panels: npt.NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        return self.geometry.shape


def make_plan(geometry: Geometry, validity: Validity, saturation: int) -> FramePlan:
    """Prepare the reduction of frames of one shape, geometry and mask."""
    rows, columns = geometry.shape
    valid = validity.valid
    padded = np.zeros((rows + 2, columns + 2), np.uint8)
    padded[1:-1, 1:-1] = valid
    around = np.ones((rows, columns), np.uint8)
    for dy in range(3):
        for dx in range(3):
            around &= padded[dy : dy + rows, dx : dx + columns]
    bins = bin_map(geometry)
    bin_pixels = np.bincount(bins.bin_of[valid.reshape(-1) != 0], minlength=bins.bins).astype(np.float64)
    cell_rows, cell_columns = -(-rows // CELL), -(-columns // CELL)
    whole = np.zeros((cell_rows * CELL, cell_columns * CELL), np.float32)
    whole[:rows, :columns] = valid
    cell_valid = whole.reshape(cell_rows, CELL, cell_columns, CELL).mean((1, 3))
    middles = [
        np.minimum(np.arange(n) * CELL + CELL // 2, size - 1)
        for n, size in zip(cell_valid.shape, valid.shape, strict=True)
    ]
    cell_bin = bins.bin_of.reshape(rows, columns)[np.ix_(*middles)]
    cell_pixels = cell_valid.reshape(-1).astype(np.float64) * CELL**2
    pixels = max(1, int(valid.sum()))
    inside = (valid + (valid & around)).reshape(-1)
    place = diffuse.places(geometry, bins)
    profile_bins, place_pixels = sectors(geometry, bins, place, inside)
    return FramePlan(
        geometry,
        validity,
        bins,
        inside,
        bitmap(inside == 2),
        bitmap(minimum_filter(valid, 2 * REACH + 1, mode="constant").reshape(-1) != 0),
        bin_pixels,
        cell_valid,
        cell_pixels,
        np.log(np.maximum(cell_pixels, 1.0)),
        cell_bin.reshape(-1).astype(np.intp),
        zones.zone_of_cells(geometry),
        zones.cell_radius_m(geometry).reshape(-1),
        zones.zone_of_bins(geometry, bins.radial_bins),
        place,
        place_pixels,
        profile_bins,
        saturation,
        float(np.log(pixels)) + PEAK_MARGIN_NATS,
        geometry.panel_table(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """What frames of a plan covered.

    ``seen``: a bit for each pixel that has ever counted, 64 a word; ``expected`` (bins,): the background summed.
    """

    plan: FramePlan
    seen: npt.NDArray[np.uint64]
    expected: npt.NDArray[np.float64]

    @staticmethod
    def none(plan: FramePlan) -> "Coverage":
        """Of no frame yet."""
        return Coverage(plan, np.zeros(-(-plan.inside.size // 64), np.uint64), np.zeros(plan.bins.bins))


class Workspace:
    """The buffers one worker reuses for frames of one plan and type; nothing is allocated a frame.

    A frame comes in by ``load``, or is written to ``pixels`` (ss, fs). After ``reduce``: ``significance`` (4, rows,
    columns) float32 of the cell, of one pixel, of 2 x 2 and 3 x 3 and of what supports a pixel;
    ``zones`` (ZONES, COLUMNS) and ``cells`` (STRONGEST, CELL_COLUMNS) float32, see
    ``analyzer.zones``; ``photons`` and ``pixels_counted`` (bins,) without the pixels of spots;
    ``background`` (bins,) photons a pixel; ``diffuse`` (bins * 4, 2) photons and their squares of the pixels that
    ``analyzer.diffuse`` keeps, ``diffuse_pixels`` (bins * 4,) how many pixels they stand for, ``pairs`` (bins,) the
    n (n - 1) expected among them. ``coverage`` takes in every frame; who reduces
    several series puts one there for each.
    """

    def __init__(self, plan: FramePlan, dtype: np.dtype[Any]) -> None:
        rows, columns = plan.shape
        count = rows * columns
        self.plan = plan
        self.dtype = dtype
        self._listing = Listing(plan.validity.valid, dtype)
        self._listed = False
        self._at = touched(count, np.uint16)
        self._claimed = touched(count, np.uint8)
        self.coverage = Coverage.none(plan)
        bins = plan.bins.bins
        self.photons = np.zeros(bins)
        self.pixels_counted = np.zeros(bins)
        self.background = np.zeros(bins)
        self._occupied, self._scratch, self._most = np.zeros(bins), np.zeros(bins), np.zeros(bins)
        self._log_background, self._facts = np.zeros(bins), np.zeros((bins, kernels.FACTS))
        places = bins * kernels.QUADRANTS
        self.diffuse, self._areas = np.zeros((places, 2)), np.zeros((2, places))
        self.diffuse_pixels, self.pairs = np.zeros(places), np.zeros(bins)
        self._kept_mean, self._kept_area = np.zeros(bins), np.zeros(bins)
        self._most_alone, self._most_around = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        self.significance = np.zeros((zones.SCALES, *plan.cell_valid.shape), np.float32)
        cells = plan.cell_valid.size
        self._cells = np.zeros((*plan.cell_valid.shape, zones.SCALES), np.float32)
        self._lit_cells = touched(cells + 1, np.int64)
        self.zones = np.zeros((zones.ZONES, zones.COLUMNS), np.float32)
        self._evidence = np.zeros((zones.ZONES, len(evidence.RATES)))
        self._levels = np.zeros((zones.ZONES, zones.SCALES * len(zones.LEVELS)), np.float32)
        self.cells = np.zeros((zones.STRONGEST, zones.CELL_COLUMNS), np.float32)
        self._strength, self._strongest = touched(cells, np.float64), np.zeros(zones.STRONGEST, np.int64)
        self._candidate_index = touched(65536, np.int64)
        self._candidate_score = touched(65536, np.float64)
        self._distance_counts = np.zeros((3, len(DISTANCES)))
        self._claim_index = touched(1 << 20, np.int64)
        self._peaks = np.zeros(MAX_PEAKS, PEAK_DTYPE)
        self._picked = np.zeros(MAX_PEAKS, np.int64)
        self._parts, self._beside = np.zeros((arcs.PARTS, arcs.BINS + 1, 3)), np.zeros((arcs.BINS, 3))
        self._expected = np.zeros(25)
        self._totals = np.zeros(3, np.int64)

    @property
    def pixels(self) -> npt.NDArray[Any]:
        """(ss, fs): the frame, unpacked by ``load`` or written by the caller."""
        return self._listing.pixels

    def load(self, image: ImageData) -> None:
        """Unpack a frame into ``pixels``, to be reduced next. Raises ``UndecodableImage``."""
        self._listing.unpack(image)
        self._listed = True

    def reduce(self) -> "Reduced":
        """Reduce the frame in ``pixels``. The arrays in the result are views valid until the next call."""
        plan, listing = self.plan, self._listing
        if not self._listed:
            listing.search()
        self._listed = False
        index, value, blank = listing.index, listing.value, listing.blank
        at = self._at[: len(index)]
        pixels, top, inside, bin_of = listing.flat, sentinel(self.dtype), plan.inside, plan.bins.bin_of
        columns, occupied, scratch, logs = plan.shape[1], self._occupied, self._scratch, self._log_background
        kernels.tally(
            index, value, blank, plan.saturation, plan.place, at, self.coverage.seen, self.photons, occupied,
            scratch, self._totals,
        )  # fmt: skip
        np.subtract(plan.bin_pixels, scratch, out=self.pixels_counted)
        kernels.estimate_background(
            value, at, self.photons, self.pixels_counted, occupied, scratch, self._most, self.background
        )
        np.log(self.background, out=logs)
        diffuse.limits(self.background, self._most_alone, self._most_around)
        candidates = kernels.map_significance(
            pixels, listing.lit, index, value, at, columns, top, plan.surrounded, self.background, logs, CANDIDATE_NATS,
            self._cells, evidence.BY_COUNTS, self._facts, plan.bin_zone, self._evidence, self._candidate_index,
            self._candidate_score, self._most_alone, self._most_around, self.diffuse,
        )  # fmt: skip
        lit_cells = kernels.weigh_cells(
            self._cells, plan.cell_bin, plan.cell_pixels, plan.log_cell_pixels, self.background, logs,
            self.significance, plan.cell_zone, zones.LEVELS, self._levels, self._lit_cells, self._strength,
        )  # fmt: skip
        kernels.list_strongest(
            self._lit_cells, lit_cells, self._strength, self.significance, plan.cell_valid, plan.cell_radius_m,
            plan.cell_bin, plan.cell_pixels, self.background, self._strongest, self.cells,
        )  # fmt: skip
        self.zones[:, zones.LIGHT : zones.FIRST_LEVEL] = self._evidence
        self.zones[:, zones.FIRST_LEVEL :] = self._levels
        self.zones[:, 0] = self._of_zones(self.photons)
        beside = self._parts, self._beside, self._expected
        found = kernels.find_peaks(
            pixels, listing.lit, plan.roomy, columns, top, plan.saturation, inside, bin_of, self.background,
            plan.peak_threshold, self._candidate_index, self._candidate_score, candidates, plan.panels, *beside,
            self._distance_counts, self._claimed, self._claim_index, self._peaks, self._picked, self._totals,
        )  # fmt: skip
        self._areas[:] = plan.place_pixels
        kernels.leave_out_spots(
            pixels, columns, top, inside, plan.place, self.photons, self.pixels_counted, self._claimed,
            self._claim_index, self._totals[2], blank, self._most_alone, self._most_around, self.diffuse, self._areas,
        )  # fmt: skip
        # After the profiles and what the network sees, which peaks on rings were always left out of.
        found = kernels.judge_beside(
            pixels, columns, top, plan.saturation, inside, bin_of, self.background, plan.peak_threshold,
            self._candidate_index, self._candidate_score, candidates, plan.panels, *beside, self._distance_counts,
            self._claimed, self._claim_index, self._peaks, found, self._picked,
        )  # fmt: skip
        self._kept_mean[:] = self.background
        kernels.diffuse_areas(
            self.diffuse, self._areas, self._most_alone, self._most_around, self._kept_mean, scratch,
            self._kept_area, self.diffuse_pixels, self.pairs,
        )  # fmt: skip
        self.zones[:, 1] = self._of_zones(self.photons)
        self.zones[:, 2] = self._of_zones(self.pixels_counted)
        self.zones[:, 3] = self._of_zones(np.multiply(self.background, plan.bin_pixels, out=scratch))
        self.coverage.expected[:] += self.background
        return Reduced(
            significance=self.significance,
            peaks=self._peaks[:found],
            photons=self.photons,
            pixels_counted=self.pixels_counted,
            total_photons=int(self._totals[0]),
            saturated_pixels=int(self._totals[1]),
            background_photons=float(self.background @ plan.bin_pixels),
        )

    def profile(self) -> "FrameProfile":
        """The profile of the frame that was reduced last, in arrays of its own."""
        out = np.empty((3, self.plan.sectors.bins), np.float32)
        fill_profile(self.plan.sectors, self.diffuse, self.diffuse_pixels, out)
        return FrameProfile(self.plan, out, float(self.pairs.sum()))

    def _of_zones(self, bins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.bincount(self.plan.bin_zone, bins, zones.ZONES).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class FrameProfile:
    """A frame's diffuse scattering. ``profile`` (3, bins) float32: see ``analyzer.parameters.profile``.

    ``pairs``: n (n - 1) expected among the pixels it is of, if the detector counts every photon.
    """

    plan: FramePlan
    profile: npt.NDArray[np.float32]
    pairs: float


SUSPECT_COUNTS = 30.0
"""A pixel that stayed zero where this many counts were expected is suspect (chance: 1e-13)."""


def suspect_pixels(covered: list[Coverage]) -> npt.NDArray[np.intp]:
    """Valid pixels (flat indices) that never counted although at least ``SUSPECT_COUNTS`` were expected.

    ``covered``: of one series, of one shape.
    """
    plan = covered[0].plan
    enough = np.sum([each.expected for each in covered], 0) >= SUSPECT_COUNTS
    if not enough.any():
        return np.empty(0, np.intp)
    words = np.bitwise_or.reduce([each.seen for each in covered])
    seen = np.unpackbits(words.view(np.uint8), count=plan.inside.size, bitorder="little").astype(bool)
    return np.flatnonzero((plan.inside != 0) & ~seen & enough[plan.bins.bin_of])


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """What is left of a frame: see ``Workspace`` for shapes.

    ``peaks`` has ``PEAK_DTYPE``: centroid as pixel indices, net photons in 5 x 5 or, of bright and of large
    spots, in all their pixels, net photons over the root of all counts there. ``background_photons``
    is the background's expected sum over the valid pixels.
    """

    significance: npt.NDArray[np.float32]
    peaks: npt.NDArray[Any]
    photons: npt.NDArray[np.float64]
    pixels_counted: npt.NDArray[np.float64]
    total_photons: int
    saturated_pixels: int
    background_photons: float
