"""Single models in the cascade: each says its attribute of a frame, after the bundle has judged it.

A model costs the frames that it cannot be asked about their attribute and nothing else: that is null there, with a
reason that is counted.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import center_of_mass, label
from torch import Tensor

from analyzer.architectures import architecture
from analyzer.attribute_model import AttributeModel, open_model
from analyzer.attributes import Decided
from analyzer.bundle import BadBundle
from analyzer.cuda.device import full_precision, is_device_fault, is_full
from analyzer.layers import input_shape
from analyzer.results import Decision
from streamer.errors import first_line
from streamer.validity import sentinel

INPUTS = ("image", "zones", "cells", "header", "profile", "photon_energy_eV", "camera_length_m")
"""What the analyser has of a frame; the last two from the series' header, as a network trained on them expects."""

MOST_PLACES = 2000
"""Peaks of a map in a record; a network that sees more sees water."""

_WARM_SHAPE = (512, 1028)
_EVERY = 8
_WARM_ENERGY_EV, _WARM_LENGTH_M = 8000.0, 0.2


class Unsaid(StrEnum):
    """Why an attribute is null."""

    NO_BEAM = "no_beam"
    """there is nothing to say of a frame without light"""
    NOT_A_HIT = "not_a_hit"
    """the attribute is asked of hits only"""
    SIZE = "size"
    """the network does not take what the framing leaves of such frames"""
    NO_HEADER = "no_header"
    """the network takes photon energy or camera length, and the header has none"""
    FAILED = "failed"
    """the network or the decision raised an error"""
    NO_NUMBER = "no_number"
    """the network answers with NaN or infinity"""
    TOO_MANY_PEAKS = "too_many_peaks"
    """more of them than ``MOST_PLACES``"""


@dataclass(frozen=True, slots=True)
class Null:
    """Nothing said: the reason, and a sentence where there is more to it."""

    reason: Unsaid
    text: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What there is of one frame. pixels (ss, fs) as decoded, valid (ss, fs) nonzero where a pixel counts.

    fields: what else of ``INPUTS`` there is, with a batch of one.
    """

    pixels: npt.NDArray[Any]
    valid: npt.NDArray[np.uint8]
    fields: Mapping[str, Tensor]


@dataclass(slots=True)
class Said:
    """Of one frame: ``values`` as the record has them, and for those that are null ``nulls``, by attribute."""

    values: dict[str, Any] = field(default_factory=dict)
    nulls: dict[str, Null] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Feed:
    """Of one frame of ``shape`` (ss, fs), for each model: what its network takes, with a batch of one."""

    shape: tuple[int, int]
    inputs: tuple[tuple[Tensor, ...] | Null, ...]


def open_models(folders: Sequence[Path], device: str) -> tuple[AttributeModel, ...]:
    """Models for the cascade, warm. Raises ``BadBundle`` for what cannot be one, and for two of one attribute."""
    if device != "cpu":
        full_precision()
    models: dict[str, AttributeModel] = {}
    for folder in folders:
        model = open_model(folder, device)
        name = model.attribute.name
        if strange := [each for each in model.inputs if each not in INPUTS]:
            raise BadBundle(
                f"{folder}: network {model.card.network!r} takes {strange[0]!r}, which the analysis does not have; it "
                f"has {', '.join(INPUTS)}"
            )
        if name in models:
            raise BadBundle(f"{folder}: says {name!r} as {models[name].folder} does; give one of them")
        _warm_up(model, device)
        models[name] = model
    return tuple(models.values())


@dataclass(frozen=True, slots=True)
class _Question:
    """What a network is fed of a frame of that shape."""

    frame: tuple[int, int]
    inputs: tuple[Tensor, ...]


class AttributeCascade:
    """Asks models about frames, on one device."""

    def __init__(self, models: Sequence[AttributeModel], device: torch.device) -> None:
        self._models, self._device = models, device

    def __bool__(self) -> bool:
        return bool(self._models)

    def feed(self, seen: Seen, decision: Decision | None) -> Feed:
        """What the models take of a frame, on their device; nothing for those that a known decision rules out.

        On the CPU it may be the analyser's own buffers, which hold until the next frame.
        """
        images: dict[object, Tensor] = {}
        rows, columns = seen.pixels.shape
        return Feed((rows, columns), tuple(self._feed_one(model, seen, decision, images) for model in self._models))

    def say(self, feeds: Sequence[Feed], decisions: Sequence[Decision]) -> list[Said]:
        """What the models say of frames, those of one shape that follow each other in one call."""
        said = [Said() for _ in feeds]
        for number, model in enumerate(self._models):
            asked: list[tuple[Said, _Question]] = []
            for frame, feed, decision in zip(said, feeds, decisions, strict=True):
                fed = _ruled_out(model, decision) or feed.inputs[number]
                if isinstance(fed, Null):
                    _enter(frame, model, fed)
                else:
                    asked.append((frame, _Question(feed.shape, fed)))
            for _, run in itertools.groupby(asked, key=lambda each: [part.shape for part in each[1].inputs]):
                frames, questions = zip(*run, strict=True)
                for frame, value in zip(frames, _answers(model, questions), strict=True):
                    _enter(frame, model, value)
        return said

    def _feed_one(
        self, model: AttributeModel, seen: Seen, decision: Decision | None, images: dict[object, Tensor]
    ) -> tuple[Tensor, ...] | Null:
        if decision is not None and (null := _ruled_out(model, decision)):
            return null
        inputs = []
        for name in model.inputs:
            if name == "image":
                if null := _misfit(model, seen):
                    return null
                framing = model.card.framing
                if framing not in images:
                    good = (seen.valid != 0) & (seen.pixels != sentinel(seen.pixels.dtype))
                    images[framing] = torch.from_numpy(framing.image(seen.pixels, good))[None].to(self._device)
                inputs.append(images[framing])
            elif name in seen.fields:
                inputs.append(seen.fields[name].to(self._device))
            else:
                return Null(Unsaid.NO_HEADER, f"{model.card.network} takes {name}, the header has none")
        return tuple(inputs)


def _ruled_out(model: AttributeModel, decision: Decision) -> Null | None:
    if decision == Decision.NO_BEAM:
        return Null(Unsaid.NO_BEAM)
    return Null(Unsaid.NOT_A_HIT) if model.attribute.of_hits and decision != Decision.HIT else None


def _misfit(model: AttributeModel, seen: Seen) -> Null | None:
    rows, columns = seen.pixels.shape
    left = model.card.framing.shape((rows, columns))
    reason = model.misfit(left) if all(left) else f"of {model.card.framing.text} nothing is left"
    return Null(Unsaid.SIZE, f"frames of {rows} x {columns} pixels: {reason}") if reason else None


def _enter(said: Said, model: AttributeModel, value: dict[str, Any] | Null) -> None:
    name = model.attribute.name
    if isinstance(value, Null):
        said.values[name], said.nulls[name] = None, value
    else:
        said.values[name] = value


def _answers(model: AttributeModel, questions: Sequence[_Question]) -> list[dict[str, Any] | Null]:
    """The network's answer to each frame; their inputs are of one shape. Raises what a device fails with."""
    try:
        outputs = model.network(*(torch.cat(parts) for parts in zip(*(q.inputs for q in questions), strict=True)))
        decided = model.attribute.decide(outputs.float())
        if len(decided.value) != len(questions):
            raise ValueError(f"{len(decided.value)} decisions of {len(questions)} frames")
        return [_value(model, decided, n, question.frame) for n, question in enumerate(questions)]
    except Exception as error:
        # Networks and decisions are of any package; whatever one does must cost no record, and no other frame.
        on_device = any(part.device.type != "cpu" for part in questions[0].inputs)
        if on_device and is_device_fault(error) and (len(questions) == 1 or not is_full(error)):
            raise
        if len(questions) == 1:
            return [Null(Unsaid.FAILED, f"{model.folder}: {type(error).__name__}: {first_line(error)}")]
    # Behind the handler, which would hold what those together had of a device that is full.
    return [answer for question in questions for answer in _answers(model, [question])]


