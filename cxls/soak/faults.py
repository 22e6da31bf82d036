"""The faults that a soak's replays commit, and what all of them together must show in the account."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sim_replay.faults import parse_specs
from sim_replay.faults.kinds import Where
from sim_replay.faults.ledger import Entry, Totals, read_report

IMAGE_CHANCE, SERIES_CHANCE = 0.0002, 0.02
"""Of each kind, where all are asked for: an hour at 200 images a second has some fifty to a hundred of every one."""


@dataclass(slots=True)
class Committed:
    """What was put on the wire: faults by kind, what they show, images of series without a start.

    ``same_id``: whether a series was followed by another of its id, so that ids tell them apart no more.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    totals: Totals = field(default_factory=Totals)
    headless: int = 0
    same_id: bool = False

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.kinds[entry.kind] += 1
            self.totals.add(entry.expected)
            if entry.kind == "drop_start":
                self.headless -= entry.expected.get("announced", 0)
            self.same_id |= entry.kind == "reboot" and entry.series_id == 1


def arguments(faults: str, protocol: str, first: bool) -> list[str]:
    """Options of a replay for what ``--faults`` asks for. Raises ``BadInput``.

    ``first``: no series came before. Over stream v1, which has no other name of a series than its number, a later
    replay does not count from 1 again: nobody could tell its series from earlier ones.
    """
    if faults == "none":
        return []
    if faults == "all":
        specs = parse_specs([f"all={SERIES_CHANCE}"])
        chances = [(s, SERIES_CHANCE if s.kind.where != Where.IMAGE else IMAGE_CHANCE) for s in specs]
    else:
        chances = [(spec, spec.chance) for spec in parse_specs([faults])]
    return [
        word
        for spec, chance in chances
        if protocol in spec.kind.streams and (first or protocol == "v2" or spec.kind.name != "reboot")
        for word in ("--fault", f"{spec.kind.name}{f'={chance}' if spec.at is None else f'@{spec.at}'}")
    ]


def committed(reports: Sequence[Path]) -> Committed:
    """Of all reports that replays wrote."""
    found = Committed()
    for report in reports:
        if report.exists():
            found.add(read_report(report))
    return found
