"""``cxls evaluate --model``: a single model against the truth of series and trees, through its attribute."""

from collections.abc import Sequence
from pathlib import Path

import torch

from analyzer.attribute_model import open_model
from cxls.commands.analyze import choose_device
from cxls.commands.evaluation_output import print_evaluation, refuse_files, write_evaluation
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, EvaluateSettings, Resolved
from training.dataset.paper import parse_datasets
from training.dataset.sources import find_sources
from training.evaluation.single import as_evaluation, judge_sources, open_sources
from training.loop.plots import draw_judged

_OF_BUNDLES = ("bundle", "results", "metrics", "ideal", "crystfel", "peers", "show", "show_which", "workers")


def run(resolved: Resolved[EvaluateSettings], folder: Path, sources: Sequence[str], json_path: Path | None) -> None:
    """Judge, measure, print; write the report and the JSON file where they are asked for."""
    settings = resolved.settings
    for name in _OF_BUNDLES:
        if resolved.origin[name] == "command line":
            raise BadSettings(f"--{name.replace('_', '-')}: of a bundle; --model evaluates a single model instead")
    refuse_files(settings.report, json_path)
    datasets = None if settings.datasets is None else parse_datasets(settings.datasets)
    model = open_model(folder, torch.device(choose_device(settings.device)))
    opened = open_sources(find_sources(sources), model, datasets)
    with interruptible_progress("judging", "samples") as after_sample:
        found = judge_sources(model, opened, after_sample)
    made = as_evaluation(found)
    print_evaluation(made)
    write_evaluation(made, settings.report, json_path, lambda to: draw_judged(to, found.judged, model.label))
