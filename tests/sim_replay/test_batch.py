import dataclasses
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch.utils._python_dispatch import TorchDispatchMode

from sim_replay.background import Surroundings, make_background, mix, scales, shadow
from sim_replay.batch import Crop, CropBatch, make_crops
from sim_replay.beam import Beam, gaussian, tabulated, top_hat
from sim_replay.crop import crop_scene
from sim_replay.crystal import proteinase_k
from sim_replay.detector import Condition, Detector
from sim_replay.diffraction import Sample, diffract, footprint, lay_gaussians, random_orientation
from sim_replay.distractors import Distractors
from sim_replay.response import Response, ResponseWorkspace
from sim_replay.scatter import Q_INV_ANGSTROM, water_per_sr
from sim_replay.scene import Scene
from sim_replay.shots import frame_rng, simulate_shot
from sim_replay.truth import Lit, TrueSpots, expect, true_spots

PANEL = Detector(
    "panel with gaps", (560, 620), pixel_size_m=150e-6, gaps_ss=((200, 219),), gaps_fs=((300, 310), (480, 484)),
    bad=((20, 60, 500, 540),),
)  # fmt: skip
CRYSTAL = proteinase_k(d_min_angstrom=2.6)
CONDITION = Condition(7000.0, 0.1, 1e11, beam_center_x_px=321.3, beam_center_y_px=268.8)
LINES = np.linspace(6900.0, 7100.0, 41)

