import dataclasses
import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from sim_replay import background as module
from sim_replay.background import (
    Background,
    Layer,
    Surroundings,
    draw_background,
    expected_at,
    expected_water,
    make_background,
    mix,
    scales,
    shadow,
)
from sim_replay.beam import Beam
from sim_replay.detector import CONDITIONS, Condition, Detector, eiger2_4m, plain_panel
from sim_replay.scatter import Q_INV_ANGSTROM, air_per_sr, water_per_sr

# Mean photons a pixel of 3e8 photons through 100 um of water, from a fine table of F^2 instead of the coarse one here.
WATER_MEANS = dict(
    zip(
        range(1, 10),
        (0.01938, 0.02993, 0.04024, 0.004349, 0.004902, 0.006011, 0.002169, 0.002226, 0.002328),
        strict=True,
    )
)
FLAT_TABLE = np.full(len(Q_INV_ANGSTROM), 1e-3)


def frame_rng(seed: int, frame: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, frame]))


def exact(
    condition: Condition,
    detector: Detector,
    per_sr: NDArray[np.float64],
    ss: NDArray[np.float64],
    fs: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Photons of 3e8 in a pixel's area around places (index) on the panel, written out in float64."""
    pixel = detector.pixel_size_m
    center_x = detector.shape[1] / 2 if condition.beam_center_x_px is None else condition.beam_center_x_px
    center_y = detector.shape[0] / 2 if condition.beam_center_y_px is None else condition.beam_center_y_px
    r = np.stack(
        [(fs + 0.5 - center_x) * pixel, (ss + 0.5 - center_y) * pixel, np.full(ss.shape, condition.camera_length_m)]
    )
    length = np.sqrt(np.sum(r**2, axis=0))
    v = r / length
    two_theta = np.arctan2(np.hypot(r[0], r[1]), r[2])
    q = 4.0 * np.pi * np.sin(two_theta / 2.0) / condition.wavelength_angstrom
    angle, degree = math.radians(condition.beam.polarisation_deg), condition.beam.polarisation_fraction
    along = 1.0 - (v[0] * math.cos(angle) + v[1] * math.sin(angle)) ** 2
    across = 1.0 - (-v[0] * math.sin(angle) + v[1] * math.cos(angle)) ** 2
    polarisation = (1.0 + degree) / 2.0 * along + (1.0 - degree) / 2.0 * across
    return 3e8 * polarisation * pixel**2 * v[2] / length**2 * np.interp(q, Q_INV_ANGSTROM, per_sr)


def everywhere(detector: Detector) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ss, fs = np.mgrid[: detector.shape[0], : detector.shape[1]].astype(np.float64)
    return ss, fs


@pytest.mark.parametrize("number", range(1, 10))
def test_water_has_the_reference_mean_of_its_condition(number: int) -> None:
    expected = expected_water(CONDITIONS[number], plain_panel())
    assert expected.dtype == np.float32
    assert expected.shape == (2163, 2069)
    assert expected.mean(dtype=np.float64) == pytest.approx(WATER_MEANS[number], rel=0.03)


GEOMETRIES = [
    Condition(8000.0, 0.15),
    Condition(6000.0, 0.35, beam_center_x_px=31.37, beam_center_y_px=170.81),
    Condition(7000.0, 0.01),
    Condition(20000.0, 0.02),  # beyond the table's end
    Condition(7000.0, 0.15, beam_center_x_px=-900.3, beam_center_y_px=4000.2),
    Condition(7000.0, 0.15, beam_center_x_px=99999.0, beam_center_y_px=-99999.0),
    Condition(9000.0, 0.1, beam=Beam(polarisation_fraction=0.0)),
    Condition(9000.0, 0.1, beam=Beam(polarisation_fraction=0.95, polarisation_deg=90.0)),
    Condition(9000.0, 0.1, beam=Beam(polarisation_fraction=0.7, polarisation_deg=33.0)),
]


@pytest.mark.parametrize("condition", GEOMETRIES)
@pytest.mark.parametrize("pixel_size_m", [75e-6, 600e-6])
def test_a_layer_meets_the_formula_to_one_in_a_hundred_thousand(condition: Condition, pixel_size_m: float) -> None:
    panel = plain_panel((300, 280), pixel_size_m=pixel_size_m)
    surroundings = Surroundings(air_path_m=0.02)
    made = make_background(condition, panel, surroundings)
    assert made.rest is not None
    places = everywhere(panel)
    for layer, per_sr in ((made.water, water_per_sr(1e-4)), (made.rest, air_per_sr(0.02))):
        due = exact(condition, panel, per_sr, *places)
        np.testing.assert_allclose(layer.expected, due, rtol=1e-5)
        assert layer.total == pytest.approx(float(layer.expected.sum(dtype=np.float64)), rel=1e-12)


@pytest.mark.parametrize("condition", [Condition(7000.0, 0.05), GEOMETRIES[8]])
def test_solid_angle_and_polarisation_are_those_of_the_whole_pixel(condition: Condition) -> None:
    panel = plain_panel((400, 400), pixel_size_m=150e-6)
    made = make_background(condition, panel, Surroundings(), FLAT_TABLE)
    assert made.rest is not None
    ss, fs = everywhere(panel)
    steps = (np.arange(8) + 0.5) / 8.0 - 0.5
    whole = np.mean([exact(condition, panel, FLAT_TABLE, ss + u, fs + v) for u in steps for v in steps], axis=0)
    np.testing.assert_allclose(made.rest.expected, whole, rtol=1e-4)


def test_a_panel_catches_the_light_of_its_solid_angle() -> None:
    """All the light that isotropic scattering sends through a square: 4 atan(h^2 / (d sqrt(d^2 + 2 h^2)))."""
    panel = plain_panel((500, 500), pixel_size_m=200e-6)
    half, distance = 0.05, 0.04
    unpolarised = Condition(7000.0, distance, beam=Beam(polarisation_fraction=0.0))
    made = make_background(unpolarised, panel, Surroundings(), FLAT_TABLE)
    assert made.rest is not None
    places = np.stack([*everywhere(panel)]) - 249.5
    cosine2 = distance**2 / (distance**2 + np.sum((places * 200e-6) ** 2, axis=0))
    isotropic = (made.rest.expected / ((1.0 + cosine2) / 2.0)).sum()
    solid_angle = 4.0 * math.atan(half**2 / (distance * math.sqrt(distance**2 + 2.0 * half**2)))
    assert isotropic == pytest.approx(3e8 * 1e-3 * solid_angle, rel=1e-5)


def test_water_is_linear_in_flux_and_thickness_and_weaker_along_the_polarisation() -> None:
    panel = plain_panel((301, 301), pixel_size_m=500e-6)
    base = Condition(7000.0, 0.15)
    water = expected_water(base, panel)
    thick = Surroundings(water_thickness_m=300e-6)
    bright = dataclasses.replace(base, flux_photons=6e8)
    np.testing.assert_allclose(expected_water(bright, panel, thick), 6.0 * water, rtol=1e-6)
    assert scales(bright, thick) == (pytest.approx(6.0), 2.0)
    assert scales(dataclasses.replace(base, flux_photons=0.0), thick) == (0.0, 0.0)
    r2 = (150 * 500e-6) ** 2 / ((150 * 500e-6) ** 2 + 0.15**2)
    assert water[150, 300] / water[300, 150] == pytest.approx(1.0 - r2, rel=1e-5)


def test_water_follows_a_beam_that_is_off_the_middle() -> None:
    panel = plain_panel((200, 100))
    water = expected_water(Condition(7000.0, 0.02, beam_center_x_px=30.5, beam_center_y_px=170.5), panel)
    np.testing.assert_allclose(water[170 - 25 : 170, 30], water[170 + 25 : 170 : -1, 30], rtol=1e-6)
    np.testing.assert_allclose(water[170, :30], water[170, 60:30:-1], rtol=1e-6)


def test_layers_are_remembered_whatever_flux_and_thickness_but_not_temperature_or_polarisation() -> None:
    detector, condition = Detector("small", (30, 20)), Condition(8000.0, 0.05)
    first = make_background(condition, detector, Surroundings(air_path_m=0.01))
    other = dataclasses.replace(condition, flux_photons=1e9, beam=Beam(radius_m=1e-6))
    again = make_background(other, detector, Surroundings(air_path_m=0.01, water_thickness_m=1e-3))
    assert again.water is first.water
    assert again.rest is first.rest
    more_air = make_background(condition, detector, Surroundings(air_path_m=0.02))
    assert more_air.water is first.water
    assert more_air.rest is not None
    assert first.rest is not None
    np.testing.assert_allclose(more_air.rest.expected, 2.0 * first.rest.expected, rtol=1e-6)
    warm = make_background(condition, detector, Surroundings(water_temperature_K=320.0))
    assert not np.allclose(warm.water.expected, first.water.expected, rtol=1e-3)
    turned = dataclasses.replace(condition, beam=Beam(polarisation_deg=90.0))
    assert not np.allclose(make_background(turned, detector, Surroundings()).water.expected, first.water.expected)
    for _ in range(3):
        for energy in np.linspace(7000.0, 9000.0, 9):
            make_background(Condition(float(energy), 0.05), detector, Surroundings(air_path_m=0.01))
    assert module._water_layer.cache_info().currsize <= 4
    assert module._rest_layer.cache_info().currsize <= 4
    with pytest.raises(ValueError):
        first.water.expected[0, 0] = 1.0


def test_nothing_is_expected_where_the_detector_is_no_use() -> None:
    detector = Detector("holes", (60, 50), gaps_ss=((20, 25),), gaps_fs=((10, 12),), bad=((40, 45, 30, 33),))
    surroundings = Surroundings(air_path_m=0.1, flat_photons_per_pixel=0.5)
    made = make_background(Condition(8000.0, 0.05), detector, surroundings)
    assert made.rest is not None
    for layer in (made.water, made.rest):
        assert np.array_equal(layer.expected == 0.0, detector.mask)
    assert made.photons((2.0, 3.0)) == pytest.approx(2.0 * made.water.total + 3.0 * made.rest.total)
    assert np.all(expected_water(Condition(8000.0, 0.05), detector) > 0.0)


def test_stray_light_and_rings_of_the_caller_add_to_the_rest() -> None:
    detector, condition = Detector("small", (40, 40)), Condition(8000.0, 0.05)
    assert make_background(condition, detector, Surroundings()).rest is None
    flat = make_background(condition, detector, Surroundings(flat_photons_per_pixel=0.25)).rest
    assert flat is not None
    assert np.all(flat.expected == np.float32(0.25))
    ring = np.exp(-((Q_INV_ANGSTROM - 0.3) ** 2) / 2.0 / 0.02**2) * 1e-3
    with_ring = make_background(condition, detector, Surroundings(flat_photons_per_pixel=0.25), ring).rest
    assert with_ring is not None
    due = exact(condition, detector, ring, *everywhere(detector)) + 0.25
    np.testing.assert_allclose(with_ring.expected, due, rtol=1e-5)
    for bad in (ring[:-1], -ring, np.full(len(ring), np.nan)):
        with pytest.raises(ValueError, match="extra_per_sr must be 2001"):
            make_background(condition, detector, Surroundings(), bad)


def test_layers_mix_and_are_read_at_pixels() -> None:
    detector, condition = Detector("small", (40, 30)), Condition(8000.0, 0.05)
    index = np.array([0, 7, 1199, 7])
    for surroundings in (Surroundings(), Surroundings(helium_path_m=0.2, capillary_wall_m=2e-5, film_thickness_m=1e-5)):
        made = make_background(condition, detector, surroundings)
        due = made.water.expected * 2.5 + (0.0 if made.rest is None else made.rest.expected * 0.5)
        out = np.empty(detector.shape, np.float32)
        assert mix(made, (2.5, 0.5), out) is out
        np.testing.assert_allclose(out, due, rtol=1e-6)
        at = expected_at(made, (2.5, 0.5), index)
        assert at.dtype == np.float64
        np.testing.assert_allclose(at, due.reshape(-1)[index], rtol=1e-6)


def test_the_beam_stop_shades_a_disc_with_an_edge_of_one_pixel() -> None:
    detector = plain_panel((200, 200))
    condition = Condition(8000.0, 0.15, beam_center_x_px=90.5, beam_center_y_px=110.5)
    assert shadow(condition, detector, Surroundings()) is None
    surroundings = Surroundings(beam_stop_radius_m=0.5e-3, beam_stop_distance_m=0.05)
    shade = shadow(condition, detector, surroundings)
    assert shade is not None
    assert shade.dtype == np.float32
    radius = 0.5e-3 * 0.15 / 0.05 / 75e-6  # 20 pixels
    ss, fs = everywhere(detector)
    distance = np.hypot(ss - 110.0, fs - 90.0)
    assert np.all(shade[distance <= radius - 0.5] == 0.0)
    assert np.all(shade[distance >= radius + 0.5] == 1.0)
    edge = np.abs(distance - radius) < 0.5
    np.testing.assert_allclose(shade[edge], (distance - radius + 0.5)[edge], atol=1e-4)
    assert (1.0 - shade).sum() == pytest.approx(np.pi * radius**2, rel=2e-3)
    made, free = (make_background(condition, detector, each) for each in (surroundings, Surroundings()))
    np.testing.assert_allclose(made.water.expected, free.water.expected * shade, rtol=1e-6)


def test_the_stops_holder_reaches_from_the_stop_to_the_edge() -> None:
    detector = plain_panel((200, 200))
    condition = Condition(8000.0, 0.15)
    holder = Surroundings(beam_stop_radius_m=5e-4, beam_stop_distance_m=0.05, beam_stop_arm_width_m=1e-4)  # 4 pixels
    for degrees, box in ((90.0, np.s_[100:, 98:102]), (0.0, np.s_[98:102, 100:]), (180.0, np.s_[98:102, :100])):
        shade = shadow(condition, detector, dataclasses.replace(holder, beam_stop_arm_deg=degrees))
        assert shade is not None
        assert np.all(shade[box] < 1e-6)
        dark = 1.0 - shade
        dark[box] = 0.0
        ss, fs = everywhere(detector)
        assert np.all(dark[np.hypot(ss - 99.5, fs - 99.5) > 21.0] < 1e-6)
    slanted = shadow(condition, detector, dataclasses.replace(holder, beam_stop_arm_deg=-45.0))
    assert slanted is not None
    assert slanted[10, 189] == 0.0
    assert slanted[189, 10] == 1.0


def test_stray_light_falls_behind_the_stop_too() -> None:
    surroundings = Surroundings(beam_stop_radius_m=1e-3, flat_photons_per_pixel=0.1, air_path_m=0.01)
    made = make_background(Condition(8000.0, 0.1), plain_panel((40, 40)), surroundings)
    assert made.rest is not None
    assert made.water.expected[20, 20] == 0.0
    assert made.rest.expected[20, 20] == np.float32(0.1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"water_thickness_m": 1.5}, "water_thickness_m is 1.5; give metres from 0 to 1"),
        ({"water_thickness_m": math.nan}, "water_thickness_m is nan"),
        ({"air_path_m": -0.1}, "air_path_m is -0.1"),
        ({"helium_path_m": math.inf}, "helium_path_m is inf"),
        ({"capillary_wall_m": 0.2}, "capillary_wall_m is 0.2; give metres from 0 to 0.1"),
        ({"film_thickness_m": 0.2}, "film_thickness_m is 0.2"),
        ({"beam_stop_radius_m": 0.2}, "beam_stop_radius_m is 0.2"),
        ({"beam_stop_distance_m": 0.0}, "beam_stop_distance_m is 0.0; give metres above 0"),
        ({"beam_stop_distance_m": math.nan}, "beam_stop_distance_m is nan"),
        ({"beam_stop_arm_width_m": 1e-4}, "needs a beam stop"),
        ({"beam_stop_arm_deg": math.nan}, "beam_stop_arm_deg is nan"),
        ({"water_temperature_K": 25.0}, "water_temperature_K is 25.0; give kelvin"),
        ({"flat_photons_per_pixel": -1.0}, "flat_photons_per_pixel is -1.0"),
        ({"flat_photons_per_pixel": math.inf}, "flat_photons_per_pixel is inf"),
    ],
)
def test_surroundings_that_cannot_be_are_refused_in_one_line(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError) as refused:
        Surroundings(**settings)  # type: ignore[arg-type]
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_geometries_that_cannot_be_are_refused() -> None:
    panel = plain_panel((20, 20))
    behind = Surroundings(beam_stop_radius_m=1e-3, beam_stop_distance_m=0.2)
    for ask in (make_background, shadow):
        with pytest.raises(ValueError, match=r"behind the detector at 0\.1 m"):
            ask(Condition(8000.0, 0.1), panel, behind)
    for x, y in ((1e30, 0.0), (0.0, -2e5)):
        with pytest.raises(ValueError, match="far off any detector"):
            make_background(Condition(8000.0, 0.1, beam_center_x_px=x, beam_center_y_px=y), panel, Surroundings())
    made = make_background(Condition(8000.0, 0.1), panel, Surroundings())
    with pytest.raises(ValueError, match=r"background is \(20, 20\), the image \(20, 21\)"):
        draw_background(made, (1.0, 1.0), frame_rng(1, 0), np.zeros((20, 21), np.uint16), 65534)


