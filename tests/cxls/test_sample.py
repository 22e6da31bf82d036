"""``cxls analyze --sample``: from files and live, in records, summary, metrics and status; what is refused."""

import json
import re
from pathlib import Path

import pytest

from tests.cxls.programs import Analysis, Sender, cxls, records, refusal, wait_for
from tests.cxls.test_http import Live, get


def test_every_fifth_image_of_files(
    master: Path, bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    results = tmp_path / "r.jsonl"
    done = cxls("analyze", master, "--sample", 5, "--results", results, "--bundle", bundle_folder)
    assert done.returncode == 0, done.stderr
    assert "1 series, 3 frames analysed" in done.stdout
    assert "received 12 = processed 3 + dropped 9 + undecodable 0" in done.stdout
    assert "sampled: 25.0% of 12 images chosen" in done.stdout
    assert {r["image_id"]: r["status"] for r in records(results)} == {
        n: "dropped" if n % 5 else "ok" for n in range(12)
    }
    assert {r["status_text"] for r in records(results) if r["status"] == "dropped"} == {"sampled"}
    assert re.search(r"12 images of 12, hits \d+ .*, 3 analysed", caplog.text)


def test_records_of_the_images_chosen_are_those_of_a_full_analysis(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    found = []
    for every in ("1", "4"):
        path = tmp_path / f"{every}.jsonl"
        assert cxls("analyze", master, "--results", path, "--bundle", bundle_folder, CXLS_SAMPLE=every).returncode == 0
        left_out = ("received_at", "latency_s")
        found.append({r["image_id"]: {k: v for k, v in r.items() if k not in left_out} for r in records(path)})
    assert all(found[0][n] == found[1][n] for n in range(0, 12, 4))


def test_what_makes_no_sense_is_refused(master: Path) -> None:
    for wrong in ("0", "-3", "2.5", "often", "1000001"):
        assert "--sample" in refusal("analyze", master, "--sample", wrong)
    assert "give a number, or --on-full drop" in refusal("analyze", master, "--sample", "auto")


def test_a_live_run_says_what_share_it_analyses(bundle_folder: Path, tmp_path: Path) -> None:
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", sample=4, on_full="drop")
        live = Live(sender, analysis)
        assert "\ncxls_sampled_ratio 0.25\n" in get(live.address, "/metrics")[2]
        analysis.start()
        wait_for(lambda: get(live.address, "/readyz")[0] == 200)
        live.analyse(10)
        status = json.loads(get(live.address, "/status")[2])
        text = get(live.address, "/metrics")[2]
        analysis.stop().assert_closes()
    assert status["sampling"] == {"every": 4, "ratio": 0.25, "adaptive": False}
    assert status["account"]["dropped"]["sampled"] == 7
    assert '\ncxls_frames_dropped_total{reason="sampled"} 7.0\n' in text


def test_auto_begins_with_every_image(bundle_folder: Path, tmp_path: Path) -> None:
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", sample="auto", on_full="drop")
        live = Live(sender, analysis)
        analysis.start()
        live.analyse(6)
        status = json.loads(get(live.address, "/status")[2])
        analysis.stop().assert_closes()
    assert status["sampling"] == {"every": 1, "ratio": 1.0, "adaptive": True}
    assert sum(status["account"]["processed"].values()) == 6
