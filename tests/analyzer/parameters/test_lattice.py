"""Cells: symmetry, absences, lines, and what is no cell."""

import numpy as np
import pytest

from analyzer.parameters.lattice import make_lattice, powder_lines, reciprocal_basis
from sim_replay.crystal import proteinase_k
from sim_replay.crystal import reciprocal_basis as independent_basis

TETRAGONAL = (67.288, 67.288, 106.582, 90.0, 90.0, 90.0)
TRICLINIC = (27.0, 32.0, 34.0, 88.0, 108.0, 112.0)


def test_the_reflections_of_a_space_group_are_those_that_the_twin_lights() -> None:
    crystal = proteinase_k(d_min_angstrom=4.0)
    lattice = make_lattice(TETRAGONAL, "P 43 21 2")
    found = {tuple(each) for each in lattice.reflections(0.25).tolist()}
    assert found == {tuple(each) for each in crystal.hkl.tolist()}


def test_reflections_rise_in_length_and_none_is_longer_than_asked() -> None:
    lattice = make_lattice(TRICLINIC)
    lengths = lattice.lengths(lattice.reflections(0.2))
    assert len(lengths) == pytest.approx(4 / 3 * np.pi * 0.2**3 * lattice.volume_angstrom3, rel=0.03)
    assert np.all(np.diff(lengths) >= -1e-12)
    assert lengths[-1] <= 0.2


@pytest.mark.parametrize(
    ("cell", "turns", "groups"),
    [
        (TETRAGONAL, 8, ((0, 1), (2,))),
        (TRICLINIC, 1, ((0,), (1,), (2,))),
        ((78.9, 78.9, 78.9, 90.0, 90.0, 90.0), 24, ((0, 1, 2),)),
        ((94.1, 94.1, 131.4, 90.0, 90.0, 120.0), 12, ((0, 1), (2,))),
        ((49.2, 67.2, 65.9, 90.0, 101.8, 90.0), 2, ((0,), (1,), (2,))),
    ],
)
def test_turns_are_those_of_the_lattice(cell: tuple[float, ...], turns: int, groups: object) -> None:
    lattice = make_lattice(cell)  # type: ignore[arg-type]
    assert len(lattice.turns) == turns
    assert lattice.edge_groups == groups
    hkl = lattice.reflections(0.1)
    for turn in lattice.turns:
        np.testing.assert_allclose(lattice.lengths(hkl @ turn.T), lattice.lengths(hkl), rtol=1e-9)


def test_one_of_each_leaves_out_what_turns_join_and_nothing_else() -> None:
    lattice = make_lattice(TETRAGONAL)
    hkl = lattice.reflections(0.08)
    lone = lattice.one_of_each(hkl)
    joined = {tuple(each) for turn in lattice.turns for each in (lone @ turn.T).tolist()}
    assert joined == {tuple(each) for each in hkl.tolist()}
    assert len(lone) < len(hkl) / 6


def test_lines_of_proteinase_k_are_the_known_ones() -> None:
    lines = powder_lines(make_lattice(TETRAGONAL, "P 43 21 2"), 0.05)
    assert 1 / lines.q_per_angstrom[0] == pytest.approx(1 / np.hypot(1 / 67.288, 1 / 106.582))
    assert lines.multiplicity[:2].tolist() == [8.0, 4.0]  # (101) and its mates, (110)
    assert np.all(np.diff(lines.q_per_angstrom) > 0)


def test_the_basis_agrees_with_the_twins() -> None:
    np.testing.assert_allclose(reciprocal_basis(TRICLINIC), independent_basis(TRICLINIC), atol=1e-15)


def test_edges_that_grow_shorten_the_reciprocal_ones_of_their_group_alone() -> None:
    lattice = make_lattice(TETRAGONAL)
    longer = lattice.stretched(np.array([0.01, 0.0]))
    np.testing.assert_allclose(np.diag(longer) / np.diag(lattice.basis), [1 / 1.01, 1 / 1.01, 1.0])


@pytest.mark.parametrize(
    "cell",
    [
        (0.0, 10.0, 10.0, 90.0, 90.0, 90.0),
        (-5.0, 10.0, 10.0, 90.0, 90.0, 90.0),
        (float("nan"), 10.0, 10.0, 90.0, 90.0, 90.0),
        (10.0, 10.0, 1e6, 90.0, 90.0, 90.0),
        (10.0, 10.0, 10.0, 30.0, 30.0, 120.0),
        (10.0, 10.0, 10.0, 90.0, 90.0, 180.0),
        (10.0, 10.0, 10.0),
    ],
)
def test_what_is_no_cell_is_refused(cell: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"edges|angles|unit cell"):
        make_lattice(cell)  # type: ignore[arg-type]


def test_an_unknown_space_group_and_endless_reflections_are_refused() -> None:
    with pytest.raises(ValueError, match="space group 'P 9'"):
        make_lattice(TETRAGONAL, "P 9")
    with pytest.raises(ValueError, match="reflections"):
        make_lattice((500.0, 500.0, 500.0, 90.0, 90.0, 90.0)).reflections(0.5)
