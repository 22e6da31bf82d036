"""Bragg spots of a run: kept as hits come, and now and then the estimate from them, beside all that must keep pace."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from analyzer.frame_peaks import FramePeaks
from analyzer.geometry import Geometry
from analyzer.parameters.bragg import CELL_UNCERTAINTY, BraggEstimate, BraggPrior, estimate_bragg
from analyzer.parameters.bragg_spots import BraggSpots
from analyzer.parameters.fit import Posterior
from analyzer.parameters.lattice import Cell
from analyzer.parameters.stand import SAME_CENTER_PX, Stand, moved

log = logging.getLogger(__name__)

FEWEST_HITS = 20
GROWTH = 0.2
"""New hits, as a share of those kept at the last estimate, that make another one worth its time."""

LEAST_PAUSE_S = 20.0
BUSY = 0.1
"""Most of the time that estimates take."""

_POLL_S = 1.0
_LEAST_PRIOR_SIGMA = 0.01
"""Of water's ln(L/E): it may be off by what no fit of it knows."""


@dataclass(frozen=True, slots=True)
class KnownCell:
    """Of the crystals of a run: edges (angstrom) and angles (degrees), Hermann-Mauguin symbol, relative uncertainty."""

    cell: Cell
    space_group: str | None = None
    uncertainty: float = CELL_UNCERTAINTY


class HitSpots:
    """The spots of hits of one geometry; another one begins anew. One thread adds, others may look.

    Another one is one that the header or the geometry file in use puts elsewhere, by more than `stand` takes for one
    place. A header may say that the detector moved where a geometry file with numbers of its own does not.
    """

    def __init__(self) -> None:
        self.kept: BraggSpots | None = None
        self._of: tuple[Stand | None, Geometry] | None = None
        self._newest = -1, -1

    def takes(self, header: Stand | None, geometry: Geometry, turn: tuple[int, int] = (0, 0)) -> bool:
        """Whether a frame belongs to the place of the spots; one whose header came later (``turn``) begins another.

        A late frame of another place is none of it. ``header`` is the frame's own.
        """
        same = self._of is not None and not _elsewhere(*self._of, header, geometry)
        if turn >= self._newest:
            self._newest = turn
            if not same:
                self.kept, self._of = None, (header, geometry)
                return True
        return same

    def add(self, seen: FramePeaks) -> None:
        """Keep the peaks of a hit that belongs here."""
        geometry = seen.plan.geometry
        if self.kept is None:
            self.kept = BraggSpots(geometry.pixel_size_m)
        x_px, y_px = geometry.positions_px(seen.peaks["fs"], seen.peaks["ss"])
        self.kept.add(x_px, y_px, seen.peaks["intensity"])

    def reset(self) -> None:
        """Forget the spots; their place stays."""
        self.kept = None


def _elsewhere(header: Stand | None, geometry: Geometry, new_header: Stand | None, new: Geometry) -> bool:
    away = math.hypot(new.beam_center_fs - geometry.beam_center_fs, new.beam_center_ss - geometry.beam_center_ss)
    same = (new.shape, new.pixel_size_m, new.panels) == (geometry.shape, geometry.pixel_size_m, geometry.panels)
    return not same or away > SAME_CENTER_PX or moved(header, new_header)


class BraggWatch:
    """Estimates from a run's spots when that is worth its time; ``latest`` may be read from any thread.

    ``spots`` gives those kept at the time, another object after another beginning; ``water`` what the diffuse
    scattering says.
    """

    def __init__(
        self, cell: KnownCell, spots: Callable[[], BraggSpots | None], water: Callable[[], Posterior | None]
    ) -> None:
        self._cell, self._spots, self._water = cell, spots, water
        self._lock = threading.Lock()
        self._found: tuple[BraggSpots, BraggEstimate] | None = None
        self._good: tuple[BraggSpots, BraggEstimate] | None = None
        self._again_at: tuple[BraggSpots | None, float] = None, 0.0
        self._next_s = -math.inf

    @property
    def latest(self) -> BraggEstimate | None:
        """The last estimate of the spots that are kept now, be it that there is none and why."""
        return self.of(self._spots())

    def of(self, spots: BraggSpots | None) -> BraggEstimate | None:
        """The last estimate, if it is of these spots."""
        found = self._found
        return found[1] if found is not None and found[0] is spots else None

    def watch(self, done: threading.Event) -> None:
        """Look until ``done``."""
        while not done.wait(_POLL_S):
            self.look()

    def look(self, now_s: float | None = None) -> BraggEstimate | None:
        """Estimate anew if it is time to (``now_s``: of a monotonic clock), some seconds; returns ``latest``."""
        now_s = time.monotonic() if now_s is None else now_s
        with self._lock:
            spots = self._spots()
            if spots is not None and now_s >= self._next_s and self._grown(spots):
                began = time.monotonic()
                self._estimate(spots)
                took = time.monotonic() - began
                self._next_s = now_s + max(LEAST_PAUSE_S, took / BUSY)
        return self.latest

    def finish(self) -> BraggEstimate | None:
        """At the end of a run: an estimate from what there is, unless the last one is of nearly as much."""
        with self._lock:
            spots, latest = self._spots(), self.latest
            if spots is not None and len(spots) and (latest is None or self._grown(spots)):
                self._estimate(spots)
        return self.latest

    def _grown(self, spots: BraggSpots) -> bool:
        tried, enough = self._again_at
        return spots.added >= (max(FEWEST_HITS, enough) if tried is spots else FEWEST_HITS)

    def _estimate(self, spots: BraggSpots) -> None:
        self._again_at = spots, spots.added + GROWTH * len(spots)
        cell = self._cell
        try:
            estimate = estimate_bragg(spots, cell.cell, cell.space_group, self._prior(spots), cell.uncertainty)
        except Exception:
            # Only shown, so a fault of it costs no frame; the water's estimate goes on.
            log.exception("photon energy and camera length from Bragg spots failed")
            return
        self._found = spots, estimate
        if estimate.reason is None:
            self._good = self._found

    def _prior(self, spots: BraggSpots) -> BraggPrior | None:
        """The last success with these spots, else what water says."""
        if self._good is not None and self._good[0] is spots:
            last = self._good[1]
            return BraggPrior(last.log_ratio, math.sqrt(last.covariance[0, 0]), last.center_shift_px)
        water = self._water()
        if water is None or water.reason is not None:
            return None
        return BraggPrior(float(water.mean[0]), max(math.sqrt(water.covariance[0, 0]), _LEAST_PRIOR_SIGMA))
