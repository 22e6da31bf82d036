"""Numbers at their extremes: tails and significance by arithmetic of fifty digits, and records of any frame."""

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.kernels import _surprise
from analyzer.peak_finder import BUILT_IN, LEARNED, FinderKind
from analyzer.peak_parameters import Pf8Options, finder_of
from analyzer.poisson_tail import TailTable, normal_tail
from analyzer.results import Decision, FrameResult, record, to_json_line
from streamer.frames import Frame
from streamer.validity import sentinel
from tests.analyzer.builders import SHAPE, frame, series, water, with_spots

SHIPPED = load_bundle(DEFAULT_BUNDLE)


@pytest.fixture(autouse=True)
def many_digits() -> Any:
    with mpmath.workdps(50):
        yield


# --- tails and significance ---------------------------------------------------------------


def tail(count: float, mean: float) -> Any:
    """P(N >= count; mean), of counts from 1."""
    return mpmath.gammainc(int(count), 0, mpmath.mpf(mean), regularized=True)


@pytest.mark.parametrize("chance", [1e-3, 1e-9, 1e-30])
def test_the_least_count_of_a_tail_is_the_least_by_fifty_digits(chance: float) -> None:
    means = np.array([1e-300, 1e-100, 1e-30, 1e-9, 1e-3, 0.02, 0.7, 5.0, 31.5, 400.0, 9000.0])
    least = TailTable(chance, torch.device("cpu")).least(torch.from_numpy(means)).tolist()
    for mean, count in zip(means.tolist(), least, strict=True):
        assert tail(count, mean) <= chance * (1 + 1e-9)
        assert count == 1 or tail(count - 1, mean) > chance * (1 - 1e-9)


@pytest.mark.parametrize("sigmas", [0.0, 0.3, 1.0, 5.0, 12.0, 37.0])
def test_the_normal_tail_holds_to_where_doubles_end(sigmas: float) -> None:
    assert normal_tail(sigmas) == pytest.approx(float(mpmath.ncdf(-sigmas)), rel=1e-12)


def exact_surprise(count: int, mean: float) -> float:
    """-ln Poisson(count; mean)."""
    return float(mean - count * mpmath.log(mean) + mpmath.loggamma(count + 1))


@pytest.mark.parametrize("mean", [1e-12, 1e-6, 0.003, 0.9, 60.0, 5000.0, 64_000.0])
def test_a_surprise_is_that_of_the_poisson_distribution(mean: float) -> None:
    for count in (1, 2, 3, 10, 100, 1000, 20_000, 65_000, 65_535):
        found = _surprise(count, mean, math.log(mean))
        assert found == pytest.approx(exact_surprise(count, mean) if count > mean else 0.0, rel=1e-11, abs=1e-8)


@pytest.mark.parametrize("count", [65_536, 1 << 20, (1 << 32) - 2])
@pytest.mark.parametrize("mean", [1e-6, 1.0, 900.0])
def test_a_surprise_beyond_the_table_goes_on_without_a_step(count: int, mean: float) -> None:
    found = _surprise(count, mean, math.log(mean))
    assert found == pytest.approx(exact_surprise(count, mean), rel=1e-11, abs=1e-5)


# --- probabilities ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30))
def test_a_calibrated_probability_is_one_and_rises_with_what_the_network_says(logits: list[float]) -> None:
    ordered = sorted([*logits, -(2.0**100), -50.0, 0.0, 50.0, 2.0**100])
    found = Analyser(SHIPPED, CascadeSettings())._hit_probabilities(torch.tensor(ordered))
    assert all(0.0 <= each <= 1.0 for each in found)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0.0, 1.0)


# --- records of any frame -----------------------------------------------------------------


def _pf8(name: Any) -> FinderKind:
    return finder_of(name, Pf8Options())


FINDERS = {
    "poisson": BUILT_IN,
    "learned": LEARNED,
    "peakfinder8": _pf8("peakfinder8"),
    "peakfinder8-poisson": _pf8("peakfinder8-poisson"),
}
ANALYSERS = {name: Analyser(SHIPPED, CascadeSettings(finder=finder)) for name, finder in FINDERS.items()}
DTYPES = ("u1", "u2", "u4")


