"""What the benchmarks are built on: counting of peaks, and the proof that a worker allocates no frame."""

from pathlib import Path

import numpy as np

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from cxls.bench import rings
from cxls.bench.inputs import packed_frames, simulate
from cxls.bench.memory import steady_state
from cxls.bench.peaks import Truth
from cxls.settings import BenchSettings
from tests.training.evaluation.builders import series_of


def test_the_bench_counts_peaks_as_the_evaluation_does(tmp_path: Path) -> None:
    """One frame with a spot beside a bad column, one that stands alone, two that are one, and a peak on each kind."""
    master = series_of(
        tmp_path, [True], spot_frame=np.zeros(4, int), spot_ss=np.array([6.0, 8.0, 16.0, 16.0]),
        spot_fs=np.array([8.0, 16.0, 22.0, 24.0]), spot_photons=np.array([50.0, 7.0, 4.0, 3.0]),
    )  # fmt: skip
    peaks = np.array([[8.0, 6.0], [16.3, 8.4], [22.0, 16.0], [25.0, 16.0], [18.5, 16.0], [17.0, 19.0]])
    count = Truth(master).count([peaks])
    assert (count.frames, count.peaks) == (1, 6)
    # The spot at the bad column counts neither way; the two of 4 and 3 photons are one of 7.
    assert count.by_photons == [[2, 2], [0, 0], [0, 0]]
    # On the light of the merged pair; 3.5 pixels from it, and on nothing.
    assert (count.doubled, count.false) == (1, 2)
    assert count.position_error_px is None


def test_the_bench_of_rings_finds_spots_and_few_peaks_that_are_none() -> None:
    (grid,) = rings.run(BenchSettings(frames=4)).grids
    found = np.array(grid.values, dtype=np.float64)
    assert found.shape == (len(grid.rows), len(rings.COLUMNS)) == (14, 5)
    alone, with_spots, on_ring, beside, milliseconds = found.mean(0)
    assert max(alone, with_spots) < 1.5
    assert min(on_ring, beside) > 0.9
    assert milliseconds > 0


def test_a_warm_worker_allocates_far_less_than_a_frame(tmp_path: Path, bundle_folder: Path) -> None:
    frames = packed_frames(simulate(tmp_path, 4))
    steady = steady_state(Analyser(load_bundle(bundle_folder), CascadeSettings()), frames, count=24)
    frame_bytes = 2162 * 2068 * 2
    assert steady.traced_peak < frame_bytes / 10
    assert abs(steady.traced_growth) < frame_bytes / 10
