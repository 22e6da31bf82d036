"""The GPU's reduction gives what the CPU's does: its kernels, built for the CPU, beside ``Workspace``."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from analyzer import kernels
from analyzer.cuda import reduce
from analyzer.cuda.decode import BatchDecoder, failure
from analyzer.cuda.layout import MOST_CANDIDATES, MOST_CELLS_ACROSS, MOST_CLAIMS, MOST_COUNTS
from analyzer.cuda.reduce import BatchReducer, frame_peaks_of, load
from analyzer.frame_peaks import describe_peaks, frame_peaks
from analyzer.geometry import Geometry, Panels
from analyzer.reduction import MAX_PEAKS, FramePlan, Workspace, make_plan, suspect_pixels
from sim_replay.artefacts import Artefacts
from sim_replay.background import Surroundings
from sim_replay.crystal import proteinase_k
from sim_replay.detector import CONDITIONS, Condition, beam_center_px, eiger2_4m
from sim_replay.diffraction import Sample
from sim_replay.distractors import Distractors
from sim_replay.response import Response
from sim_replay.scene import Scene
from sim_replay.simulation import FrameMaker
from streamer.validity import Validity, sentinel
from tests.analyzer.builders import SHAPE, SPOT, plan, water, with_spots
from tests.analyzer.cuda.decoding import batch_for
from tests.analyzer.cuda.host_build import HostProgram
from tests.analyzer.cuda.host_reduce import (
    InOrder,
    Scrambled,
    assert_as_on_the_cpu,
    assert_equal,
    decoded,
    programs,
    reduced,
)
from tests.support import packed_image

SHAPES = (SHAPE, (37, 51), (64, 64), (129, 130), (8, 8), (3, 3), (1, 1), (1, 200), (200, 1))


@pytest.fixture(params=[InOrder, Scrambled, pytest.param(None, marks=pytest.mark.gpu, id="device")])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels; with loops and blocks in another order, which may change nothing; and on a device."""
    if request.param is not None:
        return programs(request.param)
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return load(cache=tmp_path_factory.getbasetemp() / "kernels")


def brightest(dtype: str) -> int:
    """The largest count that the type and the device's 16 bits hold."""
    return int(min(np.iinfo(dtype).max - 1, MOST_COUNTS))


