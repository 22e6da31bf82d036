"""Does the header's check say what is wrong, soon, and nothing where all is right? On sums of drawn profiles.

One look decides here, where a run takes several in a row to raise an alarm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from analyzer.parameters.scattering import Scattering
from sim_replay.detector import CONDITIONS, Detector
from training.evaluation.evaluation import Cell as Shown
from training.evaluation.evaluation import Table
from training.evaluation.parameter_profiles import Profiles
from training.evaluation.parameter_study import WRONG_CENTER_PX, Estimators, contradicts

SUM_FRAMES = 1000
"""Frames of a look at a right header: what the latest frames' sum remembers."""

WRONG_FRAMES = 2000
WRONG_BY = 0.03
WRONG_LOOKS = 20
_SHIFTS = 10
_HEADERS = {
    "photon energy +3 %": (1.0 + WRONG_BY, 1.0),
    "photon energy -3 %": (1.0 - WRONG_BY, 1.0),
    "camera length +3 %": (1.0, 1.0 + WRONG_BY),
    "camera length -3 %": (1.0, 1.0 - WRONG_BY),
}


@dataclass(slots=True)
class Alarms:
    """Of one condition: ``looks`` at a right header, how many called it wrong; how many found each wrong one."""

    condition: int
    looks: int = 0
    false: int = 0
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_HEADERS, 0))


def study_alarms(
    detector: Detector, tables: Scattering, conditions: Sequence[int], frames: int, seed: int,
    after_look: Callable[[int, int], None],
) -> list[Alarms]:  # fmt: skip
    """Look at right headers for so many ``frames`` in all, and at wrong ones ``WRONG_LOOKS`` times a condition."""
    profiles = Profiles(detector)
    estimators = Estimators(profiles, tables)
    looks = -(-frames // SUM_FRAMES // len(conditions))
    total, done = len(conditions) * (looks + WRONG_LOOKS), 0
    found = []
    for number in conditions:
        condition, row = CONDITIONS[number], Alarms(number)
        rng = np.random.default_rng((seed, number, SUM_FRAMES))
        shifts = rng.uniform(-WRONG_CENTER_PX, WRONG_CENTER_PX, (_SHIFTS, 2))
        expected = [profiles.expected(condition, shift) for shift in shifts]
        for look in range(looks + WRONG_LOOKS):
            right = look < looks
            sum_frames = SUM_FRAMES if right else WRONG_FRAMES
            drawn = profiles.draw(expected[look % _SHIFTS], 1.0, sum_frames, rng)
            posterior = estimators.posterior(drawn, sum_frames)
            if right:
                row.looks += 1
                row.false += contradicts(posterior, condition.photon_energy_eV, condition.camera_length_m)
            else:
                for name, (energy, length) in _HEADERS.items():
                    row.found[name] += contradicts(
                        posterior, condition.photon_energy_eV * energy, condition.camera_length_m * length
                    )
            done += 1
            after_look(done, total)
        found.append(row)
    return found


def alarm_table(alarms: Sequence[Alarms]) -> Table:
    """A line a condition, and one of all."""
    rows: list[tuple[Shown, ...]] = []
    for row in alarms:
        condition = CONDITIONS[row.condition]
        name = f"{row.condition}: {condition.camera_length_m:g} m, {condition.photon_energy_eV / 1e3:g} keV"
        rows.append((name, row.looks * SUM_FRAMES, row.false, *(row.found[each] for each in _HEADERS)))
    rows.append((
        "all", sum(row.looks for row in alarms) * SUM_FRAMES, sum(row.false for row in alarms),
        *(sum(row.found[each] for row in alarms) for each in _HEADERS),
    ))  # fmt: skip
    note = (
        f"right: looks at sums of {SUM_FRAMES} frames; wrong by so much: looks of {WRONG_LOOKS} at sums of "
        f"{WRONG_FRAMES} frames that say so; one look, where a run takes several in a row"
    )
    heads = ("condition", "frames with a right header", "false alarms", *_HEADERS)
    return Table("Headers that are right, and wrong", heads, tuple(rows), note, 3)
