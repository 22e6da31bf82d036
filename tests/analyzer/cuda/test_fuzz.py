"""Damaged frames under the sanitizers: the right pixels or an error, and no access outside the buffers.

A batch of damaged frames runs in one child process, every buffer in an allocation of its own size.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analyzer.cuda.decode import BatchDecoder
from analyzer.cuda.staging import Batch
from streamer.decoding import decode
from streamer.messages import Algorithm, ImageData, UndecodableImage
from tests.analyzer.cuda.decoding import UNTOUCHED, batch_for, check, decoded, lz4_sequence, one_block, run
from tests.analyzer.cuda.host_build import WatchedProgram
from tests.support import packed_image, poisson

FRAMES = 250
SECONDS = 15.0
MOST_ROUNDS = 60


def damaged(image: ImageData, rng: np.random.Generator) -> ImageData:
    """The image with a few bytes changed, behind the header and, but for some, not where a block's length is."""
    data = bytearray(image.data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(12, len(data)))
        part = slice(at, min(len(data), at + int(rng.integers(1, 9))))
        size = part.stop - part.start
        kind = int(rng.integers(5))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[part] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        elif kind == 2:
            data[part] = bytes([int(rng.choice([0, 1, 15, 240, 255]))]) * size
        elif kind == 3:
            other = int(rng.integers(12, len(data) - size + 1))
            data[part] = data[other : other + size]
        else:
            data[at:] = rng.integers(0, 256, len(data) - at, dtype=np.uint8).tobytes()
    return replace(image, data=bytes(data))


