"""Values of a ``/status`` that may be anybody's: each is there and of its kind, or ``None``."""

import math
from typing import Any

from analyzer.logs import printable

_MOST = 1e15
"""No count or time of ours is larger; what is could fill the screen."""

_MOST_CHARACTERS = 300
_MOST_ITEMS = 100


def value(status: Any, *path: str) -> Any:
    """What lies at the path, ``None`` where something on the way is missing."""
    for key in path:
        if not isinstance(status, dict):
            return None
        status = status.get(key)
    return status


def number(status: Any, *path: str) -> float | None:
    """A finite number."""
    found = value(status, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if abs(found) <= _MOST and math.isfinite(found) else None


def text(status: Any, *path: str) -> str | None:
    """A text without anything that a terminal obeys; numbers as text too."""
    found = value(status, *path)
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return None
    if isinstance(found, str):
        return printable(found[:_MOST_CHARACTERS])
    return None if number(status, *path) is None else f"{found:.6g}" if isinstance(found, float) else str(found)


def counts(status: Any, *path: str) -> dict[str, int]:
    """Whole numbers by name, those above 0."""
    found = value(status, *path)
    if not isinstance(found, dict):
        return {}
    named = {printable(str(key)[:_MOST_CHARACTERS]): number(found, key) for key in list(found)[:_MOST_ITEMS]}
    return {name: int(count) for name, count in named.items() if count is not None and count > 0}


def items(status: Any, *path: str) -> list[dict[str, Any]]:
    """Objects in a list, the latest where there are many."""
    found = value(status, *path)
    return [each for each in found[-_MOST_ITEMS:] if isinstance(each, dict)] if isinstance(found, list) else []
