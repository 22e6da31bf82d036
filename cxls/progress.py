"""How far long work is, and its end on a signal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxls.cli import Interrupted, stop_on_signals


@contextmanager
def interruptible_progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr, as a function of (done, total) that raises ``Interrupted`` after a signal."""
    interrupted = stop_on_signals()
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def after_frame(done: int, total: int) -> None:
            progress.update(task, total=total, completed=done)
            # Between two of them, so that no file is left half written, and not inside HDF5's callbacks, which
            # would swallow the exception.
            if interrupted:
                raise Interrupted(interrupted[0])

        yield after_frame
