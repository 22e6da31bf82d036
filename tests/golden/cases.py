"""The golden cases: which committed series are analysed with which settings of ``cxls analyze``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
INPUTS, RECORDS = HERE / "inputs", HERE / "records"
SUMS = INPUTS / "SHA256SUMS"

CRYSTALS = ("near", "middle", "far", "faint", "part")
"""Simulated frames of an EIGER2 4M, with a crystal and without: of 0.15, 0.25 and 0.35 m, one at few photons, and an
eighth of the detector with the beam at its rim."""

EDGES = ("edges-16", "edges-32", "edges-8", "all-masked", "no-header", "beam-off")
"""Frames made by hand: ``make_inputs`` says what is in each."""


@dataclass(frozen=True, slots=True)
class Case:
    """``series``: in this order; ``settings``: as of the command line; ``fields``: those kept, all if none is named."""

    series: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    fields: tuple[str, ...] = ()


_DECIDED = ("status", "decision", "hit", "hit_probability", "hit_rule", "indexable", "peak_count", "bundle")


def _finder(name: str) -> Case:
    return Case((*CRYSTALS, *EDGES), {"peak_finder": name, "hit_rule": "peaks"})


def _rule(name: str, **settings: Any) -> Case:
    settings = {"hit_rule": name, "min_peaks": 10, **settings}
    return Case((*CRYSTALS, "edges-16"), settings, _DECIDED)


CASES: dict[str, Case] = {
    "default": Case((*CRYSTALS, *EDGES)),
    "rule-peaks": _rule("peaks"),
    "rule-either": _rule("either", threshold=0.99),
    "rule-both": _rule("both", threshold=0.9, indexable_peaks=20),
    "finder-learned": _finder("learned"),
    "finder-peakfinder8": _finder("peakfinder8"),
    "finder-peakfinder8-poisson": _finder("peakfinder8-poisson"),
    "geometry-and-mask": Case(("part",), {"geometry": INPUTS / "moved.geom", "mask": f"{INPUTS}/patch.h5:mask"}),
    "attributes": Case(("middle", "edges-16"), {"model": (str(INPUTS / "peak-model"), str(INPUTS / "energy-model"))}),
    "channel-1": Case(("two-channels",)),
    "channel-2": Case(("two-channels",), {"channel": "threshold_2"}),
}
