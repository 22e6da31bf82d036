"""Two finders on the same frames: what is counted, and on real frames of the twin and of a series on disk."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analyzer.learned_finder import LearnedFinder
from analyzer.peak_network import PeakNetwork
from cxls.scene import scene_of
from cxls.settings import SimulationOptions
from sim_replay.simulation import Plan, simulate_series
from streamer.files import BadInput
from tests.analyzer.builders import write_series
from training.peak_finder.comparison import (
    CLASSICAL,
    LEARNED,
    Cost,
    FoundPeaks,
    Judged,
    false_peaks,
    false_rows,
    judge_series,
    judge_twin,
    least_rows,
    matched,
    place_rows,
    poisson_interval,
    recall_rows,
    spot_table,
    threshold_for,
)
from training.peak_finder.tiles import FINDER_SHOTS


def peaks(*at: tuple[float, float, float], beside: bool = False) -> FoundPeaks:
    """Peaks at fs, ss, of this surprise."""
    rows = np.array(at, np.float64).reshape(-1, 3)
    flags = np.full(len(rows), beside)
    none = np.zeros(len(rows), np.bool_)
    return FoundPeaks(rows[:, :2], rows[:, 2], flags, none, none)


def judged(found: FoundPeaks, *spots: tuple[float, float, float], **changes: Any) -> Judged:
    """A frame with true spots at fs, ss, of so many counts, where both finders found the same."""
    rows = np.array(spots, np.float64).reshape(-1, 3)
    facts: dict[str, Any] = {
        "group": 0, "response": "integrating", "clean": True, "ring": False, "one_pixel": False,
        "spots": rows[:, :2], "counts": rows[:, 2], "background": np.full(len(rows), 0.5),
        "edge": np.zeros(len(rows), np.bool_), "beside_share": 0.01,
        "peaks": {CLASSICAL: found, LEARNED: found},
    }  # fmt: skip
    return Judged(**(facts | changes))


def test_spots_are_counted_by_what_they_are_expected_to_count() -> None:
    frame = judged(
        peaks((10.0, 10.0, 9.0), (50.0, 51.0, 9.0)), (10.0, 10.5, 7.0), (50.0, 50.0, 30.0), (80.0, 80.0, 6.0)
    )
    sets = {"learned": matched([frame], LEARNED)}
    rows = recall_rows(sets, "counts", (5.0, 10.0, math.inf))
    assert [(row["counts"], row["spots"]) for row in rows] == [("5 to 10", 2), ("10 and more", 1)]
    assert rows[0]["learned"].startswith("0.500")
    assert rows[1]["learned"].startswith("1.000")
    table = spot_table(sets["learned"])
    assert sorted(table["distance"][np.isfinite(table["distance"])]) == [0.5, 1.0]
    assert table["snr"][table["counts"] == 30.0] == pytest.approx(30 / math.sqrt(30 + 4.5))


def test_spots_near_invalid_pixels_count_neither_way() -> None:
    frame = judged(peaks((10.0, 10.0, 9.0)), (10.0, 10.0, 7.0), (40.0, 40.0, 7.0), edge=np.array([True, True]))
    assert len(spot_table(matched([frame], LEARNED))["counts"]) == 0
    assert false_peaks(matched([frame], LEARNED)) == 0


def test_the_threshold_leaves_so_many_false_peaks_a_frame() -> None:
    frames = [judged(peaks((10.0, 10.0, float(n))), (90.0, 90.0, 5.0)) for n in range(100)]
    surprise = threshold_for(frames, LEARNED, 0.05)
    assert false_peaks(matched(frames, LEARNED, surprise)) == 5
    assert false_peaks(matched(frames, LEARNED, threshold_for(frames, LEARNED, 0.0))) == 0


def test_frames_with_salt_and_faults_do_not_set_the_threshold() -> None:
    frames = [judged(peaks((10.0, 10.0, 50.0)), clean=False), judged(peaks((10.0, 10.0, 2.0)))]
    assert threshold_for(frames, LEARNED, 0.0) == pytest.approx(2.0, abs=1e-6)


def test_false_peaks_are_told_by_where_they_are() -> None:
    frames = [
        judged(peaks((10.0, 10.0, 9.0), beside=True)),
        judged(peaks((20.0, 20.0, 9.0), (40.0, 40.0, 9.0))),
        judged(peaks((20.0, 20.0, 9.0)), clean=False, ring=True),
        judged(peaks((20.0, 20.0, 9.0)), clean=False),
    ]
    (row,) = false_rows({"learned": matched(frames, LEARNED)})
    assert (row["clean frames"], row["ring frames"]) == (2, 1)
    assert row["beside gaps"].startswith("50.000")  # one, in a fiftieth of a frame
    assert row["elsewhere"].startswith("1.010")
    assert row["off them"].startswith("1.000")
    assert row["salt, faults"].endswith("in 1")


def test_the_interval_of_a_count_is_garwoods() -> None:
    assert poisson_interval(0) == pytest.approx((0.0, 3.689), abs=1e-3)
    assert poisson_interval(10) == pytest.approx((4.795, 18.390), abs=1e-3)


def test_no_frames_make_tables_all_the_same() -> None:
    sets: dict[str, Any] = {"learned": []}
    assert least_rows(sets)[0]["false peaks a frame"] == "–"
    assert recall_rows(sets, "snr", (1.0, 2.0))[0]["learned"] == "–"
    assert place_rows(sets)[0]["larger, 50+"] == "–"


# --- real frames ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames() -> list[Judged]:
    torch.manual_seed(0)
    recipe = dataclasses.replace(
        FINDER_SHOTS, flux_photons=(3e8, 1e9), water_scale=(0.5, 2.0), artefacts_fraction=0.0, salt=0.0, ice=0.0,
        lipid=0.0, polymer=0.0, one_per_pulse_fraction=0.0, retrigger_fraction=0.0,
    )  # fmt: skip
    # A heat of a tenth of a percent: an untrained network is that sure everywhere it looks.
    finder = LearnedFinder(PeakNetwork(), 1e-3, 11.0)
    return list(judge_twin(finder, recipe, 77, range(4), Cost()))


def test_the_classical_finder_does_on_the_twin_what_it_does(frames: list[Judged]) -> None:
    table = spot_table(matched(frames, CLASSICAL))
    bright = table["counts"] >= 30.0
    assert bright.sum() >= 20
    # Crystals of large cells are among them, whose spots run into one another.
    assert table["found"][bright].mean() > 0.5
    assert false_peaks(matched(frames, CLASSICAL)) <= 5


def test_a_series_on_disk_is_judged_by_its_own_truth(tmp_path: Path) -> None:
    master = simulate_series(tmp_path / "s", scene_of(SimulationOptions(flux=1e9)), Plan(5, 3, (0, 1), 1))
    cost = Cost()
    found = list(judge_series(LearnedFinder(PeakNetwork(), 0.5, 11.0), [master], cost, 4))
    assert (len(found), cost.frames) == (4, 4)
    assert cost.reduce_s > 0.0
    table = spot_table(matched(found, CLASSICAL))
    bright = table["counts"] >= 30.0
    assert bright.any()
    assert table["found"][bright].mean() > 0.9
    assert {frame.response for frame in found} == {"integrating"}


def test_a_series_without_truth_is_refused(tmp_path: Path) -> None:
    master = write_series(tmp_path, np.zeros((1, 64, 64), np.uint16))
    with pytest.raises(BadInput, match="no truth"):
        list(judge_series(LearnedFinder(PeakNetwork(), 0.5, 11.0), [master], Cost(), 4))


def test_an_untrained_finder_is_seen_to_be_worse(frames: list[Judged]) -> None:
    assert false_peaks(matched(frames, LEARNED)) > 5 * max(1, false_peaks(matched(frames, CLASSICAL)))
