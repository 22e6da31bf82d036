"""What the benchmarks are built on: scoring of peaks, and the proof that a worker allocates no frame."""

from pathlib import Path

import numpy as np

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from cxls.bench.inputs import packed_frames, simulate
from cxls.bench.memory import steady_state
from cxls.bench.peaks import TrueSpots, merged, score


def spots(*rows: tuple[float, float, float]) -> TrueSpots:
    table = np.array(rows, float).reshape(-1, 3)
    return TrueSpots(table[:, :2], table[:, 2])


def test_spots_closer_than_the_radius_are_one_at_the_brightest() -> None:
    single = merged(spots((10, 10, 3.0), (11, 12, 8.0), (40, 40, 5.0)))
    assert sorted(single.photons.tolist()) == [5.0, 11.0]
    assert [11, 12] in single.positions.tolist()


def test_a_peak_matches_one_spot_and_a_spot_one_peak() -> None:
    found = np.array([[10.5, 10.0], [12.0, 10.0], [80.0, 80.0]])
    result = score(found, spots((10, 10, 20.0), (50, 50, 7.0)))
    assert result.found == 3
    # The second peak lies on Bragg light of a spot that has its peak already; the third on nothing.
    assert result.false == 1


def test_no_peak_and_no_spot_score_nothing() -> None:
    assert score(np.empty((0, 2)), spots()).found == 0
    assert score(np.array([[1.0, 1.0]]), spots()).false == 1


def test_a_warm_worker_allocates_far_less_than_a_frame(tmp_path: Path, bundle_folder: Path) -> None:
    frames = packed_frames(simulate(tmp_path, 4))
    steady = steady_state(Analyser(load_bundle(bundle_folder), CascadeSettings()), frames, count=24)
    frame_bytes = 2162 * 2068 * 2
    assert steady.traced_peak < frame_bytes / 10
    assert abs(steady.traced_growth) < frame_bytes / 10
