"""A calibration holds for what it was measured with; what differs is named, and its rate is widened."""

import logging
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from analyzer.bundle import Bundle
from analyzer.calibration import Calibration, load_calibration, save_calibration
from analyzer.cascade import CascadeSettings
from analyzer.circumstances import NO_MASK, circumstances, differences, digest, warn_of
from analyzer.judge import Judge
from analyzer.logs.formats import EVENT
from analyzer.peak_finder import BUILT_IN, LEARNED
from analyzer.peak_parameters import Pf8Options, changed
from analyzer.results import HitRule
from streamer.messages import SeriesMetadata
from streamer.validity import Validity

HEADER = SeriesMetadata(beam_center_x_px=10.0, beam_center_y_px=12.0, camera_length_m=0.15, photon_energy_eV=7000.0)


def mask(name: str, *bad: int) -> Validity:
    valid = np.ones((4, 5), np.uint8)
    valid.reshape(-1)[list(bad)] = 0
    return Validity(name, valid)


def blank(bundle: Bundle, masks: list[Validity | None], **changes: object) -> Calibration:
    facts: dict[str, object] = {
        "format": 1, "bundle": bundle.label, "prior": 0.5, "threshold": 0.7, "false_hits": 0.005,
        "false_hits_asked": 0.005, "probabilities": (np.arange(1000) / 2000).tolist(), "peak_counts": [0] * 1000,
        "circumstances": circumstances(BUILT_IN, None, masks, HEADER),
    }  # fmt: skip
    return msgspec.convert(msgspec.to_builtins(facts | changes), Calibration)


def test_the_same_run_keeps_the_calibrations_rate(bundle: Bundle) -> None:
    judge = Judge(bundle, CascadeSettings(mask=mask("renamed", 3)), blank(bundle, [mask("m", 3)]), metadata=HEADER)
    assert judge.differences == ()
    assert not judge.point.false_hits.spans
    assert judge.point.blank_level is not None


@pytest.mark.parametrize(
    ("cascade", "run", "said"),
    [
        ({"mask": mask("other", 4)}, {}, "another extra mask"),
        ({"mask": None}, {}, "no extra mask, then one"),
        ({}, {"channel": "threshold_2"}, "channel threshold_2, then the first threshold"),
        ({"hit_rule": HitRule.PEAKS, "finder": LEARNED}, {}, "peak finder "),
        ({}, {"metadata": HEADER.with_changes(beam_center_x_px=15.0)}, "a beam centre 5 pixels off"),
        ({}, {"metadata": HEADER.with_changes(camera_length_m=0.2)}, "camera length 0.2 m, then 0.15 m"),
        ({}, {"metadata": HEADER.with_changes(photon_energy_eV=8000.0)}, "photon energy 8000 eV, then 7000 eV"),
    ],
)
def test_what_differs_is_named_and_widens_the_rate(
    bundle: Bundle, cascade: dict[str, object], run: dict[str, object], said: str
) -> None:
    settings = CascadeSettings(mask=mask("m", 3))
    if cascade.get("finder") is LEARNED:
        cascade = {
            "hit_rule": HitRule.PEAKS,
            "finder": changed(settings, Pf8Options(), {"finder": "peakfinder8"})[0].finder,
        }
    judge = Judge(bundle, replace(settings, **cascade), blank(bundle, [mask("m", 3)]), **run)  # type: ignore[arg-type]
    assert len(judge.differences) == 1
    assert judge.differences[0].startswith(said)
    same = Judge(bundle, CascadeSettings(hit_rule=judge.cascade.hit_rule, mask=mask("m", 3)), judge.calibration)
    assert judge.point.threshold == same.point.threshold
    wide, rate = judge.point.false_hits, same.point.false_hits
    assert wide.spans
    assert wide.estimate == rate.estimate
    assert wide.low <= rate.low
    assert wide.high > rate.high
    assert judge.point.blank_level is None


def test_the_first_threshold_is_the_same_channel_named_or_not(bundle: Bundle) -> None:
    plain, settings = blank(bundle, [None]), CascadeSettings()
    for metadata in (None, HEADER, HEADER.with_changes(channels=("difference", "threshold_1", "threshold_2"))):
        assert Judge(bundle, settings, plain, "threshold_1", metadata).differences == ()
    second = HEADER.with_changes(channels=("threshold_2",))
    assert Judge(bundle, settings, plain, "threshold_2", second).differences == ()
    assert len(Judge(bundle, settings, plain, "threshold_1", second).differences) == 1


def test_a_finders_numbers_count_where_peaks_call_hits_and_there_alone() -> None:
    settings = CascadeSettings()
    one, other = (
        changed(settings, Pf8Options(), {"finder": "peakfinder8", "pf8_min_snr": snr})[0].finder for snr in (5.0, 6.0)
    )
    first, second = (circumstances(finder, None, [None], None) for finder in (one, other))
    assert differences(first, second, by_peaks=False) == ()
    (said,) = differences(first, second, by_peaks=True)
    assert said.endswith(" of peakfinder8")
    assert "snr" in said


def test_either_mask_of_a_calibration_fits() -> None:
    then = circumstances(BUILT_IN, None, [None, mask("proposed", 1)], HEADER)
    for now in (None, mask("p", 1), mask("all good")):
        assert differences(then, circumstances(BUILT_IN, None, [now], None), by_peaks=True) == ()
    assert digest(mask("all good")) == NO_MASK


def test_a_file_of_an_older_program_is_read_and_holds_for_any_run(bundle: Bundle, tmp_path: Path) -> None:
    new = blank(bundle, [None])
    save_calibration(new, tmp_path / "new.json")
    assert load_calibration(tmp_path / "new.json", bundle.label) == new
    old = msgspec.to_builtins(new)
    del old["circumstances"]
    (tmp_path / "old.json").write_bytes(msgspec.json.encode(old))
    judge = Judge(bundle, CascadeSettings(mask=mask("m", 2)), load_calibration(tmp_path / "old.json", bundle.label))
    assert judge.differences == ()


def test_one_line_of_the_log_names_what_differs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of(())
        warn_of(("another extra mask", "a beam centre 5 pixels off"))
    (record,) = caplog.records
    assert "(another extra mask; a beam centre 5 pixels off)" in record.getMessage()
    assert vars(record)[EVENT] == "calibration_elsewhere"
