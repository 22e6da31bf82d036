"""Memory that front and workers share."""

import errno
import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from analyzer.crew import shared
from analyzer.crew.shared import SLOT_BYTES, Slots, SlotView

LARGE = bytes(range(256)) * (3 << 12)


class Refusing(mmap.mmap):
    """Of a system that gives no part of a mapping back."""

    def madvise(self, *_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=[mmap.mmap, Refusing])
def slots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slots]:
    monkeypatch.setattr(shared.mmap, "mmap", request.param)
    made = Slots(2)
    yield made
    made.close()


def test_a_worker_sees_what_was_put_and_a_slot_serves_again(slots: Slots) -> None:
    view = SlotView(slots.facts)
    for _ in range(5):
        first, second = slots.put(LARGE), slots.put(b"small")
        assert first is not None
        assert second is not None
        assert slots.put(b"no room") is None
        assert (view.at(first), view.at(second)) == (LARGE, b"small")
        slots.free(first)
        slots.free(second)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4097])
def test_bytes_arrive_whatever_their_number_and_wherever_they_lie(slots: Slots, size: int) -> None:
    view = SlotView(slots.facts)
    before, other = slots.put(b"?" * 5000), slots.put(b"of another slot")
    assert before is not None
    assert other is not None
    slots.free(before)
    whole = bytes(each % 251 for each in range(size + 7))
    for begin in (0, 1, 7):
        wanted = whole[begin : begin + size]
        for data in (wanted, bytearray(wanted), memoryview(whole)[begin : begin + size]):
            place = slots.put(data)
            assert place is not None
            assert view.at(place) == wanted
            # What lies behind it is of the frame before, and stays.
            assert view.at((place[0] + size, 9)) == b"?" * 9
            slots.free(place)
    assert view.at(other) == b"of another slot"


def test_what_is_larger_than_a_slot_is_not_put(slots: Slots) -> None:
    assert slots.put(bytes(SLOT_BYTES + 1)) is None
    assert slots.put(b"small") is not None


@pytest.mark.parametrize("place", [(-1, 4), (0, -4), (1 << 40, 4)])
def test_a_place_that_is_none_is_empty(slots: Slots, place: tuple[int, int]) -> None:
    assert bytes(SlotView(slots.facts).at(place)) == b""
