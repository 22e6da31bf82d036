"""The scripts of deploy/slurm on a real SLURM of two nodes: a batch and its merge, a training that loses a rank."""

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.analyzer.builders import frames_of_a_run, write_bundle, write_series
from tests.cxls.programs import cxls
from tests.deploy.slurm_cluster import PROGRAMS, Cluster, cluster
from tests.support import REPOSITORY, require
from tests.training.dataset.builders import SHAPE, build_series, good_truth

SCRIPTS = REPOSITORY / "deploy" / "slurm"
SITE_SCRIPT = REPOSITORY / "deploy" / "site" / "analyze-live.sh"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """The cluster; its jobs find this program and this checkout."""
    for name in PROGRAMS:
        require(name, "slurmctld slurmd slurm-client munge")
    if os.geteuid():
        pytest.skip("SLURM's daemons have to be root here")
    with cluster() as ours:
        ours.environment["PATH"] = f"{Path(sys.executable).parent}:{ours.environment['PATH']}"
        ours.environment.update(PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
        yield ours


def submit(slurm: Cluster, folder: Path, *command: object, **variables: str) -> str:
    """What a command that submits says, run in a folder where the jobs' logs go too."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=slurm.environment | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    require("shellcheck")
    scripts = sorted(map(str, [*SCRIPTS.iterdir(), SITE_SCRIPT]))
    assert len(scripts) == 5
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_job_array_on_two_nodes_and_its_merge_give_the_bytes_of_one_process(slurm: Cluster, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    for name, images in (("a", 23), ("b", 40), ("c", 9)):
        write_series(tmp_path, frames_of_a_run(images), name)
    sources = [str(tmp_path / f"{name}_master.h5") for name in "abc"]
    array = submit(
        slurm, tmp_path, SCRIPTS / "submit-batch.sh", "out", *sources, "--bundle", bundle, "--chunk", 5,
        SBATCH_ARRAY_INX="0-3",
    )  # fmt: skip
    # While the array runs, the same by one process.
    for arguments in ([*sources, "--bundle", bundle, "--out", tmp_path / "alone"], ["merge", tmp_path / "alone"]):
        done = cxls("batch", *arguments)
        assert done.returncode == 0, done.stderr
    shards, merge = array.split()
    state = slurm.wait(merge)
    said = logs(tmp_path)
    assert state["JobState"] == "COMPLETED", said
    assert sorted(re.findall(r"shard (\d)/4: 18 frames analysed", said)) == ["0", "1", "2", "3"]
    tasks = slurm.run("scontrol", "--oneliner", "show", "job", shards)
    assert set(re.findall(r" NodeList=(\w+)", tasks)) == {"n1", "n2"}
    for name in ("records.parquet", "report.json", "report.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_task_that_failed_is_missed_by_the_merge_and_the_same_command_finishes_the_batch(
    slurm: Cluster, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    master = write_series(tmp_path, frames_of_a_run(30))
    command = [SCRIPTS / "submit-batch.sh", "out", master, "--bundle", bundle]
    # A folder in the place of a part: one shard cannot write it.
    blocked = tmp_path / "out" / "parts" / "s000001-000000015-000000030.parquet"
    (blocked / "x").mkdir(parents=True)
    state = slurm.wait(submit(slurm, tmp_path, *command, SBATCH_ARRAY_INX="0-1").split()[1])
    assert state["JobState"] == "FAILED"
    assert "not finished: shard 1/2 (15 frames)" in logs(tmp_path)
    shutil.rmtree(blocked)
    state = slurm.wait(submit(slurm, tmp_path, *command, SBATCH_ARRAY_INX="0-1").split()[1])
    assert state["JobState"] == "COMPLETED", logs(tmp_path)
    assert "0 frames analysed, 0 hits, 15 were done before" in logs(tmp_path)


def test_a_training_on_two_nodes_that_loses_a_rank_ends_as_one_that_did_not(slurm: Cluster, tmp_path: Path) -> None:
    bright = np.random.default_rng(3).poisson(2.0, (24, *SHAPE)).astype("u2")
    bright[::2, 4, 5] = bright[::2, 15, 21] = 60
    build_series(tmp_path / "run", frames=24, pixels=bright, truth=good_truth(24), per_file=24)

    def train(name: str) -> str:
        return submit(
            slurm, tmp_path, "sbatch", "--parsable", SCRIPTS / "train.sbatch", "peak", "run", "--run-folder", name,
            "--size", 20, "--workers", 1, "--epochs", 80, "--checkpoint-s", 0, HEAD="127.0.0.1",
        ).strip()  # fmt: skip

    lost = train("lost")
    while len(epochs(tmp_path / "lost")) < 5:
        assert slurm.run("squeue", "--noheader", "--jobs", lost).strip(), logs(tmp_path)
        time.sleep(0.02)
    os.kill(rank_of(1, lost), signal.SIGKILL)
    # On the nodes that the first gives back.
    whole = train("whole")
    for job in (lost, whole):
        assert slurm.wait(job)["JobState"] == "COMPLETED", logs(tmp_path)
    said = (tmp_path / f"cxls-train-{lost}.log").read_text()
    assert said.count("paper-binary-cnn for peak: ") == 2, "it was started twice"
    assert "2 processes" in said
    for name in ("checkpoint.safetensors", "best.safetensors", "model/model.safetensors"):
        theirs, ours = (load_file(tmp_path / folder / name) for folder in ("whole", "lost"))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs), name
    whole_rows, lost_rows = epochs(tmp_path / "whole"), epochs(tmp_path / "lost")
    assert [row[:5] for row in lost_rows] == [row[:5] for row in whole_rows]
    assert len(whole_rows) == 80


def epochs(folder: Path) -> list[list[str]]:
    with contextlib.suppress(FileNotFoundError), (folder / "history.csv").open() as file:
        return list(csv.reader(file))[1:]
    return []


def rank_of(rank: int, job: str) -> int:
    """The process of a rank of a job."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables and f"SLURM_JOB_ID={job}".encode() in variables:
                return int(process.name)
    raise AssertionError(f"no process is rank {rank} of job {job}")
