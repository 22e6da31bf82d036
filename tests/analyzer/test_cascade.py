"""Batches of frames in, one result each out."""

import gc
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from analyzer.cascade import Analyser, CascadeSettings, PlanCache
from analyzer.geometry import Geometry
from analyzer.reduction import FramePlan
from analyzer.results import Decision, FrameResult, HitRule, Status
from sim_replay.detector import CONDITIONS
from streamer.frames import DIFFERENCE, Frame, make_frame
from streamer.messages import Algorithm, Defect, ImageData, ImageMessage
from streamer.series import Series
from streamer.validity import Validity
from tests.analyzer.builders import (
    BROKEN,
    CHANNEL,
    SHAPE,
    SPOT,
    fourth_decision_fails,
    frame,
    image_data,
    packed,
    plan,
    series,
    water,
    with_spots,
    write_bundle,
)
from tests.analyzer.parameters.made import detector, image

U16 = np.dtype("u2")


def judge(bundle: Bundle, *frames: Frame, **settings: Any) -> list[FrameResult]:
    return Analyser(bundle, CascadeSettings(**settings)).process(list(frames)).results


def mixture() -> list[Frame]:
    """Frames of two series, three types, with and without spots, good and bad."""
    one, two = series(1), series(2, 9, camera_length_m=0.35, dtype=np.dtype("u4"))
    frames = [frame(with_spots(water(0.1 * n, seed=n), 80, n), n, one) for n in range(6)]
    frames += [frame(water(0.3, seed=n, dtype="u4"), n, two) for n in range(3)]
    frames += [frame(BROKEN, 20, one), frame(np.zeros(SHAPE, "u1"), 21, one)]
    frames += [frame(with_spots(water(0.3, (64, 80), 3), 90), 22, one)]
    return frames


# --- one frame's trouble is its own -----------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (BROKEN, "size_mismatch"),
        (Defect("missing_data", "no image data"), "missing_data"),
        (ImageData(b"", SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 2), "size_mismatch"),
        (ImageData(packed(water(0.1))[:12] + b"\x7f" * 900, SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 2), "bad_block"),
        (ImageData(b"abc", SHAPE, np.dtype("u2"), Algorithm.RAW, 2), "size_mismatch"),
        (ImageData(b"abc" * 300, SHAPE, np.dtype("u2"), Algorithm.LZ4_BLOCK, 2), "bad_block"),
        (ImageData(b"abc" * 300, SHAPE, np.dtype("u2"), Algorithm.BSLZ4, 3), "bad_header"),
        (ImageData(b"abc", (1 << 20, 1 << 20), np.dtype("u4"), Algorithm.RAW, 4), "size_mismatch"),
    ],
)
def test_an_undecodable_frame_costs_only_itself(bundle: Bundle, bad: ImageData | Defect, reason: str) -> None:
    good = [frame(with_spots(water(0.1, seed=n)), n) for n in range(3)]
    results = judge(bundle, good[0], frame(bad, 7), good[1], good[2])
    assert [r.status for r in results] == [Status.OK, Status.UNDECODABLE, Status.OK, Status.OK]
    assert [r.image_id for r in results] == [0, 7, 1, 2]
    broken = results[1]
    assert broken.reason == reason
    assert broken.status_text
    assert (broken.decision, broken.hit, broken.peaks, broken.bundle, broken.hit_rule) == (None,) * 5
    assert [results[0], *results[2:]] == judge(bundle, *good)


