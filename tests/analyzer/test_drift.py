"""Drift: scores of a run against the reference, whatever the share and the brightness of hits."""

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.drift import (
    ALARM_RATIO,
    FEWEST_FRAMES,
    SCORE_BINS,
    ScoreReference,
    score_drift,
    score_histogram,
    share_above,
)

THRESHOLD = 0.9


def probabilities(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.round(1 / (1 + np.exp(-logits)), 6)


def empties(rng: np.random.Generator, frames: int, shift: float = 0.0) -> npt.NDArray[np.float64]:
    return rng.normal(-2.3 + shift, 0.9, frames)


def hits(rng: np.random.Generator, frames: int, shift: float = 0.0) -> npt.NDArray[np.float64]:
    return rng.normal(3.0 + shift, 3.0, frames)


def reference(rng: np.random.Generator, frames: int = 2000) -> ScoreReference:
    histograms = (score_histogram(probabilities(draw(rng, frames))) for draw in (empties, hits))
    return ScoreReference(*(tuple(counts) for counts in histograms))


def drift(rng: np.random.Generator, of: ScoreReference, logits: list[npt.NDArray[np.float64]]) -> float:
    found = score_drift(score_histogram(probabilities(np.concatenate(logits))), of, THRESHOLD)
    assert found is not None
    return found.divergence


def test_every_frame_is_in_one_bin() -> None:
    counts = score_histogram([0.0, 1.0, 0.5, 0.2, 1e-9])
    assert (len(counts), sum(counts)) == (SCORE_BINS, 5)
    assert (counts[0], counts[-1]) == (2, 1)
    assert sum(score_histogram([])) == 0


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("frames", [700, 1000])
def test_the_same_background_alarms_in_fewer_than_one_window_in_a_hundred(share: float, frames: int) -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        found = round(share * frames)
        run = [empties(rng, frames - found), hits(rng, found)]
        alarms += drift(rng, reference(rng, 1000), run) > ALARM_RATIO
    assert alarms == 0


@pytest.mark.parametrize("shift", [-4.0, 4.0])
def test_brighter_or_fainter_crystals_are_no_drift(shift: float) -> None:
    rng = np.random.default_rng(2)
    known = reference(rng)
    values = [drift(rng, known, [empties(rng, 700), hits(rng, 300, shift)]) for _ in range(50)]
    assert np.median(values) < ALARM_RATIO


@pytest.mark.parametrize("shift", [-0.9, 0.9])
def test_a_background_of_another_kind_alarms(shift: float) -> None:
    rng = np.random.default_rng(3)
    known = reference(rng)
    values = [drift(rng, known, [empties(rng, 950, shift), hits(rng, 50)]) for _ in range(50)]
    assert min(values) > ALARM_RATIO


def test_without_hits_in_the_reference_the_empties_serve() -> None:
    rng = np.random.default_rng(4)
    known = ScoreReference(tuple(score_histogram(probabilities(empties(rng, 1000)))))
    assert drift(rng, known, [empties(rng, 1000)]) < ALARM_RATIO
    assert drift(rng, known, [empties(rng, 1000, 1.5)]) > ALARM_RATIO


def test_too_few_frames_tell_nothing() -> None:
    rng = np.random.default_rng(5)
    few, many = (score_histogram(probabilities(empties(rng, n))) for n in (FEWEST_FRAMES - 1, 1000))
    assert score_drift(few, ScoreReference(tuple(many)), THRESHOLD) is None
    assert score_drift(many, ScoreReference(tuple(few)), THRESHOLD) is None
    assert score_drift(many, ScoreReference(()), THRESHOLD) is None


@pytest.mark.parametrize("threshold", [0.0, 1e-12, 1.0])
def test_a_threshold_at_the_end_of_the_scale_is_no_error(threshold: float) -> None:
    rng = np.random.default_rng(6)
    counts = score_histogram(probabilities(empties(rng, 1000)))
    found = score_drift(counts, ScoreReference(tuple(counts)), threshold)
    assert found is None or found.divergence < 1e-6


def test_runs_with_nothing_in_common_diverge_by_one() -> None:
    one, other = (score_histogram(np.full(1000, p)) for p in (0.01, 0.3))
    found = score_drift(one, ScoreReference(tuple(other)), THRESHOLD)
    assert found is not None
    assert found.divergence == pytest.approx(1.0)


@pytest.mark.parametrize("counts", [(1, 2), (-1, *[0] * (SCORE_BINS - 1))])
def test_a_histogram_of_another_length_or_below_zero_is_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="score histogram of empties"):
        ScoreReference(counts)


def test_the_share_above_a_threshold_counts_its_bin_too() -> None:
    counts = score_histogram([0.1] * 90 + [0.95] * 10)
    assert share_above(counts, 0.9) == (10, 100)
    assert share_above(counts, 0.0) == (100, 100)
