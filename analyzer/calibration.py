"""What a blank run says of a beam line: its false hits, and the threshold that keeps them rare.

A calibration is one JSON file. It holds the scores of the blank frames themselves, so that the
false-hit rate of every rule and threshold follows from it, and it belongs to one bundle: the scores
of another mean something else.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from analyzer.bundle import HitCard
from analyzer.circumstances import Circumstances
from analyzer.drift import ScoreReference, score_histogram, share_above
from analyzer.intervals import wilson
from analyzer.placing import placed
from analyzer.results import HitRule
from streamer.text_files import read_text

FORMAT = 1
MAX_FILE_BYTES = 64 << 20
"""A blank run of two million frames."""

FEWEST_FRAMES = 30
"""From fewer blank frames not even a false-hit rate of 10 % can be told."""

LOWEST_THRESHOLD = 0.05
"""No threshold is set below: at even odds such a frame is 19 times likelier empty than not."""

BLANK_SHARE = 0.1
"""Share of blank frames above the level from which faint crystals are counted."""

_STEP = 1e-6  # of the probabilities in records


class BadCalibration(ValueError):
    """A calibration that cannot be used: one line with what, where and what to do."""


class Rate(NamedTuple):
    """A share of frames with its interval of 95 %.

    spans: the interval is no matter of chance, but of what is in the frames, and nobody measured which: the rate may
    lie anywhere in it, and does so in every window.
    """

    estimate: float
    low: float
    high: float
    spans: bool = False


UNKNOWN_RATE = Rate(0.0, 0.0, 1.0, spans=True)
"""What is assumed of a false-hit rate that nobody measured: a corrected ratio then has no lower bound but 0."""

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A blank run. ``probabilities`` and ``peak_counts``: of its frames with beam, in order, as in records.

    ``false_hits`` is the rate that ``threshold`` was set for, ``false_hits_asked`` the rate that was
    wanted. ``mask`` is the one that was applied, ``warnings`` what was odd about the run. ``circumstances``: what it
    was measured with, ``None`` in files of older programs, which hold for any run.
    """

    format: int
    bundle: str
    prior: _Share
    threshold: _Share
    false_hits: _Share
    false_hits_asked: _Share
    probabilities: list[_Share]
    peak_counts: list[_Count]
    no_beam_frames: _Count = 0
    created: str = ""
    sources: list[str] = []
    photon_energy_eV: float | None = None
    camera_length_m: float | None = None
    mask: str | None = None
    warnings: list[str] = []
    circumstances: Circumstances | None = None

    def __post_init__(self) -> None:
        if len(self.probabilities) != len(self.peak_counts):
            raise ValueError(f"{len(self.probabilities)} probabilities and {len(self.peak_counts)} peak counts")
        if len(self.probabilities) < FEWEST_FRAMES:
            raise ValueError(f"{len(self.probabilities)} blank frames, at least {FEWEST_FRAMES} are needed")

    def false_hits_of(self, rule: HitRule, min_peaks: int, threshold: float) -> Rate:
        """The false-hit rate of a rule on the blank frames.

        Wilson's interval. A threshold that was set right above one of the scores was chosen by them, so that k frames
        at or above it mean k + 1 of n + 1: the next frame is as likely as any to be the highest. Where the
        calibration kept the bundle's threshold or the lowest, no score chose it.
        """
        scores = np.asarray(self.probabilities)
        by_network = scores >= threshold
        by_peaks = np.asarray(self.peak_counts) >= min_peaks
        called = {
            HitRule.NETWORK: by_network,
            HitRule.PEAKS: by_peaks,
            HitRule.EITHER: by_network | by_peaks,
            HitRule.BOTH: by_network & by_peaks,
        }[rule]
        hits, frames = int(called.sum()), len(called)
        chosen = threshold == self.threshold and bool(np.any(np.abs(scores + _STEP - threshold) < 0.75 * _STEP))
        if rule == HitRule.NETWORK and chosen:
            return Rate((hits + 1) / (frames + 1), wilson(hits, frames)[0], wilson(hits + 1, frames + 1)[1])
        return Rate(hits / frames, *wilson(hits, frames))


