"""A decoder that ends its process costs the frame that it died of and no other."""

import signal
import subprocess
import sys

import pytest

from analyzer.bundle import Bundle
from analyzer.crew import dispatch
from analyzer.crew.flight import MOST_LOSSES
from analyzer.results import Status
from streamer.messages import Algorithm
from tests.analyzer.builders import end, frames_of_a_run, image, image_data, start
from tests.analyzer.crew.made import Run
from tests.support import REPOSITORY, packed_image

IMAGES, GUILTY = 40, (5, 22)


def test_a_segmentation_fault_in_the_decoder_costs_its_frame_and_a_count(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "SILENT_S", 2.0)
    frames = frames_of_a_run(IMAGES)
    pixels = [image_data(each) for each in frames]
    for guilty in GUILTY:
        pixels[guilty] = packed_image(frames[guilty], Algorithm.LZ4_HDF5)
    run = Run(bundle, [start(1, IMAGES), *(image(n, 1, each) for n, each in enumerate(pixels)), end(1)]).start()
    command = [sys.executable, "-m", "tests.analyzer.crew.fatal_child", run.crew.address, "2"]
    workers = subprocess.run(command, cwd=REPOSITORY, timeout=150, capture_output=True, text=True)
    run.join().assert_closes()
    lost = sorted((r.image_id, r.status, r.reason) for r in run.kept.results if r.status != Status.OK)
    assert lost == [(n, Status.UNDECODABLE, "failed") for n in GUILTY]
    assert run.front.account.undecodable == {"failed": len(GUILTY)}
    # Both in one batch may die together with their worker, so one death may be of two.
    died = [int(line) for line in workers.stdout.split()]
    assert set(died) == {-signal.SIGSEGV}, workers.stderr
    assert len(GUILTY) * (MOST_LOSSES - 1) <= len(died) <= len(GUILTY) * MOST_LOSSES
    assert run.crew.facts()["lost_workers"] == len(died)
