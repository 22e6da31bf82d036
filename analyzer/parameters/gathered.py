"""What a run gathers of one place of the detector: sums of diffuse scattering, and spots of hits.

A reader is far ahead of what is published, and several workers finish in any order. So a header counts from the first
frame taken under it, and not from when it was read: until then frames of the one before are taken, and after that its
late frames are not.
"""

from dataclasses import dataclass

from analyzer.parameters.bragg_spots import BraggSpots
from analyzer.parameters.bragg_watch import HitSpots
from analyzer.parameters.stand import Stand, moved
from analyzer.parameters.sums import RunningSums, Sums
from analyzer.reduction import FramePlan
from streamer.messages import SeriesMetadata
from streamer.series import Series

_MOST_LEFT = 16
"""Sums kept of headers before, for series that are not all published; 0.3 MB each on a 4M."""

_MOST_OPEN = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """What a series is told from: ``sums`` its frames are in, ``None`` where there are none, and ``spots``."""

    sums: Sums | None
    spots: BraggSpots | None


class Gathering:
    """Takes frames of one header after another; not for several threads at once."""

    def __init__(self, spots: HitSpots | None = None) -> None:
        self.sums, self.spots = RunningSums(), spots
        self._newest = -1, -1
        self._series: Series | None = None
        self._stand: Stand | None = None
        self._first: Stand | None = None
        self._numbers: dict[int, int] = {}
        self._left: dict[int, Gathered] = {}

    @property
    def header(self) -> SeriesMetadata | None:
        """That of the newest frames, ``None`` before the first."""
        return self.sums.header

    def takes(self, series: Series | None, plan: FramePlan) -> bool:
        """Whether a frame belongs to the sums; the first one of a later header begins them anew."""
        turn = (0, 0) if series is None else (series.ordinal, series.revision)
        stand = self._stand_of(series)
        # A geometry file with numbers of its own has one plan wherever the header says the detector is.
        same = self.sums.sectors is plan.sectors and not moved(self._first, stand)
        if turn < self._newest:
            return same
        if self.sums.sectors is not None and not same:
            self._leave()
        if self.sums.sectors is None:
            self._first = stand
            geometry = plan.geometry
            self.sums.begin(plan.sectors, geometry.shape, (geometry.beam_center_fs, geometry.beam_center_ss))
        elif turn[0] > self._newest[0]:
            self.sums.begin_latest()
        self._newest = turn
        self.sums.header = None if series is None else series.metadata
        return True

    def keeps_spots(self, series: Series | None, plan: FramePlan) -> bool:
        """Whether a hit's spots are of the place of those kept, as far as spots can tell; a later place begins anew."""
        if self.spots is None:
            return False
        turn = (0, 0) if series is None else (series.ordinal, series.revision)
        return self.spots.takes(self._stand_of(series), plan.geometry, turn)

    def belongs(self, series: Series | None) -> None:
        """A frame of this series is in the sums as they are now."""
        if series is not None:
            self._numbers[series.ordinal] = self.sums.number
            if len(self._numbers) > _MOST_OPEN:
                del self._numbers[next(iter(self._numbers))]

    def over(self, ordinal: int, *, copied: bool = True) -> Gathered | None:
        """What a series is told from once it is published, which is asked for once; ``None``: no frame of it is in.

        Not ``copied``: without sums that are still being added to.
        """
        number = self._numbers.pop(ordinal, None)
        if number is None:
            return None
        found = self._left.get(number)
        for each in self._left.keys() - set(self._numbers.values()):
            del self._left[each]
        if number != self.sums.number:
            return found
        return Gathered(self.sums.copy() if copied else None, None if self.spots is None else self.spots.kept)

    def reset(self) -> None:
        """Forget everything but which header is the newest."""
        self.sums.reset()
        self._numbers.clear()
        self._left.clear()

    def _leave(self) -> None:
        if self.sums.number in self._numbers.values():
            kept = None if self.spots is None else self.spots.kept
            self._left[self.sums.number] = Gathered(self.sums.copy(), kept)
            if len(self._left) > _MOST_LEFT:
                del self._left[next(iter(self._left))]
        self.sums.reset()

    def _stand_of(self, series: Series | None) -> Stand | None:
        if series is not self._series:
            self._series = series
            self._stand = None if series is None else Stand.of(series.metadata)
        return self._stand
