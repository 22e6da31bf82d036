"""A temporary folder that goes when all who write to it have ended, however they end."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_REMOVE = "import shutil, sys; sys.stdin.buffer.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"
_PATIENCE_S = 60.0


@contextlib.contextmanager
def temporary(prefix: str) -> Iterator[tuple[Path, int]]:
    """A new folder, and a descriptor for other processes to inherit.

    A process of its own removes the folder once nobody has the descriptor open: we and all that inherited it are gone,
    killed or not.
    """
    folder = tempfile.mkdtemp(prefix=prefix)
    reading, holding = os.pipe()
    remover = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _REMOVE, folder],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(reading)
    try:
        yield Path(folder), holding
    finally:
        os.close(holding)
        with contextlib.suppress(subprocess.TimeoutExpired):
            remover.wait(_PATIENCE_S)