def _value(model: AttributeModel, decided: Decided, n: int, frame: tuple[int, int]) -> dict[str, Any] | Null:
    value, probability = np.asarray(decided.value), decided.probability
    if not np.isfinite(value[n]).all() or (probability is not None and not np.isfinite(probability[n]).all()):
        return Null(Unsaid.NO_NUMBER, f"{model.folder}: its network answers with no number")
    if model.attribute.kind == "map":
        return _places(model, value[n], frame)
    said = bool(value[n]) if model.attribute.kind == "yes-no" else float(value[n])
    sure = None if probability is None else round(float(probability[n]), 6)
    return {"value": said, "probability": sure, "model": model.label}


def _places(model: AttributeModel, marks: npt.NDArray[Any], frame: tuple[int, int]) -> dict[str, Any] | Null:
    """The middle of each patch of pixels that are said to be a peak, as pixel indices of the whole frame."""
    patches, found = label(marks.reshape(marks.shape[-2:]), np.ones((3, 3)))
    if found > MOST_PLACES:
        return Null(Unsaid.TOO_MANY_PEAKS, f"{model.folder}: {found} peaks in a frame; it tells none from water")
    middles = np.array(center_of_mass(patches > 0, patches, range(1, found + 1)), np.float64).reshape(-1, 2)
    places = model.card.framing.on_frame(middles, frame).round(3).tolist()
    return {"value": [{"fs": fs, "ss": ss} for ss, fs in places], "probability": None, "model": model.label}


@torch.inference_mode()
def _warm_up(model: AttributeModel, device: str) -> None:
    """Ask about a made-up frame. Raises ``BadBundle`` where the network fails on it or answers with no number."""
    shape = model.shape or model.card.framing.shape(_WARM_SHAPE)
    if not all(shape):
        raise BadBundle(f"{model.folder}: nothing is left of {model.card.framing.text}")
    built = architecture(model.card.network)
    made = []
    for name in model.inputs:
        field_shape = input_shape(built, name, shape)
        value = {"photon_energy_eV": _WARM_ENERGY_EV, "camera_length_m": _WARM_LENGTH_M}.get(name, 0.0)
        made.append(torch.full((1, *field_shape), value, device=device))
        if name == "image":
            made[-1][..., ::_EVERY, ::_EVERY] = 1.0
    (answer,) = _answers(model, [_Question(_WARM_SHAPE, tuple(made))])
    if isinstance(answer, Null) and answer.reason == Unsaid.FAILED:
        raise BadBundle(f"{answer.text} on a frame of {shape[0]} x {shape[1]}")
    if isinstance(answer, Null) and answer.reason == Unsaid.NO_NUMBER:
        raise BadBundle(f"{answer.text}; its weights are damaged")
