"""From what a command names to the sides of a training: paths with a split or a share, or shots made on the fly."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analyzer.framing import Framing
from streamer.files import BadInput
from training.dataset.images import AfterImage
from training.dataset.sources import find_sources
from training.dataset.split import Side, make_split, read_inputs, read_split
from training.dataset.tree import Tree
from training.loop.disk import SeriesSource, TreeSource
from training.loop.samples import Joined, Part, Source
from training.loop.simulated import SimulatedSource, Simulation

Entries = Mapping[Side, Sequence[tuple[Path, int | str]]]


@dataclass(frozen=True, slots=True)
class Sides:
    """What is trained on, what weights are chosen on, and what is reported on, where there is such a part."""

    training: Source
    validation: Source
    test: Source | None


def simulated_sides(simulation: Simulation, validation_fraction: float, seed: int, framing: Framing) -> Sides:
    """New shots every epoch, and a fixed set of others to validate on, this share of the two together."""
    held = max(1, round(simulation.samples * validation_fraction / (1 - validation_fraction)))
    return Sides(
        SimulatedSource(simulation, seed, framing),
        SimulatedSource(replace(simulation, samples=held), seed + 1, framing, fixed=True),
        None,
    )


def split_sides(split: Path, paths: Sequence[str], framing: Framing) -> Sides:
    """The sides of a split's file; of those sources alone that ``paths`` name, when they name any."""
    entries: Entries = read_split(split)
    if paths:
        named = {_file(source).resolve() for source in find_sources(paths)}
        known = {file for side in entries.values() for file, _ in side}
        if strange := sorted(str(file) for file in named - known):
            raise BadInput(f"{strange[0]}: not in the split {split}; `cxls data split` makes one that has it")
        entries = {side: [entry for entry in mine if entry[0] in named] for side, mine in entries.items()}
    return _sides(entries, framing, f"{split}: the split")


def shared_sides(
    paths: Sequence[str],
    validation_fraction: float,
    seed: int,
    framing: Framing,
    datasets: Iterable[int] | None = None,
    after_image: AfterImage | None = None,
) -> Sides:
    """Two sides, nothing shared by both, conditions and classes spread over them, as `cxls data split` has it."""
    inputs = read_inputs(find_sources(paths), datasets, after_image)
    fractions: dict[Side, float] = {"train": 1 - validation_fraction, "validation": validation_fraction, "test": 0.0}
    split = make_split(inputs.items, fractions, seed)
    entries: Entries = {
        side: [(item.file.resolve(), item.number) for item in items] for side, items in split.sides.items()
    }
    return _sides(entries, framing, ", ".join(paths))


def _file(source: Tree | Path) -> Path:
    return source.images if isinstance(source, Tree) else source


def _sides(entries: Entries, framing: Framing, name: str) -> Sides:
    files = dict.fromkeys(file for side in entries.values() for file, _ in side)
    sources: dict[Path, Source] = {}
    numbers: dict[Path, dict[int | str, int]] = {}
    for file in files:
        if file.is_dir():
            tree = TreeSource(Tree(file), framing)
            sources[file], numbers[file] = tree, {str(image): n for n, image in enumerate(tree.ids)}
        else:
            series = SeriesSource(file, framing)
            sources[file], numbers[file] = series, {n: n for n in range(len(series))}

    def side(which: Side) -> Source | None:
        parts = []
        for file, source in sources.items():
            mine = [number for other, number in entries[which] if other == file]
            if gone := next((number for number in mine if number not in numbers[file]), None):
                raise BadInput(f"{name}: {file} has no image {gone} any more; make the split again")
            if mine:
                parts.append(Part(source, np.array([numbers[file][number] for number in mine])))
        return None if not parts else parts[0] if len(parts) == 1 else Joined(parts)

    training, validation = side("train"), side("validation")
    if training is None or validation is None:
        lacking = "train on" if training is None else "validate on; the test set must not choose the weights"
        raise BadInput(f"{name} has no image to {lacking}: make a split with shares for both")
    return Sides(training, validation, side("test"))