class ChosenThreshold(NamedTuple):
    """A threshold and the false-hit rate it is set for; ``supported`` unless fewer frames than needed."""

    threshold: float
    false_hits: float
    supported: bool


def choose_threshold(probabilities: npt.ArrayLike, false_hits: float, bundle_threshold: float) -> ChosenThreshold:
    """The threshold that a share ``false_hits`` of blank frames is expected to reach.

    n frames of which none is called still allow a rate of 3/n (at 95 %): a rarer one cannot be
    set from them. Then the threshold is that of 3/n, or the bundle's where that is higher.
    """
    scores = np.sort(np.asarray(probabilities, np.float64))[::-1]
    frames = len(scores)
    supported = false_hits * frames >= 3
    rate = min(1.0, max(false_hits, 3 / frames))
    # Above the score of rank k + 1 the next frame comes with a chance of (k + 1) / (n + 1).
    allowed = max(0, math.floor(rate * (frames + 1) + 1e-9) - 1)
    threshold = max(float(scores[min(allowed, frames - 1)]) + _STEP, LOWEST_THRESHOLD)
    if not supported:
        threshold = max(threshold, bundle_threshold)
    return ChosenThreshold(min(1.0, round(threshold, 6)), rate, supported)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How hits are called in a run and what is known of it.

    ``prior`` is that of the probabilities; ``false_hits`` the rate of frames without a crystal that
    are called hits; ``references`` the score distributions to compare with, by origin. ``blank_level``
    is a hit probability far below the threshold with the share of blank frames that reach it, where
    a calibration tells.
    """

    threshold: float
    prior: float
    false_hits: Rate
    references: dict[str, ScoreReference] = field(default_factory=dict)
    blank_level: tuple[float, Rate] | None = None


def operating_point(
    card: HitCard,
    rule: HitRule = HitRule.NETWORK,
    min_peaks: int = 5,
    threshold: float | None = None,
    calibration: Calibration | None = None,
    elsewhere: bool = False,
) -> OperatingPoint:
    """The point a run works at: an explicit threshold before the calibration's before the bundle's.

    elsewhere: the calibration was measured with something else than this run has. Its rate then remains the
    estimate, within bounds that hold without it too, and faint crystals are not counted by it.
    """
    if threshold is None:
        threshold = card.threshold if calibration is None else calibration.threshold
    references = {}
    if card.score_reference_empties:
        references["bundle"] = ScoreReference(tuple(card.score_reference_empties), tuple(card.score_reference_hits))
    if calibration is None:
        return OperatingPoint(threshold, card.prior, _bundle_false_hits(card, rule, threshold), references)
    references["calibration"] = ScoreReference(
        tuple(score_histogram(calibration.probabilities)), tuple(card.score_reference_hits)
    )
    measured = calibration.false_hits_of(rule, min_peaks, threshold)
    if elsewhere:
        unmeasured = _bundle_false_hits(card, rule, threshold)
        low, high = min(measured.low, unmeasured.low), max(measured.high, unmeasured.high)
        return OperatingPoint(threshold, card.prior, Rate(measured.estimate, low, high, spans=True), references)
    level = float(np.quantile(calibration.probabilities, 1 - BLANK_SHARE))
    return OperatingPoint(
        threshold,
        card.prior,
        measured,
        references,
        (level, calibration.false_hits_of(HitRule.NETWORK, min_peaks, level)),
    )


PLAIN_ROW = "with water"
DISTRACTED_ROWS = ("with salt", "with ice", "with lipid", "with polymer")
"""Rows of a card's performance: empties that show water alone, and those with what a jet may bring besides."""


