"""A whole evaluation of judgements that are made up, its refusals, and what is printed of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.files import BadInput
from tests.training.dataset.builders import build_series, good_truth
from tests.training.evaluation.builders import facts_of, judged_as, peak, series_of
from training.evaluation.evaluation import METRICS, Evaluation, Request, evaluate
from training.evaluation.metrics import Estimate
from training.evaluation.peers import Peer
from training.evaluation.reference import Referred
from training.evaluation.report import MOST_MISSED, as_json, markdown, write_report
from training.evaluation.scoring import all_facts, read_judgements
from training.evaluation.show import Which, show

HITS = [True] * 12 + [False] * 12


def figures(made: Evaluation) -> dict[str, Estimate]:
    return dict(made.summary)


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """Six crystals, two frames of each, and twelve empties."""
    return series_of(tmp_path, HITS, [n // 2 for n in range(12)] + [-1] * 12)


PROBABILITY = np.array([0.9] * 10 + [0.2] * 2 + [0.05] * 11 + [0.7])


def test_hits_are_counted_against_the_truth(master: Path) -> None:
    made = evaluate([judged_as(master, PROBABILITY)], Request())
    found = figures(made)
    assert found["recall at the bundle's threshold"].value == pytest.approx(10 / 12)
    assert found["recall at the bundle's threshold"].note == "10 of 12"
    assert found["false hits at the bundle's threshold"].note == "1 of 12"
    assert found["balanced accuracy at the bundle's threshold"].value == pytest.approx((10 / 12 + 11 / 12) / 2)
    assert found["area under the curve"].value == pytest.approx((10 * 12 + 2 * 11) / 144)
    confusion = next(table for table in made.tables if table.title == "Confusion")
    assert confusion.rows == (("hit", 10, 2), ("empty", 1, 11))
    assert any("12 hits of 6 crystals and 12 empties" in note for note in made.notes)


def test_every_missed_hit_is_listed_with_its_crystal(master: Path) -> None:
    missed = evaluate([judged_as(master, PROBABILITY)], Request()).missed
    assert [(each.frame, each.probability, each.bragg_photons, each.spots_of_5_photons) for each in missed] == [
        (10, 0.2, 100.0, 2),
        (11, 0.2, 100.0, 2),
    ]
    assert missed[0].crystal == missed[1].crystal
    assert missed[0].crystal.startswith("orientation ")


def test_frames_of_a_numbered_crystal_are_one_group_across_series(tmp_path: Path) -> None:
    truth: dict[str, Any] = {"orientation": None, "frame_crystal": np.array([3, 3, 5, -1])}
    first = facts_of(series_of(tmp_path / "a", [True, True, True, False], **truth))
    second = facts_of(series_of(tmp_path / "b", [True, True, True, False], **truth, flux_photons=1e6))
    assert first.group[0] == first.group[1] == second.group[0] == "0.15 m, 6000 eV, crystal 3"
    assert first.group[2].endswith("crystal 5")
    assert first.group[3] != second.group[3]


def test_tables_split_by_what_differs(tmp_path: Path) -> None:
    masters = [series_of(tmp_path / name, HITS, flux_photons=flux) for name, flux in (("a", 1e6), ("b", 3e8))]
    judged = [judged_as(masters[0], np.full(24, 0.2)), judged_as(masters[1], PROBABILITY)]
    made = evaluate(judged, Request())
    titles = [table.title for table in made.tables]
    assert "By photons a pulse" in titles
    assert "By condition" not in titles, "there is one condition only"
    by_flux = made.tables[titles.index("By photons a pulse")]
    assert [row[0] for row in by_flux.rows] == ["1e6", "3e8"]
    assert [row[5].value for row in by_flux.rows] == [0.0, pytest.approx(10 / 12)]  # type: ignore[union-attr]


def test_a_series_that_does_not_say_what_a_table_splits_by_has_a_row_of_its_own(tmp_path: Path) -> None:
    masters = [
        series_of(tmp_path / name, HITS, **truth)
        for name, truth in (
            ("a", {"flux_photons": 3e8, "detectable": np.array(HITS)}),
            ("b", {"flux_photons": 3e6, "detectable": np.array(HITS)}),
            ("c", {"flux_photons": None, "detectable": None}),
        )
    ]
    found, nothing = np.where(HITS, 0.9, 0.1), np.full(24, 0.2)
    made = evaluate([judged_as(m, p) for m, p in zip(masters, (found, found, nothing), strict=True)], Request())
    tables = {table.title: table for table in made.tables}
    by_flux = [(row[0], row[1], row[2], row[5].value) for row in tables["By photons a pulse"].rows]  # type: ignore[union-attr]
    assert by_flux == [("3e6", 12, 12, 1.0), ("3e8", 12, 12, 1.0), ("not known", 12, 12, 0.0)]
    by_sight = [(row[0], row[1], row[2]) for row in tables["By detectable"].rows]
    assert by_sight == [("yes", 24, 24), ("not known", 12, 12)], "empties of series that have the column join its rows"


@pytest.mark.parametrize(
    ("metric", "lacking", "named"),
    [
        ("hits", {"hit": None, "class": None}, "/entry/truth/hit is missing"),
        ("calibration", {"hit": None, "class": None}, "/entry/truth/hit is missing"),
        ("peaks", {"spot_ss": None}, "_master.h5:/entry/truth/spot_ss is missing"),
        (
            "peaks",
            {"spot_ss": None, "spot_photons": None},
            "/entry/truth/spot_ss, /entry/truth/spot_photons are missing",
        ),
        ("photon-energy", {"photon_energy_eV": None}, "/entry/truth/photon_energy_eV is missing"),
        ("camera-length", {"camera_length_m": None}, "/entry/truth/camera_length_m is missing"),
        ("no-beam", {}, "no frame without a beam"),
    ],
)
def test_a_metric_names_what_its_truth_lacks(tmp_path: Path, metric: str, lacking: dict[str, None], named: str) -> None:
    judged = judged_as(series_of(tmp_path, HITS, **lacking), PROBABILITY)
    made = evaluate([judged], Request())
    assert any(metric in reason and named in reason for reason in made.not_measured)
    with pytest.raises(BadInput, match=f"--metrics asks for {metric}") as caught:
        evaluate([judged], Request(metrics=(metric,), asked=True))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_without_beam_leave_the_hits(tmp_path: Path) -> None:
    names = np.array([b"protein"] * 12 + [b"water"] * 6 + [b"no_beam"] * 6)
    master = series_of(tmp_path, HITS, **{"class": names})
    decisions = ["hit"] * 12 + ["miss"] * 6 + ["no_beam"] * 5 + ["miss"]
    found = figures(evaluate([judged_as(master, PROBABILITY, decision=decisions)], Request()))
    assert found["frames without beam recognised"].note == "5 of 6"
    assert found["frames with beam called no beam"].note == "0 of 18"
    assert found["false hits at the bundle's threshold"].note == "0 of 6"


def test_frames_that_could_not_be_analysed_are_left_out(master: Path) -> None:
    status = ["undecodable"] + ["ok"] * 23
    made = evaluate([judged_as(master, PROBABILITY, status=status)], Request())
    assert "1 frames could not be analysed and are left out" in made.notes
    assert figures(made)["recall at the bundle's threshold"].note == "9 of 11"


def test_peaks_are_held_against_spots(master: Path) -> None:
    peaks = [[peak(5.3, 4.0), peak(15.0, 20.0)] if hit else [] for hit in HITS]
    made = evaluate([judged_as(master, PROBABILITY, peaks=peaks)], Request())
    row = next(table for table in made.tables if table.title == "Peaks").rows[0]
    assert row[1:4] == (24, 24, "0.500 (12 of 24)")
    assert row[6] == pytest.approx(0.5)
    assert row[7] == pytest.approx(0.3)


def test_energy_and_distance_are_scored_where_they_are_stated(master: Path) -> None:
    energy = [6100.0] * 12 + [None] * 12
    sigma = [60.0] * 6 + [10.0] * 6 + [None] * 12
    made = evaluate([judged_as(master, PROBABILITY, photon_energy_eV=energy, photon_energy_sigma_eV=sigma)], Request())
    row = next(table for table in made.tables if table.title == "Photon energy").rows[0]
    assert row[1:5] == (24, 12, 100.0, 100.0)
    assert row[5].value == 0.5  # type: ignore[union-attr]
    assert next(table for table in made.tables if table.title == "Camera length").rows[0][2] == 0


def test_others_are_compared_on_the_frames_they_scored(master: Path) -> None:
    ideal = np.where(HITS, 5.0, -5.0)
    ideal[:2] = np.nan
    referred = Referred(ideal, ideal - 1.0, np.arange(24.0))
    peer = Peer("finder", np.where(HITS, 8.0, 1.0))
    made = evaluate([judged_as(master, PROBABILITY)], Request(), [referred], peer)
    table = made.tables[0]
    assert table.title == "On the same frames"
    rows = {row[0]: row for row in table.rows}
    assert rows["ideal observer, blocks"][1] == 22
    assert rows["ideal observer, blocks"][2].value == 1.0  # type: ignore[union-attr]
    assert rows["ideal observer, blocks"][3].value == pytest.approx(  # type: ignore[union-attr]
        (8 * 12 + 2 * 11) / 120 - 1.0
    )
    assert rows["total count"][1] == 24
    assert rows["finder"][5].value == 1.0  # type: ignore[union-attr]
    assert "finder: best on this set from 8 peaks" in made.notes


def test_an_observer_or_peer_that_could_not_run_says_why(master: Path) -> None:
    nothing = np.full(24, np.nan)
    referred = Referred(nothing, nothing, np.ones(24), "run: response is missing")
    made = evaluate([judged_as(master, PROBABILITY)], Request(), [referred], Peer("finder", nothing, "not there"))
    assert "ideal observer: run: response is missing" in made.not_measured
    assert "finder: not there" in made.not_measured


def test_without_the_bundle_its_prior_is_not_guessed(master: Path) -> None:
    made = evaluate([judged_as(master, PROBABILITY)], Request(prior=None))
    assert "expected calibration error" in figures(made)
    assert any("no prior without the bundle" in reason for reason in made.not_measured)


def test_a_series_of_hits_alone_has_recall_and_no_curve(tmp_path: Path) -> None:
    made = evaluate([judged_as(series_of(tmp_path, [True] * 4), np.full(4, 0.9))], Request())
    assert figures(made)["recall at the bundle's threshold"].note == "4 of 4"
    assert "area under the curve" not in figures(made)
    assert not made.curves


# --- truth ------------------------------------------------------------------------------


def test_a_series_without_truth_is_refused(tmp_path: Path) -> None:
    master = build_series(tmp_path, truth={})
    with pytest.raises(BadInput, match="no truth"):
        all_facts([master])


def test_a_truth_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    master = build_series(tmp_path, truth=good_truth(4) | {"spot_ss": np.array([1.0])})
    with pytest.raises(BadInput, match="spot_ss"):
        all_facts([master])


def test_the_extra_names_of_a_table_are_read_and_bounded(tmp_path: Path) -> None:
    master = build_series(tmp_path, truth={})
    with_truth = {"hit": np.array([True, False, True, False]), "frame_crystal": np.array([0, -1, 1, -1])}
    np.savez(tmp_path / "run_truth.npz", **with_truth, response="one_per_pulse", pulses=7, flux_factor=np.ones(4))
    facts = facts_of(master)
    assert (facts.response, facts.pulses) == ("one_per_pulse", 7)
    assert facts.flux_factor is not None
    np.savez(tmp_path / "run_truth.npz", **with_truth, pulses=0)
    with pytest.raises(BadInput, match="0 pulses a frame"):
        facts_of(master)
    for name, value, said in (
        ("pulses_per_frame", 0, "0 pulses"),
        ("pulses_per_frame", "many", "'many' pulses"),
        ("pulses", 2.5, "2.5 pulses"),
        ("pulses", np.ones(5), r"\[1. 1. 1. 1. 1.\] pulses"),
    ):
        np.savez(tmp_path / "run_truth.npz", **with_truth, **{name: value})
        with pytest.raises(BadInput, match=f"the truth states {said} a frame in {name}"):
            facts_of(master)
    np.savez_compressed(tmp_path / "run_truth.npz", **with_truth, flux_factor=np.ones(5))
    assert facts_of(master).flux_factor is None, "it is of another number of frames"


def test_spots_on_the_rim_of_a_larger_panel_are_no_fault(tmp_path: Path) -> None:
    spots = {"spot_frame": np.array([0, 0, 1]), "spot_photons": np.array([5.0, 6.0, 7.0])}
    place = {"spot_ss": np.array([4.0, 23.8, 5.0]), "spot_fs": np.array([5.0, 6.0, -0.7])}
    facts = facts_of(build_series(tmp_path / "rim", truth=good_truth(4) | spots | place))
    assert facts.truth.values["spot_photons"].tolist() == [5.0]
    place["spot_ss"] = np.array([4.0, 25.0, 5.0])
    with pytest.raises(BadInput, match="outside the panel"):
        facts_of(build_series(tmp_path / "off", truth=good_truth(4) | spots | place))


# --- results from a file ----------------------------------------------------------------


def records(count: int) -> list[dict[str, Any]]:
    return [
        {"series_id": 1, "image_id": n, "status": "ok", "hit": True, "hit_probability": 0.5, "peaks": [], "mask": "x"}
        for n in range(count)
    ]


def write_records(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_results_are_read_in_any_order(tmp_path: Path, master: Path) -> None:
    path = write_records(tmp_path / "r.jsonl", records(24)[::-1])
    judged = read_judgements(path, all_facts([master]))
    assert [each.image_id for each in judged[0].judgements] == list(range(24))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (records(23), "no record of image 23"),
        (records(24) + records(1), "repeats series 1, image 0"),
        (records(25), "series 1, image 24, which is not among"),
        ([{"series_id": "x"}], "line 1 is no result record"),
        ([{**records(1)[0], "hit_probability": "high"}], "line 1 is no result record"),
    ],
)
def test_results_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, master: Path, lines: list[dict[str, Any]], told: str
) -> None:
    path = write_records(tmp_path / "r.jsonl", lines)
    with pytest.raises(BadInput, match=told) as caught:
        read_judgements(path, all_facts([master]))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_results_that_are_not_there_are_refused(tmp_path: Path, master: Path) -> None:
    with pytest.raises(BadInput, match="--results names"):
        read_judgements(tmp_path / "none.jsonl", all_facts([master]))


# --- reports ----------------------------------------------------------------------------


def test_a_report_holds_figures_plots_and_command(tmp_path: Path, master: Path) -> None:
    made = evaluate([judged_as(master, PROBABILITY)], Request(threshold=0.5))
    written = {path.name for path in write_report(made, tmp_path / "report", "cxls evaluate run")}
    assert written == {"report.html", "report.md", "roc.png", "reliability.png"}
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page, "a report asks nobody for anything"
    for text in (page, (tmp_path / "report/report.md").read_text()):
        assert "cxls evaluate run" in text
        assert "10 of 12" in text
        assert "Hits that were missed" in text


def test_what_a_file_names_cannot_break_a_report(tmp_path: Path, master: Path) -> None:
    names = np.array([b"<script>x</script>|protein"] * 12 + [b"wa|ter # no"] * 12)
    made = evaluate([judged_as(series_of(tmp_path / "evil", HITS, **{"class": names}), PROBABILITY)], Request())
    write_report(made, tmp_path / "report", "cxls evaluate <b>")
    page = (tmp_path / "report/report.html").read_text()
    assert "<script>" not in page
    assert "<b>" not in page
    rows = [line for line in markdown(made, "x").splitlines() if "# no" in line]
    assert rows
    assert all("wa\\|ter" in row for row in rows)


def test_figures_are_plain_json(master: Path) -> None:
    made = evaluate([judged_as(master, PROBABILITY)], Request(threshold=0.5))
    plain = json.loads(json.dumps(as_json(made, "x"), allow_nan=False))
    assert plain["summary"]["recall at the bundle's threshold"]["note"] == "10 of 12"
    assert len(plain["missed"]) == 2
    assert {table["title"] for table in plain["tables"]} >= {"Confusion", "Peaks"}


def test_a_long_list_of_missed_hits_is_cut_in_the_report_alone(tmp_path: Path) -> None:
    count = MOST_MISSED + 20
    master = series_of(tmp_path, [True] * count)
    made = evaluate([judged_as(master, np.full(count, 0.1))], Request(metrics=("hits",)))
    assert len(as_json(made, "x")["missed"]) == count
    assert f"the first {MOST_MISSED} of them" in markdown(made, "x")


def test_truth_and_result_are_shown_side_by_side(master: Path) -> None:
    peaks = [[peak(5.3, 4.0), peak(15.0, 20.0)]] + [[] for _ in range(23)]
    lines = list(show([judged_as(master, PROBABILITY[::-1], peaks=peaks)], 2, "first"))
    assert lines[0].startswith("run_master.h5 frame 0: protein, 0.15 m, 6000 eV, 3e+08 photons a pulse, 100 Bragg")
    assert "said hit right, probability 0.7000" in lines[1]
    assert "0.30 px off" in lines[2]
    assert lines[3].endswith("false")
    assert lines[4].endswith("not found")
    assert "said miss WRONG" in lines[6]
    assert list(show([judged_as(master, PROBABILITY)], 0)) == []


def test_wrong_frames_are_shown_before_the_others(master: Path) -> None:
    judged = judged_as(master, PROBABILITY)

    def shown(which: Which, most: int = 24) -> list[int]:
        lines = show([judged], most, which)
        return [int(line.split(":")[0].split()[-1]) for line in lines if line.startswith("run_master.h5")]

    hit = judged.facts.hit
    assert hit is not None
    called = [bool(each.hit) for each in judged.judgements]
    missed = [n for n in range(24) if hit[n] and not called[n]]
    false = [n for n in range(24) if not hit[n] and called[n]]
    assert min(len(missed), len(false)) > 0, "the set has both"
    assert (shown("missed"), shown("false"), shown("first"), shown("hits")) == (
        missed, false, list(range(24)), np.flatnonzero(hit).tolist(),
    )  # fmt: skip
    wrong = sorted(missed + false)
    assert shown("wrong")[: len(wrong)] == wrong
    assert sorted(shown("wrong")) == list(range(24))
    assert shown("wrong", 1) == wrong[:1]


def test_every_metric_is_known_by_name() -> None:
    assert METRICS == ("hits", "calibration", "no-beam", "peaks", "photon-energy", "camera-length")
