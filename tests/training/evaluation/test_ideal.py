"""The ideal observer against sums done the long way, and where the best possible area is known."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import logsumexp
from scipy.stats import binom, poisson

from training.evaluation.blocks import AREA, SIDE, BlockObserver, cut_blocks, draw_templates, make_grid
from training.evaluation.ideal import Observer, Panel, SpotLight, Spread, evened, make_panel, spot_light
from training.statistics import area_under_curve

Array = npt.NDArray[np.float64]


def two_rings(background: float, lit: npt.NDArray[np.bool_]) -> Panel:
    """A panel whose lit pixels are a ring of their own, so that light can be in them and nowhere else."""
    ring = lit.reshape(-1).astype(np.int32)
    place = np.arange(lit.size, dtype=np.int32)
    return Panel(np.full(lit.size, background), ring, place, np.bincount(ring, minlength=2).astype(float))


def brute_force(
    frame: npt.NDArray[np.int64], panel: Panel, light: SpotLight, spread: Spread, pulses: int | None, points: int = 61
) -> float:
    """The score by the definition: pixel by pixel, on a grid over a and w."""
    n = frame.reshape(-1)

    def likelihood(mean: Array) -> Array:
        if pulses is None:
            return np.asarray(poisson.pmf(n[:, None], mean))
        return np.asarray(binom.pmf(np.minimum(n, pulses)[:, None], pulses, -np.expm1(-mean / pulses)))

    logs = np.linspace(-5.0, 5.0, points)
    hit, empty = [], []
    for x in logs if spread.pulse_sigma else [0.0]:
        for y in logs if spread.water_sigma else [0.0]:
            pulse = math.exp(spread.pulse_mean + spread.pulse_sigma * x)
            water = math.exp(spread.water_mean + spread.water_sigma * y)
            background = pulse * water * panel.background[:, None]
            bright = likelihood(background + pulse * light.levels)
            without = likelihood(background)[:, 0]
            share = light.share[panel.ring]
            both = (share * bright).sum(1) + (1.0 - share.sum(1)) * without
            prior = -0.5 * (x * x + y * y)
            hit.append(prior + np.log(both).sum())
            empty.append(prior + np.log(without).sum())
    return float(logsumexp(hit) - logsumexp(empty))


@pytest.fixture
def light() -> SpotLight:
    return SpotLight(np.array([0.05, 0.6, 4.0, 30.0]), np.array([[0.02, 0.01, 0.005, 0.002], [0.05, 0.1, 0.02, 0.01]]))


@pytest.fixture
def panel() -> Panel:
    rng = np.random.default_rng(4)
    shape = (7, 6)
    # Steps of the background as the observer makes them, so that the two agree to the last digit.
    background = 1e-6 * np.exp(0.01 * rng.integers(1000, 1400, shape))
    ring = (np.arange(42) % 2).astype(np.int32)
    return Panel(background.reshape(-1), ring, np.arange(42, dtype=np.int32), np.bincount(ring).astype(float))


FRAMES = [{}, {3: 1}, {0: 1, 1: 2, 5: 8}, {7: 9, 8: 30, 20: 1}]


@pytest.mark.parametrize("counts", FRAMES)
@pytest.mark.parametrize("pulses", [None, 1, 4])
def test_the_score_is_the_likelihood_ratio(
    panel: Panel, light: SpotLight, counts: dict[int, int], pulses: int | None
) -> None:
    frame = np.zeros(42, np.int64)
    for pixel, number in counts.items():
        frame[pixel] = number
    score = Observer(panel, light, Spread(), pulses).score(frame.reshape(7, 6).astype(np.uint16))
    assert score == pytest.approx(brute_force(frame, panel, light, Spread(), pulses), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("spread", [Spread(0.3, 0.3), Spread(0.3, 0.4, -0.045, -0.08), Spread(0.3), Spread(0.0, 0.3)])
@pytest.mark.parametrize("pulses", [None, 1])
def test_pulse_and_water_are_averaged_over(panel: Panel, light: SpotLight, spread: Spread, pulses: int | None) -> None:
    rng = np.random.default_rng(6)
    frame = rng.poisson(np.where(rng.random(42) < 0.1, 5.0, 1.0))
    score = Observer(panel, light, spread, pulses).score(frame.reshape(7, 6).astype(np.uint16))
    assert score == pytest.approx(brute_force(frame, panel, light, spread, pulses), abs=5e-3)


def test_where_all_is_known_the_area_is_the_best_possible() -> None:
    signal, pixels = 0.4, 25
    background = 1e-6 * math.exp(10.82)  # a step of the observer's background
    lit = np.zeros((40, 40), np.bool_)
    lit[10:15, 10:15] = True
    panel = two_rings(background, lit)
    known = SpotLight(np.array([signal]), np.array([[0.0], [1.0]]))
    observer = Observer(panel, known, Spread())
    counts = np.arange(60)
    hit, empty = (poisson.pmf(counts, pixels * mean) for mean in (background + signal, background))
    best = float(hit @ (np.cumsum(empty) - empty / 2.0))
    rng = np.random.default_rng(8)
    positive = np.arange(600) < 300
    frames = [rng.poisson(background + signal * (lit if hit else 0.0) * np.ones(lit.shape)) for hit in positive]
    score = np.array([observer.score(frame.astype(np.uint16)) for frame in frames])
    in_lit = np.array([frame[lit].sum() for frame in frames])
    assert np.allclose(score, in_lit * math.log1p(signal / background) - pixels * signal, atol=1e-6)
    area = area_under_curve(score, positive)
    assert area == pytest.approx(best, abs=0.01)
    total = area_under_curve(np.array([float(frame.sum()) for frame in frames]), positive)
    assert total is not None
    assert area is not None
    assert area > total + 0.05


def spotty(rng: np.random.Generator, shape: tuple[int, int], spots: int = 6) -> Array:
    """Light of a crystal: spots of 2 x 2 pixels."""
    out = np.zeros(shape)
    for ss, fs in rng.integers(2, np.array(shape) - 4, (spots, 2)):
        out[ss : ss + 2, fs : fs + 2] += rng.lognormal(0.3, 1.0)
    return out


def pixels_of(image: Array) -> tuple[npt.NDArray[np.int64], Array]:
    index = np.flatnonzero(image)
    return index, image.reshape(-1)[index]


def test_it_beats_the_total_count_on_jittered_frames_of_unseen_crystals() -> None:
    rng = np.random.default_rng(11)
    shape, sigma = (72, 72), 0.3
    background = np.full(shape, 0.05)
    panel = make_panel(background, np.ones(shape, np.bool_), 36.0, 36.0)
    light = spot_light([pixels_of(spotty(rng, shape)) for _ in range(12)], panel)
    observer = Observer(panel, light, Spread(sigma, sigma))
    positive = np.arange(48) < 24
    score, total = [], []
    for hit in positive:
        pulse, water = np.exp(sigma * rng.normal(size=2))
        frame = rng.poisson(pulse * (water * background + (spotty(rng, shape) if hit else 0.0)))
        score.append(observer.score(frame.astype(np.uint16)))
        total.append(float(frame.sum()))
    area, by_count = (area_under_curve(np.array(values), positive) for values in (score, total))
    assert area is not None
    assert by_count is not None
    assert area > 0.9 > by_count + 0.1
    # A likelihood ratio says which is likelier, without any tuning.
    assert (np.array(score) > 0.0)[positive].mean() > 0.8
    assert (np.array(score) < 0.0)[~positive].mean() > 0.8


def test_where_a_pixel_counts_once_only_blocks_see_the_spots() -> None:
    rng = np.random.default_rng(12)
    shape = (96, 96)
    background = np.full(shape, 0.08)
    valid = np.ones(shape, np.bool_)
    panel = make_panel(background, valid, 48.0, 48.0)
    grid = make_grid(panel, shape, 48.0, 48.0)
    crystals = [pixels_of(20.0 * spotty(rng, shape, 8)) for _ in range(12)]
    observer = Observer(panel, spot_light(crystals, panel), Spread(), 1)
    cuts = [cut_blocks(crystal, panel, grid, shape[1]) for crystal in crystals]
    blocks = BlockObserver(observer, grid, draw_templates(cuts, grid), 1)
    positive = np.arange(60) < 30
    scores = []
    for hit in positive:
        mean = background + (20.0 * spotty(rng, shape, 8) if hit else 0.0)
        frame = (rng.random(shape) < -np.expm1(-mean)).astype(np.uint16)
        scores.append((blocks.score(frame), observer.score(frame)))
    by_blocks, by_pixels = (area_under_curve(np.array(values), positive) for values in zip(*scores, strict=True))
    assert by_pixels is not None
    assert by_blocks is not None
    assert by_blocks > 0.97
    assert by_blocks > by_pixels + 0.05


@pytest.mark.parametrize("pulses", [None, 1, 3])
def test_a_block_of_one_template_is_summed_as_defined(pulses: int | None) -> None:
    rng = np.random.default_rng(13)
    shape = (SIDE, SIDE)
    level = math.exp(-1.5)  # a step of the grid's background
    panel = make_panel(np.full(shape, level), np.ones(shape, np.bool_), 1.5, 1.5)
    grid = make_grid(panel, shape, 1.5, 1.5)
    light = np.full(shape, 0.7)
    crystal = pixels_of(light)
    observer = Observer(panel, spot_light([crystal], panel), Spread(), pulses)
    templates = draw_templates([cut_blocks(crystal, panel, grid, SIDE)], grid)
    frame = rng.poisson(level + light)
    seen = np.minimum(frame, pulses) if pulses else frame

    def likelihood(mean: Array) -> float:
        if pulses is None:
            return float(poisson.logpmf(seen, mean).sum())
        return float(binom.logpmf(seen, pulses, -np.expm1(-mean / pulses)).sum())

    without = likelihood(np.full(shape, level))
    weights = np.exp(templates[0].log_weight)
    assert weights.sum() + math.exp(templates[0].log_dark) == pytest.approx(1.0)
    terms = [templates[0].log_dark] + [
        math.log(weight) + likelihood(level + template.reshape(shape)) - without
        for weight, template in zip(weights, templates[0].light, strict=True)
    ]
    score = BlockObserver(observer, grid, templates, pulses).score(frame.astype(np.uint16))
    assert score == pytest.approx(float(logsumexp(terms)), abs=1e-9)


@pytest.mark.parametrize("pulses", [None, 1])
@pytest.mark.parametrize("spread", [Spread(), Spread(0.3, 0.3, brightness_sigma=1.0)])
def test_a_frame_without_a_count_has_a_score(pulses: int | None, spread: Spread) -> None:
    shape = (32, 32)
    panel = make_panel(np.full(shape, 0.1), np.ones(shape, np.bool_), 16.0, 16.0)
    grid = make_grid(panel, shape, 16.0, 16.0)
    crystal = pixels_of(spotty(np.random.default_rng(18), shape))
    observer = Observer(panel, spot_light([crystal], panel), spread, pulses)
    blocks = BlockObserver(observer, grid, draw_templates([cut_blocks(crystal, panel, grid, 32)], grid), pulses)
    blank = np.zeros(shape, np.uint16)
    assert -100.0 < observer.score(blank) < 0.0
    assert -100.0 < blocks.score(blank) < 0.0


def test_the_distribution_keeps_the_light() -> None:
    rng = np.random.default_rng(14)
    shape = (128, 128)
    panel = make_panel(np.full(shape, 0.1), np.ones(shape, np.bool_), 64.0, 64.0)
    images = [spotty(rng, shape, 40) for _ in range(6)]
    light = spot_light([pixels_of(image) for image in images], panel)
    assert (light.dark > 0.5).all()
    found = float((light.share @ light.levels) @ panel.ring_pixels)
    assert found == pytest.approx(np.mean([image.sum() for image in images]), rel=0.15)


def test_templates_keep_the_light_of_a_block() -> None:
    rng = np.random.default_rng(15)
    shape = (128, 128)
    panel = make_panel(np.full(shape, 0.1), np.ones(shape, np.bool_), 64.0, 64.0)
    grid = make_grid(panel, shape, 64.0, 64.0)
    images = [spotty(rng, shape, 40) for _ in range(6)]
    templates = draw_templates([cut_blocks(pixels_of(image), panel, grid, 128) for image in images], grid)
    light = sum(
        blocks * float(np.exp(each.log_weight) @ each.light.sum(1))
        for blocks, each in zip(grid.ring_blocks, templates, strict=True)
    )
    assert light == pytest.approx(np.mean([image.sum() for image in images]), rel=0.2)
    assert all(each.light.shape[1] == AREA for each in templates)


def test_pixels_that_are_no_use_have_no_say(panel: Panel, light: SpotLight) -> None:
    valid = np.ones((7, 6), np.bool_)
    valid[2] = False
    masked = make_panel(np.full((7, 6), 0.1), valid, 3.0, 3.0)
    observer = Observer(masked, SpotLight(np.array([2.0]), np.full((masked.rings, 1), 0.05)), Spread(0.3, 0.3))
    frame = np.random.default_rng(3).poisson(0.1, (7, 6)).astype(np.uint16)
    other = frame.copy()
    other[2] = 65535
    assert observer.score(frame) == observer.score(other)


def test_crystals_without_light_are_refused() -> None:
    panel = make_panel(np.full((8, 8), 0.1), np.ones((8, 8), np.bool_), 4.0, 4.0)
    with pytest.raises(ValueError, match="send no light"):
        spot_light([(np.arange(3), np.zeros(3))], panel)


def test_crystals_are_evened_out_by_the_pixels_they_show() -> None:
    rng = np.random.default_rng(16)
    shape = (96, 96)
    panel = make_panel(np.full(shape, 0.05), np.ones(shape, np.bool_), 48.0, 48.0)
    image = spotty(rng, shape, 30)
    index, photons = pixels_of(image)
    crystals = [(index, photons * factor) for factor in (0.01, 0.1, 1.0)]
    brighter, sigma = evened(crystals, panel)
    assert brighter == pytest.approx([0.1, 1.0, 10.0], rel=0.01)
    assert sigma == pytest.approx(math.log(10.0), rel=0.01)
    with_dark, _ = evened([*crystals, (index, np.zeros(len(index)))], panel)
    assert with_dark[3] == pytest.approx(with_dark[0], rel=0.01)
    assert evened(crystals[:1], panel) == ([pytest.approx(1.0)], 0.0)


@pytest.mark.parametrize("spread", [Spread(brightness_sigma=1.0), Spread(0.3, 0.3, brightness_sigma=1.0)])
def test_the_brightness_of_a_crystal_is_averaged_over(panel: Panel, light: SpotLight, spread: Spread) -> None:
    frame = np.random.default_rng(17).poisson(1.0, 42)
    score = Observer(panel, light, spread).score(frame.reshape(7, 6).astype(np.uint16))
    brightness = np.linspace(-5.0, 5.0, 41)
    plain = Spread(spread.pulse_sigma, spread.water_sigma)
    scores = [
        brute_force(frame, panel, SpotLight(light.levels * math.exp(g), light.share), plain, None, 31)
        for g in brightness.tolist()
    ]
    expected = logsumexp(scores - brightness**2 / 2.0) - logsumexp(-(brightness**2) / 2.0)
    assert score == pytest.approx(float(expected), abs=0.02)
