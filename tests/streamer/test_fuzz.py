"""Mutations by the thousand in a child process: a crash in native code ends it, not the tests."""

import json
import os
import subprocess
import sys

from tests.support import REPOSITORY

MUTATIONS = int(os.environ.get("CXLS_TEST_FUZZ_MUTATIONS", "15000"))


def test_mutated_messages_neither_crash_nor_hang_nor_grow() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.streamer.fuzz_child", "2026", str(MUTATIONS)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60 + MUTATIONS / 200,
        check=False,
    )
    assert child.returncode == 0, f"exit {child.returncode}: {child.stderr[-2000:]}"
    report = json.loads(child.stdout.splitlines()[-1])
    print(report)
    assert sum(report["outcomes"].values()) == MUTATIONS
    assert report["outcomes"]["decoded"] > MUTATIONS / 20
    assert report["growth_bytes"] < 64 << 20
    assert report["slowest_s"] < 5.0
    # The account, whose identities the child checks after every message, saw all that there is to see.
    assert report["invalid"] >= sum(count for name, count in report["outcomes"].items() if name.startswith("invalid"))
    assert report["accepted"] > MUTATIONS / 50
    assert report["series_closed"] > MUTATIONS / 500
    assert all(report["dropped"][reason] for reason in ("duplicate", "stale_series", "out_of_range"))
