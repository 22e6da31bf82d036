"""``cxls batch``: files analysed again, one shard a process, and the merge of all shards."""

import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from analyzer.attribute_cascade import open_models
from analyzer.batch.manifest import MANIFEST, MAX_SHARDS, Analysis, read_manifest, settle, survey
from analyzer.batch.merge import TABLE, gaps, refuse_gaps, write_table
from analyzer.batch.report import REPORT_JSON, REPORT_PAGE, summary, write_report
from analyzer.batch.shard import Done, analyse_shard, held
from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.cascade import MOST_FRAMES, Analyser
from analyzer.circumstances import warn_of
from analyzer.judge import Judge
from analyzer.warm import warm_up
from cxls import allocator
from cxls.cli import Failed, Interrupted, stop_on_signals
from cxls.commands.analyze import (
    CPU_BATCH,
    DEVICE_WORKERS,
    cascade_settings,
    choose_device,
    read_calibration,
    refuse_difference,
)
from cxls.compilation import compilation
from cxls.given_geometry import check_geometry
from cxls.makers import Makers
from cxls.progress import interruptible_progress
from cxls.settings import BadSettings, BatchMergeSettings, BatchSettings, JudgeSettings, Resolved
from streamer.files import FileSeries, named_files

log = logging.getLogger(__name__)

LOG_LINE_S = 10.0
_FILES = ("mask", "geometry", "calibration")
"""Settings that name a file; of the batch is what it holds, wherever it lies."""

_ELSEWHERE = ("bundle", "model", "device")


def run(resolved: Resolved[BatchSettings], source: Sequence[str]) -> None:
    """Work on one shard until it is done or a signal comes."""
    settings = resolved.settings
    shard, shards = parse_shard(settings.shard, os.environ)
    refuse_difference(settings)
    if stream := next((each for each in source if "://" in each), None):
        raise BadSettings(f"{stream}: a batch is of files; cxls analyze takes a stream")
    files = named_files(source)
    crew = _crew(settings)
    folder = settings.out
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder, shard, shards) as alone:
            known = read_manifest(folder) if (folder / MANIFEST).exists() else None
            ours = survey(files, crew.analysis, settings.by, shards, settings.chunk, known)
            if known is None:
                first = FileSeries(*ours.members(1)[0])
                first.close()
                check_geometry(crew.judge.cascade.geometry, first.metadata)
            manifest = settle(folder, ours)
            for problem in manifest.problems_of(shard):
                log.warning("%s", problem)
            stop = threading.Event()
            interrupted = stop_on_signals(stop)
            with _progress(f"shard {shard}/{shards}") as on_progress:
                done = analyse_shard(
                    folder,
                    manifest,
                    shard,
                    crew.analysers,
                    alone=alone,
                    channel=settings.channel,
                    batch_frames=crew.batch_frames,
                    stop=stop,
                    on_progress=on_progress,
                )
    click.echo(f"{folder}: shard {shard}/{shards}: {_text(done)}")
    if interrupted:
        raise Interrupted(interrupted[0])
    if done.failed:
        raise Failed(
            f"{done.failed[0]}; {len(done.failed)} series are not finished, the same command goes on with them"
        )
    if problems := manifest.problems_of(shard):
        raise BadSettings(f"{problems[0]}; all that can be read is done")


