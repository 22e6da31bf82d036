"""The estimate of one frame: from its pixels, whatever came before it and beside it."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.parameters.frame import MOST_SATURATED, FrameEstimator, off_the_panel
from analyzer.reduction import FrameProfile, Workspace, make_plan
from sim_replay.detector import CONDITIONS
from streamer.validity import Validity
from tests.analyzer.parameters.made import detector, image, panel, tables, truth

SHAPE = detector().shape


@pytest.fixture(scope="module")
def frames() -> list[FrameProfile]:
    """Reduced frames of two conditions."""
    valid = (~detector().mask).astype(np.uint8)
    held = Workspace(make_plan(panel()[0], Validity("test", valid), 65000), np.dtype("u2"))
    rng = np.random.default_rng(0)
    made = []
    for condition in (1, 2):
        expected = image(replace(CONDITIONS[condition], flux_photons=3e9))
        for _ in range(3):
            held.pixels[:] = rng.poisson(expected)
            held.reduce()
            made.append(held.profile())
    return made


def estimator(center: tuple[float, float] | None = None) -> FrameEstimator:
    geometry = panel()[0]
    middle = (geometry.beam_center_fs, geometry.beam_center_ss)
    return FrameEstimator(panel()[2], tables(), SHAPE, center or middle)


def said(by: FrameEstimator, frame: FrameProfile) -> dict[str, Any]:
    return by.fields(frame.profile, frame.pairs, 0, no_beam=False)


def test_pixels_drawn_as_expected_give_their_condition(frames: list[FrameProfile]) -> None:
    by = estimator()
    for n, frame in enumerate(frames):
        fields = said(by, frame)
        condition = CONDITIONS[1 + n // 3]
        ratio, sigma = (fields[f"camera_length_over_energy_{name}m_per_eV"] for name in ("", "sigma_"))
        assert abs(ratio - np.exp(truth(condition)[0])) < 4 * sigma
        assert sigma < 0.1 * ratio


def test_a_frame_says_the_same_after_any_other_and_in_any_thread(frames: list[FrameProfile]) -> None:
    by = estimator()
    forward = [said(by, frame) for frame in frames]
    assert [said(by, frame) for frame in reversed(frames)] == forward[::-1]
    found: list[list[dict[str, Any]]] = [[] for _ in range(3)]

    def work(out: list[dict[str, Any]]) -> None:
        own = estimator()
        out += [said(own, frame) for frame in frames]

    threads = [threading.Thread(target=work, args=(out,)) for out in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [forward] * 3


def test_a_frame_without_beam_says_that_alone(frames: list[FrameProfile]) -> None:
    fields = estimator().fields(frames[0].profile, frames[0].pairs, 0, no_beam=True)
    assert fields == {"estimate_reason": "no beam"}


def test_a_saturated_ring_has_no_shape(frames: list[FrameProfile]) -> None:
    by, most = estimator(), int(MOST_SATURATED * panel()[2].pixels.sum())
    assert by.posterior(frames[0].profile, frames[0].pairs, most).reason is None
    assert by.fields(frames[0].profile, frames[0].pairs, most + 1, no_beam=False) == {
        "estimate_reason": f"{most + 1} saturated pixels"
    }


@pytest.mark.parametrize("center", [(-1.0, 50.0), (50.0, -1.0), (1e9, 50.0), (np.nan, 50.0), (50.0, np.inf)])
def test_a_beam_centre_off_the_panel_is_refused(center: tuple[float, float], frames: list[FrameProfile]) -> None:
    fields = said(estimator(center), frames[0])
    assert set(fields) == {"estimate_reason"}
    assert "off the panel of 2068 x 2162 pixels" in fields["estimate_reason"]


@pytest.mark.parametrize("center", [(-0.5, -0.5), (99.5, 49.5), (50.0, 20.0)])
def test_a_beam_centre_on_the_panels_edge_is_on_it(center: tuple[float, float]) -> None:
    assert off_the_panel((50, 100), center) == ""


def small(
    pixels: npt.NDArray[Any], center: tuple[float, float], valid: npt.NDArray[Any] | None = None
) -> dict[str, Any]:
    """The fields of a frame of one small module."""
    from tests.analyzer.builders import plan

    made = plan(pixels.shape, pixels.dtype.str[1:], valid, center=center)
    held = Workspace(made, pixels.dtype)
    held.pixels[:] = pixels
    reduced = held.reduce()
    frame = held.profile()
    by = FrameEstimator(made.sectors, tables(), made.shape, center)
    return by.fields(frame.profile, frame.pairs, reduced.saturated_pixels, no_beam=False)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("content", ["zero", "one", "saturated", "lost", "noise", "masked"])
def test_frames_that_hold_no_water_say_why(content: str, dtype: str) -> None:
    top = int(np.iinfo(dtype).max)
    value = {"zero": 0, "one": 1, "saturated": top - 1, "lost": top, "masked": 3}.get(content)
    shape = (120, 160)
    if value is None:
        pixels = np.random.default_rng(0).poisson(2.0, shape).astype(dtype)
    else:
        pixels = np.full(shape, value, dtype)
    valid = np.zeros(shape, np.uint8) if content == "masked" else None
    fields = small(pixels, (80.0, 60.0), valid)
    assert fields["estimate_reason"]
    assert "photon_energy_eV" not in fields


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 5), (33, 200)])
def test_a_panel_of_any_size_is_fitted_or_refused(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).poisson(5.0, shape).astype("u2")
    fields = small(pixels, (shape[1] / 2 - 0.5, shape[0] / 2 - 0.5))
    assert fields["estimate_reason"] or fields["photon_energy_sigma_eV"] > 0
