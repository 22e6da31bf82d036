"""Every kept input through its target, and a moment of real fuzzing in a child where atheris is installed."""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import CORPUS, TARGETS
from tests.support import REPOSITORY, require

SECONDS = os.environ.get("CXLS_TEST_FUZZ_SECONDS")
"""How long each target is fuzzed; unless given, a moment, and only those that begin quickly."""

QUICK = ("stream_v1", "stream_v2", "decoder", "geometry")


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_is_taken_or_refused_in_time(name: str) -> None:
    target = importlib.import_module(f"tests.fuzz.{name}")
    kept = sorted((CORPUS / name).iterdir())
    assert len(kept) > 10
    for number, data in enumerate([*(path.read_bytes() for path in kept), *target.seeds()]):
        began = time.process_time()
        try:
            target.one(data)
        except Exception as error:
            where = kept[number] if number < len(kept) else f"seed {number - len(kept)}"
            raise AssertionError(f"{name}: {where}: {type(error).__name__}: {error}") from error
        assert time.process_time() - began < 5.0


def test_the_kept_inputs_are_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(TARGETS)
    assert sum(path.stat().st_size for path in files) < 1 << 20


@pytest.mark.parametrize("name", TARGETS if SECONDS else QUICK)
def test_a_moment_of_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    require("atheris")
    options = [f"-max_total_time={SECONDS or 1}", f"-artifact_prefix={tmp_path}/", "-print_final_stats=1"]
    command = [sys.executable, "-m", "tests.fuzz", name, *options, str(tmp_path / "found")]
    # What a process starts as counts its parent's memory as its own peak, which libFuzzer limits: a shell, which is
    # small, starts it and not this process.
    child = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120 + int(SECONDS or 1),
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert "DONE" in child.stderr
