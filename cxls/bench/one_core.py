"""A whole program on one core, in a process of its own: run as ``python -m cxls.bench.one_core``.

usage: one_core CORE MASTER FRAMES BUNDLE RESULTS, then two lines on stdin for each run

The process stays on its core from its first import on. On a line it warms an analysis with one worker and answers
``ready``, on the next it runs it and answers the pace as JSON, and so on until stdin ends. In between it does nothing,
so that it disturbs no other measurement.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path


def main(core: int, master: str, frames: int, bundle: str, results: str) -> None:
    """Run as often as asked."""
    os.sched_setaffinity(0, {core})
    # Only now, so that every thread of every library is on the core.
    from cxls.bench.pace import measured
    from cxls.commands.analyze import Session
    from cxls.settings import AnalyzeSettings

    settings = AnalyzeSettings(bundle=Path(bundle), workers=1, device="cpu", results=Path(results), overwrite=True)
    while sys.stdin.readline():
        session = Session(settings, [master])
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(asdict(measured(session, frames))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
