"""Changes to a running analysis: another bundle, threshold or mask; the running products begun anew.

A change makes new analysers from a new ``Judge``, warms them in the thread that asked, and hands
them to the workers between two batches. Until then nothing has changed; whatever is wrong with the
new is found before. One change at a time.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser
from analyzer.front import Forget, Front
from analyzer.hot_pixels import NAME
from analyzer.judge import Judge
from analyzer.logs import event
from analyzer.mask_file import BadMask, read_mask
from analyzer.warm import FrameKind, warm_up
from streamer.validity import Validity

log = logging.getLogger(__name__)

ACTIONS = ("bundle", "threshold", "mask", "reset")


class Busy(RuntimeError):
    """Asked while another change is on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a change did. ``bundle``, ``threshold`` and ``mask`` are those in force after it.

    ``drained``: every batch that the old analysers had in hand is done. ``seconds``: how long it all took.
    """

    action: str
    old: str | float | None
    new: str | float | None
    bundle: str
    threshold: float
    mask: str | None
    drained: bool
    seconds: float


class Control:
    """Changes one analysis. ``judge`` is what its frames are judged with, ``estimator`` an analyser for others' use.

    ``make`` makes an analyser, ``load`` loads a bundle; ``on_change`` is called once a new judge is in force.
    """

    def __init__(
        self,
        front: Front,
        judge: Judge,
        make: Callable[[Judge], Analyser],
        load: Callable[[Path], Bundle],
        on_change: Callable[[Judge], None] = lambda judge: None,
    ) -> None:
        self.judge = judge
        self.estimator = make(judge)
        self._front, self._make, self._load, self._on_change = front, make, load, on_change
        self._own_mask = judge.cascade.mask
        self._changing = threading.Lock()

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
        self._own_mask, self._front.products.applied = own, hot
        return change

    def reset(self) -> Change:
        """Begin windows, profiles and what else was gathered anew. Raises ``Busy``, ``Ending``."""
        with self._alone() as began:
            self._front.reset()
            return self._done("reset", None, None, True, began)

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
        self, new: Judge, action: str, old: str | float | None, now: str | float | None, forget: Forget, began: float
    ) -> Change:
        estimator, *analysers = [self._make(new) for _ in range(1 + self._front.workers)]
        warm_up(analysers[0], new, self._kind())
        drained = self._front.replace_analysers(analysers, forget)
        self.judge, self.estimator = new, estimator
        self._on_change(new)
        return self._done(action, old, now, drained, began)

    def _done(
        self, action: str, old: str | float | None, new: str | float | None, drained: bool, began: float
    ) -> Change:
        judge = self.judge
        change = Change(
            action=action,
            old=old,
            new=new,
            bundle=judge.bundle.label,
            threshold=judge.threshold,
            mask=judge.mask,
            drained=drained,
            seconds=round(time.monotonic() - began, 3),
        )
        if action == "reset":
            log.info("control: windows and profiles begun anew", extra=event("control_change", action=action))
        else:
            log.info(
                "control: %s %s -> %s in %.2f s", action, old, new, change.seconds,
                extra=event("control_change", action=action, old=old, new=new, seconds=change.seconds),
            )  # fmt: skip
        return change

    def _kind(self) -> FrameKind | None:
        """What the next frames are like, as far as that is known."""
        kind, metadata = self._front.kind, self._front.running.metadata
        return kind if kind is not None and (metadata is None or metadata is kind.metadata) else None

    def _check_shape(self, mask: Validity, path: Path | None) -> None:
        kind, metadata = self._kind(), self._front.running.metadata
        images = kind.shape if kind else metadata.shape if metadata else None
        if images is not None and mask.valid.shape != images:
            raise BadMask(f"{path}: a mask of {mask.valid.shape}, the images are {images}; give one of their shape")
