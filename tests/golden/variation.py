"""What golden records owe to how and where they are made: ``python -m tests.golden.variation [--slow] [NAME ...]``.

Each line is a process of its own, beside one without any change: other batches, orders, workers and transports, which
must not matter at all, and other instructions of the processor, which stand for other machines. For each field that
differs, the largest difference and how much of its tolerance that is; ``-`` where it is no number, or none is allowed.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.golden.analysing import Record
from tests.golden.comparing import Change, aligned, compare
from tests.support import REPOSITORY

_LONG_S = 1200.0


@dataclass(frozen=True, slots=True)
class Variation:
    """``options`` of ``tests.golden.analysing``, and its environment. ``slow``: takes a minute or more."""

    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    slow: bool = False


def _in(**environment: str) -> Variation:
    return Variation(environment=environment)


_NUMPY_WIDE = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
_NUMPY_MIDDLE = f"AVX2 FMA3 {_NUMPY_WIDE}"

SAME: dict[str, Variation] = {
    "again": Variation(),
    "frames one by one": Variation(("--batch", "1")),
    "frames by three": Variation(("--batch", "3")),
    "frames backwards": Variation(("--backwards",)),
    "after 500 frames": Variation(("--before", "500")),
    "two threads in libraries": _in(OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2", MKL_NUM_THREADS="2"),
    "cxls analyze, files": Variation(("--way", "file")),
    "cxls analyze, two processes": Variation(("--way", "processes")),
    "cxls analyze, stream v1": Variation(("--way", "v1")),
    "cxls analyze, stream v2": Variation(("--way", "v2")),
    "after 10,000 frames": Variation(("--before", "10000"), slow=True),
}
"""What must not change a bit."""

ELSEWHERE: dict[str, Variation] = {
    "torch without wide vectors": _in(ATEN_CPU_CAPABILITY="default"),
    "torch with AVX2": _in(ATEN_CPU_CAPABILITY="avx2"),
    "torch with AVX-512": _in(ATEN_CPU_CAPABILITY="avx512"),
    "MKL with SSE4.2": _in(MKL_ENABLE_INSTRUCTIONS="SSE4_2"),
    "MKL with AVX2": _in(MKL_ENABLE_INSTRUCTIONS="AVX2"),
    "MKL, alike everywhere": _in(MKL_CBWR="COMPATIBLE"),
    "oneDNN with SSE4.1": _in(ONEDNN_MAX_CPU_ISA="SSE41"),
    "oneDNN with AVX2": _in(ONEDNN_MAX_CPU_ISA="AVX2"),
    "OpenBLAS as on Haswell": _in(OPENBLAS_CORETYPE="Haswell"),
    "OpenBLAS as on Nehalem": _in(OPENBLAS_CORETYPE="Nehalem"),
    "OpenBLAS as on SkylakeX": _in(OPENBLAS_CORETYPE="SkylakeX"),
    "numpy without AVX-512": _in(NPY_DISABLE_CPU_FEATURES=_NUMPY_WIDE),
    "numpy without AVX2": _in(NPY_DISABLE_CPU_FEATURES=_NUMPY_MIDDLE),
    "numba for any x86-64": Variation(environment={"NUMBA_CPU_NAME": "generic"}, slow=True),
    "all of them at their least": Variation(
        environment={
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "OPENBLAS_CORETYPE": "Nehalem",
            "NPY_DISABLE_CPU_FEATURES": _NUMPY_MIDDLE,
            "NUMBA_CPU_NAME": "generic",
        },
        slow=True,
    ),
}
"""What other processors may do, as far as this one can be told to."""

VARIATIONS = SAME | ELSEWHERE


def made(variation: Variation, kernels: Path) -> dict[str, list[Record]]:
    """The records of all cases that a variation has. ``kernels``: where numba keeps those of other processors."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records.json"
        environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **variation.environment}
        if any(name.startswith("NUMBA_") for name in environment):
            environment["NUMBA_CACHE_DIR"] = str(kernels)
        command = [sys.executable, "-m", "tests.golden.analysing", str(out), *variation.options]
        subprocess.run(command, check=True, env=os.environ | environment, cwd=REPOSITORY, timeout=_LONG_S)
        found: dict[str, list[Record]] = json.loads(out.read_text())
        return found


def differences(plain: Mapping[str, Sequence[Record]], other: Mapping[str, Sequence[Record]]) -> list[Change]:
    """Of the cases that ``other`` has."""
    return compare({name: plain[name] for name in other}, other)


def rows(name: str, changes: Sequence[Change]) -> list[tuple[str, ...]]:
    """A line for each field that differs, or one that says that none does."""
    by_field: defaultdict[str, list[Change]] = defaultdict(list)
    for change in changes:
        by_field[change.field].append(change)
    if not by_field:
        return [(name, "bit for bit the same", "", "", "", "")]
    found = []
    for each in sorted(by_field):
        of = by_field[each]
        records = {(change.case, change.series, change.image) for change in of}
        most = [max(getattr(change, kind) for change in of) for kind in ("difference", "relative", "excess")]
        found.append((name, each, str(len(records)), *("-" if math.isinf(value) else f"{value:.2g}" for value in most)))
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.variation", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(VARIATIONS)} (default: all that are not slow)")
    parser.add_argument("--slow", action="store_true", help="those that take a minute or more, too")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in VARIATIONS]:
        parser.error(f"no variation {unknown[0]!r}")
    names = given.names or [name for name, each in VARIATIONS.items() if given.slow or not each.slow]
    with tempfile.TemporaryDirectory() as kernels:
        plain = made(Variation(), Path(kernels))
        print(f"{sum(map(len, plain.values()))} records of {len(plain)} cases", flush=True)
        lines: list[tuple[str, ...]] = [("", "field", "records", "largest", "relative", "of tolerance")]
        for name in names:
            lines += rows(name, differences(plain, made(VARIATIONS[name], Path(kernels))))
            print(aligned(lines[-1:]), file=sys.stderr, flush=True)
    print(aligned(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
