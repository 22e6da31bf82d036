"""The line at the end of a series: of its own frames, in order, and not at the cost of the frames."""

import logging
import re
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from analyzer.bundle import DEFAULT_BUNDLE
from analyzer.front import SeriesReport
from analyzer.parameters.gathered import Gathered
from analyzer.parameters.running import RunEstimate
from analyzer.parameters.sums import RunningSums
from cxls.commands.series_lines import MOST_ESTIMATED, SeriesLines
from streamer.messages import SeriesMetadata
from streamer.series import Series, SeriesClosed
from tests.analyzer.parameters.test_running import Run, header, water
from tests.analyzer.parameters.test_sums import add, sectors
from tests.cxls.programs import Analysis, cxls, replaying

SERIES = {2: (7.0, 150.0), 6: (8.0, 250.0)}
"""Photon energy (keV) and camera length (mm) by condition."""


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A series of water of each condition."""
    made = []
    for condition in SERIES:
        out = tmp_path_factory.mktemp("water") / f"condition{condition}"
        given = ("--condition", condition, "--frames", 16, "--hit-fraction", 0.2, "--seed", 4, "--workers", 1)
        done = cxls("simulate", out, *given)
        assert done.returncode == 0, done.stderr
        made.append(out.with_name(f"{out.name}_master.h5"))
    return made


@pytest.mark.parametrize("live", [False, True])
def test_each_of_several_series_in_one_queue_is_held_against_its_own_header(
    live: bool, masters: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack, caplog.at_level(logging.INFO):
        sources: list[object] = list(masters)
        if live:
            address, _ = stack.enter_context(replaying(*masters))
            sources = [address]
        given = {"series": 2} if live else {}
        run = Analysis(sources, DEFAULT_BUNDLE, tmp_path / "r.jsonl", **given).start().join(120)
    lines = [record.getMessage() for record in caplog.records if "over (end message)" in record.getMessage()]
    assert len(lines) == len(SERIES)
    for line, (energy_keV, length_mm) in zip(lines, SERIES.values(), strict=True):
        assert "16 images of 16" in line
        said = re.search(r"photon energy ([0-9.]+) ± ([0-9.]+) keV", line)
        assert said, line
        assert abs(float(said[1]) - energy_keV) < 4.0 * float(said[2])
        if said := re.search(r"camera length ([0-9.]+) ± ([0-9.]+) mm", line):
            assert abs(float(said[1]) - length_mm) < 4.0 * float(said[2])
    assert "header says" not in caplog.text
    last = run.session.parameters.latest
    assert last is not None
    assert last.mismatches == ()
    shown = run.session.front.running.shown_header
    assert shown is not None
    assert shown.photon_energy_eV == 1e3 * SERIES[6][0]


def report(ordinal: int) -> SeriesReport:
    series = Series(ordinal, ordinal, None, SeriesMetadata())
    closed = SeriesClosed(series, 1, 1, {"head": 0, "gap": 0, "tail": 0}, "end message")
    return SeriesReport(closed, 1, 0, 0, 0)


def gathered(frames: int) -> Gathered:
    sums, where = RunningSums(), sectors()
    for _ in range(frames):
        add(sums, where, 1.0)
    return Gathered(sums.copy(), None)


def said(caplog: pytest.LogCaptureFixture) -> list[int]:
    found = (re.match(r"series (\d+) over", record.getMessage()) for record in caplog.records)
    return [int(each[1]) for each in found if each]


def test_the_publisher_does_not_wait_for_an_estimate_and_no_line_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    go, asked, copies = threading.Event(), [], []

    def over(ordinal: int, copied: bool) -> Gathered:
        copies.append(copied)
        return gathered(ordinal) if copied else Gathered(None, None)

    def estimate(of: Gathered) -> RunEstimate | None:
        asked.append(of)
        assert go.wait(60)
        return None

    lines = SeriesLines(over, estimate)
    lines.start()
    with caplog.at_level(logging.INFO):
        began = time.monotonic()
        for ordinal in range(1, 17):
            lines.report(report(ordinal))
        assert time.monotonic() - began < 10.0, "of 60 s that the estimate takes"
        assert said(caplog) == []
        go.set()
        lines.close()
    assert said(caplog) == list(range(1, 17))
    assert MOST_ESTIMATED <= sum(copies) <= MOST_ESTIMATED + 1
    assert len(asked) == sum(copies)


def test_a_failing_estimate_costs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    def fails(of: Gathered) -> RunEstimate | None:
        raise ArithmeticError

    lines = SeriesLines(lambda ordinal, copied: gathered(1), fails)
    lines.start()
    with caplog.at_level(logging.INFO):
        lines.report(report(1))
        lines.close()
    assert said(caplog) == [1]
    assert "of a series failed" in caplog.text


def test_many_short_series_of_one_header_are_not_each_fitted(caplog: pytest.LogCaptureFixture) -> None:
    sums, asked = RunningSums(), []
    where = sectors()

    def over(ordinal: int, copied: bool) -> Gathered:
        add(sums, where, 1.0)
        return Gathered(sums.copy() if copied else None, None)

    def estimate(of: Gathered) -> RunEstimate | None:
        asked.append(of)
        return None

    for _ in range(1000):
        add(sums, where, 1.0)
    lines = SeriesLines(over, estimate)
    lines.start()
    with caplog.at_level(logging.INFO):
        for ordinal in range(10):
            lines.report(report(ordinal))
            time.sleep(0.01)
        lines.close()
    assert len(asked) <= 5, "one in a second, on a slow machine more of them"
    assert len(said(caplog)) == 10


def test_a_series_before_is_told_of_while_another_is_shown() -> None:
    """The estimate that is shown and its alarms are not touched."""
    first, second = Run(header()), Run(header(camera_length_m=0.2))
    first.add(water(), 200)
    before = first.sums.copy()
    assert before is not None
    second.sums.number = before.number
    second.add(water(length_m=0.2), 200)
    shown = second.estimator.latest
    told = second.estimator.of(before, None)
    assert told is not None
    assert told.fields["camera_length_m"] == pytest.approx(0.15, abs=2e-3)
    assert told.found == ()
    assert second.estimator.latest is shown
    assert shown is not None
    assert shown.fields["camera_length_m"] == pytest.approx(0.2, abs=5e-3)
