"""The bench of the front on real sockets."""

import pytest

from cxls.bench.front import PARTS, bare, flat_out, front, libertem, parts

SIZE = 50_000


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_each_part_of_the_way_is_timed(protocol: str) -> None:
    with flat_out(protocol, SIZE) as endpoint:
        found = parts(endpoint, 1.0)
    assert tuple(found) == PARTS
    assert all(0 <= value < 10_000 for value in found.values())
    assert found["parse"] > 0


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_the_front_takes_what_a_flat_out_source_sends(protocol: str) -> None:
    with flat_out(protocol, SIZE) as endpoint:
        ours = front(endpoint, 0.5)
    with flat_out(protocol, SIZE) as endpoint:
        peer = bare(endpoint, 0.5)
    assert ours.hz > 100
    assert peer.hz > 100
    assert ours.thread_us is not None
    assert 0 < ours.thread_us < ours.process_us


def test_libertem_takes_the_same_source() -> None:
    pytest.importorskip("libertem_dectris")
    with flat_out("v1", SIZE) as endpoint:
        peer = libertem(endpoint, 0.5, SIZE)
    assert peer is not None
    assert peer.hz > 100
