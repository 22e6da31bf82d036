"""``cxls view``: the live page on files."""

from collections.abc import Sequence

from cxls.cli import Interrupted, stop_on_signals
from cxls.commands.analyze import Session
from cxls.settings import AnalyzeSettings, BadSettings, Resolved, ViewSettings


def run(resolved: Resolved[ViewSettings], files: Sequence[str]) -> None:
    """Analyse files as ``cxls analyze`` does, and serve the page until a signal comes."""
    streams = [each for each in files if "://" in each]
    if streams:
        raise BadSettings(f"{streams[0]}: a stream, not a file; `cxls analyze {streams[0]}` serves its page")
    session = Session(AnalyzeSettings(**resolved.settings.model_dump()), list(files), stay=True)
    interrupted = stop_on_signals(session.stop)
    session.run()
    if interrupted:
        raise Interrupted(interrupted[0])
