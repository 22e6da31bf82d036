"""``cxls evaluate``: a bundle, and what else scores frames, against the truth of series."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

from analyzer.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from analyzer.warm import check_bundle
from cxls.bench import om_peer
from cxls.commands import evaluate_model
from cxls.commands.evaluation_output import print_evaluation, refuse_files, write_evaluation
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, EvaluateSettings, Resolved
from streamer.files import CHANNEL, BadInput
from streamer.frames import Frame
from streamer.series import Series
from training.dataset.series import open_series
from training.dataset.sources import find_sources
from training.dataset.tree import Tree
from training.evaluation.evaluation import METRICS, Request, evaluate
from training.evaluation.facts import Facts
from training.evaluation.peers import Peer
from training.evaluation.reference import Referred, refer
from training.evaluation.scoring import Judged, Progress, all_facts, judge, read_judgements
from training.evaluation.show import show

OM = "OM's peakfinder8"
_OM_FRAMES = 40
"""Frames that OM is handed at once; they lie on the disk unpacked, 9 MB each."""


def run(resolved: Resolved[EvaluateSettings], sources: Sequence[str], json_path: Path | None) -> None:
    """Judge, measure, print; write the report and the JSON file where they are asked for."""
    settings = resolved.settings
    if settings.model is not None:
        evaluate_model.run(resolved, settings.model, sources, json_path)
        return
    _refuse_options_of_models(resolved)
    metrics = _metrics(settings.metrics)
    refuse_files(settings.report, json_path)
    facts = all_facts(_masters(sources))
    torch.set_num_threads(1)
    bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
    if settings.results is None:
        check_bundle(bundle)
    judged = _judged(settings, facts, bundle)
    labels = {record.bundle for each in judged for record in each.judgements} - {None}
    at_hand = labels <= {bundle.label}
    request = Request(
        metrics=metrics or METRICS,
        asked=metrics is not None,
        prior=bundle.card.hit.prior if at_hand else None,
        threshold=bundle.card.hit.threshold if at_hand else None,
        crystals=settings.crystfel,
    )
    referred = _referred(settings, facts) if settings.ideal else None
    peer = _peer(judged) if settings.peers else None
    made = evaluate(judged, request, referred, peer)
    print_evaluation(made)
    for line in show(judged, settings.show, settings.show_which):
        click.echo(line)
    write_evaluation(made, settings.report, json_path)
    if why := made.refused.get("hits"):
        raise BadInput(f"hits were not measured: {why}; --metrics names what to measure without them")


def _refuse_options_of_models(resolved: Resolved[EvaluateSettings]) -> None:
    for name in ("datasets", "device"):
        if resolved.origin[name] == "command line":
            raise BadSettings(f"--{name}: for a single model; --model DIR names one")


def _metrics(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    named = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [name for name in named if name not in METRICS]:
        raise BadSettings(f"--metrics: {unknown[0]!r} is not known; known: {', '.join(METRICS)}", "metrics")
    if not named:
        raise BadSettings(f"--metrics names none; known: {', '.join(METRICS)}", "metrics")
    return named


def _masters(sources: Sequence[str]) -> list[Path]:
    masters = []
    for source in find_sources(sources):
        if isinstance(source, Tree):
            raise BadInput(
                f"{source.images}: a tree; a bundle is evaluated on series, made by `cxls simulate`; --model on both"
            )
        masters.append(source)
    return masters


def _judged(settings: EvaluateSettings, facts: Sequence[Facts], bundle: Bundle) -> list[Judged]:
    if settings.results is not None:
        return read_judgements(settings.results, facts)
    workers = settings.workers or os.cpu_count() or 1
    with interruptible_progress("judging", "frames") as after_frame:
        return judge(facts, bundle, workers, after_frame)


def _referred(settings: EvaluateSettings, facts: Sequence[Facts]) -> list[Referred]:
    with interruptible_progress("ideal observer", "frames") as after_frame:
        return refer(facts, settings.crystfel, after_frame)


def _peer(judged: Sequence[Judged]) -> Peer:
    """Peak counts of OM on all frames that we could read."""
    counts = np.full(sum(each.facts.frames for each in judged), np.nan)
    if not om_peer.available():
        return Peer(OM, counts, om_peer.NOT_THERE.removeprefix("not measured: "))
    with interruptible_progress(OM, "frames") as after_frame:
        why_not = _find_by_om(judged, counts, after_frame)
    return Peer(OM, counts, why_not)


def _find_by_om(judged: Sequence[Judged], counts: np.ndarray, after_frame: Progress) -> str:  # type: ignore[type-arg]
    start = 0
    with tempfile.TemporaryDirectory(prefix="cxls-evaluate-") as folder:
        for number, each in enumerate(judged):
            with open_series(each.facts.path) as opened:
                if opened.files.dtype.itemsize != 2:
                    return f"{each.facts.path}: it is run on 16-bit frames only"
                series = Series(number + 1, number + 1, None, opened.metadata)
                good = [n for n, judgement in enumerate(each.judgements) if judgement.status == "ok"]
                for first in range(0, len(good), _OM_FRAMES):
                    some = good[first : first + _OM_FRAMES]
                    frames = [Frame(series, n, CHANNEL, opened.files.image(n), None, None, 0.0) for n in some]
                    exchange = Path(folder) / "om"
                    om_peer.lay_out(exchange, frames)
                    try:
                        found = om_peer.find_peaks(exchange)
                    except RuntimeError as error:
                        return str(error)
                    counts[[start + n for n in some]] = [len(peaks.positions) for peaks in found]
                    after_frame(start + some[-1] + 1, len(counts))
            start += each.facts.frames
    return ""
