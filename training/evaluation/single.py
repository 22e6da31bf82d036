"""A single model held against samples with truth: its attribute's figures, over all and part by part."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from analyzer.attribute_model import AttributeModel
from analyzer.attributes import Recipe, recipe_for
from analyzer.bundle import BadBundle
from streamer.errors import first_line
from streamer.files import BadInput
from training.dataset.tree import Tree
from training.evaluation.evaluation import Cell, Evaluation, Table
from training.evaluation.facts import half_decade
from training.evaluation.metrics import Estimate
from training.loop.disk import SeriesSource, TreeSource
from training.loop.judging import Judged, joined
from training.loop.order import in_turn
from training.loop.samples import Part, Source, require_fields
from training.loop.train import Job, evaluate

Progress = Callable[[int, int], None]
"""Called with (done, total); may raise to end the work."""

Names = NDArray[np.str_]


@dataclass(frozen=True, slots=True, eq=False)
class JudgedSources:
    """What a model said of all samples of some sources; ``columns``: for each way to part them a name a sample."""

    model: AttributeModel
    sources: tuple[str, ...]
    judged: Judged
    columns: dict[str, Names]


def open_sources(found: Iterable[Tree | Path], model: AttributeModel, datasets: Iterable[int] | None) -> list[Source]:
    """Trees and series, framed as the model's card says. Raises ``BadInput`` where one lacks what the model needs."""
    framing = model.card.framing
    sources: list[Source] = [
        TreeSource(each, framing, datasets) if isinstance(each, Tree) else SeriesSource(each, framing) for each in found
    ]
    for source in sources:
        require_fields(source, [model.attribute.field], f"attribute {model.attribute.name!r}")
        require_fields(source, model.inputs, f"network {model.card.network!r}")
    return sources


def judge_sources(model: AttributeModel, sources: Sequence[Source], after_sample: Progress) -> JudgedSources:
    """What the model says of every sample, through its attribute's target and decision.

    Raises ``BadInput`` for samples that do not fit the network and for a truth that is no target, ``BadBundle`` for
    outputs that are no numbers.
    """
    job = Job(
        attribute=model.attribute, network=model.card.network, recipe=_recipe(model), settings=model.card.settings
    )
    total, parts = sum(len(source) for source in sources), list[Judged]()
    if not total:
        raise BadInput(f"{sources[0].name}: no sample to evaluate on")
    for source in sources:
        _refuse_misfit(model, source)
        for places in in_turn(np.arange(len(source)), job.recipe.batch):
            try:
                parts.append(evaluate(job, model.network, Part(source, places)))
            except (RuntimeError, IndexError, TypeError) as error:
                raise BadInput(
                    f"{model.folder}: {model.card.network} fails on {source.name}: {first_line(error)}; does --size or "
                    "--bin of its training belong into its card?"
                ) from None
            after_sample(sum(map(len, parts)), total)
    judged = joined(parts)
    if not np.isfinite(judged.loss).all():
        raise BadBundle(f"{model.folder}: its network answers with no number; its weights are damaged")
    return JudgedSources(model, tuple(source.name for source in sources), judged, _columns(sources))


def as_evaluation(found: JudgedSources) -> Evaluation:
    """The figures and tables of a report."""
    judged, attribute = found.judged, found.judged.attribute
    made = Evaluation(found.model.label, None, len(judged), found.sources)
    made.notes = [
        f"attribute {attribute.name}: {attribute.field}{f' in {attribute.unit}' if attribute.unit else ''}, by "
        f"{found.model.card.network} on {found.model.card.framing.text}",
        "intervals count samples: where several show one crystal or one background they are too narrow",
    ]
    made.summary = [(name, each) for name, each in _figures(judged).items() if math.isfinite(each.value)]
    if attribute.kind in ("yes-no", "classes"):
        made.tables.append(_confusion(judged))
    for column, names in found.columns.items():
        if len(np.unique(names)) > 1:
            made.tables.append(_by(column, names, judged))
    return made


def _recipe(model: AttributeModel) -> Recipe:
    """The recipe that the model was trained with, where its card has it; it says which loss is shown."""
    try:
        return msgspec.convert(model.card.training["recipe"], Recipe)
    except (KeyError, msgspec.ValidationError):
        return recipe_for(model.attribute, model.card.network)


def _refuse_misfit(model: AttributeModel, source: Source) -> None:
    if model.card.view not in model.inputs or not len(source):
        return
    rows, columns = source.batch(np.array([0]), [model.card.view])[model.card.view].shape[-2:]
    if reason := model.misfit((int(rows), int(columns))):
        raise BadInput(
            f"{source.name}: its frames do not fit {model.folder}: {reason}; import the model with --size and --bin"
        )


def _columns(sources: Sequence[Source]) -> dict[str, Names]:
    """Names a sample, of what every source knows of its samples."""
    known = frozenset.intersection(*(source.fields for source in sources))

    def values(field: str) -> NDArray[np.float64]:
        parts = [source.batch(np.arange(len(source)), [field])[field] for source in sources]
        return np.concatenate(parts).astype(np.float64)

    columns = {"source": np.repeat([source.name for source in sources], [len(source) for source in sources])}
    if {"camera_length_m", "photon_energy_eV"} <= known:
        pairs = zip(values("camera_length_m"), values("photon_energy_eV"), strict=True)
        columns["condition"] = np.array([f"{length:.2f} m, {energy / 1e3:.1f} keV" for length, energy in pairs])
    if "flux_photons" in known:
        columns["photons a pulse"] = np.array([half_decade(np.array([flux])) for flux in values("flux_photons")])
    return columns


def _figures(judged: Judged) -> dict[str, Estimate]:
    """The numbers of ``Judged.summary`` with their intervals, under readable names."""
    summary = judged.summary()
    figures = {}
    for name, value in summary.items():
        if isinstance(value, float):
            low, high = summary.get(f"{name}_interval") or (None, None)
            note = judged.attribute.unit if name == "mean_absolute_error" else ""
            figures[name.replace("_", " ")] = Estimate(value, low, high, note)
    return figures


def _confusion(judged: Judged) -> Table:
    attribute = judged.attribute
    values = attribute.values or (0.0, 1.0)
    names = tuple(f"{value:g}" for value in attribute.values) or ("no", "yes")
    rows: list[tuple[Cell, ...]] = [
        (name, *(int(np.count_nonzero((judged.truth == true) & (judged.said == said))) for said in values))
        for name, true in zip(names, values, strict=True)
    ]
    unit = f", {attribute.unit}" if attribute.unit else ""
    return Table("Confusion", (f"truth{unit}", *(f"said {name}" for name in names)), tuple(rows))


def _by(column: str, names: Names, judged: Judged) -> Table:
    """A row for each name; a figure that its samples do not allow is left open."""
    parts = {str(name): judged.where(names == name) for name in np.unique(names)}
    figures = {name: _figures(part) for name, part in parts.items()}
    heads = list(dict.fromkeys(head for each in figures.values() for head in each if head != "loss"))
    rows: list[tuple[Cell, ...]] = [
        (name, len(parts[name]), *(figures[name].get(head) for head in heads)) for name in parts
    ]
    return Table(f"By {column}", (column, "samples", *heads), tuple(rows))
