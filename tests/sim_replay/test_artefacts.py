import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sim_replay.artefacts import LONGEST_TRACK_PX, Artefacts, ArtefactTruth, FixedPixels, apply, fixed_pixels
from sim_replay.detector import Detector

PANEL = Detector("two modules", (120, 200), gaps_ss=((50, 60),), gaps_fs=((90, 93),))
LIVE = int((~PANEL.mask).sum())
EVERYTHING = Artefacts(
    dead_pixels=30,
    hot_pixels=20,
    flickering_pixels=25,
    flicker_share=0.5,
    dark_counts=0.01,
    cosmics=4.0,
    edge_excess=1.0,
    edge_glow_share=0.5,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def drawn(
    artefacts: Artefacts, fixed: FixedPixels, generator: np.random.Generator, level: int = 0
) -> tuple[NDArray[np.uint16], ArtefactTruth]:
    counts = np.full(PANEL.shape, level, dtype=np.uint16)
    PANEL.fill_gaps(counts)
    background = np.full(PANEL.shape, 0.5, dtype=np.float32)
    truth = apply(artefacts, fixed, counts, generator, PANEL.largest_count, PANEL.sentinel, background)
    return counts, truth


def only(**settings: object) -> tuple[Artefacts, FixedPixels]:
    artefacts = Artefacts(**settings)  # type: ignore[arg-type]
    return artefacts, fixed_pixels(artefacts, PANEL.mask, 1)


def test_nothing_is_added_by_default() -> None:
    artefacts, fixed = only()
    counts, truth = drawn(artefacts, fixed, rng(), 3)
    assert np.all(counts[~PANEL.mask] == 3)
    assert truth.names == ()
    assert all(len(getattr(truth, field.name)) == 0 for field in dataclasses.fields(truth))


def test_fixed_pixels_are_live_apart_and_the_same_for_one_seed() -> None:
    fixed = fixed_pixels(EVERYTHING, PANEL.mask, 7)
    chosen = np.concatenate([fixed.dead, fixed.hot, fixed.flickering])
    assert [len(fixed.dead), len(fixed.hot), len(fixed.flickering)] == [30, 20, 25]
    assert len(np.unique(chosen)) == 75
    assert not PANEL.mask.reshape(-1)[chosen].any()
    assert fixed.silent.sum() == PANEL.mask.sum() + 30
    again, other = fixed_pixels(EVERYTHING, PANEL.mask, 7), fixed_pixels(EVERYTHING, PANEL.mask, 8)
    np.testing.assert_array_equal(again.hot, fixed.hot)
    assert not np.array_equal(other.hot, fixed.hot)
    assert PANEL.mask.sum() + LIVE == 120 * 200  # the shared mask is as it was


def test_more_fixed_pixels_than_the_panel_has_are_refused() -> None:
    everywhere = Artefacts(dead_pixels=LIVE)
    assert fixed_pixels(everywhere, PANEL.mask, 0).silent.all()
    with pytest.raises(ValueError, match=f"more than the panel's {LIVE}"):
        fixed_pixels(dataclasses.replace(everywhere, hot_pixels=1), PANEL.mask, 0)


def test_gaps_and_dead_pixels_are_never_touched_and_every_change_is_in_the_truth() -> None:
    for sentinel in (False, True):
        artefacts = dataclasses.replace(EVERYTHING, dead_reads_sentinel=sentinel)
        fixed = fixed_pixels(artefacts, PANEL.mask, 2)
        seen = set()
        for frame in range(40):
            counts, truth = drawn(artefacts, fixed, rng(frame), 5)
            assert np.all(counts[PANEL.mask] == PANEL.sentinel)
            assert np.all(counts.reshape(-1)[fixed.dead] == (PANEL.sentinel if sentinel else 0))
            parts = [truth.hot, truth.flicker, truth.cosmic, truth.edge, truth.dark]
            told = np.unique(np.concatenate(parts))
            np.testing.assert_array_equal(np.flatnonzero((counts != 5) & ~fixed.silent), told)
            assert np.isin(truth.hot, fixed.hot).all()
            assert np.isin(truth.flicker, fixed.flickering).all()
            assert np.isin(truth.edge, fixed.edge).all()
            assert truth.names == tuple(
                name for name in ("hot", "flicker", "cosmic", "edge") if len(getattr(truth, name))
            )
            seen.update(truth.names)
        assert seen == {"hot", "flicker", "cosmic", "edge"}


def test_a_frame_is_a_function_of_its_random_numbers() -> None:
    fixed = fixed_pixels(EVERYTHING, PANEL.mask, 2)
    first, truth = drawn(EVERYTHING, fixed, rng(3))
    second, same = drawn(EVERYTHING, fixed, rng(3))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(truth.cosmic, same.cosmic)
    assert np.any(first != drawn(EVERYTHING, fixed, rng(4))[0])


def test_hot_and_flickering_pixels_have_their_means() -> None:
    artefacts, fixed = only(
        hot_pixels=50, hot_counts=30.0, flickering_pixels=60, flicker_counts=12.0, flicker_share=0.2
    )
    frames = np.array([drawn(artefacts, fixed, rng(i))[0].reshape(-1) for i in range(300)], dtype=np.float64)
    hot, flicker = frames[:, fixed.hot], frames[:, fixed.flickering]
    assert hot.mean() == pytest.approx(30.0, abs=4.0 * math.sqrt(30.0 / hot.size))
    assert hot.var() == pytest.approx(30.0, rel=0.05)
    on = (flicker > 0).mean()
    assert on == pytest.approx(0.2, abs=4.0 * math.sqrt(0.16 / flicker.size))
    assert flicker[flicker > 0].mean() == pytest.approx(12.0, rel=0.02)
    assert frames.sum() - PANEL.sentinel * 300.0 * PANEL.mask.sum() == hot.sum() + flicker.sum()


def test_dark_counts_are_poisson_on_live_pixels() -> None:
    artefacts, fixed = only(dark_counts=0.3)
    live = np.stack([drawn(artefacts, fixed, rng(i))[0][~PANEL.mask] for i in range(20)]).astype(np.float64)
    assert live.mean() == pytest.approx(0.3, abs=4.0 * math.sqrt(0.3 / live.size))
    assert live.var() / live.mean() == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / live.size) + 0.002)


