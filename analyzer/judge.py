"""What frames are judged with, as one value that is replaced as a whole."""

from dataclasses import dataclass, field, replace
from typing import Any

from analyzer.bundle import Bundle
from analyzer.calibration import Calibration, OperatingPoint, operating_point
from analyzer.cascade import CascadeSettings
from analyzer.circumstances import circumstances, differences
from analyzer.peak_finder import BUILT_IN, BY_BUNDLE, LEARNED, FinderKind
from analyzer.results import HitRule
from streamer.messages import SeriesMetadata


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """A bundle, the settings that go with it, and what a blank run said of it.

    Every analyser of a run is made from the same one. ``cascade.threshold`` is what the user asked
    for, ``None`` for the calibration's or the bundle's. ``channel`` and ``metadata`` are what is analysed, as far as it
    is known; ``differences`` what of all this the calibration was measured without, a phrase each.
    """

    bundle: Bundle
    cascade: CascadeSettings
    calibration: Calibration | None = None
    channel: str | None = None
    metadata: SeriesMetadata | None = None
    differences: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Raises ``BadBundle`` where a peak finder takes from the bundle what it has not."""
        for finder in (self.cascade.finder, self.cascade.shadow):
            if finder is not None:
                finder.check(self.bundle)
        blank = None if self.calibration is None else self.calibration.circumstances
        if blank is not None:
            run = circumstances(self.finders[0], self.channel, [self.cascade.mask], self.metadata)
            by_peaks = self.cascade.hit_rule != HitRule.NETWORK
            object.__setattr__(self, "differences", differences(blank, run, by_peaks))

    @property
    def point(self) -> OperatingPoint:
        """How hits are called, and what is known of it."""
        cascade = self.cascade
        return operating_point(
            self.bundle.card.hit,
            cascade.hit_rule,
            cascade.min_peaks,
            cascade.threshold,
            self.calibration,
            bool(self.differences),
        )

    @property
    def threshold(self) -> float:
        """The hit probability from which a frame is a hit."""
        return self.point.threshold

    @property
    def mask(self) -> str | None:
        """The name of the extra mask."""
        return None if self.cascade.mask is None else self.cascade.mask.name

    @property
    def finders(self) -> tuple[FinderKind, FinderKind | None]:
        """Whose peaks are published with this bundle, and whose are compared with them.

        Beside the learned finder that is the built-in one, whose peaks there are in any case; none beside itself.
        """
        published, shadow = (
            BY_BUNDLE.chosen(self.bundle) if kind is BY_BUNDLE else kind
            for kind in (self.cascade.finder, self.cascade.shadow)
        )
        assert published is not None
        if shadow is None and published is LEARNED:
            shadow = BUILT_IN
        return published, None if shadow is not None and shadow.name == published.name else shadow

    @property
    def settings(self) -> CascadeSettings:
        """The settings of an analyser, with the threshold and the finders that hold."""
        finder, shadow = self.finders
        return replace(self.cascade, threshold=self.threshold, finder=finder, shadow=shadow)

    @property
    def facts(self) -> dict[str, Any]:
        """What /status says of it."""
        models = {model.attribute.name: model.label for model in self.cascade.models}
        geometry = self.cascade.geometry
        return {
            "bundle": self.bundle.label,
            "threshold": self.threshold,
            "mask": self.mask,
            "geometry": None if geometry is None else geometry.name,
            "models": models,
            "peak_finder": self.finders[0].name,
        }

    def with_bundle(self, bundle: Bundle) -> "Judge":
        """The same with another bundle. A calibration belongs to its bundle and stays behind."""
        calibration = self.calibration
        if calibration is not None and calibration.bundle != bundle.label:
            calibration = None
        return replace(self, bundle=bundle, calibration=calibration)

    def with_threshold(self, threshold: float | None) -> "Judge":
        """The same with this threshold; ``None``: the calibration's or the bundle's."""
        return replace(self, cascade=replace(self.cascade, threshold=threshold))
