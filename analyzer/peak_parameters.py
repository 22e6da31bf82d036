"""What can be asked of peak finding and of the rules on peaks, by the names that settings and /control/peaks have.

One table of ranges serves both. A finder's own numbers are kept also while another finder is in use.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from analyzer.cascade import CascadeSettings
from analyzer.peak_finder import BUILT_IN, BY_BUNDLE, LEARNED, FinderKind, Peakfinder8Finder
from analyzer.peakfinder8 import Peakfinder8Settings, Statistics
from analyzer.results import HitRule

COUNTED = "peakfinder8-poisson"
FINDERS = (BY_BUNDLE.name, BUILT_IN.name, LEARNED.name, "peakfinder8", COUNTED)
HIT_RULES = tuple(str(rule) for rule in HitRule)
_MOST_PEAKS = 100_000
_FARTHEST_PX = 100_000.0


class BadPeaks(ValueError):
    """Peak parameters that cannot be: one line that names the key and its range."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``; ``whole`` ones, and null for the default where it may be."""

    low: float
    high: float
    whole: bool = False
    null: bool = False

    def __str__(self) -> str:
        text = f"{'a whole number' if self.whole else 'a number'} from {self.low:g} to {self.high:g}"
        return text + (" or null" if self.null else "")

    def has(self, value: object) -> bool:
        if value is None:
            return self.null
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= self.high


RANGES: dict[str, Range | tuple[str, ...]] = {
    "min_peaks": Range(1, _MOST_PEAKS, whole=True),
    "indexable_peaks": Range(1, _MOST_PEAKS, whole=True),
    "hit_rule": HIT_RULES,
    "finder": FINDERS,
    "pf8_threshold": Range(0, 1e6, null=True),
    "pf8_min_snr": Range(0.01, 30, null=True),
    "pf8_min_pix_count": Range(1, 1000, whole=True),
    "pf8_max_pix_count": Range(1, 1000, whole=True),
    "pf8_local_bg_radius": Range(1, 20, whole=True),
    "pf8_min_res": Range(0, _FARTHEST_PX),
    "pf8_max_res": Range(0, _FARTHEST_PX, null=True),
}
"""What can be changed while frames arrive, and what it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pf8Options:
    """Peakfinder8's numbers as they were asked for; ``None``: the default of the statistics that are used.

    Counts and pixels, as ``Peakfinder8Settings``. Raises ``ValueError`` for values without sense.
    """

    pf8_threshold: float | None = None
    pf8_min_snr: float | None = None
    pf8_min_pix_count: int = 1
    pf8_max_pix_count: int = 200
    pf8_local_bg_radius: int = 3
    pf8_min_res: float = 0.0
    pf8_max_res: float | None = None

    def settings(self, statistics: Statistics) -> Peakfinder8Settings:
        """Settings of a finder. Raises ``ValueError``."""
        # Photons are counted, so that with their own statistics no count is too low, and chance alone decides.
        counted = statistics == Statistics.POISSON
        threshold, min_snr = self.pf8_threshold, self.pf8_min_snr
        return Peakfinder8Settings(
            threshold=(0.0 if counted else 3.0) if threshold is None else threshold,
            min_snr=(6.0 if counted else 5.0) if min_snr is None else min_snr,
            min_pix_count=self.pf8_min_pix_count,
            max_pix_count=self.pf8_max_pix_count,
            local_bg_radius=self.pf8_local_bg_radius,
            min_res=self.pf8_min_res,
            max_res=self.pf8_max_res,
            statistics=statistics,
        )


_PF8 = tuple(field.name for field in fields(Pf8Options))


def finder_of(name: str, options: Pf8Options) -> FinderKind:
    """The finder of this name of ``FINDERS``. Raises ``ValueError``."""
    for known in (BY_BUNDLE, BUILT_IN, LEARNED):
        if name == known.name:
            return known
    return Peakfinder8Finder(options.settings(Statistics.POISSON if name == COUNTED else Statistics.GAUSSIAN))


def peaks_in_force(cascade: CascadeSettings, options: Pf8Options) -> dict[str, Any]:
    """Every key of ``RANGES`` with its value."""
    return {
        "min_peaks": cascade.min_peaks,
        "indexable_peaks": cascade.indexable_peaks,
        "hit_rule": str(cascade.hit_rule),
        "finder": cascade.finder.name,
        **asdict(options),
    }


def changed(
    cascade: CascadeSettings, options: Pf8Options, changes: Mapping[str, object]
) -> tuple[CascadeSettings, Pf8Options]:
    """Both with ``changes``, keys of ``RANGES``. Raises ``BadPeaks``."""
    for key, value in changes.items():
        _check(key, value)
    given: dict[str, Any] = dict(changes)
    new = replace(options, **{key: given[key] for key in _PF8 if key in given})
    try:
        for statistics in Statistics:
            new.settings(statistics)
    except ValueError as error:
        raise BadPeaks(f"pf8_{error}") from None
    rules: dict[str, Any] = {key: given[key] for key in ("min_peaks", "indexable_peaks") if key in given}
    if "hit_rule" in given:
        rules["hit_rule"] = HitRule(given["hit_rule"])
    return replace(cascade, **rules, **_finders(cascade, new, given.get("finder"), new != options)), new


def _finders(cascade: CascadeSettings, options: Pf8Options, name: str | None, other_numbers: bool) -> dict[str, Any]:
    """Finders made anew where their name or their numbers change."""
    made: dict[str, Any] = {}
    if name is not None and name != cascade.finder.name:
        made["finder"] = finder_of(name, options)
    if other_numbers:
        made.setdefault("finder", finder_of(cascade.finder.name, options))
        if cascade.shadow is not None:
            made["shadow"] = finder_of(cascade.shadow.name, options)
    return made


def _check(key: str, value: object) -> None:
    allowed = RANGES.get(key)
    if allowed is None:
        raise BadPeaks(f"unknown key {key[:60]!a}; known are {', '.join(RANGES)}")
    good = allowed.has(value) if isinstance(allowed, Range) else value in allowed
    if not good:
        wanted = allowed if isinstance(allowed, Range) else f"one of {', '.join(allowed)}"
        raise BadPeaks(f"{key} is {_shown(value)}; give {wanted}")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "too large"
    if isinstance(value, float) and not math.isfinite(value):
        return "no number"
    return ascii(value)[:60]