def test_a_truncated_payload_leaves_no_trace_in_the_next_frame(bundle: Bundle) -> None:
    whole = image_data(with_spots(water(5.0), 4000))
    cut = replace(whole, data=bytes(whole.data)[: len(whole.data) // 2])
    analyser = Analyser(bundle, CascadeSettings())
    dim = frame(water(0.01, seed=2), 1)
    assert analyser.process([frame(cut)]).results[0].status == Status.UNDECODABLE
    assert analyser.process([dim]).results == judge(bundle, dim)


def test_a_mask_of_another_shape_is_left_aside(bundle: Bundle) -> None:
    """A detector that is switched to a region of interest in the middle of a shift goes on being analysed."""
    mask = Validity("m.npy", np.zeros((4, 4), np.uint8))
    outcome = Analyser(bundle, CascadeSettings(mask=mask)).process([frame(water(0.1))])
    (result,), (seen,) = outcome.results, outcome.peaks
    assert (result.status, result.mask) == (Status.OK, "none")
    assert seen.plan.validity.unfit == (
        "m.npy is for images of 4 x 4 pixels, the images are 61 x 75; give one of their shape"
    )
    assert judge(bundle, frame(water(0.1)), mask=mask) == judge(bundle, frame(water(0.1)))


# --- a record is a function of its frame ------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 5, 12])
def test_a_record_does_not_depend_on_its_batch(bundle: Bundle, batch: int) -> None:
    frames = mixture()
    alone = [judge(bundle, each)[0] for each in frames]
    analyser = Analyser(bundle, CascadeSettings())
    together = [r for n in range(0, len(frames), batch) for r in analyser.process(frames[n : n + batch]).results]
    assert together == alone


def test_a_record_does_not_depend_on_what_came_before(bundle: Bundle) -> None:
    frames = mixture()
    analyser = Analyser(bundle, CascadeSettings())
    first = {(r.series_id, r.image_id): r for r in analyser.process(frames).results}
    again = {(r.series_id, r.image_id): r for r in analyser.process(frames[::-1]).results}
    assert first == again


def test_a_frame_of_noise_says_why_there_is_no_fit_and_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    fits, masked = load_bundle(DEFAULT_BUNDLE), np.random.default_rng(3).random(SHAPE) < 0.2
    of = series(masks={CHANNEL: masked.astype("u4")})
    noise = [np.random.default_rng(n).integers(0, 65535, SHAPE, endpoint=True, dtype=np.uint16) for n in range(12)]
    results = judge(fits, *(frame(pixels, n, of) for n, pixels in enumerate(noise)))
    assert {result.status for result in results} == {Status.OK}
    assert all(result.estimate_reason for result in results)
    assert "failed" not in caplog.text


def test_a_fault_of_ours_on_one_frame_costs_no_other(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = mixture()
    alone = judge(bundle, *frames)
    analyser = Analyser(bundle, CascadeSettings())
    decide = Analyser._decision

    def fail_on_one(self: Analyser, fields: dict[str, Any], probability: float) -> Decision:
        if probability == alone[2].hit_probability:
            raise ZeroDivisionError("a fault of ours")
        return decide(self, fields, probability)

    monkeypatch.setattr(Analyser, "_decision", fail_on_one)
    outcome = analyser.process(frames)
    assert [*outcome.results[:2], *outcome.results[3:]] == [*alone[:2], *alone[3:]]
    assert (outcome.results[2].status, outcome.results[2].reason) == (Status.UNDECODABLE, "failed")
    good = [result for result in outcome.results if result.status == Status.OK]
    assert len(outcome.profiles) == len(outcome.peaks) == len(outcome.diffuse) == len(good)
    assert "a fault of ours" in caplog.text
    with pytest.raises(ZeroDivisionError):
        analyser.process([frames[2]])


@pytest.mark.parametrize("before", [0, 3], ids=["first batch", "later batch"])
def test_what_a_batch_covered_that_failed_counts_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    one = series()
    frames = [frame(water(0.5 + n, seed=n), n, one) for n in range(before + 5)]
    undisturbed, analyser = (Analyser(bundle, CascadeSettings()) for _ in range(2))
    undisturbed.process(frames)
    if before:
        analyser.process(frames[:before])
    fourth_decision_fails(monkeypatch)
    assert {result.status for result in analyser.process(frames[before:]).results} == {Status.OK}
    (expected,), (found,) = undisturbed.covered(one), analyser.covered(one)
    np.testing.assert_allclose(found.expected, expected.expected, rtol=1e-12)
    np.testing.assert_array_equal(found.seen, expected.seen)


def test_big_and_little_endian_images_give_the_same_record(bundle: Bundle) -> None:
    pixels = with_spots(water(0.4), 300)
    little, big = (
        ImageData(pixels.astype(kind).tobytes(), SHAPE, np.dtype(kind), Algorithm.RAW, 2) for kind in ("<u2", ">u2")
    )
    assert judge(bundle, frame(little)) == judge(bundle, frame(big))


def test_replaced_metadata_takes_effect_within_a_series(bundle: Bundle) -> None:
    analyser = Analyser(bundle, CascadeSettings())
    pixels = with_spots(water(0.1))
    mask = np.zeros(SHAPE, "u4")
    for ss, fs in SPOT:
        mask[ss - 3 : ss + 5, fs - 3 : fs + 5] = 1
    before = analyser.process([frame(pixels, 0, series())]).results[0]
    after = analyser.process([frame(pixels, 1, series(masks={CHANNEL: mask}))]).results[0]
    assert before.peak_count == len(SPOT)
    assert after.peak_count == 0
    assert after.mask != before.mask


# --- hit, miss, no beam -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "threshold", "spots", "hit"),
    [
        (HitRule.NETWORK, 0.0, 0, True),
        (HitRule.NETWORK, 1.0, 8, False),
        (HitRule.PEAKS, 1.0, 5, True),
        (HitRule.PEAKS, 0.0, 4, False),
        (HitRule.EITHER, 1.0, 5, True),
        (HitRule.EITHER, 0.0, 0, True),
        (HitRule.EITHER, 1.0, 4, False),
        (HitRule.BOTH, 0.0, 5, True),
        (HitRule.BOTH, 1.0, 5, False),
        (HitRule.BOTH, 0.0, 4, False),
    ],
)
def test_the_hit_rule_decides(bundle: Bundle, rule: HitRule, threshold: float, spots: int, hit: bool) -> None:
    pixels = with_spots(water(0.02), 80, spots)
    (result,) = judge(bundle, frame(pixels), hit_rule=rule, threshold=threshold, min_peaks=5)
    assert result.peak_count == spots
    assert (result.hit, result.hit_rule) == (hit, rule)
    assert result.decision == (Decision.HIT if hit else Decision.MISS)


def test_the_threshold_of_the_bundle_serves_unless_one_is_set(tmp_path: Path) -> None:
    low, high = (load_bundle(write_bundle(tmp_path / str(t), threshold=t)) for t in (0.0, 1.0))
    shot = frame(with_spots(water(0.1)))
    assert judge(low, shot)[0].hit
    assert not judge(high, shot)[0].hit
    assert judge(high, shot, threshold=0.0)[0].hit


def test_a_probability_at_the_threshold_is_a_hit(bundle: Bundle) -> None:
    shot = frame(with_spots(water(0.1)))
    probability = judge(bundle, shot)[0].hit_probability
    assert probability is not None
    assert judge(bundle, shot, threshold=probability)[0].hit


@pytest.mark.parametrize("photons", [0, 4, 5])
def test_a_frame_of_fewer_than_five_photons_saw_no_beam(bundle: Bundle, photons: int) -> None:
    pixels = np.zeros(SHAPE, "u2")
    pixels.flat[np.arange(photons) * 700] = 1
    (result,) = judge(bundle, frame(pixels), threshold=0.0)
    if photons < 5:
        assert (result.decision, result.hit, result.hit_probability) == (Decision.NO_BEAM, False, 0.0)
        assert result.photon_energy_eV is result.camera_length_m is result.camera_length_over_energy_m_per_eV is None
        assert result.estimate_reason == "no beam"
    else:
        assert result.decision == Decision.HIT


def test_a_frame_of_sentinels_saw_no_beam(bundle: Bundle) -> None:
    (result,) = judge(bundle, frame(np.full(SHAPE, 65535, "u2")))
    assert (result.status, result.decision, result.peak_count) == (Status.OK, Decision.NO_BEAM, 0)


@pytest.mark.parametrize(("spots", "indexable"), [(7, False), (8, True)])
def test_enough_peaks_make_a_frame_indexable(bundle: Bundle, spots: int, indexable: bool) -> None:
    (result,) = judge(bundle, frame(with_spots(water(0.02), 80, spots)), indexable_peaks=8)
    assert result.indexable is indexable


# --- the fields of a record -------------------------------------------------------------


def test_peaks_lie_where_the_spots_are(bundle: Bundle) -> None:
    (result,) = judge(bundle, frame(with_spots(water(0.02), 400)))
    assert result.peaks is not None
    # A 2 x 2 spot has its centre half a pixel after its first pixel.
    found = sorted((round(p.ss - 0.5), round(p.fs - 0.5)) for p in result.peaks)
    assert found == sorted(SPOT)
    assert result.peak_count == len(result.peaks)
    assert all(p.intensity_photons == pytest.approx(400, rel=0.05) for p in result.peaks)


def test_resolution_needs_peaks_and_a_header(bundle: Bundle) -> None:
    spots = frame(with_spots(water(0.02)))
    bare = frame(with_spots(water(0.02)), of=series(camera_length_m=None))
    resolutions = [r.resolution_angstrom for r in judge(bundle, spots, bare, frame(water(0.02)))]
    assert resolutions[0] is not None
    assert resolutions[0] > 1.7
    assert resolutions[1:] == [None, None]


def test_estimates_come_from_the_pixels_never_from_the_header(bundle: Bundle) -> None:
    pixels = water(0.5)
    one, other = judge(bundle, frame(pixels), frame(pixels, of=series(camera_length_m=0.35, photon_energy_eV=12000.0)))
    names = [name for name in FrameResult.__dataclass_fields__ if "energy" in name or "camera" in name]
    assert [getattr(one, n) for n in names] == [getattr(other, n) for n in names]


BRIGHT = replace(CONDITIONS[1], flux_photons=1e9)
PARAMETERS = [name for name in FrameResult.__dataclass_fields__ if "energy" in name or "camera" in name]


@pytest.fixture(scope="module")
def water_frames() -> list[Frame]:
    """An EIGER2 X 4M's frames of water at condition 1, every second with spots, and one of bright nothing."""
    rng, rows, columns = np.random.default_rng(2), *detector().shape
    of = series(shape=(rows, columns), beam_center_x_px=columns / 2, beam_center_y_px=rows / 2)
    made = []
    for n in range(4):
        pixels = rng.poisson(image(BRIGHT)).astype("u2")
        for ss, fs in SPOT[: 8 * (n % 2)]:
            pixels[ss * 20 : ss * 20 + 2, fs * 20 : fs * 20 + 2] += np.uint16(40)
        made.append(frame(pixels if n < 3 else np.full((rows, columns), 9, "u2"), n, of))
    return made


def test_a_bundle_with_tables_fits_each_frame_whatever_is_beside_it(water_frames: list[Frame]) -> None:
    fits = load_bundle(DEFAULT_BUNDLE)
    alone = [judge(fits, each)[0] for each in water_frames]
    for batch in (water_frames, water_frames[::-1], water_frames[1:3]):
        outcome = Analyser(fits, CascadeSettings()).process(list(batch))
        assert outcome.results == [alone[each.image_id] for each in batch]
        assert len(outcome.diffuse) == len(batch)
    for result in alone[:3]:
        ratio, sigma = result.camera_length_over_energy_m_per_eV, result.camera_length_over_energy_sigma_m_per_eV
        assert ratio is not None
        assert sigma is not None
        assert abs(ratio - BRIGHT.camera_length_m / BRIGHT.photon_energy_eV) < 4 * sigma
    assert alone[3].photon_energy_eV is None
    assert alone[3].estimate_reason


def test_a_fit_sees_of_the_header_the_beam_centre_alone(water_frames: list[Frame]) -> None:
    fits, first = load_bundle(DEFAULT_BUNDLE), water_frames[0]
    lies = replace(first.series.metadata, camera_length_m=0.3, photon_energy_eV=11000.0)
    (said,) = judge(fits, first)
    (lied,) = judge(fits, replace(first, series=replace(first.series, metadata=lies)))
    assert [getattr(said, name) for name in PARAMETERS] == [getattr(lied, name) for name in PARAMETERS]
    off = replace(first.series.metadata, beam_center_x_px=-300.0)
    (refused,) = judge(fits, replace(first, series=replace(first.series, metadata=off)))
    assert [getattr(refused, name) for name in PARAMETERS] == [None] * len(PARAMETERS)
    assert "off the panel" in (refused.estimate_reason or "")


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_an_estimate_is_null_with_a_reason_where_its_sigma_is_large(tmp_path: Path, scale: float) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "b", sigma_scale=(scale, scale, scale)))
    (result,) = judge(bundle, frame(water(0.5)))
    assert result.camera_length_over_energy_m_per_eV is not None
    assert result.camera_length_over_energy_sigma_m_per_eV is not None
    if scale < 1:
        assert result.photon_energy_eV is not None
        assert result.photon_energy_sigma_eV is not None
        assert result.photon_energy_sigma_eV <= 1000
        assert result.camera_length_sigma_m is not None
        assert result.camera_length_sigma_m <= 0.02
        assert result.estimate_reason is None
    else:
        assert result.photon_energy_eV is result.photon_energy_sigma_eV is None
        assert result.camera_length_m is result.camera_length_sigma_m is None
        assert "photon energy" in (result.estimate_reason or "")
        assert "camera length" in (result.estimate_reason or "")


