"""The estimate of a run: from which sums, how it follows them, and when it contradicts the header."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.diffuse import places
from analyzer.geometry import bin_map, series_geometry
from analyzer.parameters.bragg import BraggEstimate
from analyzer.parameters.fit import undetermined
from analyzer.parameters.header import Mismatch, Quantity
from analyzer.parameters.profile import Sectors, sectors
from analyzer.parameters.running import LOOKS, RunEstimate, RunEstimator
from analyzer.parameters.scattering import Scattering
from analyzer.parameters.sums import MEMORIES, RunningSums
from sim_replay.background import expected_water
from sim_replay.detector import Condition, eiger2_4m
from streamer.messages import SeriesMetadata

Floats = npt.NDArray[np.float64]
DETECTOR = eiger2_4m()
CENTER = (DETECTOR.shape[1] / 2, DETECTOR.shape[0] / 2)
ENERGY_EV, LENGTH_M = 7000.0, 0.15


@cache
def tables() -> Scattering:
    found = load_bundle(DEFAULT_BUNDLE).scattering
    assert found is not None
    return found


@cache
def bins() -> tuple[Sectors, npt.NDArray[np.intp]]:
    """Of a detector whose header has the beam in the middle; and the bin of each valid pixel."""
    geometry = series_geometry(SeriesMetadata(beam_center_x_px=CENTER[0], beam_center_y_px=CENTER[1]), DETECTOR.shape)
    fine = bin_map(geometry)
    place = places(geometry, fine)
    inside = (~DETECTOR.mask).reshape(-1)
    found, _ = sectors(geometry, fine, place, inside.astype(np.uint8))
    return found, found.place[place[inside]]


@cache
def water(energy_eV: float = ENERGY_EV, length_m: float = LENGTH_M, off_px: tuple[float, float] = (0.0, 0.0)) -> Floats:
    """Expected photons of a frame in each bin; the beam is so far from where the header has it."""
    condition = Condition(
        photon_energy_eV=energy_eV, camera_length_m=length_m, beam_center_x_px=CENTER[0] + off_px[0],
        beam_center_y_px=CENTER[1] + off_px[1],
    )  # fmt: skip
    where, place = bins()
    image = expected_water(condition, DETECTOR)[~DETECTOR.mask].astype(np.float64)
    return np.bincount(place, image, where.bins).astype(np.float64)


class Run:
    """A run whose frames are drawn from expected photons."""

    def __init__(self, header: SeriesMetadata | None) -> None:
        self.sums, self.rng = RunningSums(), np.random.default_rng(4)
        self.header, self.tables = header, tables()
        self.bragg: BraggEstimate | None = None
        self.estimator = RunEstimator(self.sums.copy, lambda: self.tables, lambda: self.bragg)

    def add(self, expected: Floats, frames: int, hit: bool = False, saturated: bool = False) -> RunEstimate | None:
        """So many frames' worth at once, and a look."""
        where, _ = bins()
        photons = self.rng.poisson(expected * frames)
        profile = np.stack([photons, photons, where.pixels * frames]).astype(np.float32)
        pairs = float((expected**2 / np.maximum(where.pixels, 1.0)).sum()) * frames
        profile[1] += profile[0] * pairs / max(1, photons.sum())
        self.sums.header = self.header
        self.sums.add(where, DETECTOR.shape, CENTER, profile, pairs, hit, saturated)
        if not saturated:
            # The frames that this one stands for.
            for kinds in (self.sums._memories[0], self.sums._block):
                kinds.facts[int(hit), 1] += frames - 1
        return self.estimator.look()

    def put(self, expected: Floats, frames: int) -> None:
        """Frames one after another, as the sums have them in the end; no look."""
        where, _ = bins()
        photons = self.rng.poisson(expected * frames).astype(np.float64)
        pairs = float((expected**2 / np.maximum(where.pixels, 1.0)).sum()) * frames
        profile = np.stack([photons, photons * (1.0 + pairs / max(1.0, photons.sum())), where.pixels * frames])
        if self.sums.sectors is None:
            self.sums.begin(where, DETECTOR.shape, CENTER)
        self.sums.header = self.header
        for memory, length in zip((*self.sums._memories, self.sums._run), (*MEMORIES, 1e12), strict=True):
            kept = (1.0 - 1.0 / length) ** frames
            share = -math.expm1(-frames / length) * length / frames
            memory.forget(kept)
            memory.profiles[0] += profile * share
            memory.facts[0] += (pairs * share, frames * share)
        self.sums._frames += frames
        self.sums._counted += frames

    def look(self) -> RunEstimate:
        found = self.estimator.look()
        assert found is not None
        return found


