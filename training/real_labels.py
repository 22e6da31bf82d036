"""Which real frames are hits, for training: by the truth where there is one, else by the classical finder's peaks.

Peaks make weak labels. They hold only what the finder sees: bright crystals are hits, faint ones are missed or left
out, and salt or ice with as many peaks is labelled a hit like protein.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamer.files import BadInput
from training.reduced_series import ReducedSeries

FEWEST = 30
"""Hits, and empties, to learn from; fewer teach a network these very frames."""

FEWEST_VALIDATION = 5
"""Crystals, and empties, to validate on; of fewer a bootstrap says nothing."""

_BLOCK, _MARGIN = 20, 5
"""Consecutive images that are on one side, and how many training leaves out beside those of validation."""

_EVERY = 5
"""One block of each five is for validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRule:
    """source "auto": truth where a series has it, else peaks. A frame of `peaks` peaks or more is a hit, one of
    `empty_peaks` or fewer an empty; those between are left out."""

    source: Literal["auto", "truth", "peaks"] = "auto"
    peaks: int = 10
    empty_peaks: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """hit (N,) and used (N,) bool, False where a frame is left out; by_truth: how many used labels are the truth's."""

    hit: npt.NDArray[np.bool_]
    used: npt.NDArray[np.bool_]
    by_truth: int

    @property
    def hits(self) -> int:
        return int((self.hit & self.used).sum())

    @property
    def empties(self) -> int:
        return int((~self.hit & self.used).sum())

    @property
    def by_peaks(self) -> int:
        return int(self.used.sum()) - self.by_truth

    @property
    def kind(self) -> str:
        """truth, peaks, or both."""
        return " and ".join(name for name, count in (("truth", self.by_truth), ("peaks", self.by_peaks)) if count)


def label_frames(reduced: ReducedSeries, rule: LabelRule) -> Labels:
    """Labels of the frames.

    Raises BadInput when the rule contradicts itself, when truth is asked for and a series has none, and when either
    class has fewer than `FEWEST` frames.
    """
    if rule.empty_peaks >= rule.peaks:
        raise BadInput(f"empties of up to {rule.empty_peaks} peaks and hits from {rule.peaks}: no frame is between")
    known = reduced.known if rule.source != "peaks" else np.zeros(len(reduced), bool)
    if rule.source == "truth" and not known.all():
        without = reduced.counts[reduced.shots.group[np.flatnonzero(~known)[0]]]
        raise BadInput(f"{without.path}: no truth says which frames are hits; label by peaks instead")
    many, few = reduced.peak_count >= rule.peaks, reduced.peak_count <= rule.empty_peaks
    hit = np.where(known, reduced.shots.hit, many)
    used = known | many | few
    labels = Labels(hit, used, int(known.sum()))
    if min(labels.hits, labels.empties) < FEWEST:
        raise BadInput(_too_few(reduced, labels, rule, int((~used).sum())))
    return labels


def _too_few(reduced: ReducedSeries, labels: Labels, rule: LabelRule, between: int) -> str:
    text = f"{labels.hits} hits and {labels.empties} empties of {len(reduced)} frames, {FEWEST} of each are needed; "
    if not labels.by_peaks and not between:
        return f"{text}give more series"
    text += f"{between} frames have {rule.empty_peaks + 1} to {rule.peaks - 1} peaks and no label; give more series"
    if labels.hits < FEWEST:
        return f"{text} or label hits from fewer peaks"
    return f"{text}, mask hot pixels (`cxls calibrate` proposes a mask) or let empties have more peaks"


def doubts(reduced: ReducedSeries, labels: Labels, rule: LabelRule, threshold: float, mix: float) -> list[str]:
    """What is to be known of weak labels, a line each; threshold: of the bundle that reduced the frames."""
    if not labels.by_peaks:
        return []
    said = [
        f"{labels.by_peaks} labels are peak counts: they hold only what the classical finder sees, bright hits; "
        + (f"simulated shots, {mix:.0%} of each batch, keep the faint ones" if mix else "nothing keeps the faint ones")
    ]
    weak = labels.used & ~reduced.known if rule.source != "peaks" else labels.used
    denied = int((weak & labels.hit & (reduced.probability < threshold)).sum())
    if denied:
        said.append(
            f"{denied} of {int((weak & labels.hit).sum())} frames labelled hits by their peaks are misses to the "
            "bundle: hits it does not know yet, or salt and ice, which peaks do not tell from protein; look at some"
        )
    return said


def split_blocks(reduced: ReducedSeries, labels: Labels) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places of the labelled frames to train on and to validate on; no crystal and no neighbours are on both sides.

    A series is cut into blocks of 20 consecutive images; of each five in a row one is for validation, which one a hash
    of the file's name and the place of the five says. Training leaves out 5 images on either side of these, and
    crystals that are in them. Nothing else is asked, neither length nor number of the series, so that a bundle which is
    adapted again, with other runs besides, is never validated on what its parent was trained on. Raises BadInput when
    a side lacks hits or empties.
    """
    names = [count.path.name for count in reduced.counts]
    series, position = reduced.shots.group, reduced.position
    own, offset = position // _BLOCK, position % _BLOCK

    def validates(number: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        fives, which = np.unique(np.stack([series, number // _EVERY]), axis=1, return_inverse=True)
        chosen = np.array([_chosen(names[s], five) if five >= 0 else -1 for s, five in fives.T.tolist()])
        inside: npt.NDArray[np.bool_] = number % _EVERY == chosen[which.reshape(-1)]
        return inside

    validation = validates(own)
    beside = (validates(own - 1) & (offset < _MARGIN)) | (validates(own + 1) & (offset >= _BLOCK - _MARGIN))
    shared = np.isin(reduced.crystal, np.unique(reduced.crystal[validation & labels.used]))
    train = ~validation & ~beside & ~shared
    sides = [np.flatnonzero(side & labels.used) for side in (train, validation)]
    for name, side in zip(("training", "validation"), sides, strict=True):
        for kind, chosen in (("hits", labels.hit[side]), ("empties", ~labels.hit[side])):
            found = len(np.unique(reduced.crystal[side[chosen]]))
            if found < FEWEST_VALIDATION:
                raise BadInput(
                    f"{found} independent {kind} for {name} in blocks of {_BLOCK} images, {FEWEST_VALIDATION} are "
                    "needed; give longer or more series"
                )
    return sides[0], sides[1]


def _chosen(name: str, five: int) -> int:
    """Which of five blocks of a series is for validation."""
    return int.from_bytes(hashlib.sha256(f"{name}:{five}".encode(errors="surrogateescape")).digest()[:8]) % _EVERY


def class_counts(hit: npt.NDArray[np.bool_], places: Sequence[int] | npt.NDArray[np.intp]) -> dict[str, int]:
    """Hits and empties among these places."""
    chosen = hit[np.asarray(places)]
    return {"hits": int(chosen.sum()), "empties": int((~chosen).sum())}
