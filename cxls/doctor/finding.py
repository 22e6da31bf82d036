"""What a check found, and checks that may fail themselves."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from analyzer.logs import printable
from streamer.errors import first_line


class Level(StrEnum):
    """How grave it is. Only ``FAIL`` makes the exit code 1."""

    OK = "ok"
    WARN = "warn"
    """a run would work, less well or less safely than it could"""
    FAIL = "FAIL"
    """a run would not work"""


@dataclass(frozen=True, slots=True)
class Finding:
    """``text`` says what is, ``todo`` what to do about it where it is not ok."""

    check: str
    level: Level
    text: str
    todo: str = ""

    @property
    def line(self) -> str:
        """One line for a terminal, whatever a detector or a file put into the texts."""
        return printable(f"{self.level:<5} {self.check:<14} {self.text}" + (f"; {self.todo}" if self.todo else ""))

    @property
    def facts(self) -> dict[str, Any]:
        return {"check": self.check, "level": str(self.level), "text": self.text, "todo": self.todo}


def ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def warn(check: str, text: str, todo: str) -> Finding:
    return Finding(check, Level.WARN, text, todo)


def fail(check: str, text: str, todo: str) -> Finding:
    return Finding(check, Level.FAIL, text, todo)


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of ``look``; what it raises is one more, so that no check hides those after it."""
    try:
        yield from look()
    except Exception as error:
        first = first_line(error)
        yield fail(check, f"{type(error).__name__}: {first}", "this check could not be made; report it with this line")