def test_the_flux_is_the_background_against_the_bundles_reference(bundle: Bundle) -> None:
    (result,) = judge(bundle, frame(water(0.5)))
    reference = bundle.card.reference_background_photons_per_pixel
    assert result.background_photons is not None
    assert result.background_photons == pytest.approx(0.5 * SHAPE[0] * SHAPE[1], rel=0.1)
    assert result.relative_flux == pytest.approx(
        result.background_photons / (SHAPE[0] * SHAPE[1]) / reference, rel=1e-3
    )


def test_only_the_tags_asked_for_are_kept_and_cut_to_length(bundle: Bundle) -> None:
    user_data = {
        "sample": "x" * 10_000,
        "delay_fs": -20.5,
        "laser": True,
        "secret": 1,
        "deep": {"a": [1]},
        "none": None,
    }
    shot = frame(water(0.1), user_data=user_data)
    (result,) = judge(bundle, shot, tags=("sample", "delay_fs", "laser", "deep", "none", "absent"))
    assert result.tags == {"sample": "x" * 200, "delay_fs": -20.5, "laser": True}


@pytest.mark.parametrize("user_data", [None, "text", 5, [1, 2], {}, {"other": 1}])
def test_user_data_without_the_tags_gives_none(bundle: Bundle, user_data: Any) -> None:
    assert judge(bundle, frame(water(0.1), user_data=user_data), tags=("sample",))[0].tags is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 3), (8, 8), (17, 9)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_tiny_images_are_judged(bundle: Bundle, shape: tuple[int, int], dtype: str) -> None:
    of = series(shape=shape)
    for pixels in (np.zeros(shape, dtype), np.full(shape, 9, dtype)):
        (result,) = judge(bundle, frame(pixels, of=of))
        assert result.status == Status.OK
        assert result.hit_probability is not None
        assert math.isfinite(result.hit_probability)


