import gzip
import math
import tracemalloc
from pathlib import Path

import gemmi
import numpy as np
import pytest

from sim_replay import crystal as crystal_module
from sim_replay.crystal import (
    PROTEINASE_K_CELL,
    PROTEINASE_K_MEAN_INTENSITY,
    Crystal,
    expand_mates,
    proteinase_k,
    read_cell,
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


# fmt: off
ORDERS = {
    "1": 1, "-1": 2, "2": 2, "m": 2, "2/m": 4, "2/m_uaa": 4, "2/m_uab": 4, "2/m_uac": 4, "222": 4, "mmm": 8,
    "4": 4, "4/m": 8, "422": 8, "-42m": 8, "-4m2": 8, "4/mmm": 16, "4/mmm_uaa": 16,
    "3_R": 3, "-3_R": 6, "32_R": 6, "-3m_R": 12, "3_H": 3, "-3_H": 6, "321_H": 6, "-3m1_H": 12, "-31m_H": 12,
    "6": 6, "6/m": 12, "622": 12, "6/mmm": 24, "23": 12, "m-3": 24, "432": 24, "m-3m": 48,
}
# fmt: on


@pytest.mark.parametrize("group", ORDERS)
def test_point_groups_have_their_order_and_are_closed(group: str) -> None:
    operations = symmetry_operations(group)
    assert len(operations) == ORDERS[group]
    known = {operation.tobytes() for operation in operations}
    assert len(known) == len(operations)
    for first in operations:
        assert {np.ascontiguousarray(first @ second).tobytes() for second in operations} == known


@pytest.mark.parametrize(
    ("group", "mates"),
    [
        ("2/m", [(1, 2, -5), (-1, -2, 5)]),  # CrystFEL's unique axis is c unless it says another
        ("2/m_uab", [(-1, 2, -5), (1, -2, 5)]),
        ("2/m_uaa", [(1, -2, -5), (-1, 2, 5)]),
        ("4/m_uaa", [(1, -5, 2), (1, 5, -2)]),
        ("321_H", [(2, 1, -5), (-3, 1, 5)]),
        ("312_H", [(-2, -1, -5), (-3, 1, 5)]),
        ("-3m1_H", [(2, 1, -5), (-2, -1, 5)]),
        ("-31m_H", [(-2, -1, -5), (2, 1, 5)]),
        ("32_R", [(5, 1, 2), (-2, -1, -5)]),
        ("6/mmm", [(2, 1, 5), (3, -1, 5)]),
        ("m-3", [(5, 1, 2), (-1, 2, 5)]),
    ],
)
def test_mates_are_those_of_the_axes_in_the_name(group: str, mates: list[tuple[int, int, int]]) -> None:
    found = {tuple(int(i) for i in operation @ np.array([1, 2, 5])) for operation in symmetry_operations(group)}
    assert found >= set(mates)


def test_groups_that_differ_only_in_their_axes_are_told_apart() -> None:
    assert (2, 1, 5) not in {tuple(o @ np.array([1, 2, 5])) for o in symmetry_operations("-3m1_H")}
    assert (2, 1, 5) not in {tuple(o @ np.array([1, 2, 5])) for o in symmetry_operations("m-3")}


@pytest.mark.parametrize("group", ["", "5/m", "4/mmm ", "mmm_uaa", "-3m", "2/m_uad", "P 43 21 2", "4/mmm_uab_uab"])
def test_an_unknown_point_group_is_refused_with_those_that_are_known(group: str) -> None:
    with pytest.raises(ValueError, match=r"is not supported; known are 1, -1, 2") as caught:
        symmetry_operations(group)
    assert "\n" not in str(caught.value)


def test_friedel_mates_are_added_where_the_group_has_no_inversion() -> None:
    unique = np.array([[1, 2, 3], [0, 0, 2]], dtype=np.int32)
    hkl, intensity = expand_mates(unique, np.array([5.0, 7.0]), symmetry_operations("1"))
    assert hkl.tolist() == [[-1, -2, -3], [0, 0, -2], [0, 0, 2], [1, 2, 3]]
    assert intensity.tolist() == [5.0, 7.0, 7.0, 5.0]


def test_proteinase_k_has_the_intensities_of_its_symmetry_and_scale() -> None:
    crystal = proteinase_k(d_min_angstrom=4.0)
    table = intensity_of(crystal)
    assert len(table) == len(crystal.hkl)
    for h, k, m in ((3, 1, 5), (4, 4, 2), (0, 3, 7)):
        mates = [(h, k, m), (k, h, m), (-k, h, m), (-h, -k, -m), (h, -k, m), (k, -h, -m)]
        assert len({table[m] for m in mates}) == 1
    assert not gemmi.SpaceGroup("P 43 21 2").operations().systematic_absences(crystal.hkl).any()
    assert crystal.space_group == "P 43 21 2"
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
    operations = gemmi.SpaceGroup("P 43 21 2").operations()
    centric = np.asarray(operations.centric_flag_array(crystal.hkl), dtype=bool)
    inverse_d2 = np.sum((crystal.hkl @ reciprocal_basis(crystal.cell).T) ** 2, axis=1)
    # In thin shells the mean hardly changes: <I^2>/<I>^2 is 2 for an exponential, 3 for chi-squared of one degree.
    single = np.asarray(operations.epsilon_factor_array(crystal.hkl)) == 1
    for flags, moment in ((single & ~centric, 2.0), (single & centric, 3.0)):
        shells = np.digitize(inverse_d2[flags], np.quantile(inverse_d2[flags], np.linspace(0, 1, 11)[1:-1]))
        values = crystal.intensity[flags]
        ratios = [np.mean(values[shells == n] ** 2) / np.mean(values[shells == n]) ** 2 for n in range(10)]
        assert np.mean(ratios) == pytest.approx(moment, rel=0.1)


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


def test_bijvoet_pairs_keep_their_two_intensities(tmp_path: Path) -> None:
    text = GOOD.format(symmetry="422").replace("   2    0    0      -3.00", "  -1   -2   -3     110.00")
    table = intensity_of(read_hkl(write(tmp_path / "pair.hkl", text)))
    assert table[(1, 2, 3)] == table[(2, 1, -3)] == 100.0
    assert table[(-1, -2, -3)] == table[(-2, -1, 3)] == 110.0
    assert table[(0, 0, -4)] == 40.0
    with pytest.raises(ValueError, match="listed twice"):
        read_hkl(write(tmp_path / "pair.hkl", text.replace("422", "4/mmm")))


def test_every_laue_class_is_read(tmp_path: Path) -> None:
    for group in ("-1", "2/m_uab", "mmm", "4/m", "4/mmm", "-3_H", "-3m1_H", "-3_R", "6/m", "6/mmm", "m-3", "m-3m"):
        crystal = read_hkl(write(tmp_path / "a.hkl", GOOD.format(symmetry=group)))
        table = intensity_of(crystal)
        assert len(table) == len(crystal.hkl)
        assert sum(v == 100.0 for v in table.values()) == len(symmetry_operations(group))
        assert all(table[(-h, -k, -m)] == value for (h, k, m), value in table.items())


CELL_FILE = """CrystFEL unit cell file version 1.0

; a comment
lattice_type = tetragonal
centering = P
unique_axis = c
a = 67.3 A
b = 6.73 nm
c = 106.6 A  ; long
al = 90.0 deg
be = 90 deg
ga = 1.5707963267948966 rad
"""


def test_a_crystfel_cell_file_is_read_in_its_units(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cell", CELL_FILE)
    assert read_cell(path) == pytest.approx((67.3, 67.3, 106.6, 90.0, 90.0, 90.0))
    crystal = read_hkl(write(tmp_path / "a.hkl", GOOD.format(symmetry="4/mmm")), cell=path)
    assert crystal.cell == read_cell(path)


def test_the_cell_of_a_pdb_file_is_read_even_where_columns_touch(tmp_path: Path) -> None:
    line = "CRYST1   67.288   67.288  106.582  90.00  90.00 120.00 P 32 2 1      6\n"
    path = write(tmp_path / "a.pdb", "HEADER    SOMETHING\n" + line)
    assert read_cell(path) == (67.288, 67.288, 106.582, 90.0, 90.0, 120.0)
    touching = write(tmp_path / "b.pdb", "CRYST110067.28810067.288 1006.582  90.00  90.00  90.00 P 1\n")
    assert read_cell(touching)[:3] == (10067.288, 10067.288, 1006.582)
    zipped = tmp_path / "a.pdb.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_cell(zipped) == read_cell(path)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("CrystFEL unit", "Some unit", r": holds no unit cell; expected"),
        ("a = 67.3 A", "a = 67.3", r", line 7: expected 'a = NUMBER A', found 'a = 67.3'"),
        ("a = 67.3 A", "a = 67.3 m", r", line 7: expected 'a = NUMBER A'"),
        ("a = 67.3 A", "a = wide A", r", line 7: 'wide' is not a number"),
        ("a = 67.3 A", "a = nan A", r": \(nan.*is no unit cell"),
        ("a = 67.3 A", "a = -67.3 A", r"is no unit cell: edges must be positive"),
        ("a = 67.3 A", "a = 1e300 A", r"is no unit cell: edges must be"),
        ("al = 90.0 deg", "al = 179.999 deg", r"close no solid"),
        ("a = 67.3 A", "a = 1e999 A", r"is no unit cell"),
        ("be = 90 deg", "a = 1 A", r", line 11: 'a' is given twice"),
        ("be = 90 deg", "", r": the unit cell lacks be"),
        ("al = 90.0 deg", "al = 190 deg", r"angles must be between 0 and 180"),
    ],
)
def test_a_bad_cell_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, what: str) -> None:
    path = write(tmp_path / "bad.cell", CELL_FILE.replace(old, new))
    with pytest.raises(ValueError, match=what) as caught:
        read_cell(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "holds no unit cell"),
        (b"ATOM      1  N   GLY A   1\n", "holds no unit cell"),
        (b"CRYST1\n", "line 1: expected three edges"),
        (b"CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n", "stands for none"),
        (b"CRYST1    0.000    0.000    0.000  90.00  90.00  90.00 P 1           1\n", "is no unit cell"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a readable text"),
        (gzip.compress(CELL_FILE.encode())[:-9], "not a readable text or gzip unit cell file"),
    ],
)
def test_a_file_without_a_cell_is_refused_in_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "bad.cell"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=what) as caught:
        read_cell(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("setting", ["d_min_angstrom", "mean_intensity", "wilson_b_angstrom2"])
def test_proteinase_k_names_the_setting_that_makes_no_sense(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be (above 0|0 or more), not nan"):
        proteinase_k(**{setting: math.nan})


def test_a_resolution_beyond_all_memory_or_without_reflections_is_refused_before_it_is_tried() -> None:
    with pytest.raises(ValueError, match="more than 2e"):
        proteinase_k(d_min_angstrom=0.01)
    with pytest.raises(ValueError, match="no reflection has a spacing above"):
        proteinase_k(d_min_angstrom=500.0)


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("version 2.0", "version 1.0", 1, "expected 'CrystFEL reflection list"),
        ("Symmetry: 4/mmm", "Symmetry: 5/mmm", 2, "'5/mmm' is not supported"),
        ("Symmetry: 4/mmm", "Symmetry: Unknown", 2, "'Unknown' is not supported"),
        ("   1    2    3", "   1    2 99999999", 4, "out of range"),
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


def test_a_list_of_more_reflections_than_memory_is_meant_for_is_refused_while_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "many.hkl", GOOD.format(symmetry="4/mmm"))
    monkeypatch.setattr(crystal_module, "MAX_REFLECTIONS", 48)
    assert len(read_hkl(path).hkl) == 22
    monkeypatch.setattr(crystal_module, "MAX_REFLECTIONS", 47)
    with pytest.raises(ValueError, match=r"many\.hkl, line 6: more than 47 reflections with their mates in 4/mmm"):
        read_hkl(path)


@pytest.mark.parametrize("content", [b"\n", b"1\n", b"\0"])
def test_many_short_lines_take_no_more_memory_than_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "short.hkl.gz"
    path.write_bytes(gzip.compress(content * ((4 << 20) // len(content)), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="line 1: expected"):
            read_hkl(path)
        with pytest.raises(ValueError, match="holds no unit cell"):
            read_cell(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * (4 << 20)


def test_a_list_with_the_line_ends_of_any_system_is_read(tmp_path: Path) -> None:
    text = GOOD.format(symmetry="4/mmm")
    path = tmp_path / "a.hkl"
    for end in ("\r\n", "\r"):
        path.write_bytes(text.replace("\n", end).encode())
        assert len(read_hkl(path).hkl) == 22
