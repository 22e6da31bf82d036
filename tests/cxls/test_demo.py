"""The whole path on one machine, as ``make demo`` shows it."""

import re
import subprocess

from tests.cxls.programs import CXLS, environment


def test_the_demo_ends_with_its_series_and_prints_a_summary() -> None:
    done = subprocess.run(
        [*CXLS, "demo", "--exit", "--frames", "8", "--rate", "100", "--listen", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=200, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 series, 8 frames analysed" in done.stdout
    assert "received 8 = processed 8 + dropped 0 + undecodable 0" in done.stdout
    assert re.search(r"^listening http 127\.0\.0\.1:[1-9]\d*$", done.stderr, re.M)
    assert re.search(r"^listening replay tcp://127\.0\.0\.1:[1-9]\d*$", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    # What can be opened is the address that was bound, not the one asked for.
    assert "127.0.0.1:0/" not in done.stdout
