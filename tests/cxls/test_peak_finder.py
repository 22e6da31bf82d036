"""``cxls analyze --peak-finder``, ``--shadow-finder`` and ``cxls bench peakfinder8``."""

import json
from pathlib import Path

import pytest

from analyzer.bundle import DEFAULT_BUNDLE
from cxls.bench import om_peer
from tests.analyzer.builders import frames_of_a_run, write_series
from tests.cxls.programs import Analysis, by_image, cxls, records, refusal, replaying


@pytest.fixture
def master(tmp_path: Path) -> Path:
    return write_series(tmp_path / "run", frames_of_a_run(8))


def test_live_and_offline_peaks_are_equal_whatever_finds_them(
    master: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    settings = {"peak_finder": "peakfinder8", "shadow_finder": "peakfinder8-poisson", "pf8_min_snr": 4.0}
    offline = Analysis([master], bundle_folder, tmp_path / "off.jsonl", **settings).start().join()
    with replaying(master) as (address, _):
        live = Analysis([address], bundle_folder, tmp_path / "live.jsonl", series=1, **settings).start().join()
    live.assert_closes()
    assert by_image(live.records) == by_image(offline.records)
    counts = [each["peak_count"] for each in by_image(offline.records)]
    assert min(counts[1::2]) >= 5
    assert live.session.control.judge.facts["peak_finder"] == "peakfinder8"
    for each in (live, offline):
        of = each.session.front.running.disagreement
        assert of is not None
        assert (of.published, of.shadow, of.frames, of.failed) == ("peakfinder8", "peakfinder8-poisson", 8, 0)
        assert of.peaks[0] == sum(counts)


def test_the_bundle_s_network_finds_peaks_with_the_built_in_finder_in_shadow(master: Path, tmp_path: Path) -> None:
    run = Analysis([master], DEFAULT_BUNDLE, tmp_path / "r.jsonl", peak_finder="learned").start().join()
    of = run.session.front.running.disagreement
    assert of is not None
    assert (of.published, of.shadow, of.frames, of.failed) == ("learned", "poisson", 8, 0)
    assert of.peaks[0] == sum(each["peak_count"] for each in run.records)


def test_the_environment_chooses_a_finder(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    given = ("analyze", master, "--bundle", bundle_folder, "--results", tmp_path / "r.jsonl")
    done = cxls(*given, CXLS_PEAK_FINDER="peakfinder8", CXLS_PF8_THRESHOLD="100000")
    assert done.returncode == 0, done.stderr
    assert {each["peak_count"] for each in records(tmp_path / "r.jsonl")} == {0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--peak-finder", "best"), ("--peak-finder", "best", "peakfinder8")),
        (("--shadow-finder", "poisson"), ("--shadow-finder poisson", "name another")),
        (("--peak-finder", "learned"), ("no learned peak finder", "cxls train peak-finder")),
        (("--peak-finder", "peakfinder8", "--pf8-min-pix-count", 9, "--pf8-max-pix-count", 8), ("min_pix_count 9",)),
        (("--peak-finder", "peakfinder8", "--pf8-min-res", 9, "--pf8-max-res", 8), ("max_res 8", "min_res 9")),
        (("--peak-finder", "peakfinder8", "--pf8-threshold", "nan"), ("--pf8-threshold", "nan")),
        (("--peak-finder", "peakfinder8", "--pf8-min-snr", "-1"), ("--pf8-min-snr", "-1")),
        (("--peak-finder", "peakfinder8", "--pf8-local-bg-radius", 100), ("--pf8-local-bg-radius", "100")),
        (("--shadow-finder", "peakfinder8", "--pf8-min-res", 1e308, "--pf8-max-res", 1), ("max_res", "min_res")),
    ],
)
def test_settings_without_sense_are_refused_in_one_line(
    master: Path, bundle_folder: Path, given: tuple[object, ...], words: tuple[str, ...]
) -> None:
    line = refusal("analyze", master, "--bundle", bundle_folder, *given)
    for word in words:
        assert word in line


def test_the_bench_compares_on_series_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cxls("simulate", "small", "--frames", 4, "--condition", 1, "--workers", 1).returncode == 0
    done = cxls("bench", "peakfinder8", "--frames", 4, "--masters", "normal=small_*master.h5", "--json-file", "b.json")
    assert done.returncode == 0, done.stderr
    figures = {each["name"]: each["value"] for each in json.loads(Path("b.json").read_text())["figures"]}
    assert figures["normal 3/5/1: ours peaks, with a crystal"] > 10
    assert figures["normal: peakfinder8-poisson false peaks"] < 1
    assert "not run here" in done.stdout
    if not om_peer.available():
        pytest.skip("no OM here: run `make peers`")
    assert figures["normal 3/5/1: OM's peaks that we have"] >= 0.97
    assert figures["normal 3/5/1: our peaks that OM has"] >= 0.97
    assert figures["normal 5/5/2: OM's peaks that we have"] >= 0.97


def test_the_bench_refuses_series_that_are_not_there() -> None:
    assert "--masters normal=nothing*: no such file" in refusal("bench", "peakfinder8", "--masters", "normal=nothing*")
