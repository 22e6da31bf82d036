"""Programs that end with the one that started them."""

import os
import subprocess
import sys
import time

import pytest

from cxls.bound import bound

STARTER = """
import subprocess, sys, time
from cxls.bound import bound
print(subprocess.Popen(bound(["/bin/sleep", "60"]), start_new_session=True).pid, flush=True)
time.sleep(60)
"""


def name_of(pid: int) -> str | None:
    """What a process runs; ``None`` where it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            before, _, after = file.read().rpartition(")")
    except OSError:
        return None
    return None if after.split()[0] in "ZX" else before.partition("(")[2]


def within(seconds: float, pid: int, name: str | None) -> bool:
    deadline = time.monotonic() + seconds
    while name_of(pid) != name:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nobody that a parent was killed")
def test_a_program_ends_with_the_one_that_started_it_by_kill_9_too() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert within(60, pid, "sleep")
        starter.kill()
        starter.wait()
        assert within(60, pid, None)


def test_a_program_whose_starter_lives_runs_and_ends_as_it_does() -> None:
    done = subprocess.run(bound(["/bin/sh", "-c", "echo $PPID; exit 7"]), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, f"{os.getpid()}\n")
