"""A child process of the tests of adaptation: trains until it is killed, after its last checkpoint.

finetune_child.py PARENT FOLDER CHECKPOINT_AT WAIT_AT
"""

import sys
import time
from pathlib import Path

import torch

from analyzer.bundle import load_bundle
from tests.training.made_shots import made_shots
from tests.training.test_finetune import CPU, QUICK, real_frames
from training import finetune as finetuning
from training.finetune import SimulatedShots, finetune


def main() -> None:
    parent, folder = map(Path, sys.argv[1:3])
    checkpoint_at, wait_at = map(int, sys.argv[3:])
    torch.set_num_threads(1)

    def progress(done: int, total: int) -> None:
        if done == checkpoint_at:
            finetuning._Training.checkpoint = lambda self: None  # type: ignore[method-assign]
        if done == wait_at:
            print("waiting", flush=True)
            time.sleep(600)

    shots = SimulatedShots(made_shots(96, 11), made_shots(96, 12), made_shots(160, 13))
    finetune(load_bundle(parent), real_frames(), shots, QUICK, CPU, folder, progress, checkpoint_s=0.0)


main()