CASES = {
    "the default beam": (Sample(CRYSTAL), Beam()),
    "a sharp crystal in a narrow band": (Sample(CRYSTAL, mosaicity_deg=0.01), Beam(spectrum=top_hat(0.002))),
    "a mosaic crystal in a wide band": (Sample(CRYSTAL, mosaicity_deg=0.3), Beam(spectrum=top_hat(0.03))),
    "a gaussian spectrum": (Sample(CRYSTAL, mosaicity_deg=0.1), Beam(spectrum=gaussian(0.02))),
    "a divergent beam": (Sample(CRYSTAL, mosaicity_deg=0.02), Beam(divergence_rad=2e-3)),
    "a strained small crystal": (
        Sample(CRYSTAL, size_m=2e-6, strain=3e-3, offset_m=(1e-6, 0.0)),
        Beam(polarisation_deg=30.0, polarisation_fraction=0.7, profile="gaussian"),
    ),
    "a spiky spectrum": (
        Sample(CRYSTAL, mosaicity_deg=0.05),
        Beam(spectrum=tabulated(LINES, 0.1 + np.sin(LINES / 7.0) ** 2)),
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads spin where other tests use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def turns(count: int, seed: int = 1) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [random_orientation(rng) for _ in range(count)]


def whole(crops: list[Crop], **settings: Any) -> CropBatch:
    return make_crops(crops, PANEL, PANEL.shape, **settings)


def expected_bragg(laid: Lit) -> NDArray[np.float64]:
    pixels = PANEL.shape[0] * PANEL.shape[1]
    return np.bincount(laid.footprint.index, laid.footprint.photons, pixels).reshape(PANEL.shape)


def reference(
    sample: Sample, condition: Condition, turn: NDArray[np.float64], surroundings: Surroundings | None = None
) -> Lit:
    stop = None if surroundings is None else shadow(condition, PANEL, surroundings)
    spots = diffract(sample, condition, PANEL, turn)
    return Lit(spots.hkl, spots.partiality, footprint(spots, condition, PANEL, stop))


def reference_background(condition: Condition, surroundings: Surroundings, extra: Any = None) -> NDArray[np.float32]:
    background = make_background(condition, PANEL, surroundings, extra)
    return mix(background, scales(condition, surroundings), np.zeros(PANEL.shape, dtype=np.float32))


def of_item(batch: CropBatch, item: int) -> list[NDArray[np.float64]]:
    mine = batch.spots.item == item
    columns = (batch.spots.fs, batch.spots.ss, batch.spots.photons, batch.spots.counts)
    return [column[mine].cpu().numpy() for column in columns]


def assert_same_spots(
    batch: CropBatch, item: int, spots: TrueSpots, least_photons: float, of_counts: float = 1e-3
) -> None:
    """Of all spots above least_photons. Those at the edge of a gap must be there, but what it cuts off depends on a
    spot's shape, which is less exact."""
    fs, ss, photons, counts = of_item(batch, item)
    from_edge = distance_transform_edt(np.pad(~PANEL.mask, 1))
    bright = np.flatnonzero(spots.photons > least_photons)
    clear = 0
    for i in bright:
        j = np.argmin(np.hypot(fs - spots.fs[i], ss - spots.ss[i]))
        away = math.hypot(fs[j] - spots.fs[i], ss[j] - spots.ss[i])
        if from_edge[round(spots.ss[i]) + 1, round(spots.fs[i]) + 1] > 25.0:
            clear += 1
            assert away < 0.05
            assert photons[j] == pytest.approx(spots.photons[i], rel=1e-3)
            assert counts[j] == pytest.approx(spots.counts[i], rel=of_counts)
        else:
            assert away < 0.5
    assert clear > 3
    assert np.sum(photons > 1.05 * least_photons) <= len(bright) <= np.sum(photons > 0.95 * least_photons)


@pytest.mark.parametrize("case", CASES)
def test_spots_are_those_of_the_reference(case: str) -> None:
    sample, beam = CASES[case]
    condition = dataclasses.replace(CONDITION, beam=beam)
    orientations = turns(3)
    batch = whole([Crop(condition, Surroundings(), 0, 0, ((sample, turn),)) for turn in orientations])
    for item, turn in enumerate(orientations):
        laid = reference(sample, condition, turn)
        image = expected_bragg(laid)
        assert float(batch.bragg[item].sum()) == pytest.approx(image.sum(), rel=1e-3)
        assert np.abs(batch.bragg[item].numpy() - image).sum() < 0.02 * image.sum()
        spots = true_spots((laid,), (laid.footprint.photons,), PANEL)
        # Fainter ones lose light in the reference, which leaves out pixels below 1e-5 photons.
        assert_same_spots(batch, item, spots, 20.0)


@pytest.mark.parametrize("case", CASES)
def test_a_window_shows_what_the_whole_frame_has_there(case: str) -> None:
    sample, beam = CASES[case]
    condition = dataclasses.replace(CONDITION, beam=beam)
    turn = turns(1, seed=2)[0]
    windows = [(0, 0), (150, 230), (304, 364), (200, 0), (100, 300)]
    one = whole([Crop(condition, Surroundings(), 0, 0, ((sample, turn),))])
    crops = [Crop(condition, Surroundings(), ss0, fs0, ((sample, turn),)) for ss0, fs0 in windows]
    batch = make_crops(crops, PANEL, (256, 240))
    for item, (ss0, fs0) in enumerate(windows):
        cut = np.s_[0, ss0 : ss0 + 256, fs0 : fs0 + 240]
        # A box cut by the window's edge may take other sizes of pieces: a spot's shape moves by less than its photons.
        np.testing.assert_allclose(batch.bragg[item].sum(), one.bragg[cut].sum(), rtol=1e-4)
        np.testing.assert_allclose(batch.bragg[item], one.bragg[cut], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(batch.background[item], one.background[cut], rtol=5e-5)
        assert torch.equal(batch.valid[item], one.valid[cut])


SURROUNDINGS = {
    "water": Surroundings(),
    "cold water": Surroundings(water_thickness_m=30e-6, water_temperature_K=280.0),
    "everything": Surroundings(
        air_path_m=0.05, helium_path_m=0.2, capillary_wall_m=20e-6, film_thickness_m=25e-6, flat_photons_per_pixel=0.01
    ),
    "a beam stop": Surroundings(beam_stop_radius_m=1e-3, beam_stop_arm_width_m=2e-4, beam_stop_arm_deg=130.0),
    "a stop without arm": Surroundings(beam_stop_radius_m=1e-3, flat_photons_per_pixel=0.1),
    "nothing": Surroundings(water_thickness_m=0.0),
}


def test_the_background_is_that_of_the_reference() -> None:
    conditions = [
        CONDITION,
        Condition(9300.0, 0.31, 1e9, beam_center_x_px=-50.0, beam_center_y_px=900.0),
        dataclasses.replace(CONDITION, beam=Beam(polarisation_deg=25.0, polarisation_fraction=0.5)),
    ]
    extra = water_per_sr(1e-4) * np.exp(-((Q_INV_ANGSTROM - 1.5) ** 2))
    crops, expected = [], []
    for condition in conditions:
        for surroundings in SURROUNDINGS.values():
            more = None if len(crops) % 4 else extra
            crops.append(Crop(condition, surroundings, 0, 0, extra_per_sr=more))
            expected.append(reference_background(condition, surroundings, more))
    batch = whole(crops)
    for item, image in enumerate(expected):
        np.testing.assert_allclose(batch.background[item], image, rtol=1e-4, atol=1e-4 * image.mean())
    assert torch.equal(batch.valid, torch.from_numpy(~PANEL.mask).expand_as(batch.valid))
    assert not torch.any(batch.hit)
    assert not torch.any(batch.bragg)
    assert len(batch.spots) == 0


def test_a_beam_stop_dims_spots() -> None:
    surroundings = Surroundings(beam_stop_radius_m=8e-3, beam_stop_arm_width_m=2e-3)
    sample, turn = Sample(CRYSTAL), turns(1)[0]
    laid = reference(sample, CONDITION, turn, surroundings)
    full = whole([Crop(CONDITION, Surroundings(), 0, 0, ((sample, turn),))])
    batch = whole([Crop(CONDITION, surroundings, 0, 0, ((sample, turn),))])
    assert float(batch.bragg.sum()) == pytest.approx(laid.footprint.photons.sum(), rel=1e-3)
    assert float(batch.bragg.sum()) < 0.98 * float(full.bragg.sum())


@pytest.mark.parametrize("pulses", [1, 20])
def test_pixels_that_count_once_a_pulse_give_the_counts_of_the_reference(pulses: int) -> None:
    response = Response("one_per_pulse", pulses=pulses)
    surroundings = Surroundings()
    sample, beam = CASES["a gaussian spectrum"]
    condition = dataclasses.replace(CONDITION, flux_photons=1e9, beam=beam)
    frame = dataclasses.replace(condition, flux_photons=1e9 * pulses)
    turn = turns(1)[0]
    crops = [
        Crop(condition, surroundings, 0, 0, ((sample, turn),), response=response),
        Crop(frame, surroundings, 0, 0, ((sample, turn),)),
    ]
    batch = whole(crops)
    laid = reference(sample, frame, turn)
    image = reference_background(frame, surroundings)
    for item, law in enumerate((response, Response())):
        truth = expect((laid.footprint,), image, 1.0, law, PANEL, ResponseWorkspace())
        assert_same_spots(batch, item, true_spots((laid,), truth.counts, PANEL), 20.0, of_counts=0.02)
        assert float(batch.log_likelihood_ratio[item]) == pytest.approx(truth.log_likelihood_ratio, rel=5e-3)


def test_a_batch_agrees_with_a_simulated_shot() -> None:
    turn = turns(1, seed=5)[0]
    scene = Scene(
        sample=Sample(CRYSTAL, mosaicity_deg=0.1), condition=dataclasses.replace(CONDITION, flux_photons=1e10),
        detector=PANEL, hit_fraction=1.0, fixed_orientation=tuple(turn.reshape(-1)),
    )  # fmt: skip
    truth = simulate_shot(scene, frame_rng(1, 0)).truth
    batch = whole([Crop(scene.condition, scene.surroundings, 0, 0, ((scene.sample, turn),))])
    assert bool(batch.hit[0])
    assert float(batch.bragg.sum()) == pytest.approx(truth.bragg_photons, rel=1e-3)
    assert float(batch.background.sum()) == pytest.approx(truth.background_photons, rel=1e-4)
    assert float(batch.log_likelihood_ratio[0]) == pytest.approx(truth.log_likelihood_ratio, rel=5e-3)
    assert_same_spots(batch, 0, truth.spots, 20.0)


def test_salts_count_as_background() -> None:
    sample, salt, turn = Sample(CRYSTAL), Sample(CRYSTAL, mosaicity_deg=0.2), turns(2)
    dark = Surroundings(water_thickness_m=0.0)
    alone = whole([Crop(CONDITION, dark, 0, 0, ((sample, turn[0]),)), Crop(CONDITION, dark, 0, 0, ((salt, turn[1]),))])
    both = whole(
        [
            Crop(CONDITION, dark, 0, 0, ((sample, turn[0]),), ((salt, turn[1]),)),
            Crop(CONDITION, dark, 0, 0, (), ((salt, turn[1]),)),
            Crop(CONDITION, dark, 0, 0, ((sample, turn[0]), (salt, turn[1]))),
        ]
    )
    assert both.hit.tolist() == [True, False, True]
    assert torch.equal(both.bragg[0], alone.bragg[0])
    assert torch.equal(both.background[0], alone.bragg[1])
    assert torch.equal(both.background[1], alone.bragg[1])
    torch.testing.assert_close(both.bragg[2], alone.bragg.sum(0))
    for mine, same in zip(of_item(both, 0), of_item(alone, 0), strict=True):
        np.testing.assert_allclose(mine, same, rtol=1e-9)
    assert float(both.log_likelihood_ratio[0]) < float(alone.log_likelihood_ratio[0])
    assert float(both.log_likelihood_ratio[1]) == 0.0


def test_grains_are_round_spots_of_the_background() -> None:
    rng = np.random.default_rng(6)
    grains = np.column_stack(
        [rng.uniform(-20, 640, 80), rng.uniform(-20, 580, 80), rng.uniform(1, 100, 80), rng.uniform(0.4, 8.0, 80)]
    )
    dark = Surroundings(water_thickness_m=0.0)
    laid = lay_gaussians(*np.ascontiguousarray(grains.T), PANEL)
    image = np.bincount(laid.index, laid.photons, PANEL.shape[0] * PANEL.shape[1]).reshape(PANEL.shape)
    batch = make_crops([Crop(CONDITION, dark, 0, 0), Crop(CONDITION, dark, 150, 230, grains=grains)], PANEL, (256, 240))
    np.testing.assert_allclose(batch.background[1], image[150:406, 230:470], rtol=1e-3, atol=1e-4)
    assert not torch.any(batch.background[0])
    assert not torch.any(batch.hit)
    assert len(batch.spots) == 0


def test_crystals_of_one_list_keep_their_own_cells_and_intensities() -> None:
    stretched = dataclasses.replace(CRYSTAL, cell=(60.0, 63.0, 120.0, 85.0, 95.0, 101.0))
    bright = dataclasses.replace(CRYSTAL, intensity=CRYSTAL.intensity * 3.0)
    other = proteinase_k(seed=4, d_min_angstrom=4.0)
    samples = [Sample(crystal, mosaicity_deg=0.1) for crystal in (CRYSTAL, stretched, bright, other)]
    turn = turns(1)[0]
    batch = whole([Crop(CONDITION, Surroundings(), 0, 0, ((sample, turn),)) for sample in samples])
    for item, sample in enumerate(samples):
        total = reference(sample, CONDITION, turn).footprint.photons.sum()
        assert float(batch.bragg[item].sum()) == pytest.approx(total, rel=1e-3)


def test_spectra_of_different_lengths_go_together() -> None:
    turn = turns(1)[0]
    crops = [
        Crop(dataclasses.replace(CONDITION, beam=beam), Surroundings(), 0, 0, ((sample, turn),))
        for sample, beam in CASES.values()
    ]
    together = whole(crops)
    for item, crop in enumerate(crops):
        alone = whole([crop])
        np.testing.assert_allclose(together.bragg[item], alone.bragg[0], rtol=1e-3, atol=1e-2)
        assert float(together.bragg[item].sum()) == pytest.approx(float(alone.bragg.sum()), rel=1e-6)


def test_counts_are_poisson_and_stop_at_the_largest() -> None:
    condition = dataclasses.replace(CONDITION, flux_photons=3e9)
    crops = [Crop(condition, Surroundings(), 120, 250)] * 200
    batch = make_crops(crops, PANEL, (32, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(batch.counts, batch.counts.round())
    mean, variance = batch.counts.mean(0)[batch.valid[0]], batch.counts.var(0)[batch.valid[0]]
    expected = batch.background[0][batch.valid[0]]
    assert float(expected.min()) > 0.1
    z = (mean - expected) / (expected / 200).sqrt()
    assert abs(float(z.mean())) < 5.0 / math.sqrt(len(z))
    assert float(z.std()) == pytest.approx(1.0, abs=0.1)
    assert float((variance / expected).mean()) == pytest.approx(1.0, abs=0.02)
    small = dataclasses.replace(PANEL, dtype="uint8")
    bright = [Crop(dataclasses.replace(CONDITION, flux_photons=1e14), Surroundings(), 120, 250)]
    assert float(make_crops(bright, small, (32, 40)).counts.max()) == 254.0


@pytest.mark.parametrize("pulses", [1, 7])
def test_pixels_that_count_once_a_pulse_count_as_a_binomial(pulses: int) -> None:
    condition = dataclasses.replace(CONDITION, flux_photons=2e9)
    crops = [
        Crop(condition, Surroundings(), 120, 250, response=Response("one_per_pulse", pulses=pulses)),
        Crop(condition, Surroundings(), 120, 250),
    ] * 100
    batch = make_crops(crops, PANEL, (32, 40), generator=torch.Generator().manual_seed(2))
    counts, valid = batch.counts[::2], batch.valid[0]
    assert float(counts.max()) <= pulses
    expected = pulses * -torch.expm1(-batch.background[0] / pulses)
    total, sigma = float((100 * expected)[valid].sum()), float((100 * expected)[valid].sum().sqrt())
    assert abs(float(counts.sum()) - total) < 5.0 * sigma
    total = float((100 * batch.background[1])[valid].sum())
    assert abs(float(batch.counts[1::2].sum()) - total) < 5.0 * math.sqrt(total)


def a_mix(count: int) -> list[Crop]:
    rng = np.random.default_rng(8)
    crops = []
    for i, turn in enumerate(turns(count, seed=9)):
        sample, beam = list(CASES.values())[i % len(CASES)]
        condition = dataclasses.replace(CONDITION, flux_photons=10 ** rng.uniform(8, 11), beam=beam)
        place = int(rng.integers(0, 560 - 128)), int(rng.integers(0, 620 - 96))
        response = Response("one_per_pulse") if i % 4 == 3 else Response()
        crops.append(Crop(condition, Surroundings(), *place, ((sample, turn),) if i % 2 else (), response=response))
    return crops


def test_the_same_generator_state_gives_the_same_counts() -> None:
    crops = a_mix(24)
    first, again, other = (
        make_crops(crops, PANEL, (128, 96), generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.counts, again.counts)
    assert torch.equal(first.spots.fs, again.spots.fs)
    assert not torch.equal(first.counts, other.counts)
    assert torch.all(first.counts[~first.valid] == 0.0)


def test_a_training_loop_with_coarse_products_gets_the_same_crops() -> None:
    crops = a_mix(24)
    fine = make_crops(crops, PANEL, (128, 96))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = make_crops(crops, PANEL, (128, 96))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(coarse.bragg, fine.bragg)


def test_threads_do_not_change_the_result() -> None:
    crops = a_mix(24)
    one = make_crops(crops, PANEL, (128, 96), generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(2)
    two = make_crops(crops, PANEL, (128, 96), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(two.bragg, one.bragg, rtol=1e-6, atol=1e-6)
    assert float((two.counts != one.counts).float().mean()) < 1e-5


def test_spots_stand_by_window_and_falling_photons() -> None:
    spots = make_crops(a_mix(24), PANEL, (128, 96)).spots
    assert len(spots) > 20
    assert torch.all(spots.item.diff() >= 0)
    assert torch.all((spots.photons.diff() <= 0) | (spots.item.diff() > 0))
    assert float(spots.photons.min()) >= 0.5
    assert float(spots.fs.min()) >= 0.0
    assert float(spots.fs.max()) <= 95.0
    assert float(spots.ss.max()) <= 127.0


class LiveMemory(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.owners: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                key = storage.data_ptr()
                self.sizes[key] = storage.nbytes()
                self.owners[key] = self.owners.get(key, 0) + 1
                weakref.finalize(each, self.dropped, key)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out

    def dropped(self, key: int) -> None:
        self.owners[key] -= 1
        if self.owners[key] == 0:
            del self.owners[key], self.sizes[key]


def test_memory_stays_within_its_bound_and_does_not_change_the_result() -> None:
    crops = a_mix(48)
    result_bytes = 48 * 128 * 96 * 13
    lists_bytes = 2 * len(CRYSTAL.hkl) * (8 * 3 + 4 * 10)
    with LiveMemory() as roomy:
        free = make_crops(crops, PANEL, (128, 96))
    with LiveMemory() as tight:
        bound = make_crops(crops, PANEL, (128, 96), memory_bytes=1 << 22)
    assert roomy.peak > tight.peak
    assert tight.peak < result_bytes + lists_bytes + (1 << 22)
    torch.testing.assert_close(bound.bragg, free.bragg, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bound.background, free.background)
    torch.testing.assert_close(bound.spots.photons, free.spots.photons)
    torch.testing.assert_close(bound.spots.fs, free.spots.fs)


def test_a_pulse_without_photons_is_no_hit() -> None:
    crop = Crop(dataclasses.replace(CONDITION, flux_photons=0.0), Surroundings(), 0, 0, ((Sample(CRYSTAL), np.eye(3)),))
    batch = make_crops([crop], PANEL)
    assert not bool(batch.hit[0])
    assert not torch.any(batch.counts)
    assert len(batch.spots) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ss0": -1}, "crop 1: ss0 -1 and 128 pixels from there leave the panel of 560"),
        ({"fs0": 600}, "crop 1: fs0 600 and 96 pixels from there leave the panel of 620"),
        ({"crystals": ((Sample(CRYSTAL), np.eye(2)),)}, r"crop 1: an orientation is a \(3, 3\) matrix, not \(2, 2\)"),
        ({"response": Response("retrigger")}, "crop 1: response 'retrigger' with a charge cloud of 0 m cannot be made"),
        ({"response": Response("one_per_pulse", charge_sigma_m=8e-6)}, "cloud of 8e-06 m cannot be made in a batch"),
        ({"grains": np.ones((2, 3))}, "crop 1: grains must be rows of four finite numbers"),
        ({"grains": np.zeros((1, 4))}, "crop 1: grains must be rows of four finite numbers"),
        ({"extra_per_sr": np.ones(3)}, "crop 1: extra_per_sr must be 2001 finite numbers"),
        ({"extra_per_sr": np.full(2001, -1.0)}, "crop 1: extra_per_sr must be 2001 finite numbers"),
        (
            {"surroundings": Surroundings(beam_stop_radius_m=1e-3, beam_stop_distance_m=0.2)},
            "crop 1: beam_stop_distance_m is 0.2, behind the detector at 0.1 m",
        ),
    ],
)
def test_a_crop_that_cannot_be_made_is_named(settings: dict[str, Any], words: str) -> None:
    good = Crop(CONDITION, Surroundings(), 0, 0)
    with pytest.raises(ValueError, match=words):
        make_crops([good, dataclasses.replace(good, **settings)], PANEL, (128, 96))


def test_no_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="no crops to make"):
        make_crops([], PANEL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_expects_what_a_cpu_expects() -> None:
    crops = a_mix(24)
    cpu, gpu = (make_crops(crops, PANEL, (128, 96), device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu.bragg.cpu(), cpu.bragg, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gpu.background.cpu(), cpu.background, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gpu.spots.photons.cpu(), cpu.spots.photons, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gpu.spots.fs.cpu(), cpu.spots.fs, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(gpu.log_likelihood_ratio.cpu(), cpu.log_likelihood_ratio, rtol=1e-3, atol=1e-6)
    first, again = (
        make_crops(crops, PANEL, (128, 96), device="cuda", generator=torch.Generator("cuda").manual_seed(1)).counts
        for _ in range(2)
    )
    assert torch.equal(first, again)


@pytest.mark.parametrize("window", [(0, 0, 560, 620), (150, 230, 256, 240), (304, 364, 256, 256), (10, 490, 64, 64)])
def test_a_cropped_scene_expects_the_cut_of_the_whole_frame(window: tuple[int, int, int, int]) -> None:
    ss0, fs0, height, width = window
    surroundings = Surroundings(air_path_m=0.05, beam_stop_radius_m=2e-3, flat_photons_per_pixel=0.01)
    scene = Scene(
        sample=Sample(CRYSTAL, mosaicity_deg=0.1), condition=CONDITION, detector=PANEL, surroundings=surroundings
    )
    part = crop_scene(scene, *window)
    cut = np.s_[ss0 : ss0 + height, fs0 : fs0 + width]
    assert np.array_equal(part.detector.mask, PANEL.mask[cut])
    turn = turns(1)[0]

    def expected(seen: Scene) -> NDArray[np.float64]:
        stop = shadow(seen.condition, seen.detector, surroundings)
        spots = diffract(seen.sample, seen.condition, seen.detector, turn)
        laid = footprint(spots, seen.condition, seen.detector, stop)
        rows, columns = seen.detector.shape
        diffuse = make_background(seen.condition, seen.detector, surroundings)
        image = mix(diffuse, scales(seen.condition, surroundings), np.zeros((rows, columns), dtype=np.float32))
        return np.bincount(laid.index, laid.photons, rows * columns).reshape(rows, columns) + image

    np.testing.assert_allclose(expected(part), expected(scene)[cut], rtol=1e-5, atol=1e-6)


def test_a_cropped_scene_makes_a_shot_with_full_truth() -> None:
    scene = Scene(
        sample=Sample(CRYSTAL), condition=CONDITION, detector=PANEL, hit_fraction=1.0,
        distractors=Distractors(), fixed_orientation=tuple(np.eye(3).reshape(-1)),
    )  # fmt: skip
    shot = simulate_shot(crop_scene(scene, 100, 200, 128, 160), frame_rng(1, 0))
    assert shot.counts.shape == (128, 160)
    assert np.all(shot.counts[100:119] == PANEL.sentinel)
    batch = make_crops([Crop(CONDITION, Surroundings(), 100, 200, ((scene.sample, np.eye(3)),))], PANEL, (128, 160))
    assert float(batch.bragg.sum()) == pytest.approx(shot.truth.bragg_photons, rel=1e-3)


@pytest.mark.parametrize("window", [(-1, 0, 8, 8), (0, 613, 8, 8), (553, 0, 8, 8), (0, 0, 0, 8), (0, 0, 8, 621)])
def test_a_window_off_the_panel_is_refused(window: tuple[int, int, int, int]) -> None:
    scene = Scene(sample=Sample(CRYSTAL), condition=CONDITION, detector=PANEL)
    with pytest.raises(ValueError, match="is not inside the panel of 560 x 620"):
        crop_scene(scene, *window)
