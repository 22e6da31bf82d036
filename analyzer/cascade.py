"""The cascade: decode, reduce, hit, photon energy, camera length, then any single models, on batches of frames.

One ``Analyser`` belongs to one worker and reuses its buffers; a result is a function of the
frame, its series' header, the bundle and the settings alone.
"""

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import label

from analyzer.architectures import architecture
from analyzer.attribute_cascade import AttributeCascade, Feed, Said, Seen
from analyzer.attribute_model import AttributeModel
from analyzer.bundle import Bundle
from analyzer.frame_peaks import FramePeaks, frame_peaks
from analyzer.geometry import Geometry
from analyzer.kernels import CELL
from analyzer.networks import coarse_profile, profile_features, profile_index
from analyzer.panels import GivenGeometry, place
from analyzer.parameters.claims import claimed
from analyzer.parameters.frame import FrameEstimator
from analyzer.peak_finder import BY_BUNDLE, Comparison, FinderKind, PeakFinder, compare
from analyzer.reduction import FramePlan, FrameProfile, Reduced, Workspace, make_plan
from analyzer.results import Decision, FrameResult, HitRule, Peak, Status
from analyzer.zones import SINGLE, header_of
from streamer.decoding import check_size
from streamer.frames import Frame
from streamer.messages import Defect, ImageData, SeriesMetadata, UndecodableImage
from streamer.series import Series
from streamer.validity import Validity, saturation_of, series_validity

log = logging.getLogger(__name__)

STAGES = ("receive", "decode", "reduce", "infer", "peaks", "publish")
_PLANS_KEPT = 4
_MAX_TAG_CHARACTERS = 200
_BEAM_SHARE = 0.05
"""Light in more of the cells than this is a beam; places are then too many to be told apart."""


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
    (2, bins): photons, pixels), their peaks, their diffuse scattering, seconds spent in each stage, and how a shadow
    finder's peaks compare, ``None`` where it failed."""

    results: list[FrameResult]
    profiles: list[npt.NDArray[np.float32]] = field(default_factory=list)
    peaks: list[FramePeaks] = field(default_factory=list)
    diffuse: list[FrameProfile] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    comparisons: list[Comparison | None] = field(default_factory=list)


@dataclass(slots=True)
class _Prepared:
    """What is ready for the frames of one series in one shape and type."""

    # Held, because its id is part of the key: a freed one's could name other metadata.
    metadata: SeriesMetadata
    plan: FramePlan
    workspace: Workspace
    profile_index: npt.NDArray[np.intp]
    inputs: dict[str, torch.Tensor]
    header: dict[str, torch.Tensor]
    finder: PeakFinder
    shadow: PeakFinder | None
    estimator: FrameEstimator | None


class PlanCache:
    """Plans of the latest series, for all workers: most series are measured as the one before."""

    def __init__(self) -> None:
        self._plans: deque[FramePlan] = deque(maxlen=_PLANS_KEPT)
        self._lock = threading.Lock()

    def get(self, geometry: Geometry, validity: Validity, saturation: int) -> FramePlan:
        """The plan for such frames, made if it is new."""
        with self._lock:
            for plan in self._plans:
                same = (plan.geometry, plan.saturation, plan.validity.name) == (geometry, saturation, validity.name)
                if same and np.array_equal(plan.validity.valid, validity.valid):
                    return plan
            plan = make_plan(geometry, validity, saturation)
            self._plans.append(plan)
            return plan


