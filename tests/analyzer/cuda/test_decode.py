"""Packed frames to pixels by the kernel, held against ``streamer.decoding``."""

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.cuda.decode import BatchDecoder, failure
from analyzer.cuda.staging import Batch
from streamer.decoding import decode
from streamer.messages import Algorithm, ImageData, UndecodableImage
from tests.analyzer.cuda.decoding import UNTOUCHED, batch_for, check, decoded, lz4_sequence, one_block, run
from tests.analyzer.cuda.host_build import HostProgram
from tests.support import packed_image, poisson, shared_data

SHAPES = [(1, 1), (1, 7), (8, 1), (3, 21), (37, 51), (64, 96), (130, 127), (300, 211)]
"""Of 1 to 63300 pixels: multiples of 64, of 8, and of neither."""

BLOCKS = (512, 1024, 4096, 8192)
FLUXES = (0.0, 0.05, 0.5, 2.0, 100.0)


def frames_of(shape: tuple[int, int], dtype: str) -> list[Any]:
    """Frames of several fluxes with pixels without data, a gap, and values at the edges of 16 bits."""
    rng = np.random.default_rng(5)
    top = int(np.iinfo(dtype).max)
    frames = []
    for flux in FLUXES:
        pixels = poisson(1, shape, dtype, flux, seed=int(100 * flux))[0]
        for value in (top, top - 1, min(top, 0xFFFE), min(top, 0xFFFF), min(top, 0x10000), top // 2 + 1):
            pixels[rng.random(shape) < 0.01] = value
        pixels[shape[0] // 3 : shape[0] // 2] = top
        frames.append(pixels)
    return frames


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
def test_frames_are_as_the_other_decoder_makes_them(program: Any, dtype: str, shape: tuple[int, int]) -> None:
    valid = (np.random.default_rng(2).random(shape) < 0.9).astype(np.uint8)
    images = [packed_image(pixels, block_bytes=size) for pixels in frames_of(shape, dtype) for size in BLOCKS]
    frames = decoded(program, images, valid)
    for number, image in enumerate(images):
        check(frames, number, image, valid)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
def test_noise_zeros_and_a_frame_without_data_are_decoded(program: Any, dtype: str) -> None:
    shape, top = (97, 131), int(np.iinfo(dtype).max)
    noise = np.random.default_rng(0).integers(0, top, shape, endpoint=True).astype(dtype)
    ramp = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    images = [packed_image(each) for each in (noise, ramp, np.zeros(shape, dtype), np.full(shape, top, dtype))]
    frames = decoded(program, images)
    for number, image in enumerate(images):
        check(frames, number, image)
    assert frames.blank[3].sum() == shape[0] * shape[1]
    assert not frames.lit[2:].any()


def test_32_bit_counts_above_16_bits_are_as_many_as_fit(program: Any) -> None:
    values = [0, 1, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x10001, 0xFFFF0000, 0xFFFFFFFE, 0xFFFFFFFF, 0x80000000, 5]
    frames = decoded(program, [packed_image(np.array([values], "<u4"))])
    most = 0xFFFE
    assert frames.pixels[0, :12].tolist() == [0, 1, 0xFFFD, most, most, most, most, most, most, 0xFFFF, most, 5]
    assert np.flatnonzero(frames.blank[0]).tolist() == [9]
    assert np.flatnonzero(~frames.lit[0][:12]).tolist() == [0, 9]


@pytest.mark.parametrize("algorithm", [Algorithm.RAW, Algorithm.LZ4_BLOCK, Algorithm.LZ4_HDF5])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", ">u2", ">u4"])
def test_other_packings_come_out_the_same(program: Any, dtype: str, algorithm: Algorithm) -> None:
    pixels = frames_of((37, 51), dtype)
    images = [packed_image(pixels[2], algorithm), packed_image(pixels[3]), packed_image(pixels[4], algorithm)]
    frames = decoded(program, images)
    for number, image in enumerate(images):
        check(frames, number, image)


@pytest.mark.parametrize(("block_bytes", "element"), [(64, 0), (16384, 0), (1 << 16, 0), (8192, 4), (8192, 1)])
def test_blocks_and_elements_that_the_kernel_does_not_know_come_out_the_same(
    program: Any, block_bytes: int, element: int
) -> None:
    image = packed_image(poisson(1, (64, 96))[0], block_bytes=block_bytes, element_bytes=element)
    check(decoded(program, [image]), 0, image)


def test_a_header_of_zeros_means_blocks_of_the_usual_size(program: Any) -> None:
    image = packed_image(poisson(1, (130, 127))[0])
    bare = replace(image, data=bytes(12) + bytes(image.data[12:]))
    check(decoded(program, [bare]), 0, bare)


def test_a_bad_block_is_named_and_costs_only_its_frame(program: Any) -> None:
    images = [packed_image(pixels) for pixels in poisson(3, (150, 160), "u2")]
    data, at = bytearray(images[1].data), 12
    for block in range(6):
        length = int.from_bytes(data[at : at + 4], "big")
        if block in (2, 4):
            # A run of literals longer than the block.
            data[at + 4 : at + 4 + length] = b"\xff" * length
        at += 4 + length
    images[1] = replace(images[1], data=bytes(data))
    frames = decoded(program, images)
    check(frames, 0, images[0])
    check(frames, 2, images[2])
    assert (frames.errors != 0).tolist() == [False, True, False]
    error = failure(int(frames.errors[1]))
    assert isinstance(error, UndecodableImage)
    assert (error.reason, str(error)) == ("bad_block", "block 2 does not decode")
    assert failure(0) is None


def test_a_batch_is_refused_what_the_other_decoder_refuses(host_decoder: HostProgram) -> None:
    image = packed_image(poisson(1)[0])
    data = bytes(image.data)
    decoder = BatchDecoder(image.shape, image.dtype, np.ones(image.shape, np.uint8), host_decoder)
    batch = batch_for(decoder, 2, host_decoder.device)
    assert decoder.stage(image, batch) == 0
    used = batch.used
    bad = [
        data[:-1], data[:20], data[:5], b"", data + b"\0", data[:12] + bytes(4) + data[16:],
        struct.pack(">QI", 1, 8192) + data[12:], struct.pack(">QI", 3774, 8193) + data[12:],
        struct.pack(">QI", 3774, 1 << 25) + data[12:], data[:12] + b"\xff\xff\xff\xff" + data[16:],
    ]  # fmt: skip
    for each in bad:
        wrong = replace(image, data=each)
        with pytest.raises(UndecodableImage) as ours:
            decoder.stage(wrong, batch)
        with pytest.raises(UndecodableImage) as theirs:
            decode(wrong, np.empty(image.shape, "u2"))
        assert (ours.value.reason, str(ours.value)) == (theirs.value.reason, str(theirs.value))
        assert (batch.frames, batch.used) == (1, used)
    with pytest.raises(UndecodableImage, match="trpx"):
        decoder.stage(replace(image, algorithm=Algorithm.TRPX), batch)
    assert decoder.stage(image, batch) == 1
    assert decoder.stage(image, batch) is None
    frames = run(decoder, batch)
    check(frames, 0, image)
    check(frames, 1, image)


def test_lengths_that_add_up_but_that_no_block_can_have_are_refused(host_decoder: HostProgram) -> None:
    image = packed_image(poisson(1)[0])
    decoder = BatchDecoder(image.shape, image.dtype, np.ones(image.shape, np.uint8), host_decoder)
    batch = batch_for(decoder, 1, host_decoder.device)
    block, rest = 100_000, 7 * 2
    long = bytes(image.data[:12]) + struct.pack(">I", block) + bytes(block) + bytes(rest)
    with pytest.raises(UndecodableImage) as caught:
        decoder.stage(replace(image, data=long), batch)
    assert caught.value.reason == "bad_block"
    # One that a batch has room for is found out by the kernel.
    big = Batch(1, 4 * block, host_decoder.device)
    assert decoder.stage(replace(image, data=long), big) == 0
    assert failure(int(run(decoder, big).errors[0])) is not None


def test_an_image_of_another_kind_is_refused(host_decoder: HostProgram) -> None:
    image = packed_image(poisson(1)[0])
    decoder = BatchDecoder(image.shape, image.dtype, np.ones(image.shape, np.uint8), host_decoder)
    batch = batch_for(decoder, 2, host_decoder.device)
    for other in (packed_image(poisson(1, (51, 37))[0]), packed_image(poisson(1, dtype="u4")[0])):
        with pytest.raises(ValueError, match="for a decoder of") as caught:
            decoder.stage(other, batch)
        assert not isinstance(caught.value, UndecodableImage)
    with pytest.raises(ValueError, match="may take"):
        decoder.stage(image, Batch(1, 100, host_decoder.device))
    with pytest.raises(ValueError, match="16 or 32 bit"):
        BatchDecoder((2, 2), np.dtype("f4"), np.ones((2, 2), np.uint8), host_decoder)
    with pytest.raises(ValueError, match="a mask of"):
        BatchDecoder((2, 2), np.dtype("u2"), np.ones((2, 3), np.uint8), host_decoder)


def test_a_grid_for_more_frames_decodes_those_there_are(program: Any) -> None:
    images = [packed_image(pixels) for pixels in poisson(2, (150, 160), "u2")]
    decoder = BatchDecoder(images[0].shape, images[0].dtype, np.ones(images[0].shape, np.uint8), program)
    batch = batch_for(decoder, 5, program.device)
    for image in images:
        decoder.stage(image, batch)
    frames = run(decoder, batch, grid=(decoder.units + 3, 5))
    for number, image in enumerate(images):
        check(frames, number, image)
    assert (frames.pixels[2:] == UNTOUCHED).all()
    assert not frames.errors.any()
    for grid in ((2, 2), (decoder.units, 1), (decoder.units, 6)):
        with pytest.raises(ValueError, match="a grid of"):
            run(decoder, batch, grid=grid)


def test_a_batch_is_used_again_and_remembers_nothing(program: Any) -> None:
    image = packed_image(poisson(1, (64, 96))[0])
    decoder = BatchDecoder(image.shape, image.dtype, np.ones(image.shape, np.uint8), program)
    batch = batch_for(decoder, 3, program.device)
    bad = bytearray(image.data)
    bad[16] = 0xFF
    for number in range(3):
        assert decoder.stage(replace(image, data=bytes(bad)), batch) == number
    assert run(decoder, batch).errors.all()
    batch.clear()
    decoder.decode(batch, decoder.outputs(3))
    assert decoder.stage(image, batch) == 0
    frames = run(decoder, batch)
    check(frames, 0, image)
    assert not frames.errors.any()


def test_valid_pixels_are_bits(host_decoder: HostProgram) -> None:
    valid = (np.random.default_rng(3).random((13, 11)) < 0.5).astype(np.uint8)
    bits = BatchDecoder((13, 11), np.dtype("u2"), valid, host_decoder).valid_bits.numpy()
    assert bits.shape == (3,)
    for pixel, value in enumerate(np.pad(valid.reshape(-1), (0, 49))):
        assert int(bits[pixel // 64]) >> (pixel % 64) & 1 == value


@st.composite
def _lz4_blocks(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A block by the rules of the format, of any runs, distances and lengths, and what it decodes to."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    packed, out = bytearray(), bytearray()
    for _ in range(draw(st.integers(0, 12))):
        literals = draw(st.one_of(st.integers(0 if out else 1, 20), st.integers(15, 700)))
        length = draw(st.one_of(st.integers(4, 40), st.integers(4, 1500)))
        if len(out) + literals + length > 8192 - 64:
            break
        run_of = rng.integers(0, 256, literals, dtype=np.uint8).tobytes()
        out += run_of
        most = min(len(out), 65535)
        distance = draw(st.one_of(st.integers(1, min(40, most)), st.integers(1, most)))
        packed += lz4_sequence(run_of, distance, length)
        for _ in range(length):
            out.append(out[-distance])
    last = rng.integers(0, 256, 12 + (-len(out) - 12) % 8, dtype=np.uint8).tobytes()
    return bytes(packed + lz4_sequence(last, 0, 0)), bytes(out + last)


@given(st.lists(_lz4_blocks(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_every_block_by_the_rules_is_decoded(host_decoder: HostProgram, blocks: list[tuple[bytes, bytes]]) -> None:
    for packed, out in blocks:
        image = one_block(packed, len(out))
        check(decoded(host_decoder, [image]), 0, image)


def test_recorded_payloads_are_decoded(program: Any) -> None:
    folder = shared_data("stream_vectors") / "hdf5_chunks"
    seen = set()
    for path in sorted(folder.glob("*bslz4*.bin")):
        with np.load(path.with_suffix(".npz")) as arrays:
            (pixels,) = dict(arrays).values()
        pixels = pixels.reshape(pixels.shape[-2:])
        image = ImageData(path.read_bytes(), pixels.shape, pixels.dtype, Algorithm.BSLZ4, pixels.dtype.itemsize)
        check(decoded(program, [image]), 0, image)
        seen.add(pixels.dtype.itemsize)
    assert seen == {1, 2, 4}


def test_the_payload_of_a_real_detector_is_decoded(program: Any) -> None:
    folder = shared_data("stream_vectors") / "v1_real_dcu_eiger_16m_payload"
    (path,) = folder.glob("*.bin")
    with np.load(folder / "image.npz") as arrays:
        (pixels,) = dict(arrays).values()
    image = ImageData(path.read_bytes(), pixels.shape, pixels.dtype, Algorithm.BSLZ4, 2)
    frames = decoded(program, [image])
    check(frames, 0, image)
    assert frames.blank[0].sum() == (pixels == 0xFFFF).sum() > 0
