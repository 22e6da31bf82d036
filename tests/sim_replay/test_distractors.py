import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sim_replay.beam import Beam, gaussian, lit_path_m, tabulated, top_hat
from sim_replay.detector import CONDITIONS, Condition, Detector, eiger2_4m, plain_panel
from sim_replay.diffraction import CLASSICAL_ELECTRON_RADIUS_M, Sample, diffract, random_orientation
from sim_replay.distractors import (
    MAIN_CLASSES,
    MAX_GRAINS_PER_RING,
    Distractors,
    Drawn,
    Film,
    Kind,
    crystal_lines,
    draw_distractors,
    expected_grains,
    kinds_names,
    main_class,
    ring_photons,
)
from sim_replay.salts import SALTS, salt_crystal
from sim_replay.scatter import Q_INV_ANGSTROM as Q
from sim_replay.scatter import Q_STEP_INV_ANGSTROM

NEAR = Condition(7000.0, 0.05)
HUGE_PANEL = plain_panel((4000, 4000), pixel_size_m=1e-3)  # holds every ring to 88 degrees at 0.05 m
RINGS = {"ice_ring": Kind.ICE, "lipid_ring": Kind.LIPID, "polymer_ring": Kind.POLYMER}


def draws(settings: Distractors, condition: Condition, detector: Detector, frames: int) -> list[Drawn]:
    return [draw_distractors(settings, condition, detector, np.random.default_rng((11, i))) for i in range(frames)]


def two_theta(d: float, condition: Condition) -> float:
    return 2.0 * math.asin(condition.wavelength_angstrom / (2.0 * d))


def smooth_photons(table: NDArray[np.float64], condition: Condition, low: float, high: float) -> float:
    """Photons scattered into all azimuths between two angles 2 theta, before polarisation."""
    angle = np.linspace(low, high, 40001)
    q = 4.0 * math.pi * np.sin(angle / 2.0) / condition.wavelength_angstrom
    return condition.flux_photons * float(np.trapezoid(np.interp(q, Q, table) * 2.0 * math.pi * np.sin(angle), angle))


