"""The quick way through a stream's images: always the answer of ``parse``, whatever comes."""

import gc
import sys
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer import stream_v2
from streamer.messages import ImageData, ImageMessage, InvalidMessage
from tests.streamer.hostile_wire import corpus, good_image, metadata, v2_image, v2_start
from tests.support import packed_image, poisson


def said(parse: Any, data: bytes) -> Any:
    """The message, or the reason and sentence of a refusal."""
    try:
        return parse(data)
    except InvalidMessage as error:
        return error.reason, str(error)


def assert_same(reader: stream_v2.ImageReader, data: bytes) -> None:
    quick, long = said(reader.parse, data), said(stream_v2.parse, data)
    if isinstance(long, ImageMessage):
        assert quick == long
    else:
        assert str(quick) == str(long)


def encoded(image_id: int, second: float = 1.0, user_data: Any = None, seed: int = 0) -> bytes:
    image = packed_image(poisson(1, seed=seed)[0])
    times = {"start_time_s": second, "stop_time_s": second + 0.001, "exposure_s": 0.001}
    return stream_v2.encode_image(ImageMessage(7, image_id, {"threshold_1": image}, user_data=user_data, **times))


class Counting(stream_v2.ImageReader):
    """Knows how many images went the long way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.long = 0
        parse = stream_v2.parse

        def counted(message: Any) -> Any:
            self.long += 1
            return parse(message)

        monkeypatch.setattr(stream_v2, "parse", counted)


def test_only_the_first_image_and_those_of_another_length_go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [encoded(300 + n, 1.0 + 0.01 * n, seed=n % 3) for n in range(200)]
    expected = [stream_v2.parse(each) for each in messages]
    reader = Counting(monkeypatch)
    assert [reader.parse(each) for each in messages] == expected
    assert reader.long == 1


def test_a_series_from_its_first_image_soon_goes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    start = stream_v2.encode_start(7, metadata())
    for clock_hz in (50_000_000, 1_000_000_000):
        image = packed_image(poisson(1)[0])
        messages = [
            stream_v2.encode_image(
                ImageMessage(7, n, {"threshold_1": image}, 0.001 * n, 0.001 * n + 0.00099, 0.00099), clock_hz=clock_hz
            )
            for n in range(600)
        ]
        expected = [stream_v2.parse(each) for each in messages]
        with monkeypatch.context() as patched:
            reader = Counting(patched)
            reader.parse(start)
            assert [reader.parse(each) for each in messages] == expected
            assert reader.long < 35


def test_an_id_that_becomes_longer_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [*range(20, 30), *range(250, 260), *range(65_530, 65_545), (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 0, -1, -300]
    messages = [encoded(image_id) for image_id in ids]
    expected = [stream_v2.parse(each) for each in messages]
    assert [each.image_id for each in expected if isinstance(each, ImageMessage)] == ids
    assert list(map(Counting(monkeypatch).parse, messages)) == expected


def test_an_id_beyond_64_bits_is_refused_as_ever() -> None:
    reader = stream_v2.ImageReader()
    good = encoded((1 << 63) - 1)
    reader.parse(good)
    bad = good.replace(((1 << 63) - 1).to_bytes(8, "big"), b"\xff" * 8)
    assert said(reader.parse, bad) == said(stream_v2.parse, bad)
    assert said(reader.parse, bad)[0] == "bad_value"


@pytest.mark.parametrize("hostile", [each for each in corpus() if len(each.parts) == 1], ids=lambda each: each.name)
def test_hostile_messages_between_good_ones(hostile: Any) -> None:
    reader = stream_v2.ImageReader()
    for n in range(3):
        good = encoded(300 + n)
        assert reader.parse(good) == stream_v2.parse(good)
        assert_same(reader, hostile.parts[0])


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_damage_is_seen_as_parse_sees_it(data: st.DataObject) -> None:
    reader = stream_v2.ImageReader()
    reader.parse(encoded(70_000))
    damaged = bytearray(encoded(70_001))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(-3, 3))
    message = bytes(damaged[:cut]) if cut < 0 else bytes(damaged) + b"\x00" * cut
    assert_same(reader, message)


def test_what_differs_in_more_than_numbers_goes_the_long_way() -> None:
    reader = stream_v2.ImageReader()
    many = [
        encoded(300, user_data={"run": 1}),
        encoded(301, user_data={"run": 2}),
        v2_image(),
        v2_image(series_unique_id="other"),
        v2_image(series_id=8),
        v2_image(start_time=[1, 0]),
        v2_image(start_time=None),
        v2_image(extra=[1, 2]),
        v2_start(),
        stream_v2.encode_end(7),
        b"",
        b"\xd9\xd9\xf7",
        encoded(302, user_data={"run": 2})[3:],
    ]
    for message in many * 3:
        assert_same(reader, message)


def test_user_data_is_each_messages_own() -> None:
    reader = stream_v2.ImageReader()
    first, second, third = (reader.parse(encoded(n, user_data={"run": [1]})) for n in (300, 301, 302))
    assert isinstance(second, ImageMessage)
    second.user_data["run"].append(2)
    assert first.user_data == third.user_data == {"run": [1]}  # type: ignore[union-attr]


def test_images_in_two_channels_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    image = packed_image(poisson(1)[0])
    both = {"threshold_1": image, "threshold_2": image}
    messages = [stream_v2.encode_image(ImageMessage(7, 300 + n, both, 1.0, 1.1, 0.1)) for n in range(40)]
    expected = [stream_v2.parse(each) for each in messages]
    assert list(map(Counting(monkeypatch).parse, messages)) == expected


def test_pixels_are_a_view_and_nothing_else_keeps_the_message() -> None:
    reader = stream_v2.ImageReader()
    reader.parse(encoded(300))
    for n in (301, 302):
        data = encoded(n)
        held = sys.getrefcount(data)
        message = reader.parse(data)
        assert isinstance(message, ImageMessage)
        image = message.channels["threshold_1"]
        assert isinstance(image, ImageData)
        assert np.shares_memory(np.frombuffer(image.data, np.uint8), np.frombuffer(data, np.uint8))
        del message, image
        gc.collect()
        assert sys.getrefcount(data) == held


def test_the_reader_keeps_no_pixels() -> None:
    reader = stream_v2.ImageReader()
    data = stream_v2.encode_image(good_image(300))
    held = sys.getrefcount(data)
    reader.parse(data)
    gc.collect()
    assert sys.getrefcount(data) == held


def test_a_time_that_is_no_number_is_read_as_the_parser_reads_it() -> None:
    """A byte string has a length where a number has its value."""
    good = cbor2.loads(encoded(300))
    for strange in (b"s" * 30, "t" * 30, [1] * 30, -300):
        reader = stream_v2.ImageReader()
        for _ in range(3):
            assert_same(reader, cbor2.dumps({**good, "start_time": [strange, 1_000_000]}))
