"""The benchmark of handing frames to workers, on a few small frames: every frame arrives, and a peer gets the same."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from cxls.bench import workers
from cxls.bench.inputs import packed_frames, simulate
from sim_replay.detector import plain_panel
from streamer.messages import ImageData
from tests.analyzer import builders


def test_frames_are_handed_out_one_way_and_a_peer_gets_the_same(tmp_path: Path, bundle_folder: Path) -> None:
    frames = workers.as_received(packed_frames(simulate(tmp_path, 4, detector=plain_panel((61, 67), "uint32"))))
    for frame in frames:
        assert isinstance(frame.image, ImageData)
        assert isinstance(frame.image.data, memoryview)
        assert isinstance(frame.image.data.obj, zmq.Frame)
    with workers.pulling(60) as (push, back_of_peer), workers.told_back() as (address, back):
        way = workers.Way(bundle_folder, "cxls.bench.one_way_worker", address, "60")
        for _ in range(2):
            assert workers.one_way(way, back, frames, 60) > 0
            assert workers.bare(push, back_of_peer, frames, 60) > 0
        share = workers.paced(way, frames, 60 / workers.RATE_HZ)
        assert share.out > 0
        assert share.back > 0
        assert way.arrived == 180
        assert way.sent_bytes("wire") == sum(frames[number % 4].nbytes for number in range(60)) * 3
        assert way.sent_bytes("shared") == 0
        way.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that the benchmark starts, whom it gives little time."""
    found: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            found.append(self)

    monkeypatch.setattr(workers.subprocess, "Popen", Noted)
    monkeypatch.setattr(workers, "START_S", 0.5)
    monkeypatch.setattr(workers, "LEAVE_S", 0.2)
    return found


@pytest.mark.parametrize("module", ["tests.cxls.silent_worker", "no.such.module"])
def test_a_worker_that_does_not_start_in_time_is_not_left_behind(
    bundle_folder: Path, started: list[subprocess.Popen[bytes]], module: str
) -> None:
    with pytest.raises(RuntimeError, match="the worker does not start"):
        workers.Way(bundle_folder, module)
    (child,) = started
    assert child.returncode is not None


def test_no_worker_is_left_behind_when_the_benchmark_fails_in_the_middle(
    bundle_folder: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "START_S", 60.0)
    monkeypatch.setattr(workers, "flat_out", fail)
    with pytest.raises(KeyboardInterrupt):
        workers.handing(bundle_folder, [builders.frame(np.zeros((61, 67), "u4"))], 1.0)
    (child,) = started
    assert child.returncode is not None
