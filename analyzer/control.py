"""Changes to a running analysis: bundle, threshold, peaks, channel, mask; the running products begun anew; runs.

A change makes new analysers from a new ``Judge``, warms them in the thread that asked, and hands
them to the workers between two batches. Until then nothing has changed; whatever is wrong with the
new is found before. One change at a time. What was changed is logged and kept, to show, with its time.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser
from analyzer.changes import ChangeLog
from analyzer.front import Forget, Front
from analyzer.hot_pixels import NAME
from analyzer.judge import Judge
from analyzer.logs import event
from analyzer.mask_file import BadMask, read_mask
from analyzer.peak_parameters import Pf8Options, changed, peaks_in_force
from analyzer.runs import Capture, Judging, RunInfo, Runs, RunSummary
from analyzer.warm import FrameKind, warm_up
from streamer.frames import DIFFERENCE
from streamer.validity import Validity

log = logging.getLogger(__name__)

ACTIONS = ("bundle", "threshold", "peaks", "channel", "mask", "reset", "run", "target")
_MOST_NOTES_SHOWN = 200
_CHANGES_SHOWN = 50


class Busy(RuntimeError):
    """Asked while another change is on its way."""


class BadChange(ValueError):
    """A channel or a target that cannot be: one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a change did, ``text`` in a line. ``bundle``, ``threshold`` and ``mask`` are those in force after it.

    ``old`` and ``new`` are plain values, of several keys a mapping. ``drained``: every batch that the old analysers had
    in hand is done. ``time``: Unix seconds. ``seconds``: how long it all took.
    """

    action: str
    old: Any
    new: Any
    text: str
    time: float
    bundle: str
    threshold: float
    mask: str | None
    drained: bool
    seconds: float


class Control:
    """Changes one analysis. ``judge`` is what its frames are judged with, ``estimator`` an analyser for others' use.

    ``make`` makes an analyser, ``load`` loads a bundle; ``on_change`` is called once a new judge is in force.
    ``options`` are peakfinder8's numbers as asked for. ``changes`` are the latest, also for other threads.
    """

    def __init__(
        self,
        front: Front,
        judge: Judge,
        make: Callable[[Judge], Analyser],
        load: Callable[[Path], Bundle],
        on_change: Callable[[Judge], None] = lambda judge: None,
        options: Pf8Options | None = None,
        runs: Runs | None = None,
    ) -> None:
        self.judge = judge
        self.estimator = make(judge)
        self.changes = ChangeLog()
        self.runs = runs or Runs(front)
        self._front, self._make, self._load, self._on_change = front, make, load, on_change
        self._options = options or Pf8Options()
        self._own_mask = judge.cascade.mask
        self._changing = threading.Lock()

    @property
    def judging(self) -> Judging:
        """How frames are judged now."""
        judge = self.judge
        return Judging(
            bundle=judge.bundle.label,
            threshold=judge.threshold,
            hit_rule=str(judge.cascade.hit_rule),
            min_peaks=judge.cascade.min_peaks,
            indexable_peaks=judge.cascade.indexable_peaks,
            finder=judge.finders[0].name,
            mask=judge.mask,
            channel=self._front.channel,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What /status says of it: ``controls``, the run, the latest changes."""
        judge = self.judge
        return {
            "controls": {
                "threshold": judge.threshold,
                "mask": judge.mask,
                "bundle": judge.bundle.label,
                "channel": self._front.channel,
                "channels": self._front.channels,
                "peaks": peaks_in_force(judge.cascade, self._options),
            },
            "run": asdict(self.runs.info),
            "changes": self.changes.latest(_CHANGES_SHOWN),
        }

    def capture(self, *, over: bool = False) -> Capture:
        """The present run, for a report."""
        return self.runs.capture(self.judging, self.changes.during(self.runs.info.began_at), over=over)

    def summary(self) -> RunSummary:
        """The present run in numbers."""
        return self.runs.summary(self.judging, self.changes.during(self.runs.info.began_at))

    def use_bundle(self, folder: Path) -> Change:
        """Judge with the bundle in ``folder``. Raises ``BadBundle``, ``Busy``, ``Ending``."""
        with self._alone() as began:
            old = self.judge
            new = old.with_bundle(self._load(folder))
            return self._judge_with(new, "bundle", old.bundle.label, new.bundle.label, Forget.JUDGEMENTS, began)

    def use_threshold(self, value: float | None) -> Change:
        """Call hits from this probability, ``None`` for the bundle's own. Raises ``Busy``, ``Ending``."""
        with self._alone() as began:
            old = self.judge
            new = old.with_threshold(value)
            return self._judge_with(new, "threshold", old.threshold, new.threshold, Forget.JUDGEMENTS, began)

    def use_peaks(self, changes: Mapping[str, object]) -> Change:
        """Find peaks, and call hits by them, with these keys of ``peak_parameters.RANGES`` changed.

        Raises ``BadPeaks``, ``BadBundle`` where the bundle has not the finder that is asked for, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            old, options = self.judge, self._options
            cascade, numbers = changed(old.cascade, options, changes)
            was, now = peaks_in_force(old.cascade, options), peaks_in_force(cascade, numbers)
            names = [key for key in now if now[key] != was[key]]
            if not names:
                return self._done("peaks", {}, {}, True, began, None)
            text = "peaks " + ", ".join(f"{key} {_said(was[key])} → {_said(now[key])}" for key in names)
            before, after = ({key: values[key] for key in names} for values in (was, now))
            new = replace(old, cascade=cascade)
            change = self._judge_with(new, "peaks", before, after, Forget.PEAKS, began, text)
            self._options = numbers
            return change

    def use_channel(self, name: str | None) -> Change:
        """Analyse another channel from the next frame on, ``None`` for the first threshold.

        What is shown of the run begins anew. Raises ``BadChange``, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            if name == DIFFERENCE:
                raise BadChange(
                    "channel difference: negative results read as all ones there; analyse threshold_1 or threshold_2"
                )
            known, old = self._front.channels, self._front.channel
            if name is not None and known and name not in known:
                raise BadChange(f"channel {name[:60]!a}: the series has {', '.join(map(ascii, known))}")
            drained = self._front.use_channel(name)
            text = f"channel {old or 'first threshold'} → {name or 'first threshold'}"
            return self._done("channel", old, name, drained, began, text)

    def use_run(self, given: Mapping[str, Any], new: bool = False) -> Change:
        """Call the run by these fields of ``RunInfo``; ``new``: end it and begin one called so.

        Raises ``BadRun``, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            runs, old = self.runs, self.runs.info
            if not new:
                now = runs.edit(given)
                return self._done("run", _shown(old), _shown(now), True, began, _edited(old, now))
            following = runs.next_info(given)
            # What takes long is done before the publisher's turn.
            self._front.products.hot_pixels(fresh=True)
            judging, fields = self.judging, runs.estimate_fields()
            changes = self.changes.during(old.began_at)
            self._front.reset(lambda: runs.turn(following, judging, changes, fields))
            if runs.info is old:
                self._front.refuse_when_ending()
            text = f"run {old.name} ended, run {_number(following)} began"
            return self._done("run", _shown(old), _shown(following), True, began, text)

    def use_targets(self, given: Mapping[str, int | None]) -> Change:
        """Collect so many ``hits`` or ``indexed`` patterns, ``None``: no target.

        Raises ``BadChange`` where nothing counts them, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            targets = self._front.targets
            before = targets.facts()
            for key, target in given.items():
                if before[key] is None and target is not None:
                    raise BadChange(f"{key}: nothing counts them here; --index-stream lets the indexer tell")
            given = {key: target for key, target in given.items() if before[key] is not None}
            old = {key: before[key]["target"] for key in given}
            targets.set(**given)
            text = "target " + ", ".join(f"{key} {_said(old[key])} → {_said(given[key])}" for key in given)
            return self._done("target", old, dict(given), True, began, text if old != given else None)

    def use_mask(self, path: Path | None) -> Change:
        """Leave out these pixels too, ``None`` for no extra mask. Raises ``BadMask``, ``Busy``, ``Ending``."""
        with self._alone() as began:
            mask = None if path is None else read_mask(path)
            if mask is not None:
                self._check_shape(mask, path)
            return self._use_masks(mask, None, began)

    def use_hot_pixels(self) -> Change:
        """Leave out the running hot-pixel map as it stands, frozen, besides what is left out already.

        Raises ``BadMask`` where it is empty, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            products = self._front.products
            found = products.hot_pixels(fresh=True)
            if found is None or not len(found.pixel):
                seen = 0 if found is None else found.frames
                raise BadMask(f"{NAME}: the running map has no pixel yet, after {seen} distinct frames")
            before = products.applied
            frozen = found.frozen(before if before is None or before.valid.shape == found.shape else None)
            return self._use_masks(self._own_mask, frozen, began)

    def _use_masks(self, own: Validity | None, hot: Validity | None, began: float) -> Change:
        """Judge with a user's mask and a frozen map; neither is touched when that fails."""
        old = self.judge
        try:
            mask = own.joined(hot) if own is not None else hot
        except ValueError as error:
            raise BadMask(str(error)) from None
        new = replace(old, cascade=replace(old.cascade, mask=mask))
        change = self._judge_with(new, "mask", old.mask, new.mask, Forget.EVERYTHING, began)
        self._own_mask = own
        if hot is not self._front.products.applied:
            self._front.products.apply(hot)
        return change

    def reset(self) -> Change:
        """Begin windows, profiles and what else was gathered anew. Raises ``Busy``, ``Ending``."""
        with self._alone() as began:
            self._front.reset()
            return self._done("reset", None, None, True, began, "running products begun anew")

    @contextmanager
    def _alone(self) -> Iterator[float]:
        if not self._changing.acquire(blocking=False):
            raise Busy("another change is on its way; try again when it is done")
        try:
            self._front.refuse_when_ending()
            yield time.monotonic()
        finally:
            self._changing.release()

    def _judge_with(
        self, new: Judge, action: str, old: Any, now: Any, forget: Forget, began: float, text: str | None = None
    ) -> Change:
        estimator, *analysers = [self._make(new) for _ in range(1 + self._front.workers)]
        warm_up(estimator, new, self._kind())
        drained = self._front.replace_analysers(analysers, new, forget)
        self.judge, self.estimator = new, estimator
        self._on_change(new)
        return self._done(action, old, now, drained, began, text or f"{action} {_said(old)} → {_said(now)}")

    def _done(self, action: str, old: Any, new: Any, drained: bool, began: float, text: str | None) -> Change:
        """Log and keep what was done; without a ``text`` there is nothing to tell, as all was so before."""
        judge, seconds = self.judge, round(time.monotonic() - began, 3)
        if text is not None:
            fields = event("control_change", action=action, old=old, new=new, seconds=seconds)
            log.info("control: %s (%.2f s)", text, seconds, extra=fields)
            self.changes.add(action, old, new, text)
        return Change(
            action=action,
            old=old,
            new=new,
            text=text or f"{action} as before",
            time=round(time.time(), 3),
            bundle=judge.bundle.label,
            threshold=judge.threshold,
            mask=judge.mask,
            drained=drained,
            seconds=seconds,
        )

    def _kind(self) -> FrameKind | None:
        """What the next frames are like, as far as that is known."""
        kind, metadata = self._front.kind, self._front.running.metadata
        return kind if kind is not None and (metadata is None or metadata is kind.metadata) else None

    def _check_shape(self, mask: Validity, path: Path | None) -> None:
        kind, metadata = self._kind(), self._front.running.metadata
        images = kind.shape if kind else metadata.shape if metadata else None
        if images is not None and mask.valid.shape != images:
            raise BadMask(f"{path}: a mask of {mask.valid.shape}, the images are {images}; give one of their shape")


def _said(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(info: RunInfo) -> str:
    return "without a number" if info.number is None else info.name


def _shown(info: RunInfo) -> dict[str, Any]:
    """A run as a change shows it: notes may be long."""
    notes = info.notes
    if len(notes) > _MOST_NOTES_SHOWN:
        notes = notes[: _MOST_NOTES_SHOWN - 1] + "…"
    return {"number": info.number, "sample": info.sample, "notes": notes}


def _edited(old: RunInfo, new: RunInfo) -> str | None:
    parts = []
    if new.number != old.number:
        parts.append(f"number {_said(old.number)} → {_said(new.number)}")
    if new.sample != old.sample:
        parts.append(f"sample {new.sample or 'none'}")
    if new.notes != old.notes:
        parts.append(f"notes of {len(new.notes)} characters")
    return "run " + ", ".join(parts) if parts else None
