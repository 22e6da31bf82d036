"""Splits that do not leak: what two images share puts them on one side.

Images share a key when they show the same crystal in the same orientation, the same draw of a background, or the same
random numbers. Connected by shared keys they form groups, and a group is never cut. Keys of

    a series    orientation (rounded to 1e-6), seed and frame_index, background_seed, frame_crystal
    a tree      orientation, noise_seed and noise_index (attributes); digests of the peak image and of overlay - peak

A frame of which nothing of this is known, as of a real detector or of another package's truth, stands alone.

Within that, every condition and both classes are spread over the sides in the same shares, greedily, one condition and
class after the other, largest group first; the order among equals comes from the seed and the image's name, so the
outcome is the same on every machine and for every order of listing.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from streamer.files import BadInput
from training.dataset.images import AfterImage, StoredImage, digest, read_image
from training.dataset.opening import require_ordinary
from training.dataset.paper import PAPER, ImageId, parse_id
from training.dataset.problems import Problem
from training.dataset.series import open_series
from training.dataset.sources import find_sources
from training.dataset.tree import Listing, Tree, list_tree
from training.dataset.truth import Truth
from training.dataset.truth_file import GROUP

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = get_args(Side)

FORMAT = "cxls-split-1"
ORIENTATION_DECIMALS = 6

_WORDS = {
    "background": "one background",
    "orientation": "one crystal orientation",
    "crystal": "one simulated crystal",
    "noise": "one seed of the noise",
    "peaks": "one peak image",
}


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be put on a side.

    file is the master of a series or the `images` folder of a tree; number the frame's position or the image's id.
    condition is (camera length, m; photon energy, eV); hit is None where the truth does not say; keys are what it may
    share with others, kind first.
    """

    file: Path
    number: int | str
    condition: tuple[float, float]
    hit: bool | None
    keys: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.file} #{self.number}"


@dataclass(frozen=True, slots=True)
class Inputs:
    """All items of some sources, and for each source the digest of what its split depends on."""

    items: tuple[Item, ...]
    digests: dict[Path, str]


@dataclass(frozen=True, slots=True)
class Split:
    """Items by side, in order of file and number."""

    sides: dict[Side, tuple[Item, ...]]
    groups: int


def read_inputs(
    sources: Iterable[Tree | Path], datasets: Iterable[int] | None = None, after_image: AfterImage | None = None
) -> Inputs:
    """Items of trees and series. Raises BadInput for a source that is neither, or that is unfit."""
    items: list[Item] = []
    digests: dict[Path, str] = {}
    chosen = None if datasets is None else frozenset(datasets)
    for source in sources:
        if isinstance(source, Tree):
            listing = list_tree(source, chosen)
            if listing.problems:
                raise BadInput(f"{listing.problems[0]}; `cxls data check` lists all that is wrong")
            found, file = list(_tree_items(listing, after_image)), source.images
        else:
            found, file = list(_series_items(source, chosen)), source
        items += found
        digests[file] = _digest_of(found)
    if not items:
        raise BadInput("nothing to split: no image of the chosen data sets")
    return Inputs(tuple(sorted(items, key=_order)), digests)


def _order(item: Item) -> tuple[str, str, int]:
    return (str(item.file), *(("", item.number) if isinstance(item.number, int) else (item.number, 0)))


def _digest_of(items: Sequence[Item]) -> str:
    text = "\n".join(repr((i.number, i.condition, i.hit, i.keys)) for i in sorted(items, key=_order))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tree_items(listing: Listing, after_image: AfterImage | None) -> Iterator[Item]:
    peaks, overlays = listing.images["peaks"], listing.images["peaks_water_overlay"]
    ids = [image for dataset in listing.datasets for image in listing.ids(dataset)]
    for done, image in enumerate(ids, 1):
        if image not in peaks or image not in overlays:
            where = peaks.get(image) or overlays.get(image) or listing.tree.path("peaks", image)
            raise BadInput(f"{where}: image {image} has not both a peak image and an overlay; see `cxls data check`")
        paper = PAPER[image.dataset]
        yield Item(
            listing.tree.images,
            str(image),
            (paper.camera_length_m, paper.photon_energy_eV),
            not image.empty,
            tuple(sorted(_tree_keys(image, read_image(peaks[image]), read_image(overlays[image])))),
        )
        if after_image is not None:
            after_image(done, len(ids))


