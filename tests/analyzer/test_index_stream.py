"""Following what indexamajig writes: whole, half, hostile, truncated, replaced; and the join by event id."""

import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.indexing import outcomes as outcomes_module
from analyzer.indexing.follower import StreamFollower
from analyzer.indexing.outcomes import Outcomes
from analyzer.indexing.stream_file import MAX_CRYSTALS, MAX_LINE_BYTES, Chunk, Crystal, StreamParser
from tests.analyzer.stream_text import HEADER, chunk, crystal

LYSOZYME = (79.0, 79.0, 38.0, 90.0, 90.0, 90.0)


def parse(text: str | bytes) -> list[Chunk]:
    return StreamParser().feed(text if isinstance(text, bytes) else text.encode())


# --- parsing -----------------------------------------------------------------------------


def test_a_chunk_with_a_crystal_is_read() -> None:
    (found,) = parse(HEADER + chunk("series7-image3-run0.1", [crystal()]))
    assert found == Chunk(
        "series7-image3-run0.1", "xgandalf-nolatt-cell", 1, 4.0, (Crystal(LYSOZYME, "tetragonal P", 2.0),)
    )
    assert found.indexed


def test_a_chunk_that_was_not_indexed_is_read() -> None:
    (found,) = parse(chunk("a", peaks=[]))
    assert found == Chunk("a", "none", 0, None, ())
    assert not found.indexed


def test_several_crystals_of_a_chunk_are_kept() -> None:
    other = (10.0, 11.0, 12.0, 90.0, 101.5, 90.0)
    (found,) = parse(chunk("a", [crystal(), crystal(other, "monoclinic", "C", 3.1)]))
    assert [each.lattice for each in found.crystals] == ["tetragonal P", "monoclinic C"]
    assert found.crystals[1] == Crystal((100.0, 110.0, 120.0, 90.0, 101.5, 90.0), "monoclinic C", 3.1)


def test_more_crystals_than_can_be_are_not_kept() -> None:
    (found,) = parse(chunk("a", [crystal(reflections=0)] * (MAX_CRYSTALS + 20)))
    assert len(found.crystals) == MAX_CRYSTALS


@given(st.lists(st.integers(0, 4000), max_size=12))
def test_pieces_of_any_size_give_the_same_chunks(cuts: list[int]) -> None:
    text = (HEADER + chunk("a", [crystal()]) + chunk("b") + chunk("c", [crystal(), crystal()])).encode()
    places = [0, *sorted(cut % len(text) for cut in cuts), len(text)]
    parser = StreamParser()
    found = [each for low, high in itertools.pairwise(places) for each in parser.feed(text[low:high])]
    assert found == parse(text)
    assert [each.event_id for each in found] == ["a", "b", "c"]


def test_a_half_written_chunk_waits_for_its_end() -> None:
    text = chunk("a", [crystal()]).encode()
    parser = StreamParser()
    for byte in range(len(text) - 1):
        assert parser.feed(text[byte : byte + 1]) == []
    assert len(parser.feed(text[-1:])) == 1


