"""Changes to a running analysis: bundle, threshold, peaks, channel, mask; the running products begun anew; runs.

A change makes new analysers from a new ``Judge``, warms them in the thread that asked, and hands
them to the workers between two batches. Until then nothing has changed; whatever is wrong with the
new is found before. One change at a time. What was changed is logged and kept, to show, with its time; and handed on
as it would be asked for again, for a run that follows a kill (``analyzer.kept_changes``).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from analyzer.bundle import BadBundle, Bundle
from analyzer.cascade import Analyser
from analyzer.changes import ChangeLog
from analyzer.circumstances import warn_of
from analyzer.front import Forget, Front
from analyzer.judge import Judge
from analyzer.kept_changes import Asked
from analyzer.logs import event
from analyzer.mask_file import BadMask, read_mask
from analyzer.peak_parameters import Pf8Options, changed, peaks_in_force
from analyzer.product_snapshot import HOT_PIXELS
from analyzer.runs import Capture, Judging, RunInfo, Runs, RunSummary
from analyzer.warm import FrameKind, warm_up
from streamer.frames import DIFFERENCE
from streamer.messages import SeriesMetadata
from streamer.validity import Validity

log = logging.getLogger(__name__)

ACTIONS = ("bundle", "threshold", "peaks", "channel", "mask", "reset", "run", "target")
_MOST_NOTES_SHOWN = 200
_CHANGES_SHOWN = 50


class Busy(RuntimeError):
    """Asked while another change is on its way."""


class BadChange(ValueError):
    """A channel or a target that cannot be: one line."""


@dataclass(frozen=True, slots=True)
class _Telling:
    """How a change is told of: the event of the log and its level, what is said before it."""

    event: str
    level: int = logging.INFO
    before: str = ""


_CHANGED = _Telling("control_change")
_RESTORED = _Telling("control_restored", before="restored after a kill: ")
_UNRESTORED = _Telling("control_unrestored", logging.WARNING, "not restored after a kill: ")


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
    ``options`` are peakfinder8's numbers as asked for. ``changes`` are the latest, also for other threads. ``keep`` is
    handed each change in the form in which it can be asked for again.
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
        keep: Callable[[Asked], None] = lambda asked: None,
    ) -> None:
        self.judge = judge
        self.estimator = make(judge)
        self.changes = ChangeLog()
        self.runs = runs or Runs(front)
        self._front, self._make, self._load, self._on_change = front, make, load, on_change
        self._options = options or Pf8Options()
        self._own_mask = self._first_mask = judge.cascade.mask
        self._changing = threading.Lock()
        self._keep_asked = keep
        self._peaks_asked: dict[str, Any] = {}
        self._targets_asked: dict[str, int | None] = {}
        self._telling = _CHANGED
        self._restored: set[str] = set()
        warn_of(judge.differences)

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

    def use_bundle(self, folder: Path, label: str | None = None) -> Change:
        """Judge with the bundle in ``folder``, which is to be the one of this ``label``.

        Raises ``BadBundle``, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            old = self.judge
            new = old.with_bundle(self._load(folder))
            if label is not None and new.bundle.label != label:
                raise BadBundle(f"{folder}: holds {new.bundle.label} now, not {label}; ask for it if it is meant")
            change = self._judge_with(new, "bundle", old.bundle.label, new.bundle.label, Forget.JUDGEMENTS, began)
            self._keep("bundle", {"path": str(folder.absolute())}, label=new.bundle.label)
            return change

    def use_threshold(self, value: float | None) -> Change:
        """Call hits from this probability, ``None`` for the bundle's own. Raises ``Busy``, ``Ending``."""
        with self._alone() as began:
            old = self.judge
            new = old.with_threshold(value)
            change = self._judge_with(new, "threshold", old.threshold, new.threshold, Forget.JUDGEMENTS, began)
            self._keep("threshold", {"value": value})
            return change

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
            self._peaks_asked |= after
            self._keep("peaks", self._peaks_asked)
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
            self._knows(replace(self.judge, channel=name))
            text = f"channel {old or 'first threshold'} → {name or 'first threshold'}"
            change = self._done("channel", old, name, drained, began, text)
            self._keep("channel", {"name": name})
            return change

    def meets(self, metadata: SeriesMetadata | None) -> None:
        """Hold the calibration against the header of the present series; not while a change is on its way."""
        if metadata is None or metadata is self.judge.metadata or not self._changing.acquire(blocking=False):
            return
        try:
            new = replace(self.judge, metadata=metadata)
            if new.differences == self.judge.differences:
                self.judge = new
            else:
                self._knows(new)
        finally:
            self._changing.release()

    def _knows(self, new: Judge) -> None:
        """Judge so from here on, and say so where the calibration is now of something else."""
        old, self.judge = self.judge, new
        self._on_change(new)
        if new.differences != old.differences:
            warn_of(new.differences)

    def use_run(self, given: Mapping[str, Any], new: bool = False) -> Change:
        """Call the run by these fields of ``RunInfo``; ``new``: end it and begin one called so.

        Raises ``BadRun``, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            runs, old = self.runs, self.runs.info
            if not new:
                now = runs.edit(given)
                self._keep_run(now)
                return self._done("run", _shown(old), _shown(now), True, began, _edited(old, now))
            following = runs.next_info(given)
            # What takes long is done before the publisher's turn.
            self._front.products.hot_pixels(fresh=True)
            judging, fields = self.judging, runs.estimate_fields()
            changes = self.changes.during(old.began_at)
            self._front.reset(lambda: runs.turn(following, judging, changes, fields))
            if runs.info is old:
                self._front.refuse_when_ending()
            self._keep_run(following)
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
            self._targets_asked |= given
            self._keep("target", self._targets_asked)
            text = "target " + ", ".join(f"{key} {_said(old[key])} → {_said(given[key])}" for key in given)
            return self._done("target", old, dict(given), True, began, text if old != given else None)

    def use_mask(self, path: Path | None) -> Change:
        """Leave out these pixels too, ``None`` for no extra mask. Raises ``BadMask``, ``Busy``, ``Ending``."""
        with self._alone() as began:
            mask = None if path is None else read_mask(path)
            if mask is not None:
                self._check_shape(mask, path)
            return self._use_masks(mask, None, began)

    def use_kept_masks(self, own: Validity | None, hot: Validity | None, first: bool) -> Change:
        """Leave out what a user's mask and a frozen map do; ``first``: the mask of the settings is the user's.

        Raises ``BadMask``, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            own = self._first_mask if first else own
            for each in (own, hot):
                if each is not None:
                    self._check_shape(each, each.name)
            return self._use_masks(own, hot, began)

    def use_hot_pixels(self) -> Change:
        """Leave out the running hot-pixel map as it stands, frozen, besides what is left out already.

        Raises ``BadMask`` where it is empty, ``Busy``, ``Ending``.
        """
        with self._alone() as began:
            products = self._front.products
            found = products.hot_pixels(fresh=True)
            if found is None or not len(found.pixel):
                seen = 0 if found is None else found.frames
                raise BadMask(f"{HOT_PIXELS}: the running map has no pixel yet, after {seen} distinct frames")
            before = products.applied
            frozen = found.frozen(before if before is None or before.valid.shape == found.shape else None)
            return self._use_masks(self._own_mask, frozen, began)

    def _use_masks(self, own: Validity | None, hot: Validity | None, began: float, text: str | None = None) -> Change:
        """Judge with a user's mask and a frozen map; neither is touched when that fails."""
        old = self.judge
        try:
            mask = own.joined(hot) if own is not None else hot
        except ValueError as error:
            raise BadMask(str(error)) from None
        new = replace(old, cascade=replace(old.cascade, mask=mask))
        change = self._judge_with(new, "mask", old.mask, new.mask, Forget.EVERYTHING, began, text)
        self._own_mask = own
        if hot is not self._front.products.applied:
            self._front.products.apply(hot)
        first = own is self._first_mask
        self._keep("mask", masks=(None if first else own, hot), first=first)
        return change

    def reset(self) -> Change:
        """Begin windows, profiles and what else was gathered anew. Raises ``Busy``, ``Ending``."""
        with self._alone() as began:
            self._front.reset()
            return self._done("reset", None, None, True, began, "running products begun anew")

    # --- after a kill -------------------------------------------------------------------

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """What is changed within is what a killed run was asked for: so it is told, and kept already."""
        before, self._telling = self._telling, _RESTORED
        try:
            yield
        finally:
            self._telling = before

    def give_up(self, kind: str, why: str) -> None:
        """What a killed run was asked for cannot be: told and listed, and not tried again."""
        text = f"{_UNRESTORED.before}{kind}: {why}"
        log.warning("control: %s", text, extra=event(_UNRESTORED.event, action=kind, why=why))
        self.changes.add(kind, None, None, text)
        self.let_go(kind)

    def let_go(self, kind: str) -> None:
        """No change of this kind is asked for again after a kill."""
        self._keep_asked(Asked(kind=kind))

    def take_back(self, metadata: SeriesMetadata) -> tuple[list[str], bool]:
        """Take back a mask or a channel that was restored and is not for the series of this header.

        For the thread that reads, before it takes the series' images. Returns the kinds taken back, and whether the
        header tells all that it takes to know. Raises ``Busy``, ``Ending``.
        """
        shape, names = metadata.shape, [name for name in metadata.channels if name != DIFFERENCE]
        mask, channel = self.judge.cascade.mask, self._front.channel
        other_shape = "mask" in self._restored and mask is not None and shape not in (None, mask.valid.shape)
        other_names = "channel" in self._restored and names and channel not in (None, *names)
        known = bool(shape and names) or not self._restored & {"mask", "channel"}
        taken = [kind for kind, other in (("mask", other_shape), ("channel", other_names)) if other]
        if not taken:
            return taken, known
        with self._alone() as began:
            self._telling = _UNRESTORED
            try:
                if other_shape and mask is not None:
                    first = "none" if self._first_mask is None else self._first_mask.name
                    text = f"mask {mask.name} is {mask.valid.shape}, the images are {shape}; {first} instead"
                    self._use_masks(self._first_mask, None, began, text)
                if other_names:
                    # No image of this series is taken yet, and none of another was analysed.
                    given = self._front.settings.channel
                    self._front.channel = given
                    self._knows(replace(self.judge, channel=given))
                    has = ", ".join(map(ascii, names))
                    text = f"channel {channel}: the series has {has}; {given or 'first threshold'} instead"
                    self._done("channel", channel, given, True, began, text)
            finally:
                self._telling = _CHANGED
            for kind in taken:
                self.let_go(kind)
        return taken, known

    def _keep(self, kind: str, body: Mapping[str, Any] | None = None, **more: Any) -> None:
        if self._telling is _CHANGED:
            self._keep_asked(Asked(kind=kind, body=b"" if body is None else msgspec.json.encode(body), **more))

    def _keep_run(self, info: RunInfo) -> None:
        self._keep("run", {"number": info.number, "sample": info.sample, "notes": info.notes})

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
        for each in (estimator, *(analyser for analyser in analysers if analyser.on_device)):
            warm_up(each, new, self._kind())
        # It judges no frame.
        estimator.release()
        drained = self._front.replace_analysers(analysers, new, forget)
        self.estimator = estimator
        self._knows(new)
        return self._done(action, old, now, drained, began, text or f"{action} {_said(old)} → {_said(now)}")

    def _done(self, action: str, old: Any, new: Any, drained: bool, began: float, text: str | None) -> Change:
        """Log and keep what was done; without a ``text`` there is nothing to tell, as all was so before."""
        judge, seconds = self.judge, round(time.monotonic() - began, 3)
        telling = self._telling
        (self._restored.add if telling is _RESTORED else self._restored.discard)(action)
        if text is not None:
            text = telling.before + text
            fields = event(telling.event, action=action, old=old, new=new, seconds=seconds)
            log.log(telling.level, "control: %s (%.2f s)", text, seconds, extra=fields)
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

    def _check_shape(self, mask: Validity, path: Path | str | None) -> None:
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
