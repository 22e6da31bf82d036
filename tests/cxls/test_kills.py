"""Programs killed at random moments leave what others can read, and the next run says what it cost."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cxls.programs import environment
from tests.support import REPOSITORY

POINTS = int(os.environ.get("CXLS_TEST_KILLS_POINTS", "3"))


def test_random_kills_leave_readable_outputs_and_every_image_recorded_or_counted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cxls.kill_points", str(POINTS), "1", "--work", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True,
        timeout=300 + 60 * POINTS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    print(done.stdout)
