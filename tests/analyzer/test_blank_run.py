"""The mask that a blank run proposes, and peaks that keep no place."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.blank_run import PixelCensus, PixelFlag, ProposedMask, roaming_peaks
from analyzer.reduction import Workspace
from analyzer.results import Peak
from tests.analyzer.builders import plan

SHAPE = (120, 150)
HOT, FLICKERING, WEAK, DEAD = (30, 40), (80, 100), (60, 20), (90, 30)


def census(
    frames: int, mean: float, faults: Any = lambda n, image, rng: None, valid: npt.NDArray[np.uint8] | None = None
) -> ProposedMask:
    """The mask proposed after so many frames of flat background; ``faults`` changes each image."""
    rng = np.random.default_rng(5)
    made = plan(SHAPE, valid=valid)
    workspace, counts = Workspace(made, np.dtype("u2")), PixelCensus(SHAPE)
    for n in range(frames):
        workspace.pixels[:] = rng.poisson(mean, SHAPE)
        faults(n, workspace.pixels, rng)
        workspace.reduce()
        counts.add(made, workspace.pixels, workspace.background, 65535)
    return counts.propose_mask()


def faulty(n: int, image: npt.NDArray[np.uint16], rng: np.random.Generator) -> None:
    image[HOT] += rng.poisson(50)
    image[FLICKERING] += rng.poisson(20) * (n % 8 == 0)
    image[WEAK] += rng.random() < 0.4
    image[DEAD] = 0


def flagged(mask: ProposedMask) -> dict[tuple[int, int], int]:
    return {(int(ss), int(fs)): int(mask.flags[ss, fs]) for ss, fs in zip(*np.nonzero(mask.flags), strict=True)}


def test_hot_and_noisy_pixels_are_found_and_no_other() -> None:
    found = flagged(census(100, 0.02, faulty))
    assert found == {HOT: PixelFlag.HOT, FLICKERING: PixelFlag.NOISY, WEAK: PixelFlag.NOISY}


def test_a_dead_pixel_is_found_once_thirty_counts_were_expected() -> None:
    few, enough = census(50, 0.5, faulty), census(80, 0.5, faulty)
    assert (few.judged_dead, few.count(PixelFlag.DEAD)) == (0.0, 0)
    assert enough.judged_dead == 1.0
    assert flagged(enough)[DEAD] == PixelFlag.DEAD


@pytest.mark.parametrize("mean", [0.002, 0.05, 1.0])
def test_a_good_panel_needs_no_mask(mean: float) -> None:
    assert flagged(census(80, mean)) == {}


def test_a_steep_background_makes_no_hot_pixels() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    bright = 3.0 * np.exp(-np.hypot(y - 60, x - 75) / 15)

    def halo(n: int, image: npt.NDArray[np.uint16], rng: np.random.Generator) -> None:
        image[:] = rng.poisson(bright + 0.01)

    assert census(100, 0.0, halo).count(PixelFlag.HOT) == census(100, 0.0, halo).count(PixelFlag.NOISY) == 0


def test_two_bright_reflections_do_not_condemn_a_pixel() -> None:
    def once(n: int, image: npt.NDArray[np.uint16], rng: np.random.Generator) -> None:
        image[50, 50] += 5000 * (n in (7, 60))

    assert flagged(census(100, 0.02, once)) == {}


def test_pixels_without_data_and_masked_ones_are_not_hot() -> None:
    valid = np.ones(SHAPE, np.uint8)
    valid[:, 70:75] = 0

    def sentinels(n: int, image: npt.NDArray[np.uint16], rng: np.random.Generator) -> None:
        image[:, 70:75] = 65535
        image[10, 10] = 65535

    assert flagged(census(100, 0.02, sentinels, valid)) == {}
    assert flagged(census(80, 0.5, sentinels, valid)) == {(10, 10): PixelFlag.DEAD}


def peaks(*places: tuple[float, float]) -> list[Peak]:
    return [Peak(fs, ss, 30.0, 5.0, False) for ss, fs in places]


def test_peaks_of_crystals_roam_and_those_of_pixels_do_not() -> None:
    rng = np.random.default_rng(0)
    fixed = [(20.0, 30.0), (100.2, 140.3)]
    frames = [peaks(*fixed) for _ in range(20)]
    frames[4] = peaks(*fixed, *((ss, fs) for ss, fs in rng.uniform(5, 115, (6, 2)).tolist()))
    assert roaming_peaks(frames, SHAPE) == [6 if n == 4 else 0 for n in range(20)]


def test_a_peak_beside_a_masked_pixel_does_not_count() -> None:
    bad = np.zeros(SHAPE, np.uint32)
    bad[20, 30] = PixelFlag.HOT
    assert roaming_peaks([peaks((20.6, 30.4), (70.0, 70.0))], SHAPE, bad) == [1]


def test_peaks_at_the_edge_are_counted() -> None:
    assert roaming_peaks([peaks((0.0, 0.0), (119.0, 149.0)), []], SHAPE) == [2, 0]