def test_cosmic_rays_are_straight_tracks_of_one_to_thirty_pixels() -> None:
    panel = Detector("plain", (400, 400))
    artefacts = Artefacts(cosmics=1.0)
    fixed = fixed_pixels(artefacts, panel.mask, 0)
    lengths, values, shown = [], [], 0
    for frame in range(1500):
        counts = np.zeros(panel.shape, dtype=np.uint16)
        truth = apply(artefacts, fixed, counts, rng(frame), 65534, 65535)
        shown += bool(truth.names)
        np.testing.assert_array_equal(np.flatnonzero(counts), np.unique(truth.cosmic))
        place = np.stack(np.divmod(truth.cosmic, 400), axis=1)
        ends = np.flatnonzero(np.abs(np.diff(place, axis=0)).max(axis=1) > 1) + 1  # where one track follows another
        for track in np.split(place, ends) if len(place) else ():
            lengths.append(len(track))
            middle = track - track.mean(axis=0)
            assert np.linalg.svd(middle, compute_uv=False)[-1] / math.sqrt(len(track)) < 0.5  # nothing off the line
        if len(np.unique(truth.cosmic)) == len(truth.cosmic):
            values.append(counts[counts > 0])
    assert shown / 1500 == pytest.approx(1.0 - math.exp(-1.0), abs=0.05)
    assert min(lengths) == 1
    assert max(lengths) == LONGEST_TRACK_PX
    assert len(lengths) == pytest.approx(1500, abs=4.0 * math.sqrt(1500))
    every = np.concatenate(values)
    np.testing.assert_allclose(np.bincount(every)[1:] / len(every), 1.0 / 3.0, atol=0.02)