@pytest.mark.parametrize(
    "changes",
    [
        {"camera_length_m": 1e-300},
        {"camera_length_m": 1e300},
        {"photon_energy_eV": 1e-300},
        {"photon_energy_eV": 1e300},
        {"pixel_size_x_m": 1e-300},
        {"pixel_size_x_m": 1e300},
        {"beam_center_x_px": 1e300},
        {"saturation_value": 1},
        {"saturation_value": (1 << 63) - 1},
        {"masks": {CHANNEL: np.zeros((3, 3), "u4")}},
        {"masks": {CHANNEL: np.ones(SHAPE, "u4")}},
        {"camera_length_m": 1e300, "pixel_size_x_m": 1e-300},
    ],
)
def test_a_senseless_header_does_not_stop_analysis(bundle: Bundle, changes: dict[str, Any]) -> None:
    (result,) = judge(bundle, frame(with_spots(water(0.1)), of=series(**changes)))
    assert result.status == Status.OK


# --- channels ---------------------------------------------------------------------------


def two_channels(pixels: np.ndarray[Any, Any], *names: str) -> ImageMessage:
    return ImageMessage(1, 0, {name: image_data(pixels * np.uint16(n + 1)) for n, name in enumerate(names)})


def test_a_channel_that_is_missing_makes_the_frame_undecodable(bundle: Bundle) -> None:
    message = two_channels(water(0.1), "threshold_1")
    (result,) = judge(bundle, make_frame(series(), message, 0.0, "threshold_2"))
    assert (result.status, result.reason, result.channel) == (Status.UNDECODABLE, "missing_channel", "threshold_2")


