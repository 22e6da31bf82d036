"""``cxls replay``: files on the wire."""

import textwrap
import threading
from collections.abc import Sequence

import click
from rich.console import Console
from rich.progress import Progress

from cxls.cli import Interrupted, listening, stop_on_signals
from cxls.settings import BadSettings, ReplaySettings, Resolved
from sim_replay import replay
from sim_replay.faults import FaultPlan, parse_specs
from sim_replay.faults.kinds import table
from streamer.files import BadInput


def run(resolved: Resolved[ReplaySettings], files: Sequence[str]) -> None:
    """Replay until everything is handed over; with ``rest``, until a signal."""
    settings = resolved.settings
    stop = threading.Event()
    interrupted = stop_on_signals(stop)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting for a consumer", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, description="images", completed=done, total=total or None)

        report = replay.run_replay(wire_settings(settings, files), stop, listening, progress)
    click.echo(
        f"{report.series} series, {report.sent} images sent, {report.dropped} dropped, "
        f"{report.unreadable} unreadable, {report.seconds:.1f} s"
    )
    if report.faults:
        click.echo(f"{report.withheld} images withheld by faults")
    for kind, count in report.faults.items():
        click.echo(f"fault {kind}: {count}")
    for text in report.faults_left_out:
        click.echo(f"cxls: fault left out: {text}", err=True)
    for problem in report.problems[1:]:
        click.echo(f"cxls: {problem}", err=True)
    if interrupted:
        raise Interrupted(interrupted[0])
    if report.problems:
        raise BadSettings(report.problems[0])


def wire_settings(settings: ReplaySettings, files: Sequence[str]) -> replay.ReplaySettings:
    """The replay server's own settings."""
    return replay.ReplaySettings(
        inputs=tuple(files),
        bind=settings.bind,
        protocol=settings.stream,
        rate_hz=settings.rate,
        loop=settings.loop or settings.time is not None,
        loop_s=settings.time,
        header_detail=settings.header_detail,
        on_full=settings.on_full,
        rest=settings.rest,
        first_series_id=settings.series_id,
        faults=fault_plan(settings),
        fault_report=settings.fault_report,
    )


def fault_plan(settings: ReplaySettings) -> FaultPlan | None:
    """The faults to commit. Raises ``BadInput`` for one that is not known or does not say how often."""
    specs = parse_specs(settings.fault)
    if not specs and settings.fault_report is not None:
        raise BadInput("--fault-report without --fault reports nothing; add for instance --fault all=0.01")
    return FaultPlan(specs, settings.fault_seed) if specs else None


def list_faults() -> None:
    """Print every kind of fault."""
    for name, chance, text, shown in table():
        click.echo(
            f"{name}  (probability: of an image)" if chance == "image" else f"{name}  (probability: of a series)"
        )
        for label, words in (("", text), ("shows: ", shown)):
            click.echo(textwrap.fill(label + words, 100, initial_indent="    ", subsequent_indent="    "))
    click.echo()
    click.echo(
        "What shows are counters of the account by name and child: missing.gap is "
        'cxls_frames_missing_total{where="gap"}. docs/faults.md has more.'
    )
