"""Shots without a beam are told from faint ones, whatever the detector adds of its own."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.bundle import Bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.results import Decision
from sim_replay.artefacts import Artefacts, apply, fixed_pixels
from tests.analyzer.builders import frame, series

SHAPE = (514, 1030)
"""A module: where a 4M detector has one dark count, this has an eighth."""

MODULES = 8


def decisions(bundle: Bundle, images: list[npt.NDArray[np.uint16]]) -> list[Decision | None]:
    of = series(shape=SHAPE, beam_center_x_px=515.0, beam_center_y_px=257.0)
    analyser = Analyser(bundle, CascadeSettings())
    return [analyser.process([frame(image, n, of)]).results[0].decision for n, image in enumerate(images)]


def dark(frames: int, **artefacts: Any) -> list[npt.NDArray[np.uint16]]:
    """Frames of nothing but the detector's artefacts."""
    rng, mask = np.random.default_rng(3), np.zeros(SHAPE, bool)
    mask[:, 512:518] = True
    adds = Artefacts(**artefacts)
    places = fixed_pixels(adds, mask, 1)
    images = []
    for _ in range(frames):
        image = np.zeros(SHAPE, np.uint16)
        apply(adds, places, image, rng, 65534, 65535)
        images.append(image)
    return images


@pytest.mark.parametrize(
    "artefacts",
    [
        {},
        {"hot_pixels": 40},
        {"flickering_pixels": 20},
        {"cosmics": 1.0},
        {"dark_counts": 1e-7 * MODULES},
        {"edge_glow_share": 1.0},
        {"hot_pixels": 40, "flickering_pixels": 20, "cosmics": 0.05, "dark_counts": 1e-7 * MODULES},
    ],
    ids=lambda each: "-".join(each) or "nothing",
)
def test_what_the_detector_adds_is_no_beam(bundle: Bundle, artefacts: dict[str, Any]) -> None:
    found = decisions(bundle, dark(100, **artefacts))
    assert found.count(Decision.NO_BEAM) >= 99


@pytest.mark.parametrize("photons", [33, 1000, 30_000])
def test_a_faint_beam_is_a_beam(bundle: Bundle, photons: int) -> None:
    rng = np.random.default_rng(4)
    images = [rng.poisson(photons / (SHAPE[0] * SHAPE[1]), SHAPE).astype(np.uint16) for _ in range(60)]
    assert Decision.NO_BEAM not in decisions(bundle, images)


def test_a_crystal_without_any_background_is_a_beam(bundle: Bundle) -> None:
    rng = np.random.default_rng(5)
    image = np.zeros(SHAPE, np.uint16)
    for ss, fs in rng.integers(20, 480, (8, 2)):
        image[ss : ss + 2, fs : fs + 2] = rng.poisson(10, (2, 2))
    assert Decision.NO_BEAM not in decisions(bundle, [image])


def test_hot_pixels_do_not_hide_a_faint_beam(bundle: Bundle) -> None:
    rng = np.random.default_rng(6)
    images = dark(40, hot_pixels=40)
    for image in images:
        image += rng.poisson(40 / image.size, SHAPE).astype(np.uint16)
    assert Decision.NO_BEAM not in decisions(bundle, images)
