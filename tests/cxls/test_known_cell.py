"""``cxls analyze --cell``: refused where it is none, and Bragg spots that tell photon energy and camera length."""

import logging
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from analyzer.bundle import DEFAULT_BUNDLE
from cxls.given_cell import read_known_cell
from cxls.settings import BadSettings
from tests.cxls.programs import Analysis, cxls, refusal

CELL = "67.288 67.288 106.582 90 90 90"
SPACE_GROUP = "P 43 21 2"


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of condition 2, 0.15 m and 7 keV, mostly hits of proteinase K."""
    out = tmp_path_factory.mktemp("hits") / "run"
    given = ("--condition", 2, "--frames", 24, "--hit-fraction", 0.9, "--seed", 5, "--workers", 1)
    done = cxls("simulate", out, *given)
    assert done.returncode == 0, done.stderr
    return out.with_name("run_master.h5")


@pytest.mark.parametrize("text", [CELL, CELL.replace(" ", ","), "67.288, 67.288, 106.582, 90, 90, 90 "])
def test_a_cell_is_spelled_with_spaces_or_commas(text: str) -> None:
    known = read_known_cell(text, SPACE_GROUP)
    assert known is not None
    assert known.cell == (67.288, 67.288, 106.582, 90.0, 90.0, 90.0)
    assert known.space_group == SPACE_GROUP


def test_a_cell_may_be_a_crystfel_file(tmp_path: Path) -> None:
    path = tmp_path / "my.cell"
    lines = ("a = 79 A", "b = 79 A", "c = 38 A", "al = 90 deg", "be = 90 deg", "ga = 90 deg")
    path.write_text("\n".join(("CrystFEL unit cell file version 1.0", *lines)))
    known = read_known_cell(str(path), None)
    assert known is not None
    assert known.cell == (79.0, 79.0, 38.0, 90.0, 90.0, 90.0)


def test_no_cell_is_none() -> None:
    assert read_known_cell(None, None) is None


@pytest.mark.parametrize(
    ("cell", "space_group", "words"),
    [
        ("67 67 106", None, ("--cell", "3 numbers", "angles")),
        ("", None, ("--cell", "0 numbers")),
        ("67 67 106 90 90 ninety", None, ("--cell", "ninety", "nor a file")),
        ("67 67 nan 90 90 90", None, ("--cell", "nan")),
        ("-67 67 106 90 90 90", None, ("--cell", "edges")),
        ("67 67 1e9 90 90 90", None, ("--cell", "edges")),
        ("67 67 106 90 90 300", None, ("--cell", "below 180")),
        ("67 67 106 90 90 nan", None, ("--cell", "below 180")),
        ("67 67 106 30 30 90", None, ("--cell", "close no solid")),
        (CELL, "P 99", ("--space-group", "P 99", "no such")),
        ("67 68 106 90 90 90", SPACE_GROUP, ("--space-group", "symmetry", "67.0 68.0")),
        (None, SPACE_GROUP, ("--space-group", "--cell")),
    ],
)
def test_what_is_no_cell_is_refused_in_one_line(
    cell: str | None, space_group: str | None, words: tuple[str, ...]
) -> None:
    with pytest.raises(BadSettings) as error:
        read_known_cell(cell, space_group)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_file_that_holds_no_cell_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "junk.cell"
    path.write_bytes(b"\x00\xff junk")
    with pytest.raises(BadSettings, match=r"junk\.cell"):
        read_known_cell(str(path), None)


def test_the_command_refuses_before_anything_is_written(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    given = ("analyze", master, "--bundle", bundle_folder, "--results", tmp_path / "r.jsonl")
    assert "--cell" in refusal(*given, "--cell", "1 2 3")
    assert "--space-group" in refusal(*given, "--space-group", SPACE_GROUP)
    assert "--cell" in refusal(*given, CXLS_CELL="1 1 1 90 90 90")
    assert not (tmp_path / "r.jsonl").exists()


def test_the_spots_of_a_known_cell_tell_energy_and_length_at_the_end_of_a_run(
    hits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        given = {"cell": CELL, "space_group": SPACE_GROUP, "listen": "127.0.0.1:0"}
        run = Analysis([hits], DEFAULT_BUNDLE, tmp_path / "r.jsonl", **given).start().join()
    found = run.session.parameters.latest
    assert found is not None
    assert found.source == "bragg"
    assert found.fields["photon_energy_eV"] == pytest.approx(7000.0, abs=4 * found.fields["photon_energy_sigma_eV"])
    assert found.fields["camera_length_m"] == pytest.approx(0.15, abs=4 * found.fields["camera_length_sigma_m"])
    assert found.fields["photon_energy_sigma_eV"] < 10.0
    assert not found.mismatches
    assert "hits of the known cell" in caplog.text
    assert run.session.web is not None
    metrics = generate_latest(run.session.report.view.registry).decode()
    assert 'cxls_parameter_source{source="bragg"} 1.0' in metrics
    assert 'cxls_parameter_source{source="water"} 0.0' in metrics


def test_a_wrong_cell_leaves_the_water_and_is_told(
    hits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    larger = ",".join(str(float(edge) * 1.04) for edge in CELL.split()[:3]) + ",90,90,90"
    with caplog.at_level(logging.INFO):
        run = (
            Analysis([hits], DEFAULT_BUNDLE, tmp_path / "r.jsonl", cell=larger, space_group=SPACE_GROUP).start().join()
        )
    found = run.session.parameters.latest
    assert found is not None
    assert found.source in ("misses", "all")
    assert found.fields["photon_energy_eV"] == pytest.approx(7000.0, abs=4 * found.fields["photon_energy_sigma_eV"])
    assert "the water's is kept" in caplog.text


def test_a_run_that_is_stopped_does_not_wait_for_its_spots(hits: Path, tmp_path: Path) -> None:
    run = Analysis([hits], DEFAULT_BUNDLE, tmp_path / "r.jsonl", cell=CELL, space_group=SPACE_GROUP)
    run.session.stop.set()
    run.start().join()
    assert run.session.bragg is not None
    assert run.session.bragg.latest is None
