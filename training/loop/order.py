"""Which sample is in which batch: a function of seed and epoch alone, so that a run can go on anywhere."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from streamer.files import BadInput
from training.loop.samples import Batch, Places, Source


def batches(samples: int, batch: int, seed: int, epoch: int) -> list[Places]:
    """Places 0 to samples - 1, shuffled, in batches of at most ``batch`` whose sizes differ by no more than one."""
    order = np.random.default_rng([seed, epoch]).permutation(samples)
    return in_turn(order, batch)


def in_turn(places: Places, batch: int) -> list[Places]:
    """Places in their order, in batches of at most ``batch`` whose sizes differ by no more than one."""
    return list(np.array_split(places, -(-len(places) // batch))) if len(places) else []


def seed_everything(*numbers: int) -> None:
    """Seed torch, on every device, from these numbers.

    Done before every step: the state of the random numbers is the position in the run, and needs no keeping.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


class _Loadable:
    def __init__(self, source: Source, names: Sequence[str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, places: Places) -> Batch | BadInput:
        try:
            return self._source.batch(places, self._names)
        except BadInput as error:  # raised where it is read: on its way between processes it would grow a traceback
            return error


def load(source: Source, wanted: Sequence[Places], names: Sequence[str], workers: int) -> Iterator[dict[str, Tensor]]:
    """The batches of these places, in order, read ahead by so many processes; 0 reads them here, one by one."""
    if not workers:
        for places in wanted:
            yield as_tensors(source.batch(places, names))
        return
    loader: DataLoader[Any] = DataLoader(
        _Loadable(source, names),  # type: ignore[arg-type]
        batch_size=None,
        sampler=wanted,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,  # type: ignore[arg-type]
        multiprocessing_context="fork",
        persistent_workers=False,
    )
    for loaded in loader:
        if isinstance(loaded, BadInput):
            raise loaded
        yield loaded


def _collate(loaded: Batch | BadInput) -> dict[str, Tensor] | BadInput:
    return loaded if isinstance(loaded, BadInput) else as_tensors(loaded)


def as_tensors(batch: Batch) -> dict[str, Tensor]:
    """Arrays as tensors of the same dtype."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
