"""The learned peak finder: its network, the tiles it looks at, what it makes of an answer, and hostile frames."""

import itertools
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyzer import peak_tiles
from analyzer.bundle import CARD, DEFAULT_BUNDLE, BadBundle, PeaksCard, load_bundle, save_weights
from analyzer.kernels import CELL, PEAK_DTYPE
from analyzer.learned_finder import LearnedFinder, Tiler, learned_finder
from analyzer.peak_network import PeakNetwork
from analyzer.reduction import Reduced, Workspace
from analyzer.tile_layout import CHANNELS, FACTS, HEATS, MARGIN, MAX_TILES, OUTPUTS, TILE
from tests.analyzer.builders import water, workspace

THRESHOLD = 11.0


class BrightPixels(nn.Module):
    """A stand-in that is sure where a pixel stands far above what is expected, and points to its heat's middle."""

    def forward(self, tiles: Tensor, facts: Tensor) -> Tensor:
        middle = tiles[:, 1:2, MARGIN:-MARGIN, MARGIN:-MARGIN]
        heat = 4.0 * (nn.functional.max_pool2d(middle, 2) - 1.5)
        return torch.cat([heat, torch.zeros(len(tiles), OUTPUTS - 1, HEATS, HEATS)], 1)


def finder(threshold: float = 0.5, network: nn.Module | None = None) -> LearnedFinder:
    return LearnedFinder(network or BrightPixels(), threshold, THRESHOLD)


def reduced(pixels: np.ndarray[Any, Any], **changes: Any) -> tuple[Workspace, Reduced]:
    made = workspace(pixels, **changes)
    return made, made.reduce()


