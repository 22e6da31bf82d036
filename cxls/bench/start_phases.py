"""Where a start takes its time: what ``cxls analyze`` does until its first record, step by step.

Run as ``python -m cxls.bench.start_phases MASTER``, in a process of its own whose modules are not loaded yet; it prints
seconds by step as JSON.
"""

import importlib
import json
import sys
import time
from pathlib import Path

_IMPORTS = (
    ("command line", ("cxls.cli",)),
    ("torch", ("torch",)),
    ("numpy, scipy, h5py", ("scipy.interpolate", "scipy.stats", "scipy.ndimage", "h5py")),
    ("numba", ("numba",)),
    ("compiled kernels", ("analyzer.kernels", "streamer.decoding")),
    ("the rest of the program", ("cxls.commands.analyze",)),
)


def main() -> None:
    seconds: dict[str, float] = {}
    then = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal then
        now = time.perf_counter()
        seconds[name] = now - then
        then = now

    for name, modules in _IMPORTS:
        for module in modules:
            importlib.import_module(module)
        lap(name)
    # Imported here, as to import is what was timed.
    import torch

    from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
    from analyzer.cascade import Analyser, CascadeSettings
    from analyzer.judge import Judge
    from analyzer.warm import warm_up
    from cxls.bench.inputs import packed_frames

    torch.set_num_threads(1)
    frame = packed_frames(Path(sys.argv[1]))[0]
    then = time.perf_counter()
    judge = Judge(load_bundle(DEFAULT_BUNDLE, "cpu"), CascadeSettings())
    analyser = Analyser(judge.bundle, judge.settings)
    lap("bundle")
    warm_up(analyser, judge)
    lap("warm-up")
    analyser.process([frame])
    lap("first frame, with its plan")
    analyser.process([frame])
    lap("second frame")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
