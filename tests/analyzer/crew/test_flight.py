"""The table of who holds a frame, alone: whatever happens, each frame is in one place and every byte is counted."""

import random

from analyzer.crew.flight import Batch, FlightTable
from streamer.frames import Frame
from tests.analyzer.builders import frame, water


def recount(table: FlightTable, workers: list[bytes]) -> int:
    held = [batch for worker in workers for batch in table.held_by(worker)]
    return sum(each.held_bytes for batch in [*table.waiting, *held] for each in batch.frames)


def test_bytes_are_those_of_all_frames_whatever_happens() -> None:
    chance = random.Random(5)
    workers = [b"a", b"b", b"c"]
    kinds = [frame(water(mean)) for mean in (0.01, 1.0, 30.0)]
    table, done, numbers = FlightTable(), [], 0
    landed: list[Batch] = []
    for _ in range(3000):
        worker = chance.choice(workers)
        what = chance.choice(("add", "fly", "fly", "land", "land", "lose", "fail", "late"))
        if what == "add" and table.frames_waiting < 50:
            size = chance.randint(1, 9)
            table.add([chance.choice(kinds) for _ in range(size)])
            numbers += size
        elif what == "fly" and (batch := table.take(chance.randint(1, 8))) is not None:
            table.fly(worker, batch, 0.0)
        elif what in ("land", "fail") and (held := table.held_by(worker)):
            batch = table.land(worker, chance.choice(held).number)
            assert batch is not None
            if what == "land":
                landed.append(batch)
            else:
                done += table.fail(batch)
        elif what == "late":
            assert table.land(worker, -1) is None
        elif what == "lose" and chance.random() < 0.3:
            done += table.lose(worker)
        assert table.held_bytes == recount(table, workers)
    over: list[Frame] = [*done, *(each for batch in landed for each in batch.frames)]
    assert len(over) + table.frames_waiting + table.frames_flying == numbers
    assert len(table.clear()) == numbers - len(over)
    assert table.held_bytes == 0
