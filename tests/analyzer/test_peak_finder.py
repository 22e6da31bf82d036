"""The seam of peak finders: who publishes, who only watches, and what that may cost."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from prometheus_client.exposition import generate_latest

from analyzer.bundle import DEFAULT_BUNDLE, BadBundle, Bundle, load_bundle
from analyzer.calibration import OperatingPoint, Rate
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.front import Front, FrontSettings
from analyzer.judge import Judge
from analyzer.kernels import PEAK_DTYPE
from analyzer.metrics import make_registry
from analyzer.peak_finder import BUILT_IN, LEARNED, Comparison, Disagreement, Peakfinder8Finder, compare
from analyzer.peakfinder8 import Peakfinder8Settings, Statistics
from analyzer.reduction import FramePlan, Reduced, Workspace
from analyzer.results import FrameResult, HitRule, Status
from analyzer.running import Running
from streamer.frames import Frame
from streamer.validity import Validity
from tests.analyzer.builders import (
    SHAPE,
    Collector,
    ScriptedSource,
    assert_account_closes,
    end,
    frame,
    image,
    plan,
    series,
    start,
    water,
    whole_series,
    with_spots,
)

PF8 = Peakfinder8Finder(Peakfinder8Settings())
COUNTING = Peakfinder8Finder(Peakfinder8Settings(threshold=0.0, min_snr=6.0, statistics=Statistics.POISSON))
ABOUT_PEAKS = {"peaks", "peak_count", "indexable", "resolution_angstrom"}


def peaks_at(*places: tuple[float, float]) -> np.ndarray[Any, Any]:
    peaks = np.zeros(len(places), PEAK_DTYPE)
    for peak, (fs, ss) in zip(peaks, places, strict=True):
        peak["fs"], peak["ss"], peak["intensity"], peak["snr"] = fs, ss, 50.0, 7.0
    return peaks


class Fixed:
    """A finder, and its kind, that finds what it is told."""

    name = "fixed"

    def __init__(self, *places: tuple[float, float], fails: bool = False) -> None:
        self.places, self.fails = places, fails
        self.prepared: list[tuple[tuple[int, int], Any, Any]] = []
        self.seen: list[Any] = []

    def check(self, bundle: Bundle) -> None:
        pass

    def prepare(self, plan: FramePlan, dtype: np.dtype[Any], device: torch.device, bundle: Bundle) -> "Fixed":
        self.prepared.append((plan.shape, dtype, device))
        return self

    def find(self, workspace: Workspace, reduced: Reduced) -> np.ndarray[Any, Any]:
        self.seen.append((workspace.pixels.copy(), len(reduced.peaks)))
        if self.fails:
            raise RuntimeError("no peaks today")
        return peaks_at(*self.places)


def judge(bundle: Bundle, *frames: Frame, **settings: Any) -> list[FrameResult]:
    return Analyser(bundle, CascadeSettings(**settings)).process(list(frames)).results


def fields(result: FrameResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in FrameResult.__dataclass_fields__}


# --- who publishes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(DEFAULT_BUNDLE)


def test_the_bundle_s_network_publishes_where_it_is_asked_for_or_chosen(shipped: Bundle) -> None:
    lit = frame(with_spots(water(0.1)))
    (classical,), (learned,) = judge(shipped, lit, finder=BUILT_IN), judge(shipped, lit, finder=LEARNED)
    assert (learned.peak_count or 0) >= 1
    assert learned.peaks != classical.peaks
    assert shipped.card.peaks is not None
    for chosen, expected in ((False, classical), (True, learned)):
        card = structs.replace(shipped.card, peaks=structs.replace(shipped.card.peaks, chosen=chosen))
        other = replace(shipped, card=card)
        assert judge(other, lit)[0].peaks == expected.peaks


def test_a_swap_of_bundles_decides_anew_who_publishes_and_who_is_in_the_shadow(shipped: Bundle) -> None:
    assert shipped.card.peaks is not None
    card = structs.replace(shipped.card, peaks=structs.replace(shipped.card.peaks, chosen=True))
    choosing = replace(shipped, card=card)

    def names(judge: Judge) -> tuple[str, str | None]:
        finder, shadow = judge.finders
        assert (judge.settings.finder, judge.settings.shadow) == (finder, shadow)
        return finder.name, None if shadow is None else shadow.name

    usual = Judge(shipped, CascadeSettings())
    assert names(usual) == ("poisson", None)
    assert names(usual.with_bundle(choosing)) == ("learned", "poisson")
    assert names(usual.with_bundle(choosing).with_bundle(shipped)) == ("poisson", None)
    asked = Judge(shipped, CascadeSettings(shadow=LEARNED))
    assert names(asked) == ("poisson", "learned")
    assert names(asked.with_bundle(choosing)) == ("learned", None)


def test_what_is_compared_begins_anew_with_other_finders() -> None:
    running = Running(disagreement=Disagreement("poisson", "learned"))
    running.compare_finders(("poisson", "learned"))
    assert running.disagreement is not None
    running.disagreement.add(Comparison(3, 2, 1))
    running.compare_finders(("poisson", "learned"))
    assert running.disagreement.frames == 1
    running.compare_finders(("learned", "poisson"))
    assert (running.disagreement.published, running.disagreement.frames) == ("learned", 0)
    running.compare_finders(None)
    assert running.disagreement is None


def test_a_bundle_without_a_network_is_refused_for_it_by_name(bundle: Bundle) -> None:
    assert bundle.peaks is None
    for settings in (CascadeSettings(finder=LEARNED), CascadeSettings(shadow=LEARNED)):
        with pytest.raises(BadBundle, match=f"{bundle.label}.*no learned peak finder"):
            Judge(bundle, settings)
    assert Judge(bundle, CascadeSettings()).facts["peak_finder"] == "poisson"


def test_the_built_in_finder_is_the_default_and_changes_nothing(bundle: Bundle) -> None:
    frames = [frame(with_spots(water(0.1, seed=n)), n) for n in range(3)]
    assert judge(bundle, *frames) == judge(bundle, *frames, finder=BUILT_IN)


def test_another_finder_changes_what_is_said_of_peaks_and_nothing_else(bundle: Bundle) -> None:
    lit = frame(with_spots(water(0.1)))
    (usual,), (other,) = judge(bundle, lit), judge(bundle, lit, finder=Fixed((3.25, 4.5), (70.0, 9.0)))
    assert [(p.fs, p.ss, p.intensity_photons, p.snr) for p in other.peaks or []] == [
        (3.25, 4.5, 50.0, 7.0),
        (70.0, 9.0, 50.0, 7.0),
    ]
    assert (usual.peak_count, other.peak_count) == (8, 2)
    changed = {name for name, value in fields(usual).items() if fields(other)[name] != value}
    assert changed <= ABOUT_PEAKS


def test_the_rules_on_peaks_count_the_published_ones(bundle: Bundle) -> None:
    empty = frame(water(0.1))
    finder = Fixed(*((float(n), float(n)) for n in range(6)))
    (result,) = judge(bundle, empty, finder=finder, hit_rule=HitRule.PEAKS, min_peaks=6, indexable_peaks=6)
    assert (result.hit, result.indexable) == (True, True)
    (result,) = judge(bundle, empty, finder=finder, hit_rule=HitRule.PEAKS, min_peaks=7, indexable_peaks=7)
    assert (result.hit, result.indexable) == (False, False)


def test_a_finder_sees_the_pixels_and_what_the_reduction_made_of_them(bundle: Bundle) -> None:
    finder, pixels = Fixed(), with_spots(water(0.1))
    judge(bundle, frame(pixels), frame(water(0.2, (64, 80)), 1), finder=finder)
    assert [shape for shape, _, _ in finder.prepared] == [SHAPE, (64, 80)]
    assert finder.prepared[0][1:] == (np.dtype("u2"), torch.device("cpu"))
    seen, reduced = finder.seen[0]
    assert np.array_equal(seen, pixels)
    assert reduced == 8


@pytest.mark.parametrize("finder", [PF8, COUNTING])
def test_peakfinder8_publishes_the_spots_of_a_frame(bundle: Bundle, finder: Peakfinder8Finder) -> None:
    frames = [frame(with_spots(water(0.2, seed=1), 400)), frame(np.zeros(SHAPE, "u2"), 1), frame(water(0.2), 2)]
    results = judge(bundle, *frames, finder=finder)
    assert [result.status for result in results] == [Status.OK] * 3
    assert 7 <= (results[0].peak_count or 0) <= 10
    assert results[1].peak_count == 0
    assert [judge(bundle, each, finder=finder)[0] for each in frames] == results


def test_one_finder_serves_all_workers_of_a_series(bundle: Bundle) -> None:
    kind, dtype, cpu = Peakfinder8Finder(Peakfinder8Settings()), np.dtype("u2"), torch.device("cpu")
    first = plan()
    made = kind.prepare(first, dtype, cpu, bundle)
    assert kind.prepare(first, dtype, cpu, bundle) == made
    assert kind.prepare(first, np.dtype("u4"), cpu, bundle) != made
    assert kind.prepare(plan((64, 80)), dtype, cpu, bundle) != made
    for n in range(10):
        kind.prepare(plan((64, 80 + n)), dtype, cpu, bundle)
    assert len(kind._made) <= 4


# --- who only watches -------------------------------------------------------------------


def test_peaks_are_compared_one_to_one_nearest_first() -> None:
    assert compare(peaks_at(), peaks_at()) == Comparison(0, 0, 0)
    assert compare(peaks_at((1, 1)), peaks_at()) == Comparison(1, 0, 0)
    assert compare(peaks_at((1, 1)), peaks_at((1, 5), (4, 4))) == Comparison(1, 2, 1)
    assert compare(peaks_at((1, 1), (2, 1)), peaks_at((1.4, 1))) == Comparison(2, 1, 1)
    # The nearest pair first, even where two farther ones would use up all.
    assert compare(peaks_at((0, 0), (3, 0)), peaks_at((2, 0), (6, 0))) == Comparison(2, 2, 1)
    assert compare(peaks_at((0, 0)), peaks_at((4.01, 0))) == Comparison(1, 1, 0)


def test_peaks_at_the_same_place_are_compared_too() -> None:
    assert compare(peaks_at((5, 5), (5, 5)), peaks_at((5, 5), (5, 5), (5, 5))) == Comparison(2, 3, 2)


def test_a_shadow_finder_changes_no_record(bundle: Bundle) -> None:
    frames = [frame(with_spots(water(0.1, seed=n), 60, n), n) for n in range(8)]
    analyser = Analyser(bundle, CascadeSettings(shadow=Fixed((20.0, 20.0))))
    outcome = analyser.process(frames)
    assert outcome.results == judge(bundle, *frames)
    assert [(c.published, c.shadow) for c in outcome.comparisons if c] == [(n, 1) for n in range(8)]


def test_a_shadow_finder_that_fails_costs_no_frame(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    lit = frame(with_spots(water(0.1)))
    outcome = Analyser(bundle, CascadeSettings(shadow=Fixed(fails=True))).process([lit])
    assert outcome.results == judge(bundle, lit)
    assert outcome.comparisons == [None]
    assert "shadow finder failed" in caplog.text


def test_disagreement_is_of_the_latest_frames_and_forgets_none_in_its_totals() -> None:
    of = Disagreement("poisson", "other")
    assert (of.mean_peaks, of.matched_fraction) == (None, None)
    of.add(Comparison(0, 0, 0))
    assert (of.mean_peaks, of.matched_fraction) == ((0.0, 0.0), None)
    for _ in range(3000):
        of.add(Comparison(4, 2, 1))
    of.add(None)
    assert (of.frames, of.failed, of.peaks, of.matched) == (3001, 1, [12000, 6000], 3000)
    assert len(of.latest) == 1000
    assert of.mean_peaks == (4.0, 2.0)
    assert of.matched_fraction == pytest.approx(1 / 3)


def run(bundle: Bundle, script: Sequence[Any], **settings: Any) -> tuple[Front, list[FrameResult], str]:
    """A whole run; its front, results and what Prometheus would scrape at its end."""
    cascade = CascadeSettings(**settings)
    sink = Collector()
    names = None if cascade.shadow is None else (cascade.finder.name, cascade.shadow.name)
    analysers = [Analyser(bundle, cascade) for _ in range(2)]
    front = Front(ScriptedSource(script), analysers, [sink], FrontSettings(block=True, finders=names))
    front.run(threading.Event())
    registry = make_registry(front, dict, OperatingPoint(0.5, 0.5, Rate(0.01, 0.002, 0.03)), {})
    return front, sink.results, generate_latest(registry).decode()


def lit_series(frames: int) -> list[Any]:
    return [start(1, frames), *(image(n, 1, with_spots(water(0.2, seed=n), 400)) for n in range(frames)), end(1)]


def test_the_disagreement_of_a_run_is_in_its_metrics_and_status(bundle: Bundle) -> None:
    front, results, text = run(bundle, lit_series(20), shadow=PF8)
    assert len(results) == 20
    assert_account_closes(front.account)
    published = sum(result.peak_count or 0 for result in results)
    assert "cxls_peaks_disagreement_frames_total 20.0" in text
    assert "cxls_peaks_disagreement_failures_total 0.0" in text
    assert f'cxls_peaks_disagreement_peaks_total{{finder="bundle",role="published"}} {float(published)}' in text
    assert 'cxls_peaks_disagreement_peaks_total{finder="peakfinder8",role="shadow"}' in text
    assert f'cxls_peaks_disagreement_mean_peaks{{finder="bundle",role="published"}} {published / 20}' in text
    facts = front.running.snapshot()["peak_finders"]
    assert facts["frames"] == 20
    assert facts["published"] == {"finder": "bundle", "mean_peaks": published / 20}
    assert 0.5 < facts["matched_fraction"] <= 1.0
    ratio = next(line for line in text.splitlines() if line.startswith("cxls_peaks_disagreement_ratio "))
    assert float(ratio.split()[1]) == pytest.approx(1 - facts["matched_fraction"])


def test_a_run_without_a_shadow_says_nothing_of_one(bundle: Bundle) -> None:
    front, _, text = run(bundle, whole_series(3))
    assert "disagreement" not in text
    assert front.running.snapshot()["peak_finders"] is None


def test_the_metrics_of_a_shadow_are_there_before_the_first_frame(bundle: Bundle) -> None:
    _, _, text = run(bundle, [start(1, 0), end(1)], shadow=PF8)
    assert "cxls_peaks_disagreement_frames_total 0.0" in text
    assert 'cxls_peaks_disagreement_peaks_total{finder="peakfinder8",role="shadow"} 0.0' in text
    assert "\ncxls_peaks_disagreement_ratio " not in text


def test_a_failing_shadow_is_counted_in_a_run(bundle: Bundle) -> None:
    front, results, text = run(bundle, lit_series(5), shadow=Fixed(fails=True))
    assert "cxls_peaks_disagreement_failures_total 5.0" in text
    assert [result.status for result in results] == [Status.OK] * 5
    assert_account_closes(front.account)


def test_a_reset_begins_the_latest_frames_anew_and_leaves_the_counters(bundle: Bundle) -> None:
    front, _, _ = run(bundle, lit_series(4), shadow=PF8)
    front.running.reset()
    assert front.running.disagreement is not None
    assert (front.running.disagreement.frames, front.running.disagreement.mean_peaks) == (4, None)


def test_a_mask_of_another_shape_is_left_aside_for_other_finders_too(bundle: Bundle) -> None:
    mask = Validity("other", np.ones((5, 5), np.uint8))
    lit = frame(with_spots(water(0.1)), of=series())
    (result,) = judge(bundle, lit, finder=PF8, shadow=COUNTING, mask=mask)
    assert result.status == Status.OK
    assert [result] == judge(bundle, lit, finder=PF8, shadow=COUNTING)
