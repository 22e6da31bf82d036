"""Every benchmark of speed runs on a few frames: its JSON reads back, and its figures agree with one another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxls.bench import cascade, decode, decoders, end_to_end, om_peer, preprocess, profile, roofline, roofs, scaling
from cxls.bench.report import Grid, Report, as_text, from_json
from tests.cxls.programs import cxls

FRAMES = 4


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a benchmark by the command, one round; its report, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *options: object, **constants: Any) -> Report:
        module = {
            "decode": decode,
            "preprocess": preprocess,
            "cascade": cascade,
            "end-to-end": end_to_end,
            "scaling": scaling,
            "roofline": roofline,
            "profile": profile,
        }[name]
        for constant, value in ({"ROUNDS": 1} | constants).items():
            monkeypatch.setattr(module, constant, value)
        done = cxls("bench", name, "--frames", FRAMES, *options)
        assert done.returncode == 0, done.stderr
        benchmark, report, where = from_json((tmp_path / "runs" / f"bench-{name}.json").read_bytes())
        assert benchmark == name
        assert where["command"].startswith(f"cxls bench {name} --frames {FRAMES}")
        assert as_text(report, where) in "\n".join(line.rstrip() for line in done.stdout.splitlines())
        for grid in report.grids:
            assert len(grid.rows) == len(grid.values) > 0
            assert all(len(row) == len(grid.columns) for row in grid.values)
        return report

    return run


def column(grid: Grid, name: str) -> list[float | None]:
    return [row[list(grid.columns).index(name)] for row in grid.values]


def ratios(report: Report) -> dict[str, float]:
    return {ratio.name: ratio.value for ratio in report.ratios}


def test_decode(bench: Any) -> None:
    report = bench("decode", DTYPES=("uint8", "uint32"), FLUXES=(3e8,))
    one, median, two = report.grids
    assert list(one.rows) == decoders.installed()
    assert list(one.columns) == ["u8 3e08", "u32 3e08"]
    assert np.array(one.values, float).min() > 0.0
    assert one.values == median.values, "with one round, the best is the median"
    assert np.array(two.values, float).shape == (len(one.rows), 2)
    best = dict(zip(one.rows, one.values, strict=True))
    for name, ratio in ratios(report).items():
        peer = name.removeprefix("ours / ").partition(", one thread")[0]
        assert ratio == pytest.approx(min(a / b for a, b in zip(best["ours"], best[peer], strict=True)))


def test_preprocess(bench: Any) -> None:
    report = bench("preprocess", CASES=((5, 3e8, 1.0),))
    least = report.grids[0]
    ours, floor, *peers = least.values[0]
    assert 0.0 < floor < ours
    if not om_peer.available():
        assert peers == [None, None]
        assert any("make peers" in note for note in report.notes)
        return
    assert list(ratios(report).values()) == pytest.approx([peer / ours for peer in peers])


def test_cascade(bench: Any) -> None:
    report = bench("cascade", CASES=((5, 3e8),), PAPER_FRAMES=1)
    stages, least, _ = report.grids
    spent = sum(value for value in stages.values[0] if value is not None)
    ours = least.values[0][0]
    assert ours is not None
    # Stages are by the wall, the whole is by CPU, so neither bounds the other on a busy machine.
    assert 0.2 < spent / ours < 10.0
    paper = report.figures[0].value
    assert paper is not None
    assert paper > ours
    found = ratios(report)
    assert found["the paper's network / ours, condition 5, 3e08 photons"] == pytest.approx(paper / ours)
    if om_peer.available():
        full = least.values[0][1]
        assert full is not None
        assert found["OM full / ours, condition 5, 3e08 photons"] == pytest.approx(full / ours)


def test_end_to_end(bench: Any) -> None:
    report = bench("end-to-end", "--device", "cpu", REPEATS=8, PARTS=(1.0,))
    rates = {figure.name.removesuffix(": rate"): figure.value for figure in report.figures if ": rate" in figure.name}
    found = ratios(report)
    if rates["one core, in process"] is not None:
        live = rates["two cores, over ZeroMQ"]
        assert found["two cores over ZeroMQ / one core, best"] == pytest.approx(live / rates["one core, in process"])
        independent = rates["two independent programs, a core each"]
        assert found["two cores over ZeroMQ / two independent programs, best"] == pytest.approx(live / independent)
    (grid,) = report.grids
    for row, rate in zip(grid.values, (rates["offline, 2 workers"], rates["live v2"]), strict=True):
        offered, p50, p90, p99, most, analysed, dropped, missing = row
        assert offered == pytest.approx(rate)
        assert 0.0 < p50 <= p90 <= p99 <= most
        assert analysed + dropped + missing == FRAMES * 8
    assert any("kept" in note or "MISSED" in note or "no two cores" in note for note in report.notes)


def test_scaling(bench: Any) -> None:
    sizes = {"small": (128, 160), "large": (256, 320)}
    report = bench("scaling", SIZES=sizes, FLUXES=(3e8, 3e10), BATCHES=(1, 4, 8), WORKERS=(1, 2))
    batches, workers, by_size, by_flux = report.grids
    assert list(batches.rows) == ["1", "4"], "no batch is larger than the series"
    assert list(workers.rows) == ["1", "2"]
    for row, (rows, columns) in zip(by_size.values, sizes.values(), strict=True):
        values = dict(zip(by_size.columns, row, strict=True))
        assert values["CPU a pixel, ns"] == pytest.approx(values["CPU"] * 1e6 / (rows * columns))
    counts = column(by_flux, "counts a pixel")
    assert counts[0] is not None
    assert counts[1] is not None
    assert 30 < counts[1] / counts[0] < 130
    found = ratios(report)
    rate = column(workers, "frames/s, best")
    assert found["2 workers / one, frames a second"] == pytest.approx(rate[1] / rate[0])  # type: ignore[operator]


def test_roofline(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "ROUNDS", 1)
    report = bench("roofline", LARGE_BYTES=8 << 20)
    (grid,) = report.grids
    assert {"usual: plain decode", "bright: unpack and reduce"} <= set(grid.rows)
    for ms, rate, roof, share in grid.values:
        assert ms > 0.0
        assert share == pytest.approx(100 * rate / roof)
        assert share < 150.0, "nothing is much faster than what it is made of"
    gpu = [figure for figure in report.figures if "GPU" in figure.name]
    if not torch.cuda.is_available():
        assert len(gpu) == 8
    for figure in gpu:
        assert (figure.value is None) == (figure.note == "not measured on a GPU")


def test_profile(bench: Any) -> None:
    report = bench("profile", CASES={"usual": (5, 3e8)}, SAMPLED_S=0.5)
    stages, *others = report.grids
    assert list(stages.rows) == ["usual"]
    statements = others[-1]
    shares = [share for share in column(statements, "share, %") if share is not None]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 100.0
    assert any(row.startswith("analyzer/") for row in statements.rows)
    if len(others) > 1:
        assert 95.0 < sum(value for value in others[0].values[0] if value is not None) < 105.0
    else:
        assert any("by library: not measured" in note for note in report.notes)
