"""Draws the terminal view: lines fitted to the terminal as it is now."""

import time
from collections.abc import Callable
from urllib.parse import SplitResult

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cxls.watching.client import Heard
from cxls.watching.view import BARS, PLAIN_BARS, Line, Memory, lines, no_answer

_LABEL = 10
STALE_S = 3.0
"""So long after the next answer was due, or when nothing was heard at all, the server has gone."""

STYLES = {"plain": "", "good": "green", "warning": "yellow", "critical": "bold red"}


class Screen:
    """What rich draws: the lines of ``heard()`` as many as fit, the least important left out first.

    ``interval_s``: how often it is asked for; an answer of then is no old one before the next is due.
    """

    def __init__(self, where: SplitResult, heard: Callable[[], Heard], memory: Memory, interval_s: float) -> None:
        self._where, self._heard, self._memory = where, heard, memory
        self._stale_s = interval_s + STALE_S

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = console.size
        heard = self._heard()
        shown: list[Line] = []
        silent = time.monotonic() - heard.at_s
        if heard.why is not None or silent > self._stale_s:
            shown.append(Line("server", no_answer(heard.why, silent), "critical"))
        if heard.status is not None:
            shown += lines(heard.status, self._memory, bars(console), width)
        head = Text.assemble(("cxls watch ", "bold"), self._where.geturl(), f"  {time.strftime('%H:%M:%S')}")
        head.truncate(width, overflow="ellipsis")
        yield head
        yield from _fitted(shown, width, height - 2)
        foot = Text("Ctrl-C ends", "dim")
        foot.truncate(width, overflow="ellipsis")
        yield foot


def bars(console: Console) -> str:
    """Block characters where the terminal has them."""
    return BARS if console.encoding.lower().startswith("utf") else PLAIN_BARS


def _fitted(shown: list[Line], width: int, height: int) -> list[Text]:
    """One row a line, alarms two where there is room; from the end, those of the highest rank left out."""
    kept = list(shown)
    while len(kept) > max(height, 1):
        worst = max(range(len(kept)), key=lambda place: (kept[place].rank, place))
        del kept[worst]
    spare = max(height, 1) - len(kept)
    rows: list[Text] = []
    for line in kept:
        wrapped = _wrapped(line, width)
        if len(wrapped) > 1 and spare >= len(wrapped) - 1 and line.kind in ("warning", "critical"):
            spare -= len(wrapped) - 1
            rows += wrapped
        else:
            row = _row(line)
            row.truncate(width, overflow="ellipsis")
            rows.append(row)
    return rows


def _row(line: Line) -> Text:
    return Text.assemble((f"{line.label:<{_LABEL}}", "bold"), (line.text, STYLES[line.kind]))


def _wrapped(line: Line, width: int) -> list[Text]:
    body = Text(line.text, STYLES[line.kind]).wrap(Console(width=width), max(width - _LABEL, 1))
    return [
        Text.assemble((f"{'' if place else line.label:<{_LABEL}}", "bold"), part) for place, part in enumerate(body)
    ]
