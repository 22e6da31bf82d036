"""Our diffraction against CrystFEL's pattern_sim: 90 proteinase K crystals in the nine conditions of the 2024 paper."""

import dataclasses
import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sim_replay.against_crystfel import (
    SAMPLING_SHIFT_PX,
    Agreement,
    Fringes,
    compare_spots,
    condition_of,
    label_fringes,
    panel_of,
    perfect_sample,
    radial_photons,
)
from sim_replay.crystal import Crystal, proteinase_k, read_hkl, reciprocal_basis
from sim_replay.crystfel import Pattern, find_spots, read_sparse_patterns
from sim_replay.diffraction import diffract, random_orientation

NEAR_PX = 3.0
BRIGHT_PHOTONS = 50.0


def crystals_folder() -> Path:
    """Noise-free CrystFEL patterns: $CXLS_CRYSTALS, or ../shared/data/crystfel beside the checkout."""
    given = os.environ.get("CXLS_CRYSTALS")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data" / "crystfel"
    if not list(folder.glob("combo*.npz")):
        pytest.skip(f"no CrystFEL patterns (combo*.npz) in {folder}; set CXLS_CRYSTALS")
    if not (folder.parent / "1ic6" / "1ic6_1.8A.hkl.gz").exists():
        pytest.skip(f"no reflection list {folder.parent / '1ic6' / '1ic6_1.8A.hkl.gz'}")
    return folder


@cache
def conditions() -> dict[str, list[Pattern]]:
    return {path.stem: list(read_sparse_patterns(path)) for path in sorted(crystals_folder().glob("combo*.npz"))}


@cache
def crystal() -> Crystal:
    return read_hkl(crystals_folder().parent / "1ic6" / "1ic6_1.8A.hkl.gz")


@cache
def agreements() -> dict[str, list[Agreement]]:
    sample = perfect_sample(crystal())
    return {name: [compare_spots(pattern, sample) for pattern in patterns] for name, patterns in conditions().items()}


def test_the_orientation_read_from_a_quaternion_is_the_one_of_the_reciprocal_axes() -> None:
    for path in sorted(crystals_folder().glob("combo*.npz")):
        with np.load(path) as z:
            axes = z["reciprocal_axes_per_m"].astype(np.float64) * 1e-10  # rows a*, b*, c*
        for pattern, rows in zip(read_sparse_patterns(path), axes, strict=True):
            basis = reciprocal_basis(crystal().cell)
            np.testing.assert_allclose(pattern.orientation @ basis, rows.T, atol=5e-6 * np.abs(rows).max())


def test_the_spots_found_are_the_ones_listed_with_the_patterns() -> None:
    for path in sorted(crystals_folder().glob("combo*.npz")):
        with np.load(path) as z:
            listed = z["truth_peaks"].astype(np.float64)  # crystal, ss, fs, largest pixel, photons, pixels
        for number, pattern in enumerate(read_sparse_patterns(path)):
            mine = listed[listed[:, 0] == number]
            mine = mine[np.lexsort((mine[:, 2], mine[:, 1]))]
            order = np.lexsort((pattern.spot_fs, pattern.spot_ss))
            assert len(mine) == len(order)
            np.testing.assert_allclose(np.sort(pattern.spot_photons), np.sort(mine[:, 4]), rtol=1e-3)
            np.testing.assert_allclose(pattern.spot_ss[order], mine[:, 1], atol=1e-2)


def test_crystfels_photons_lie_at_our_reflections() -> None:
    near_all = all_photons = 0.0
    for name, found in agreements().items():
        photons = np.concatenate([a.photons for a in found])
        near = np.concatenate([a.distance_px for a in found]) < NEAR_PX
        bright = np.concatenate([a.distance_px for a in found])[near & (photons >= BRIGHT_PHOTONS)]
        print(
            f"{name}: {photons[near].sum() / photons.sum():.1%} near, {len(bright)} bright, {np.median(bright):.2f} px"
        )
        assert photons[near].sum() >= 0.85 * photons.sum(), name
        near_all, all_photons = near_all + photons[near].sum(), all_photons + photons.sum()
    assert len(agreements()) == 9
    print(f"all: {near_all / all_photons:.1%} near")
    assert near_all >= 0.95 * all_photons


def test_bright_spots_stand_on_our_reflections_but_for_crystfels_sampling() -> None:
    bright = [
        (a.distance_px[on], a.offset_ss[on], a.offset_fs[on])
        for found in agreements().values()
        for a in found
        if (on := (a.photons >= BRIGHT_PHOTONS) & (a.distance_px < NEAR_PX)).any()
    ]
    distance, ss, fs = (np.concatenate(values) for values in zip(*bright, strict=True))
    assert len(distance) > 500
    assert np.median(distance) <= 0.8
    for offset in (ss, fs):
        assert abs(offset.mean()) < 0.2
        error = offset.std() / math.sqrt(len(offset))
        print(f"mean offset {offset.mean():.3f} +- {error:.3f} px, median distance {np.median(distance):.2f} px")
        assert abs(offset.mean() - SAMPLING_SHIFT_PX) < 4.0 * error


