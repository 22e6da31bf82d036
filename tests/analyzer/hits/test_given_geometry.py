"""A run with a geometry file: the `.geom` beside its hits has the pixels where the analysis has them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from analyzer.geometry import Geometry
from analyzer.hits import recover
from analyzer.hits.places import JOURNALS
from analyzer.hits.writer import JournalWriter
from analyzer.panels import BadGeometry, GivenGeometry, open_geometry
from streamer.geometry_file import BadArea, BadPixels
from streamer.messages import ImageData, SeriesMetadata
from streamer.series import Series
from streamer.validity import series_validity
from tests.analyzer import builders
from tests.analyzer.hits.made import (
    SHAPE,
    files,
    hit,
    peak,
    pixels,
    read_as_crystfel,
    read_back,
    the_geometry,
    write,
)
from tests.analyzer.test_panels import FLAT, TWO, written
from tests.support import packed_image

CORNERS = ([0, 74, 0, 74, 37, 0, 74, 10], [0, 0, 29, 29, 12, 30, 60, 45])
"""fs and ss on both panels of TWO."""

BAD = "bad1/panel = b\nbad1/min_fs = 3\nbad1/max_fs = 5\nbad1/min_ss = 40\nbad1/max_ss = 41\n"
AREA = "bad_shadow/min_x = -20\nbad_shadow/max_x = -15.5\nbad_shadow/min_y = 12\nbad_shadow/max_y = 14.5\n"


def with_masks(folder: Path, text: str = TWO + BAD + AREA) -> GivenGeometry:
    """TWO with a mask in a file of its own, another in the images' file, bad regions and peaks elsewhere."""
    flags = np.zeros(SHAPE, "u2")
    flags[7, 8], flags[50, 60], flags[51, 61] = 4, 5, 2
    with h5py.File(folder / "m.h5", "w") as file:
        file["bits"] = flags
    head = (
        "mask0_data = /entry/instrument/detector/pixel_mask\nmask0_badbits = 0x1\n"
        "mask1_data = /bits\nmask1_file = m.h5\nmask1_badbits = 0x4\n"
        "data = /entry/elsewhere\ndim0 = %\ndim1 = ss\ndim2 = fs\npeak_list = /elsewhere\npeak_list_type = cxi\n"
        "saturation_map = /entry/nowhere\n"
    )
    return open_geometry(written(folder, head + text, "mine.geom"))


def geom(folder: Path) -> Path:
    (path,) = folder.glob("hits-*.geom")
    return path


def assert_same_places(ours: Geometry, theirs: Geometry) -> None:
    for mine, other in zip(ours.positions_px(*CORNERS), theirs.positions_px(*CORNERS), strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    for name in ("camera_length_m", "photon_energy_eV", "pixel_size_m", "beam_center_fs", "beam_center_ss"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name)), name
    np.testing.assert_allclose(ours.radius_map(), theirs.radius_map(), rtol=1e-6, atol=1e-5)


def test_the_geometry_beside_hits_has_every_pixel_where_the_analysis_has_it(tmp_path: Path) -> None:
    given, series = with_masks(tmp_path), builders.series()
    write(tmp_path / "h", [hit(0, of=series)], geometry=given)
    again = open_geometry(geom(tmp_path / "h"))
    fitted = given.fit(series.metadata, SHAPE)
    assert fitted.panels is not None
    assert_same_places(again.fit(series.metadata, SHAPE), fitted)
    # And not where the header has it.
    x, _ = again.fit(series.metadata, SHAPE).positions_px(*CORNERS)
    assert np.abs(x - (np.array(CORNERS[0]) - builders.CENTER[0] + 0.5)).max() > 1
    assert [panel.name for panel in the_geometry(tmp_path / "h").panels] == ["a", "b"]


def test_it_has_what_crystfel_needs_for_these_files(tmp_path: Path) -> None:
    given, series = with_masks(tmp_path), builders.series()
    peaks = [peak(10.25, 2.0), peak(3.0, 45.5)]
    write(tmp_path / "h", [hit(n, of=series, peaks=peaks) for n in range(3)], geometry=given)
    geometry = the_geometry(tmp_path / "h")
    assert given.mask is not None
    for number, line in enumerate((tmp_path / "h/hits.lst").read_text().splitlines()):
        seen = read_as_crystfel(line, geometry)
        assert np.array_equal(seen.pixels, pixels(number).astype(np.float32))
        assert np.array_equal(seen.bad, given.mask.valid == 0)
        assert (seen.photon_energy_eV, seen.clen_m) == (
            series.metadata.photon_energy_eV,
            series.metadata.camera_length_m,
        )
        assert [found[:3] for found in seen.peaks] == [("a", 10.75, 2.5), ("b", 3.5, 16.0)]
    assert geometry.bad_pixels == (BadPixels("bad1", "b", 3, 5, 40, 41),)
    assert geometry.bad_areas == (BadArea("bad_shadow", -20.0, -15.5, 12.0, 14.5),)
    assert "saturation_map" not in geom(tmp_path / "h").read_text()
    assert geom(tmp_path / "h").read_text().startswith("; Panels and bad regions of mine.geom")


def test_what_the_file_leaves_out_is_in_the_pixel_mask_beside_the_streams_own_bits(tmp_path: Path) -> None:
    own = np.zeros(SHAPE, np.uint32)
    own[2, 3], own[50, 60] = 1, 1 << 31
    series = builders.series(masks={builders.CHANNEL: own})
    given = with_masks(tmp_path)
    write(tmp_path / "h", [hit(0, of=series)], geometry=given)
    (header,), _ = read_back(files(tmp_path / "h"))
    (mask,) = header.masks.values()
    assert given.mask is not None
    assert np.array_equal(mask & ~np.uint32(0x100), own)
    assert np.array_equal(mask & 0x100 != 0, given.mask.valid == 0)
    # So an analysis of the hits, with their geometry or without, leaves out what the first one left out.
    valid = series_validity(series.metadata, SHAPE, builders.CHANNEL).joined(given.mask).valid
    assert np.array_equal(series_validity(header, SHAPE, "threshold_1").valid, valid)