def chosen(made: Workspace, left: Reduced, threshold: float = THRESHOLD) -> set[tuple[int, int]]:
    tiler = Tiler(threshold)
    count = tiler.choose(made, left)
    across = left.significance.shape[2]
    return {(int(cell) // across, int(cell) % across) for cell in tiler.cells[:count]}


# --- the network ------------------------------------------------------------------------


def test_the_network_is_small_and_answers_for_each_two_by_two_pixels() -> None:
    network = PeakNetwork()
    answer = network(torch.zeros(3, CHANNELS, TILE, TILE), torch.zeros(3, FACTS))
    assert answer.shape == (3, OUTPUTS, HEATS, HEATS)
    assert 20_000 <= sum(each.numel() for each in network.parameters()) <= 60_000


def test_an_untrained_heat_is_low() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        heat = torch.sigmoid(PeakNetwork()(torch.zeros(1, CHANNELS, TILE, TILE), torch.zeros(1, FACTS))[:, 0])
    assert float(heat.max()) < 0.05


def test_an_untrained_heat_goes_by_what_windows_of_counts_say() -> None:
    torch.manual_seed(0)
    tiles = torch.zeros(1, CHANNELS, TILE, TILE)
    tiles[0, 2, MARGIN + 3, MARGIN + 5] = 2.5  # ten standard deviations
    with torch.inference_mode():
        heat = torch.sigmoid(PeakNetwork()(tiles, torch.zeros(1, FACTS))[0, 0])
    assert divmod(int(heat.argmax()), HEATS) == (1, 2)
    assert float(heat.max()) > 0.5


def test_offsets_never_leave_the_neighbouring_heats() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        answer = PeakNetwork()(1e3 * torch.randn(20, CHANNELS, TILE, TILE), torch.randn(20, FACTS))
    assert float(answer[:, 1:3].abs().max()) <= 1.0


def test_what_is_moved_by_two_pixels_is_answered_one_heat_further() -> None:
    torch.manual_seed(1)
    wide = torch.randn(1, CHANNELS, TILE + 2, TILE)
    facts = torch.randn(1, FACTS)
    with torch.inference_mode():
        network = PeakNetwork().eval()
        first, second = network(wide[:, :, :TILE].contiguous(), facts), network(wide[:, :, 2:].contiguous(), facts)
    torch.testing.assert_close(first[:, :, 1:], second[:, :, :-1], rtol=1e-4, atol=1e-5)


# --- tiles ------------------------------------------------------------------------------


def test_nothing_is_looked_at_where_there_is_nothing() -> None:
    assert chosen(*reduced(np.zeros((64, 64), "u2"))) == set()


@pytest.mark.parametrize("at", list(itertools.product((0, 31, 63, 99), (0, 40, 77))))
def test_a_spot_anywhere_is_in_the_middle_of_a_tile(at: tuple[int, int]) -> None:
    pixels = np.zeros((100, 78), "u2")
    pixels[at] = 20
    assert (at[0] // CELL, at[1] // CELL) in chosen(*reduced(pixels))


def test_a_spot_beside_a_gap_is_looked_at_and_the_gap_is_not() -> None:
    valid = np.ones((64, 64), np.uint8)
    valid[:, 24:40] = 0
    pixels = np.where(valid, 0, 65535).astype("u2")
    pixels[20, 23] = pixels[44, 40] = 20
    cells = chosen(*reduced(pixels, valid=valid))
    assert {(2, 2), (5, 5)} <= cells
    assert not any(24 <= column * CELL < 40 for _, column in cells)


def test_a_spot_on_the_seam_is_looked_at_from_both_sides() -> None:
    pixels = np.zeros((64, 64), "u2")
    pixels[31, 31] = 20
    assert chosen(*reduced(pixels)) == {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_no_more_tiles_than_there_is_room_for_and_the_next_frame_is_not_touched_by_it() -> None:
    rng = np.random.default_rng(3)
    pixels = np.zeros((512, 512), "u2")
    pixels[4::8, 4::8] = rng.integers(20, 400, (64, 64))
    made, left = reduced(pixels)
    tiler = Tiler(THRESHOLD)
    assert 0 < tiler.choose(made, left) <= MAX_TILES
    kept = {int(cell) for cell in tiler.cells}
    strongest = int(np.argmax(np.maximum(left.significance[1], left.significance[2])))
    assert strongest in kept
    made.pixels[:] = 0
    assert tiler.choose(made, made.reduce()) == 0


def test_of_too_many_equal_cells_the_first_are_looked_at() -> None:
    pixels = np.zeros((640, 640), "u2")
    pixels[4::16, 4::16] = 20
    pixels[4::8, 4::8] += 20
    pixels[100, 100] = 5000
    made, left = reduced(pixels)
    tiler = Tiler(0.5)
    assert tiler.choose(made, left) == MAX_TILES
    assert (100 // 8) * 80 + 100 // 8 in {int(cell) for cell in tiler.cells}
    assert len(set(tiler.cells.tolist())) == MAX_TILES


def test_what_the_network_sees_is_what_is_there() -> None:
    pixels = np.zeros((64, 64), "u2")
    pixels[36, 36], pixels[36, 37], pixels[30, 40] = 9, 4, 65535
    made, left = reduced(pixels)
    tiler = Tiler(THRESHOLD)
    count = tiler.choose(made, left)
    inputs, facts = np.zeros((count, CHANNELS, TILE, TILE), "f4"), np.zeros((count, FACTS), "f4")
    tiler.fill(made, left, 0, count, inputs, facts)
    (place,) = np.flatnonzero(tiler.cells[:count] == 4 * 8 + 4)
    y, x = 36 - 24, 36 - 24
    mean = float(made.background[made.plan.bins.bin_of[36 * 64 + 36]])
    assert inputs[place, 0, y, x] == pytest.approx(0.5 * math.log1p(9))
    root = math.sqrt(2.0 * (mean - 9.0 + 9.0 * math.log(9.0 / mean)))
    assert inputs[place, 1, y, x] == pytest.approx(0.25 * root, rel=1e-5)
    around = made.plan.bins.bin_of.reshape(64, 64)[35:38, 35:38]
    nine = float(made.background[around].sum())
    root = math.sqrt(2.0 * (nine - 13.0 + 13.0 * math.log(13.0 / nine)))
    assert inputs[place, 2, y, x] == pytest.approx(0.25 * root, rel=1e-5)
    assert inputs[place, :, 30 - 24, 40 - 24].tolist() == [0.0] * CHANNELS  # a pixel without data
    assert inputs[place, 3].sum() == TILE**2 - 1
    assert facts[place, 2] == pytest.approx((TILE**2 - 1) / TILE**2)
    assert facts[place, 5] == pytest.approx(math.log1p(9) / 8)


def test_what_lies_off_the_panel_is_as_invalid_as_a_gap() -> None:
    pixels = np.zeros((40, 40), "u2")
    pixels[2, 2] = 20
    made, left = reduced(pixels)
    tiler = Tiler(THRESHOLD)
    count = tiler.choose(made, left)
    inputs, facts = np.zeros((count, CHANNELS, TILE, TILE), "f4"), np.zeros((count, FACTS), "f4")
    tiler.fill(made, left, 0, count, inputs, facts)
    first = inputs[int(np.flatnonzero(tiler.cells[:count] == 0)[0])]
    assert not first[:, :8].any()
    assert not first[:, :, :8].any()
    assert first[3, 8:, 8:].all()


# --- decoding ---------------------------------------------------------------------------


def maxima(outputs: np.ndarray[Any, Any], cells: list[int], across: int = 4, least: float = 0.0) -> Any:
    tile_of, found = np.full(across * 4, -1, np.int32), np.zeros((50, 4))
    cell_array = np.array(cells, np.int32)
    count = peak_tiles.list_maxima(outputs.astype("f4"), cell_array, len(cells), tile_of, across, least, found)
    assert (tile_of == -1).all()
    return found[:count]


def test_a_heat_becomes_the_middle_of_its_pixels_moved_by_its_offsets() -> None:
    outputs = np.full((1, OUTPUTS, HEATS, HEATS), -5.0)
    outputs[0, :, 1, 2] = 2.0, 0.25, -0.5, math.log(40.0)
    # Cell 6 of 4 across is row 1, column 2: heat row 4 + 1, heat column 8 + 2.
    np.testing.assert_allclose(maxima(outputs, [6]), [[2 * 10.25 + 0.5, 2 * 4.5 + 0.5, 2.0, math.log(40.0)]], rtol=1e-6)


def test_of_two_heats_across_a_seam_the_higher_is_the_spot() -> None:
    outputs = np.full((2, OUTPUTS, HEATS, HEATS), -5.0)
    outputs[:, 1:3] = 0.0
    outputs[0, 0, 2, 3], outputs[1, 0, 2, 0] = 1.0, 1.5
    assert len(maxima(outputs, [5, 6])) == 1
    assert maxima(outputs, [5, 6])[0, 2] == 1.5
    assert len(maxima(outputs, [5, 7])) == 2  # no neighbours


def test_of_equal_heats_the_earlier_is_the_spot() -> None:
    outputs = np.full((1, OUTPUTS, HEATS, HEATS), 1.0)
    outputs[:, 1:3] = 0.0
    np.testing.assert_allclose(maxima(outputs, [0])[:, :2], [[0.5, 0.5]])


def test_an_answer_that_is_no_number_is_no_peak() -> None:
    assert len(maxima(np.full((1, OUTPUTS, HEATS, HEATS), math.nan), [0])) == 0
    outputs = np.full((1, OUTPUTS, HEATS, HEATS), -5.0)
    outputs[0, :3, 1, 1] = 3.0, math.nan, 0.0
    assert len(maxima(outputs, [0])) == 0


# --- the finder -------------------------------------------------------------------------


def spots(pixels: np.ndarray[Any, Any], *at: tuple[int, int], counts: int = 40) -> np.ndarray[Any, Any]:
    for ss, fs in at:
        pixels[ss, fs] += counts
    return pixels


def places(peaks: Any) -> set[tuple[int, int]]:
    return {(int(p["ss"]) // 2, int(p["fs"]) // 2) for p in peaks}


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_spots_are_found_in_every_pixel_type(dtype: str) -> None:
    at = ((20, 30), (100, 101), (127, 64), (64, 127))
    peaks = finder().find(*reduced(spots(water(0.05, (160, 160), 4, dtype), *at)))
    assert peaks.dtype == PEAK_DTYPE
    assert places(peaks) == {(ss // 2, fs // 2) for ss, fs in at}
    assert peaks["intensity"] == pytest.approx(40.0, abs=4.0)
    assert (np.diff(peaks["surprise"]) <= 0).all()
    assert not peaks["saturated"].any()


def test_a_frame_gives_the_same_peaks_whatever_came_before_it() -> None:
    one, other = spots(water(0.2, (160, 160), 1), (40, 40), (90, 33)), spots(water(0.5, (160, 160), 2), (70, 71))
    made = workspace(one)
    finds = finder()
    first = finds.find(made, made.reduce()).copy()
    made.pixels[:] = other
    finds.find(made, made.reduce())
    made.pixels[:] = one
    again = finds.find(made, made.reduce())
    assert again.tobytes() == first.tobytes()
    assert finder().find(made, made.reduce()).tobytes() == first.tobytes()


def test_a_peak_does_not_touch_invalid_pixels() -> None:
    valid = np.ones((96, 96), np.uint8)
    valid[48, 48] = 0
    pixels = spots(np.zeros((96, 96), "u2"), (48, 49), (46, 52), (20, 20))
    pixels[48, 48] = 65535
    assert places(finder().find(*reduced(pixels, valid=valid))) == {(23, 26), (10, 10)}


def test_a_peak_does_not_touch_pixels_without_data_either() -> None:
    """Those that no mask knows: as with the classical finder."""
    pixels = spots(np.zeros((96, 96), "u2"), (48, 49), (46, 52), (20, 20))
    pixels[48, 48] = 65535
    assert places(finder().find(*reduced(pixels))) == {(23, 26), (10, 10)}


def test_a_saturated_peak_is_kept_and_flagged() -> None:
    pixels = np.zeros((96, 96), "u2")
    pixels[40, 40] = 60000
    (peak,) = finder().find(*reduced(pixels, saturation=50000))
    assert peak["saturated"] == 1


@pytest.mark.parametrize("fill", [0, 1, 65534, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (9, 200), (130, 70)])
def test_frames_of_one_value_and_of_any_size_give_no_peak(fill: int, shape: tuple[int, int]) -> None:
    assert len(finder().find(*reduced(np.full(shape, fill, "u2")))) == 0


def test_a_frame_without_a_valid_pixel_gives_no_peak() -> None:
    pixels = np.full((64, 64), 7, "u2")
    assert len(finder().find(*reduced(pixels, valid=np.zeros((64, 64), np.uint8)))) == 0


def test_noise_of_the_whole_range_is_bounded_work() -> None:
    rng = np.random.default_rng(0)
    for dtype in ("u1", "u2", "u4"):
        pixels = rng.integers(0, np.iinfo(dtype).max, (600, 500), dtype=dtype, endpoint=True)
        peaks = finder(0.01).find(*reduced(pixels))
        assert len(peaks) <= MAX_TILES * HEATS**2
        assert np.isfinite(peaks["intensity"]).all()


def test_one_finder_takes_frames_of_changing_shape() -> None:
    finds = finder()
    for shape in ((64, 64), (200, 100), (64, 64)):
        assert places(finds.find(*reduced(spots(np.zeros(shape, "u2"), (30, 31))))) == {(15, 15)}


def test_weights_that_are_no_numbers_give_no_peak() -> None:
    network = PeakNetwork()
    with torch.no_grad():
        for each in network.parameters():
            each.fill_(math.nan)
    assert len(finder(0.5, network).find(*reduced(spots(np.zeros((64, 64), "u2"), (30, 30))))) == 0


@pytest.mark.parametrize(("threshold", "tile_threshold"), [(0.0, 9.0), (1.0, 9.0), (0.5, -1.0), (0.5, math.nan)])
def test_thresholds_that_make_no_sense_are_refused(threshold: float, tile_threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        LearnedFinder(BrightPixels(), threshold, tile_threshold)


# --- the bundle -------------------------------------------------------------------------


def bundle_with_peaks(folder: Path, **changes: Any) -> Path:
    """A copy of the shipped bundle with an untrained peak network."""
    folder.mkdir()
    card = msgspec.json.decode((DEFAULT_BUNDLE / CARD).read_bytes())
    for part in ("hit", "parameters", "scattering"):
        name = card[part]["weights"]
        (folder / name).write_bytes((DEFAULT_BUNDLE / name).read_bytes())
    torch.manual_seed(0)
    digest = save_weights(PeakNetwork(), folder / "peaks.safetensors")
    card["peaks"] = {
        "network": "peaks-heat-tiles", "weights": "peaks.safetensors", "sha256": digest,
        "threshold": 0.4, "tile_threshold": 11.0, **changes,
    }  # fmt: skip
    (folder / CARD).write_bytes(msgspec.json.encode(card))
    return folder


def test_a_bundle_carries_a_finder(tmp_path: Path) -> None:
    bundle = load_bundle(bundle_with_peaks(tmp_path / "b"))
    assert isinstance(bundle.card.peaks, PeaksCard)
    assert not bundle.card.peaks.chosen
    finds = learned_finder(bundle)
    assert finds is not None
    assert finds.find(*reduced(spots(np.zeros((64, 64), "u2"), (30, 30)))).dtype == PEAK_DTYPE


def test_a_bundle_without_a_finder_still_loads(tmp_path: Path) -> None:
    folder = bundle_with_peaks(tmp_path / "b")
    card = msgspec.json.decode((folder / CARD).read_bytes())
    del card["peaks"]
    (folder / CARD).write_bytes(msgspec.json.encode(card))
    bundle = load_bundle(folder)
    assert bundle.peaks is None
    assert learned_finder(bundle) is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threshold": 1.5}, "threshold 1.5 is no heat between 0 and 1"),
        ({"tile_threshold": -3.0}, "tile_threshold -3.0 is no significance"),
        ({"sha256": "0" * 64}, "get the bundle again"),
        ({"settings": {"hidden": 16}}, "do not fit network 'peaks-heat-tiles'"),
        ({"settings": {"widths": "wide"}}, "cannot be built"),
        ({"weights": "../peaks.safetensors"}, "must be a .safetensors file in the bundle's folder"),
        ({"network": "peaks"}, "is not known"),
    ],
)
def test_a_broken_finder_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadBundle, match=text) as raised:
        load_bundle(bundle_with_peaks(tmp_path / "b", **changes))
    assert "\n" not in str(raised.value)