def test_a_chunk_that_never_ended_is_given_up_for_the_next() -> None:
    torn = chunk("torn", [crystal()])
    found = parse(torn[: len(torn) // 2] + "\n" + chunk("whole"))
    assert [each.event_id for each in found] == ["whole"]


def test_windows_line_ends_are_read() -> None:
    (found,) = parse(chunk("a", [crystal()]).replace("\n", "\r\n"))
    assert found.crystals[0].cell == LYSOZYME


@pytest.mark.parametrize(
    "line",
    [
        "Cell parameters",
        "Cell parameters 7.9 7.9 nm, 90 90 90 deg",
        "Cell parameters nan 7.9 3.8 nm, 90 90 90 deg",
        "Cell parameters inf 7.9 3.8 nm, 90 90 90 deg",
        "Cell parameters -7.9 7.9 3.8 nm, 90 90 90 deg",
        "Cell parameters 7.9 7.9 3.8 nm, 90 90 180 deg",
        "Cell parameters 7.9 7.9 1e30 nm, 90 90 90 deg",
        "Cell parameters 79 79 38 A, 90 90 90 deg",
        "Cell parameters x y z nm, al be ga deg",
    ],
)
def test_a_cell_that_is_none_is_left_out_and_the_crystal_counts(line: str) -> None:
    good = crystal()
    bad = "\n".join(line if each.startswith("Cell parameters") else each for each in good.split("\n"))
    (found,) = parse(chunk("a", [bad]))
    assert found.crystals == (Crystal(None, "tetragonal P", 2.0),)
    assert found.indexed


@pytest.mark.parametrize("lattice", ["", "nonsense", "x" * 5000, "tetragonal\0"])
def test_a_lattice_that_is_none_is_unknown(lattice: str) -> None:
    (found,) = parse(chunk("a", [crystal(lattice=lattice)]))
    assert found.crystals[0].lattice == "unknown"


def test_a_line_without_end_costs_its_chunk_at_most() -> None:
    parser = StreamParser()
    assert parser.feed(chunk("a").encode()[:200]) == []
    for _ in range(200):
        assert parser.feed(b"x" * 100_000) == []
        assert len(parser._rest) <= MAX_LINE_BYTES
    assert [each.event_id for each in parser.feed(b"\n" + chunk("b").encode())] == ["b"]


def test_an_event_id_of_a_megabyte_is_cut_short() -> None:
    assert parse(chunk("y" * (1 << 20))) == [Chunk(None, "none", 1, 4.0, ())]
    (found,) = parse(chunk("y" * 1000))
    assert found.event_id == "y" * 200


@given(st.binary(max_size=2000))
def test_no_bytes_whatever_break_the_parser(noise: bytes) -> None:
    parser = StreamParser()
    parser.feed(noise)
    parser.feed(b"----- Begin chunk -----\n--- Begin crystal\n" + noise + b"\n--- End crystal\n")
    parser.feed(b"\n----- End chunk -----\n")
    assert parser.feed(chunk("after").encode())[-1].event_id == "after"


# --- following ---------------------------------------------------------------------------


class Followed:
    """A follower that is polled by hand, and what it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken: list[str | None] = []
        self.follower = StreamFollower(path, lambda found: self.taken.append(found.event_id))

    def poll(self) -> list[str | None]:
        """What has come since the last time."""
        before = len(self.taken)
        self.follower.poll()
        return self.taken[before:]

    def append(self, text: str) -> None:
        with open(self.path, "a") as file:
            file.write(text)


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path / "out.stream")


def test_a_file_that_is_not_there_yet_is_waited_for(followed: Followed) -> None:
    assert followed.poll() == []
    assert followed.follower.state == "waiting for the file"
    followed.append(HEADER + chunk("a"))
    assert followed.poll() == ["a"]
    assert followed.follower.state == "following"


def test_chunks_come_as_they_are_written(followed: Followed) -> None:
    text = chunk("b", [crystal()])
    followed.append(HEADER + chunk("a") + text[:100])
    assert followed.poll() == ["a"]
    assert followed.poll() == []
    followed.append(text[100:] + chunk("c"))
    assert followed.poll() == ["b", "c"]


def test_what_stood_there_before_us_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "out.stream"
    path.write_text(HEADER + chunk("old") + chunk("cut")[:60])
    followed = Followed(path)
    followed.append(chunk("cut")[60:] + chunk("new"))
    assert followed.poll() == ["new"]


def test_a_truncated_file_is_read_from_its_start(followed: Followed) -> None:
    followed.append(HEADER + chunk("a") + chunk("b"))
    assert followed.poll() == ["a", "b"]
    followed.path.write_text(HEADER + chunk("c"))
    assert followed.poll() == ["c"]
    assert followed.follower.restarts == 1


def test_a_file_written_anew_and_longer_is_noticed(followed: Followed) -> None:
    followed.append(HEADER + chunk("a"))
    assert followed.poll() == ["a"]
    followed.path.write_text(HEADER + "".join(chunk(str(n)) for n in range(5)))
    assert followed.poll() == ["0", "1", "2", "3", "4"]


def test_a_replaced_file_gives_its_last_chunks_first(followed: Followed) -> None:
    followed.append(HEADER + chunk("a"))
    assert followed.poll() == ["a"]
    followed.append(chunk("b"))
    followed.path.rename(followed.path.with_suffix(".old"))
    followed.append(HEADER + chunk("c"))
    assert followed.poll() == ["b", "c"]


def test_a_file_moved_away_is_waited_for_again(followed: Followed) -> None:
    followed.append(HEADER + chunk("a"))
    followed.poll()
    followed.append(chunk("b"))
    followed.path.rename(followed.path.with_suffix(".old"))
    assert followed.poll() == ["b"]
    assert followed.follower.state == "waiting for the file"
    assert not followed.follower.following
    followed.append(chunk("c"))
    assert followed.poll() == ["c"]


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        followed = Followed(path)
        assert followed.poll() == []
        assert followed.poll() == []
        assert not followed.follower.following
        assert followed.follower.state.startswith("not a regular file")
    assert caplog.text.count("not a regular file") == 3


def test_a_file_that_cannot_be_read_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "folder").write_text("a file")
    taken: list[str | None] = []
    follower = StreamFollower(tmp_path / "folder" / "out.stream", lambda found: taken.append(found.event_id))
    follower.start()
    wait_for(lambda: follower.state.startswith("cannot be read"))
    (tmp_path / "folder").unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "out.stream").write_text(HEADER + chunk("a"))
    wait_for(lambda: taken == ["a"])
    follower.close()
    assert caplog.text.count("cannot be read") == 1


def test_the_thread_reads_to_the_end_before_it_ends(followed: Followed) -> None:
    followed.follower.start()
    followed.append(HEADER + chunk("a"))
    wait_for(lambda: followed.taken == ["a"])
    followed.append(chunk("b"))
    followed.follower.close()
    assert followed.taken == ["a", "b"]


def test_the_end_reads_no_longer_than_asked_and_says_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out.stream"
    follower = StreamFollower(path, lambda found: time.sleep(0.0003))
    follower.start()
    path.write_text(HEADER + chunk("a", [crystal()]) * 10_000)
    wait_for(lambda: follower.read_bytes > 0)
    began = time.monotonic()
    follower.close(0.2)
    assert time.monotonic() - began < 5.0
    assert follower.unread_bytes > 0
    assert follower.read_bytes + follower.unread_bytes == path.stat().st_size


def test_a_chunk_that_cannot_be_taken_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken: list[str | None] = []

    def take(found: Chunk) -> None:
        if found.event_id == "bad":
            raise RuntimeError("no")
        taken.append(found.event_id)

    path = tmp_path / "out.stream"
    follower = StreamFollower(path, take)
    follower.start()
    path.write_text(chunk("bad"))
    wait_for(lambda: "could not be taken" in caplog.text)
    with open(path, "a") as file:
        file.write(chunk("good"))
    follower.close()
    assert taken == ["good"]


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- the join ----------------------------------------------------------------------------


def joined(*chunks: Chunk) -> Outcomes:
    outcomes = Outcomes()
    for name in "abcdefgh":
        outcomes.handed_out(name)
    for each in chunks:
        outcomes.add(each)
    return outcomes


def indexed(name: str | None, *cells: tuple[float, ...] | None, lattice: str = "tetragonal P") -> Chunk:
    return Chunk(name, "xgandalf", 20, 2.5, tuple(Crystal(cell, lattice, 2.0 + n) for n, cell in enumerate(cells)))


MISSED = Chunk("b", "none", 20, 3.5)


def test_only_hits_of_ours_count_and_each_once(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = joined(
        indexed("a", LYSOZYME), MISSED, indexed("a", LYSOZYME), indexed("z", LYSOZYME), indexed(None), indexed(None)
    )
    assert outcomes.counts == {"indexed": 1, "not_indexed": 1, "repeated": 1, "unknown": 1, "no_event_id": 2}
    facts = outcomes.facts()
    assert facts["indexed_ratio"] == {"all": 0.5, "100": 0.5, "1000": 0.5}
    assert facts["cells"] == [LYSOZYME]
    assert caplog.text.count("--copy-header=event_id") == 1


def test_the_cell_is_the_median_and_the_spread_does_not_mind_one_outlier() -> None:
    cells = [(79.0 + d, 79.0, 38.0, 90.0, 90.0, 90.0 - d) for d in (-0.2, -0.1, 0.0, 0.1, 0.2)] + [
        (500.0, *LYSOZYME[1:])
    ]
    facts = joined(*(indexed(name, cell) for name, cell in zip("abcdef", cells, strict=True))).facts()
    assert facts["cell"]["median"]["a"] == pytest.approx(79.05)
    assert facts["cell"]["sigma"]["a"] == pytest.approx(1.4826 * 0.15, abs=1e-4)
    assert facts["cell"]["median"]["gamma"] == 90.0
    assert facts["resolution_angstrom"] == 2.0
    assert facts["peak_resolution_angstrom"] == 2.5


def test_another_lattice_does_not_mix_into_the_cell() -> None:
    other = (50.0, 60.0, 70.0, 90.0, 100.0, 90.0)
    facts = joined(
        indexed("a", LYSOZYME, other, lattice="tetragonal P"), indexed("b", other, lattice="monoclinic P")
    ).facts()
    assert facts["lattice"] == "tetragonal P"
    assert facts["lattices"] == {"tetragonal P": 2, "monoclinic P": 1}
    assert facts["cells"] == [LYSOZYME, other], "those of the lattice named, and no others"


def test_what_is_drawn_and_the_median_are_of_the_same_lattice_however_the_latest_are() -> None:
    other = (50.0, 60.0, 70.0, 90.0, 100.0, 90.0)
    outcomes = Outcomes()
    for number in range(outcomes_module.CRYSTALS_KEPT):
        usual = number < 0.6 * outcomes_module.CRYSTALS_KEPT
        outcomes.handed_out(str(number))
        outcomes.add(indexed(str(number), LYSOZYME if usual else other, lattice="tP" if usual else "mP"))
    facts = outcomes.facts()
    assert facts["lattice"] == "tP"
    assert facts["cells"] == [LYSOZYME] * outcomes_module.CELLS_SHOWN
    assert facts["cell"]["median"]["a"] == LYSOZYME[0]


def test_a_crystal_without_a_cell_counts_as_indexed() -> None:
    facts = joined(indexed("a", None)).facts()
    assert facts["outcomes"]["indexed"] == facts["crystals"] == 1
    assert facts["cells"] == []
    assert facts["cell"]["median"] == dict.fromkeys(("a", "b", "c", "alpha", "beta", "gamma"))


def test_the_windows_forget_and_the_total_does_not() -> None:
    outcomes = Outcomes()
    for number in range(2500):
        outcomes.handed_out(str(number))
        outcomes.add(indexed(str(number), LYSOZYME) if number < 1450 else Chunk(str(number), "none"))
    facts = outcomes.facts()
    assert facts["indexed_ratio"] == {"all": 0.58, "100": 0.0, "1000": 0.0}
    assert len(facts["cells"]) <= outcomes_module.CELLS_SHOWN


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes_module, "HITS_REMEMBERED", 10)
    outcomes = Outcomes()
    for number in range(100):
        outcomes.handed_out(str(number))
    assert len(outcomes._seen) == 10
    outcomes.add(indexed("5", LYSOZYME))
    outcomes.add(indexed("95", LYSOZYME))
    assert (outcomes.counts["unknown"], outcomes.counts["indexed"]) == (1, 1)


def test_metrics_have_base_units_and_no_ratio_before_there_is_one() -> None:
    def samples(outcomes: Outcomes) -> dict[tuple[str, ...], float]:
        return {(s.name, *s.labels.values()): s.value for metric in outcomes.collect() for s in metric.samples}

    empty = samples(Outcomes())
    assert not [key for key in empty if key[0] == "cxls_indexed_ratio"]
    assert math.isnan(empty["cxls_cell_length_meters", "a", "median"])
    assert empty["cxls_index_results_total", "no_event_id"] == 0
    found = samples(joined(indexed("a", LYSOZYME), MISSED))
    assert found["cxls_indexed_ratio", "100"] == 0.5
    assert found["cxls_cell_length_meters", "c", "median"] == pytest.approx(38e-10)
    assert found["cxls_cell_angle_degrees", "beta", "median"] == 90.0
    assert found["cxls_index_resolution_meters", "crystals"] == pytest.approx(2e-10)
    assert found["cxls_index_crystals_total",] == 1
    assert set(empty) <= set(found)


def test_readers_and_writers_at_once_see_whole_states() -> None:
    outcomes = Outcomes()
    done = threading.Event()

    def write() -> None:
        for number in range(3000):
            outcomes.handed_out(str(number))
            outcomes.add(indexed(str(number), LYSOZYME))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        facts = outcomes.facts()
        assert facts["crystals"] == facts["outcomes"]["indexed"]
    writer.join()