def test_kinds_have_names_in_the_order_of_their_bits() -> None:
    assert kinds_names(Kind.SALT | Kind.PROTEIN | Kind.HOT_PIXEL) == ("protein", "salt", "hot_pixel")
    assert kinds_names(Kind(0)) == ()
    assert [kind.value for kind in Kind] == [1 << bit for bit in range(11)]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (Kind.NO_BEAM | Kind.HOT_PIXEL, "no_beam"),
        (Kind.PROTEIN | Kind.SALT | Kind.ICE, "protein"),
        (Kind.SALT | Kind.POLYMER, "salt"),
        (Kind.LIPID, "ring"),
        (Kind.ICE | Kind.COSMIC, "ring"),
        (Kind.WATER, "water"),
        (Kind.EDGE | Kind.FLICKER, "water"),
    ],
)
def test_a_frame_counts_as_the_first_of_the_main_classes_that_it_has(kinds: Kind, expected: str) -> None:
    assert main_class(kinds) == expected
    assert expected in MAIN_CLASSES


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"salt": 1.5}, "salt is 1.5"),
        ({"ice_ring": -0.1}, "ice_ring is -0.1"),
        ({"lipid_ring": math.nan}, "lipid_ring is nan"),
        ({"polymer_ring": math.inf}, "polymer_ring is inf"),
        ({"no_beam": 2.0}, "no_beam is 2.0"),
        ({"ring_strength": 0.0}, "ring_strength is 0.0"),
        ({"ring_strength": math.nan}, "ring_strength is nan"),
        ({"ring_strength": 1e9}, "ring_strength"),
        ({"salts": ("sugar",)}, "salt 'sugar' is not known; known are sodium-chloride"),
        ({"salts": ()}, "salts names none"),
        ({"salt_size_m": (2e-6, 1e-6)}, "salt_size_m"),
        ({"salt_size_m": (0.0, 1e-6)}, "salt_size_m"),
        ({"salt_size_m": (1e-6, math.inf)}, "salt_size_m"),
        ({"salt_size_m": (math.nan, 1e-6)}, "salt_size_m"),
        ({"salt_size_m": (1e-6,)}, "salt_size_m"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        Distractors(**settings)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_by_default_nothing_is_drawn() -> None:
    for drawn in draws(Distractors(), CONDITIONS[5], eiger2_4m(), 50):
        assert drawn.kinds == Kind(0)
        assert drawn.smooth_per_sr is None
        assert drawn.salts == drawn.rings == ()
        assert len(drawn.grain_fs) == len(drawn.grain_photons) == 0


def test_kinds_come_as_often_as_their_chances_say_and_independently() -> None:
    settings = Distractors(salt=0.3, ice_ring=0.5, lipid_ring=0.2, polymer_ring=0.4, no_beam=0.25)
    frames = 2500
    kinds = np.array([drawn.kinds.value for drawn in draws(settings, NEAR, eiger2_4m(), frames)])
    lit = kinds[kinds != Kind.NO_BEAM.value]
    assert len(lit) / frames == pytest.approx(0.75, abs=4.0 * math.sqrt(0.75 * 0.25 / frames))
    for kind, chance in ((Kind.SALT, 0.3), (Kind.ICE, 0.5), (Kind.LIPID, 0.2), (Kind.POLYMER, 0.4)):
        share = np.mean(lit & kind.value > 0)
        assert share == pytest.approx(chance, abs=4.0 * math.sqrt(chance * (1.0 - chance) / len(lit)))
    both = np.mean((lit & Kind.SALT.value > 0) & (lit & Kind.ICE.value > 0))
    assert both == pytest.approx(0.15, abs=4.0 * math.sqrt(0.15 * 0.85 / len(lit)))


@pytest.mark.parametrize("how", ["no_beam", "no flux"])
def test_without_a_beam_there_is_nothing_else(how: str) -> None:
    everything = Distractors(1.0, 1.0, 1.0, 1.0, no_beam=1.0 if how == "no_beam" else 0.0)
    condition = NEAR if how == "no_beam" else dataclasses.replace(NEAR, flux_photons=0.0)
    for drawn in draws(everything, condition, eiger2_4m(), 20):
        assert drawn.kinds == Kind.NO_BEAM
        assert drawn.smooth_per_sr is None
        assert drawn.salts == drawn.salt_names == drawn.rings == ()
        assert len(drawn.grain_photons) == 0


def test_the_same_random_numbers_give_the_same_distractors() -> None:
    settings = Distractors(1.0, 1.0, 1.0, 1.0)
    first, second = (draw_distractors(settings, NEAR, eiger2_4m(), np.random.default_rng(3)) for _ in range(2))
    assert first.kinds == second.kinds
    assert first.rings == second.rings
    assert [(s.size_m, s.mosaicity_deg, s.strain) for s in first.salts] == [
        (s.size_m, s.mosaicity_deg, s.strain) for s in second.salts
    ]
    for name in ("smooth_per_sr", "grain_fs", "grain_ss", "grain_photons", "grain_sigma_px"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize(
    ("kind", "spacings"),
    [("ice_ring", (3.9, 3.66, 3.44, 2.67, 2.25)), ("polymer_ring", (4.63, 3.81)), ("lipid_ring", (4.5,))],
)
def test_rings_are_listed_with_the_spacings_of_their_material(kind: str, spacings: tuple[float, ...]) -> None:
    for drawn in draws(Distractors(**{kind: 1.0}), CONDITIONS[3], eiger2_4m(), 20):
        assert drawn.kinds == RINGS[kind]
        listed = np.array([ring.d_angstrom for ring in drawn.rings])
        assert np.all(np.diff(listed) < 0.0)
        assert all(ring.kind == RINGS[kind] and ring.photons >= 1.0 for ring in drawn.rings)
        corner = CONDITIONS[3].wavelength_angstrom / (2.0 * math.sin(math.atan(1496.5 * 75e-6 / 0.15) / 2.0))
        assert listed.min() > corner * 0.999
        for d in spacings:
            if d > corner:
                assert np.min(np.abs(listed / d - 1.0)) < 0.01
        if kind == "lipid_ring":
            assert max(drawn.rings, key=lambda ring: ring.photons if ring.d_angstrom > 5.0 else 0.0).d_angstrom > 30.0
            assert listed.max() < 100.0


@pytest.mark.parametrize("kind", list(RINGS))
def test_rendered_rings_stand_where_braggs_law_puts_them(kind: str) -> None:
    condition = dataclasses.replace(CONDITIONS[3], beam_center_x_px=60.0, beam_center_y_px=1081.0)
    seen = 0
    for drawn in draws(Distractors(**{kind: 1.0}), condition, eiger2_4m(), 12):
        assert drawn.smooth_per_sr is not None
        # The row through the beam's centre; its photons a pixel but for the smooth factors of solid angle.
        radius_px = np.arange(0.0, 2008.0)
        angle = np.arctan(radius_px * 75e-6 / condition.camera_length_m)
        profile = np.interp(4.0 * math.pi * np.sin(angle / 2.0) / condition.wavelength_angstrom, Q, drawn.smooth_per_sr)
        places = [condition.camera_length_m * math.tan(two_theta(r.d_angstrom, condition)) / 75e-6 for r in drawn.rings]
        for ring, expected in zip(drawn.rings, places, strict=True):
            reach = 0.02 * expected + 8.0
            if ring.d_angstrom == 4.5 or sum(abs(place - expected) < 2.0 * reach for place in places) > 1:
                continue  # the broad band, and lines that overlap
            around = np.abs(radius_px - expected) < reach
            peak = profile[around] - profile[around].min()
            assert np.average(radius_px[around], weights=peak) == pytest.approx(expected, abs=1.0)
            seen += 1
    assert seen >= 8


@pytest.mark.parametrize(
    "beam",
    [
        Beam(),
        Beam(spectrum=gaussian(0.02), divergence_rad=2e-3),
        Beam(spectrum=top_hat(1e-9)),
        Beam(spectrum=tabulated(np.linspace(6900.0, 7100.0, 900), 1.0 + np.arange(900) % 7)),
    ],
    ids=["top hat", "gaussian", "sharp", "table"],
)
@pytest.mark.parametrize("kind", list(RINGS))
def test_smooth_and_spotty_light_add_up_to_the_powder_formula(kind: str, beam: Beam) -> None:
    condition = dataclasses.replace(NEAR, beam=beam)
    for drawn in draws(Distractors(**{kind: 1.0}), condition, HUGE_PANEL, 4):
        assert drawn.smooth_per_sr is not None
        assert np.all(drawn.smooth_per_sr >= 0.0)
        rings = [ring for ring in drawn.rings if two_theta(ring.d_angstrom, condition) < 1.2]
        # Up to the middle between the last ring and the next.
        between = [two_theta(ring.d_angstrom, condition) for ring in drawn.rings]
        end = 1.5 if len(between) == len(rings) else (between[len(rings) - 1] + between[len(rings)]) / 2.0
        total = sum(ring.photons * (1.0 - ring.spotty) for ring in rings)
        assert smooth_photons(drawn.smooth_per_sr, condition, 1e-4, end) == pytest.approx(total, rel=0.03)


def test_a_ring_holds_what_warrens_formula_says() -> None:
    lines = crystal_lines(salt_crystal("sodium-chloride"))
    condition = Condition(7000.0, 0.05, beam=Beam(spectrum=top_hat(1e-6)))
    wavelength = condition.wavelength_angstrom
    salt = salt_crystal("sodium-chloride")
    is_200 = np.sort(np.abs(salt.hkl), axis=1).tolist()
    f2 = salt.intensity[[hkl == [0, 0, 2] for hkl in is_200]]
    place = int(np.argmin(np.abs(lines.d_angstrom - 5.6402 / 2.0)))
    assert len(f2) == lines.multiplicity[place] == 6
    sine = wavelength / 5.6402
    expected = (
        condition.flux_photons * CLASSICAL_ELECTRON_RADIUS_M**2 * 1e-6 * 1e30
        * f2.sum() / salt.volume_angstrom3**2 * wavelength**3 / (4.0 * sine)
    )  # fmt: skip
    assert ring_photons(lines, 1e-6, condition)[place] == pytest.approx(expected, rel=1e-6)
    assert ring_photons(lines, 1e-6, condition)[-1] == 0.0  # below half a wavelength nothing reflects


def test_a_ring_holds_what_crystals_turned_at_random_diffract() -> None:
    condition = Condition(7000.0, 0.05, beam=Beam(spectrum=top_hat(0.08), polarisation_fraction=0.0))
    crystal = salt_crystal("caesium-chloride", 1.6)
    sample = Sample(crystal, size_m=2e-6, mosaicity_deg=3.0)
    rng = np.random.default_rng(5)
    turns = 2500
    mean = 0.0
    for _ in range(turns):
        mean += diffract(sample, condition, HUGE_PANEL, random_orientation(rng)).photons.sum() / turns
    lines = crystal_lines(crystal)
    angle = 2.0 * np.arcsin(condition.wavelength_angstrom / 2.0 / lines.d_angstrom)
    rings = ring_photons(lines, lit_path_m(condition.beam, 2e-6), condition) * (1.0 - np.sin(angle) ** 2 / 2.0)
    assert mean == pytest.approx(rings.sum(), rel=0.1)


def test_as_many_grains_reflect_as_crystals_turned_at_random_do() -> None:
    condition = Condition(7000.0, 0.05, beam=Beam(spectrum=top_hat(0.05), polarisation_fraction=0.0))
    crystal = salt_crystal("caesium-chloride", 2.2)
    lines = crystal_lines(crystal)
    film = Film(Kind.ICE, lines, thickness_m=10e-6, block_m=1e-7, grain_m=1e-6, spottiness=1.0)
    share, count = expected_grains(film, condition)
    assert share.max() == 1.0
    crystallites = math.pi * 5e-6**2 * 10e-6 / 1e-6**3
    sample, rng, turns = Sample(crystal, size_m=1e-6, mosaicity_deg=0.2), np.random.default_rng(6), 3000
    met = [diffract(sample, condition, HUGE_PANEL, random_orientation(rng)) for _ in range(turns)]
    d, photons = (np.concatenate([getattr(each, name) for each in met]) for name in ("d_angstrom", "photons"))
    for spacing, expected in zip(lines.d_angstrom, count / crystallites, strict=True):
        on_line = photons[np.abs(d - spacing) < 1e-4]
        # As many spots of equal strength would have the same mean and mean square.
        assert on_line.sum() ** 2 / np.sum(on_line**2) / turns == pytest.approx(expected, rel=0.3)


def test_a_line_narrower_than_the_table_keeps_its_area_and_place_and_a_wide_one_its_width() -> None:
    spectra = (top_hat(1e-9), gaussian(0.001), top_hat(0.05))
    variances = (0.0, (0.001 / 2.3548) ** 2, 0.05**2 / 12.0)
    for spectrum, variance in zip(spectra, variances, strict=True):
        condition = dataclasses.replace(NEAR, beam=Beam(spectrum=spectrum))
        for drawn in draws(Distractors(polymer_ring=1.0), condition, HUGE_PANEL, 5):
            assert drawn.smooth_per_sr is not None
            ring = drawn.rings[0]
            assert ring.d_angstrom == 6.06
            q0 = 2.0 * math.pi / 6.06
            table = drawn.smooth_per_sr[q0 - 0.16 < Q][:62]
            q = Q[q0 - 0.16 < Q][:62]
            if table[[0, -1]].max() > 1e-3 * table.max():
                continue  # small blocks: the line runs into the next
            place = np.average(q, weights=table)
            assert place == pytest.approx(q0, rel=2e-3)
            block_width = np.average((q - place) ** 2, weights=table) - Q_STEP_INV_ANGSTROM**2 / 6.0
            assert block_width >= q0**2 * variance * 0.9


def test_grain_spots_hold_on_average_what_the_ring_would() -> None:
    # Many grains and small: the sum over frames then settles within a per cent.
    condition = dataclasses.replace(NEAR, beam=Beam(spectrum=top_hat(0.02), radius_m=20e-6, polarisation_fraction=0.7))
    for kind in ("ice_ring", "polymer_ring"):
        found, expected, variance = 0.0, 0.0, 0.0
        for drawn in draws(Distractors(**{kind: 1.0}), condition, HUGE_PANEL, 600):
            scale = sum(ring.photons for ring in drawn.rings)
            for ring in drawn.rings:
                angle = two_theta(ring.d_angstrom, condition)
                expected += ring.photons * ring.spotty * (1.0 - math.sin(angle) ** 2 / 2.0) / scale
            found += drawn.grain_photons.sum() / scale
            variance += 2.0 * np.sum((drawn.grain_photons / scale) ** 2)
        assert expected > 50.0
        assert found == pytest.approx(expected, abs=4.0 * math.sqrt(variance))
        assert math.sqrt(variance) < 0.03 * expected


def test_grain_spots_lie_on_the_rings_as_wide_as_the_band() -> None:
    condition = dataclasses.replace(NEAR, beam=Beam(spectrum=top_hat(0.02)), beam_center_x_px=700.0)
    detector = eiger2_4m()
    seen = 0
    for drawn in draws(Distractors(polymer_ring=1.0), condition, detector, 30):
        radius = np.hypot(drawn.grain_fs - 699.5, drawn.grain_ss - (detector.shape[0] / 2.0 - 0.5)) * 75e-6
        d = condition.wavelength_angstrom / (2.0 * np.sin(np.arctan(radius / condition.camera_length_m) / 2.0))
        listed = np.array([ring.d_angstrom for ring in drawn.rings])
        if len(d):
            off = np.abs(d[:, None] / listed - 1.0).min(axis=1)
            assert off.max() < 0.0102
            seen += len(d)
        assert np.all(drawn.grain_sigma_px >= detector.point_spread_px)
        assert np.all(drawn.grain_photons > 0.0)
    assert seen > 100


def test_grain_spots_are_weak_along_the_polarisation() -> None:
    turned = Beam(polarisation_deg=90.0)
    condition = Condition(7000.0, 0.05, beam=turned)
    along, across = 0.0, 0.0
    for drawn in draws(Distractors(ice_ring=1.0), condition, HUGE_PANEL, 300):
        scale = sum(ring.photons for ring in drawn.rings)
        azimuth = np.arctan2(drawn.grain_ss - 1999.5, drawn.grain_fs - 1999.5)
        near_ss = np.abs(np.sin(azimuth)) > math.cos(math.pi / 6.0)
        near_fs = np.abs(np.cos(azimuth)) > math.cos(math.pi / 6.0)
        along += drawn.grain_photons[near_ss].sum() / scale
        across += drawn.grain_photons[near_fs].sum() / scale
    assert along < 0.7 * across


def test_coarser_material_makes_fewer_spots_up_to_a_bound() -> None:
    for drawn in draws(Distractors(ice_ring=1.0, polymer_ring=1.0), NEAR, HUGE_PANEL, 50):
        lines = len(drawn.rings)
        assert len(drawn.grain_fs) <= lines * (MAX_GRAINS_PER_RING + 5.0 * math.sqrt(MAX_GRAINS_PER_RING))
        assert all(0.0 <= ring.spotty <= 1.0 for ring in drawn.rings)
    wide = dataclasses.replace(NEAR, beam=Beam(radius_m=1e-3))
    for drawn in draws(Distractors(ice_ring=1.0), wide, HUGE_PANEL, 20):
        assert max(ring.spotty for ring in drawn.rings) < 0.05  # so many grains make a smooth ring


@pytest.mark.parametrize(
    "condition",
    [
        Condition(7000.0, 0.15, beam=Beam(spectrum=top_hat(0.9))),
        Condition(1000.0, 0.05),
        Condition(80000.0, 5.0),
        Condition(7000.0, 0.01, beam_center_x_px=-1e5, beam_center_y_px=1e5),
        Condition(7000.0, 0.15, flux_photons=1e15, beam=Beam(radius_m=1e-9, divergence_rad=0.05)),
    ],
    ids=["white", "soft", "hard", "beam elsewhere", "tiny and divergent"],
)
def test_under_any_condition_numbers_stay_finite(condition: Condition) -> None:
    settings = Distractors(1.0, 1.0, 1.0, 1.0, ring_strength=100.0)
    for drawn in draws(settings, condition, eiger2_4m(), 10):
        assert drawn.smooth_per_sr is not None
        assert drawn.smooth_per_sr.shape == Q.shape
        assert np.all(np.isfinite(drawn.smooth_per_sr) & (drawn.smooth_per_sr >= 0.0))
        for values in (drawn.grain_fs, drawn.grain_ss, drawn.grain_photons, drawn.grain_sigma_px):
            assert values.shape == drawn.grain_fs.shape
            assert np.all(np.isfinite(values))
        assert np.all(drawn.grain_photons >= 0.0)
        assert np.all(drawn.grain_sigma_px > 0.0)
        assert all(math.isfinite(ring.photons) for ring in drawn.rings)


def test_a_film_counts_only_where_one_of_its_rings_reaches_the_panel() -> None:
    settings = Distractors(ice_ring=1.0, polymer_ring=1.0, lipid_ring=1.0)
    for drawn in draws(settings, CONDITIONS[7], eiger2_4m(), 5):  # to 6.7 angstrom
        assert drawn.kinds == Kind.LIPID
        assert {ring.kind for ring in drawn.rings} == {Kind.LIPID}
        assert len(drawn.grain_fs) == 0


def test_ring_strength_multiplies_rings() -> None:
    one, ten = (
        draw_distractors(Distractors(lipid_ring=1.0, ring_strength=s), NEAR, HUGE_PANEL, np.random.default_rng(1))
        for s in (1.0, 10.0)
    )
    assert one.smooth_per_sr is not None
    assert ten.smooth_per_sr is not None
    np.testing.assert_allclose(ten.smooth_per_sr, 10.0 * one.smooth_per_sr, rtol=1e-9)


def test_salt_is_one_to_three_crystallites_of_one_salt() -> None:
    settings = Distractors(salt=1.0, salt_size_m=(2e-6, 8e-6))
    counts, names = set(), set()
    for drawn in draws(settings, CONDITIONS[3], eiger2_4m(), 200):
        assert drawn.kinds == Kind.SALT
        assert drawn.smooth_per_sr is None
        assert len(set(drawn.salt_names)) == 1
        assert all(2e-6 <= salt.size_m <= 8e-6 for salt in drawn.salts)
        counts.add(len(drawn.salts))
        names.update(drawn.salt_names)
    assert counts == {1, 2, 3}
    assert len(names) == len(SALTS)


def test_sodium_chloride_makes_few_strong_spots_at_high_angle() -> None:
    settings = Distractors(salt=1.0, salts=("sodium-chloride",))
    detector = plain_panel((3000, 3000))
    frames_with_spots, spots_of_frames, photons = 0, [], []
    for i in range(300):
        rng = np.random.default_rng((2, i))
        drawn = draw_distractors(settings, CONDITIONS[3], detector, rng)
        spots = [diffract(salt, CONDITIONS[3], detector, random_orientation(rng), 1.0) for salt in drawn.salts]
        assert all(np.all(each.d_angstrom < 3.27) for each in spots)
        count = sum(len(each) for each in spots)
        frames_with_spots += count > 0
        spots_of_frames.append(count)
        photons += [float(value) for each in spots for value in each.photons]
    assert frames_with_spots > 30
    assert np.mean(spots_of_frames) < 10.0
    assert np.percentile(photons, 75) > 500.0
