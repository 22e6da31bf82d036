"""The benchmark of handing frames to workers, on a few small frames: every frame arrives, and a peer gets the same."""

from pathlib import Path

import zmq

from cxls.bench import workers
from cxls.bench.inputs import packed_frames, simulate
from sim_replay.detector import plain_panel
from streamer.messages import ImageData


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
