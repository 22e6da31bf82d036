"""What is odd about a stream and harms no image: told for information, never acted upon."""

from dataclasses import dataclass
from enum import StrEnum

from streamer.messages import ImageMessage

CLOCK_SLACK_S = 1.0
PAUSE_S = 0.15
_PERIODS = 10
_WEIGHT = 1 / 16
_MOST_STEPS = 4


class Oddity(StrEnum):
    """Label values of ``cxls_stream_oddities_total``."""

    REPEATED_START = "repeated_start"
    """the start of the running series once more; its metadata replaces what was said before"""
    REPEATED_END = "repeated_end"
    """the end of a series whose end has come"""
    LATE_IMAGE = "late_image"
    """an image whose id is below the highest of its series"""
    CLOCK_BACK = "clock_back"
    """the detector's clock is behind that of an image of a lower id"""
    CLOCK_JUMP = "clock_jump"
    """it went on by more than the frame time and the time since that image came, by over a second or 10 frame times"""
    PAUSE = "pause"
    """an image came later than its clock or the frame time accounts for, by over 0.15 s, 10 frame times and 10 times
    what images of its series took lately"""


@dataclass(slots=True)
class Rhythm:
    """How images of a series follow each other, by their ids, by when they come and by the detector's clock.

    ``pace_s``: what an id took lately, as a running mean.
    """

    image_id: int = -1
    came_s: float = 0.0
    clock_s: float | None = None
    pace_s: float | None = None

    def follow(self, image: ImageMessage, now_s: float, frame_time_s: float | None) -> list[Oddity]:
        """What is odd about the next image that was accepted; ``now_s`` is a monotonic clock."""
        ids, gap_s = image.image_id - self.image_id, now_s - self.came_s
        first, before_s, clock_s = self.image_id < 0, self.clock_s, image.start_time_s
        self.came_s = now_s
        if ids < 0:
            return [Oddity.LATE_IMAGE]
        self.image_id = image.image_id
        if clock_s is not None:
            self.clock_s = clock_s
        if first:
            return []
        odd = []
        period_s = frame_time_s or 0.0
        accounted_s = ids * period_s
        if clock_s is not None and before_s is not None:
            passed_s = clock_s - before_s
            if passed_s < 0:
                odd.append(Oddity.CLOCK_BACK)
            elif passed_s > max(accounted_s, gap_s) + max(CLOCK_SLACK_S, _PERIODS * period_s):
                odd.append(Oddity.CLOCK_JUMP)
            else:
                accounted_s = max(accounted_s, passed_s)
        took_s = gap_s / ids
        if self.pace_s is None:
            self.pace_s = took_s
            return odd
        if gap_s - accounted_s > max(PAUSE_S, _PERIODS * period_s, _PERIODS * self.pace_s):
            odd.append(Oddity.PAUSE)
        # One long gap is not the pace; many are.
        self.pace_s += (min(took_s, _MOST_STEPS * max(self.pace_s, PAUSE_S / _PERIODS)) - self.pace_s) * _WEIGHT
        return odd
