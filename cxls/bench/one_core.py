"""A whole program on one core, in a process of its own: run as ``python -m cxls.bench.one_core``.

usage: one_core CORE MASTER FRAMES BUNDLE RESULTS, then a line on stdin for each run

The process stays on its core from its first import on. It answers ``ready`` when an analysis is warm, waits for a line,
runs it with one worker and answers the pace as JSON, and so on until stdin ends.
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
    while True:
        session = Session(settings, [master])
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        print(json.dumps(asdict(measured(session, frames))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
