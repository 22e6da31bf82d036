"""``cxls calibrate`` on blank runs, good and bad, and the analysis that uses what it wrote."""

import json
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from analyzer.blank_run import PixelFlag
from streamer.messages import InvalidMessage
from tests.analyzer.builders import (
    BROKEN,
    SHAPE,
    ScriptedSource,
    end,
    image,
    start,
    water,
    with_spots,
    write_bundle,
    write_series,
)
from tests.cxls.programs import Analysis, cxls, records, refusal, replaying

HOT = (12, 60)


def blanks(frames: int, hot: bool = False, crystals: tuple[int, ...] = ()) -> npt.NDArray[np.uint16]:
    """Water; crystals in some frames, each at places of its own."""
    images = np.stack([water(0.2, SHAPE, n) for n in range(frames)])
    for n in crystals:
        images[n] = np.roll(with_spots(images[n], 200), (3 * n, 5 * n), (0, 1))
    if hot:
        images[:, HOT[0], HOT[1]] += 60
    return images


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("blank"), blanks(120, hot=True))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, blank: Path, bundle_folder: Path) -> tuple[Path, str]:
    """What calibrating on 120 blank frames with a hot pixel wrote, and said."""
    out = tmp_path_factory.mktemp("calibrated") / "blank"
    done = cxls("calibrate", blank, "--bundle", bundle_folder, "--out", out, "--false-hits", 0.05)
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.with_name(f"{out.name}.json").read_bytes())
    return found


def test_a_blank_run_sets_the_threshold_for_the_rate_asked(calibrated: tuple[Path, str]) -> None:
    found = read(calibrated[0])
    assert (found["false_hits"], found["false_hits_asked"]) == (0.05, 0.05)
    assert len(found["probabilities"]) == 120
    called = np.sum(np.array(found["probabilities"]) >= found["threshold"])
    assert called <= 0.05 * 121 - 1


def test_the_table_says_what_was_found(calibrated: tuple[Path, str]) -> None:
    text = calibrated[1]
    for words in (
        "false hits at the threshold set",
        "hit probability",
        "peaks a frame",
        "1, 0, 0",
        "use: cxls analyze",
    ):
        assert words in text
    assert "warning" not in text.replace("warning: the scores", "")


def test_a_hot_pixel_is_in_both_masks_and_a_plot_is_there(calibrated: tuple[Path, str]) -> None:
    out = calibrated[0]
    flags = np.load(f"{out}_mask.npy")
    with h5py.File(f"{out}_mask.h5") as file:
        assert np.array_equal(file["entry/instrument/detector/pixel_mask"][()], flags)
    assert flags[HOT] == PixelFlag.HOT
    assert np.count_nonzero(flags) == 1
    assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")


def test_scores_are_those_without_the_hot_pixel(calibrated: tuple[Path, str], blank: Path, bundle_folder: Path) -> None:
    out, results = calibrated[0], calibrated[0].with_name("again.jsonl")
    cxls("analyze", blank, "--bundle", bundle_folder, "--mask", f"{out}_mask.h5", "--results", results)
    again = sorted(records(results), key=lambda record: record["image_id"])
    assert [record["hit_probability"] for record in again] == read(out)["probabilities"]
    assert {record["peak_count"] for record in again} == set(read(out)["peak_counts"])