def test_the_rest_are_streaks_of_strong_reflections_outside_the_band() -> None:
    photons, streak, outside = [], [], []
    for name, patterns in conditions().items():
        for pattern, agreement in zip(patterns, agreements()[name], strict=True):
            rest = (agreement.distance_px >= NEAR_PX) & (agreement.photons >= 5.0)
            fringes = label_fringes(pattern, crystal())
            photons.append(agreement.photons[rest])
            streak.append(fringes.on_streak[rest])
            outside.append(np.abs(fringes.wavelength[rest] - 1.0) > 0.005)
    total = np.concatenate(photons)
    shares = [total[np.concatenate(chosen)].sum() / total.sum() for chosen in (streak, outside)]
    print(f"rest: {shares[0]:.1%} of the photons on streaks, {shares[1]:.1%} of reflections outside the band")
    assert min(shares) > 0.95


def test_photons_agree_over_all_crystals() -> None:
    """pattern_sim hits the peaks of a perfect crystal by chance, right on average only; half to double is allowed."""
    edges = np.linspace(0.0, 1600.0, 9)
    sample = perfect_sample(crystal())
    rings = np.array([radial_photons(p, sample, edges) for patterns in conditions().values() for p in patterns])
    theirs, ours = rings.sum(axis=0)
    for number, name in enumerate(conditions()):
        total = rings[10 * number : 10 * number + 10].sum(axis=(0, 2))
        print(f"{name}: our photons / CrystFEL's {total[1] / total[0]:.2f}")
    print(f"all: {ours.sum() / theirs.sum():.2f}")
    assert 0.5 < ours.sum() / theirs.sum() < 2.0
    inner = slice(0, 6)  # beyond are a few photons of the corners
    assert np.all((ours[inner] > 0.5 * theirs[inner]) & (ours[inner] < 2.0 * theirs[inner]))


def pattern_at(orientation: np.ndarray, spots: np.ndarray) -> Pattern:
    """One pixel of 100 photons at each whole (ss, fs)."""
    index = (spots[:, 0] * 2069 + spots[:, 1]).astype(np.int64)
    photons = np.full(len(index), 100.0)
    spots_found = find_spots(index, photons, 2069)
    return Pattern(
        index, photons, (2163, 2069), orientation, *spots_found, 7000.0, 0.15, 3e8, 1034.5, 1081.5, 75e-6
    )  # fmt: skip


def test_spots_at_our_own_reflections_agree_and_are_no_streaks() -> None:
    sample = perfect_sample(proteinase_k())
    orientation = random_orientation(np.random.default_rng(3))
    empty = pattern_at(orientation, np.zeros((0, 2)))
    spots = diffract(sample, condition_of(empty), panel_of(empty), orientation, min_photons=20.0)
    on = (np.abs(spots.fs - 1034) < 1000) & (np.abs(spots.ss - 1081) < 1000)
    inside = np.abs(spots.wavelength_angstrom / condition_of(empty).wavelength_angstrom - 1.0) < 0.0045
    places = np.rint(np.stack([spots.ss, spots.fs], axis=1)[on & inside])
    pattern = pattern_at(orientation, places)
    assert len(pattern.spot_photons) > 5
    agreement = compare_spots(pattern, sample)
    assert agreement.distance_px.max() <= math.sqrt(0.5) + 1e-9
    fringes = label_fringes(pattern, sample.crystal)
    assert isinstance(fringes, Fringes)
    expected = {tuple(hkl) for hkl in spots.hkl[on & inside].tolist()}
    assert {tuple(hkl) for hkl in fringes.hkl.tolist()} <= expected
    assert np.all(np.abs(fringes.wavelength - 1.0) < 0.005)


def test_no_spots_and_no_reflections_compare_as_nothing() -> None:
    sample = perfect_sample(proteinase_k(d_min_angstrom=10.0))
    orientation = random_orientation(np.random.default_rng(4))
    agreement = compare_spots(pattern_at(orientation, np.array([[5, 5]])), sample)
    assert len(agreement.photons) == 1
    nothing = pattern_at(orientation, np.zeros((0, 2)))
    assert len(compare_spots(nothing, perfect_sample(proteinase_k(d_min_angstrom=4.0))).photons) == 0
    assert len(label_fringes(nothing, proteinase_k(d_min_angstrom=4.0)).hkl) == 0
    dark = dataclasses.replace(
        sample, crystal=dataclasses.replace(sample.crystal, intensity=0 * sample.crystal.intensity)
    )
    assert math.isinf(compare_spots(pattern_at(orientation, np.array([[5, 5]])), dark).distance_px[0])
