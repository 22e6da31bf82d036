"""What real detectors and independent simulators sent: every image decodes, every series adds up."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer import stream_v2
from streamer.account import Account
from streamer.decoding import check_size, decode
from streamer.messages import Algorithm, EndMessage, ImageData, ImageMessage, StartMessage
from streamer.receiver import parse
from streamer.series import ImageAccepted, SeriesClosed, SeriesTracker
from tests.support import shared_data


def vectors(name: str = "") -> Path:
    return shared_data("stream_vectors") / name


def decoded(image: Any) -> Any:
    assert isinstance(image, ImageData), image
    check_size(image)
    out = np.empty(image.shape, image.dtype.newbyteorder("="))
    decode(image, out)
    return out


def expected(path: str) -> dict[str, Any]:
    with np.load(vectors(path)) as arrays:
        return dict(arrays)


def only(path: str) -> Any:
    (array,) = expected(path).values()
    return array


def series_of(name: str) -> list[list[memoryview]]:
    """The messages of a captured series: parts by message."""
    found: dict[str, list[memoryview]] = {}
    for part in sorted(vectors(name).glob("????_??.bin")):
        found.setdefault(part.name[:4], []).append(memoryview(part.read_bytes()))
    return list(found.values())


def test_every_array_of_the_manifest_is_as_it_was_recorded() -> None:
    checked = 0
    for entry in json.loads(vectors("MANIFEST.json").read_text()):
        expect = entry.get("expect")
        if isinstance(expect, dict) and "sha256_of_c_order_bytes" in expect:
            array = np.ascontiguousarray(only(expect["npz"]))
            assert hashlib.sha256(array.tobytes()).hexdigest() == expect["sha256_of_c_order_bytes"]
            checked += 1
    assert checked >= 3


SERIES = {
    "v1_tickit_series": ("v1_real_dcu_eiger_16m_payload/image.npz", 3, 1),
    "v2_tickit_series": ("v2_real_dcu_eiger2_16m/image_threshold_1.npz", 3, 1),
    "v1_libertem_mock_series": ("v1_libertem_mock_series/expected.npz", 3, 1),
    "v1_real_dectris_eiger2_1m_lz4": ("v1_real_dectris_eiger2_1m_lz4/expected.npz", 20, 2),
}


@pytest.mark.parametrize("name", SERIES)
def test_a_captured_series_decodes_and_its_account_adds_up(name: str) -> None:
    arrays, images, series = SERIES[name]
    expect = only(arrays)
    if expect.ndim == 2:
        expect = np.broadcast_to(expect, (images, *expect.shape))
    account = Account()
    tracker = SeriesTracker(account)
    events = [event for parts in series_of(name) for event in tracker.handle(parse(parts), 0.0)]
    accepted = [event.image for event in events if isinstance(event, ImageAccepted)]
    closed = [event for event in events if isinstance(event, SeriesClosed)]
    assert len(accepted) == account.received == account.accepted == images
    assert len(closed) == series
    for message, pixels in zip(accepted, expect, strict=True):
        (image,) = message.channels.values()
        assert np.array_equal(decoded(image), pixels)
    for one in closed:
        assert not one.series.joined
        assert one.series.metadata.shape == expect.shape[1:]
        assert one.announced == one.accepted + sum(one.missing.values())


def test_a_real_detectors_start_image_and_end_are_read() -> None:
    folder = vectors("v2_real_dcu_eiger2_16m")
    start, image, end = (parse([memoryview((folder / f"{n}.cbor").read_bytes())]) for n in ("start", "image", "end"))
    assert isinstance(start, StartMessage)
    meta = start.metadata
    assert (meta.shape, meta.channels, meta.sensor_material) == ((4362, 4148), ("threshold_1",), "Si")
    assert meta.camera_length_m == pytest.approx(0.2372, abs=1e-4)
    assert meta.threshold_energy_eV.keys() == {"threshold_1", "threshold_2"}
    assert meta.photon_energy_eV is not None
    assert isinstance(image, ImageMessage)
    assert isinstance(end, EndMessage)
    assert None not in (start.unique_id, image.unique_id, end.unique_id)
    pixels = decoded(image.channels["threshold_1"])
    assert np.array_equal(pixels, only("v2_real_dcu_eiger2_16m/image_threshold_1.npz"))
    assert (int(pixels[pixels < 65535].sum()), int((pixels == 65535).sum())) == (13712, 1253075)


@pytest.mark.parametrize("name", ["bslz4_8bit", "bslz4_16bit", "bslz4_32bit", "lz4_8bit", "lz4_16bit"])
def test_the_detector_makers_test_images_decode(name: str) -> None:
    folder = vectors("v2_dectris_test_data")
    message = parse([memoryview((folder / f"{name}_000001.cbor").read_bytes())])
    assert isinstance(message, ImageMessage)
    arrays = expected(f"v2_dectris_test_data/{name}_000001.npz")
    assert set(message.channels) == set(arrays) == {"threshold_1", "threshold_2", "difference"}
    for channel, pixels in arrays.items():
        assert np.array_equal(decoded(message.channels[channel]), pixels)
    assert message.user_data == [1, "\N{BLUE HEART}"]
    last = parse([memoryview((folder / f"{name}_000011.cbor").read_bytes())])
    assert isinstance(last, (EndMessage, ImageMessage))


def test_our_encoder_makes_the_real_images_bytes_again() -> None:
    real = vectors("v2_real_dcu_eiger2_16m/image.cbor").read_bytes()
    message = stream_v2.parse(real)
    assert isinstance(message, ImageMessage)
    ours = stream_v2.encode_image(message)
    # The packed image with its tags: all that follows the times.
    assert ours[ours.index(b"\x64data") :] == real[real.index(b"\x64data") :]


def test_a_real_stream_v1_payload_decodes() -> None:
    pixels = only("v1_real_dcu_eiger_16m_payload/image.npz")
    data = vectors("v1_real_dcu_eiger_16m_payload/image_part3_bs16-lz4.bin").read_bytes()
    image = ImageData(memoryview(data), pixels.shape, pixels.dtype, Algorithm.BSLZ4, 2)
    assert np.array_equal(decoded(image), pixels)


def test_every_chunk_of_the_file_writer_decodes() -> None:
    chunks = sorted(vectors("hdf5_chunks").glob("*.bin"))
    assert len(chunks) == 6
    for chunk in chunks:
        with np.load(chunk.with_suffix(".npz")) as arrays:
            (pixels,) = (np.squeeze(array) for array in arrays.values())
        algorithm = Algorithm.BSLZ4 if "bslz4" in chunk.name else Algorithm.LZ4_HDF5
        data = memoryview(chunk.read_bytes())
        image = ImageData(data, pixels.shape, pixels.dtype, algorithm, pixels.dtype.itemsize)
        assert np.array_equal(decoded(image), pixels), chunk.name
