"""Samples in memory: for tests, for features computed beforehand, for attributes of other packages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.files import BadInput
from training.loop.samples import Batch, Places, Source, digest


class ArraySource:
    """Fields as arrays (N, ...); ``groups`` (N,), by default each sample its own. Raises ``BadInput``."""

    def __init__(
        self, fields: Mapping[str, NDArray[Any]], groups: NDArray[np.int64] | None = None, name: str = "arrays"
    ) -> None:
        lengths = {field: len(values) for field, values in fields.items()}
        if len(set(lengths.values())) != 1:
            said = ", ".join(f"{field} {length}" for field, length in lengths.items()) or "no field"
            raise BadInput(f"{name}: fields of one length are needed, there are {said}")
        self.name, self.fields = name, frozenset(fields)
        self._values = dict(fields)
        self._length = next(iter(lengths.values()))
        self.groups = np.arange(self._length) if groups is None else np.asarray(groups, np.int64)
        if self.groups.shape != (self._length,):
            raise BadInput(f"{name}: groups of shape {self.groups.shape}, one id is needed for each of {self._length}")
        self.identity = f"{name}:{digest(*(self._values[field] for field in sorted(self._values)))}"

    def __len__(self) -> int:
        return self._length

    def lacking(self, field: str) -> str:
        return f"{self.name}: no field {field!r}"

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        return {name: self._values[name][places] for name in names}

    def at_epoch(self, epoch: int) -> Source:
        del epoch
        return self
