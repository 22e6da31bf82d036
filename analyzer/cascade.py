"""The cascade: decode, reduce, hit, photon energy, camera length, then any single models, on batches of frames.

One ``Analyser`` belongs to one worker and reuses its buffers; a result is a function of the
frame, its series' header, the bundle and the settings alone.
"""

import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analyzer.architectures import architecture
from analyzer.attribute_cascade import AttributeCascade, Feed, Said, Seen
from analyzer.attribute_model import AttributeModel
from analyzer.bundle import Bundle
from analyzer.cuda import device as devices
from analyzer.cuda.device import full_precision, is_device_fault
from analyzer.cuda.engine import DevicePrograms, Engine, SeriesEngine, frame_view
from analyzer.cuda.program import DeviceFault
from analyzer.frame_peaks import FramePeaks, describe_peaks, frame_peaks
from analyzer.frame_view import FrameView, saw_no_beam
from analyzer.geometry import Geometry
from analyzer.logs import Repeats
from analyzer.networks import coarse_profile, profile_features, profile_index
from analyzer.panels import GivenGeometry, place
from analyzer.parameters.claims import claimed
from analyzer.parameters.frame import FrameEstimator
from analyzer.peak_finder import BY_BUNDLE, Comparison, FinderKind, PeakFinder, compare, takes_own_peaks
from analyzer.reduction import Coverage, FramePlan, FrameProfile, Reduced, Workspace, make_plan
from analyzer.results import Decision, FrameResult, HitRule, Peak, Status
from analyzer.zones import SINGLE, header_of
from streamer.decoding import check_size
from streamer.frames import Frame
from streamer.messages import Defect, ImageData, SeriesMetadata, UndecodableImage
from streamer.series import Series
from streamer.validity import Validity, saturation_of, series_validity

log = logging.getLogger(__name__)
_repeats = Repeats(log)

STAGES = ("receive", "decode", "reduce", "infer", "peaks", "publish")
_PLANS_KEPT = 4
_SERIES_KEPT = 4
_MAX_TAG_CHARACTERS = 200

MOST_FRAMES = 32
"""Of a batch on a device; more only wait for each other."""

_FEWEST_FRAMES = 4
"""Of a batch on a device that has no room for more; where not even these fit, the CPU does the work."""