def _tree_keys(image: ImageId, peaks: StoredImage, overlay: StoredImage) -> Iterator[tuple[str, str]]:
    if peaks.pixels.shape != overlay.pixels.shape:
        raise BadInput(f"{overlay.path}: its shape is {overlay.pixels.shape}, that of its peak image differs")
    background = overlay.pixels.astype(np.float64) - peaks.pixels
    if background.any():
        yield "background", digest(background)
    if peaks.pixels.any():
        yield "peaks", digest(peaks.pixels)
    for stored in (peaks, overlay):
        seed, index = stored.number("noise_seed"), stored.number("noise_index")
        if seed is not None and index is not None:
            yield "noise", f"{seed}/{index}"
    orientation = np.asarray(peaks.attributes.get("orientation", np.nan))
    if not image.empty and orientation.dtype.kind == "f" and orientation.shape == (3, 3):
        yield from _orientation_key(orientation)


def _series_items(path: Path, chosen: frozenset[int] | None) -> Iterator[Item]:
    with open_series(path) as series:
        if chosen is not None and series.dataset not in chosen:
            return
        length, energy = series.condition
        if length is None or energy is None:
            raise BadInput(f"{path}: the header does not state camera length and photon energy")
        truth = series.usable_truth() or Truth(len(series), {}, path, GROUP)
        hits = truth.hits
        orientation, every_turn = truth.per_frame("orientation"), truth.per_frame("orientation_all")
        crystal = truth.per_frame("frame_crystal")
        seed, index = truth.per_frame("seed"), truth.per_frame("frame_index")
        background = truth.per_frame("background_seed")
        for n in range(len(series)):
            keys: list[tuple[str, str]] = []
            for turns in (orientation, every_turn):
                if turns is not None and turns.shape[-2:] == (3, 3):
                    for turn in turns[n].reshape(-1, 3, 3):
                        keys += _orientation_key(turn)
            if seed is not None and index is not None:
                keys.append(("noise", f"{seed[n]}/{index[n]}"))
            if background is not None:
                keys.append(("background", f"seed {background[n]}"))
            if crystal is not None and crystal[n] >= 0:
                keys.append(("crystal", f"{length:g} m {energy:g} eV {crystal[n]}"))
            hit = None if hits is None else bool(hits[n])
            yield Item(path, n, (length, energy), hit, tuple(sorted(set(keys))))


def _orientation_key(matrix: NDArray[Any]) -> Iterator[tuple[str, str]]:
    if np.isfinite(matrix).all():
        rounded = np.round(matrix.astype(np.float64), ORIENTATION_DECIMALS) + 0.0  # no negative zero
        yield "orientation", hashlib.blake2b(rounded.tobytes(), digest_size=16).hexdigest()


