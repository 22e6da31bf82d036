"""Batches: what lies where, what fits, and that there are only so many."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyzer.cuda.compiler import source_of
from analyzer.cuda.staging import ALIGNMENT, FRAME_DTYPE, Batch, Packing, aligned

CPU = torch.device("cpu")


def put(batch: Batch, table: bytes, source: bytes) -> int:
    batch.free(0, len(table))[:] = np.frombuffer(table, np.uint8)
    batch.free(aligned(len(table)), len(source))[:] = np.frombuffer(source, np.uint8)
    return batch.add(Packing.BSLZ4, len(table), len(source), len(table) // 8, 4096)


@given(st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=70)), max_size=6))
def test_frames_lie_one_behind_the_other_and_are_found_on_the_device(frames: list[tuple[int, bytes]]) -> None:
    batch = Batch(6, 6 * (80 + 80), CPU)
    tables = [bytes(range(8 * blocks)) for blocks, _ in frames]
    for number, (table, (_, source)) in enumerate(zip(tables, frames, strict=True)):
        assert put(batch, table, source) == number
    batch.upload()
    there = batch.device_bytes.numpy()
    facts = there[: 6 * FRAME_DTYPE.itemsize].view(FRAME_DTYPE)
    end = aligned(6 * FRAME_DTYPE.itemsize + 6 * 4)
    for fact, table, (blocks, source) in zip(facts, tables, frames, strict=False):
        assert fact["table"] == end
        assert fact["source"] % ALIGNMENT == fact["table"] % ALIGNMENT == 0
        assert there[end : end + len(table)].tobytes() == table
        start = int(fact["source"])
        assert there[start : start + len(source)].tobytes() == source
        assert (fact["source_bytes"], fact["blocks"], fact["packing"]) == (len(source), blocks, Packing.BSLZ4)
        end = aligned(start + len(source))
    assert batch.used == end
    assert (facts["packing"][len(frames) :] == Packing.UNUSED).all()
    assert batch.units == max((blocks + 1 for blocks, _ in frames), default=0)


def test_only_what_is_used_is_copied() -> None:
    batch = Batch(2, 4096, CPU)
    batch.device_bytes.fill_(0xEE)
    put(batch, b"", b"abc")
    batch.upload()
    assert (batch.device_bytes[batch.used :] == 0xEE).all()
    assert not (batch.device_bytes[: batch.used] == 0xEE).any()


def test_error_words_are_zero_again_after_an_upload() -> None:
    batch = Batch(3, 64, CPU)
    batch.device_errors.fill_(7)
    batch.upload()
    assert batch.device_errors.tolist() == [0, 0, 0]


def test_a_batch_holds_no_more_than_it_has_room_for() -> None:
    batch = Batch(2, 64, CPU)
    assert batch.room == batch.largest == 64
    with pytest.raises(ValueError, match="not free"):
        batch.free(16, 49)
    with pytest.raises(ValueError, match="not free"):
        batch.free(8, 1)
    with pytest.raises(ValueError, match="do not fit"):
        batch.add(Packing.BSLZ4, 1, 49, 1, 8)
    assert (batch.frames, batch.room) == (0, 64)
    put(batch, bytes(8), bytes(17))
    assert batch.room == 16
    put(batch, b"", b"")
    with pytest.raises(ValueError, match="is full"):
        put(batch, b"", b"")
    batch.clear()
    assert (batch.frames, batch.units, batch.room) == (0, 0, 64)
    with pytest.raises(ValueError, match="holds nothing"):
        Batch(0, 64, CPU)


def test_the_kernel_knows_a_frame_by_the_same_layout() -> None:
    text = source_of("bslz4.cu")
    body = text[text.index("struct Frame {") : text.index("};", text.index("struct Frame {"))]
    types = {"u8": "uint64_t", "u4": "uint32_t", "i4": "int32_t"}
    fields = [line.split(";")[0].split() for line in body.splitlines()[1:]]
    assert [field for field in fields if field] == [
        [types[FRAME_DTYPE[name].str[1:]], name] for name in FRAME_DTYPE.names or ()
    ]
    assert f"UNUSED = {Packing.UNUSED}, BSLZ4 = {Packing.BSLZ4}, PLAIN = {Packing.PLAIN}" in text


@pytest.mark.gpu
def test_batches_are_page_locked_where_there_is_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batch = Batch(2, 1 << 20, torch.device("cuda"))
    put(batch, bytes(8), b"abc")
    batch.upload()
    torch.cuda.synchronize()
    start = batch.used - ALIGNMENT
    assert batch.device_bytes[start : start + 3].cpu().numpy().tobytes() == b"abc"
    assert batch._host.is_pinned()