_ENGINES_KEPT = 4
"""Of a worker, as many as series that it is ready for; each holds the device's buffers for a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeSettings:
    """How frames are judged. ``threshold`` and ``mask`` override the bundle's and add to the series'.

    ``geometry`` is used where it fits a series' images, instead of the header's. ``models`` say further attributes, on
    the device of the analyser. ``finder`` makes the peaks that are published and that the rules on peaks count;
    ``shadow`` is compared with it.
    """

    hit_rule: HitRule = HitRule.NETWORK
    min_peaks: int = 5
    indexable_peaks: int = 10
    threshold: float | None = None
    mask: Validity | None = None
    geometry: GivenGeometry | None = None
    tags: tuple[str, ...] = ()
    models: tuple[AttributeModel, ...] = ()
    finder: FinderKind = BY_BUNDLE
    shadow: FinderKind | None = None


@dataclass(slots=True)
class BatchOutcome:
    """Results of a batch in its order, the radial profiles of its good frames (each
    (2, bins): photons, pixels), their peaks, their diffuse scattering, seconds spent in each stage, how a shadow
    finder's peaks compare, ``None`` where it failed, and the results' series, which the front enters."""

    results: list[FrameResult]
    profiles: list[npt.NDArray[np.float32]] = field(default_factory=list)
    peaks: list[FramePeaks] = field(default_factory=list)
    diffuse: list[FrameProfile] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    comparisons: list[Comparison | None] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)

    def add(self, other: "BatchOutcome") -> None:
        """Take in what became of the frames after these."""
        self.results += other.results
        self.profiles += other.profiles
        self.peaks += other.peaks
        self.diffuse += other.diffuse
        self.comparisons += other.comparisons
        for stage, seconds in other.stage_seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds


@dataclass(slots=True, eq=False)
class _Prepared:
    """What is ready for the frames of one series in one shape and type."""

    # Held, because its id is part of the key: a freed one's could name other metadata.
    metadata: SeriesMetadata
    plan: FramePlan
    workspace: Workspace
    coverage: Coverage
    # What of the coverage is expected for good: later frames may have to come again.
    settled: npt.NDArray[np.float64]
    profile_index: npt.NDArray[np.intp]
    inputs: dict[str, torch.Tensor]
    header: dict[str, torch.Tensor]
    finder: PeakFinder
    shadow: PeakFinder | None
    estimator: FrameEstimator | None
    engine: SeriesEngine | None


def asks_for_pixels(settings: CascadeSettings, bundle: Bundle) -> bool:
    """Whether something is asked about the pixels of frames, which then have to be unpacked by the CPU."""
    other = not takes_own_peaks(settings.finder, bundle)
    return other or settings.shadow is not None or bool(settings.models)


PlanKey = tuple[FramePlan, np.dtype[Any]]
"""Of the buffers that frames are reduced in: how, and pixels of which type."""


class PlanCache:
    """Plans of the latest series, for all workers: most series are measured as the one before.

    Kept are those that the latest ``_SERIES_KEPT`` series asked for, of more than ``_PLANS_KEPT`` the latest: a rare
    series neither drives out the plan of all others nor leaves its own behind. Nor does a rare type of pixels, which
    has buffers of its own: a plan and the type that it is asked for together are one.
    """

    def __init__(self) -> None:
        self._asked: dict[PlanKey, int] = {}
        self._lock = threading.Lock()

    def get(
        self, ordinal: int, geometry: Geometry, validity: Validity, saturation: int, dtype: np.dtype[Any]
    ) -> FramePlan:
        """The plan for such frames of a series, made if it is new."""
        with self._lock:
            plan = self._known(geometry, validity, saturation) or make_plan(geometry, validity, saturation)
            key = plan, dtype
            asked = {each: by for each, by in self._asked.items() if each != key} | {key: ordinal}
            oldest = max(asked.values()) - _SERIES_KEPT
            latest = [(each, by) for each, by in asked.items() if by > oldest or each == key]
            self._asked = dict(latest[-_PLANS_KEPT:])
            return plan

    def __contains__(self, key: PlanKey) -> bool:
        return key in self._asked

    def _known(self, geometry: Geometry, validity: Validity, saturation: int) -> FramePlan | None:
        for plan, _ in self._asked:
            known = plan.geometry, plan.saturation, plan.validity.name, plan.validity.unfit
            same = known == (geometry, saturation, validity.name, validity.unfit)
            if same and np.array_equal(plan.validity.valid, validity.valid):
                return plan
        return None


def plan_of(
    settings: CascadeSettings, plans: PlanCache, frame: Frame, shape: tuple[int, int], dtype: np.dtype[Any]
) -> FramePlan:
    """The plan of frames of this shape and type of a series."""
    metadata = frame.series.metadata
    geometry, mask = place(settings.geometry, settings.mask, metadata, shape)
    validity = series_validity(metadata, shape, frame.channel, mask)
    return plans.get(frame.series.ordinal, geometry, validity, saturation_of(metadata, dtype), dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """A good frame as it was reduced, on its own. ``logit`` (1,): what the hit network says, where it did already.

    ``inputs``: what it takes; ``feed``: what single models take that are asked about several frames at once.
    """

    prepared: _Prepared
    view: FrameView
    logit: torch.Tensor | None = None
    inputs: tuple[torch.Tensor, ...] = ()
    feed: Feed | None = None


class Analyser:
    """Judges batches of frames with one bundle on one device.

    ``programs``: the kernels of a GPU, on which frames are then unpacked and reduced, unless a finder or a model asks
    for their pixels; without them that is done here, and only networks run on ``device``. When the device fails,
    ``fallback`` judges the frames at hand and all that follow.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: CascadeSettings,
        device: str = "cpu",
        plans: PlanCache | None = None,
        programs: DevicePrograms | None = None,
        fallback: "Analyser | None" = None,
    ) -> None:
        self._bundle = bundle
        self._settings = settings
        self._device = torch.device(device)
        self._prepared: dict[tuple[Any, ...], _Prepared] = {}
        self._workspaces: dict[PlanKey, Workspace] = {}
        self._engines: dict[PlanKey, Engine] = {}
        self._plans = plans or PlanCache()
        self._hit_fields = architecture(bundle.card.hit.network).inputs
        self._models = AttributeCascade(settings.models, self._device)
        self._programs = None if asks_for_pixels(settings, bundle) else programs
        on_card = self._device.type == "cuda"
        if on_card:
            full_precision()
        self._stream = torch.cuda.Stream(self._device) if on_card else None  # type: ignore[no-untyped-call]
        self._fallback = fallback
        self.fault: str | None = None
        if fallback is not None:
            # Not this alone holds them: to free what a lost device has a part in may end the process.
            held = [self._bundle, self._models, self._stream, self._programs, self._prepared, self._engines]
            devices.hold(self, self._device, held, self._stream)

    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        """One result for each frame; a frame that is undecodable, or that a fault of ours fails on, costs only itself.

        Whatever fails where there is a fallback is judged by that. Raises what the analysis of a frame alone raises.
        """
        try:
            return self._process_together(frames)
        except Exception:
            if len(frames) < 2 and self._fallback is None:
                raise
        self._take_back()
        whole = BatchOutcome([])
        for frame in frames:
            whole.add(self._process_alone(frame))
        return whole

    def _process_alone(self, frame: Frame) -> BatchOutcome:
        try:
            return self._process_together([frame])
        except Exception:
            _repeats.exception("analysis of a frame failed", "analysis_failed", frames=1)
        if self._fallback is not None:
            # A fault of ours, or of the device in words not known here.
            self._take_back()
            with contextlib.suppress(Exception):
                return self._fallback.process([frame])
        return BatchOutcome([undecodable(frame, "failed", "internal error, see the log", self._settings.tags)])

    def _process_together(self, frames: Sequence[Frame]) -> BatchOutcome:
        if self._fallback is None:
            return self._process(frames)
        if self._usable:
            try:
                # Each worker's frames wait for nobody else's.
                with torch.cuda.stream(self._stream):
                    return self._process(frames)
            except Exception as error:
                if not is_device_fault(error):
                    raise
                log.exception("the device failed; from here on the CPU judges the frames, these %d first", len(frames))
                self._fail(error)
        return self._fallback.process(frames)

    @property
    def _usable(self) -> bool:
        """Whether frames go to the device: also not where another worker found it lost."""
        if self.fault is None and self._fallback is not None and (reason := devices.lost(self._device)) is not None:
            self.fault = reason
            log.warning("another worker found the device lost; from here on the CPU judges the frames")
            self._abandon()
        return self.fault is None

    def _fail(self, error: Exception) -> None:
        self.fault = (str(error).splitlines() or [type(error).__name__])[0]
        if not devices.is_full(error):
            devices.lose(self._device, self.fault)
        self._abandon()

    def _abandon(self) -> None:
        """What was ready on the device is not used again; where that is lost, never freed either."""
        held: list[Any] = [*self._prepared.values(), *self._engines.values()]
        self._prepared.clear()
        self._engines.clear()
        devices.let_go(self._device, held, self._stream)

    def _settle(self) -> None:
        """Before frames that may have to come again, one by one."""
        for prepared in list(self._prepared.values()):
            prepared.settled[:] = prepared.coverage.expected
            if prepared.engine is not None:
                prepared.engine.settle()

    @torch.inference_mode()
    def _take_back(self) -> None:
        """What they covered before one of them failed would count twice."""
        for prepared in list(self._prepared.values()):
            # Where their pixels were seen they will be again.
            prepared.coverage.expected[:] = prepared.settled
            if prepared.engine is not None:
                try:
                    with torch.cuda.stream(self._stream):
                        prepared.engine.take_back()
                except Exception as error:
                    # The next batch finds it out.
                    if not is_device_fault(error):
                        raise

    @torch.inference_mode()
    def _process(self, frames: Sequence[Frame]) -> BatchOutcome:
        outcome = BatchOutcome([], stage_seconds=dict.fromkeys(("decode", "reduce", "peaks", "infer"), 0.0))
        if len(frames) > 1 or self._fallback is not None:
            self._settle()
        # A model that is asked on the CPU is fed from the worker's own buffer, if it is to be asked at all.
        step = 1 if self._models and self._device.type == "cpu" else max(1, len(frames))
        for first in range(0, len(frames), step):
            self._judge(frames[first : first + step], outcome)
        return outcome

    def _judge(self, frames: Sequence[Frame], outcome: BatchOutcome) -> None:
        """All frames through one stage after the other: each finds its code and its tables still in the cache."""
        seconds = outcome.stage_seconds
        looks = list(self._looks(frames, outcome))
        good = [look for look in looks if isinstance(look, _Look)]
        began = time.perf_counter()
        # One by one, on the CPU: a batch is no faster there, and rounds differently, where a record must not depend
        # on its neighbours.
        logits = [self._bundle.hit(*look.inputs) if look.logit is None else look.logit for look in good]
        probabilities = self._hit_probabilities(self._answered(logits)) if good else []
        judged = time.perf_counter()
        judgements = [self._classical(look.view) for look in good]
        listed = time.perf_counter()
        profiles = [look.view.profile for look in good]
        estimates = itertools.repeat(None) if self._fits or not good else self._parameters(np.stack(profiles))
        for look, fields in zip(good, judgements, strict=True):
            if look.prepared.estimator is not None:
                fields.update(_estimated(look.prepared.estimator, look.view))
        said = self._say(good, judgements, probabilities)
        seconds["peaks"] += listed - judged
        seconds["infer"] += judged - began + time.perf_counter() - listed
        outcome.profiles += profiles
        outcome.peaks += [look.view.peaks for look in good]
        outcome.diffuse += [look.view.diffuse for look in good]
        of_good = zip(judgements, probabilities, estimates, said, strict=False)
        for frame, each in zip(frames, looks, strict=True):
            if isinstance(each, UndecodableImage):
                outcome.results.append(undecodable(frame, each.reason, str(each), self._settings.tags))
            else:
                outcome.results.append(self._result(frame, *next(of_good)))

    def _say(
        self, good: Sequence[_Look], judgements: Sequence[dict[str, Any]], probabilities: Sequence[float]
    ) -> Iterable[Said | None]:
        """What the single models say of each good frame."""
        if not self._models or not good:
            return itertools.repeat(None)
        decisions = [self._decision(fields, p) for fields, p in zip(judgements, probabilities, strict=True)]
        feeds = [
            self._models.feed(self._seen(look.prepared, look.view.profile), decision)
            if look.feed is None
            else look.feed
            for look, decision in zip(good, decisions, strict=True)
        ]
        return self._models.say(feeds, decisions)

    def _looks(self, frames: Sequence[Frame], outcome: BatchOutcome) -> Iterator[_Look | UndecodableImage]:
        """Each frame, reduced; on a device those of a kind that follow each other are one batch."""
        seconds = outcome.stage_seconds
        for prepared, run in itertools.groupby(frames, self._prepared_or_not):
            batch = list(run)
            if isinstance(prepared, UndecodableImage):
                yield from itertools.repeat(prepared, len(batch))
            elif prepared.engine is None:
                for frame in batch:
                    yield self._look(prepared, _image(frame), outcome)
            else:
                began = time.perf_counter()
                for frame, found in zip(batch, prepared.engine.reduce([_image(each) for each in batch]), strict=True):
                    seconds["reduce"] += time.perf_counter() - began
                    if found is None:
                        yield self._look(prepared, _image(frame), outcome)
                    elif isinstance(found, UndecodableImage):
                        yield found
                    else:
                        fewest = self._bundle.card.no_beam_photons
                        view = frame_view(prepared.plan, prepared.profile_index, found.views, fewest)
                        yield _Look(prepared, view, found.logit)
                    began = time.perf_counter()

    def _look(self, prepared: _Prepared, image: ImageData, outcome: BatchOutcome) -> _Look | UndecodableImage:
        """Unpack and reduce a frame here."""
        seconds, workspace = outcome.stage_seconds, prepared.workspace
        began = time.perf_counter()
        try:
            workspace.load(image)
        except UndecodableImage as error:
            return error
        loaded = time.perf_counter()
        workspace.coverage = prepared.coverage
        reduced = workspace.reduce()
        done = time.perf_counter()
        peaks = prepared.finder.find(workspace, reduced)
        if prepared.shadow is not None:
            outcome.comparisons.append(_compare_with_shadow(prepared.shadow, prepared, reduced, peaks))
        view = FrameView(
            prepared.plan,
            frame_peaks(prepared.plan, workspace.pixels, peaks, workspace.background),
            _no_beam(workspace, reduced, self._bundle.card.no_beam_photons),
            coarse_profile(reduced.photons, reduced.pixels_counted, prepared.profile_index),
            reduced.saturated_pixels,
            reduced.background_photons,
            workspace.profile(),
        )
        inputs = tuple(prepared.inputs[name].to(self._device, copy=True) for name in self._hit_fields)
        batched = self._models and self._device.type != "cpu"
        feed = self._models.feed(self._seen(prepared, view.profile), None) if batched else None
        seconds["decode"] += loaded - began
        seconds["reduce"] += done - loaded
        seconds["peaks"] += time.perf_counter() - done
        return _Look(prepared, view, None, inputs, feed)

    @torch.inference_mode()
    def estimate(self, profile: npt.NDArray[np.float32]) -> dict[str, Any]:
        """The parameter fields of a record by the network, for a profile (2, bins) such as the sum over many frames."""
        if self._fallback is not None:
            if self._usable:
                try:
                    return self._estimate(profile)
                except Exception as error:
                    if not is_device_fault(error):
                        raise
                    log.exception("the device failed; the CPU makes the estimate")
                    self._fail(error)
            return self._fallback.estimate(profile)
        return self._estimate(profile)

    def _estimate(self, profile: npt.NDArray[np.float32]) -> dict[str, Any]:
        return _network_parameters(
            self._parameters(profile[None])[0], self._bundle.card.parameters.sigma_scale, no_beam=False
        )

    @property
    def _fits(self) -> bool:
        """Whether parameters come from the fit to each frame, and not from the network."""
        return self._bundle.scattering is not None

    @property
    def on_device(self) -> bool:
        """Whether a device that is in order has a part in what it says; it has the CPU to fall back on."""
        return self._fallback is not None and self.fault is None

    def give_up(self, reason: str) -> None:
        """The device does not come back from a call: it is lost, and another thread may go on without this one."""
        self._fail(DeviceFault(reason))

    def workspaces(self, series: Series) -> list[Workspace]:
        """The workspaces in which this worker reduces frames of a series, each with what it saw last."""
        own = [prepared.workspace for key, prepared in list(self._prepared.items()) if key[0] == series.ordinal]
        return own + (self._fallback.workspaces(series) if self._fallback else [])

    def covered(self, series: Series) -> list[Coverage]:
        """What this worker's frames of a series covered."""
        ready = [prepared for key, prepared in list(self._prepared.items()) if key[0] == series.ordinal]
        covered = [prepared.coverage for prepared in ready]
        for prepared in ready:
            # Of a device that is lost nothing is known, nor is it to be waited for.
            if prepared.engine is not None and self._usable:
                try:
                    devices.settle(self._device, self._stream)
                    covered.append(prepared.engine.coverage)
                except Exception as error:
                    if not is_device_fault(error):
                        raise
                    log.exception("the device failed at the end of a series")
                    self._fail(error)
        return covered + (self._fallback.covered(series) if self._fallback else [])

    def forget(self, series: Series) -> None:
        """Let go of the buffers held for a series."""
        for key in [key for key in list(self._prepared) if key[0] == series.ordinal]:
            self._let_go(key)
        if self._fallback is not None:
            self._fallback.forget(series)

    def _let_go(self, key: tuple[Any, ...]) -> None:
        prepared = self._prepared.pop(key, None)
        if prepared is not None and self._fallback is not None:
            held: list[Any] = [prepared]
            del prepared
            devices.let_go(self._device, held, self._stream)

    def _prepared_or_not(self, frame: Frame) -> _Prepared | UndecodableImage:
        """What is ready for a frame, or why it cannot be analysed."""
        try:
            if isinstance(frame.image, Defect):
                raise UndecodableImage(frame.image.reason, frame.image.text)
            check_size(frame.image)
            return self._prepare(frame, frame.image)
        except UndecodableImage as error:
            return error

    def _prepare(self, frame: Frame, image: ImageData) -> _Prepared:
        series = frame.series
        dtype = image.dtype.newbyteorder("=")
        key = (series.ordinal, id(series.metadata), image.shape, dtype, frame.channel)
        prepared = self._prepared.get(key)
        if prepared is None:
            if len(self._prepared) >= _PLANS_KEPT:
                self._let_go(next(iter(list(self._prepared))))
            prepared = self._prepared[key] = self._make(frame, image.shape, dtype)
        return prepared

    def _make(self, frame: Frame, shape: tuple[int, int], dtype: np.dtype[Any]) -> _Prepared:
        metadata = frame.series.metadata
        plan = plan_of(self._settings, self._plans, frame, shape, dtype)
        geometry = plan.geometry
        workspace = self._workspace(plan, dtype)
        shadow = self._settings.shadow
        return _Prepared(
            metadata,
            plan,
            workspace,
            Coverage.none(plan),
            np.zeros(plan.bins.bins),
            profile_index(geometry, plan.bins.radial_bins),
            {
                "zones": torch.from_numpy(workspace.zones)[None],
                "cells": torch.from_numpy(workspace.cells)[None],
                "header": torch.from_numpy(header_of(geometry))[None],
            },
            {
                name: torch.tensor([float(value)])
                for name in ("photon_energy_eV", "camera_length_m")
                if (value := getattr(geometry, name)) is not None
            },
            self._settings.finder.prepare(plan, dtype, self._device, self._bundle),
            None if shadow is None else shadow.prepare(plan, dtype, self._device, self._bundle),
            self._estimator(plan),
            None if (engine := self._engine(plan, dtype)) is None else engine.for_series(),
        )

    def _workspace(self, plan: FramePlan, dtype: np.dtype[Any]) -> Workspace:
        """Buffers for such frames; series share them as long as others are measured alike.

        Made anew in each, tens of megabytes would come and go, and every page of them be given by the kernel again.
        """
        workspace = self._workspaces.get((plan, dtype)) or Workspace(plan, dtype)
        kept = {key: each for key, each in self._workspaces.items() if key in self._plans}
        self._workspaces = kept | {(plan, dtype): workspace}
        return workspace

    def _engine(self, plan: FramePlan, dtype: np.dtype[Any]) -> Engine | None:
        """What reduces such frames on the device; series share it as they share buffers here, ``_ENGINES_KEPT`` stay.

        ``None``: nothing does.
        """
        if self._programs is None:
            return None
        engine = self._engines.pop((plan, dtype), None)
        if engine is None:
            self._let_engines_go(_ENGINES_KEPT - 1)
            engine = self._make_engine(plan, dtype, self._programs)
        if engine is not None:
            self._engines[plan, dtype] = engine
        return engine

    def _let_engines_go(self, most: int) -> None:
        """Let go of engines that no series uses: those that none asked for lately, then the ones asked for longest
        ago, until there are no more than ``most``."""
        used = {id(prepared.engine.engine) for prepared in list(self._prepared.values()) if prepared.engine is not None}
        idle = [key for key, engine in list(self._engines.items()) if id(engine) not in used]
        old = [key for key in idle if key not in self._plans]
        idle = [key for key in idle if key not in old]
        gone = old + idle[: max(0, len(self._engines) - len(old) - most)]
        held: list[Any] = [self._engines.pop(key, None) for key in gone]
        if held:
            devices.let_go(self._device, held, self._stream)

    def release(self) -> None:
        """Let go of all buffers that no series uses."""
        self._let_engines_go(0)
        used = {id(prepared.workspace) for prepared in list(self._prepared.values())}
        self._workspaces = {key: each for key, each in self._workspaces.items() if id(each) in used}
        if self._fallback is not None:
            self._fallback.release()

    def _make_engine(self, plan: FramePlan, dtype: np.dtype[Any], programs: DevicePrograms) -> Engine | None:
        # Not the analyser, which must be free to go.
        hit, names = self._bundle.hit, self._hit_fields
        header = torch.from_numpy(header_of(plan.geometry))[None].to(self._device)

        def judge(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            fields = inputs | {"header": header.expand(len(inputs["zones"]), -1)}
            logits: torch.Tensor = hit(*(fields[name] for name in names))
            return logits

        frames = MOST_FRAMES
        while True:
            try:
                return Engine(plan, dtype, programs, frames, judge, MOST_FRAMES)
            except ValueError as error:
                log.warning("these frames are reduced on the CPU: %s", error)
                return None
            except Exception as error:
                if frames <= _FEWEST_FRAMES or not (is_device_fault(error) and devices.is_full(error)):
                    raise
            had = len(self._engines)
            self._let_engines_go(0)
            if len(self._engines) < had:
                continue
            frames //= 2
            log.warning("the device has no room for more: %d frames of %s at once", frames, plan.shape)

    def _estimator(self, plan: FramePlan) -> FrameEstimator | None:
        if self._bundle.scattering is None:
            return None
        geometry = plan.geometry
        center = (geometry.beam_center_fs, geometry.beam_center_ss)
        return FrameEstimator(plan.sectors, self._bundle.scattering, plan.shape, center)

    def _classical(self, view: FrameView) -> dict[str, Any]:
        """The part of a result that needs no network."""
        plan, found = view.plan, view.peaks
        q = found.q_per_angstrom
        peaks = [
            Peak(round(float(p["fs"]), 3), round(float(p["ss"]), 3), round(float(p["intensity"]), 3),
                 round(float(p["snr"]), 3), bool(p["saturated"]), *_spacing(None if q is None else float(q[n])))
            for n, p in enumerate(found.peaks)
        ]  # fmt: skip
        pixels = max(1.0, float(plan.bin_pixels.sum()))
        flux = view.background_photons / pixels / self._bundle.card.reference_background_photons_per_pixel
        return {
            "peaks": peaks,
            "peak_count": len(peaks),
            "indexable": len(peaks) >= self._settings.indexable_peaks,
            "resolution_angstrom": _resolution(plan, found.radius_px),
            "saturated_pixels": view.saturated_pixels,
            "background_photons": round(view.background_photons, 3),
            "relative_flux": round(flux, 5),
            "mask": plan.validity.name,
            "no_beam": view.no_beam,
        }

    def _seen(self, prepared: _Prepared, profile: npt.NDArray[np.float32]) -> Seen:
        """What single models may ask for, in the worker's own buffers."""
        features = profile_features(torch.from_numpy(profile)[None])
        fields = {**prepared.inputs, **prepared.header, "profile": features}
        return Seen(prepared.workspace.pixels, prepared.plan.validity.valid, fields)

    def _hit_probabilities(self, logits: torch.Tensor) -> list[float]:
        card = self._bundle.card.hit
        calibrated = torch.sigmoid((logits.double() + card.bias) / card.temperature)
        return [round(probability, 6) for probability in calibrated.tolist()]

    def _parameters(self, profiles: npt.NDArray[np.float32]) -> list[list[float]]:
        whole = torch.from_numpy(profiles).to(self._device)
        size = 1 if self._device.type == "cpu" else len(whole)
        parts = [self._bundle.parameters(profile_features(part)) for part in torch.split(whole, size)]
        out: list[list[float]] = self._answered(parts).double().tolist()
        return out

    def _answered(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What networks said, on the CPU; one wait for all of it, no longer than ``devices.wait`` does."""
        if any(part.device.type == "cuda" for part in parts):
            devices.settle(self._device)
        return torch.cat([part.cpu() for part in parts])

    def _decision(self, fields: dict[str, Any], probability: float) -> Decision:
        settings = self._settings
        if fields["no_beam"]:
            return Decision.NO_BEAM
        threshold = settings.threshold if settings.threshold is not None else self._bundle.card.hit.threshold
        by_network = probability >= threshold
        by_peaks = fields["peak_count"] >= settings.min_peaks
        hit = {
            HitRule.NETWORK: by_network,
            HitRule.PEAKS: by_peaks,
            HitRule.EITHER: by_network or by_peaks,
            HitRule.BOTH: by_network and by_peaks,
        }[settings.hit_rule]
        return Decision.HIT if hit else Decision.MISS

    def _result(
        self, frame: Frame, fields: dict[str, Any], probability: float, estimate: list[float] | None, said: Said | None
    ) -> FrameResult:
        decision = self._decision(fields, probability)
        no_beam = fields.pop("no_beam")
        if estimate is not None:
            fields |= _network_parameters(estimate, self._bundle.card.parameters.sigma_scale, no_beam)
        return FrameResult(
            **_identity(frame, self._settings.tags),
            decision=decision,
            hit=decision == Decision.HIT,
            hit_probability=0.0 if no_beam else probability,
            hit_rule=self._settings.hit_rule,
            bundle=self._bundle.label,
            attributes=None if said is None else said.values,
            nulls=None if said is None else {name: (null.reason, null.text) for name, null in said.nulls.items()},
            **fields,
        )


def _compare_with_shadow(
    shadow: PeakFinder, prepared: _Prepared, reduced: Reduced, published: npt.NDArray[Any]
) -> Comparison | None:
    try:
        return compare(published, shadow.find(prepared.workspace, reduced))
    except Exception:
        # Only looked at, so a fault of it costs no frame.
        _repeats.exception("the shadow finder failed on a frame", "shadow_finder_failed")
        return None


def _no_beam(workspace: Workspace, reduced: Reduced, fewest_places: int) -> bool:
    plan = workspace.plan
    lit: npt.NDArray[np.bool_] = reduced.significance[SINGLE] > 0.0
    _, _, single = describe_peaks(plan, workspace.pixels, reduced.peaks, workspace.background)
    return saw_no_beam(plan, lit, reduced.peaks, single, fewest_places)


def _estimated(estimator: FrameEstimator, view: FrameView) -> dict[str, Any]:
    return estimator.fields(view.diffuse.profile, view.diffuse.pairs, view.saturated_pixels, view.no_beam)


def _image(frame: Frame) -> ImageData:
    """The image of a frame that was found to have one."""
    assert isinstance(frame.image, ImageData)
    return frame.image


def _identity(frame: Frame, tags: tuple[str, ...]) -> dict[str, Any]:
    return {
        "tags": tags_of(frame.user_data, tags),
        "series_id": frame.series.series_id,
        "image_id": frame.image_id,
        "channel": frame.channel,
        "start_time": frame.start_time_s,
        "exposure_s": frame.exposure_s,
        "received_at": frame.received_at,
        "ordinal": frame.series.ordinal,
    }


def undecodable(frame: Frame, reason: str, text: str, tags: tuple[str, ...] = ()) -> FrameResult:
    """The result of an image that cannot be decoded; ``tags`` are the keys of user data to keep."""
    return FrameResult(**_identity(frame, tags), status=Status.UNDECODABLE, status_text=text, reason=reason)


def dropped(frame: Frame, reason: str, tags: tuple[str, ...] = ()) -> FrameResult:
    """The result of an image that was accepted but not analysed."""
    return FrameResult(**_identity(frame, tags), status=Status.DROPPED, status_text=reason, reason=reason)


def tags_of(user_data: Any, wanted: tuple[str, ...]) -> dict[str, Any] | None:
    """The chosen keys of an image's user data, cut to a length that fits a record."""
    if not wanted or not isinstance(user_data, dict):
        return None
    kept: dict[str, Any] = {}
    for key in wanted:
        value = user_data.get(key)
        if isinstance(value, str):
            kept[key] = value[:_MAX_TAG_CHARACTERS]
        elif isinstance(value, (int, float, bool)) and not (isinstance(value, int) and value.bit_length() > 63):
            kept[key] = value
    return kept or None


def _spacing(q: float | None) -> tuple[float | None, float | None]:
    """q in 1/angstrom and d in angstrom as they are published; d of the beam itself is none."""
    if q is None:
        return None, None
    return round(q, 5), round(2 * math.pi / q, 4) if q > 0 else None


def _resolution(plan: FramePlan, radius_px: npt.NDArray[np.float64]) -> float | None:
    """Bragg's d at the radius that 95 % of the peaks lie within."""
    if not len(radius_px):
        return None
    resolution = plan.geometry.resolution_at(float(np.quantile(radius_px, 0.95)))
    return None if resolution is None else round(resolution, 3)


def _network_parameters(estimate: list[float], scale: tuple[float, float, float], no_beam: bool) -> dict[str, Any]:
    """The parameter fields of a record by what the network says."""
    if no_beam:
        return {"estimate_reason": "no beam"}
    values = [math.exp(value) for value in estimate[:3]]
    sigmas = [value * math.exp(log) * factor for value, log, factor in zip(values, estimate[3:], scale, strict=True)]
    energy, distance, ratio = values
    return claimed(energy, distance, ratio, sigmas[0], sigmas[1], sigmas[2])
