"""``cxls evaluate``: a bundle, and what else scores frames, against the truth of series."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from analyzer.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from cxls.bench import om_peer
from cxls.cli import Failed
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, EvaluateSettings, Resolved
from streamer.files import CHANNEL, BadInput
from streamer.frames import Frame
from streamer.series import Series
from training.dataset.series import open_series
from training.dataset.sources import find_sources
from training.dataset.tree import Tree
from training.evaluation.evaluation import METRICS, Evaluation, Request, Table, evaluate
from training.evaluation.facts import Facts
from training.evaluation.peers import Peer
from training.evaluation.reference import Referred, refer
from training.evaluation.report import as_json, cell_text, tables, write_report
from training.evaluation.scoring import Judged, Progress, all_facts, judge, read_judgements
from training.evaluation.show import show

OM = "OM's peakfinder8"
_OM_FRAMES = 40
"""Frames that OM is handed at once; they lie on the disk unpacked, 9 MB each."""

_WIDTH_OF_A_PIPE = 160


def run(resolved: Resolved[EvaluateSettings], sources: Sequence[str], json_path: Path | None) -> None:
    """Judge, measure, print; write the report and the JSON file where they are asked for."""
    settings = resolved.settings
    metrics = _metrics(settings.metrics)
    for path, option in ((settings.report, "--report"), (json_path and json_path.parent, "--json")):
        if path is not None and path.exists() and not path.is_dir():
            raise BadSettings(f"{option}: {path} is a file; give a folder")
    facts = all_facts(_masters(sources))
    torch.set_num_threads(1)
    bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
    judged = _judged(settings, facts, bundle)
    labels = {record.bundle for each in judged for record in each.judgements} - {None}
    at_hand = labels <= {bundle.label}
    request = Request(
        metrics=metrics or METRICS,
        asked=metrics is not None,
        prior=bundle.card.hit.prior if at_hand else None,
        threshold=bundle.card.hit.threshold if at_hand else None,
    )
    referred = _referred(settings, facts) if settings.ideal else None
    peer = _peer(judged) if settings.peers else None
    made = evaluate(judged, request, referred, peer)
    command = "cxls " + " ".join(sys.argv[1:])
    _print(made)
    for line in show(judged, settings.show):
        click.echo(line)
    try:
        if settings.report is not None:
            write_report(made, settings.report, command)
            click.echo(f"{settings.report / 'report.html'}: the report; report.md beside it")
        if json_path is not None:
            json_path.write_text(json.dumps(as_json(made, command), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror or error}") from None


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
            raise BadInput(f"{source.images}: a tree; evaluation is of series, made by `cxls simulate`")
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


def _print(made: Evaluation) -> None:
    click.echo(f"{made.bundle}: {made.frames} frames of {len(made.series)} series")
    for note in made.notes:
        click.echo(f"  {note}")
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH_OF_A_PIPE)
    for table in tables(made):
        console.print(_rich(table))
    for reason in made.not_measured:
        click.echo(f"not measured: {reason}")


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE, caption=escape(table.note))
    for number, head in enumerate(table.heads):
        shown.add_column(escape(head), justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*(escape(cell_text(cell)) for cell in row))
    return shown
