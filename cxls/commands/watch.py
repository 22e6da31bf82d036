"""``cxls watch``: a running analysis in a terminal, over ssh too."""

import os
import sys
import threading
import time

import click
from rich.console import Console
from rich.live import Live

from cxls.cli import Failed, Interrupted, stop_on_signals
from cxls.http_address import parse_address
from cxls.settings import Resolved, WatchSettings
from cxls.watching.client import TIMEOUT_S, Heard, Poller
from cxls.watching.screen import Screen, bars
from cxls.watching.view import Memory, lines, no_answer, one_line

_LOOK_S = 0.2
"""How soon Ctrl-C, a new answer and another size of the terminal show."""

_PLAIN_WIDTH = 100


def run(resolved: Resolved[WatchSettings], address: str) -> None:
    """Draw until Ctrl-C; a line an interval where stdout is no terminal; one snapshot with ``once``."""
    settings = resolved.settings
    where = parse_address(address, "")
    console, memory = Console(), Memory()
    poller = Poller(where, settings.interval, memory.add)
    try:
        if settings.once:
            _print_once(poller, memory, console)
            return
        stop = threading.Event()
        interrupted = stop_on_signals(stop)
        if console.is_terminal and not console.is_dumb_terminal:
            screen = Screen(where, lambda: poller.heard, memory, settings.interval)
            _draw(screen, poller, console, stop)
        else:
            _print_lines(poller, memory, stop)
        if interrupted:
            raise Interrupted(interrupted[0])
    except BrokenPipeError:
        # Whoever read has seen enough; nothing is left to be flushed into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        poller.close()


def _print_once(poller: Poller, memory: Memory, console: Console) -> None:
    heard = poller.wait(0, TIMEOUT_S + 1.0)
    if heard.status is None:
        raise Failed(heard.why or f"no answer within {TIMEOUT_S:g} s")
    for line in lines(heard.status, memory, bars(console), _PLAIN_WIDTH):
        click.echo(f"{line.label:<10}{line.text}".rstrip())


def _draw(screen: Screen, poller: Poller, console: Console, stop: threading.Event) -> None:
    with Live(screen, console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        seen: tuple[object, ...] | None = None
        while not stop.is_set():
            now = (poller.heard.asked, console.size, int(time.monotonic()))
            if now != seen:
                live.refresh()
                seen = now
            stop.wait(_LOOK_S)


def _print_lines(poller: Poller, memory: Memory, stop: threading.Event) -> None:
    asked = 0
    while not stop.is_set():
        heard = poller.wait(asked, _LOOK_S)
        if heard.asked == asked:
            continue
        asked = heard.asked
        click.echo(_said(heard, memory))


def _said(heard: Heard, memory: Memory) -> str:
    if heard.why is None and heard.status is not None:
        return one_line(heard.status, memory)
    return f"{time.strftime('%H:%M:%S')} {no_answer(heard.why, time.monotonic() - heard.at_s)}"
