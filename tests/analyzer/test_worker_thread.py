"""Threads that are there before they have frames to judge."""

import threading

import pytest

from analyzer.worker_thread import WorkerThread, all_do


def threads(count: int) -> list[WorkerThread]:
    made = [WorkerThread(f"worker-{number}") for number in range(count)]
    for each in made:
        each.start()
    return made


def test_each_thread_does_its_own_work_and_ends_with_what_it_was_given() -> None:
    seen: list[str] = []
    all_here = threading.Barrier(3)

    def work() -> None:
        all_here.wait(10)
        seen.append(threading.current_thread().name)

    made = threads(3)
    all_do(made, [work] * 3)
    assert sorted(seen) == ["worker-0", "worker-1", "worker-2"]
    for each in made:
        each.give(work)
        each.end()
    for each in made:
        each.join(10)
        assert not each.is_alive()
    assert len(seen) == 6


def test_the_first_error_is_told_once_all_are_done_and_the_threads_go_on() -> None:
    done = threading.Event()

    def fail() -> None:
        done.wait(10)
        raise ZeroDivisionError("in a thread")

    made = threads(2)
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        all_do(made, [fail, done.set])
    all_do(made, [lambda: None] * 2)
    for each in made:
        each.end()
