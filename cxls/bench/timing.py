"""How the benchmarks time: CPU of one thread's work, and rounds in which everything takes its turn."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def cpu_ms(work: Callable[[int], object], calls: int) -> float:
    """CPU milliseconds a call of ``work(0)`` to ``work(calls - 1)``, of the whole process."""
    began = time.process_time()
    for number in range(calls):
        work(number)
    return (time.process_time() - began) / calls * 1e3


def together_s(works: Sequence[Callable[[int], object]], calls: int) -> float:
    """Seconds by the clock in which every one of ``works``, each in a thread of its own, makes its ``calls``."""
    start = Barrier(len(works) + 1)

    def run(work: Callable[[int], object]) -> None:
        start.wait()
        for number in range(calls):
            work(number)

    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(run, work) for work in works]
        start.wait()
        began = time.perf_counter()
        for each in running:
            each.result()
        return time.perf_counter() - began


def take_turns(measure: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each measurement of each round, by name: a noisy moment of the machine meets them all alike."""
    found: dict[str, list[float]] = {name: [] for name in measure}
    for _ in range(rounds):
        for name, each in measure.items():
            found[name].append(each())
    return found
