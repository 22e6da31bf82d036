"""The running map of hot pixels: found when hot, silent for whatever crystals do, again and again."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from analyzer.frame_peaks import FramePeaks, frame_peaks
from analyzer.hot_pixels import (
    FEWEST_FIRINGS,
    FRAMES_KEPT,
    MOST_SPOTS,
    PEAKS_KEPT,
    SPAN_FRAMES,
    HotPixelWatch,
    _fingerprint,
)
from analyzer.kernels import PEAK_DTYPE
from analyzer.product_snapshot import HotPixels
from analyzer.reduction import FramePlan, Workspace
from sim_replay.artefacts import Artefacts, apply, fixed_pixels
from streamer.validity import Validity
from tests.analyzer.builders import plan

SHAPE = (514, 1030)
PLAN = plan(SHAPE)


class Fed:
    """A watch fed with made-up peak lists: (pixel, lone) pairs a frame, each frame its own noise."""

    def __init__(self) -> None:
        self.watch = HotPixelWatch(SHAPE)
        self._rng = np.random.default_rng(1)

    def frame(self, lone: Iterable[int], supported: Iterable[int] = (), noise: int | None = None) -> None:
        pixels = np.array([*lone, *supported], np.int64)
        flags = np.arange(len(pixels)) < len(list(lone))
        peaks = np.zeros(len(pixels), PEAK_DTYPE)
        peaks["ss"], peaks["fs"] = np.divmod(pixels, SHAPE[1])
        rng = self._rng if noise is None else np.random.default_rng(noise)
        peaks["intensity"] = rng.poisson(30, len(pixels))
        profile = rng.poisson(100, (2, 30)).astype(np.float32)
        self.watch.add(FramePeaks(PLAN, peaks, np.zeros(len(pixels)), None, pixels, flags), profile)

    @property
    def found(self) -> list[int]:
        return self.watch.find().pixel.tolist()


# --- what is hot ------------------------------------------------------------------------


def test_a_pixel_that_always_fires_is_hot() -> None:
    fed = Fed()
    for _ in range(SPAN_FRAMES + 1):
        fed.frame([1234])
    assert fed.found == [1234]
    assert fed.watch.find().firings.tolist() == [SPAN_FRAMES + 1]


def test_a_pixel_that_fires_now_and_then_is_hot() -> None:
    fed, rng = Fed(), np.random.default_rng(2)
    for _ in range(2000):
        fed.frame([77] if rng.random() < 0.01 else [])
    assert fed.found == [77]


def test_hot_pixels_beside_each_other_in_time_do_not_excuse_one_another() -> None:
    fed, rng = Fed(), np.random.default_rng(3)
    always, often = [10, 5000, 90_000], [20_000, 300_000, 400_000, 500_000]
    for _ in range(600):
        fed.frame([*always, *(p for p in often if rng.random() < 0.3)])
    assert fed.found == sorted(always + often)


def test_many_flickering_pixels_make_no_crystal_by_chance() -> None:
    fed, rng = Fed(), np.random.default_rng(14)
    hot = np.flatnonzero((np.arange(SHAPE[0]) % 4 == 1)[:, None] & (np.arange(SHAPE[1]) % 4 == 2)[None, :])
    hot = np.sort(rng.choice(hot, 500, replace=False))
    for _ in range(130):
        fed.frame(hot[rng.random(500) < 0.5].tolist(), rng.integers(0, 500_000, 5).tolist())
    assert len(set(fed.found) & set(hot.tolist())) >= 480


def test_hot_pixels_are_found_among_frames_with_crystals_in_other_places() -> None:
    fed, rng = Fed(), np.random.default_rng(4)
    for _ in range(400):
        fed.frame([321, *rng.integers(0, 500_000, 2).tolist()], rng.integers(0, 500_000, 10).tolist())
    assert fed.found == [321]


# --- what is not ------------------------------------------------------------------------


def test_too_few_firings_or_too_short_a_time_are_no_fault() -> None:
    fed = Fed()
    for _ in range(FEWEST_FIRINGS - 1):
        fed.frame([5])
        for _ in range(SPAN_FRAMES):
            fed.frame([])
    for _ in range(SPAN_FRAMES):
        fed.frame([6])  # a burst, then never again
    for _ in range(1000):
        fed.frame([])
    assert fed.found == []


def test_a_frame_is_known_by_the_same_number_in_every_process() -> None:
    peaks, profile = np.zeros(2, PEAK_DTYPE), np.arange(6, dtype=np.float32).reshape(2, 3)
    peaks["fs"] = 1.0, 2.0
    said = _fingerprint(peaks, profile)
    assert said == 7834112011353578628
    assert said == _fingerprint(peaks.copy(), np.asfortranarray(profile))
    peaks["fs"][1] = 3.0
    assert said != _fingerprint(peaks, profile)


@pytest.mark.parametrize("loops", [2, 5, 50])
def test_a_loop_of_frames_speaks_once(loops: int) -> None:
    fed, rng = Fed(), np.random.default_rng(5)
    frames = [rng.integers(0, 500_000, rng.integers(0, 4)).tolist() for _ in range(60)]
    for _ in range(loops):
        for number, lone in enumerate(frames):
            fed.frame(lone, noise=number)
    assert fed.found == []
    assert fed.watch.find().frames <= 60


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8, 0.95])
@pytest.mark.parametrize("seen", [0.2, 0.6, 1.0])
def test_a_stuck_crystal_that_comes_again_is_not_hot(share: float, seen: float) -> None:
    """Thirty lone spots in the same places in a share of the frames, each seen with its own chance; fresh noise."""
    fed, rng = Fed(), np.random.default_rng(6)
    spots = rng.choice(500_000, 30, replace=False)
    chance = rng.uniform(seen / 2, 1.0, 30)
    chance[:5] = 1.0  # its brightest
    for _ in range(1500):
        fed.frame(spots[rng.random(30) < chance].tolist() if rng.random() < share else [])
    assert fed.found == []
    assert fed.watch.find().tied >= 20


def test_a_crystal_that_is_always_there_is_known_by_its_spots_with_surroundings() -> None:
    fed, rng = Fed(), np.random.default_rng(7)
    lone, full = rng.choice(500_000, 12, replace=False), rng.choice(500_000, 5, replace=False)
    for _ in range(500):
        fed.frame(lone[rng.random(12) < 0.9].tolist(), full[rng.random(5) < 0.95].tolist())
    assert fed.found == []


def test_a_hot_pixel_is_found_beside_a_crystal_that_comes_again() -> None:
    fed, rng = Fed(), np.random.default_rng(8)
    spots = rng.choice(500_000, 20, replace=False).tolist()
    for _ in range(1000):
        fed.frame([*(spots if rng.random() < 0.3 else []), *([42] if rng.random() < 0.4 else [])])
    assert fed.found == [42]


def test_frames_of_many_spots_with_surroundings_say_nothing() -> None:
    fed = Fed()
    for _ in range(200):
        fed.frame([9], range(1000, 1000 + 50 * MOST_SPOTS + 50, 50))
    assert fed.watch.find().frames == 0


def test_a_panel_with_hundreds_of_hot_pixels_is_no_crystal() -> None:
    fed, rng = Fed(), np.random.default_rng(12)
    # Side by side they would be each other's surroundings.
    hot = np.flatnonzero((np.arange(SHAPE[0]) % 4 == 1)[:, None] & (np.arange(SHAPE[1]) % 4 == 2)[None, :])
    hot = np.sort(rng.choice(hot, 700, replace=False))
    for _ in range(300):
        fed.frame(hot[rng.random(700) < 0.95].tolist())
    assert fed.found == hot.tolist()


def test_many_lone_peaks_by_chance_raise_what_is_asked() -> None:
    fed, rng = Fed(), np.random.default_rng(9)
    for _ in range(3000):
        fed.frame(rng.integers(0, SHAPE[0] * SHAPE[1], 20).tolist())
    found = fed.watch.find()
    assert found.fewest_firings > FEWEST_FIRINGS
    assert len(found.pixel) == 0


def test_peaks_crowded_around_the_beam_are_no_hot_pixels() -> None:
    """Missed crystals' lone spots lie in a thirtieth of the panel."""
    fed, rng = Fed(), np.random.default_rng(10)
    for _ in range(3000):
        fed.frame(rng.integers(0, SHAPE[0] * SHAPE[1] // 30, rng.poisson(0.5)).tolist())
    assert fed.found == []


# --- bounds -----------------------------------------------------------------------------


def test_memory_is_bounded_and_what_is_long_ago_is_forgotten() -> None:
    fed = Fed()
    for _ in range(SPAN_FRAMES + 1):
        fed.frame([7])
    assert fed.found == [7]
    for number in range(FRAMES_KEPT):
        fed.frame([100 + number % 400_000])
    assert 7 not in fed.found
    assert len(fed.watch._kept) == FRAMES_KEPT


def test_memory_is_bounded_in_peaks_too_and_so_is_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyzer.hot_pixels.PEAKS_KEPT", PEAKS_KEPT // 64)
    monkeypatch.setattr("analyzer.hot_pixels._MOST_PAIRS", 1 << 20)
    fed, rng = Fed(), np.random.default_rng(13)
    hot = rng.choice(SHAPE[0] * SHAPE[1], 100, replace=False)
    crystal = rng.choice(SHAPE[0] * SHAPE[1], 10, replace=False)
    for number in range(400):
        fed.frame([*hot[rng.random(100) < 0.9].tolist(), *(crystal.tolist() if number % 4 == 0 else [])])
    assert PEAKS_KEPT // 64 - 200 < fed.watch._kept.codes <= PEAKS_KEPT // 64
    found = fed.watch.find()
    assert 100 < found.frames < 200
    assert found.pixel.tolist() == sorted(hot.tolist())
    assert found.tied == 10


def test_dark_frames_that_are_all_alike_still_count() -> None:
    watch = HotPixelWatch(SHAPE)
    empty = FramePeaks(PLAN, np.zeros(0, PEAK_DTYPE), np.zeros(0), None, np.zeros(0, np.int64), np.zeros(0, bool))
    for _ in range(10):
        watch.add(empty, np.zeros((2, 30), np.float32))
    assert watch.find().frames == 10


def test_an_empty_watch_finds_nothing() -> None:
    found = HotPixelWatch(SHAPE).find()
    assert (len(found.pixel), found.frames) == (0, 0)
    assert not found.mask.any()


def test_a_frozen_map_is_named_by_its_pixels_and_adds_to_the_one_before() -> None:
    def hot(*pixel: int) -> HotPixels:
        return HotPixels((3, 4), np.array(pixel, np.int64), np.ones(len(pixel), np.int64), 100, 0, 3)

    one, more = hot(1, 5).frozen(), hot(7).frozen(hot(1, 5).frozen())
    assert one.name == hot(1, 5).frozen().name
    assert one.name.startswith("hot-pixels-")
    assert one.name.endswith(".npy")
    assert np.flatnonzero(more.valid == 0).tolist() == [1, 5, 7]
    assert more.name == hot(1, 5, 7).frozen().name != one.name


# --- from pixels ------------------------------------------------------------------------


class Detector:
    """Frames of a module with artefacts, reduced as an analysis does."""

    def __init__(self, of: FramePlan, background: float, artefacts: Artefacts, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.background, self.artefacts = background, artefacts
        self.places = fixed_pixels(artefacts, np.zeros(SHAPE, bool), seed)
        self.workspace = Workspace(of, np.dtype("u2"))
        self.watch = HotPixelWatch(SHAPE)

    def frame(self, spots: Any = None) -> np.ndarray[Any, Any]:
        image = self.rng.poisson(self.background, SHAPE).astype(np.uint16)
        if spots is not None:
            image += self.rng.poisson(spots).astype(np.uint16)
        apply(self.artefacts, self.places, image, self.rng, 65534, 65535)
        return image

    def take(self, image: np.ndarray[Any, Any]) -> None:
        self.workspace.pixels[:] = image
        reduced = self.workspace.reduce()
        seen = frame_peaks(self.workspace.plan, self.workspace.pixels, reduced.peaks, self.workspace.background)
        self.watch.add(seen, np.stack([reduced.photons, reduced.pixels_counted]).astype(np.float32))


@pytest.mark.parametrize("background", [0.0005, 0.02, 0.3])
def test_simulated_hot_and_flickering_pixels_are_found_and_no_others(background: float) -> None:
    detector = Detector(PLAN, background, Artefacts(hot_pixels=12, flickering_pixels=12, cosmics=0.2))
    for _ in range(200):
        detector.take(detector.frame())
    found = set(detector.watch.find().pixel.tolist())
    faulty = set(detector.places.hot.tolist()) | set(detector.places.flickering.tolist())
    assert len(found & faulty) >= 23
    assert found <= faulty


def test_a_loop_of_simulated_frames_with_cosmic_rays_finds_none() -> None:
    detector = Detector(PLAN, 0.02, Artefacts(cosmics=3.0))
    loop = [detector.frame() for _ in range(30)]
    for _ in range(15):
        for image in loop:
            detector.take(image)
    found = detector.watch.find()
    assert (len(found.pixel), found.frames) == (0, 30)


def test_a_simulated_crystal_stuck_in_every_third_frame_finds_none() -> None:
    detector = Detector(PLAN, 0.005, Artefacts())
    spots = np.zeros(SHAPE)
    rng = np.random.default_rng(11)
    spots.reshape(-1)[rng.choice(spots.size, 40, replace=False)] = rng.exponential(8.0, 40)
    for number in range(300):
        detector.take(detector.frame(spots if number % 3 == 0 else None))
    found = detector.watch.find()
    assert found.tied > 5
    assert len(found.pixel) == 0


def test_the_frozen_map_stops_the_peaks() -> None:
    detector = Detector(PLAN, 0.01, Artefacts(hot_pixels=5))
    for _ in range(150):
        detector.take(detector.frame())
    frozen = detector.watch.find().frozen()
    masked = Workspace(plan(SHAPE, valid=Validity("x", frozen.valid).valid), np.dtype("u2"))
    masked.pixels[:] = detector.frame()
    assert len(masked.reduce().peaks) == 0
