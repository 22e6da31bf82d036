"""The limit on open files: as high as it may be, because every connection takes one or two."""

import contextlib
import resource

MOST_FILES = 1 << 16
"""More than all connections that are served together take; a higher limit costs whoever closes all there could be."""


def attainable() -> int:
    """What ``raise_limit`` makes of the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        return MOST_FILES if soft == resource.RLIM_INFINITY else max(soft, MOST_FILES)
    return max(soft, min(hard, MOST_FILES))


def raise_limit() -> None:
    """Let this process, and those it starts, have so many; where that is not allowed, as many as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < attainable():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (attainable(), hard))
