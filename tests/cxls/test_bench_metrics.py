"""The bench of metrics: its batches, both ways of counting, and a real program that is scraped."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from cxls.bench import metrics
from cxls.bench.inputs import packed_frames, repeated, simulate
from cxls.bench.metrics import BATCH, IMAGES, Batch
from sim_replay.detector import plain_panel


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen frames of a small panel."""
    return simulate(tmp_path_factory.mktemp("frames"), 2 * BATCH, detector=plain_panel((128, 128)))


@pytest.fixture(scope="module")
def made(master: Path, bundle_folder: Path) -> Sequence[Batch]:
    return metrics.batches(packed_frames(master), bundle_folder)


def test_the_batches_fill_the_windows_and_no_image_comes_twice(made: Sequence[Batch]) -> None:
    ids = [result.image_id for batch in made for result in batch.results]
    assert sorted(ids) == list(range(IMAGES))
    assert all(len(batch.frames) == len(batch.results) == BATCH for batch in made)
    assert {"decode", "reduce", "infer", "peaks", "publish"} == set(made[0].stage_seconds)


@pytest.mark.parametrize("way", [metrics.ours, metrics.peer])
def test_counting_a_frame_takes_microseconds(way: object, made: Sequence[Batch]) -> None:
    assert callable(way)
    assert 0.1 < metrics.counting_us(way(made), len(made)) < 1000


def test_a_program_that_has_analysed_a_run_is_scraped(master: Path) -> None:
    found = metrics.scraped(repeated(master, 2), 4 * BATCH, seconds=2.0, windows=1)
    assert len(found.cpu_ms) == 1
    assert -50 < found.cpu_ms[0] < 1000
    assert found.nbytes > 10_000
