"""The losses of the peak network against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from training.peak_finder.losses import Wanted, brightness_loss, focal_heat_loss, one_pixel_loss, place_loss


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def wanted(heat: Tensor, spot: Tensor, left_out: Tensor | None = None) -> Wanted:
    b, h, w = heat.shape
    none = torch.zeros_like(spot) if left_out is None else left_out
    return Wanted(heat, torch.zeros(b, 2, h, w), torch.zeros(b, h, w), spot, none)


def test_the_focal_loss_is_that_of_the_formula() -> None:
    heat = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    spot = heat == 1.0
    p = [[0.7, 0.4], [0.1, 0.25]]
    logits = torch.tensor([[[logit(v) for v in row] for row in p]])
    by_hand = (
        -(0.3**2) * math.log(0.7) - 0.5**4 * 0.4**2 * math.log(0.6) - 0.1**2 * math.log(0.9) - 0.25**2 * math.log(0.75)
    )
    assert float(focal_heat_loss(logits, wanted(heat, spot))) == pytest.approx(by_hand, rel=1e-5)


def test_the_focal_loss_is_per_spot() -> None:
    heat = torch.tensor([[[1.0, 1.0]]])
    logits = torch.full((1, 1, 2), logit(0.2))
    assert float(focal_heat_loss(logits, wanted(heat, heat == 1.0))) == pytest.approx(
        -(0.8**2) * math.log(0.2), rel=1e-5
    )


def test_without_a_spot_the_loss_is_a_number_and_only_nothing_is_paid_for() -> None:
    logits = torch.full((1, 1, 2), logit(0.5))
    heat = torch.zeros(1, 1, 2)
    loss = focal_heat_loss(logits, wanted(heat, heat == 1.0))
    assert float(loss) == pytest.approx(-2 * 0.25 * math.log(0.5), rel=1e-5)


def test_a_heat_left_out_costs_nothing_whatever_is_said() -> None:
    heat = torch.zeros(1, 1, 2)
    left_out = torch.tensor([[[True, False]]])
    one, other = (
        focal_heat_loss(torch.tensor([[[said, -3.0]]]), wanted(heat, heat == 1.0, left_out)) for said in (-9.0, 9.0)
    )
    assert float(one) == float(other)


def test_a_spot_that_is_not_asked_for_costs_nothing_whatever_is_said() -> None:
    heat = torch.tensor([[[1.0, 0.0]]])
    none = torch.zeros_like(heat, dtype=torch.bool)
    one, other = (focal_heat_loss(torch.tensor([[[said, -3.0]]]), wanted(heat, none)) for said in (-9.0, 9.0))
    assert float(one) == float(other)


@pytest.mark.parametrize("far", [80.0, -80.0])
def test_sure_answers_have_finite_losses_and_gradients(far: float) -> None:
    logits = torch.full((1, 2, 2), far, requires_grad=True)
    heat = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    loss = focal_heat_loss(logits, wanted(heat, heat == 1.0))
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_papers_loss_weighs_one_pixel_as_much_as_it_says() -> None:
    spot = torch.tensor([[[True, False]]])
    logits = torch.tensor([[[logit(0.3), logit(0.2)]]])
    by_hand = (-1e5 * math.log(0.3) - math.log(0.8)) / 2
    assert float(one_pixel_loss(logits, wanted(spot.float(), spot))) == pytest.approx(by_hand, rel=1e-5)


def test_places_and_brightness_are_compared_where_there_is_a_spot() -> None:
    outputs = torch.zeros(1, 4, 1, 2)
    outputs[0, :, 0, 0] = torch.tensor([0.0, 0.2, -0.1, 2.0])
    outputs[0, :, 0, 1] = 99.0
    target = wanted(torch.zeros(1, 1, 2), torch.tensor([[[True, False]]]))
    assert float(place_loss(outputs, target)) == pytest.approx(0.3, rel=1e-5)
    assert float(brightness_loss(outputs, target)) == pytest.approx(2.0)