def _masked(fraction: float) -> dict[str, Any]:
    bad = np.random.default_rng(3).random(SHAPE) < fraction
    return {"masks": {"threshold_1": bad.astype("u4")}}


SERIES = {
    (dtype, masked): series(ordinal, dtype=np.dtype(dtype), **(_masked(masked) if masked else {}))
    for ordinal, (dtype, masked) in enumerate(((d, m) for d in DTYPES for m in (0.0, 0.2, 1.0)), 1)
}


@st.composite
def any_frame(draw: st.DrawFn) -> Frame:
    """Frames at the rims of what pixels can hold, of any type, with any mask."""
    dtype, masked = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([0.0, 0.2, 1.0]))
    top, seed = sentinel(np.dtype(dtype)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    high = draw(st.sampled_from([1, 2, 7, top // 2, top - 1, top]))
    kind = draw(st.sampled_from(["zeros", "flat", "sparse", "single", "board", "rows", "spots", "noise", "corners"]))
    pixels = np.zeros(SHAPE, dtype)
    if kind == "flat":
        pixels[:] = high
    elif kind == "sparse":
        pixels[rng.random(SHAPE) < draw(st.sampled_from([1e-3, 0.02, 0.4]))] = high
    elif kind == "single":
        pixels[draw(st.integers(0, SHAPE[0] - 1)), draw(st.integers(0, SHAPE[1] - 1))] = high
    elif kind == "board":
        pixels[np.indices(SHAPE).sum(0) % 2 == 0] = high
    elif kind == "rows":
        pixels[:: draw(st.integers(1, 9))] = high
    elif kind == "spots":
        pixels = with_spots(water(draw(st.sampled_from([0.001, 0.1, 3.0])), seed=seed % 1000, dtype=dtype), 200)
    elif kind == "noise":
        pixels = rng.integers(0, top, SHAPE, endpoint=True, dtype=pixels.dtype)
    elif kind == "corners":
        pixels[[0, 0, -1, -1], [0, -1, 0, -1]] = high
    # Named by how it was made: thousands of bytes tell a reader of a failure nothing.
    note(f"{kind} of {dtype}, {high} at most, seed {seed}, {masked:.0%} masked")
    return frame(pixels, 0, SERIES[dtype, masked])


def numbers(value: Any) -> list[float]:
    """All floats that a record holds."""
    if isinstance(value, float):
        return [value]
    if is_dataclass(value):
        return [number for each in fields(value) for number in numbers(getattr(value, each.name))]
    if isinstance(value, dict | list | tuple):
        return [number for each in (value.values() if isinstance(value, dict) else value) for number in numbers(each)]
    return []


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def assert_sound(result: FrameResult) -> None:
    assert all(math.isfinite(number) for number in numbers(record(result)))
    read = json.loads(to_json_line(result), parse_constant=refuse)
    # A number that is none would be written as null.
    assert [name for name, value in read.items() if value is None] == [
        name for name, value in record(result).items() if value is None
    ]
    assert result.hit_probability is not None
    assert 0.0 <= result.hit_probability <= 1.0
    assert result.peaks is not None
    assert result.peak_count == len(result.peaks)
    assert result.hit is (result.decision == Decision.HIT)
    assert (result.photon_energy_eV is None) == (result.photon_energy_sigma_eV is None)
    assert (result.camera_length_over_energy_m_per_eV is None) <= (result.estimate_reason is not None)


@settings(max_examples=120, deadline=None)
@given(any_frame())
def test_the_record_of_any_frame_holds_finite_numbers_and_is_json(shot: Frame) -> None:
    for analyser in ANALYSERS.values():
        (result,) = analyser.process([shot]).results
        assert_sound(result)
        if shot.series.metadata.masks and shot.series.metadata.masks["threshold_1"].all():
            assert (result.decision, result.peak_count) == (Decision.NO_BEAM, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(any_frame(), min_size=2, max_size=5))
def test_the_record_of_any_frame_depends_on_none_beside_it(shots: list[Frame]) -> None:
    analyser = ANALYSERS["poisson"]
    assert analyser.process(shots).results == [analyser.process([shot]).results[0] for shot in shots]