def kinds(shape: tuple[int, int], dtype: str) -> npt.NDArray[Any]:
    """Frames of everything that frames may be."""
    rng = np.random.default_rng(sum(shape))
    top, most = sentinel(np.dtype(dtype)), brightest(dtype)
    frames = [water(mean, shape, seed, dtype) for seed, mean in enumerate((0.01, 0.1, 0.5, 3.0, 40.0))]
    frames += [np.full(shape, value, dtype) for value in (0, 1, most, top)]
    holes = water(0.1, shape, 5, dtype)
    holes[rng.random(shape) < 0.1] = top
    hot = water(0.3, shape, 6, dtype)
    hot[rng.random(shape) < 0.02] = most
    anything = rng.integers(0, most + 2, shape).astype(dtype)
    once = np.minimum(water(0.2, shape, 7, dtype), 1)
    return np.stack([*frames, holes, hot, anything, once])


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_any_kind_of_frame_of_any_shape_is_as_on_the_cpu(built: Any, dtype: str) -> None:
    for shape in SHAPES:
        assert_as_on_the_cpu(kinds(shape, dtype), plan(shape, dtype), built)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_frames_with_masked_pixels_and_a_beam_beside_the_panel_are_as_on_the_cpu(built: Any, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for shape in SHAPES:
        valid = (rng.random(shape) < 0.9).astype(np.uint8)
        assert_as_on_the_cpu(kinds(shape, dtype), plan(shape, dtype, valid, center=(3.2, -40.0)), built)


def test_a_frame_with_no_valid_pixel_is_as_on_the_cpu(built: Any) -> None:
    assert_as_on_the_cpu(kinds(SHAPE, "u2"), plan(valid=np.zeros(SHAPE, np.uint8)), built)


def test_a_beam_so_far_away_that_bins_do_not_fit_shared_memory_is_as_on_the_cpu(built: Any) -> None:
    far = plan(SHAPE, center=(-7000.0, -20.0))
    assert far.bins.bins > 2304
    assert_as_on_the_cpu(kinds(SHAPE, "u2"), far, built)


def drawn(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> npt.NDArray[Any]:
    """A frame of water with spots and streaks, some of it without data, hot or cut at one count."""
    pixels = rng.poisson(10 ** rng.uniform(-3, 1.3), shape).astype(np.int64)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for _ in range(rng.integers(0, 9)):
        angle, photons = rng.uniform(0, np.pi), 10 ** rng.uniform(0.5, 3.5)
        down, across = y - rng.integers(shape[0]), x - rng.integers(shape[1])
        along = (down * np.cos(angle) + across * np.sin(angle)) / rng.choice([0.5, 0.8, 2.0])
        beside = (across * np.cos(angle) - down * np.sin(angle)) / rng.choice([0.5, 0.8, 8.0, 30.0])
        pixels += rng.poisson(photons * np.exp(-(along**2 + beside**2) / 2))
    pixels = np.minimum(pixels, 1 if rng.random() < 0.3 else brightest(dtype))
    if rng.random() < 0.5:
        pixels[rng.random(shape) < rng.choice([0.001, 0.01, 0.1])] = sentinel(np.dtype(dtype))
    if rng.random() < 0.3:
        pixels[rng.random(shape) < 0.01] = brightest(dtype)
    return pixels.astype(dtype)


@pytest.mark.parametrize("seed", range(12))
def test_random_frames_are_as_on_the_cpu(built: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = ("u1", "u2", "u4")[seed % 3]
    shape = (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
    valid = (rng.random(shape) > rng.choice([0.0, 0.01, 0.2])).astype(np.uint8)
    center = (float(rng.uniform(-20, 100)), float(rng.uniform(-20, 100)))
    saturation = int(rng.choice([sentinel(np.dtype(dtype)) - 1, 30, 100]))
    made = plan(shape, dtype, valid, saturation, center)
    assert_as_on_the_cpu(np.stack([drawn(rng, shape, dtype) for _ in range(120)]), made, built)


RINGS = (129, 130)
"""The shape of frames with rings."""


def with_rings(dtype: str = "u2") -> npt.NDArray[Any]:
    """Frames with smooth rings, round, off the middle and beside what has no data, and with spots on and off them."""
    rng, frames = np.random.default_rng(8), []
    y, x = np.indices(RINGS)
    for photons, sigma, off in ((6.0, 2.0, 0.0), (30.0, 1.0, 0.0), (6.0, 2.5, 3.0), (1.0, 1.5, 1.0), (20.0, 2.0, 40.0)):
        radius = np.hypot(y - 64.0 - off, x - 64.5 + off)
        pixels = rng.poisson(0.02 + photons * np.exp(-(((radius - 45.0) / sigma) ** 2) / 2)).astype(dtype)
        for angle in rng.uniform(0, 2 * np.pi, 5):
            ss, fs = (64.0 + off + 45 * np.sin(angle)) % 120 + 3, (64.5 - off + 45 * np.cos(angle)) % 120 + 3
            pixels[int(ss) : int(ss) + 2, int(fs) : int(fs) + 2] += np.array(12 + 2 * photons, dtype)
        pixels[70:73, :] = sentinel(np.dtype(dtype))
        pixels[rng.random(RINGS) < 0.002] = sentinel(np.dtype(dtype))
        frames.append(pixels)
    return np.stack(frames)


def plan_of_panels() -> FramePlan:
    """Four panels: one upside down, one that leans, one farther away, and a rest that is on none."""
    fs, ss = np.array([75e-6, 0.0, 0.0]), np.array([0.0, 75e-6, 0.0])
    leans = np.array([np.cos(0.1), 0.0, np.sin(0.1)]) * 75e-6
    origin = np.array([(-64.5, -64.0, 0.0), (70.0, -2.0, 0.0), (-64.5, 8.0, 0.0), (4.0, 8.0, 30.0)]) * 75e-6
    panels = Panels(
        [(0, 64, 0, 64), (0, 64, 64, 130), (64, 129, 0, 64), (64, 129, 64, 120)], origin, [fs, -fs, leans, fs],
        [ss, -ss, ss, ss],
    )  # fmt: skip
    geometry = Geometry(RINGS, 64.5, 64.0, 75e-6, 0.15, 7000.0, panels)
    return make_plan(geometry, Validity("test", np.ones(RINGS, np.uint8)), 0xFFFE)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_peaks_on_rings_are_judged_as_on_the_cpu(
    built: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    made = plan(RINGS, dtype)
    found = assert_as_on_the_cpu(with_rings(dtype), made, built)
    monkeypatch.setattr(kernels, "judge_beside", lambda *arguments: arguments[-2])
    workspace = Workspace(made, np.dtype(dtype))
    changed = 0
    for pixels, frame in zip(with_rings(dtype), found, strict=True):
        workspace.pixels[:] = pixels
        changed += len(workspace.reduce().peaks) != len(frame.peaks)
    assert changed >= 3


def test_peaks_on_rings_on_panels_are_judged_as_on_the_cpu(built: Any) -> None:
    made = plan_of_panels()
    frames = with_rings()
    radius = made.geometry.radius_map()
    rng = np.random.default_rng(2)
    for n, sigma in enumerate((1.0, 2.0)):
        frames[n] = rng.poisson(0.02 + 8.0 * np.exp(-(((radius - 45.0) / sigma) ** 2) / 2))
    assert_as_on_the_cpu(frames, made, built)


def scene(number: int, flux_photons: float, water_m: float, dtype: str, **more: Any) -> Scene:
    condition = dataclasses.replace(CONDITIONS[number], flux_photons=flux_photons)
    surroundings = Surroundings(water_thickness_m=water_m)
    sample = Sample(proteinase_k(d_min_angstrom=2.0))
    return Scene(sample, condition, eiger2_4m(dtype), surroundings, hit_fraction=1.0, **more)


def plan_of(scene: Scene) -> FramePlan:
    condition: Condition = scene.condition
    fs, ss = beam_center_px(condition, scene.detector)
    geometry = Geometry(
        scene.detector.shape, fs - 0.5, ss - 0.5, 75e-6, condition.camera_length_m, condition.photon_energy_eV
    )
    valid = (~scene.detector.mask).astype(np.uint8)
    return make_plan(geometry, Validity("gaps", valid), sentinel(np.dtype(scene.detector.dtype)) - 1)


@pytest.mark.parametrize(
    "shown",
    [
        scene(5, 3e8, 1e-4, "uint16"),
        scene(1, 3e8, 1e-4, "uint16", artefacts=Artefacts(hot_pixels=50, dead_pixels=200, dead_reads_sentinel=True)),
        scene(9, 1e9, 3e-4, "uint16", distractors=Distractors(salt=1.0, ice_ring=1.0)),
        scene(1, 3e9, 1e-3, "uint32"),
        scene(3, 3e8, 1e-4, "uint8", response=Response(kind="one_per_pulse")),
    ],
    ids=["condition 5", "faulty pixels", "salt and ice", "bright water", "one a pulse"],
)
def test_simulated_frames_of_a_whole_detector_are_as_on_the_cpu(shown: Scene) -> None:
    maker = FrameMaker(shown, 3)
    frames = np.stack([maker.frame(number).counts.copy() for number in range(2)])
    found = assert_as_on_the_cpu(frames, plan_of(shown), programs())
    assert any(len(frame.peaks) for frame in found)
    assert_as_on_the_cpu(frames[:1], plan_of(shown), programs(Scrambled))


def test_more_candidates_than_the_list_holds_are_cut_as_on_the_cpu(built: Any) -> None:
    shape, rng = (440, 520), np.random.default_rng(1)
    pixels, place = water(0.01, shape), rng.random(shape)
    assert (place < 0.32).sum() > MOST_CANDIDATES
    pixels[place < 0.32] = 20
    pixels[place < 0.04] = rng.integers(30, 4000, (place < 0.04).sum())
    (found,) = assert_as_on_the_cpu(pixels[None], plan(shape), built)
    assert len(found.peaks) == MAX_PEAKS


def test_more_pixels_of_spots_than_the_list_holds_are_as_on_the_cpu() -> None:
    shape = (1040, 1040)
    pixels = np.random.default_rng(1).integers(0, 0xFFFF, shape).astype("u2")
    made = plan(shape)
    assert_as_on_the_cpu(pixels[None], made, programs())
    workspace = Workspace(made, pixels.dtype)
    workspace.pixels[:] = pixels
    workspace.reduce()
    assert workspace._totals[2] == MOST_CLAIMS


def test_a_frame_of_equal_spots_is_as_on_the_cpu(built: Any) -> None:
    y, x = np.indices((400, 408))
    pixels = np.where((y % 10 < 2) & (x % 10 < 2), 40, 0).astype("u2")
    (found,) = assert_as_on_the_cpu(pixels[None], plan(pixels.shape), built)
    assert len(found.peaks) > 1000


def test_a_batch_leaves_nothing_behind_for_the_next() -> None:
    made = plan()
    reducer = BatchReducer(made, 4, programs())
    workspace = Workspace(made, np.dtype("u2"))
    rng = np.random.default_rng(0)
    for frames in (1, 4, 2):
        anything = rng.integers(0, 1 << 16, SHAPE).astype("u2")
        pixels = np.stack([anything, with_spots(water(0.1)), *kinds(SHAPE, "u2")[:2]])
        into = reducer.outputs(decoded(pixels[:frames], made), torch.zeros(4, dtype=torch.int32))
        reducer.reduce(into, frames)
        for number in range(frames):
            assert_equal(workspace, pixels[number], reducer.views(into.results.numpy().reshape(-1), number))


def test_a_frame_with_a_fault_is_passed_over_and_the_others_are_not() -> None:
    frames = np.stack([with_spots(water(0.2)), np.full(SHAPE, 7, "u2"), water(0.05, seed=1)])
    made = plan()
    covered, found = reduced(frames, made, programs(), faults=[0, 5, 0])
    workspace = Workspace(made, np.dtype("u2"))
    for number in (0, 2):
        assert_equal(workspace, frames[number], found[number])
    assert found[1].total_photons == 0
    np.testing.assert_allclose(covered.expected, workspace.coverage.expected)
    np.testing.assert_array_equal(covered.seen, workspace.coverage.seen)


def test_pixels_that_stay_dark_are_suspect_as_on_the_cpu() -> None:
    frames = np.stack([water(3.0, seed=seed) for seed in range(20)])
    frames[:, 30, 40] = 0
    made = plan()
    there, _ = reduced(frames, made, programs())
    workspace = Workspace(made, np.dtype("u2"))
    for pixels in frames:
        workspace.pixels[:] = pixels
        workspace.reduce()
    for covered in (there, workspace.coverage):
        assert suspect_pixels([covered]).tolist() == [30 * SHAPE[1] + 40]


def test_what_is_said_of_each_peak_needs_no_pixels() -> None:
    rng = np.random.default_rng(4)
    frames = np.stack([drawn(rng, SHAPE, "u2") for _ in range(40)])
    frames[0] = 0
    frames[0][SPOT[0]] = 30
    made = plan(valid=(rng.random(SHAPE) < 0.97).astype(np.uint8))
    _, found = reduced(frames, made, programs())
    peaks = 0
    for pixels, frame in zip(frames, found, strict=True):
        expected, said = frame_peaks(made, pixels, frame.peaks, frame.background), frame_peaks_of(frame, made)
        np.testing.assert_array_equal(said.pixel, expected.pixel)
        np.testing.assert_array_equal(said.lone, expected.lone)
        np.testing.assert_array_equal(said.radius_px, expected.radius_px)
        _, _, single = describe_peaks(made, pixels, frame.peaks, frame.background)
        np.testing.assert_array_equal(frame.peak_single, single)
        peaks += len(single)
    assert found[0].peak_single.tolist() == [True]
    assert peaks > 100


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_packed_frames_are_reduced_as_on_the_cpu_and_one_that_does_not_decode_is_passed_over(
    host_decoder: HostProgram, dtype: str
) -> None:
    rng = np.random.default_rng(2)
    valid = (rng.random(SHAPE) < 0.97).astype(np.uint8)
    made = plan(dtype=dtype, valid=valid)
    frames = [drawn(rng, SHAPE, dtype) for _ in range(6)]
    images = [packed_image(pixels, block_bytes=1024) for pixels in frames]
    damaged = bytearray(images[3].data)
    damaged[16:24] = b"\xff" * 8
    images[3] = dataclasses.replace(images[3], data=bytes(damaged))
    decoder = BatchDecoder(SHAPE, np.dtype(dtype), valid, host_decoder)
    batch = batch_for(decoder, 6, host_decoder.device)
    assert [decoder.stage(image, batch) for image in images] == list(range(6))
    into = decoder.outputs(6)
    reducer = BatchReducer(made, 6, programs())
    results = reducer.outputs(into, batch.device_errors)
    batch.upload()
    decoder.decode(batch, into)
    reducer.reduce(results, 6)
    assert [failure(error) is None for error in batch.device_errors.tolist()] == [True, True, True, False, True, True]
    workspace = Workspace(made, np.dtype(dtype))
    for number in (0, 1, 2, 4, 5):
        assert_equal(workspace, frames[number], reducer.views(results.results.numpy().reshape(-1), number))
    np.testing.assert_array_equal(reducer.coverage(results).seen, workspace.coverage.seen)


def test_counts_beyond_16_bits_are_cut_and_said() -> None:
    pixels = with_spots(water(0.1, dtype="u4"))
    pixels[30, 40] = 1_000_000
    made = plan(dtype="u4")
    _, (cut,) = reduced(pixels[None], made, programs())
    assert cut.at_limit == 1
    pixels[30, 40] = MOST_COUNTS
    workspace = Workspace(made, pixels.dtype)
    assert_equal(workspace, pixels, cut)


def test_a_result_is_one_run_of_bytes_and_its_arrays_are_views_of_it() -> None:
    made = plan()
    reducer = BatchReducer(made, 2, programs())
    block = np.zeros(2 * reducer.result_bytes, np.uint8)
    views = reducer.views(block, 1)
    for name in ("zones", "cells", "peaks", "photons", "pixels_counted", "background", "profile", "lit_cells"):
        assert np.shares_memory(getattr(views, name), block) or getattr(views, name).size == 0, name
    assert reducer.result_bytes % 256 == 0
    views.zones[:] = 1
    assert block[: reducer.result_bytes].sum() == 0


def test_a_frame_of_a_4m_detector_takes_as_many_bytes_as_the_module_says() -> None:
    reducer = BatchReducer(plan((2162, 2068)), 1, programs())
    said = reduce.__doc__ or ""
    assert f"{reducer.result_bytes:,} bytes of results" in said
    assert f"{reducer.frame_bytes / 1e6:.1f} MB of buffers" in said


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="8193 pixels wide"):
        BatchReducer(plan((8, 8 * MOST_CELLS_ACROSS + 1)), 1, programs())
    made = plan()
    reducer = BatchReducer(made, 1, programs())
    faults = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="2 frames"):
        reducer.outputs(decoded(np.zeros((2, *SHAPE), "u2"), made), faults)
    with pytest.raises(ValueError, match="words a frame"):
        reducer.outputs(decoded(np.zeros((1, 8, 8), "u2"), plan((8, 8))), faults)
    with pytest.raises(ValueError, match="0 frames"):
        reducer.reduce(reducer.outputs(decoded(np.zeros((1, *SHAPE), "u2"), made), faults), 0)
