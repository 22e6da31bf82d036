"""A training in a process of its own: python -m tests.training.loop.train_child FOLDER [STEP]

With STEP it says so and waits after that step, to be killed. Under torchrun it is one of the ranks.
"""

import sys
import time
from pathlib import Path

from tests.training.loop import builders
from training.loop.distributed import ranks
from training.loop.train import Conduct, train

if __name__ == "__main__":
    folder, wait_at = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    builders.register()
    builders.one_thread()

    def keep_going(done: int, total: int) -> bool:
        if wait_at and done > wait_at:
            print("waiting", flush=True)
            time.sleep(600)
        return True

    with ranks("cpu") as here:
        job = builders.DROPOUT_JOB if wait_at else builders.SGD_JOB
        conduct = Conduct(
            draws=False, folder=folder, ranks=here, checkpoint_s=0.0 if wait_at else 300.0, keep_going=keep_going
        )
        train(job, builders.spots(), builders.spots(21, 2), conduct)
