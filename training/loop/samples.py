"""Where samples come from: a source has named fields and hands out batches of them by place.

Fields that sources share a name for:

    image                (B, 1, ss, fs) float32, counts with invalid pixels 0
    clean_image          the same, of the Bragg light alone
    peak_map             (B, 1, ss, fs) float32, 1 at one pixel of each true spot
    hit                  (B,) bool
    photon_energy_eV, camera_length_m   (B,) float64
"""

import hashlib
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from streamer.files import BadInput

Batch = dict[str, NDArray[Any]]
Places = NDArray[np.intp]

IMAGES = ("image", "clean_image", "peak_map")
"""Fields that are cut and binned."""


class Source(Protocol):
    """Samples by place, 0 to len - 1.

    name: as messages and records call it. identity: differs when the samples do; says whether a checkpoint is of them.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def fields(self) -> frozenset[str]: ...

    @property
    def groups(self) -> NDArray[np.int64]:
        """(N,) ids; samples of one id share something that a network could learn by heart."""
        ...

    def __len__(self) -> int: ...

    def lacking(self, field: str) -> str:
        """The file without this field, and what it lacks there; only asked of a field that is not in ``fields``."""
        ...

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        """These fields of these samples, in order. Raises ``BadInput`` for a sample that cannot be read."""
        ...

    def at_epoch(self, epoch: int) -> "Source":
        """What an epoch trains on: itself, or new samples where they cost nothing to keep."""
        ...


def require_fields(source: Source, names: Iterable[str], purpose: str) -> None:
    """Raises ``BadInput``, naming field and file, unless the source has all of them; purpose: what needs them."""
    for name in names:
        if name not in source.fields:
            there = ", ".join(sorted(source.fields))
            raise BadInput(f"{source.lacking(name)}; {purpose} needs {name!r}, every sample has: {there}")


def linked(keys: Sequence[Collection[Hashable]]) -> NDArray[np.int64]:
    """Group ids (N,) of samples that are connected by shared keys, through others too."""
    number: dict[Hashable, int] = {}
    links = [(n, len(keys) + number.setdefault(key, len(number))) for n, mine in enumerate(keys) for key in mine]
    rows, columns = np.array(links, np.int64).reshape(-1, 2).T
    size = len(keys) + len(number)
    graph = coo_array((np.ones(len(links), np.int8), (rows, columns)), shape=(size, size))
    group: NDArray[np.int64] = connected_components(graph, directed=False)[1][: len(keys)].astype(np.int64)
    return group


class Part:
    """Some samples of a source, by place."""

    def __init__(self, source: Source, places: Places) -> None:
        self.source, self.places = source, np.asarray(places, np.intp)
        self.name, self.fields = source.name, source.fields
        self.identity = f"{source.identity}[{digest(self.places)}]"

    @property
    def groups(self) -> NDArray[np.int64]:
        return self.source.groups[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def lacking(self, field: str) -> str:
        return self.source.lacking(field)

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        return self.source.batch(self.places[places], names)

    def at_epoch(self, epoch: int) -> Source:
        return Part(self.source.at_epoch(epoch), self.places)


class Joined:
    """Sources one after the other; it has the fields that all of them have."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self.name = ", ".join(source.name for source in sources)
        self.identity = "+".join(source.identity for source in sources)
        self.fields = frozenset.intersection(*(source.fields for source in sources))
        self._ends = np.cumsum([len(source) for source in sources])

    @property
    def groups(self) -> NDArray[np.int64]:
        parts, first = [], 0
        for source in self.sources:
            _, ids = np.unique(source.groups, return_inverse=True)
            parts.append(ids + first)
            first += int(ids.max(initial=-1)) + 1
        return np.concatenate(parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lacking(self, field: str) -> str:
        return next(source for source in self.sources if field not in source.fields).lacking(field)

    def batch(self, places: Places, names: Sequence[str]) -> Batch:
        of = np.searchsorted(self._ends, places, side="right")
        out: Batch = {}
        for number in np.unique(of):
            mine, first = of == number, self._ends[number] - len(self.sources[number])
            for name, values in self.sources[number].batch(places[mine] - first, names).items():
                if name not in out:
                    out[name] = np.empty((len(places), *values.shape[1:]), values.dtype)
                if out[name].shape[1:] != values.shape[1:]:
                    way_out = "; give --size to cut all frames to one" if name in IMAGES else ""
                    raise BadInput(
                        f"{self.sources[number].name}: {name} of shape {values.shape[1:]} beside others of "
                        f"{out[name].shape[1:]}{way_out}"
                    )
                out[name][mine] = values
        return out

    def at_epoch(self, epoch: int) -> Source:
        return Joined([source.at_epoch(epoch) for source in self.sources])


def split_by_group(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """The source in two, the second with about this fraction of the samples, no group on both sides.

    Raises ``BadInput`` where one side would be empty.
    """
    ids, sizes = np.unique(source.groups, return_counts=True)
    order = np.random.default_rng([seed, 0x5EED]).permutation(len(ids))
    before = np.cumsum(sizes[order]) - sizes[order] / 2
    second = np.isin(source.groups, ids[order[before <= fraction * len(source)]])
    if not len(ids[order]) or len(ids) < 2:
        raise BadInput(f"{source.name}: {len(source)} samples in {len(ids)} groups cannot be split in two")
    if not second.any() or second.all():
        second = source.groups == ids[order[0]]
    return Part(source, np.flatnonzero(~second)), Part(source, np.flatnonzero(second))


def digest(*arrays: NDArray[Any]) -> str:
    """A short name for what arrays hold."""
    hashed = hashlib.blake2b(digest_size=8)
    for array in arrays:
        hashed.update(f"{array.shape}{array.dtype.str}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
