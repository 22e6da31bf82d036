"""Evidence is the logarithm of a likelihood ratio, added up over the windows of a frame."""

import math

import numpy as np
import pytest

from analyzer.evidence import LOG_LOWEST, LOG_STEP, MOST_COUNTS, RATES, SPOT_PHOTONS, TABLE
from analyzer.zones import FIRST_LEVEL, LIGHT, ZONE_M
from tests.analyzer.builders import water, workspace

PANEL = (200, 208)


def evidence(pixels: np.ndarray) -> np.ndarray:
    """(zones, rates) of a frame."""
    work = workspace(pixels)
    work.reduce()
    return work.zones[:, LIGHT:FIRST_LEVEL]


@pytest.mark.parametrize(("expected", "counts"), [(1e-4, 1), (0.05, 3), (0.5, 5), (8.0, 20), (20.0, 60)])
def test_the_table_holds_the_likelihood_ratio_of_a_spot_somewhere_in_its_range(expected: float, counts: int) -> None:
    row = round((math.log(expected) - LOG_LOWEST) / LOG_STEP)
    background = math.exp(LOG_LOWEST + row * LOG_STEP)
    assert background == pytest.approx(expected, rel=LOG_STEP)

    def said(n: int, rate: float) -> float:
        ratios = [math.exp(-s) * (1 + s / background) ** n for s in SPOT_PHOTONS]
        return math.log(1 + rate * (sum(ratios) / len(ratios) - 1))

    for number, rate in enumerate(RATES):
        assert TABLE[number, row, counts] == pytest.approx(said(counts, rate) - said(0, rate), rel=1e-4, abs=1e-9)


def test_more_counts_never_say_less_and_none_say_nothing() -> None:
    assert (TABLE[:, :, 0] == 0).all()
    assert (np.diff(TABLE, axis=2) >= 0).all()
    assert np.isfinite(TABLE).all()


def test_a_spot_is_evidence_in_the_zone_it_is_in() -> None:
    pixels = water(0.01, PANEL)
    plain = evidence(pixels)
    pixels[40:42, 50:52] += 2
    zone = int(math.hypot(40.5 - 99.5, 50.5 - 103.5) * 75e-6 / ZONE_M)
    more = evidence(pixels) - plain
    assert (more[zone] > 20).all()
    np.testing.assert_allclose(np.delete(more, zone, 0), 0, atol=0.5)


def test_many_faint_spots_say_together_what_none_says_alone() -> None:
    # Three counts in four pixels: 8 nats, which chance reaches in some frames of this size.
    alone, together = [], []
    for seed in range(20):
        pixels = water(0.01, PANEL, seed=seed)
        alone.append(evidence(pixels).sum(0))
        places = np.random.default_rng(seed).integers(10, 190, (12, 2))
        for ss, fs in places:
            pixels[ss, fs] = pixels[ss + 1, fs] = pixels[ss, fs + 1] = 1
        together.append(evidence(pixels).sum(0))
    for rate in range(len(RATES)):
        assert min(np.array(together)[:, rate]) > max(np.array(alone)[:, rate])


def test_what_lies_beyond_the_table_is_left_to_significance() -> None:
    assert evidence(water(10.0, PANEL)).sum() == 0
    bright = water(0.01, PANEL)
    bright[40:42, 50:52] = 30_000
    assert evidence(bright).max() < 100 * TABLE[:, :, MOST_COUNTS].max()