@pytest.mark.parametrize("scale", [1.0, 200.0, 5000.0])  # from dealt photons to bright levels
def test_drawn_layers_are_poisson_with_their_sum(scale: float) -> None:
    detector = Detector("small", (300, 200), gaps_ss=((100, 110),))
    made = make_background(Condition(8000.0, 0.05), detector, Surroundings(air_path_m=0.002))
    counts = np.zeros(detector.shape, dtype=detector.dtype)
    draw_background(made, (scale, 2.0 * scale), frame_rng(5, 0), counts, detector.largest_count)
    mean = expected_at(made, (scale, 2.0 * scale), np.arange(counts.size)).reshape(counts.shape)
    live = ~detector.mask
    assert np.all(counts[100:110] == 0)
    assert counts.sum() == pytest.approx(mean.sum(), abs=4.0 * np.sqrt(mean.sum()))
    chi2 = np.sum((counts[live] - mean[live]) ** 2) / mean[live].sum()  # index of dispersion, 1 for Poisson
    assert chi2 == pytest.approx(1.0, abs=0.05)
    left = mean[:, :100].sum()
    assert counts[:, :100].sum() == pytest.approx(left, abs=4.0 * np.sqrt(left))
    again = np.zeros_like(counts)
    draw_background(made, (scale, 2.0 * scale), frame_rng(5, 0), again, detector.largest_count)
    assert np.array_equal(counts, again)


