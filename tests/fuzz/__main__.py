"""Coverage-guided fuzzing of one target: ``python -m tests.fuzz NAME [-libFuzzer=options] [FOLDER… | FILE…]``.

It starts from the target's seeds, its kept corpus and what is in the folders; what it finds goes to the first. Of files
it runs each alone. ``docs/fuzzing.md`` says how.
"""

import importlib
import os
import shlex
import sys
import tempfile
from pathlib import Path

import atheris

from tests.fuzz import CORPUS, TARGETS
from tests.support import REPOSITORY

MOST_BYTES = 16384
BOUNDS = ("-timeout=10", "-rss_limit_mb=4096", f"-max_len={MOST_BYTES}")
"""What one input may take, in seconds and megabytes, and its bytes; options given later count."""


def main(name: str, arguments: list[str]) -> None:
    if name not in TARGETS:
        raise SystemExit(f"{name}: no such target; there are {', '.join(TARGETS)}")
    packages, interpreted = TARGETS[name]
    if interpreted:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    skipped = [module for package in packages for module in compiled(package) if module not in interpreted]
    with atheris.instrument_imports(include=packages, exclude=skipped):
        target = importlib.import_module(f"tests.fuzz.{name}")
    options = [each for each in arguments if each.startswith("-")]
    given = [each for each in arguments if not each.startswith("-")]
    scratch = Path(tempfile.gettempdir(), "cxls-fuzz")
    if not any(Path(each).is_file() for each in given):
        # New inputs go to the first folder.
        seeds, found = scratch / f"{name}-seeds", Path(given[0]) if given else scratch / name
        for folder in (seeds, found):
            folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(each for each in target.seeds() if len(each) <= MOST_BYTES):
            (seeds / f"{number:04d}").write_bytes(seed)
        given = [str(found), *given[1:], *(str(each) for each in (CORPUS / name, seeds) if each.is_dir())]
    artifacts = f"-artifact_prefix={scratch}/{name}-"
    # What libFuzzer starts again to merge or to make an input smaller.
    command = f"{shlex.quote(sys.executable)} -m tests.fuzz {name}"
    atheris.Setup([command, *BOUNDS, artifacts, *options, *given], target.one)
    atheris.Fuzz()


def compiled(package: str) -> list[str]:
    """Modules with functions for numba, which compiles no code that counts its branches."""
    files = [(path, path.read_text()) for path in (REPOSITORY / package).rglob("*.py")]
    marked = [path for path, text in files if "numba" in text or "streamer.instructions" in text]
    return [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in marked]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(f"python -m tests.fuzz NAME [options] [FOLDER]; NAME is one of {', '.join(TARGETS)}")
    main(sys.argv[1], sys.argv[2:])