def header(**changes: Any) -> SeriesMetadata:
    facts: dict[str, Any] = {
        "photon_energy_eV": ENERGY_EV, "camera_length_m": LENGTH_M, "beam_center_x_px": CENTER[0],
        "beam_center_y_px": CENTER[1],
    }  # fmt: skip
    return SeriesMetadata(**(facts | changes))


def test_nothing_is_estimated_before_frames_nor_without_tables() -> None:
    assert Run(header()).estimator.look() is None
    nothing = RunEstimator(Run(header()).sums.copy, lambda: None)
    assert nothing.look() is None
    assert nothing.latest is None


def test_a_run_of_water_is_estimated_and_its_right_header_is_not_contradicted() -> None:
    run = Run(header())
    for _ in range(LOOKS + 1):
        found = run.add(water(), 200)
    assert found is not None
    assert found.mismatches == () == found.found
    fields = found.fields
    assert fields["photon_energy_eV"] == pytest.approx(ENERGY_EV, abs=4 * fields["photon_energy_sigma_eV"])
    assert fields["camera_length_m"] == pytest.approx(LENGTH_M, abs=4 * fields["camera_length_sigma_m"])
    assert fields["photon_energy_sigma_eV"] < 20.0
    assert fields["camera_length_sigma_m"] < 1e-3
    assert fields["estimate_reason"] is None
    assert "keV" in found.text
    assert "mm" in found.text
    assert found.facts["frames"] == 200 * (LOOKS + 1)
    said = found.facts["answers"]
    assert (said["nearest_kev"], said["paper_kev"]) == (round(ENERGY_EV / 1e3),) * 2
    assert (said["nearest_cm"], said["paper_cm"]) == (round(LENGTH_M * 100),) * 2
    assert all(said[f"{name}_probability"] > 0.95 for name in ("nearest_kev", "paper_kev", "paper_cm", "inside"))


def test_the_same_frames_are_not_fitted_again() -> None:
    run = Run(header())
    first = run.add(water(), 50)
    assert run.estimator.look() is first


