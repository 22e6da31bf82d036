"""``cxls demo``: simulate, replay, analyse, on one machine, over real sockets."""

import tempfile
import threading
from pathlib import Path

import click

from cxls.cli import Interrupted, listening, stop_on_signals
from cxls.commands.analyze import Session, print_summary
from cxls.commands.simulate import write
from cxls.settings import AnalyzeSettings, DemoSettings, Resolved
from sim_replay.replay import Replay, ReplaySettings


def run(resolved: Resolved[DemoSettings]) -> None:
    """Show the whole path; loops until Ctrl-C unless ``exit`` is set."""
    settings = resolved.settings
    with tempfile.TemporaryDirectory(prefix="cxls-demo-") as folder:
        click.echo(f"simulating {settings.frames} frames, water in all, a crystal in some")
        master = write(Path(folder) / "demo", settings, settings.frames)
        wire = ReplaySettings(
            inputs=(str(master),),
            bind="tcp://127.0.0.1:0",
            protocol=settings.stream,
            rate_hz=settings.rate,
            loop=not settings.exit,
        )
        with Replay(wire) as replay:
            listening("replay", replay.endpoint)
            _analyse(settings, replay)


def _analyse(settings: DemoSettings, replay: Replay) -> None:
    session = Session(
        AnalyzeSettings(listen=settings.listen, on_full="block", series=1 if settings.exit else None), [replay.endpoint]
    )
    stop_replay = threading.Event()
    interrupted = stop_on_signals(session.stop, stop_replay)
    where = session.web.address if session.web else settings.listen
    click.echo(f"live page http://{where}/ and metrics http://{where}/metrics; Ctrl-C ends")
    player = threading.Thread(target=replay.play, args=(stop_replay,), name="replay", daemon=True)
    player.start()
    try:
        session.run()
    finally:
        stop_replay.set()
        player.join()
    print_summary(session.front)
    if interrupted:
        raise Interrupted(interrupted[0])
