"""The site's example configuration, and the script that the services start, run for real."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cxls.settings import AnalyzeSettings, resolve
from tests.analyzer.builders import frames_of_a_run, write_series
from tests.cxls.programs import cxls, environment, replaying, wait_for
from tests.support import REPOSITORY, require

SITE = REPOSITORY / "deploy" / "site"
CONFIG = SITE / "cxls.toml"
SCRIPT = SITE / "analyze-live.sh"
FIREWALL = SITE / "cxls.nft"


def test_the_configuration_is_good() -> None:
    done = cxls("config", "check", "--config", CONFIG)
    assert (done.returncode, done.stdout.strip()) == (0, "settings are good")


def test_the_firewall_is_one_and_opens_what_the_guide_lists() -> None:
    require("nft", "nftables")
    done = subprocess.run(["nft", "--check", "--file", FIREWALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    guide = (REPOSITORY / "docs" / "commissioning.md").read_text()
    to_analyser = re.findall(r"^\| [^|]+ \| analyser \| (\d+) \|", guide, re.M)
    opened = set(re.findall(r"\b\d{4,5}\b", " ".join(re.findall(r"dport (.+) accept", FIREWALL.read_text()))))
    # PVAccess searches by broadcast, which is for the site to decide.
    assert opened == set(to_analyser) - {"5075"}


def test_what_it_sets_reaches_the_analysis() -> None:
    resolved = resolve(AnalyzeSettings, {}, CONFIG, {})
    assert resolved.settings.sample == "auto"
    assert resolved.settings.on_full == "drop"
    assert resolved.origin["queue_mib"] == f"file {CONFIG}"
    assert str(resolved.settings.control_token) == "/etc/cxls/control-token"


def test_what_it_only_names_would_be_settings_too(tmp_path: Path) -> None:
    """Lines with a mark before them, as they are meant to be taken in."""
    lines = CONFIG.read_text().splitlines()
    text = "\n".join(line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in lines)
    filled = tmp_path / "cxls.toml"
    filled.write_text(text)
    done = cxls("config", "check", "--config", filled)
    assert done.returncode == 0, done.stderr


def test_it_is_served_to_this_machine_alone() -> None:
    assert resolve(AnalyzeSettings, {}, CONFIG, {}).settings.listen == "127.0.0.1:8080"


def script_of(folder: Path, **variables: str) -> "subprocess.Popen[str]":
    """The script on one series, running."""
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    program = binaries / "cxls"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cxls "$@"\n')
    program.chmod(0o755)
    variables |= {"PATH": f"{binaries}:/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [SCRIPT, "--series", "1", "--listen", "127.0.0.1:0"],
        env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def script(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script's run to its end, on one series."""
    with script_of(folder, **variables) as child:
        out, errors = child.communicate(timeout=120)
    return subprocess.CompletedProcess([SCRIPT], child.returncode, out, errors)


def test_each_start_writes_into_a_folder_of_its_own(tmp_path: Path) -> None:
    assert os.access(SCRIPT, os.X_OK)
    master = write_series(tmp_path / "series", frames_of_a_run(8))
    data = tmp_path / "data"
    data.mkdir()
    for starts in (1, 2):
        with replaying(master) as (endpoint, _):
            done = script(tmp_path, DETECTOR=endpoint, DATA=str(data))
        assert done.returncode == 0, done.stderr
        assert "received 8 = processed 8" in done.stdout
        assert len(list(data.iterdir())) == starts
        time.sleep(1.0)
    for folder in data.iterdir():
        assert sorted(each.name for each in folder.iterdir()) == ["hits", "products", "results.parquet"]


def test_a_start_after_a_kill_goes_on_in_the_same_folder_and_counts_what_was_lost(tmp_path: Path) -> None:
    master = write_series(tmp_path / "series", frames_of_a_run(40))
    data = tmp_path / "data"
    data.mkdir()
    with replaying(master, rate_hz=8.0) as (endpoint, _):
        with script_of(tmp_path, DETECTOR=endpoint, DATA=str(data)) as killed:
            wait_for(lambda: any(data.glob("*/results.parquet/part-*.parquet")), 120)
            killed.kill()
        done = script(tmp_path, DETECTOR=endpoint, DATA=str(data))
    assert done.returncode == 0, done.stderr
    (folder,) = data.iterdir()
    images = pq.read_table(folder / "results.parquet").column("image_id").to_pylist()
    lost = int(re.search(r"lost in crashes: (\d+)", done.stdout)[1]) if "lost in crashes" in done.stdout else 0  # type: ignore[index]
    assert len(set(images)) == len(images) == 40 - lost
    # It ended by itself: the next start is a run of its own.
    with replaying(master) as (endpoint, _):
        assert script(tmp_path, DETECTOR=endpoint, DATA=str(data)).returncode == 0
    assert len(list(data.iterdir())) == 2


@pytest.mark.parametrize("missing", ["DETECTOR", "DATA"])
def test_a_variable_that_is_not_set_is_named(tmp_path: Path, missing: str) -> None:
    variables = {"DETECTOR": "tcp://127.0.0.1:9", "DATA": str(tmp_path)}
    variables[missing] = ""
    done = script(tmp_path, **variables)
    assert done.returncode != 0
    assert missing in done.stderr