def merge(resolved: Resolved[BatchMergeSettings], folder: Path) -> None:
    """Make the table and the report of a batch."""
    with _writing(folder), interruptible_progress("merging", "parts") as after_part:
        manifest = read_manifest(folder)
        chunks, missing = gaps(folder, manifest)
        if not resolved.settings.partial:
            refuse_gaps(folder, manifest, missing)
        tally = write_table(folder, manifest, chunks, after_part)
        facts = summary(manifest, tally, sum(gap.frames for gap in missing))
        write_report(folder, facts)
    totals = facts["totals"]
    rate = "" if totals["hit_rate"] is None else f" ({totals['hit_rate']:.1%})"
    click.echo(
        f"{folder / TABLE}: {totals['records']} records of {totals['images']} images, {totals['hits']} hits{rate}"
    )
    if missing:
        click.echo(f"not finished: {totals['frames_missing']} frames of {len(missing)} shards")
    if unreadable := totals["files_unreadable"]:
        click.echo(f"{unreadable} files could not be read")
    click.echo(f"{REPORT_PAGE} and {REPORT_JSON} are beside it")


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which shard of how many. Raises ``BadSettings``."""
    if text != "auto":
        shard, shards = (int(number) for number in text.split("/"))
        if not shard < shards <= MAX_SHARDS:
            raise BadSettings(
                f"--shard {text}: i/n counts from 0 to n - 1, n up to {MAX_SHARDS}; the first is 0/{shards}"
            )
        return shard, shards
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    names = ("ID", "MIN", "MAX", "COUNT")
    try:
        task, lowest, highest, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
    except (KeyError, ValueError):
        raise BadSettings(
            "--shard auto: SLURM_ARRAY_TASK_ID without its MIN, MAX and COUNT; give --shard i/n"
        ) from None
    # Of tasks 3,5,9 none knows which it is: only an array in equal steps has shards.
    step, rest = divmod(highest - lowest, count - 1) if count > 1 else (1, 0)
    if count < 1 or rest or (task - lowest) % step or not 0 <= (task - lowest) // step < count <= MAX_SHARDS:
        raise BadSettings(
            f"--shard auto: task {task} of {count} from {lowest} to {highest} is no array in equal steps; submit all "
            "tasks, finished ones end at once, or give --shard i/n"
        )
    return (task - lowest) // step, count


@dataclass(frozen=True, slots=True, eq=False)
class _Crew:
    """Who analyses, warm, and what of it the records depend on."""

    judge: Judge
    analysers: list[Analyser]
    batch_frames: int
    analysis: Analysis


def _crew(settings: BatchSettings) -> _Crew:
    allocator.settle()
    cascade = cascade_settings(settings)
    device = choose_device(settings.device)
    torch.set_num_threads(1)
    bundle = load_bundle(settings.bundle or DEFAULT_BUNDLE)
    folders = [Path(folder) for folder in settings.model]
    models = open_models(folders, device)
    judge = Judge(bundle, replace(cascade, models=models), read_calibration(settings, bundle.label), settings.channel)
    warn_of(judge.differences)
    makers = Makers(device, models, folders)
    on_device = makers.reduces_there(judge)
    workers = settings.workers or (DEVICE_WORKERS if on_device else len(os.sched_getaffinity(0)))
    analysers = [makers.make(judge) for _ in range(workers)]
    warm_up(analysers[0], judge)
    compilation.done()
    allocator.set_aside()
    facts = _facts(settings) | {"model": [model.label for model in models]}
    return _Crew(
        judge,
        analysers,
        settings.batch or (MOST_FRAMES if on_device else CPU_BATCH),
        Analysis(version("cxls-analyzer"), bundle.label, device, facts),
    )


def _facts(settings: BatchSettings) -> dict[str, Any]:
    """The settings that records depend on, as JSON has them; of files what they hold."""
    names = [name for name in JudgeSettings.model_fields if name not in _ELSEWHERE]
    facts: dict[str, Any] = settings.model_dump(mode="json", include=set(names))
    for name in _FILES:
        path: Path | None = getattr(settings, name)
        if path is not None:
            # A mask may be a dataset of a file, behind a colon.
            file = path if path.exists() else Path(str(path).partition(":")[0])
            with file.open("rb") as opened:
                facts[name] = f"{path.name} {hashlib.file_digest(opened, 'sha256').hexdigest()[:12]}"
    return facts


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the system refuses in a folder, in one line."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise BadSettings(f"{error.filename or folder}: {error.strerror}; give a folder that can be written") from None
    except OSError as error:
        raise Failed(
            f"{error.filename or folder}: {error.strerror or error}; what is finished stays, the same command goes on"
        ) from None


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, else a line in the log now and then, as a function of (done, total)."""
    if not sys.stderr.isatty():
        began = last = time.monotonic()
        start: int | None = None

        def tell(done: int, total: int) -> None:
            nonlocal last, start
            now = time.monotonic()
            start = done if start is None else start
            if now - last >= LOG_LINE_S:
                last = now
                log.info("%s: %d of %d frames, %.1f frames/s", title, done, total, (done - start) / (now - began))

        yield tell
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, total=total, completed=done)


def _text(done: Done) -> str:
    text = f"{done.frames} frames analysed, {done.hits} hits"
    if done.before:
        text += f", {done.before} were done before"
    if done.undecodable:
        text += f", {done.undecodable} undecodable"
    for what, named in (("mask", "mask"), ("geometry", "geometry file")):
        if done.unfit[what]:
            text += f", {named} not for {done.unfit[what]} of them"
    return text + (", stopped" if done.stopped else "")
