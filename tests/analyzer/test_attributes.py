"""Attributes: the paper's four with its hyper-parameters, and those of other packages."""

from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from analyzer import attributes, plugins
from analyzer.attributes import (
    CAMERA_LENGTH,
    PEAK,
    PEAK_LOCATION,
    PHOTON_ENERGY,
    Recipe,
    attribute,
    decide_class,
    names,
    recipe_for,
)

SPARE = replace(PEAK, name="spare")


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("spare", value, attributes.GROUP)
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group, name=None: [point] if group == attributes.GROUP and name in (None, "spare") else [],
    )


def test_the_published_hyper_parameters_are_the_defaults() -> None:
    table = {
        "peak": ("bce", "adam", 1e-4, 30, "counts"),
        "energy": ("cross-entropy", "sgd", 1e-6, 5, 1.0),
        "camera-length": ("cross-entropy", "sgd", 1e-5, 5, 1.0),
        "peaks": ("focal", "adam", 1e-5, 15, 1.0),
    }
    for name, expected in table.items():
        recipe = attribute(name).recipe
        assert (recipe.loss, recipe.optimiser, recipe.learning_rate, recipe.epochs, recipe.pos_weight) == expected
        assert (recipe.schedule, recipe.plateau_factor, recipe.plateau_patience) == ("plateau", 0.1, 3)
        assert recipe.plateau_threshold == 0.1
        assert recipe.patience is None
    focal = attribute("peaks").recipe
    assert (focal.batch, focal.focal_alpha, focal.focal_gamma, focal.focal_alpha_both) == (1, 0.25, 2.0, True)


def test_a_network_published_with_another_recipe_has_it() -> None:
    dual = recipe_for(PEAK, "paper-dual-input")
    assert (dual.epochs, dual.pos_weight, dual.learning_rate) == (10, 1.0, 1e-4)
    assert recipe_for(PEAK, "paper-binary-cnn") is PEAK.recipe
    assert recipe_for(replace(PEAK, name="other"), "paper-dual-input") is PEAK.recipe


@pytest.mark.parametrize(
    ("each", "kind"),
    [(PEAK, "yes-no"), (PHOTON_ENERGY, "classes"), (CAMERA_LENGTH, "classes"), (PEAK_LOCATION, "map")],
)
def test_an_attribute_says_what_its_values_are(each, kind: str) -> None:
    assert each.kind == kind
    assert attribute(each.name) is each
    assert replace(PEAK, recipe=replace(PEAK.recipe, loss="mse")).kind == "value"


def test_a_value_in_single_precision_is_of_its_class_and_any_other_is_refused() -> None:
    given = np.array([0.35, 0.15, 0.25], np.float32)
    assert CAMERA_LENGTH.target(given).tolist() == [2, 0, 1]
    for strange in (0.2, np.nan, np.inf, -0.15, 0.0):
        with pytest.raises(ValueError, match=r"is none of the classes 0.15, 0.25, 0.35"):
            CAMERA_LENGTH.target(np.array([0.15, strange]))


def test_a_class_is_decided_with_its_probability() -> None:
    decided = decide_class((6000.0, 7000.0))(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
    assert decided.value.tolist() == [7000.0, 6000.0]
    assert decided.probability is not None
    assert decided.probability.tolist() == pytest.approx([1 / (1 + np.exp(-2)), 0.5])


def test_a_map_is_decided_pixel_by_pixel() -> None:
    decided = PEAK_LOCATION.decide(torch.tensor([[[-1.0, 1.0]]]))
    assert decided.value.tolist() == [[[False, True]]]
    assert decided.value.shape == (1, 1, 2)


def test_another_package_s_attribute_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "tests.analyzer.test_attributes:SPARE")
    assert "spare" in names()
    assert attribute("spare").name == "spare"
    with pytest.raises(KeyError):
        attribute("missing")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module:X", "cannot be loaded: No module named 'no_such_module'"),
        ("tests.analyzer.test_attributes:absent", "cannot be loaded"),
        ("tests.analyzer.test_attributes:offer", "is no Attribute"),
    ],
)
def test_a_broken_plugin_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    offer(monkeypatch, value)
    with pytest.raises(TypeError, match=f"entry point cxls.attributes:spare of {value} {said}"):
        attribute("spare")


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"learning_rate": float("nan")}, {"epochs": -1}, {"patience": 0}, {"clip_norm": 0.0}, {"views": ()}],
)
def test_a_recipe_that_cannot_be_followed_is_refused(wrong: dict[str, object]) -> None:
    plain: dict[str, object] = {"loss": "bce", "optimiser": "adam", "learning_rate": 1e-3, "epochs": 1, "batch": 1}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**(plain | wrong))  # type: ignore[arg-type]
