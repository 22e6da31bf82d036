"""How many descriptors this process may have, and what share of them those who come from outside may take."""

import resource

_SHARE = 5
"""Three doors of ours, the page, and one for files, logs and connections of our own."""


def at_most(connections: int, *, descriptors_each: int) -> int:
    """So many connections, or as many as a fifth of all descriptors is enough for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft // _SHARE // descriptors_each))
