import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_replay.beam import (
    Beam,
    Spectrum,
    disc_square_overlap_m2,
    gaussian,
    lit_path_m,
    read_spectrum,
    tabulated,
    top_hat,
)

R = 5e-6


def moments(spectrum: Spectrum) -> tuple[float, float]:
    """Mean and standard deviation, each bin even within itself."""
    edges, shares = np.array(spectrum.edges), np.array(spectrum.shares)
    middle = (edges[1:] + edges[:-1]) / 2.0
    mean = float(np.sum(shares * middle))
    return mean, math.sqrt(float(np.sum(shares * ((middle - mean) ** 2 + np.diff(edges) ** 2 / 12.0))))


def test_spectra_have_the_width_they_are_asked_for() -> None:
    assert moments(top_hat(0.01)) == pytest.approx((1.0, 0.01 / math.sqrt(12.0)))
    mean, sigma = moments(gaussian(0.01))
    assert mean == pytest.approx(1.0)
    assert sigma * 2.35482 == pytest.approx(0.01, rel=0.02)  # the cut at 3 sigma takes 1 %


def test_a_table_of_energies_becomes_wavelengths_about_its_mean() -> None:
    spectrum = tabulated([6990.0, 7000.0, 7010.0], [1.0, 2.0, 1.0])
    assert spectrum.shares == pytest.approx((0.25, 0.5, 0.25))
    assert spectrum.edges == pytest.approx([7000.0 / e for e in (7015.0, 7005.0, 6995.0, 6985.0)])
    one_sided = tabulated([6990.0, 7000.0], [1.0, 3.0])
    assert one_sided.shares == pytest.approx((0.75, 0.25)), "long wavelengths are low energies"


def test_a_spectrum_is_read_from_a_file_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "spectrum.txt"
    path.write_text("# eV, photons\n6990, 1\n7000 2  # the peak\n\n7010\t1\n")
    assert read_spectrum(path) == tabulated([6990.0, 7000.0, 7010.0], [1.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"6990 1\n7000 x\n", "line 2: expected photon energy"),
        (b"6990\n", "line 1: expected photon energy"),
        (b"7000 1\n6990 1\n", "must rise"),
        (b"7000 1\n", "at least two rows"),
        (b"7000 1\n7010 -1\n", "0 or more"),
        (b"7000 0\n7010 0\n", "not all 0"),
        (b"nan 1\n7010 1\n", "finite"),
        (b"1 1\n7010 1\n", "below 0 eV"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"".join(b"%d 1\n" % (5000 + i) for i in range(1001)), "too long"),
    ],
)
def test_a_bad_spectrum_file_is_refused_by_name_and_line(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_spectrum(path)
    assert "bad.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"radius_m": 0.0}, "radius_m is 0.0"),
        ({"profile": "square"}, "give one of disc, gaussian, uniform"),
        ({"divergence_rad": -1.0}, "divergence_rad is -1.0"),
        ({"polarisation_fraction": 1.5}, "polarisation_fraction is 1.5"),
        ({"polarisation_deg": math.inf}, "polarisation_deg is inf"),
    ],
)
def test_a_beam_names_the_setting_that_makes_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Beam(**settings)


@pytest.mark.parametrize("bandwidth", [0.0, -0.1, 1.0, math.nan])
def test_a_bandwidth_is_a_relative_width(bandwidth: float) -> None:
    with pytest.raises(ValueError, match="relative width"):
        top_hat(bandwidth)


def test_a_discs_overlap_with_a_square_is_the_square_or_the_disc_or_between() -> None:
    assert disc_square_overlap_m2(R, 1e-6) == pytest.approx(1e-12, rel=1e-3)
    assert disc_square_overlap_m2(R, 10e-6) == pytest.approx(math.pi * R * R, rel=1e-5)
    assert disc_square_overlap_m2(R, 100e-6, (50e-6, 50e-6)) == pytest.approx(math.pi * R * R / 4.0, rel=1e-3)
    rng = np.random.default_rng(0)
    xy = rng.uniform(-R, R, (400_000, 2))
    inside = (np.hypot(*xy.T) < R) & (np.abs(xy[:, 0] - 1e-6) < 3.5e-6) & (np.abs(xy[:, 1] + 2e-6) < 3.5e-6)
    assert disc_square_overlap_m2(R, 7e-6, (1e-6, -2e-6)) == pytest.approx(inside.mean() * 4 * R * R, rel=0.01)


def test_the_lit_path_is_fluence_times_volume_for_each_photon() -> None:
    area = math.pi * R * R
    assert lit_path_m(Beam(), 1e-6) == pytest.approx(1e-18 / area, rel=1e-3)
    assert lit_path_m(Beam(), 20e-6) == pytest.approx(20e-6, rel=1e-5), "all photons cross all of a large crystal"
    assert lit_path_m(Beam(profile="uniform"), 20e-6, (1.0, 1.0)) == pytest.approx(8e-15 / area)
    # a Gaussian, against photons thrown at the crystal
    rng = np.random.default_rng(1)
    xy = rng.standard_normal((1_000_000, 2)) * 2.0 * R / 2.35482
    for size, offset in ((5e-6, (0.0, 0.0)), (8e-6, (3e-6, -6e-6))):
        hit = np.all(np.abs(xy - np.array(offset)) < size / 2.0, axis=1).mean()
        assert lit_path_m(Beam(profile="gaussian"), size, offset) == pytest.approx(hit * size, rel=0.01)
    assert lit_path_m(Beam(), 10e-6, (11e-6, 0.0)) == 0.0, "a crystal beside the beam is dark"


def test_polarisation_is_the_dipole_pattern_for_any_direction_and_degree() -> None:
    def factor(beam: Beam, v: tuple[float, float]) -> float:
        xx, xy, yy = beam.polarisation_terms
        return 1.0 - xx * v[0] ** 2 - 2.0 * xy * v[0] * v[1] - yy * v[1] ** 2

    v = (0.3, 0.5)
    assert factor(Beam(), v) == pytest.approx(1.0 - 0.09)
    assert factor(Beam(polarisation_deg=90.0), v) == pytest.approx(1.0 - 0.25)
    e = (math.cos(0.7), math.sin(0.7))
    along = (v[0] * e[0] + v[1] * e[1]) ** 2
    assert factor(Beam(polarisation_deg=math.degrees(0.7)), v) == pytest.approx(1.0 - along)
    cosine2 = 1.0 - 0.34
    assert factor(Beam(polarisation_fraction=0.0, polarisation_deg=33.0), v) == pytest.approx((1.0 + cosine2) / 2.0)
    across = (v[1] * e[0] - v[0] * e[1]) ** 2
    half = Beam(polarisation_fraction=0.5, polarisation_deg=math.degrees(0.7))
    assert factor(half, v) == pytest.approx(1.0 - 0.75 * along - 0.25 * across)


def test_a_spectrum_file_too_large_to_be_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(b"#" * ((4 << 20) + 1))
    with pytest.raises(ValueError, match=r"big\.txt: larger than 4 MB, the most that is read of a table of photon"):
        read_spectrum(path)
