"""Programs that end with the one that started them, however that came."""

import os
import sys
from collections.abc import Sequence

_BOUND = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, which outlives exec
if os.getppid() == int(parent):  # else it ended before we asked
    os.execv(command[0], command)
"""


def bound(command: Sequence[str]) -> list[str]:
    """The command, with a whole path, as one that gets SIGTERM when the thread that starts it is gone, by kill -9 too:
    start it from one that lives as long as the program. On other systems than Linux it is the command itself."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]
