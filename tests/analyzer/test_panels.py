"""Geometry files in the analysis: where panels stand, what is left out, what is refused and how."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings as how
from hypothesis import strategies as st

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings, PlanCache
from analyzer.geometry import MAX_RADIAL_BINS, bin_map
from analyzer.panels import BadGeometry, contradictions, open_geometry, place
from analyzer.results import Status
from streamer.geometry_file import parse_geometry
from streamer.messages import HC_EV_ANGSTROM, SeriesMetadata
from streamer.validity import Validity, series_validity
from tests.analyzer.builders import CENTER, SHAPE, frame, metadata, series, water, with_spots

ROWS, COLUMNS = SHAPE
FLAT = f"""
photon_energy = 7000 eV
clen = 0.15 m
res = 13333.333333333334
p0/min_fs = 0
p0/max_fs = {COLUMNS - 1}
p0/min_ss = 0
p0/max_ss = {ROWS - 1}
p0/corner_x = {-CENTER[0]}
p0/corner_y = {-CENTER[1]}
p0/fs = x
p0/ss = y
"""
TWO = """
photon_energy = /entry/instrument/beam/photon_energy eV
clen = /entry/instrument/detector/detector_distance m
res = 1e4
a/min_fs = 0
a/max_fs = 74
a/min_ss = 0
a/max_ss = 29
a/corner_x = -30
a/corner_y = -40
a/fs = +0.9x +0.1y -0.05z
a/ss = -0.1x +0.9y
a/coffset = 0.002
b/min_fs = 0
b/max_fs = 74
b/min_ss = 30
b/max_ss = 60
b/corner_x = -20
b/corner_y = 12
b/fs = x
b/ss = y
"""


def written(folder: Path, text: str, name: str = "det.geom") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadGeometry) as refusal:
        open_geometry(path)
    text = str(refusal.value)
    assert len(text.splitlines()) == 1
    assert path.name in text
    return text


# --- where pixels are -------------------------------------------------------------------


def test_a_flat_geometry_file_is_the_header_that_says_the_same(tmp_path: Path) -> None:
    header = metadata()
    geometry, mask = place(open_geometry(written(tmp_path, FLAT)), None, header, SHAPE)
    assert mask is None
    assert geometry.panels is None
    expected, _ = place(None, None, header, SHAPE)
    for name in ("beam_center_fs", "beam_center_ss", "pixel_size_m", "camera_length_m", "photon_energy_eV"):
        assert getattr(geometry, name) == pytest.approx(getattr(expected, name)), name


def two_theta_by_hand(text: str, fs: int, ss: int, clen_m: float) -> float:
    """From the panel's own lines, as CrystFEL has it: the pixel's middle is half a pixel from its corner."""
    panel = next(p for p in parse_geometry(text).panels if p.min_ss <= ss <= p.max_ss and p.min_fs <= fs <= p.max_fs)
    i, j = fs - panel.min_fs + 0.5, ss - panel.min_ss + 0.5
    size = panel.pixel_size_m
    x, y, z = (
        (start + i * panel.fs[axis] + j * panel.ss[axis]) * size
        for axis, start in enumerate((panel.corner_x, panel.corner_y, 0.0))
    )
    return math.atan2(math.hypot(x, y), z + clen_m + panel.coffset_m)


@pytest.mark.parametrize(("fs", "ss"), [(0, 0), (74, 29), (10, 29), (10, 30), (74, 60)])
def test_turned_and_leaning_panels_have_the_angles_their_lines_give(tmp_path: Path, fs: int, ss: int) -> None:
    given = open_geometry(written(tmp_path, TWO))
    geometry = given.fit(metadata(camera_length_m=0.1, photon_energy_eV=9000.0), SHAPE)
    q = geometry.q_per_angstrom(fs, ss)
    assert q is not None
    theta = two_theta_by_hand(TWO, fs, ss, 0.1) / 2
    assert float(q) == pytest.approx(4 * math.pi * math.sin(theta) * 9000.0 / HC_EV_ANGSTROM, rel=1e-9)


def test_numbers_of_the_file_hold_and_places_take_the_headers(tmp_path: Path) -> None:
    header = metadata(camera_length_m=0.3, photon_energy_eV=12000.0)
    stated = open_geometry(written(tmp_path, FLAT)).fit(header, SHAPE)
    assert (stated.camera_length_m, stated.photon_energy_eV) == (0.15, 7000.0)
    taken = open_geometry(written(tmp_path, TWO)).fit(header, SHAPE)
    assert taken.photon_energy_eV == 12000.0
    # The plane of radii is where the pixels stand on average, which coffset moves.
    assert taken.camera_length_m == pytest.approx(0.3, abs=0.002)
    unsaid = open_geometry(
        written(tmp_path, FLAT.replace("clen = 0.15 m\n", "").replace("photon_energy = 7000 eV", ""))
    )
    assert unsaid.fit(header, SHAPE).camera_length_m == pytest.approx(0.3)
    assert unsaid.fit(metadata(camera_length_m=None), SHAPE).measures_angles is False


def test_wavelength_is_photon_energy_too(tmp_path: Path) -> None:
    text = FLAT.replace("photon_energy = 7000 eV", "wavelength = 2.0 A")
    fitted = open_geometry(written(tmp_path, text)).fit(metadata(), SHAPE)
    assert fitted.photon_energy_eV == pytest.approx(HC_EV_ANGSTROM / 2.0)


def test_a_shift_moves_the_detector_from_number_or_header(tmp_path: Path) -> None:
    text = "detector_shift_x = 0.15 mm\ndetector_shift_y = /entry/detector/shift_y mm\n" + FLAT
    given = open_geometry(written(tmp_path, text))
    moved = given.fit(metadata(raw={"entry": {"detector": {"shift_y": -0.75}}}), SHAPE)
    assert moved.beam_center_fs == pytest.approx(CENTER[0] - 0.5 - 2.0)
    assert moved.beam_center_ss == pytest.approx(CENTER[1] - 0.5 + 10.0)
    by_key = given.fit(metadata(raw={"shift_y": -0.75}), SHAPE)
    assert by_key.beam_center_ss == moved.beam_center_ss
    with pytest.raises(BadGeometry, match="takes detector_shift_y from /entry/detector/shift_y, which the header"):
        given.fit(metadata(), SHAPE)


def test_bad_areas_lie_where_the_shift_puts_them_from_number_or_header(tmp_path: Path) -> None:
    area = "bad_s/min_x = -3\nbad_s/max_x = 3\nbad_s/min_y = -2\nbad_s/max_y = 2\n"
    text = "detector_shift_x = {} mm\n" + FLAT + area
    by_number = open_geometry(written(tmp_path, text.format("0.75")))
    by_header = open_geometry(written(tmp_path, text.format("/entry/shift")))
    assert by_number.mask is not None
    assert by_header.mask is None
    for shift, moved in ((0.75, 0), (0.0, 10), (0.375, 5), (-0.75, 20), (0.15, 8), (0.75, 0)):
        _, left_out = place(by_header, None, metadata(raw={"shift": shift}), SHAPE)
        assert left_out is not None
        assert np.array_equal(np.roll(by_number.mask.valid, moved, 1), left_out.valid), shift
    geometry, left_out = place(by_header, None, metadata(), SHAPE)
    assert left_out is None
    assert "which the header does not say" in geometry.unfit


def test_numbers_that_are_not_the_headers_are_named_and_those_that_nearly_are_not(tmp_path: Path) -> None:
    given = open_geometry(written(tmp_path, FLAT))
    far = metadata(camera_length_m=0.35, photon_energy_eV=8000.0)
    assert contradictions(given, far) == [
        "det.geom has a camera length of 0.15 m, the header 0.35 m; the file's is used",
        "det.geom has a photon energy of 7000 eV, the header 8000 eV; the file's is used",
    ]
    for near in (
        metadata(camera_length_m=0.151, photon_energy_eV=7050.0),
        metadata(camera_length_m=None, photon_energy_eV=None),
    ):
        assert contradictions(given, near) == []
    moved = open_geometry(written(tmp_path, FLAT + "p0/coffset = 0.2\n"))
    assert contradictions(moved, metadata(camera_length_m=0.35, photon_energy_eV=7000.0)) == []
    assert contradictions(open_geometry(written(tmp_path, TWO)), far) == []
    assert contradictions(None, far) == []
    assert contradictions(given, metadata(shape=(40, 50), camera_length_m=0.35)) == []  # it is not used for these


def test_panels_with_camera_lengths_of_their_own_stand_there(tmp_path: Path) -> None:
    text = TWO + "a/clen = 0.08\nb/clen = 0.1\n"
    geometry = open_geometry(written(tmp_path, text)).fit(metadata(photon_energy_eV=9000.0), SHAPE)
    for fs, ss, clen in ((3, 4, 0.08), (50, 50, 0.1)):
        q = geometry.q_per_angstrom(fs, ss)
        theta = two_theta_by_hand(TWO, fs, ss, clen) / 2
        assert q is not None
        assert float(q) == pytest.approx(4 * math.pi * math.sin(theta) * 9000.0 / HC_EV_ANGSTROM, rel=1e-9)


def test_the_beam_centre_is_on_the_panel_that_the_beam_meets(tmp_path: Path) -> None:
    on_b = TWO.replace("b/corner_y = 12", "b/corner_y = -12")
    geometry = open_geometry(written(tmp_path, on_b)).fit(metadata(), SHAPE)
    assert (geometry.beam_center_fs, geometry.beam_center_ss) == pytest.approx((19.5, 41.5))
    x, y = geometry.positions_px([geometry.beam_center_fs], [geometry.beam_center_ss])
    assert math.hypot(float(x[0]), float(y[0])) < 1e-6


def test_pixels_of_another_size_stand_where_their_res_puts_them(tmp_path: Path) -> None:
    geometry = open_geometry(written(tmp_path, TWO + "b/res = 2e4\n")).fit(metadata(), SHAPE)
    x, _ = geometry.positions_px([0.0, 1.0], [45.0, 45.0])
    assert float(x[1] - x[0]) * geometry.pixel_size_m == pytest.approx(50e-6, rel=0.02)


# --- what is left out -------------------------------------------------------------------


def test_bad_regions_panels_without_index_and_gaps_are_left_out(tmp_path: Path) -> None:
    text = (
        FLAT.replace(f"p0/max_ss = {ROWS - 1}", "p0/max_ss = 39")
        + f"""
