"""Single models in the cascade: what they are fed, what the record says, and what one that fails costs."""

import importlib
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyzer import architectures, attributes
from analyzer.architectures import Architecture
from analyzer.attribute_cascade import AttributeCascade, Seen, Unsaid, open_models
from analyzer.attributes import Attribute, Decided, Recipe
from analyzer.bundle import BadBundle, Bundle, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.framing import Framing
from analyzer.networks import PROFILE_FEATURES
from analyzer.results import Decision, FrameResult, HitRule, record
from analyzer.single_model import SingleModelCard, save_model
from streamer.frames import Frame
from streamer.validity import Validity, sentinel
from tests.analyzer.builders import BROKEN, SHAPE, SPOT, frame, series, water, with_spots
from tests.single_models import Brightest, hit_model, linear_model, register
from tests.training.test_outside_attribute import install


@pytest.fixture(autouse=True)
def brightest(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def analyser(bundle: Bundle, *folders: Path, **settings: Any) -> Analyser:
    return Analyser(bundle, CascadeSettings(**{"models": open_models(folders, "cpu"), **settings}))


def judged(bundle: Bundle, frames: list[Frame], *folders: Path, **settings: Any) -> list[FrameResult]:
    return analyser(bundle, *folders, **settings).process(frames).results


def add_network(monkeypatch: pytest.MonkeyPatch, name: str, build: Any, *inputs: str, **about: Any) -> None:
    monkeypatch.setitem(architectures.OWN, name, Architecture(build=build, inputs=inputs, **about))


def add_attribute(monkeypatch: pytest.MonkeyPatch, name: str, decide: Any, **about: Any) -> None:
    """A regression that nothing is trained for."""
    made = Attribute(
        name=name, field=name, network="brightest", target=lambda truth: torch.tensor(truth), decide=decide,
        recipe=Recipe(loss="mse", optimiser="adam", learning_rate=1e-3, epochs=1, batch=1), **about,
    )  # fmt: skip
    monkeypatch.setitem(attributes.OWN, name, made)


def decide_number(outputs: Tensor) -> Decided:
    return Decided(outputs.double().cpu().numpy(), None)


def mixture() -> list[Frame]:
    """Frames of two series, two types and two shapes, with and without spots, good and bad."""
    one, two = series(1), series(2, 9, camera_length_m=0.35, dtype=np.dtype("u4"))
    frames = [frame(with_spots(water(0.1 * n, seed=n), 80, n), n, one) for n in range(6)]
    frames += [frame(water(0.3, seed=n, dtype="u4"), n, two) for n in range(3)]
    frames += [frame(BROKEN, 20, one), frame(np.zeros(SHAPE, "u1"), 21, one)]
    return [*frames, frame(with_spots(water(0.3, (64, 80), 3), 90), 22, one)]


# --- what the record says ---------------------------------------------------------------


def test_a_hit_model_says_yes_or_no_with_its_probability(bundle: Bundle, tmp_path: Path) -> None:
    folder = hit_model(tmp_path / "bright", level=10.0)
    frames = [frame(with_spots(water(0.1), 80), 0), frame(water(0.1), 1)]
    lit, dark = judged(bundle, frames, folder)
    assert lit.attributes is not None
    assert dark.attributes is not None
    assert lit.attributes["peak"]["value"] is True
    assert dark.attributes["peak"]["value"] is False
    assert lit.attributes["peak"]["probability"] > 0.99 > dark.attributes["peak"]["probability"]
    assert lit.attributes["peak"]["model"].startswith("brightest-")
    assert lit.nulls == {}


def test_records_have_no_attributes_without_a_model_and_are_else_the_same(bundle: Bundle, tmp_path: Path) -> None:
    frames = mixture()
    without, more = judged(bundle, frames), judged(bundle, frames, hit_model(tmp_path / "m"))
    assert {result.attributes is None for result in without} == {True}
    assert [replace(result, attributes=None, nulls=None) for result in more] == without
    assert [result.attributes is None for result in more] == [result.status != "ok" for result in more]


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_what_a_model_says_does_not_depend_on_the_batch(bundle: Bundle, tmp_path: Path, batch: int) -> None:
    torch.manual_seed(3)
    network = architectures.build("paper-heatmap-cnn-repaired", {})
    card = SingleModelCard(network="paper-heatmap-cnn-repaired", attribute="peaks", framing=Framing((16, 16)))
    save_model(network, card, tmp_path / "map")
    folders = (hit_model(tmp_path / "m", 2.0), linear_model(tmp_path / "e", SHAPE), tmp_path / "map")
    frames, settings = mixture(), {"hit_rule": HitRule.PEAKS, "min_peaks": 3}
    alone = [judged(bundle, [each], *folders, **settings)[0] for each in frames]
    once = analyser(bundle, *folders, **settings)
    together = [r for n in range(0, len(frames), batch) for r in once.process(frames[n : n + batch]).results]
    assert together == alone


def test_energy_is_asked_of_hits_alone(bundle: Bundle, tmp_path: Path) -> None:
    folder = linear_model(tmp_path / "m", SHAPE)
    frames = [frame(with_spots(water(0.1), 80), 0), frame(water(0.1), 1), frame(np.zeros(SHAPE, "u2"), 2)]
    hit, miss, no_beam = judged(bundle, frames, folder, hit_rule=HitRule.PEAKS, min_peaks=3)
    assert [each.decision for each in (hit, miss, no_beam)] == ["hit", "miss", "no_beam"]
    assert hit.attributes is not None
    assert hit.attributes["energy"]["value"] == 7000.0
    assert miss.attributes == no_beam.attributes == {"energy": None}
    assert (miss.nulls, no_beam.nulls) == ({"energy": ("not_a_hit", "")}, {"energy": ("no_beam", "")})


def test_attributes_come_in_the_order_given(bundle: Bundle, tmp_path: Path) -> None:
    folders = [hit_model(tmp_path / "m"), linear_model(tmp_path / "e", SHAPE)]
    for given in (folders, folders[::-1]):
        (result,) = judged(bundle, [frame(water(0.2), 0)], *given)
        assert result.attributes is not None
        assert list(result.attributes) == [{"m": "peak", "e": "energy"}[folder.name] for folder in given]


class Bright(nn.Module):
    """(B, 1, ss, fs) to (B, ss, fs): yes where a pixel has more than 12 counts an edge of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(12.0))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.level).squeeze(1)


@pytest.mark.parametrize("framing", [Framing(), Framing(None, 2), Framing((50, 60))])
def test_peaks_of_a_map_lie_where_they_are_on_the_whole_frame(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framing: Framing
) -> None:
    add_network(monkeypatch, "bright", Bright, "image")
    save_model(Bright(), SingleModelCard(network="bright", attribute="peaks", framing=framing), tmp_path / "m")
    pixels = np.zeros(SHAPE, "u2")
    pixels[::9, ::9] = 1  # a beam
    (result,) = judged(bundle, [frame(with_spots(pixels, 80), 0)], tmp_path / "m")
    assert result.attributes is not None
    found = {(peak["ss"], peak["fs"]) for peak in result.attributes["peaks"]["value"]}
    first = [(have - size) // 2 for have, size in zip(SHAPE, framing.size or SHAPE, strict=True)]
    inside = [s for s in SPOT if all(f <= x < n - f - 1 for f, x, n in zip(first, s, SHAPE, strict=True))]
    assert len(found) == len(inside)
    for ss, fs in inside:
        assert min(max(abs(a - ss - 0.5), abs(b - fs - 0.5)) for a, b in found) <= framing.bin / 2


def test_a_map_that_sees_peaks_everywhere_says_none(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_network(monkeypatch, "bright", Bright, "image")
    save_model(Bright(), SingleModelCard(network="bright", attribute="peaks"), tmp_path / "m")
    pixels = np.zeros((200, 200), "u2")
    pixels[::3, ::3] = 20
    (result,) = judged(bundle, [frame(pixels, 0, series(shape=(200, 200)))], tmp_path / "m")
    assert result.attributes == {"peaks": None}
    assert result.nulls is not None
    assert result.nulls["peaks"][0] == Unsaid.TOO_MANY_PEAKS


# --- what a network is fed --------------------------------------------------------------


class Spy(Brightest):
    """Keeps what it is fed."""

    fed: list[Tensor] = []  # noqa: RUF012 - of all that a test loads

    def forward(self, *inputs: Tensor) -> Tensor:
        Spy.fed = [each.clone() for each in inputs]
        return inputs[0].new_zeros(len(inputs[0]))


def test_the_image_is_counts_with_invalid_pixels_zero_framed_as_the_card_says(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_network(monkeypatch, "spy", Spy, "image")
    framing = Framing((40, 50), 2)
    save_model(Spy(), SingleModelCard(network="spy", attribute="peak", framing=framing), tmp_path / "m")
    pixels = water(3.0)
    pixels[30, 30] = sentinel(pixels.dtype)
    mask = np.ones(SHAPE, "u1")
    mask[20:25] = 0
    judged(bundle, [frame(pixels, 0)], tmp_path / "m", mask=Validity("m", mask))
    good = (mask != 0) & (pixels != sentinel(pixels.dtype))
    (fed,) = Spy.fed
    assert fed.dtype == torch.float32
    assert fed.shape == (1, 1, 20, 25)
    assert np.array_equal(fed[0].numpy(), framing.image(np.where(good, pixels, 0)))


def test_a_network_of_the_reductions_fields_and_the_header_is_fed_those(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("zones", "cells", "header", "profile", "photon_energy_eV", "camera_length_m")
    add_network(monkeypatch, "spy", Spy, *names)
    save_model(Spy(), SingleModelCard(network="spy", attribute="peak"), tmp_path / "m")
    known, unknown = frame(water(0.2), 0), frame(water(0.2), 0, series(photon_energy_eV=None))
    judged(bundle, [known], tmp_path / "m")
    assert Spy.fed[2].tolist() == [[7000.0, pytest.approx(0.15)]]
    assert [tuple(each.shape) for each in Spy.fed[3:]] == [(1, PROFILE_FEATURES), (1,), (1,)]
    (result,) = judged(bundle, [unknown], tmp_path / "m")
    assert result.attributes == {"peak": None}
    assert result.nulls is not None
    assert result.nulls["peak"][0] == Unsaid.NO_HEADER


def test_frames_of_another_size_than_the_network_takes_have_null_and_a_reason(bundle: Bundle, tmp_path: Path) -> None:
    folder = linear_model(tmp_path / "m", (20, 30))
    settings: dict[str, Any] = {"hit_rule": HitRule.PEAKS, "min_peaks": 1}
    (result,) = judged(bundle, [frame(with_spots(water(0.1), 80), 0)], folder, **settings)
    assert result.hit
    assert result.attributes == {"energy": None}
    assert result.nulls is not None
    reason, text = result.nulls["energy"]
    assert reason == Unsaid.SIZE
    assert "frames of 61 x 75 pixels: paper-linear takes 20 x 30 pixels" in text
    cut = linear_model(tmp_path / "cut", (20, 30), framing=Framing((40, 60), 2))
    (result,) = judged(bundle, [frame(with_spots(water(0.1), 80), 0)], cut, **settings)
    assert result.nulls == {}


# --- what fails -------------------------------------------------------------------------


class Fragile(Brightest):
    """Fails on images with a bright pixel, answers NaN where the brightest has 5 counts."""

    def forward(self, images: Tensor) -> Tensor:
        brightest = images.amax((1, 2, 3))
        if (brightest > 15).any():
            raise RuntimeError("too bright\nfor this")
        return torch.where(brightest == 5, torch.nan, brightest)


def test_a_network_that_fails_costs_the_frames_it_fails_on_their_attribute_alone(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_network(monkeypatch, "fragile", Fragile, "image")
    save_model(Fragile(), SingleModelCard(network="fragile", attribute="peak"), tmp_path / "m")
    dim = np.zeros(SHAPE, "u2")
    dim[::9, ::9] = 1
    five = dim.copy()
    five[4, 4] = 5
    frames = [frame(pixels, n) for n, pixels in enumerate((dim, with_spots(dim, 80), five, dim))]
    plain = judged(bundle, frames)
    results = judged(bundle, frames, tmp_path / "m")
    assert [replace(result, attributes=None, nulls=None) for result in results] == plain
    reasons = [(result.nulls or {}).get("peak", ("", ""))[0] for result in results]
    assert reasons == ["", Unsaid.FAILED, Unsaid.NO_NUMBER, ""]
    assert "\n" not in (results[1].nulls or {})["peak"][1]


def test_a_failure_in_a_batch_is_that_of_its_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_network(monkeypatch, "fragile", Fragile, "image")
    save_model(Fragile(), SingleModelCard(network="fragile", attribute="peak"), tmp_path / "m")
    cascade = AttributeCascade(open_models([tmp_path / "m"], "cpu"), torch.device("cpu"))
    valid = np.ones((8, 8), "u1")
    feeds = [cascade.feed(Seen(np.full((8, 8), n, "u2"), valid, {}), None) for n in (1, 99, 2)]
    said = cascade.say(feeds, [Decision.HIT] * 3)
    assert [each.values["peak"] is None for each in said] == [False, True, False]


def test_frames_that_wait_for_their_decision_are_told_what_they_are_told_at_once(tmp_path: Path) -> None:
    models = open_models([hit_model(tmp_path / "m", 3.0), linear_model(tmp_path / "e", (8, 8))], "cpu")
    cascade = AttributeCascade(models, torch.device("cpu"))
    shapes = [(8, 8), (8, 8), (9, 8), (8, 8), (8, 8)]
    decisions = [Decision.HIT, Decision.MISS, Decision.HIT, Decision.NO_BEAM, Decision.HIT]
    frames = [Seen(water(2.0, shape, n), np.ones(shape, "u1"), {}) for n, shape in enumerate(shapes)]
    at_once = [cascade.say([cascade.feed(each, d)], [d])[0] for each, d in zip(frames, decisions, strict=True)]
    assert cascade.say([cascade.feed(each, None) for each in frames], decisions) == at_once
    reasons = [{name: null.reason for name, null in each.nulls.items()} for each in at_once]
    assert reasons == [
        {}, {"energy": "not_a_hit"}, {"energy": "size"}, {"peak": "no_beam", "energy": "no_beam"}, {},
    ]  # fmt: skip


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


class Failing(nn.Module):
    """On a device that fails with these words where it is asked about more frames than it has room for."""

    def __init__(self, words: str, room: int) -> None:
        super().__init__()
        self.words, self.room = words, room
        self.asked: list[int] = []
        self.held: list[bool] = []
        self._latest: weakref.ref[Tensor] | None = None

    def forward(self, image: Tensor) -> Tensor:
        self.asked.append(len(image))
        self.held.append(self._latest is not None and self._latest() is not None)
        activations = torch.zeros(len(image))
        self._latest = weakref.ref(activations)
        if len(image) > self.room:
            raise (torch.OutOfMemoryError if "out of memory" in self.words else RuntimeError)(self.words)
        return activations


def asked_on_a_device(network: Failing, folder: Path, device: str = "meta") -> list[Any]:
    """What is said of three frames; tensors of ``meta`` have a device and no numbers."""
    models = tuple(replace(each, network=network) for each in open_models([hit_model(folder, 10.0)], "cpu"))
    cascade = AttributeCascade(models, torch.device(device))
    feeds = [cascade.feed(Seen(water(2.0), np.ones(SHAPE, "u1"), {}), None) for _ in range(3)]
    return [each.values["peak"] for each in cascade.say(feeds, [Decision.HIT] * 3)]


def test_a_device_that_fails_in_a_model_is_no_fault_of_the_model(tmp_path: Path) -> None:
    lost = Failing("CUDA error: an illegal memory access was encountered", 0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        asked_on_a_device(lost, tmp_path / "m")
    assert lost.asked == [3], "a lost device is asked no more"
    with pytest.raises(torch.OutOfMemoryError):
        asked_on_a_device(Failing(FULL, 0), tmp_path / "n")


def test_a_device_without_room_for_all_frames_is_asked_about_one_after_the_other(tmp_path: Path) -> None:
    small = Failing(FULL, 1)
    said = asked_on_a_device(small, tmp_path / "m")
    assert small.asked == [3, 1, 1, 1]
    assert not any(small.held), "what the frames together took is free by then"
    assert all(each is not None and not each["value"] for each in said)


def test_words_of_a_device_are_a_models_own_fault_on_the_cpu(tmp_path: Path) -> None:
    assert asked_on_a_device(Failing("CUDA error: made up", 0), tmp_path / "m", "cpu") == [None] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_says_what_a_cpu_says(bundle_folder: Path, tmp_path: Path) -> None:
    folders = [hit_model(tmp_path / "m", 10.0), linear_model(tmp_path / "e", SHAPE)]
    said = []
    for device in ("cpu", "cuda"):
        settings = CascadeSettings(hit_rule=HitRule.PEAKS, min_peaks=3, models=open_models(folders, device))
        results = Analyser(load_bundle(bundle_folder, device), settings, device).process(mixture()).results
        said.append([result.attributes for result in results])
    assert said[0] == said[1]


def refusal(*folders: Path) -> str:
    with pytest.raises(BadBundle) as refused:
        open_models(folders, "cpu")
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_what_cannot_be_used_is_refused_at_the_start_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_network(monkeypatch, "spectral", Spy, "spectrum", shapes={"spectrum": (8,)})
    add_network(monkeypatch, "fragile", Fragile, "image")
    for name, fields in (
        ("dual", {"network": "spectral"}),
        ("colour", {"attribute": "colour"}),
        ("clean", {"view": "clean_image"}),
        ("other", {"attribute": "energy", "values": [1.0, 2.0]}),
        ("tiny", {"framing": Framing((4, 4), 8)}),
        ("huge", {"framing": Framing((99_999, 99_999), 999)}),
    ):
        hit_model(tmp_path / name, **fields)
    assert "network 'spectral' takes 'spectrum', which the analysis does not have" in refusal(tmp_path / "dual")
    assert "takes 'clean_image'" in refusal(tmp_path / "clean")
    assert "attribute 'colour' is not known" in refusal(tmp_path / "colour")
    assert "classes 1, 2 of 'energy'" in refusal(tmp_path / "other")
    assert "nothing is left" in refusal(tmp_path / "tiny")
    assert "more than any frame has" in refusal(tmp_path / "huge")
    assert "its weights are damaged" in refusal(hit_model(tmp_path / "nan", level=float("nan")))
    assert "model.json" in refusal(tmp_path / "absent")
    one = hit_model(tmp_path / "one")
    assert "says 'peak' as" in refusal(one, hit_model(tmp_path / "two"))
    wrong = hit_model(tmp_path / "wrong", attribute="energy")
    assert str(wrong) in refusal(wrong), "one number a frame is no choice of classes"


def test_a_decision_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_attribute(monkeypatch, "odd", lambda outputs: Decided(np.zeros((3, 2)), None))
    assert "3 decisions of 1 frames" in refusal(hit_model(tmp_path / "m", attribute="odd"))


# --- from another package ---------------------------------------------------------------

PACKAGE = """
import torch
from torch import nn
from analyzer.architectures import Architecture
from analyzer.attributes import Attribute, Decided, Recipe

class Light(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
    def forward(self, images):
        return self.gain * images.sum((1, 2, 3))

NETWORK = Architecture(build=Light, inputs=("image",))
LIGHT = Attribute(
    name="light", field="light", unit="counts", network="light-sum",
    recipe=Recipe(loss="mse", optimiser="adam", learning_rate=1e-3, epochs=1, batch=4),
    target=torch.as_tensor, decide=lambda outputs: Decided(outputs.double().cpu().numpy(), None), of_hits=False,
)
"""


def test_an_attribute_of_another_package_is_said_of_each_frame(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    points = {"cxls.networks": {"light-sum": "lights:NETWORK"}, "cxls.attributes": {"light": "lights:LIGHT"}}
    install(site, "beamline_lights", "lights", PACKAGE, points)
    importlib.invalidate_caches()
    try:
        card = SingleModelCard(network="light-sum", attribute="light", unit="counts")
        save_model(architectures.build("light-sum", {}), card, tmp_path / "m")
        pixels = water(0.5)
        (result,) = judged(bundle, [frame(pixels, 0)], tmp_path / "m")
    finally:
        sys.modules.pop("lights", None)
    assert result.attributes is not None
    said = result.attributes["light"]
    assert (said["value"], said["probability"]) == (float(pixels.sum()), None)
    assert msgspec.json.decode(msgspec.json.encode(record(result)))["attributes"]["light"]["value"] == pixels.sum()
