"""Pictures: the largest count of each block, the mask kept apart, exactly what the frame holds."""

import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.live.frames import Look
from analyzer.live.preview import LARGEST, MASKED, MOST_PEAKS, Picture, Region, Renderer, encode, pool
from analyzer.results import Peak
from tests.analyzer.builders import water, with_spots
from tests.analyzer.live.made import look


def render(one: Look, most_px: int, region: Region | None = None) -> Picture:
    return Renderer().render(one, region, most_px)


def slowly(pixels: np.ndarray[Any, Any], valid: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    rows, columns = (-(-length // size) for length in pixels.shape)
    out = np.full((rows, columns), MASKED, np.uint16)
    for r in range(rows):
        for c in range(columns):
            block = pixels[r * size : (r + 1) * size, c * size : (c + 1) * size]
            good = valid[r * size : (r + 1) * size, c * size : (c + 1) * size] != 0
            good &= block != np.iinfo(pixels.dtype).max
            if good.any():
                out[r, c] = min(int(block[good].max()), LARGEST)
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 23), st.integers(1, 23), st.integers(1, 9),
    st.sampled_from(["u1", "u2", "u4"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_block_is_its_largest_valid_count(rows: int, columns: int, size: int, dtype: str, seed: int) -> None:
    chance = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    pixels = chance.choice(np.array([0, 1, 7, top // 2, top - 1, top], dtype), (rows, columns))
    valid = (chance.random((rows, columns)) < 0.7).astype(np.uint8)
    np.testing.assert_array_equal(pool(pixels, valid, size), slowly(pixels, valid, size))


def test_a_picture_of_a_part_at_full_size_is_the_pixels_themselves() -> None:
    pixels = with_spots(water(2.0))
    picture = render(look(pixels), 100, Region(10, 5, 40, 30))
    assert (picture.bin_px, picture.region) == (1, Region(10, 5, 40, 30))
    np.testing.assert_array_equal(picture.pixels, pixels[5:35, 10:50])


def test_a_spot_of_one_pixel_survives_being_made_small() -> None:
    pixels = np.zeros((61, 75), np.uint16)
    pixels[33, 44] = 900
    picture = render(look(pixels), 10)
    assert picture.bin_px == 8
    assert picture.pixels[33 // 8, 44 // 8] == 900
    assert np.count_nonzero(picture.pixels) == 1


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (Region(-10, -10, 30, 30), Region(0, 0, 20, 20)),
        (Region(70, 60, 100, 100), Region(70, 60, 5, 1)),
        (Region(10_000, 10_000, 5, 5), Region(74, 60, 1, 1)),
        (Region(-500, 0, 5, 5), Region(0, 0, 1, 5)),
        (Region(0, 0, 1 << 20, 1 << 20), Region(0, 0, 75, 61)),
    ],
)
def test_a_part_beyond_the_detector_is_cut_to_it(asked: Region, given: Region) -> None:
    picture = render(look(water(1.0)), 200, asked)
    assert picture.region == given
    assert picture.pixels.shape == (given.height, given.width)


def unpack(message: bytes) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    pixels = np.frombuffer(zlib.decompress(message[4 + length :]), "<u2")
    return header, pixels.reshape(header["rows"], header["columns"])


def test_the_message_has_the_pixels_and_says_what_they_are() -> None:
    pixels = with_spots(water(2.0))
    one = look(pixels, 17, peaks=[Peak(20.25, 11.5, 60.0, 9.0, False), Peak(1.0, 2.0, 5.0, 4.0, True)])
    picture = render(one, 75)
    header, shown = unpack(encode(one, picture, "latest"))
    np.testing.assert_array_equal(shown, picture.pixels)
    assert header["region"] == [0, 0, 75, 61]
    assert header["shape"] == [61, 75]
    assert (header["kind"], header["show"], header["key"], header["image_id"]) == ("image", "latest", "1:17", 17)
    assert header["peaks"] == [[20.25, 11.5, 60.0, 9.0, False], [1.0, 2.0, 5.0, 4.0, True]]
    valid = picture.pixels[picture.pixels != MASKED]
    assert header["counts"]["max"] == valid.max()
    assert header["counts"]["p50"] == np.median(valid)
    assert header["geometry"]["pixel_size_m"] == 75e-6


def test_of_very_many_peaks_the_brightest_are_sent() -> None:
    peaks = [Peak(1.0, 2.0, float(n), 5.0, False) for n in range(5000)]
    one = look(water(1.0), peaks=peaks)
    header, _ = unpack(encode(one, render(one, 100), "hit"))
    assert len(header["peaks"]) == MOST_PEAKS
    assert min(peak[2] for peak in header["peaks"]) == 4000.0


def test_a_frame_that_is_masked_altogether_is_shown_as_such() -> None:
    one = look(np.full((61, 75), 65535, np.uint16))
    header, shown = unpack(encode(one, render(one, 100), "latest"))
    assert (shown == MASKED).all()
    assert header["counts"] == {"max": 0, "p50": 0.0, "p99": 0.0, "p999": 0.0}
