"""The second puller takes its share, and knows to the message how much that was."""

import threading
import time

import pytest
import zmq

from sim_replay.faults.second_puller import SecondPuller
from sim_replay.wire import Wire

SIZES = (0, 1, 255, 256, 9000, 300_000)


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "ipc://{folder}/detector"])
def test_what_was_sent_came_to_one_of_the_two(bind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    never, wire = threading.Event(), Wire(bind.format(folder=tmp_path_factory.mktemp("ipc")), send_hwm=100)
    with zmq.Context() as context, context.socket(zmq.PULL) as consumer:
        consumer.connect(wire.endpoint)
        assert wire.wait_until(lambda: wire.greetings == 1, never, 60)
        thief = SecondPuller(wire.endpoint)
        assert wire.wait_until(lambda: wire.greetings == 2, never, 60)
        sent = 0
        for number in range(60):
            parts = [bytes(SIZES[(number + part) % len(SIZES)]) for part in range(1 + number % 3)]
            sent += wire.send(parts, never, 30.0)
        taken = thief.leave(1, never, lambda: wire.settle(never, 30.0))
        came = 0
        while consumer.poll(500):
            consumer.recv_multipart()
            came += 1
        assert (taken, taken + came, sent) == (30, sent, 60)
        assert wire.wait_until(lambda: wire.consumers == 1, never, 60)
        assert wire.send([b"later"], never, 30.0)
        assert consumer.poll(30_000)
    wire.close()


def test_a_sender_whose_thread_is_slow_is_waited_for() -> None:
    never, wire = threading.Event(), Wire("tcp://127.0.0.1:0", send_hwm=100)
    thief = SecondPuller(wire.endpoint)
    assert wire.wait_until(lambda: wire.greetings == 1, never, 60)

    def late() -> bool:
        if not wire.send([bytes(9000)], never, 30.0):
            return False
        time.sleep(0.4)
        return wire.settle(never, 30.0)

    turns = iter([late, lambda: wire.settle(never, 30.0), lambda: wire.settle(never, 30.0)])
    assert thief.leave(0, never, lambda: next(turns)()) == 1
    wire.close()


def test_one_that_is_called_off_leaves_at_once() -> None:
    wire, called_off = Wire("tcp://127.0.0.1:0"), threading.Event()
    thief = SecondPuller(wire.endpoint)
    called_off.set()
    began = time.monotonic()
    assert thief.leave(9, called_off, lambda: False) == 0
    assert time.monotonic() - began < 10
    wire.close()
