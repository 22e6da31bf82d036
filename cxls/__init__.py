"""The front door: the command tree, settings and exit codes.

In: the command line, the environment, a settings file. Out: the other packages, at work.
May import: all of them, lazily; nothing imports it.
"""

import os

# Before anything loads OpenMP: see ``streamer``.
os.environ.setdefault("OMP_NUM_THREADS", "1")