def check_fractions(fractions: Mapping[Side, float]) -> None:
    """Raises BadInput unless the shares are from 0 to 1 and sum to 1."""
    shares = [fractions[side] for side in SIDES]
    if not all(math.isfinite(share) and 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        said = ", ".join(f"{side} {fractions[side]:g}" for side in SIDES)
        raise BadInput(f"the shares are {said}; give three from 0 to 1 that sum to 1, as in 0.8, 0.1, 0.1")


def make_split(items: Sequence[Item], fractions: Mapping[Side, float], seed: int = 0) -> Split:
    """Put every item on a side, no group on two.

    Raises BadInput when it cannot be done: fewer groups than sides, or a condition whose images all share one key, so
    that no side but one could have it.
    """
    check_fractions(fractions)
    items = sorted(items, key=_order)
    wanted = [side for side in SIDES if fractions[side] > 0]
    groups = _groups(items)
    _refuse_impossible(items, groups, wanted)
    strata = {stratum: k for k, stratum in enumerate(sorted({_stratum(item) for item in items}))}
    content = np.zeros((len(groups), len(strata)))
    for g, members in enumerate(groups):
        for n in members:
            content[g, strata[_stratum(items[n])]] += 1
    share = np.array([fractions[side] for side in wanted])
    lacking = np.outer(share, content.sum(axis=0))  # what each side still needs of each stratum

    def turn(g: int) -> tuple[bool, int, int, str]:
        """Groups of several strata first, then stratum by stratum, largest first, the rest shuffled."""
        of = np.flatnonzero(content[g])
        return (len(of) == 1, int(of[0]), -len(groups[g]), _shuffled(seed, items[groups[g][0]]))

    side_of = np.full(len(groups), -1)
    begun = np.zeros(len(strata), dtype=np.bool_)
    for g in sorted(range(len(groups)), key=turn):
        # What a side lacks of these strata, and what rounding has kept from it in all strata so far.
        begun |= content[g] > 0
        gain = lacking @ content[g] + lacking[:, begun].sum(axis=1) * content[g].sum()
        side_of[g] = int(np.argmax(np.round(gain, 9)))
        lacking[side_of[g]] -= content[g]
    _fill_empty_sides(side_of, content.sum(axis=1), len(wanted))
    chosen: dict[Side, list[Item]] = {side: [] for side in SIDES}
    for g, members in enumerate(groups):
        chosen[wanted[side_of[g]]] += [items[n] for n in members]
    return Split({side: tuple(sorted(chosen[side], key=_order)) for side in SIDES}, len(groups))


def _stratum(item: Item) -> tuple[float, float, int]:
    return (*item.condition, -1 if item.hit is None else int(item.hit))


def _shuffled(seed: int, item: Item) -> str:
    # The file's name without its folder: the same split wherever the data lie.
    return hashlib.blake2b(f"{seed} {item.file.name} {item.number}".encode(), digest_size=16).hexdigest()


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Positions of the items of each group, in order; groups in order of their first item."""
    keys: dict[tuple[str, str], int] = {}
    rows, columns = [], []
    for n, item in enumerate(items):
        for key in item.keys:
            rows.append(n)
            columns.append(len(items) + keys.setdefault(key, len(keys)))
    size = len(items) + len(keys)
    links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    _, label = connected_components(links, directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    for n in range(len(items)):
        members[int(label[n])].append(n)
    return list(members.values())


def _refuse_impossible(items: Sequence[Item], groups: Sequence[Sequence[int]], wanted: Sequence[Side]) -> None:
    if len(wanted) == 1:
        return
    total = Counter(item.condition for item in items)
    for members in groups:
        mine = Counter(items[n].condition for n in members)
        alone = sorted(c for c, count in mine.items() if count == total[c] >= len(wanted))
        if not alone:
            continue
        length, energy = alone[0]
        ((kind, _), count), *_ = Counter(key for n in members for key in items[n].keys).most_common(1)
        how = f"share {_WORDS[kind]}" if count == len(members) else f"are linked, {count} of them by {_WORDS[kind]}"
        leak = ", the paper's leak" if kind == "background" else ""
        raise BadInput(
            f"all {total[alone[0]]} images at {length:g} m and {energy:g} eV {how}{leak}: no split has this condition "
            "on two sides; make a tree's overlays anew (`cxls data overlay TREE --force`) or add other runs"
        )
    if len(groups) < len(wanted):
        kinds = Counter(kind for item in items for kind, _ in item.keys)
        shared_kind = f"; most share {_WORDS[kinds.most_common(1)[0][0]]}" if kinds else ""
        raise BadInput(
            f"{len(items)} images in {len(groups)} independent groups cannot fill {len(wanted)} sides{shared_kind}; "
            "add runs that share nothing, or ask for fewer sides"
        )


def _fill_empty_sides(side_of: NDArray[np.int64], sizes: NDArray[np.float64], sides: int) -> None:
    """Give every side a group: the smallest one of the side that has most groups."""
    for side in range(sides):
        if not (side_of == side).any():
            donor = int(np.argmax(np.bincount(side_of, minlength=sides)))
            mine = np.flatnonzero(side_of == donor)
            side_of[mine[np.argmin(sizes[mine])]] = side


def write_split(
    path: Path, split: Split, inputs: Inputs, fractions: Mapping[Side, float], seed: int, datasets: Iterable[int] | None
) -> None:
    """Write a split as JSON; files are named relative to the folder it lies in.

    {"format", "seed", "fractions", "datasets", "inputs": [{"file", "digest"}], "sides": {side: [[file, number]]}}
    """
    folder = path.resolve().parent
    named = {file: _relative(file, folder) for file in inputs.digests}
    content = {
        "format": FORMAT,
        "seed": seed,
        "fractions": {side: fractions[side] for side in SIDES},
        "datasets": None if datasets is None else sorted(datasets),
        "inputs": [{"file": named[file], "digest": digest} for file, digest in inputs.digests.items()],
        "sides": {side: [[named[item.file], item.number] for item in split.sides[side]] for side in SIDES},
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(_one_line_an_image(json.dumps(content, indent=1)) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _one_line_an_image(text: str) -> str:
    return re.sub(r"\[\n\s+(\"[^\n]*\",)\n\s+([^\n\[\]]+)\n\s+\]", r"[\1 \2]", text)


def _relative(file: Path, folder: Path) -> str:
    return os.path.relpath(file.resolve(), folder)


def read_split(path: Path) -> dict[Side, list[tuple[Path, int | str]]]:
    """Files (resolved) and numbers by side. Raises BadInput for a file that is no split."""
    content = _load(path)
    folder = path.resolve().parent
    return {side: [((folder / file).resolve(), number) for file, number in content["sides"][side]] for side in SIDES}


def _is_number(value: Any) -> bool:
    """Whether this is the position of a frame, or the id of an image in a tree."""
    return parse_id(value) is not None if isinstance(value, str) else type(value) is int


def _load(path: Path) -> dict[str, Any]:
    try:
        require_ordinary(path)
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInput(f"{path}: not a split; `cxls data split` writes them")
    sides: Any = content.get("sides")
    inputs: Any = content.get("inputs")
    good = isinstance(sides, dict) and isinstance(inputs, list) and all(isinstance(sides.get(s), list) for s in SIDES)
    good = good and all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_number(entry[1])
        for side in SIDES
        for entry in sides[side]
    )
    good = good and all(
        isinstance(i, dict) and isinstance(i.get("file"), str) and isinstance(i.get("digest"), str) for i in inputs
    )
    datasets = content.get("datasets")
    good = good and (datasets is None or (isinstance(datasets, list) and all(d in PAPER for d in datasets)))
    if not good:
        raise BadInput(f"{path}: a split whose inputs, datasets or sides are damaged; make it again")
    return content


def verify_split(path: Path, after_image: AfterImage | None = None) -> Iterator[Problem]:
    """Everything that is wrong with a split: inputs that changed, images twice, nowhere or unknown, and leaks.

    Reads the inputs again. Raises BadInput for a file that is no split.
    """
    content = _load(path)
    folder = path.resolve().parent
    try:
        files = [str(folder / entry["file"]) for entry in content["inputs"]]
        inputs = read_inputs(find_sources(files), content["datasets"], after_image)
    except BadInput as error:
        yield Problem(path, "inputs", str(error))
        return
    by_name = {file.resolve(): found for file, found in inputs.digests.items()}
    for entry in content["inputs"]:
        if by_name.get((folder / entry["file"]).resolve()) != entry["digest"]:
            yield Problem(path, "inputs", f"{entry['file']} has changed since the split was made")
    known = {(item.file.resolve(), item.number): item for item in inputs.items}
    side_of: dict[tuple[Path, int | str], Side] = {}
    for side, entries in read_split(path).items():
        for file, number in entries:
            place = (file, number)
            if place not in known:
                yield Problem(path, side, f"{_relative(file, folder)} #{number} is no image of the inputs")
            elif place in side_of:
                text = f"{_relative(file, folder)} #{number} is there twice, first in {side_of[place]}"
                yield Problem(path, side, text)
            else:
                side_of[place] = side
    if nowhere := sorted((str(f), str(n)) for f, n in known.keys() - side_of.keys()):
        more = f" (and {len(nowhere) - 1} more)" if len(nowhere) > 1 else ""
        first, its_number = nowhere[0]
        yield Problem(path, "sides", f"{_relative(Path(first), folder)} #{its_number} is on no side{more}")
    yield from _leaks(path, folder, known, side_of)


def _leaks(
    path: Path,
    folder: Path,
    known: Mapping[tuple[Path, int | str], Item],
    side_of: Mapping[tuple[Path, int | str], Side],
) -> Iterator[Problem]:
    first: dict[tuple[str, str], tuple[Path, int | str]] = {}
    leaks: dict[tuple[str, Side, Side], list[str]] = defaultdict(list)
    for place in sorted(side_of, key=lambda p: _order(known[p])):
        for key in known[place].keys:
            other = first.setdefault(key, place)
            if side_of[other] != side_of[place]:
                names = [f"{_relative(file, folder)} #{number}" for file, number in (other, place)]
                leaks[key[0], side_of[other], side_of[place]].append(" and ".join(names))
    for (kind, one, two), pairs in sorted(leaks.items()):
        more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
        yield Problem(path, "sides", f"{one} and {two} share {_WORDS[kind]}: {pairs[0]}{more}")