def _bundle_false_hits(card: HitCard, rule: HitRule, threshold: float) -> Rate:
    """What the card knows of the network's rate: from water alone to the distractor that misleads it most.

    Without rows by content it is the rate of all its empties; at another threshold than its own, by its histogram.
    """
    measured = card.performance.get("false_hit_rate")
    by_content = _by_content(card)
    rate = UNKNOWN_RATE
    if threshold == card.threshold and by_content is not None:
        rate = by_content
    elif threshold == card.threshold and isinstance(measured, (list, tuple)) and len(measured) == 3:
        estimate, low, high = map(float, measured)
        rate = Rate(estimate, low, high)
    elif card.score_reference_empties:
        rate = _rate_above(card, threshold)
        if by_content is not None:
            rate = _moved(by_content, _rate_above(card, card.threshold), rate)
    if rule == HitRule.NETWORK:
        return rate
    # Both calls no more than the network alone; what peaks call by mistake, the card does not say.
    return Rate(0.0, 0.0, rate.high, spans=True) if rule == HitRule.BOTH else UNKNOWN_RATE


def _rate_above(card: HitCard, threshold: float) -> Rate:
    called, frames = share_above(card.score_reference_empties, threshold)
    return Rate(called / max(frames, 1), *wilson(called, frames))


def _by_content(card: HitCard) -> Rate | None:
    """The rate on water alone; the low end is its own, the high end that of the worst distractor or of all empties."""
    try:
        rows = {
            row["set"]: (int(row["empties_called_hit"]), int(row["empties_called_hit"] + row["empties_passed"]))
            for row in card.performance["rows"]
        }
        called, frames = rows[PLAIN_ROW]
        low, high = wilson(called, frames)
        worst = max(wilson(*rows[name])[1] for name in ("all", *DISTRACTED_ROWS) if name in rows and rows[name][1])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not 0 <= called <= frames or frames == 0:
        return None
    return Rate(called / frames, low, max(worst, high), spans=True)


def _moved(by_content: Rate, own: Rate, there: Rate) -> Rate:
    """The rate by content at another threshold: its odds change as those of all empties do.

    The histogram does not tell contents apart. What it proves is a low end: a lower threshold calls no fewer.
    """
    if own.estimate <= 0:
        return Rate(there.estimate, 0.0, 1.0, spans=True)
    low = by_content.low if there.estimate >= own.estimate else 0.0
    estimate = _by_odds(by_content.estimate, own.estimate, there.estimate)
    high = _by_odds(by_content.high, own.estimate, there.high)
    return Rate(estimate, min(low, estimate), max(high, estimate), spans=True)


def _by_odds(share: float, before: float, after: float) -> float:
    """A share of which the odds change by the factor by which they do from one share to another."""
    if after >= 1 or share >= 1:
        return 1.0
    odds = share / (1 - share) * (after / (1 - after)) * ((1 - before) / before)
    return odds / (1 + odds)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file, under another name first. Raises ``OSError``."""
    with placed(path) as part:
        part.write_bytes(msgspec.json.encode(calibration) + b"\n")


def load_calibration(path: Path, bundle: str) -> Calibration:
    """Read a calibration for the bundle of this label (name and hash). Raises ``BadCalibration``."""
    again = "run `cxls calibrate` on a blank run again"
    try:
        calibration = msgspec.json.decode(read_text(path, "calibration", MAX_FILE_BYTES), type=Calibration)
    except OSError as error:
        raise BadCalibration(f"{path}: {error.strerror or error}; `cxls calibrate` writes calibrations") from None
    except msgspec.MsgspecError as error:
        raise BadCalibration(f"{path}: not a calibration: {error}; {again}") from None
    except (ValueError, RecursionError) as error:
        raise BadCalibration(str(error) or f"{path}: nested too deep; {again}") from None
    if calibration.format != FORMAT:
        raise BadCalibration(f"{path}: format {calibration.format}, this program reads format {FORMAT}; {again}")
    if calibration.bundle != bundle:
        raise BadCalibration(
            f"{path}: made with bundle {calibration.bundle}, this run uses {bundle}; {again} or choose its bundle"
        )
    return calibration
