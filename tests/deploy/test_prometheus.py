"""The Prometheus configuration is one that Prometheus takes."""

import subprocess
from pathlib import Path

from tests.support import require

CONFIG = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"


def test_promtool_accepts_the_configuration() -> None:
    require("promtool")
    done = subprocess.run(["promtool", "check", "config", str(CONFIG)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
