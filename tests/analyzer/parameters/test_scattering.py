"""Tables of what scatters: whatever is no such table is refused with its reason."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from analyzer.parameters.scattering import KNOTS, Q_STEP, TABLES, scattering

Tensors = dict[str, torch.Tensor]


def good(samples: int = 50) -> Tensors:
    made = {name: torch.linspace(2.0, 1.0, samples, dtype=torch.float64) for name in TABLES}
    return {**made, Q_STEP: torch.tensor([0.1])}


def test_tables_are_in_units_of_forward_water_and_errors_are_smooth_bumps_of_it() -> None:
    made = scattering(good())
    assert made.tables.shape == (len(TABLES) + len(KNOTS), 50)
    assert made.tables[0, 0] == 1.0
    assert made.q_step_inv_angstrom == pytest.approx(0.1)
    # At its knot an error is the water's own height, at the others nothing.
    for n, knot in enumerate(KNOTS):
        sample = round(knot / 0.1)
        bumps = made.tables[len(TABLES) :, sample] / made.tables[0, sample]
        np.testing.assert_allclose(bumps, np.eye(len(KNOTS))[n], atol=1e-6)
    assert (np.linalg.eigvalsh(made.precision) > 0).all()


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_the_unit_and_the_precision_are_anyones(unit: float, kind: torch.dtype) -> None:
    tensors = {name: (table * (1.0 if name == Q_STEP else unit)).to(kind) for name, table in good().items()}
    np.testing.assert_allclose(scattering(tensors).tables, scattering(good()).tables, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.pop("water"), "lack water"),
        (lambda t: t.pop(Q_STEP), "lack q_step_inv_angstrom"),
        (lambda t: t.clear(), "lack water, water_warmed, water_warmed_twice, air, polyimide, glass"),
        (lambda t: t.update(air=torch.ones(49)), "of different lengths"),
        (lambda t: t.update(good(2)), "of different lengths"),
        (lambda t: t.update({name: torch.ones(5, 5) for name in TABLES}), "of different lengths"),
        (lambda t: t.update({Q_STEP: torch.ones(2)}), "of different lengths"),
        (lambda t: t.update({Q_STEP: torch.ones(0)}), "of different lengths"),
        (lambda t: t.update({Q_STEP: torch.zeros(1)}), "no number"),
        (lambda t: t.update({Q_STEP: torch.tensor([-0.1])}), "no number"),
        (lambda t: t.update({Q_STEP: torch.tensor([float("nan")])}), "no number"),
        (lambda t: t.update(water=torch.zeros(50)), "does not scatter"),
        (lambda t: t.update(water=torch.full((50,), -1.0)), "does not scatter"),
        (lambda t: t["glass"].fill_(float("inf")), "no number"),
        (lambda t: t["water_warmed"][3:4].fill_(float("nan")), "no number"),
        (lambda t: t["air"].neg_(), "less than nothing"),
        (lambda t: t["polyimide"][7:8].fill_(-1e-9), "less than nothing"),
        (lambda t: t.update(water=torch.full((50,), 1e-320, dtype=torch.float64)), "no number"),
        (lambda t: t.update(water=torch.ones(50, dtype=torch.complex128)), "are not of numbers"),
        (lambda t: t.update(glass=torch.ones(50, dtype=torch.bool)), "are not of numbers"),
        (lambda t: t.update({Q_STEP: torch.tensor([1e-4])}), "reach 0.0049 1/angstrom only"),
    ],
)
def test_what_is_no_scattering_is_refused_with_its_reason(spoil: Callable[[Tensors], object], said: str) -> None:
    tensors = good()
    spoil(tensors)
    with pytest.raises(ValueError, match=said):
        scattering(tensors)