def test_no_light_draws_nothing() -> None:
    made = make_background(Condition(8000.0, 0.05), plain_panel((20, 20)), Surroundings(air_path_m=0.1))
    counts = np.zeros((20, 20), np.uint16)
    draw_background(made, (0.0, 0.0), frame_rng(1, 0), counts, 65534)
    assert counts.sum() == 0


def test_a_layer_of_a_panel_is_made_in_time() -> None:
    """Prints CPU time; the limit is far above what is measured, to hold on a busy machine."""
    detector = eiger2_4m()
    spent = []
    for i in range(8):  # the first few touch new memory
        begun = time.process_time()
        made = make_background(Condition(7000.0 + i, 0.15), detector, Surroundings())
        spent.append(time.process_time() - begun)
    print(f"layer: {1e3 * min(spent):.0f} ms at best, {1e3 * float(np.median(spent)):.0f} ms at median")
    assert isinstance(made, Background)
    assert isinstance(made.water, Layer)
    assert min(spent) < 0.5


def test_the_eiger_has_its_gaps_and_limits() -> None:
    detector = eiger2_4m()
    assert detector.shape == (2162, 2068)
    assert int((~detector.mask).sum()) == 8 * 512 * 1028
    assert (detector.sentinel, detector.largest_count, detector.saturation_value) == (65535, 65534, 65533)
    assert eiger2_4m("uint32").sentinel == 2**32 - 1
    with pytest.raises(ValueError, match="gap"):
        Detector("d", (10, 10), gaps_fs=((5, 11),))
    with pytest.raises(ValueError, match="dtype"):
        eiger2_4m("float32")


def test_conditions_run_over_energy_within_camera_length() -> None:
    assert [(c.camera_length_m, c.photon_energy_eV) for c in CONDITIONS.values()][3:6] == [
        (0.25, 6000.0),
        (0.25, 7000.0),
        (0.25, 8000.0),
    ]
