"""``cxls data``: data sets checked, counted, labelled, overlaid, split, made and converted."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cxls.cli import Failed
from cxls.progress import interruptible_progress
from cxls.settings import (
    BadSettings,
    DataCheckSettings,
    DataCountsSettings,
    DataExportTreeSettings,
    DataLabelSettings,
    DataMakeTreeSettings,
    DataOverlaySettings,
    DataSettings,
    DataSplitSettings,
    Resolved,
)
from streamer.files import BadInput
from training.dataset.check import check_source
from training.dataset.counts import Count, count_series, count_tree
from training.dataset.export import export_tree as write_tree_of_series
from training.dataset.make_tree import TreeRecipe
from training.dataset.make_tree import make_tree as simulate_tree
from training.dataset.overlay import OverlayRecipe, label_tree, overlay_tree
from training.dataset.paper import dataset_of, parse_datasets
from training.dataset.problems import Problem
from training.dataset.series import label_series, open_series
from training.dataset.simulated import Pulse
from training.dataset.sources import find_sources
from training.dataset.split import SIDES, Side, Split, make_split, read_inputs, write_split
from training.dataset.tree import Tree, find_tree

_WIDTH_OF_A_PIPE = 160
"""Columns of a table where no terminal sets them."""


def check(resolved: Resolved[DataCheckSettings], paths: Sequence[str]) -> None:
    """Print every problem of every source; exit 1 when there is one."""
    sources, datasets = _sources(paths), _datasets(resolved.settings)
    problems: list[Problem] = []
    with interruptible_progress("checking", "images") as after_image:
        for source in sources:
            problems += check_source(source, datasets, after_image)
    for problem in problems:
        click.echo(str(problem))
    if problems:
        files = len({problem.file for problem in problems})
        raise Failed(f"{_plural(len(problems), 'problem')} in {_plural(files, 'file')}")
    click.echo(f"no problems in {', '.join(_name(source) for source in sources)}")


def counts(resolved: Resolved[DataCountsSettings], paths: Sequence[str], as_json: bool) -> None:
    """Print how many images of what there are."""
    datasets = _datasets(resolved.settings)
    found: list[Count] = []
    for source in _sources(paths):
        if isinstance(source, Tree):
            found += count_tree(source, datasets)
        else:
            with open_series(source) as series:
                if datasets is None or series.dataset in datasets:
                    found.append(count_series(series))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(count) | {"source": str(count.source)} for count in found], indent=1))
        return
    table = Table(box=box.SIMPLE, show_footer=True)
    numbers = ("total", "hits", "empties", "labels", "overlays", "water")
    sums = {name: sum(getattr(count, name) or 0 for count in found) for name in numbers}
    for name in ("source", "data set", "camera length", "photon energy"):
        table.add_column(name, footer="in all" if name == "source" else "")
    for name in numbers:
        table.add_column(name, justify="right", footer=str(sums[name]))
    table.add_column("classes")
    for count in found:
        table.add_row(
            escape(str(count.source)),
            "-" if count.dataset is None else f"{count.dataset:02d}",
            *_condition_text(count.camera_length_m, count.photon_energy_eV),
            *("-" if (value := getattr(count, name)) is None else str(value) for name in numbers),
            escape(", ".join(f"{number} {name}" for name, number in count.classes.items())),
        )
    _print(table)


def label(resolved: Resolved[DataLabelSettings], paths: Sequence[str]) -> None:
    """Write the labels of trees and of series."""
    settings, datasets = resolved.settings, _datasets(resolved.settings)
    options = (settings.kind, settings.label_threshold, settings.min_distance)
    for source in _sources(paths):
        with _refusals(), interruptible_progress("labelling", "images") as after_image:
            if isinstance(source, Tree):
                written = label_tree(source, *options, datasets=datasets, force=settings.force, after_image=after_image)
                text = f"{source.images / 'labels'}: {_plural(written, 'label')} ({settings.kind})"
            elif datasets is None or _is_of(source, datasets):
                path = label_series(source, *options, force=settings.force, after_image=after_image)
                text = f"{path}: labels ({settings.kind})"
            else:
                continue
        click.echo(text)


def overlay(resolved: Resolved[DataOverlaySettings], tree: Path) -> None:
    """Write the overlays and the empty images of a tree."""
    settings = resolved.settings
    recipe = OverlayRecipe(
        seed=settings.seed,
        percent_empty=settings.percent_empty,
        flux_scale=settings.flux_scale,
        frozen_noise=settings.frozen_noise,
        new_water=settings.new_water,
    )
    found = find_tree(tree)
    if found is None:
        raise BadInput(f"{tree}: no tree; its peak images are images/peaks/NN/img_6keV_clen01_00001.h5 and so on")
    with _refusals(), interruptible_progress("overlaying", "images") as after_image:
        overlays, empties = overlay_tree(
            found,
            recipe,
            datasets=_datasets(settings),
            force=settings.force,
            pulse=Pulse(settings.flux, settings.water_scale),
            after_image=after_image,
        )
    noise = "one frozen draw of the water a data set" if settings.frozen_noise else "fresh noise in each"
    click.echo(f"{found.images}: {_plural(overlays, 'overlay')}, {_plural(empties, 'empty image')}, {noise}")


def make_tree(resolved: Resolved[DataMakeTreeSettings], out: Path) -> None:
    """Simulate a tree."""
    settings = resolved.settings
    rows, columns = (int(number) for number in settings.panel.split("x"))
    recipe = TreeRecipe(
        per_dataset=settings.per_dataset,
        seed=settings.seed,
        percent_empty=settings.percent_empty,
        pulse=Pulse(settings.flux, settings.water_scale),
        crystal_size_m=settings.crystal_size,
        shape=(rows, columns),
        hkl_path=settings.hkl,
    )
    with _refusals(), interruptible_progress("simulating", "images") as after_image:
        try:
            tree = simulate_tree(
                out, recipe, datasets=_datasets(settings), force=settings.force, after_image=after_image
            )
        except ValueError as error:  # a reflection list, a size
            raise BadSettings(str(error)) from None
    found = count_tree(tree, _datasets(settings))
    hits, empties = sum(count.hits or 0 for count in found), sum(count.empties or 0 for count in found)
    click.echo(f"{tree.images}: {_plural(len(found), 'data set')}, {hits} peak and {empties} empty images")


def split(resolved: Resolved[DataSplitSettings], paths: Sequence[str]) -> None:
    """Split into train, validation and test, and print who got what."""
    settings, datasets = resolved.settings, _datasets(resolved.settings)
    if settings.out.exists() and not settings.force:
        raise BadSettings(f"{settings.out} exists already; use --force to replace")
    fractions: dict[Side, float] = {
        "train": settings.train,
        "validation": settings.validation,
        "test": settings.test,
    }
    with _refusals(), interruptible_progress("reading", "images") as after_image:
        inputs = read_inputs(find_sources(paths), datasets, after_image)
        made = make_split(inputs.items, fractions, settings.seed)
        write_split(settings.out, made, inputs, fractions, settings.seed, datasets)
    _print(_split_table(made))
    click.echo(f"{settings.out}: {_plural(len(inputs.items), 'image')} in {_plural(made.groups, 'group')}")


def export_tree(resolved: Resolved[DataExportTreeSettings], series: Sequence[str], out: Path) -> None:
    """Write series with truth as a tree."""
    settings = resolved.settings
    masters = [source for source in _sources(series) if isinstance(source, Path)]
    with _refusals(), interruptible_progress("exporting", "images") as after_image:
        tree, frames = write_tree_of_series(
            masters, out, datasets=_datasets(settings), force=settings.force, after_image=after_image
        )
    click.echo(f"{tree.images}: {_plural(frames, 'image')} of {_plural(len(masters), 'series', 'series')}")


def _split_table(made: Split) -> Table:
    """Images by condition, class and side."""
    cells: Counter[tuple[float, float, bool | None, Side]] = Counter(
        (*item.condition, item.hit, side) for side in SIDES for item in made.sides[side]
    )
    table = Table(box=box.SIMPLE, show_footer=True)
    for name in ("data set", "camera length", "photon energy", "class"):
        table.add_column(name, footer="in all" if name == "data set" else "")
    for side in SIDES:
        table.add_column(side, justify="right", footer=str(len(made.sides[side])))
    names = {True: "hit", False: "empty", None: "unknown"}
    for length, energy, hit in sorted({cell[:3] for cell in cells}, key=lambda c: (c[0], c[1], [*names].index(c[2]))):
        number = dataset_of(length, energy)
        table.add_row(
            "-" if number is None else f"{number:02d}",
            *_condition_text(length, energy),
            names[hit],
            *(str(cells[length, energy, hit, side]) for side in SIDES),
        )
    return table


def _condition_text(camera_length_m: float | None, photon_energy_eV: float | None) -> tuple[str, str]:
    return (
        "-" if camera_length_m is None else f"{camera_length_m:g} m",
        "-" if photon_energy_eV is None else f"{photon_energy_eV:g} eV",
    )


def _datasets(settings: DataSettings) -> frozenset[int] | None:
    return None if settings.datasets is None else parse_datasets(settings.datasets)


def _sources(paths: Sequence[str]) -> list[Tree | Path]:
    with _refusals():
        return find_sources(paths)


def _is_of(path: Path, datasets: frozenset[int]) -> bool:
    with open_series(path) as series:
        return series.dataset in datasets


def _name(source: Tree | Path) -> str:
    return str(source.images if isinstance(source, Tree) else source)


def _plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH_OF_A_PIPE)).print(table)


@contextmanager
def _refusals() -> Iterator[None]:
    """What is wrong with the user's files or wishes, as one line and exit code 2."""
    try:
        yield
    except FileExistsError as error:
        raise BadSettings(f"{error}; use --force to replace") from None
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        raise BadSettings(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None
    except OSError as error:  # a full disk
        raise Failed(f"cannot go on: {error}") from None
