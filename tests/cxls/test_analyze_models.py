"""``cxls analyze --model``: attributes of single models in records, live and of files."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analyzer.framing import Framing
from tests.analyzer.builders import frames_of_a_run, write_series
from tests.cxls.programs import Analysis, by_image, cxls, records, refusal, replaying
from tests.single_models import hit_model, linear_model, register

FRAMES = 6


@pytest.fixture(autouse=True)
def brightest(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """Every second frame has spots."""
    return write_series(tmp_path / "run", frames_of_a_run(FRAMES))


def test_models_say_their_attributes_in_lines_and_parquet(
    master: Path, bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peak, energy = hit_model(tmp_path / "peak", 10.0), linear_model(tmp_path / "energy", (20, 30))
    given = ("analyze", master, "--bundle", bundle_folder, "--device", "cpu", "--model", peak, "--model", energy)
    given += ("--hit-rule", "peaks", "--min-peaks", 3)
    done = cxls(*given, "--results", tmp_path / "r.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"attributes null: energy not_a_hit {FRAMES // 2}, energy size {FRAMES // 2}" in done.stdout
    assert "paper-linear takes 20 x 30 pixels, whole frames leave 61 x 75" in caplog.text
    found = by_image(records(tmp_path / "r.jsonl"))
    assert [each["attributes"]["peak"]["value"] for each in found] == [n % 2 == 1 for n in range(FRAMES)]
    assert {each["attributes"]["energy"] for each in found} == {None}
    assert cxls(*given, "--results", tmp_path / "r.parquet").returncode == 0
    rows = [row for part in (tmp_path / "r.parquet").glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    rows.sort(key=lambda row: row["image_id"])
    assert [json.loads(row["attributes"]) for row in rows] == [each["attributes"] for each in found]


def test_live_and_offline_records_are_equal_and_attributes_are_served(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    framed = linear_model(tmp_path / "energy", (20, 30), framing=Framing((40, 60), 2))
    models = {"model": (str(hit_model(tmp_path / "peak", 10.0)), str(framed)), "hit_rule": "peaks", "min_peaks": 3}
    offline = Analysis([master], bundle_folder, tmp_path / "off.jsonl", **models).start().join()
    with replaying(master) as (address, _):
        live = Analysis([address], bundle_folder, tmp_path / "live.jsonl", series=1, **models).start().join()
    live.assert_closes()
    assert by_image(live.records) == by_image(offline.records)
    said = [each["attributes"]["energy"] for each in by_image(live.records)]
    assert [None if each is None else each["value"] for each in said] == [None, 7000.0] * (FRAMES // 2)
    assert live.session.control.judge.facts["models"].keys() == {"peak", "energy"}
    assert live.session.front.nulls["energy", "not_a_hit"] == FRAMES // 2


def test_without_a_model_there_are_no_attributes(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    run = Analysis([master], bundle_folder, tmp_path / "r.jsonl").start().join()
    assert {each["attributes"] for each in run.records} == {None}
    assert run.session.front.nulls == {}


def test_a_model_that_cannot_be_used_is_refused_at_the_start(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    given = ("analyze", master, "--bundle", bundle_folder, "--results", tmp_path / "r.jsonl", "--model")
    assert "takes 'clean_image', which the analysis" in refusal(*given, hit_model(tmp_path / "c", view="clean_image"))
    assert "model.json" in refusal(*given, tmp_path / "absent")
    assert "its weights are damaged" in refusal(*given, hit_model(tmp_path / "nan", float("nan")))
    assert not (tmp_path / "r.jsonl").exists()
