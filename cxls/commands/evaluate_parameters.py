"""``cxls evaluate parameters``: how well photon energy and camera length come out, against the bound and the truth."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from analyzer.bundle import DEFAULT_BUNDLE, BadBundle, load_bundle
from cxls.commands.evaluation_output import print_evaluation, refuse_files, write_evaluation
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, EvaluateParametersSettings, Resolved
from sim_replay.detector import MAX_FLUX_PHOTONS, eiger2_4m
from streamer.files import BadInput
from training.dataset.paper import parse_datasets
from training.evaluation.parameter_alarms import alarm_table, study_alarms
from training.evaluation.parameter_pair import study_pair
from training.evaluation.parameter_report import as_evaluation, draw_errors
from training.evaluation.parameter_scenarios import SCENARIOS
from training.evaluation.parameter_study import LARGEST_SUM, Plan, Studying

T = TypeVar("T")


def run(resolved: Resolved[EvaluateParametersSettings], json_path: Path | None) -> None:
    """Draw, fit, print; write the report and the JSON file where they are asked for."""
    settings = resolved.settings
    plan = _plan(settings)
    refuse_files(settings.report, json_path)
    torch.set_num_threads(1)
    bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
    if bundle.scattering is None:
        raise BadBundle(f"{bundle.label}: no tables of scattering, so that there is no fit to evaluate")
    detector = eiger2_4m()
    begun = time.monotonic()
    with interruptible_progress("fitting", "profiles") as after_fit:
        pair = study_pair(detector, bundle.scattering)
        study = Studying(plan, bundle, detector).run(after_fit)
    alarms = None
    if settings.alarm_frames:
        with interruptible_progress("looking", "headers") as after_look:
            alarms = study_alarms(
                detector, bundle.scattering, plan.conditions, settings.alarm_frames, plan.seed, after_look
            )
    made = as_evaluation(study, bundle.label, pair, time.monotonic() - begun)
    if alarms is not None:
        made.tables.append(alarm_table(alarms))
    print_evaluation(made)
    write_evaluation(made, settings.report, json_path, lambda folder: draw_errors(study, folder))


def _plan(settings: EvaluateParametersSettings) -> Plan:
    plan = Plan(
        fluxes=_numbers("fluxes", settings.fluxes, float, MAX_FLUX_PHOTONS),
        sums=_numbers("sums", settings.sums, int, LARGEST_SUM),
        scenarios=_scenarios(settings.scenarios),
        repeats=settings.repeats,
        seed=settings.seed,
    )
    if settings.conditions is None:
        return plan
    try:
        return replace(plan, conditions=tuple(sorted(parse_datasets(settings.conditions))))
    except BadInput as error:
        raise BadSettings(str(error).replace("--datasets", "--conditions", 1), "conditions") from None


def _numbers(name: str, text: str, kind: Callable[[str], T], most: float) -> tuple[T, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        numbers = tuple(dict.fromkeys(kind(part) for part in parts))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(float(n)) and 0 < float(n) <= most for n in numbers):  # type: ignore[arg-type]
        raise BadSettings(f"--{name} {text!r}: give numbers above 0 up to {most:g}, with commas between", name)
    return numbers


def _scenarios(text: str) -> tuple[str, ...]:
    if text.strip() in ("all", "none"):
        return tuple(SCENARIOS) if text.strip() == "all" else ()
    named = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [name for name in named if name not in SCENARIOS]:
        raise BadSettings(f"--scenarios: {unknown[0]!r} is not known; known: {', '.join(SCENARIOS)}", "scenarios")
    return named
