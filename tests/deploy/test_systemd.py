"""Units that systemd takes as they are, that give the program little to break, and whose commands exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cxls.settings import RESERVED, known_names
from tests.command_lines import problem
from tests.support import REPOSITORY, require

UNITS = REPOSITORY / "deploy" / "systemd"
NAMES = sorted(path.name for path in UNITS.glob("*.service"))
PROGRAM = "/opt/cxls/venv/bin/cxls"
SCRIPT = "/opt/cxls/deploy/site/analyze-live.sh"
MOST_EXPOSURE = 20
"""Tenths: systemd calls up to 2.0 of 10 OK; a unit without any hardening has 9.6."""


def lines(name: str, key: str) -> list[str]:
    """Values of a key of a unit, in their order."""
    found = []
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith(f"{key}="):
            found.append(line.partition("=")[2])
    return found


@pytest.fixture
def unit_folder(tmp_path: Path) -> Path:
    """The units, with a program that is there in place of the installed one."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        assert PROGRAM in text
        here = shutil.which("true") or "/bin/true"
        (tmp_path / name).write_text(text.replace(PROGRAM, here).replace(SCRIPT, here))
    return tmp_path


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    require("systemd-analyze", "systemd")
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_there_are_the_units_that_the_guide_names() -> None:
    assert NAMES == ["cxls-analyze.service", "cxls-replay.service", "cxls-worker@.service"]


@pytest.mark.parametrize("name", NAMES)
def test_systemd_takes_the_unit_without_a_word(unit_folder: Path, name: str) -> None:
    done = analyze("verify", "--man=no", unit_folder / name)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_says_what_is_wrong_with_a_unit(unit_folder: Path) -> None:
    """That the test above can fail."""
    unit = unit_folder / NAMES[0]
    unit.write_text(unit.read_text().replace("WatchdogSec=3min", "WatchdogSec=soon"))
    assert "Failed to parse sec value" in analyze("verify", "--man=no", unit).stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_exposed_to_little(unit_folder: Path, name: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", "--no-pager", unit_folder / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gpu_costs_the_device_list_alone(unit_folder: Path) -> None:
    folder = unit_folder / "cxls-analyze.service.d"
    folder.mkdir()
    shutil.copy(UNITS / "gpu.conf", folder)
    unit = unit_folder / "cxls-analyze.service"
    assert analyze("verify", "--man=no", unit).stderr == ""
    merged = unit_folder / "merged" / unit.name
    merged.parent.mkdir()
    merged.write_text(unit.read_text().replace("[Install]", (UNITS / "gpu.conf").read_text() + "\n[Install]"))
    done = analyze("security", "--offline=true", "--threshold=30", "--no-pager", merged)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_what_a_unit_starts_is_a_command_of_ours(name: str) -> None:
    started = [line for key in ("ExecStartPre", "ExecStart") for line in lines(name, key)]
    assert started
    for line in started:
        program, *words = line.split()
        if program == SCRIPT:
            assert not words
            continue
        assert program == PROGRAM
        assert problem(words) is None, line


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_restarts_what_failed_but_not_what_is_set_wrongly(name: str) -> None:
    assert lines(name, "Restart")[0] in ("on-failure", "always")
    assert lines(name, "RestartPreventExitStatus") == ["2"]
    assert lines(name, "SuccessExitStatus") == ["130 143"]


@pytest.mark.parametrize("name", ["cxls-analyze.service", "cxls-worker@.service"])
def test_analysis_is_started_again_however_often_it_fails(name: str) -> None:
    assert lines(name, "StartLimitIntervalSec") == ["0"]
    assert lines(name, "StartLimitBurst") == []
    assert int(lines(name, "RestartSec")[0]) >= 2


@pytest.mark.parametrize("name", ["cxls-analyze.service", "cxls-worker@.service"])
def test_analysis_is_watched(name: str) -> None:
    assert lines(name, "Type") == ["notify"]
    assert lines(name, "WatchdogSec") == ["3min"]


def environment_file() -> dict[str, str]:
    found = {}
    for line in (UNITS / "cxls.env").read_text().splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            assert re.fullmatch(r"[A-Z_]+", key), line
            found[key] = value
    return found


def test_every_variable_of_the_environment_file_is_a_setting_or_used_by_a_unit() -> None:
    text = "".join((UNITS / name).read_text() for name in NAMES)
    text += (REPOSITORY / Path(SCRIPT).relative_to("/opt/cxls")).read_text()
    for key in environment_file():
        if key.startswith("CXLS_"):
            assert key in RESERVED or key.removeprefix("CXLS_").lower() in known_names(), key
        else:
            assert re.search(rf"\$\{{?{key}\b", text), key


def test_every_variable_of_a_unit_is_in_the_environment_file() -> None:
    for name in NAMES:
        for line in lines(name, "ExecStart"):
            for key in re.findall(r"\$\{?([A-Z_]+)", line):
                assert key in environment_file(), (name, key)


def test_the_user_and_the_folders_are_made_as_the_units_want_them(tmp_path: Path) -> None:
    require("systemd-sysusers", "systemd")
    require("systemd-tmpfiles", "systemd")
    if os.geteuid() != 0:
        pytest.skip("making users and giving them folders, in a root folder of the test, needs root")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for program, name in (("systemd-sysusers", "cxls.sysusers.conf"), ("systemd-tmpfiles", "cxls.tmpfiles.conf")):
        options = ["--create"] if "tmpfiles" in program else []
        done = subprocess.run(
            [program, *options, f"--root={root}", UNITS / name], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    entry = next(line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("cxls:"))
    uid = int(entry.split(":")[2])
    for folder in ("data/cxls", "var/lib/cxls", "var/cache/cxls"):
        assert (root / folder).stat().st_uid == uid
    token = root / "etc/cxls/control-token"
    token.write_text("secret\n")
    token.chmod(0o644)
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={root}", UNITS / "cxls.tmpfiles.conf"], check=True)
    assert (token.stat().st_mode & 0o777, token.stat().st_uid) == (0o600, uid)
