"""The cascade with its frames reduced by the kernels gives the records that it gives without.

The kernels run on the CPU, from the same source, and on a device where there is one.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from analyzer.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from analyzer.cascade import Analyser, CascadeSettings, PlanCache
from analyzer.cuda import engine
from analyzer.cuda.compiler import NoDevice
from analyzer.cuda.engine import DevicePrograms, open_programs
from analyzer.cuda.program import DeviceFault
from analyzer.judge import Judge
from analyzer.peak_finder import Peakfinder8Finder
from analyzer.peakfinder8 import Peakfinder8Settings
from analyzer.reduction import suspect_pixels
from analyzer.results import FrameResult, Status
from analyzer.warm import warm_threads
from analyzer.worker_thread import all_do
from streamer.frames import Frame
from streamer.messages import Algorithm, Defect, ImageData
from tests.analyzer.builders import (
    BROKEN,
    CHANNEL,
    SHAPE,
    fourth_decision_fails,
    frame,
    packed,
    series,
    water,
    with_spots,
)
from tests.analyzer.cuda.host_build import HostProgram
from tests.analyzer.cuda.host_reduce import programs

RELATIVE = 1e-5
"""Of floats in a record, relative or absolute, between the CPU's loops and the kernels."""


@pytest.fixture(scope="module")
def host(host_decoder: HostProgram) -> DevicePrograms:
    return DevicePrograms(host_decoder, programs())


@pytest.fixture(scope="module")
def card() -> DevicePrograms:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return open_programs("cuda", None)


