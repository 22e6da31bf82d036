import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from sim_replay.crystal import (
    PROTEINASE_K_CELL,
    PROTEINASE_K_MEAN_INTENSITY,
    Crystal,
    is_absent_p43212,
    proteinase_k,
    read_hkl,
    reciprocal_basis,
    symmetry_operations,
)

GOOD = """CrystFEL reflection list version 2.0
Symmetry: {symmetry}
   h    k    l          I    phase   sigma(I)   nmeas
   1    2    3     100.00        -       0.00       1
   0    0    4      40.00        -       0.00       1
   2    0    0      -3.00        -       0.00       1
End of reflections
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def intensity_of(crystal: Crystal) -> dict[tuple[int, ...], float]:
    return {tuple(int(i) for i in row): float(v) for row, v in zip(crystal.hkl, crystal.intensity, strict=True)}


def test_reciprocal_basis_is_dual_to_the_cell_edges() -> None:
    cell = (50.0, 60.0, 70.0, 80.0, 95.0, 110.0)
    direct = np.linalg.inv(reciprocal_basis(cell))
    np.testing.assert_allclose(np.linalg.norm(direct, axis=1), cell[:3])
    cosine = direct[0] @ direct[2] / (cell[0] * cell[2])
    assert np.degrees(np.arccos(cosine)) == pytest.approx(95.0)
    with pytest.raises(ValueError, match="no unit cell"):
        reciprocal_basis((50.0, 60.0, 70.0, 10.0, 10.0, 150.0))


@pytest.mark.parametrize(("group", "order"), [("-1", 2), ("mmm", 8), ("4/m", 8), ("4/mmm", 16)])
def test_laue_groups_have_their_order(group: str, order: int) -> None:
    assert len(symmetry_operations(group)) == order


def test_proteinase_k_has_the_intensities_of_its_symmetry_and_scale() -> None:
    crystal = proteinase_k(d_min_angstrom=4.0)
    table = intensity_of(crystal)
    assert len(table) == len(crystal.hkl)
    for h, k, m in ((3, 1, 5), (4, 4, 2), (0, 3, 7)):
        mates = [(h, k, m), (k, h, m), (-k, h, m), (-h, -k, -m), (h, -k, m), (k, -h, -m)]
        assert len({table[m] for m in mates}) == 1
    assert not is_absent_p43212(crystal.hkl).any()
    assert (0, 0, 4) in table
    assert (0, 0, 2) not in table
    assert (1, 0, 0) not in table
    assert (0, 3, 0) not in table
    assert crystal.volume_angstrom3 == pytest.approx(67.288**2 * 106.582)
    d = 1.0 / np.linalg.norm(crystal.hkl @ reciprocal_basis(crystal.cell).T, axis=1)
    assert d.min() >= 4.0


def test_proteinase_k_is_wilson_distributed_and_repeats_with_its_seed() -> None:
    crystal = proteinase_k(seed=3)
    again, other = proteinase_k(seed=3), proteinase_k(seed=4)
    np.testing.assert_array_equal(crystal.intensity, again.intensity)
    assert not np.array_equal(crystal.intensity, other.intensity)
    # general reflections weigh most, so the mean over all mates stays close to that over unique ones
    assert crystal.intensity.mean() == pytest.approx(PROTEINASE_K_MEAN_INTENSITY, rel=0.05)
    s2 = np.sum((crystal.hkl @ reciprocal_basis(crystal.cell).T) ** 2, axis=1) / 4.0
    normalised = crystal.intensity * np.exp(2.0 * 10.6 * s2)
    assert np.mean(normalised**2) / np.mean(normalised) ** 2 == pytest.approx(2.0, rel=0.05)  # exponential


def test_a_reflection_list_is_read_with_its_mates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hkl", GOOD.format(symmetry="4/mmm"))
    table = intensity_of(read_hkl(path))
    assert len(table) == 16 + 2 + 4
    assert table[(-2, 1, -3)] == 100.0
    assert table[(0, 0, -4)] == 40.0
    assert table[(0, 2, 0)] == 0.0  # a negative measured intensity
    zipped = tmp_path / "a.hkl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert intensity_of(read_hkl(zipped)) == table
    assert len(read_hkl(write(tmp_path / "m.hkl", GOOD.format(symmetry="mmm"))).hkl) == 8 + 2 + 2
    triclinic = read_hkl(write(tmp_path / "t.hkl", GOOD.format(symmetry="-1")))
    assert len(triclinic.hkl) == 6
    assert triclinic.cell == PROTEINASE_K_CELL


def test_a_damaged_gzip_list_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD.format(symmetry="4/mmm").encode())
    damaged = tmp_path / "bad.hkl.gz"
    for content in (whole[:-12], whole[:20] + b"\xff" * 8 + whole[28:]):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.hkl\.gz: not a readable text or gzip reflection list"):
            read_hkl(damaged)


@pytest.mark.parametrize("cell", [(math.nan, 60.0, 60.0, 90.0, 90.0, 90.0), (60.0, 60.0, 60.0, 90.0, math.inf, 90.0)])
def test_a_cell_without_numbers_is_refused(cell: tuple[float, float, float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="is no unit cell"):
        reciprocal_basis(cell)


@pytest.mark.parametrize("setting", ["d_min_angstrom", "mean_intensity"])
def test_proteinase_k_names_the_setting_that_makes_no_sense(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be above 0, not nan"):
        proteinase_k(**{setting: math.nan})


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("version 2.0", "version 1.0", 1, "expected 'CrystFEL reflection list"),
        ("Symmetry: 4/mmm", "Symmetry: 6/mmm", 2, "'6/mmm' is not supported"),
        ("   h    k    l          I", "   h    k    l   sigma", 3, "column heads"),
        ("40.00", "forty", 5, "expected 'h k l I ...'"),
        ("40.00", "nan", 5, "out of range"),
        ("   0    0    4", "   2    1    3", 5, "listed twice"),
        ("End of reflections\n", "", 6, "cut short"),
    ],
)
def test_a_malformed_reflection_list_is_refused_with_file_and_line(
    tmp_path: Path, old: str, new: str, line: int, what: str
) -> None:
    path = write(tmp_path / "bad.hkl", GOOD.format(symmetry="4/mmm").replace(old, new))
    with pytest.raises(ValueError) as caught:
        read_hkl(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert what in str(caught.value)


def test_a_cut_gzip_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.hkl.gz"
    path.write_bytes(gzip.compress(GOOD.format(symmetry="-1").encode())[:-12])
    with pytest.raises(ValueError, match=r"cut\.hkl\.gz"):
        read_hkl(path)