class Analyser:
    """Judges batches of frames with one bundle on one device."""

    def __init__(
        self, bundle: Bundle, settings: CascadeSettings, device: str = "cpu", plans: PlanCache | None = None
    ) -> None:
        self._bundle = bundle
        self._settings = settings
        self._device = torch.device(device)
        self._prepared: dict[tuple[Any, ...], _Prepared] = {}
        self._plans = plans or PlanCache()
        self._hit_fields = architecture(bundle.card.hit.network).inputs
        self._models = AttributeCascade(settings.models, self._device)

    @torch.inference_mode()
    def process(self, frames: Sequence[Frame]) -> BatchOutcome:
        """One result for each frame; an undecodable frame costs only itself."""
        seconds = dict.fromkeys(("decode", "reduce", "peaks", "infer"), 0.0)
        results: list[FrameResult | None] = []
        judged: list[tuple[int, Frame, dict[str, Any]]] = []
        logits: list[torch.Tensor] = []
        waiting: list[tuple[torch.Tensor, ...]] = []
        profiles: list[npt.NDArray[np.float32]] = []
        found: list[FramePeaks] = []
        diffuse: list[FrameProfile] = []
        feeds: list[Feed] = []
        said: list[Said] = []
        comparisons: list[Comparison | None] = []
        for frame in frames:
            began = time.perf_counter()
            try:
                prepared = self._decode(frame)
            except UndecodableImage as error:
                results.append(undecodable(frame, error.reason, str(error), self._settings.tags))
                continue
            decoded = time.perf_counter()
            reduced = prepared.workspace.reduce()
            done = time.perf_counter()
            seconds["decode"] += decoded - began
            seconds["reduce"] += done - decoded
            peaks = prepared.finder.find(prepared.workspace, reduced)
            if prepared.shadow is not None:
                comparisons.append(_compare_with_shadow(prepared.shadow, prepared, reduced, peaks))
            found.append(frame_peaks(prepared.plan, prepared.workspace.pixels, peaks, prepared.workspace.background))
            judged.append((len(results), frame, self._classical(prepared, reduced, found[-1])))
            results.append(None)
            profiles.append(coarse_profile(reduced.photons, reduced.pixels_counted, prepared.profile_index))
            diffuse.append(prepared.workspace.profile())
            listed = time.perf_counter()
            if prepared.estimator is not None:
                judged[-1][2].update(self._estimated(prepared.estimator, diffuse[-1], judged[-1][2]))
            if self._device.type == "cpu":
                # At once, from the worker's own buffer: here a batch is no faster, and it rounds
                # differently, where a record must not depend on its neighbours.
                logits.append(self._bundle.hit(*self._hit_inputs(prepared)))
            else:
                waiting.append(tuple(each.to(self._device) for each in self._hit_inputs(prepared)))
            if self._models and logits:
                decision = self._decision(judged[-1][2], self._hit_probabilities(logits[-1])[0])
                said += self._models.say([self._models.feed(self._seen(prepared, profiles[-1]), decision)], [decision])
            elif self._models:
                feeds.append(self._models.feed(self._seen(prepared, profiles[-1]), None))
            seconds["peaks"] += listed - done
            seconds["infer"] += time.perf_counter() - listed
        if judged:
            began = time.perf_counter()
            probabilities = self._hit_probabilities(torch.cat(logits or self._batched_logits(waiting)))
            parameters = None if self._fits else self._parameters(np.stack(profiles))
            if feeds:
                decisions = [self._decision(fields, p) for (_, _, fields), p in zip(judged, probabilities, strict=True)]
                said = self._models.say(feeds, decisions)
            seconds["infer"] += time.perf_counter() - began
            for (place, frame, fields), probability, estimate, more in zip(
                judged, probabilities, parameters or itertools.repeat(None, len(judged)),
                said or itertools.repeat(None, len(judged)), strict=True,
            ):  # fmt: skip
                results[place] = self._result(frame, fields, probability, estimate, more)
        kept = [result for result in results if result is not None]
        return BatchOutcome(kept, profiles, found, diffuse, seconds, comparisons)

    @torch.inference_mode()
    def estimate(self, profile: npt.NDArray[np.float32]) -> dict[str, Any]:
        """The parameter fields of a record by the network, for a profile (2, bins) such as the sum over many frames."""
        return _network_parameters(
            self._parameters(profile[None])[0], self._bundle.card.parameters.sigma_scale, no_beam=False
        )

    @property
    def _fits(self) -> bool:
        """Whether parameters come from the fit to each frame, and not from the network."""
        return self._bundle.scattering is not None

    def _estimated(self, estimator: FrameEstimator, seen: FrameProfile, fields: dict[str, Any]) -> dict[str, Any]:
        return estimator.fields(seen.profile, seen.pairs, fields["saturated_pixels"], fields["no_beam"])

    def workspaces(self, series: Series) -> list[Workspace]:
        """The workspaces that hold what this worker has seen of a series."""
        return [prepared.workspace for key, prepared in list(self._prepared.items()) if key[0] == series.ordinal]

    def forget(self, series: Series) -> None:
        """Let go of the buffers held for a series."""
        for key in [key for key in list(self._prepared) if key[0] == series.ordinal]:
            self._prepared.pop(key, None)

    def _decode(self, frame: Frame) -> _Prepared:
        image = frame.image
        if isinstance(image, Defect):
            raise UndecodableImage(image.reason, image.text)
        check_size(image)
        prepared = self._prepare(frame, image)
        prepared.workspace.load(image)
        return prepared

    def _prepare(self, frame: Frame, image: ImageData) -> _Prepared:
        series = frame.series
        dtype = image.dtype.newbyteorder("=")
        key = (series.ordinal, id(series.metadata), image.shape, dtype)
        prepared = self._prepared.get(key)
        if prepared is None:
            if len(self._prepared) >= _PLANS_KEPT:
                self._prepared.pop(next(iter(list(self._prepared))), None)
            prepared = self._prepared[key] = self._make(frame, image.shape, dtype)
        return prepared

    def _make(self, frame: Frame, shape: tuple[int, int], dtype: np.dtype[Any]) -> _Prepared:
        metadata = frame.series.metadata
        try:
            geometry, mask = place(self._settings.geometry, self._settings.mask, metadata, shape)
            validity = series_validity(metadata, shape, frame.channel, mask)
        except ValueError as error:
            raise UndecodableImage("size_mismatch", str(error)) from None
        plan = self._plans.get(geometry, validity, saturation_of(metadata, dtype))
        workspace = Workspace(plan, dtype)
        shadow = self._settings.shadow
        return _Prepared(
            metadata,
            plan,
            workspace,
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
        )

    def _estimator(self, plan: FramePlan) -> FrameEstimator | None:
        if self._bundle.scattering is None:
            return None
        geometry = plan.geometry
        center = (geometry.beam_center_fs, geometry.beam_center_ss)
        return FrameEstimator(plan.sectors, self._bundle.scattering, plan.shape, center)

    def _classical(self, prepared: _Prepared, reduced: Reduced, found: FramePeaks) -> dict[str, Any]:
        """The part of a result that needs no network; ``found`` are the peaks to publish."""
        plan = prepared.plan
        q = found.q_per_angstrom
        peaks = [
            Peak(round(float(p["fs"]), 3), round(float(p["ss"]), 3), round(float(p["intensity"]), 3),
                 round(float(p["snr"]), 3), bool(p["saturated"]), *_spacing(None if q is None else float(q[n])))
            for n, p in enumerate(found.peaks)
        ]  # fmt: skip
        pixels = max(1.0, float(plan.bin_pixels.sum()))
        flux = reduced.background_photons / pixels / self._bundle.card.reference_background_photons_per_pixel
        return {
            "peaks": peaks,
            "peak_count": len(peaks),
            "indexable": len(peaks) >= self._settings.indexable_peaks,
            "resolution_angstrom": _resolution(plan, found.radius_px),
            "saturated_pixels": reduced.saturated_pixels,
            "background_photons": round(reduced.background_photons, 3),
            "relative_flux": round(flux, 5),
            "mask": plan.validity.name,
            "no_beam": _no_beam(prepared, reduced, self._bundle.card.no_beam_photons),
        }

    def _hit_inputs(self, prepared: _Prepared) -> list[torch.Tensor]:
        return [prepared.inputs[name] for name in self._hit_fields]

    def _seen(self, prepared: _Prepared, profile: npt.NDArray[np.float32]) -> Seen:
        """What single models may ask for, in the worker's own buffers."""
        features = profile_features(torch.from_numpy(profile)[None])
        fields = {**prepared.inputs, **prepared.header, "profile": features}
        return Seen(prepared.workspace.pixels, prepared.plan.validity.valid, fields)

    def _batched_logits(self, waiting: list[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
        """Logits of inputs on the device, those of one shape that follow each other in one call."""
        runs = [list(run) for _, run in itertools.groupby(waiting, key=lambda each: each[0].shape)]
        return [self._bundle.hit(*(torch.cat(field) for field in zip(*run, strict=True))) for run in runs]

    def _hit_probabilities(self, logits: torch.Tensor) -> list[float]:
        card = self._bundle.card.hit
        calibrated = torch.sigmoid((logits.double() + card.bias) / card.temperature)
        return [round(probability, 6) for probability in calibrated.tolist()]

    def _parameters(self, profiles: npt.NDArray[np.float32]) -> list[list[float]]:
        whole = torch.from_numpy(profiles).to(self._device)
        size = 1 if self._device.type == "cpu" else len(whole)
        parts = [self._bundle.parameters(profile_features(part)) for part in torch.split(whole, size)]
        out: list[list[float]] = torch.cat(parts).double().tolist()
        return out

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
        log.exception("the shadow finder failed on a frame")
        return None


def _no_beam(prepared: _Prepared, reduced: Reduced, fewest_places: int) -> bool:
    """Whether a frame saw no beam: light at fewer separate places than this, hot pixels left out.

    A photon of water is a place, and so is a Bragg spot where nothing else scatters; but a cosmic
    ray's whole track is one, too, and so is a module's glowing edge. A peak of a single pixel is none.
    """
    plan = prepared.plan
    lit: npt.NDArray[np.bool_] = reduced.significance[SINGLE] > 0.0
    if lit.sum() > _BEAM_SHARE * np.count_nonzero(plan.cell_valid):
        return False
    pixels, inside = prepared.workspace.pixels, plan.inside.reshape(plan.shape)
    for peak in reduced.peaks:
        ss, fs = round(float(peak["ss"])), round(float(peak["fs"]))
        around = slice(max(0, ss - 1), ss + 2), slice(max(0, fs - 1), fs + 2)
        if np.count_nonzero(pixels[around] * (inside[around] > 0)) <= 1:
            lit[min(max(ss // CELL, 0), lit.shape[0] - 1), min(max(fs // CELL, 0), lit.shape[1] - 1)] = False
    _, places = label(lit, np.ones((3, 3)))
    return bool(places < fewest_places)


def _identity(frame: Frame, tags: tuple[str, ...]) -> dict[str, Any]:
    return {
        "tags": _tags(frame.user_data, tags),
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


def _tags(user_data: Any, wanted: tuple[str, ...]) -> dict[str, Any] | None:
    """The chosen keys of an image's user data, cut to a length that fits a record."""
    if not wanted or not isinstance(user_data, dict):
        return None
    kept: dict[str, Any] = {}
    for key in wanted:
        value = user_data.get(key)
        if isinstance(value, str):
            kept[key] = value[:_MAX_TAG_CHARACTERS]
        elif isinstance(value, (int, float, bool)):
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
