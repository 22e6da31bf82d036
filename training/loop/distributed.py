"""One training over several processes, as `torchrun` starts them: each takes a part of every batch.

The gradient is that of the whole batch, whatever the number of ranks: every sample's loss is divided by the size of
the whole batch before it is summed. What is not the same with another number of ranks: dropout, whose random numbers
are drawn rank by rank, and batch normalisation on CPUs, which sees a rank's part (on CUDA it is synchronised).

Ranks may be on several nodes, which share the run's folder. When one dies `torchrun` ends the others and starts all of
them again. Which restart that is its agents count differently (pytorch issue 108158); the job's name they agree on.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.loop.samples import Places


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among ``world`` of them, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, places: Places) -> Places:
        """This rank's part of a batch."""
        return places[self.rank :: self.world]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the ranks."""
        if self.world == 1:
            return network
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def synchronised(self, network: nn.Module) -> nn.Module:
        """The network with batch normalisation over all ranks, where that can be had."""
        if self.world == 1 or self.device.type != "cuda":
            return network
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return synchronised

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the ranks."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, mine: NDArray[Any], places: int) -> NDArray[Any]:
        """Rows (places, ...) of all ranks, of which each has those of its ``share`` of 0 to places - 1."""
        if self.world == 1:
            return mine
        most = -(-places // self.world)
        padded = np.zeros((most, *mine.shape[1:]), np.float64)
        padded[: len(mine)] = mine
        tensor = torch.from_numpy(padded).to(self.device)
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor)
        out = np.empty((places, *mine.shape[1:]), mine.dtype)
        for rank, part in enumerate(parts):
            theirs = out[rank :: self.world]
            theirs[:] = part.cpu().numpy()[: len(theirs)].astype(mine.dtype)
        return out


def world_size() -> int:
    """How many processes `torchrun` has started, as the environment says; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def job_name() -> str | None:
    """What `torchrun` calls this job, the same on every node and after every restart; None where it has no name."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """This process as `torchrun` describes it in the environment, else alone. device: cpu or cuda."""
    world = world_size()
    if world == 1:
        yield Ranks(torch.device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    here = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", rank=rank, world_size=world)
    try:
        yield Ranks(here, rank, world)
        # None leaves while another still speaks to it: gloo ends such a process with an abort.
        dist.barrier()
    finally:
        dist.destroy_process_group()
