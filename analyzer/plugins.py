"""What installed packages add to a registry by an entry point group."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

Kind = TypeVar("Kind")


def known_names(own: Mapping[str, Kind], group: str) -> list[str]:
    """Every name of the registry and of the group, sorted."""
    return sorted({*own, *(point.name for point in entry_points(group=group))})


def find(name: str, own: Mapping[str, Kind], group: str, kind: type[Kind]) -> Kind:
    """What a name stands for, the registry's own first.

    Raises ``KeyError`` for an unknown name, ``TypeError`` for a plugin that cannot be loaded or is of another kind.
    """
    if name in own:
        return own[name]
    for point in entry_points(group=group, name=name):
        try:
            found = point.load()
        except Exception as error:  # whatever a foreign package does when it is imported
            raise TypeError(f"entry point {group}:{name} of {point.value} cannot be loaded: {error}") from error
        if not isinstance(found, kind):
            raise TypeError(f"entry point {group}:{name} of {point.value} is no {kind.__name__}")
        return found
    raise KeyError(name)
