"""``cxls evaluate parameters``: what is printed and written, what is refused, and that ``evaluate`` is as it was."""

import json
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from cxls.cli import cli
from tests.cxls.programs import Child, cxls, refusal, wait_for

SMALL = ("--conditions", "1", "--sums", "1000", "--scenarios", "none", "--repeats", "2")


def test_help_of_evaluate_leads_here() -> None:
    done = CliRunner().invoke(cli, ["evaluate", "--help"])
    assert "cxls evaluate parameters --help" in " ".join(done.output.split())


def test_help_teaches_with_an_example() -> None:
    done = CliRunner().invoke(cli, ["evaluate", "parameters", "--help"])
    assert done.exit_code == 0
    text = " ".join(done.output.split())
    assert "cxls evaluate parameters --conditions 5 --sums 1,1000 --scenarios none --repeats 20" in text
    assert "evaluate parameters [OPTIONS]" in text


def test_a_small_study_is_printed_and_written(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = cxls("evaluate", "parameters", *SMALL, "--report", tmp_path / "report", "--json", figures)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("Photon energy", "Camera length", "Frames that the bound asks for", "The confused pair", "/bound"):
        assert words in done.stdout
    found = json.loads(figures.read_text())
    assert found["series"] == []
    tables = {table["title"]: table["rows"] for table in found["tables"]}
    (row,) = tables["Photon energy"]
    assert row["frames"] == 1000
    assert row["r.m.s. eV"] < 60.0
    assert (tmp_path / "report" / "parameters.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "parameters.png" in report
    assert "Series" not in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--sums", "0"), ("--sums", "1,many"), ("--sums", ""), ("--sums", "1.5"), ("--sums", "100000000"),
     ("--fluxes", "nan"), ("--fluxes", "-3e8"), ("--fluxes", "1e99"), ("--fluxes", ","),
     ("--scenarios", "snow"), ("--conditions", "10"), ("--conditions", "x"), ("--repeats", "1"), ("--seed", "-1")],
)  # fmt: skip
def test_a_value_without_sense_is_refused_by_its_name(option: str, value: str) -> None:
    assert option in refusal("evaluate", "parameters", option, value)


def test_a_source_is_no_business_of_it() -> None:
    assert "unexpected" in refusal("evaluate", "parameters", "run_master.h5")


def test_a_folder_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    assert "is a file" in refusal("evaluate", "parameters", *SMALL, "--report", taken)


def test_a_source_of_that_name_is_still_a_source(tmp_path: Path) -> None:
    assert "parameters" in refusal("evaluate", f"{tmp_path}/parameters")


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_control_c_ends_it_with_nothing_written(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    with Child("evaluate", "parameters", "--scenarios", "none", "--json", figures) as child:
        # It catches both signals once it is at work.
        wait_for(lambda: catches(child.process.pid, signal.SIGTERM), 120)
        assert child.end(signal.SIGINT) == 130
    assert not figures.exists()
    assert "Traceback" not in "".join(child.errors)
