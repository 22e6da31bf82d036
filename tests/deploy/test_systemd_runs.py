"""The analysis as a service of a real systemd: a user's manager in namespaces of its own, where that is allowed.

What a user's manager cannot do (another user, limits of memory) and what would hide this Python, which may lie in a
home folder or in /tmp, is taken out of the unit; the rest is the unit as it is, hardening included.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analyzer.builders import frames_of_a_run, write_bundle, write_series
from tests.cxls.programs import Analysis, replaying, wait_for
from tests.support import REPOSITORY, require

UNIT, WORKER = "cxls-analyze.service", "cxls-worker@.service"
NOT_HERE = (
    "User=", "Group=", "MemoryMax=", "MemorySwapMax=", "TasksMax=", "CPUWeight=", "StateDirectory=", "CacheDirectory=",
    "WorkingDirectory=", "Wants=", "After=", "ProtectHome=", "PrivateTmp=",
    # Of kernels without /dev/kmsg or some of /proc they make a failure.
    "ProtectKernelLogs=", "ProtectKernelTunables=",
)  # fmt: skip
GROUPS = tuple(
    Path("/sys/fs/cgroup", below) for below in ("systemd/app.slice", "systemd/init.scope", "app.slice", "init.scope")
)
"""Where a manager that finds no other puts its processes."""

# Not the first process of its namespace, which it takes for a whole machine's.
BOOT = """
mount -t tmpfs tmpfs /run/systemd && mkdir -p /run/systemd/system
env -i HOME={home} XDG_RUNTIME_DIR={run} PATH=/usr/bin:/bin /lib/systemd/systemd --user --log-target=console &
wait
"""


def unit_text(name: str, folder: Path) -> str:
    """The unit with its places moved into ``folder``."""
    text = (REPOSITORY / "deploy" / "systemd" / name).read_text()
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(NOT_HERE))
    moved = {
        "/opt/cxls/venv/bin": f"{folder}/bin",
        "/opt/cxls": str(REPOSITORY),
        "/etc/cxls": f"{folder}/etc",
        # What is compiled already lies beside the sources.
        "NUMBA_CACHE_DIR=/var/cache/cxls/numba ": "",
        "/var/cache/cxls": f"{folder}/cache",
        "-/data/cxls": f"{folder}/data",
        "WatchdogSec=3min": "WatchdogSec=6s",
        "TimeoutStopSec=90": "TimeoutStopSec=20\nTimeoutAbortSec=1",
        "[Service]\n": "\n".join(
            (
                "[Service]",
                f"ReadWritePaths={folder}/cache {REPOSITORY}",
                f"Environment=TMPDIR={folder}/cache",
                f"StandardOutput=append:{folder}/said",
                f"StandardError=append:{folder}/said\n",
            )
        ),
        "Environment=OMP": f"Environment=PYTHONPATH={REPOSITORY} OMP",
    }
    for before, after in moved.items():
        text = text.replace(before, after)
    return text


class Manager:
    """A user's systemd, and ``systemctl`` for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.run.mkdir(mode=0o700)
        units = folder / "home" / ".config" / "systemd" / "user"
        units.mkdir(parents=True)
        for name in (UNIT, WORKER):
            (units / name).write_text(unit_text(name, folder))
        (units / "default.target").write_text("[Unit]\nDescription=Nothing by itself\n")
        boot = BOOT.format(home=folder / "home", run=self.run)
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", boot],
            stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``systemctl`` among the manager's processes: it answers nobody whom it does not see."""
        pid = self.process.pid
        inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return subprocess.run(
            ["nsenter", "--target", *inside[:1], "--mount", "--pid", "systemctl", "--user", *arguments],
            env={"XDG_RUNTIME_DIR": str(self.run), "PATH": os.environ["PATH"], "HOME": str(self.folder / "home")},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    @property
    def said(self) -> str:
        """What the service wrote, and what became of it."""
        path = self.folder / "said"
        status = self.ctl("status", "--no-pager", UNIT).stdout
        return status + (path.read_text()[-3000:] if path.exists() else "")

    def show(self, key: str) -> str:
        return self.ctl("show", UNIT, f"--property={key}").stdout.strip().partition("=")[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()
        for group in GROUPS:
            for below in sorted({group, *group.glob("**/")}, reverse=True):
                # The last of its processes may still be ending.
                wait_for(lambda below=below: _gone(below), 10)  # type: ignore[misc]


def _gone(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    require("systemctl", "systemd")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a systemd of its own needs root and unshare")
    if Path("/run/systemd/system").exists() or any(group.exists() for group in GROUPS):
        pytest.skip("this machine was booted by a systemd, which another one would get in the way of")
    for name in ("etc", "data", "cache", "bin"):
        (tmp_path / name).mkdir()
    program = tmp_path / "bin" / "cxls"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cxls "$@"\n')
    program.chmod(0o755)
    running = Manager(tmp_path)
    try:
        try:
            wait_for(lambda: running.ctl("is-system-running").stdout.strip() in ("running", "degraded"), 15)
        except AssertionError:
            pytest.skip(f"no systemd could be started here: {(tmp_path / 'log').read_text()[-300:]}")
        yield running
    finally:
        running.close()


def test_the_service_is_ready_is_restarted_when_it_hangs_and_ends_in_order(manager: Manager, tmp_path: Path) -> None:
    master = write_series(tmp_path / "series", frames_of_a_run(6))
    with replaying(master, loop=True, rate_hz=20.0) as (endpoint, _):
        (tmp_path / "etc" / "cxls.toml").write_text('listen = "127.0.0.1:0"\non_full = "drop"\nworkers = 1\n')
        (tmp_path / "etc" / "cxls.env").write_text(
            f"CXLS_CONFIG={tmp_path}/etc/cxls.toml\nDETECTOR={endpoint}\nDATA={tmp_path}/data\n"
        )
        started = manager.ctl("start", UNIT)
        assert started.returncode == 0, started.stderr + manager.said
        assert manager.show("ActiveState") == "active"
        wait_for(lambda: bool(re.search(r"received [1-9]", manager.show("StatusText"))), 40)
        folders = list((tmp_path / "data").iterdir())
        assert len(folders) == 1
        assert manager.ctl("kill", "--signal=STOP", UNIT).returncode == 0
        wait_for(lambda: manager.show("NRestarts") == "1" and manager.show("ActiveState") == "active", 60)
        # It was killed: its folder is gone on with.
        assert list((tmp_path / "data").iterdir()) == folders
        wait_for(lambda: bool(re.search(r"received [1-9]", manager.show("StatusText"))), 40)
        assert manager.ctl("stop", UNIT).returncode == 0
        assert (manager.show("ActiveState"), manager.show("Result")) == ("inactive", "success")
    parts = list((tmp_path / "data").glob("*/results.parquet/part-*.parquet"))
    assert parts


def test_a_worker_named_after_its_front_analyses_for_it(manager: Manager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        front = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "etc" / "cxls.env").write_text("WORKER_LISTEN=127.0.0.1:0\nCXLS_PROCESSES=1\n")
    master = write_series(tmp_path / "series", frames_of_a_run(6))
    unit = WORKER.replace("@", f"@{front}")
    started = manager.ctl("start", unit)
    assert started.returncode == 0, started.stderr + manager.said
    # Ready without a front, and watched.
    assert "active" in manager.ctl("is-active", unit).stdout
    assert f"not ready for tcp://{front}" in manager.ctl("show", unit, "--property=StatusText").stdout
    with replaying(master) as (endpoint, _):
        bundle = write_bundle(tmp_path / "bundle")
        elsewhere = {"workers": 0, "worker_listen": f"tcp://{front}", "series": 1}
        analysis = Analysis([endpoint], bundle, tmp_path / "r.jsonl", **elsewhere)
        analysis.start().join(60)
    analysis.assert_closes()
    assert analysis.account.received == 6, manager.said
    restarts = ("show", unit, "--property=NRestarts")
    assert manager.ctl(*restarts).stdout.strip() == "NRestarts=0"
    assert manager.ctl("kill", "--signal=STOP", unit).returncode == 0
    wait_for(lambda: manager.ctl(*restarts).stdout.strip() == "NRestarts=1", 60)
    wait_for(lambda: manager.ctl("is-active", unit).stdout.strip() == "active", 60)
    assert manager.ctl("stop", unit).returncode == 0
    assert manager.ctl("show", unit, "--property=Result").stdout.strip() == "Result=success"