@pytest.fixture(params=["host", pytest.param("card", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> DevicePrograms:
    given: DevicePrograms = request.getfixturevalue(request.param)
    return given


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(DEFAULT_BUNDLE)


def on_device(device: DevicePrograms, bundle: Bundle, **settings: Any) -> Analyser:
    given = CascadeSettings(**settings)
    where = str(device.device)
    there = bundle if where == "cpu" else load_bundle(DEFAULT_BUNDLE, where)
    plans = PlanCache()
    return Analyser(there, given, where, plans, device, Analyser(bundle, given, "cpu", plans))


def on_cpu(bundle: Bundle, frames: list[Frame], **settings: Any) -> list[FrameResult]:
    return Analyser(bundle, CascadeSettings(**settings)).process(frames).results


def mixture() -> list[Frame]:
    """Series of several types and shapes, packed in several ways, with and without spots, good and bad."""
    kinds = [
        (series(1), "u2", SHAPE),
        (series(2, 9, camera_length_m=0.35, dtype=np.dtype("u4")), "u4", SHAPE),
        (series(3, 10, dtype=np.dtype("u1")), "u1", SHAPE),
        (series(4, 11), "u2", (257, 130)),
    ]
    frames = []
    for one, dtype, shape in kinds:
        for n in range(5):
            pixels = with_spots(water(0.02 * 3**n, shape, n, dtype), 80, n) if shape == SHAPE else water(0.3, shape, n)
            image = ImageData(packed(pixels), shape, pixels.dtype, Algorithm.BSLZ4, pixels.itemsize)
            if n == 3:
                image = ImageData(pixels.tobytes(), shape, pixels.dtype, Algorithm.RAW, pixels.itemsize)
            frames.append(frame(image, n, one))
        frames.append(frame(np.zeros(shape, dtype), 5, one))
        frames.append(frame(Defect("missing_data", "no image data"), 6, one))
    broken = bytearray(packed(water(0.5, seed=8)))
    broken[-40:-20] = b"\xff" * 20
    frames.insert(2, frame(ImageData(bytes(broken), SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 2), 20, kinds[0][0]))
    frames.insert(9, frame(BROKEN, 21, kinds[1][0]))
    return frames


def assert_same(found: list[FrameResult], expected: list[FrameResult]) -> None:
    """Records that agree: texts, whole numbers and decisions exactly, floats to ``RELATIVE``."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for each in fields(FrameResult):
            here, there = getattr(one, each.name), getattr(other, each.name)
            if isinstance(there, float) and isinstance(here, float):
                assert here == pytest.approx(there, rel=RELATIVE, abs=RELATIVE), each.name
            else:
                assert here == there, each.name


def test_records_are_those_of_the_cpu_whatever_comes(device: DevicePrograms, shipped: Bundle) -> None:
    frames = mixture()
    found = on_device(device, shipped).process(frames).results
    expected = on_cpu(shipped, frames)
    assert_same(found, expected)
    assert {result.status for result in found} == {Status.OK, Status.UNDECODABLE}
    assert max(result.peak_count or 0 for result in found) >= 3


def test_what_feeds_the_running_products_is_the_same(device: DevicePrograms, shipped: Bundle) -> None:
    frames = mixture()
    found, expected = on_device(device, shipped).process(frames), Analyser(shipped, CascadeSettings()).process(frames)
    for here, there in zip(found.profiles, expected.profiles, strict=True):
        np.testing.assert_allclose(here, there, rtol=RELATIVE)
    for one, other in zip(found.diffuse, expected.diffuse, strict=True):
        np.testing.assert_allclose(one.profile, other.profile, rtol=RELATIVE)
        assert one.pairs == pytest.approx(other.pairs, rel=RELATIVE)
    for spots, others in zip(found.peaks, expected.peaks, strict=True):
        np.testing.assert_array_equal(spots.pixel, others.pixel)
        np.testing.assert_array_equal(spots.lone, others.lone)


def test_what_a_batch_holds_outlives_the_next(device: DevicePrograms, shipped: Bundle) -> None:
    analyser = on_device(device, shipped)
    first = analyser.process(mixture())
    kept = [(each.profile.copy(), spots.peaks.copy()) for each, spots in zip(first.diffuse, first.peaks, strict=True)]
    analyser.process(mixture()[::-1])
    for (profile, peaks), each, spots in zip(kept, first.diffuse, first.peaks, strict=True):
        np.testing.assert_array_equal(each.profile, profile)
        np.testing.assert_array_equal(spots.peaks, peaks)


def test_series_that_share_an_engine_cover_each_its_own(device: DevicePrograms, shipped: Bundle) -> None:
    one, other = series(1), series(2, 9)
    frames = [frame(water(0.5, seed=n), n, one if n % 2 else other) for n in range(8)]
    analyser, alone = (on_device(device, shipped) for _ in range(2))
    assert_same(analyser.process(frames).results, on_cpu(shipped, frames))
    alone.process(frames[1::2])
    for found, expected in zip(analyser.covered(one), alone.covered(one), strict=True):
        np.testing.assert_array_equal(found.seen, expected.seen)
        np.testing.assert_allclose(found.expected, expected.expected, rtol=1e-9)
    analyser.forget(other)
    assert_same(analyser.process(frames[1::2]).results, on_cpu(shipped, frames[1::2]))
    assert len(analyser.covered(one)) == 2


def test_a_mask_that_changes_in_mid_series_holds_from_there_on(device: DevicePrograms, shipped: Bundle) -> None:
    masked = np.zeros(SHAPE, np.uint32)
    masked[18:24, 26:34] = 1
    # A repeated start: the same series, other metadata.
    before, after = series(1), series(1, masks={CHANNEL: masked})
    pixels = with_spots(water(0.1), 80)
    frames = [frame(pixels, n, before if n < 3 else after) for n in range(6)]
    found = on_device(device, shipped).process(frames).results
    assert_same(found, on_cpu(shipped, frames))
    assert (found[0].peak_count or 0) > (found[5].peak_count or 0)


@pytest.mark.gpu
def test_nothing_of_a_batch_waits_for_the_device_nor_takes_memory_of_the_driver(
    card: DevicePrograms, shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = engine.Engine._launch
    waited: list[Exception] = []

    def watched(self: engine.Engine, *given: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            launch(self, *given)
        except Exception as error:
            waited.append(error)
            raise
        finally:
            torch.cuda.set_sync_debug_mode("default")

    analyser = on_device(card, shipped)
    frames = [frame(with_spots(water(0.5, seed=n), 80), n) for n in range(40)]
    batches = [[replace(each, series=one) for each in frames] for one in (series(1), series(2), series(3, 9))]
    for batch in batches:
        analyser.process(batch)
    segments = torch.cuda.memory_stats()["segment.all.allocated"]
    monkeypatch.setattr(engine.Engine, "_launch", watched)
    for batch in batches:
        analyser.process(batch)
    assert waited == []
    assert analyser.fault is None
    assert torch.cuda.memory_stats()["segment.all.allocated"] == segments


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_a_full_batch_of_16_megapixels_is_as_on_the_cpu(card: DevicePrograms, shipped: Bundle, dtype: str) -> None:
    shape = (4362, 4148)
    middle = {"beam_center_x_px": shape[1] / 2, "beam_center_y_px": shape[0] / 2}
    one = series(1, shape=shape, dtype=np.dtype(dtype), **middle)
    some = [frame(with_spots(water(0.02 * 4**n, shape, n, dtype), 80), n, one) for n in range(3)]
    expected = on_cpu(shipped, some)
    analyser = on_device(card, shipped)
    found = analyser.process([replace(some[n % 3], image_id=n) for n in range(32)]).results
    assert_same(found, [replace(expected[n % 3], image_id=n) for n in range(32)])
    assert analyser.fault is None


@pytest.mark.gpu
def test_analysers_of_a_device_are_warm_in_threads_and_give_the_cpu_s_records(
    card: DevicePrograms, shipped: Bundle
) -> None:
    analysers = [on_device(card, shipped) for _ in range(3)]
    threads = warm_threads(analysers, Judge(shipped, CascadeSettings()))
    frames = [frame(with_spots(water(0.5, seed=n), 80), n) for n in range(40)]
    found: dict[int, list[FrameResult]] = {}
    works = [partial(lambda n: found.update({n: analysers[n].process(frames).results}), n) for n in range(3)]
    all_do(threads, works)
    for thread in threads:
        thread.end()
    expected = on_cpu(shipped, frames)
    for number, analyser in enumerate(analysers):
        assert_same(found[number], expected)
        assert analyser.fault is None


def test_a_device_with_less_room_takes_fewer_frames_at_once_and_judges_as_many_rows(
    host: DevicePrograms, shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    rows: set[int] = set()
    places: set[int] = set()

    class Small(engine.Engine):
        def __init__(self, *given: Any) -> None:
            most_frames, judge = given[3:5]
            asked.append(most_frames)
            if most_frames > 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

            def counted(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
                rows.add(len(inputs["zones"]))
                places.add(inputs["zones"].data_ptr())
                logits: torch.Tensor = judge(inputs)
                return logits

            super().__init__(*given[:4], counted, *given[5:])

    monkeypatch.setattr("analyzer.cascade.Engine", Small)
    frames = [frame(water(0.5 + n, seed=n), n) for n in range(20)]
    analyser = on_device(host, shipped)
    assert_same(analyser.process(frames).results, on_cpu(shipped, frames))
    assert analyser.fault is None
    assert asked == [32, 16, 8]
    assert rows == {32}
    assert len(places) == 1, "what the network reads is allocated once"


def test_a_device_without_room_for_any_batch_leaves_the_frames_to_the_cpu(
    host: DevicePrograms, shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(*given: Any) -> None:
        asked.append(given[3])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("analyzer.cascade.Engine", refuse)
    frames = [frame(water(0.5, seed=n), n) for n in range(3)]
    analyser = on_device(host, shipped)
    assert_same(analyser.process(frames).results, on_cpu(shipped, frames))
    assert asked == [32, 16, 8, 4]
    assert analyser.fault == "CUDA out of memory. Tried to allocate 20.00 GiB"


@pytest.mark.parametrize("room", [20_000, 60_000])
def test_frames_that_do_not_fit_one_batch_go_in_several(
    host: DevicePrograms, shipped: Bundle, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_USUAL_BYTES", room // 32)
    one = series(1)
    frames = [frame(water(3.0, seed=n), n, one) for n in range(40)]
    assert_same(on_device(host, shipped).process(frames).results, on_cpu(shipped, frames))


def test_counts_beyond_16_bits_are_reduced_on_the_cpu(device: DevicePrograms, shipped: Bundle) -> None:
    one = series(2, 9, dtype=np.dtype("u4"))
    bright = with_spots(water(0.1, dtype="u4"), 80)
    bright[20, 30] = 3_000_000
    frames = [frame(water(0.1, dtype="u4"), 0, one), frame(bright, 1, one), frame(water(0.2, dtype="u4"), 2, one)]
    found = on_device(device, shipped).process(frames).results
    assert_same(found, on_cpu(shipped, frames))
    assert max(peak.intensity_photons for peak in found[1].peaks or ()) > 1e6


def test_pixels_that_never_count_are_told_of(device: DevicePrograms, shipped: Bundle) -> None:
    one = series(1)
    frames = []
    for n in range(20):
        pixels = water(3.0, seed=n)
        pixels[30, 40] = 0
        frames.append(frame(pixels, n, one))
    analyser = on_device(device, shipped)
    analyser.process(frames)
    assert suspect_pixels(analyser.covered(one)).tolist() == [30 * SHAPE[1] + 40]
    analyser.forget(one)
    assert analyser.covered(one) == []


class Failing:
    """A device that fails at a launch, as one that fell off the bus, and from then on."""

    def __init__(self, inner: Any, after: int) -> None:
        self.inner, self.left = inner, after
        self.device = inner.device

    def launch(self, *arguments: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise DeviceFault("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure")
        self.inner.launch(*arguments)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_fault_costs_no_frame_and_the_cpu_goes_on(
    host: DevicePrograms, shipped: Bundle, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    failing = replace(host, decoder=Failing(host.decoder, after))
    analyser = on_device(failing, shipped)
    frames = mixture()
    parts = [frames[n : n + 4] for n in range(0, len(frames), 4)]
    found = [result for part in parts for result in analyser.process(part).results]
    assert_same(found, on_cpu(shipped, frames))
    assert analyser.fault == "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"
    assert sum("the CPU judges the frames" in record.message for record in caplog.records) == 1


def test_a_series_ends_well_whose_device_was_found_lost_by_another_worker(
    host: DevicePrograms, shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = series(1)
    analyser = on_device(host, shipped)
    analyser.process([frame(water(3.0), 0, one)])
    assert len(analyser.covered(one)) == 2

    def lost(self: engine.SeriesEngine) -> None:
        raise DeviceFault("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")

    monkeypatch.setattr(engine.SeriesEngine, "coverage", property(lost))
    assert [each.plan.shape for each in analyser.covered(one)] == [SHAPE]


def test_what_a_batch_covered_that_failed_counts_once(
    device: DevicePrograms, shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = series(1)
    frames = [frame(water(0.5 + n, seed=n), n, one) for n in range(7)]
    undisturbed, analyser = (on_device(device, shipped) for _ in range(2))
    for each in (undisturbed, analyser):
        each.process(frames[:2])
    undisturbed.process(frames[2:])
    fourth_decision_fails(monkeypatch)
    assert {result.status for result in analyser.process(frames[2:]).results} == {Status.OK}
    assert analyser.fault is None
    for expected, found in zip(undisturbed.covered(one), analyser.covered(one), strict=True):
        np.testing.assert_allclose(found.expected, expected.expected, rtol=1e-9)
        np.testing.assert_array_equal(found.seen, expected.seen)
    assert analyser.covered(one)[1].expected.any()


def test_a_fault_of_ours_is_not_the_device_s(
    host: DevicePrograms, shipped: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyser = on_device(host, shipped)

    def wrong(self: engine.SeriesEngine, images: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(engine.SeriesEngine, "reduce", wrong)
    frames = [frame(water(3.0, seed=n), n) for n in range(3)]
    for batch in (frames, frames[:1]):
        assert_same(analyser.process(batch).results, on_cpu(shipped, batch))
    assert analyser.fault is None


def test_a_finder_that_needs_the_pixels_has_them(host: DevicePrograms, shipped: Bundle) -> None:
    finder = Peakfinder8Finder(Peakfinder8Settings())
    frames = mixture()
    found = on_device(host, shipped, finder=finder).process(frames).results
    assert_same(found, on_cpu(shipped, frames, finder=finder))


def test_frames_too_wide_for_the_kernels_are_reduced_on_the_cpu(
    host: DevicePrograms, shipped: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [frame(water(0.3, (9, 8300)), 0)]
    assert_same(on_device(host, shipped).process(frames).results, on_cpu(shipped, frames))
    assert "reduced on the CPU" in caplog.text


def test_without_a_device_there_are_no_programs() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(NoDevice, match="CUDA"):
        open_programs("cuda", None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