def test_lines_beside_gaps_are_found_whole() -> None:
    _, fixed = only()
    beside = np.zeros(PANEL.shape, dtype=bool)
    beside[[49, 60], :90] = beside[[49, 60], 93:] = True
    beside[:50, [89, 93]] = beside[60:, [89, 93]] = True
    np.testing.assert_array_equal(fixed.edge, np.flatnonzero(beside))
    lines = {tuple(line) for line in fixed.edge_lines.tolist()}
    assert lines == {
        *((row * 200 + column, length, 1) for row in (49, 60) for column, length in ((0, 90), (93, 107))),
        *((row * 200 + column, length, 200) for column in (89, 93) for row, length in ((0, 50), (60, 60))),
    }


def test_lone_masked_pixels_and_the_rim_of_the_panel_are_no_module_edges() -> None:
    mask = np.zeros((60, 60), dtype=bool)
    mask[20, 20] = mask[30:33, 40:44] = True
    assert len(fixed_pixels(Artefacts(), mask, 0).edge) == 0
    mask[1] = True  # leaves one row between gap and rim
    assert fixed_pixels(Artefacts(), mask, 0).edge.tolist() == [*range(60), *range(120, 180)]
    assert len(fixed_pixels(Artefacts(edge_glow_share=1.0), np.ones((5, 5), dtype=bool), 0).edge_lines) == 0


def test_edge_pixels_count_more_of_the_background_and_lines_glow_now_and_then() -> None:
    artefacts, fixed = only(edge_excess=3.0)
    frames = np.array([drawn(artefacts, fixed, rng(i))[0].reshape(-1) for i in range(200)], dtype=np.float64)
    edge = frames[:, fixed.edge]
    assert edge.mean() == pytest.approx(1.5, abs=4.0 * math.sqrt(1.5 / edge.size))  # 3 x the background of 0.5
    assert frames[:, ~fixed.silent.reshape(-1)].sum() == edge.sum()
    artefacts, fixed = only(edge_glow_share=0.3, edge_glow_counts=2.0)
    glowing = 0
    for i in range(600):
        counts, truth = drawn(artefacts, fixed, rng(i))
        glowing += "edge" in truth.names
        if truth.names:
            assert len(np.unique(truth.edge // 200)) == 1 or len(np.unique(truth.edge % 200)) == 1
            assert counts.reshape(-1)[truth.edge].mean() == pytest.approx(2.0 / (1.0 - math.exp(-2.0)), abs=1.2)
    assert glowing / 600 == pytest.approx(0.3, abs=0.08)


def test_counts_are_clipped_below_the_sentinel() -> None:
    artefacts, fixed = only(hot_pixels=40, hot_counts=1e9, dark_counts=1.0, edge_excess=100.0)
    counts, _ = drawn(artefacts, fixed, rng(), PANEL.largest_count - 1)
    live = counts[~PANEL.mask]
    assert live.max() == PANEL.largest_count
    assert live.min() == PANEL.largest_count - 1
    small = np.full(PANEL.shape, 254, dtype=np.uint8)
    apply(artefacts, fixed, small, rng(), 254, 255, np.ones(PANEL.shape))
    assert np.all(small == 254)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dead_pixels": -1}, "dead_pixels must be a whole number"),
        ({"hot_pixels": 1.5}, "hot_pixels must be a whole number"),
        ({"hot_counts": math.inf}, "hot_counts must be from 0"),
        ({"flicker_share": 1.1}, "flicker_share must be from 0 to 1"),
        ({"dark_counts": math.nan}, "dark_counts must be from 0 to 1"),
        ({"cosmics": 1e6}, "cosmics must be from 0 to 1000"),
        ({"edge_excess": -0.1}, "edge_excess must be from 0"),
        ({"edge_glow_share": 2.0}, "edge_glow_share must be from 0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Artefacts(**change)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_images_that_do_not_fit_are_refused() -> None:
    artefacts, fixed = only(edge_excess=1.0)
    counts, background = np.zeros(PANEL.shape, dtype=np.uint16), np.ones(PANEL.shape)
    for bad in (counts[:-1], np.asfortranarray(counts)):
        with pytest.raises(ValueError, match="counts must be"):
            apply(artefacts, fixed, bad, rng(), 65534, 65535, background)
    for missing in (None, background[:-1]):
        with pytest.raises(ValueError, match="edge_excess needs"):
            apply(artefacts, fixed, counts, rng(), 65534, 65535, missing)