def test_the_channel_asked_for_is_analysed(bundle: Bundle) -> None:
    message = two_channels(water(0.1), "threshold_1", "threshold_2")
    one, two = (judge(bundle, make_frame(series(), message, 0.0, name))[0] for name in (None, "threshold_2"))
    assert (one.channel, two.channel) == ("threshold_1", "threshold_2")
    assert one.background_photons != two.background_photons


def test_the_difference_is_never_chosen(bundle: Bundle) -> None:
    of = series(channels=(DIFFERENCE, "threshold_2"))
    message = two_channels(water(0.1), DIFFERENCE, "threshold_2")
    assert judge(bundle, make_frame(of, message, 0.0, None))[0].channel == "threshold_2"
    alone = two_channels(water(0.1), DIFFERENCE)
    assert judge(bundle, make_frame(of, alone, 0.0, None))[0].reason == "missing_channel"


def test_an_image_of_another_shape_than_announced_is_undecodable(bundle: Bundle) -> None:
    message = ImageMessage(1, 0, {CHANNEL: image_data(water(0.1, (8, 8)))})
    assert judge(bundle, make_frame(series(), message, 0.0, None))[0].reason == "size_mismatch"


# --- memory -----------------------------------------------------------------------------


def test_buffers_are_kept_for_few_series_only(bundle: Bundle) -> None:
    analyser = Analyser(bundle, CascadeSettings())
    many = [series(n) for n in range(1, 30)]
    for each in many:
        analyser.process([frame(water(0.1), of=each)])
    assert sum(len(analyser.workspaces(each)) for each in many) <= 4
    analyser.forget(many[-1])
    assert analyser.workspaces(many[-1]) == []


