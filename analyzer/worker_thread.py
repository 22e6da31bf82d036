"""A thread that is there before it has frames to judge, so that what belongs to a thread can be made ready in it.

torch opens the handles of its device's libraries, and their work space, for each thread anew.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

_Work = Callable[[], object]


class WorkerThread(threading.Thread):
    """Does one piece of work after the other, from ``start`` until after ``end``; the program does not wait for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._given: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()

    def give(self, work: _Work) -> None:
        """The next piece of work; what it raises ends the thread."""
        self._given.put(work)

    def end(self) -> None:
        """No more work than what was given."""
        self._given.put(None)

    def run(self) -> None:
        while (work := self._given.get()) is not None:
            work()


def all_do(threads: Sequence[WorkerThread], works: Sequence[_Work]) -> None:
    """Each thread does one of the works, all at the same time; waits for all. Raises what the first of them raises."""
    done: list[Future[None]] = []
    for thread, work in zip(threads, works, strict=True):
        done.append(Future())
        thread.give(partial(_answer, done[-1], work))
    errors = [each.exception() for each in done]
    for error in errors:
        if error is not None:
            raise error


def _answer(done: Future[None], work: _Work) -> None:
    try:
        work()
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)