def test_an_analysis_calls_hits_from_the_calibrations_threshold(
    calibrated: tuple[Path, str], blank: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    out = calibrated[0]
    given = ("analyze", blank, "--bundle", bundle_folder, "--mask", f"{out}_mask.npy", "--calibration", f"{out}.json")
    done = cxls(*given, "--results", tmp_path / "a.jsonl")
    assert done.returncode == 0
    assert "measured otherwise" not in done.stderr
    threshold = read(out)["threshold"]
    for record in records(tmp_path / "a.jsonl"):
        assert record["hit"] == (record["hit_probability"] >= threshold)
    assert cxls(*given, "--results", tmp_path / "b.jsonl", "--threshold", 0.0).returncode == 0
    assert all(record["hit"] for record in records(tmp_path / "b.jsonl")), "an explicit threshold comes first"


def test_what_is_served_knows_the_calibrations_rate_of_false_hits(
    calibrated: tuple[Path, str], blank: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    file = Path(f"{calibrated[0]}.json")
    given = {"calibration": file, "listen": "127.0.0.1:0"}
    run = Analysis([blank], bundle_folder, tmp_path / "a.jsonl", **given).start().join()
    assert run.session.web is not None
    found = read(calibrated[0])
    assert run.session.report.view.facts["threshold"] == found["threshold"]
    called = int(np.sum(np.array(found["probabilities"]) >= found["threshold"]))
    chosen = any(round(score + 1e-6, 6) == found["threshold"] for score in found["probabilities"])
    rate = run.session.control.judge.point.false_hits
    assert rate.estimate == ((called + 1) / 121 if chosen else called / 120)
    assert run.session.control.judge.differences == ("no extra mask, then one",)
    assert rate.spans, "the blank run left out a hot pixel, this one does not"
    assert run.session.report.view.registry.get_sample_value(
        "cxls_hit_ratio_corrected", {"window": "100", "bound": "high"}
    )


def test_a_calibration_of_another_bundle_is_refused(calibrated: tuple[Path, str], blank: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", seed=1)
    text = refusal("analyze", blank, "--bundle", other, "--calibration", f"{calibrated[0]}.json")
    assert "blank.json: made with bundle random-" in text


def test_a_calibration_that_is_none_is_refused(blank: Path, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{}")
    assert "not a calibration" in refusal(
        "analyze", blank, "--bundle", bundle_folder, "--calibration", tmp_path / "c.json"
    )


def test_crystals_in_a_blank_run_are_told(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, blanks(60, crystals=(7, 30, 41)))
    done = cxls("calibrate", master, "--bundle", bundle_folder, "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert "3 frames have 5 peaks or more at places that do not repeat" in done.stderr
    assert "1/7, 1/30, 1/41" in done.stderr
    assert any("do not repeat" in warning for warning in read(tmp_path / "c")["warnings"])


def test_a_rate_that_the_frames_cannot_set_is_told(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, blanks(60))
    done = cxls("calibrate", master, "--bundle", bundle_folder, "--out", tmp_path / "c", "--false-hits", 0.005)
    assert "60 blank frames set no false-hit rate below 3/60 = 5.00%; 0.50% takes 600" in done.stderr
    assert read(tmp_path / "c")["false_hits"] == 0.05


def test_too_few_frames_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    images = blanks(40)
    images[10:] = 0
    master = write_series(tmp_path, images)
    text = refusal("calibrate", master, "--bundle", bundle_folder, "--out", tmp_path / "c")
    assert "10 frames with beam (30 without, 0 undecodable)" in text
    assert not list(tmp_path.glob("c*"))


def test_a_mask_of_another_shape_than_the_images_is_refused(blank: Path, bundle_folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((5, 7), "u1"))
    options = "--bundle", bundle_folder, "--out", tmp_path / "c", "--mask", tmp_path / "small.npy"
    assert refusal("calibrate", blank, *options) == (
        "cxls: --mask small.npy is for images of 5 x 7 pixels, the images are 61 x 75; give one of their shape"
    )
    assert not list(tmp_path.glob("c*"))


def test_files_that_are_there_are_kept(calibrated: tuple[Path, str], blank: Path, bundle_folder: Path) -> None:
    out = calibrated[0]
    before = Path(f"{out}.json").read_bytes()
    assert "use --overwrite" in refusal("calibrate", blank, "--bundle", bundle_folder, "--out", out)
    assert "use --overwrite" in refusal("calibrate", blank, "--bundle", bundle_folder, "--out", f"{out}.json")
    assert Path(f"{out}.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent_master.h5"], "absent_master.h5"),
        (["tcp://127.0.0.1:1", "x.h5"], "either stream addresses or files"),
        (["tcp://nowhere"], "tcp://nowhere"),
        (["BLANK", "--out", "absent/c"], "make it first"),
        (["BLANK", "--false-hits", "0"], "false-hits"),
        (["BLANK", "--frames", "3"], "frames"),
        (["BLANK", "--mask", "absent.npy"], "--mask absent.npy"),
        (["BLANK", "--channel", "difference"], "--channel difference"),
        (["BLANK", "--bundle", "absent"], "bundle.json"),
    ],
)
def test_bad_usage_is_refused_in_one_line(
    arguments: list[str], words: str, blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal("calibrate", *(str(blank) if each == "BLANK" else each for each in arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_live_stream_ends_after_the_frames_asked_for(bundle_folder: Path, blank: Path, tmp_path: Path) -> None:
    with replaying(blank, loop=True) as (address, _):
        done = cxls("calibrate", address, "--bundle", bundle_folder, "--out", tmp_path / "c", "--frames", 200)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "c")["probabilities"]) == 200
    assert "calibrate again with the mask proposed" in done.stderr


@pytest.mark.parametrize(("before", "kept"), [(10, False), (50, True)])
def test_an_interrupted_run_keeps_what_it_has(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, kept: bool
) -> None:
    images = [image(n, pixels=water(0.2, seed=n)) for n in range(100)]
    script = [start(1, 100), *images[:before], lambda: signal.raise_signal(signal.SIGINT), *images[before:], end()]
    monkeypatch.setattr("cxls.commands.calibrate._open", lambda *_: ScriptedSource(script))
    done = cxls("calibrate", "tcp://127.0.0.1:1", "--bundle", bundle_folder, "--out", tmp_path / "c")
    assert done.returncode == 130
    assert (tmp_path / "c.json").exists() == kept
    if kept:
        assert len(read(tmp_path / "c")["probabilities"]) == before


def test_what_is_no_image_costs_only_itself(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image(n, pixels=water(0.2, seed=n)) for n in range(40)]
    script = [InvalidMessage("malformed", "x"), start(1, 50), *images, image(40, pixels=BROKEN), image(3), end()]
    monkeypatch.setattr("cxls.commands.calibrate._open", lambda *_: ScriptedSource(script))
    done = cxls("calibrate", "x.h5", "--bundle", bundle_folder, "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert "40 with beam, 0 without, 1 undecodable" in done.stdout


def test_images_of_two_shapes_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    one = write_series(tmp_path, blanks(35), "one")
    two = write_series(tmp_path, blanks(35)[:, :50], "two")
    text = refusal("calibrate", one, two, "--bundle", bundle_folder, "--out", tmp_path / "c")
    assert "images of (50, 75) after images of (61, 75)" in text


def test_pixels_are_looked_at_as_they_came_after_a_header_that_replaces_another(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [image(n, pixels=each) for n, each in enumerate(blanks(20))]
    after = [image(20 + n, pixels=each) for n, each in enumerate(blanks(100, hot=True))]
    script = [start(1, 120), *before, start(1, 120, camera_length_m=0.3), *after, end()]
    monkeypatch.setattr("cxls.commands.calibrate._open", lambda *_: ScriptedSource(script))
    done = cxls("calibrate", "x.h5", "--bundle", bundle_folder, "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "c_mask.npy")[HOT]