@pytest.mark.parametrize(
    ("wrong", "quantity"),
    [
        ({"photon_energy_eV": ENERGY_EV * 1.03}, Quantity.PHOTON_ENERGY),
        ({"camera_length_m": LENGTH_M * 0.97}, Quantity.CAMERA_LENGTH),
    ],
)
def test_three_percent_are_an_alarm_after_some_looks_within_2000_frames(
    wrong: dict[str, float], quantity: Quantity
) -> None:
    run = Run(header(**wrong))
    alarms = []
    for _ in range(LOOKS):
        found = run.add(water(), 2000 // LOOKS)
        assert found is not None
        alarms.append([each.quantity for each in found.mismatches])
    assert alarms[0] == []
    assert quantity in alarms[-1]


def test_a_beam_that_is_off_is_found_and_does_not_move_the_rest() -> None:
    run = Run(header())
    for _ in range(LOOKS):
        found = run.add(water(off_px=(6.0, -4.0)), 300)
    assert found is not None
    assert [each.quantity for each in found.mismatches] == [Quantity.BEAM_CENTER]
    np.testing.assert_allclose(found.posterior.center_px, (6.0, -4.0), atol=0.4)
    assert found.fields["camera_length_m"] == pytest.approx(LENGTH_M, rel=0.01)


def test_an_alarm_ends_when_the_header_is_put_right() -> None:
    run = Run(header(camera_length_m=LENGTH_M * 1.04))
    for _ in range(LOOKS):
        found = run.add(water(), 500)
    assert found is not None
    assert found.mismatches
    run.header = header()
    for _ in range(LOOKS):
        found = run.add(water(), 500)
    assert found is not None
    assert not found.mismatches


def test_a_contradiction_that_changes_its_name_from_look_to_look_is_one_alarm() -> None:
    """Energy, then distance or energy, then both: counted each for itself none would come, or they would flap."""
    run = Run(header())
    names = [
        (Quantity.PHOTON_ENERGY,), (Quantity.RATIO,), (Quantity.PHOTON_ENERGY, Quantity.CAMERA_LENGTH),
        (Quantity.RATIO,), (), (Quantity.CAMERA_LENGTH,), (), (), (),
    ]  # fmt: skip
    nothing = RunEstimate(undetermined("made up"), 100.0, "all", "run")
    stands = []
    for found in names:
        look = replace(nothing, found=tuple(Mismatch(each, f"{each}") for each in found))
        stands.append(tuple(each.quantity for each in run.estimator._judged(look).mismatches))
    assert stands == [(), (), names[2], names[3], names[3], names[5], names[5], names[5], ()]


def test_misses_are_preferred_where_they_are_most_of_the_light() -> None:
    run = Run(None)
    run.add(water(), 100)
    found = run.add(water() * 1.3, 40, hit=True)
    assert found is not None
    assert found.source == "misses"
    found = run.add(water(), 400, hit=True)
    assert found is not None
    assert found.source == "all"


def test_when_the_detector_is_moved_without_telling_the_latest_frames_are_believed() -> None:
    run = Run(header())
    run.add(water(), 3000)
    run.sums.begin_latest()
    found = run.add(water(length_m=0.2), 300)
    assert found is not None
    assert found.window == "latest"
    assert found.fields["camera_length_m"] == pytest.approx(0.2, abs=0.005)


def test_a_small_change_under_an_unchanged_header_is_followed() -> None:
    """At 0.35 m a thousand frames know the energy to 200 eV only, so they agree with both; ten thousand do not."""
    run = Run(header(photon_energy_eV=8000.0, camera_length_m=0.35))
    run.put(water(8000.0, 0.35), 400_000)
    before = run.look()
    assert before.window == "run"
    assert before.fields["photon_energy_eV"] == pytest.approx(8000.0, abs=4 * before.fields["photon_energy_sigma_eV"])
    run.put(water(8240.0, 0.35), 40_000)
    after = run.look()
    assert after.window != "run"
    assert after.fields["photon_energy_eV"] == pytest.approx(8240.0, abs=3 * after.fields["photon_energy_sigma_eV"])


def test_a_long_run_that_stays_as_it_is_is_published_whole() -> None:
    run = Run(header())
    for frames in (1500, 20_000, 200_000, 500_000):
        run.put(water(), frames)
        assert run.look().window == "run"


def test_when_the_water_is_gone_its_energy_and_length_do_not_stay() -> None:
    run = Run(header())
    run.put(water(), 5000)
    assert run.look().posterior.reason is None
    run.put(bins()[0].pixels * 0.01, 5000)
    found = run.look()
    assert found.window == "latest"
    assert found.fields.keys() == {"estimate_reason"}
    run.put(water(), 5000)
    assert run.look().posterior.reason is None


def test_the_run_stands_while_the_latest_frames_are_too_few_to_say_anything() -> None:
    run = Run(header())
    run.put(water(), 5000)
    run.sums.begin_latest()
    run.put(water() * 1e-6, 200)
    found = run.look()
    assert found.posterior.reason is None
    assert found.window == "run"


def test_saturation_is_forgotten_with_the_latest_frames() -> None:
    run, (where, _) = Run(header()), bins()
    nothing = np.zeros((3, where.bins), np.float32)
    for _ in range(3000):
        run.sums.add(where, DETECTOR.shape, CENTER, nothing, 0.0, False, True)
    assert "saturated" in (run.look().posterior.reason or "")
    run.sums.header = run.header
    expected = (water() * 1.0).astype(np.float32)
    one = np.stack([expected, expected, where.pixels]).astype(np.float32)
    for _ in range(1000):
        run.sums.add(where, DETECTOR.shape, CENTER, one, 0.0, False, False)
    assert "saturated" not in (run.look().posterior.reason or "")
    for _ in range(800):
        run.sums.add(where, DETECTOR.shape, CENTER, nothing, 0.0, False, True)
    assert "saturated" in (run.look().posterior.reason or ""), "the latest frames are judged, not the run"


def test_a_recording_that_is_played_again_and_again_does_not_become_surer() -> None:
    once, often = Run(header()), Run(header())
    first = once.add(water(), 30)
    for _ in range(40):
        often.rng = np.random.default_rng(4)
        last = often.add(water(), 30)
    assert first is not None
    assert last is not None
    sigma = "photon_energy_sigma_eV"
    assert last.fields["estimate_reason"] is None
    assert last.fields[sigma] == pytest.approx(first.fields[sigma], rel=0.5)


@pytest.mark.parametrize(
    ("what", "word"),
    [
        (lambda run: run.add(water() * 0.0, 20), "photons"),
        (lambda run: [run.add(water(), 5, saturated=True) for _ in range(3)][-1], "saturated"),
        (lambda run: run.add(bins()[0].pixels * 0.01, 100), ""),
    ],
)
def test_where_there_is_no_water_nothing_is_determined(what: Callable[[Run], RunEstimate | None], word: str) -> None:
    found = what(Run(header()))
    assert found is not None
    assert found.posterior.reason is not None
    assert word in found.posterior.reason
    assert "photon_energy_eV" not in found.fields
    assert found.facts["beam_center_shift_px"] is None
    assert found.facts["answers"] is None
    assert "not determined" in found.text


def spots(energy_off: float = 0.0, sigma: float = 5e-4, reason: str | None = None) -> BraggEstimate:
    """What 30 hits say, off the truth by a share of the photon energy."""
    log_energy = math.log(ENERGY_EV * (1.0 + energy_off))
    log_ratio = math.log(LENGTH_M) - log_energy
    return BraggEstimate(
        log_ratio, log_energy, np.eye(2) * sigma**2, (0.5, -0.5), (0.1, 0.1), 900, 30, "indexed", reason, 0.9
    )


def test_bragg_spots_that_agree_and_know_better_are_published_without_a_new_frame() -> None:
    run = Run(header())
    first = run.add(water(), 200)
    run.bragg = spots()
    found = run.estimator.look()
    assert first is not None
    assert found is not None
    assert (found.source, found.frames) == ("bragg", 30)
    assert found.fields["photon_energy_sigma_eV"] < first.fields["photon_energy_sigma_eV"]
    assert "from 30 hits of the known cell" in found.text
    assert found.facts["bragg"]["used"] is True
    assert found.facts["source"] == "bragg"
    assert run.estimator.water is first.posterior
    assert run.estimator.look() is found


def test_bragg_spots_that_contradict_the_water_are_not_published_but_told() -> None:
    run = Run(header())
    run.bragg = spots(energy_off=0.1)
    found = run.add(water(), 200)
    assert found is not None
    assert found.source == "misses"
    assert found.fields["photon_energy_eV"] == pytest.approx(ENERGY_EV, rel=0.03)
    assert "the water's is kept" in (found.disagreement or "")
    assert "the water's is kept" in found.text
    assert found.facts["bragg"]["disagreement"] == found.disagreement


@pytest.mark.parametrize("bragg", [spots(sigma=0.2), spots(reason="no spots yet")])
def test_bragg_spots_that_know_less_or_nothing_leave_the_water_as_it_is(bragg: BraggEstimate) -> None:
    run = Run(header())
    run.bragg = bragg
    found = run.add(water(), 200)
    assert found is not None
    assert found.source == "misses"
    assert found.disagreement is None
    assert found.facts["bragg"]["used"] is False


def test_a_header_is_held_against_what_the_bragg_spots_say() -> None:
    run = Run(header(photon_energy_eV=ENERGY_EV * 1.02))
    run.bragg = spots()
    for _ in range(LOOKS):
        found = run.add(water(), 20)
    assert found is not None
    assert found.source == "bragg"
    assert Quantity.PHOTON_ENERGY in [each.quantity for each in found.mismatches]


def test_where_there_is_no_water_bragg_spots_are_published() -> None:
    run = Run(header())
    run.bragg = spots()
    found = run.add(water() * 0.0, 20)
    assert found is not None
    assert found.source == "bragg"
    assert found.fields["photon_energy_eV"] == pytest.approx(ENERGY_EV)