q/min_fs = 0
q/max_fs = {COLUMNS - 1}
q/min_ss = 45
q/max_ss = {ROWS - 1}
q/corner_x = {-CENTER[0]}
q/corner_y = {45 - CENTER[1]}
q/fs = x
q/ss = y
q/no_index = 1
bad_pixels/panel = p0
bad_pixels/min_fs = 3
bad_pixels/max_fs = 5
bad_pixels/min_ss = 7
bad_pixels/max_ss = 7
bad_area/min_x = -2.2
bad_area/max_x = 1.2
bad_area/min_y = -1.2
bad_area/max_y = 2.2
"""
    )
    given = open_geometry(written(tmp_path, text))
    assert given.mask is not None
    valid = given.mask.valid
    assert given.mask.name.startswith("det.geom ")
    expected = np.ones(SHAPE, np.uint8)
    expected[40:] = 0  # the gap, and the panel that is not indexed
    expected[7, 3:6] = 0
    # First corners strictly inside: x from -1.5 to 0.5 in steps of one, y likewise.
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    x, y = columns - CENTER[0], rows - CENTER[1]
    expected[(x > -2.2) & (x < 1.2) & (y > -1.2) & (y < 2.2)] = 0
    np.testing.assert_array_equal(valid, expected)


def test_mask_files_count_by_their_bits(tmp_path: Path) -> None:
    flags = np.zeros(SHAPE, "u4")
    flags[1, 2], flags[3, 4], flags[5, 6] = 1, 2, 5
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["mask"] = flags
        file["good"] = np.where(flags == 5, 0, 8).astype("u2")
    lines = "mask = /mask\nmask_file = m.h5\nmask_bad = 0x1\n"
    given = open_geometry(written(tmp_path, lines + FLAT))
    assert given.mask is not None
    assert set(zip(*np.nonzero(given.mask.valid == 0), strict=True)) == {(1, 2), (5, 6)}
    lines = "mask1_data = /good\nmask1_file = m.h5\nmask1_goodbits = 0x8\n"
    given = open_geometry(written(tmp_path, lines + FLAT))
    assert given.mask is not None
    assert set(zip(*np.nonzero(given.mask.valid == 0), strict=True)) == {(5, 6)}


def test_a_mask_in_the_images_own_file_is_the_series_matter(tmp_path: Path) -> None:
    lines = "mask = /entry/instrument/detector/pixel_mask\nmask_bad = 0xffff\n"
    assert open_geometry(written(tmp_path, lines + FLAT)).mask is None


def test_the_name_stands_for_the_pixels(tmp_path: Path) -> None:
    bad = "bad0/panel = p0\nbad0/min_fs = {}\nbad0/max_fs = 9\nbad0/min_ss = 1\nbad0/max_ss = 2\n"
    one, again, other = (open_geometry(written(tmp_path, FLAT + bad.format(n))).mask for n in (3, 3, 4))
    assert one is not None
    assert again is not None
    assert other is not None
    assert one.name == again.name != other.name


# --- in the analysis --------------------------------------------------------------------


def judge(bundle: Bundle, *frames: Any, **settings: Any) -> list[Any]:
    return Analyser(bundle, CascadeSettings(**settings)).process(list(frames)).results


def test_records_name_the_geometrys_mask_after_the_series_and_before_the_users(bundle: Bundle, tmp_path: Path) -> None:
    text = FLAT + "bad0/panel = p0\nbad0/min_fs = 40\nbad0/max_fs = 60\nbad0/min_ss = 15\nbad0/max_ss = 25\n"
    given = open_geometry(written(tmp_path, text))
    assert given.mask is not None
    mine = Validity("mine.npy", np.ones(SHAPE, np.uint8))
    lit = frame(with_spots(water(0.02)))
    (bare,), (with_mask,) = judge(bundle, lit), judge(bundle, lit, geometry=given, mask=mine)
    assert (bare.mask, with_mask.mask) == ("none", f"none + {given.mask.name} + mine.npy")
    assert {(20, 30)} <= {(round(p.ss - 0.5), round(p.fs - 0.5)) for p in bare.peaks}
    assert not any(15 <= p.ss <= 25 and 40 <= p.fs <= 60 for p in with_mask.peaks)


def test_a_users_mask_of_another_shape_takes_nothing_from_the_geometrys(tmp_path: Path) -> None:
    text = FLAT + "bad0/panel = p0\nbad0/min_fs = 40\nbad0/max_fs = 60\nbad0/min_ss = 15\nbad0/max_ss = 25\n"
    given = open_geometry(written(tmp_path, text))
    assert given.mask is not None
    small = Validity("small.npy", np.ones((4, 4), np.uint8))
    _, left_out = place(given, small, metadata(), SHAPE)
    found = series_validity(metadata(), SHAPE, "threshold_1", left_out)
    assert (found.name, found.pixels) == (f"none + {given.mask.name}", given.mask.pixels)
    assert found.unfit.startswith("small.npy is for images of 4 x 4 pixels")


def test_peaks_say_their_q_and_spacing_by_the_geometry_in_force(bundle: Bundle, tmp_path: Path) -> None:
    given = open_geometry(written(tmp_path, TWO))
    lit, dark = frame(with_spots(water(0.02))), frame(with_spots(water(0.02)), of=series(2, 2, camera_length_m=None))
    (by_header, unknown), (by_file,) = judge(bundle, lit, dark), judge(bundle, lit, geometry=given)
    assert by_header.peaks
    assert {p.q_per_angstrom for p in unknown.peaks} == {None} == {p.resolution_angstrom for p in unknown.peaks}
    for result, expected in (
        (by_header, place(None, None, metadata(), SHAPE)[0]),
        (by_file, given.fit(metadata(), SHAPE)),
    ):
        for peak in result.peaks:
            q = expected.q_per_angstrom(peak.fs, peak.ss)
            assert q is not None
            assert peak.q_per_angstrom == pytest.approx(float(q), abs=1e-4)
            assert peak.resolution_angstrom == pytest.approx(2 * math.pi / float(q), rel=1e-3)
    assert by_header.resolution_angstrom != by_file.resolution_angstrom


def test_on_frames_of_another_shape_the_headers_geometry_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    given = open_geometry(written(tmp_path, FLAT))
    other = (40, 50)
    analyser = Analyser(bundle, CascadeSettings(geometry=given))
    outcome = analyser.process([frame(water(0.1, other), of=series(shape=other))])
    (result,), (seen,) = outcome.results, outcome.peaks
    assert result.status == Status.OK
    assert seen.plan.geometry.unfit == (
        "det.geom covers images of 61 x 75 pixels, the images are 40 x 50; give the geometry of this detector"
    )
    assert seen.plan.geometry.panels is None


def test_plans_are_shared_between_series_of_one_geometry(tmp_path: Path) -> None:
    given = open_geometry(written(tmp_path, TWO))
    plans, validity = PlanCache(), Validity("none", np.ones(SHAPE, np.uint8))
    one, again = (plans.get(n, given.fit(metadata(), SHAPE), validity, 100, np.dtype("u2")) for n in range(2))
    other = plans.get(2, given.fit(metadata(camera_length_m=0.2), SHAPE), validity, 100, np.dtype("u2"))
    assert one is again
    assert one is not other


# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (FLAT.replace("7000 eV", "7000 furlongs"), "photon_energy"),
        (FLAT.replace("0.15 m", "0.15 inch"), "clen"),
        ("detector_shift_x = 3 px\n" + FLAT, "detector_shift_x"),
        (FLAT.replace("p0/ss = y", "p0/ss = x"), "span no pixel"),
        (FLAT.replace("p0/fs = x", "p0/fs = 1000000x"), "span no pixel"),
        (FLAT.replace("p0/fs = x", "p0/fs = 0.0001x"), "span no pixel"),
        (FLAT + "p0/coffset = -0.2\n", "above 0"),
        (FLAT.replace(f"corner_x = {-CENTER[0]}", "corner_x = 1e300"), "farther than"),
        (FLAT.replace(f"corner_x = {-CENTER[0]}", "corner_x = -5e4"), "farther than"),
        (FLAT.replace(f"max_fs = {COLUMNS - 1}", "max_fs = 2000000000"), "no detector has"),
        (TWO + "b/data = /other\n", "different datasets"),
        (TWO + "b/dim0 = 3\nb/dim1 = ss\nb/dim2 = fs\n", "different datasets"),
        ("mask = /mask\nmask_file = none.h5\nmask_bad = 1\n" + FLAT, "no such file"),
        ("", "no panel"),
        ("\x00\x01\x02", "NUL character"),
    ],
)
def test_a_senseless_file_is_refused_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    assert why in refused(written(tmp_path, text))


def test_absent_and_unreadable_files_are_refused_in_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "absent.geom")
    refused(tmp_path)
    (tmp_path / "packed.geom").write_bytes(bytes(range(256)) * 10)
    refused(tmp_path / "packed.geom")


@pytest.mark.parametrize("shape", [(61, 74), (60, 75), (1, 1)])
def test_a_mask_file_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    np.save(tmp_path / "m.npy", np.zeros(shape, np.uint8))
    text = "mask = /mask\nmask_file = m.npy\nmask_bad = 1\n" + FLAT
    assert f"{shape[0]} x {shape[1]} pixels, the panels cover 61 x 75" in refused(written(tmp_path, text))


def test_a_mask_of_numbers_with_fractions_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["mask"] = np.zeros(SHAPE, "f4")
    text = "mask = /mask\nmask_file = m.h5\nmask_bad = 1\n" + FLAT
    assert "bits are whole numbers" in refused(written(tmp_path, text))


def test_a_header_that_puts_a_panel_behind_the_sample_is_not_fitted(tmp_path: Path) -> None:
    given = open_geometry(written(tmp_path, FLAT.replace("clen = 0.15 m", "") + "p0/coffset = -0.2\n"))
    with pytest.raises(BadGeometry, match="has to be above 0"):
        given.fit(SeriesMetadata(camera_length_m=0.15), SHAPE)
    assert given.fit(SeriesMetadata(camera_length_m=0.5), SHAPE).camera_length_m == pytest.approx(0.3)


NUMBER = st.floats(-1e3, 1e3) | st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, -1e16])
DIRECTION = st.tuples(NUMBER, NUMBER, NUMBER).filter(lambda v: any(v))


@how(max_examples=300, deadline=None)
@drawn(
    corner=st.tuples(NUMBER, NUMBER),
    fs=DIRECTION,
    ss=DIRECTION,
    coffset=NUMBER,
    clen=st.sampled_from([None, 1e-4, 0.1, 1e4]),
)
def test_whatever_stands_in_a_file_is_refused_or_gives_every_pixel_a_place(
    tmp_path_factory: pytest.TempPathFactory, corner: Any, fs: Any, ss: Any, coffset: float, clen: float | None
) -> None:
    def direction(vector: Any) -> str:
        return " ".join(f"{value:+f}{axis}" for value, axis in zip(vector, "xyz", strict=True))

    text = TWO + f"a/corner_x = {corner[0]!r}\na/corner_y = {corner[1]!r}\na/coffset = {coffset!r}\n"
    text += f"a/fs = {direction(fs)}\na/ss = {direction(ss)}\n"
    path = written(tmp_path_factory.getbasetemp(), text, "drawn.geom")
    try:
        geometry = open_geometry(path).fit(metadata(camera_length_m=clen), SHAPE)
    except BadGeometry:
        return
    radius = geometry.radius_map()
    assert np.isfinite(radius).all()
    bins = bin_map(geometry)
    assert bins.radial_bins <= MAX_RADIAL_BINS
    assert bins.bin_of.max() < bins.bins
    for ring in geometry.rings():
        assert all(np.isfinite(line).all() for line in ring.lines)