def test_numbers_of_the_file_hold_and_lengths_of_panels_and_shifts_become_places(tmp_path: Path) -> None:
    text = TWO.replace("clen = /entry/instrument/detector/detector_distance m", "clen = 0.2 m") + "b/clen = 0.203 m\n"
    text = text.replace("photon_energy = /entry/instrument/beam/photon_energy eV", "wavelength = 1.5 A")
    text = "detector_shift_x = /entry/shift mm\ndetector_shift_y = 0.0002 m\n" + text + AREA
    given = open_geometry(written(tmp_path, text))
    header = builders.metadata(raw={"shift": 0.3})
    write(tmp_path / "h", [hit(0, of=Series(1, 1, None, header))], geometry=given)
    # The file's metadata says another length and no shift.
    again = open_geometry(geom(tmp_path / "h")).fit(SeriesMetadata(camera_length_m=0.4), SHAPE)
    assert_same_places(again, given.fit(header, SHAPE))
    geometry = the_geometry(tmp_path / "h")
    assert (geometry.clen_m, geometry.wavelength_angstrom, geometry.photon_energy_eV) == (0.2, 1.5, None)
    assert (geometry.shift_x_m, geometry.shift_y_m) == pytest.approx((3e-4, 2e-4))
    assert [panel.clen_m for panel in geometry.panels] == [None, None]
    (header_back,), _ = read_back(files(tmp_path / "h"))
    left_out, again_left_out = given.left_out(header), open_geometry(geom(tmp_path / "h")).mask
    assert left_out is not None
    assert again_left_out is not None
    assert np.array_equal(again_left_out.valid, left_out.valid)  # the area is where the shift puts it
    assert np.array_equal(series_validity(header_back, SHAPE, "threshold_1").valid, left_out.valid)


def test_a_header_without_energy_and_distance_leaves_lines_to_add(tmp_path: Path) -> None:
    given = open_geometry(written(tmp_path, TWO))
    write(tmp_path / "h", [hit(0, of=Series(1, 1, None, SeriesMetadata()))], geometry=given)
    text = geom(tmp_path / "h").read_text()
    assert "no photon energy" in text
    assert "no distance" in text
    assert "beam centre" not in text  # the panels say it
    assert [panel.name for panel in the_geometry(tmp_path / "h").panels] == ["a", "b"]


def test_images_that_the_file_is_not_for_have_their_headers_geometry(tmp_path: Path) -> None:
    given = open_geometry(written(tmp_path, FLAT))
    small = builders.series(2, 2, shape=(40, 50))
    write(tmp_path / "h", [hit(0), hit(1, packed_image(pixels(1)[:40, :50]), small)], geometry=given)
    geometries = [open_geometry(path).detector for path in (tmp_path / "h").glob("*.geom")]
    names = sorted(panel.name for geometry in geometries for panel in geometry.panels)
    assert names == ["m0_0", "p0"]


def test_hits_of_a_killed_run_get_its_geometry_too(tmp_path: Path) -> None:
    """The journal alone is enough: whoever recovers has no geometry file."""
    given = with_masks(tmp_path)
    write(tmp_path / "whole", [hit(0)], geometry=given)
    write_journal(tmp_path / "h", given)
    (tmp_path / "mine.geom").unlink()
    (tmp_path / "m.h5").unlink()
    assert recover(tmp_path / "h").hits == 1
    (path,) = files(tmp_path / "h")
    with h5py.File(path) as recovered, h5py.File(files(tmp_path / "whole")[0]) as whole:
        assert recovered.attrs["geometry"] == whole.attrs["geometry"]
        mask = "entry/instrument/detector/pixel_mask"
        assert np.array_equal(recovered[mask][()], whole[mask][()])


def write_journal(folder: Path, given: GivenGeometry) -> None:
    """A journal as a killed run leaves it."""
    (folder / JOURNALS).mkdir(parents=True)
    frame, result = hit(0)
    assert isinstance(frame.image, ImageData)
    writer = JournalWriter(folder, "20261130T010203000-abcdef", given)
    writer.append(frame, frame.image, result)
    assert writer.current is not None
    writer.current.journal.close()


def test_a_large_detectors_geometry_fits_into_a_file(tmp_path: Path) -> None:
    """More text than HDF5 keeps in an attribute itself."""
    lines = [
        f"p{n}/min_fs = {n}\np{n}/max_fs = {n}\np{n}/min_ss = 0\np{n}/max_ss = 60\np{n}/corner_x = {n}.25\n"
        f"p{n}/corner_y = {n % 7}\np{n}/fs = x\np{n}/ss = y\n"
        + "".join(f"p{n}/note{k} = {'x' * 200}\n" for k in range(5))
        for n in range(75)
    ]
    given = open_geometry(written(tmp_path, "clen = 0.1 m\nres = 1e4\n" + "".join(lines)))
    write(tmp_path / "h", [hit(0)], geometry=given)
    assert len(geom(tmp_path / "h").read_text()) > 1 << 16
    assert len(the_geometry(tmp_path / "h").panels) == 75


def test_a_geometry_file_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGeometry, match=r"line 3: has a NUL character"):
        open_geometry(written(tmp_path, FLAT.replace("clen", "cl\0en")))
