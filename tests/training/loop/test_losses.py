"""Losses against their formulas."""

import math

import pytest
import torch

from analyzer.attributes import Recipe
from training.loop.losses import per_sample_loss


def recipe(**options: object) -> Recipe:
    return Recipe(optimiser="adam", learning_rate=1e-3, epochs=1, batch=1, **options)  # type: ignore[arg-type]


def test_cross_entropy_of_two_classes_weights_positives() -> None:
    loss = per_sample_loss(recipe(loss="bce"), 3.0)(torch.tensor([[0.4], [0.4]]), torch.tensor([1.0, 0.0]))
    yes = 1 / (1 + math.exp(-0.4))
    assert loss.tolist() == pytest.approx([-3 * math.log(yes), -math.log(1 - yes)])


@pytest.mark.parametrize(("both", "weights"), [(True, (0.25, 0.25)), (False, (0.25, 0.75))])
def test_the_focal_loss_weights_classes_or_both_alike(both: bool, weights: tuple[float, float]) -> None:
    outputs, target = torch.tensor([1.5, 1.5]), torch.tensor([1.0, 0.0])
    loss = per_sample_loss(recipe(loss="focal", focal_alpha_both=both), 1.0)(outputs, target)
    p = 1 / (1 + math.exp(-1.5))
    expected = [-weights[0] * (1 - p) ** 2 * math.log(p), -weights[1] * p**2 * math.log(1 - p)]
    assert loss.tolist() == pytest.approx(expected)


def test_a_map_counts_as_the_mean_over_its_pixels() -> None:
    outputs, target = torch.randn(2, 5, 6), torch.zeros(2, 1, 5, 6)
    loss = per_sample_loss(recipe(loss="mse"), 1.0)(outputs, target)
    torch.testing.assert_close(loss, outputs.square().mean((1, 2)))


def test_the_gaussian_likelihood_is_least_at_the_true_spread() -> None:
    target = torch.tensor([2.0]).expand(3)
    outputs = torch.tensor([[1.0, math.log(s)] for s in (0.5, 1.0, 2.0)])
    loss = per_sample_loss(recipe(loss="gaussian-nll"), 1.0)(outputs, target)
    assert loss.tolist() == pytest.approx([0.5 * (1 / s + math.log(s)) for s in (0.5, 1.0, 2.0)])
    assert loss.argmin() == 1


@pytest.mark.parametrize(
    ("name", "outputs", "target"),
    [
        ("bce", torch.zeros(4, 3), torch.zeros(4)),
        ("cross-entropy", torch.zeros(4), torch.zeros(4, dtype=torch.int64)),
        ("gaussian-nll", torch.zeros(4, 1), torch.zeros(4)),
        ("mse", torch.zeros(2, 6), torch.zeros(4, 3)),
    ],
)
def test_outputs_that_do_not_fit_the_target_are_refused_with_both_shapes(name, outputs, target) -> None:
    with pytest.raises(ValueError, match=r"outputs of shape \(.*\) for a target of shape"):
        per_sample_loss(recipe(loss=name), 1.0)(outputs, target)
