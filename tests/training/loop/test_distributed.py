"""Two processes train what one does."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from streamer.files import BadInput
from tests.support import REPOSITORY
from tests.training.loop import builders
from tests.training.loop.builders import SGD_JOB, spots
from training.loop.distributed import Ranks, ranks
from training.loop.record import HISTORY
from training.loop.train import BEST, CHECKPOINT, Conduct, train


def test_two_ranks_train_what_one_does_at_the_same_global_batch(tmp_path: Path) -> None:
    # 48 samples in batches of 8: ranks have 4 each; of 21 samples to validate on, 11 and 10.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.loop.train_child", str(tmp_path / "two")]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    one = train(SGD_JOB, spots(), spots(21, 2), Conduct(draws=False, folder=tmp_path / "one"))
    _, errors = child.communicate(timeout=240)
    assert child.returncode == 0, errors
    assert one is not None
    for name in (CHECKPOINT, BEST):
        single, double = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert single.keys() == double.keys()
        for key, tensor in single.items():
            torch.testing.assert_close(double[key], tensor, rtol=1e-5, atol=1e-6)
    columns = range(5)  # all but the times
    tables = [
        np.loadtxt(tmp_path / name / HISTORY, delimiter=",", skiprows=1, usecols=columns) for name in ("one", "two")
    ]
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-5)


def test_shares_of_a_batch_are_all_of_it_and_differ_by_one_at_most() -> None:
    places = np.arange(7) * 3
    shares = [Ranks(torch.device("cpu"), rank, 3).share(places) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == places.tolist()
    assert [len(share) for share in shares] == [3, 2, 2]


def test_a_batch_too_small_to_share_is_refused(tmp_path: Path) -> None:
    conduct = Conduct(draws=False, folder=tmp_path, ranks=Ranks(torch.device("cpu"), 0, 10))
    with pytest.raises(BadInput, match="batches of 9 of 48 samples cannot be shared by 10 ranks"):
        train(SGD_JOB, spots(), spots(21, 2), conduct)
    assert not list(tmp_path.iterdir())


def stand_elsewhere(rank: int, port: int, folder: Path) -> None:
    """One of two ranks, whose run stands where its own folder says."""
    builders.register()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.raises(BadInput, match=r"ranks read it at different steps, \[4, 7\]"), ranks("cpu") as here:
        train(SGD_JOB, spots(), spots(21, 2), Conduct(draws=False, folder=folder, ranks=here, resume=True))


def test_ranks_that_see_different_checkpoints_do_not_train_on(tmp_path: Path) -> None:
    # A file system that shows one node an older checkpoint than another.
    for steps in (4, 7):
        conduct = Conduct(draws=False, folder=tmp_path / str(steps), keep_going=lambda done, _, most=steps: done < most)
        assert train(SGD_JOB, spots(), spots(21, 2), conduct) is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawned = multiprocessing.get_context("spawn")
    both = [
        spawned.Process(target=stand_elsewhere, args=(rank, port, tmp_path / str(steps)))
        for rank, steps in enumerate((4, 7))
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
