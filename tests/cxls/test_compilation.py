"""What is said while kernels are compiled, and that nothing is said where they are not."""

import logging

import numba
import pytest

from cxls import compilation
from cxls.compilation import Compilation, announce


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(compilation, "time", made)
    return made


def compile_for(of: Compilation, clock: Clock, seconds: float) -> None:
    of.on_start(None)
    clock.now += seconds
    of.on_end(None)


def test_what_takes_long_is_announced_followed_and_ended(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    of = Compilation()
    compile_for(of, clock, 0.4)
    assert caplog.messages == []
    for _ in range(10):
        compile_for(of, clock, 4.0)
    of.done()
    assert caplog.messages[0] == "compiling for this machine, which takes about a minute, once"
    assert caplog.messages[1:-1] == [
        "compiling: 6 functions in 20 s so far",
        "compiling: 10 functions in 36 s so far",
    ]
    assert caplog.messages[-1] == "compiled 11 functions in 40 s; the next start finds them"


def test_a_function_within_another_is_not_counted_twice(clock: Clock) -> None:
    of = Compilation()
    of.on_start(None)
    compile_for(of, clock, 3.0)
    of.on_end(None)
    assert (of.functions, of.seconds) == (1, 3.0)


def test_nothing_is_said_where_nothing_was_compiled(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    of = Compilation()
    compile_for(of, clock, 0.2)
    of.done()
    assert caplog.messages == []


def test_numba_tells_of_what_it_compiles_and_of_nothing_else() -> None:
    announce()
    announce()
    before = compilation.compilation.functions
    twice = numba.njit(lambda x: 2 * x)
    assert twice(3) == 6
    assert twice(4) == 8
    assert compilation.compilation.functions == before + 1