def test_the_plan_that_most_series_have_outlives_those_of_odd_ones() -> None:
    plans = PlanCache()

    def plan_of_a_mask(bad: int, ordinal: int) -> FramePlan:
        valid = np.ones(SHAPE, np.uint8)
        valid[0, bad] = 0
        return plans.get(ordinal, Geometry(SHAPE, 25.0, 18.0, 75e-6, 0.15, 7000.0), Validity("gaps", valid), 65000, U16)

    usual = plan_of_a_mask(0, 0)
    for odd in range(1, 12):
        plan_of_a_mask(odd, 2 * odd)
        assert plan_of_a_mask(0, 2 * odd + 1) is usual


def test_the_plan_of_an_odd_series_is_let_go_and_that_of_all_others_stays() -> None:
    cache, usual = PlanCache(), plan()
    odd = weakref.ref(cache.get(1, usual.geometry, Validity("odd", usual.validity.valid), usual.saturation, U16).inside)
    # Many workers ask for the plan of one series.
    kept = {cache.get(n, usual.geometry, usual.validity, usual.saturation, U16) for n in (2, 3, 4) for _ in range(50)}
    assert odd() is not None
    kept.add(cache.get(5, usual.geometry, usual.validity, usual.saturation, U16))
    gc.collect()
    assert odd() is None
    assert len(kept) == 1


def test_the_buffers_for_a_rare_type_of_pixels_are_let_go_when_later_series_have_none(bundle: Bundle) -> None:
    analyser = Analyser(bundle, CascadeSettings())

    def buffers_after(ordinal: int, dtype: str) -> weakref.ref[Any]:
        of = series(ordinal, saturation_value=60_000)
        analyser.process([frame(water(0.5, dtype=dtype), of=of)])
        (workspace,) = analyser.workspaces(of)
        return weakref.ref(workspace.pixels.base)

    usual, odd = buffers_after(1, "u2"), buffers_after(2, "u4")
    same = [buffers_after(ordinal, "u2") for ordinal in range(3, 9)]
    gc.collect()
    assert odd() is None
    assert usual() is not None
    assert all(each() is usual() for each in same)


def test_series_measured_alike_share_buffers_and_not_what_they_covered(bundle: Bundle) -> None:
    analyser = Analyser(bundle, CascadeSettings())
    one, two = series(1), series(2)
    seen = []
    for each, pixels in ((one, water(0.5, seed=1)), (two, water(0.5, seed=2)), (one, water(0.5, seed=3))):
        analyser.process([frame(pixels, of=each)])
        seen.append(pixels != 0)
    assert analyser.workspaces(one) == analyser.workspaces(two)
    assert len(analyser.workspaces(one)) == 1

    def counted(of: Series) -> Any:
        (covered,) = analyser.covered(of)
        return np.unpackbits(covered.seen.view(np.uint8), count=seen[0].size, bitorder="little").reshape(SHAPE)

    np.testing.assert_array_equal(counted(one), seen[0] | seen[2])
    np.testing.assert_array_equal(counted(two), seen[1])
    analyser.forget(one)
    again = series(3)
    analyser.process([frame(water(0.5, seed=4), of=again)])
    assert analyser.workspaces(again) == analyser.workspaces(two)


def test_buffers_go_with_the_plan_of_an_odd_series(bundle: Bundle) -> None:
    analyser = Analyser(bundle, CascadeSettings())
    odd = series(1, shape=(40, 60))
    analyser.process([frame(water(0.5, shape=(40, 60)), of=odd)])
    (space,) = [weakref.ref(each.pixels) for each in analyser.workspaces(odd)]
    analyser.forget(odd)
    for n in range(2, 5):
        analyser.process([frame(water(0.5), of=series(n))])
    assert space() is not None
    analyser.process([frame(water(0.5), of=series(5))])
    gc.collect()
    assert space() is None


def test_a_size_that_cannot_be_allocated_is_refused_before_it_is_tried(bundle: Bundle) -> None:
    huge = ImageData(b"x" * 100, (1 << 31, 1 << 31), np.dtype("u4"), Algorithm.BSLZ4, 4)
    (result,) = judge(bundle, frame(huge, of=series(shape=None)))
    assert result.reason == "size_mismatch"