def invented(image: ImageData, rng: np.random.Generator) -> ImageData:
    """A payload whose blocks have lengths that fit and bytes that are noise."""
    blocks = -(-(image.pixels - image.pixels % 8) * image.element_bytes // 512)
    body = bytearray()
    for _ in range(blocks):
        noise = rng.integers(0, 256, int(rng.integers(1, 560)), dtype=np.uint8)
        noise[rng.random(noise.size) < 0.3] = rng.choice([0, 1, 2, 4, 0x1F, 0x4F, 0xF0, 0xFF])
        body += len(noise).to_bytes(4, "big") + noise.tobytes()
    head = image.decoded_bytes.to_bytes(8, "big") + (512).to_bytes(4, "big")
    return replace(image, data=head + bytes(body) + bytes(image.pixels % 8 * image.element_bytes))


def frames_to_try(rng: np.random.Generator) -> tuple[ImageData, Iterator[ImageData]]:
    dtype = str(rng.choice(["u1", "<u2", "<u4"]))
    shape = (int(rng.integers(1, 50)), int(rng.integers(1, 90)))
    pixels = poisson(1, shape, dtype, float(rng.choice([0.02, 0.5, 5.0, 1000.0])), seed=int(rng.integers(1 << 30)))[0]
    image = packed_image(pixels, block_bytes=int(rng.choice([512, 1024, 8192])))
    kinds = [damaged, damaged, damaged, invented]
    return image, (kinds[int(rng.integers(4))](image, rng) for _ in range(FRAMES))


def zero_distance(data: bytes) -> bool:
    """Whether any block of a payload has a match of distance 0 before it stops making sense."""
    at = 12
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if _block_has_zero_distance(data[at + 4 : at + 4 + length]):
            return True
        at += 4 + length
    return False


def _block_has_zero_distance(block: bytes) -> bool:
    at = 0
    while at < len(block):
        token, at = block[at], at + 1
        literals, at = _length(block, at, token >> 4)
        at += literals
        if at + 2 > len(block):
            return False
        if block[at : at + 2] == b"\0\0":
            return True
        _, at = _length(block, at + 2, token & 15)
    return False


def _length(block: bytes, at: int, length: int) -> tuple[int, int]:
    if length == 15:
        while at < len(block):
            length, at = length + block[at], at + 1
            if block[at - 1] != 255:
                break
    return length, at


def outcome(image: ImageData) -> bool:
    """Whether ``streamer.decoding`` decodes an image."""
    try:
        decode(image, np.empty(image.pixels, image.dtype))
    except UndecodableImage:
        return False
    return True


def test_damaged_frames_end_in_their_pixels_or_in_an_error(watched_decoder: WatchedProgram) -> None:
    began, rng, tried, refused = time.monotonic(), np.random.default_rng(11), 0, 0
    for _ in range(MOST_ROUNDS):
        image, frames = frames_to_try(rng)
        decoder = BatchDecoder(image.shape, image.dtype, np.ones(image.shape, np.uint8), watched_decoder)
        batch = batch_for(decoder, FRAMES, watched_decoder.device)
        staged = []
        for each in frames:
            try:
                if decoder.stage(each, batch) is not None:
                    staged.append(each)
            except UndecodableImage:
                assert not outcome(each)
        result = run(decoder, batch)
        for number, each in enumerate(staged):
            good = outcome(each)
            if result.errors[number] == 0:
                assert good, "a frame was decoded that the other decoder refuses"
                check(result, number, each)
            else:
                # The other decoder takes a match of distance 0 for whatever lies there.
                assert not good or zero_distance(bytes(each.data))
                refused += 1
            assert (result.pixels[number, image.pixels :] == UNTOUCHED).all()
        tried += len(staged)
        if time.monotonic() - began > SECONDS:
            break
    assert tried >= FRAMES
    assert 0 < refused < tried


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
def test_every_cut_of_a_frame_is_refused_or_decoded(watched_decoder: WatchedProgram, dtype: str) -> None:
    """Cut within a block, whose length is then made to fit."""
    pixels = poisson(1, (9, 15), dtype, 1.0)[0]
    image = packed_image(pixels)
    data, left = bytes(image.data), pixels.size % 8 * pixels.dtype.itemsize
    block, tail = data[16 : len(data) - left], data[len(data) - left :]
    cuts = [
        replace(image, data=data[:12] + size.to_bytes(4, "big") + block[:size] + tail) for size in range(1, len(block))
    ]
    frames = decoded(watched_decoder, [*cuts, image])
    assert frames.errors[:-1].all()
    check(frames, len(cuts), image)


def edges(room: int) -> Iterator[bytes]:
    """LZ4 blocks for ``room`` bytes that keep the rules of the format or break one of them by little."""
    noise = np.random.default_rng(9).integers(0, 256, room + 64, dtype=np.uint8).tobytes()
    for size in range(room - 20, room + 60):
        yield lz4_sequence(noise[:size])
    for distance in (1, 2, 3, 4, 7, 16, 99, 100, 101, 65535):
        for last in range(16):
            yield lz4_sequence(noise[:100], distance, room - 100 - last) + lz4_sequence(noise[:last])
            yield lz4_sequence(noise[:100], distance, room - 100 - last)
    for over in range(-8, 40):
        yield lz4_sequence(noise[:100], 50, room - 105 + over) + lz4_sequence(noise[:5])
        yield lz4_sequence(noise[:100], 50, room - 105) + lz4_sequence(noise[: 5 + max(0, over)])
        yield lz4_sequence(noise[: room - 12 + over], 8, 4) + lz4_sequence(noise[:8])
        yield lz4_sequence(noise[: room - 12 + over], 8, 7) + lz4_sequence(noise[:5])
        yield lz4_sequence(noise[: room - 9 - max(0, over)], 8, 4) + lz4_sequence(noise[: 5 + max(0, over)])


@pytest.mark.parametrize("room", [8192, 512, 256])
def test_the_rules_are_kept_to_the_byte(watched_decoder: WatchedProgram, room: int) -> None:
    images = [one_block(block, room) for block in edges(room)]
    frames = decoded(watched_decoder, images)
    good = [outcome(image) for image in images]
    assert (frames.errors == 0).tolist() == good
    for number in np.flatnonzero(good):
        check(frames, int(number), images[number])
    assert 0 < sum(good) < len(good)


def test_a_length_that_goes_on_and_on_is_refused(watched_decoder: WatchedProgram) -> None:
    image = one_block(b"\xff" * 9_000_000, 8192)
    decoder = BatchDecoder(image.shape, image.dtype, np.ones(image.shape, np.uint8), watched_decoder)
    batch = Batch(1, 10_000_000, watched_decoder.device)
    assert decoder.stage(image, batch) == 0
    assert run(decoder, batch).errors.all()


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
def test_good_frames_touch_nothing_else(watched_decoder: WatchedProgram, dtype: str) -> None:
    rng = np.random.default_rng(4)
    for shape in ((1, 3), (5, 13), (97, 131)):
        noise = rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
        images = [
            packed_image(each, algorithm)
            for each in (noise, poisson(1, shape, dtype, 0.3)[0])
            for algorithm in (Algorithm.BSLZ4, Algorithm.RAW)
        ]
        valid: Any = (rng.random(shape) < 0.5).astype(np.uint8)
        frames = decoded(watched_decoder, images, valid)
        for number, image in enumerate(images):
            check(frames, number, image, valid)


def test_the_sanitizers_see_an_access_outside(watched_decoder: WatchedProgram) -> None:
    image = packed_image(poisson(1, (64, 96))[0])
    decoder = BatchDecoder(image.shape, image.dtype, np.ones(image.shape, np.uint8), watched_decoder)
    batch = batch_for(decoder, 1, watched_decoder.device)
    decoder.stage(image, batch)
    decoder.valid_bits = decoder.valid_bits[:-1]
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        run(decoder, batch)
