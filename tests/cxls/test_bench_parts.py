"""What the benchmarks of speed are made of: clocks, roofs, decoders, paces, statements, and the page of tables."""

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxls.bench import decoders, om_peer, profile, roofs
from cxls.bench.decoders import HEADER_BYTES, Packed, Pixels
from cxls.bench.inputs import packed_frames, simulate
from cxls.bench.latency import PacedSource
from cxls.bench.page import BadPage, read_tables, render
from cxls.bench.report import Figure, Grid, Ratio, Report, as_json, as_text, from_json, machine
from cxls.bench.statements import timed
from cxls.bench.timing import cpu_ms, take_turns, together_s
from cxls.bench.two_cores import Compared, verdict
from sim_replay.detector import plain_panel
from streamer.decoding import DEFAULT_BLOCK_BYTES, decode
from streamer.files import FileSource
from tests.cxls.programs import cxls, refusal

REPORT = Report(
    "decode: a title",
    [Figure("a figure", "ms", 1.25, 2.0, "a note"), Figure("another", "ms", None, note="not measured on a GPU")],
    [Ratio("ours / theirs", 0.5, "bar 1")],
    ["a note"],
    {"metrics": {"x": 1.0}},
    [Grid("across", ["u8", "u16"], ["ours", "theirs"], [[1.0, None], [2.5, 3.0]])],
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Two frames of a panel whose number of pixels is no multiple of 8, so that some follow the last block."""
    return decoders.pack(simulate(tmp_path_factory.mktemp("packed"), 2, detector=plain_panel((61, 67), "uint32")))


# --- clocks and roofs -------------------------------------------------------------------


def test_cpu_is_counted_and_sleep_is_not() -> None:
    assert cpu_ms(lambda _: time.sleep(0.02), 3) < 10.0
    assert cpu_ms(lambda _: sum(range(200_000)), 3) > 0.5


def test_threads_run_together_and_each_makes_all_its_calls() -> None:
    calls: list[tuple[str, int]] = []
    works: list[Callable[[int], object]] = [
        lambda n, name=name: (calls.append((name, n)), time.sleep(0.05))  # type: ignore[misc]
        for name in ("a", "b")
    ]
    assert 0.1 <= together_s(works, 2) < 0.19
    assert sorted(calls) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_a_fault_in_a_thread_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        together_s([lambda n: 1 / n], 1)


def test_rounds_take_turns() -> None:
    order: list[str] = []
    measure = {name: lambda name=name: (order.append(name), float(len(order)))[1] for name in ("a", "b")}
    assert take_turns(measure, 2) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_reading_reads_every_word() -> None:
    for count in (0, 1, 7, 1000):
        words = np.random.default_rng(count).integers(0, 1 << 63, count, np.uint64)
        assert roofs.read_words(words) == int(np.bitwise_or.reduce(words, initial=0))


def test_roofs_are_those_of_a_computer() -> None:
    assert 0.1 < roofs.read_gb_s(1 << 20) < 1e4
    assert 0.1 < roofs.copy_gb_s(1 << 20, 2) < 1e4
    assert 0.05 < roofs.matmul_gflop_s(size=128) < 1e5


def test_lz4_alone_decodes_every_block(packed: Packed) -> None:
    walk = roofs.lz4_blocks()
    if walk is None:
        pytest.skip("bitshuffle hides its LZ4 here")
    block = np.empty(DEFAULT_BLOCK_BYTES, np.uint8)
    body = np.frombuffer(packed.images[0].data, np.uint8)[HEADER_BYTES:]
    whole = packed.pixels[0].size // 8 * 8
    assert whole < packed.pixels[0].size
    assert walk(body, block, whole * 4) == whole * 4


# --- decoders ---------------------------------------------------------------------------


def test_every_decoder_that_is_here_gives_our_pixels(packed: Packed) -> None:
    assert {decoders.OURS, decoders.FLOOR, "bitshuffle.decompress_lz4"} <= set(decoders.installed())
    for name in decoders.installed():
        decoder = decoders.make(name, packed)
        assert np.array_equal(decoder(1).reshape(-1), packed.pixels[1].reshape(-1)), name


def test_a_decoder_that_gives_other_pixels_is_not_measured(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(given: Packed) -> Callable[[int], Pixels]:
        return lambda number: given.pixels[number] ^ (number == 1)

    monkeypatch.setitem(decoders.DECODERS, "wrong", wrong)
    with pytest.raises(RuntimeError, match=r"wrong gives other pixels .* frame 1 of uint32"):
        decoders.make("wrong", packed)


# --- peers and paces --------------------------------------------------------------------


def test_om_says_what_it_lacks(tmp_path: Path) -> None:
    if not om_peer.available():
        pytest.skip(om_peer.NOT_THERE)
    with om_peer.Om() as om, pytest.raises(RuntimeError, match=r"OM failed: FileNotFoundError"):
        om.find_peaks(tmp_path)


def test_om_finds_alike_in_both_modes(tmp_path: Path) -> None:
    if not om_peer.available():
        pytest.skip(om_peer.NOT_THERE)
    frames = packed_frames(simulate(tmp_path, 2, flux=3e10, detector=plain_panel((256, 256))))
    om_peer.lay_out(tmp_path / "om", frames)
    with om_peer.Om() as om:
        full, fast = (om.find_peaks(tmp_path / "om", mode) for mode in om_peer.MODES)
        again = om.find_peaks(tmp_path / "om", "full")
    assert [len(each.positions) for each in full] == [len(each.positions) for each in again]
    assert len(full) == len(fast) == 2
    # Fast draws pixels for its background; most of what stands out does so for either.
    found = sum(len(each.positions) for each in full)
    assert found == 0 or 0.3 < sum(len(each.positions) for each in fast) / found < 3.0


def test_a_paced_source_gives_everything_and_nothing_early(master: Path) -> None:
    source = PacedSource(FileSource([str(master)]), 100.0, threading.Event())
    began = time.monotonic()
    received = list(iter(lambda: source.receive(0.1), None))
    # 12 images, their start and their end; the first is due at once, and so is the nothing after the last.
    assert len(received) == 14
    assert 0.12 <= time.monotonic() - began < 5.0
    assert source.exhausted
    source.close()


@pytest.mark.parametrize(
    ("one", "independent", "live", "kept"),
    [
        ([50.0, 100.0], [150.0], [171.0, 60.0], True),  # 1.71 times one core
        ([100.0], [120.0], [109.0], True),  # 0.908 of two that share the machine
        ([100.0], [180.0], [161.0], False),  # 1.61 and 0.894
    ],
)
def test_the_bar_on_two_cores_is_one_or_the_other(
    one: list[float], independent: list[float], live: list[float], kept: bool
) -> None:
    found = Compared(one, independent, live)
    assert found.kept == kept
    assert ("kept" in verdict(found)) == kept
    assert ("MISSED" in verdict(found)) != kept


def test_without_two_cores_there_is_no_verdict() -> None:
    assert "not measured" in verdict(None)


# --- profiles ---------------------------------------------------------------------------


def test_statements_of_ours_hold_the_time_of_what_they_call(packed: Packed) -> None:
    out = np.empty_like(packed.pixels[0])

    def work() -> None:
        for _ in range(200):
            decode(packed.images[0], out)
        sum(range(3_000_000))  # not ours

    decode(packed.images[0], out)
    began = time.thread_time()
    found = timed(work)
    spent = time.thread_time() - began
    assert {each.where.partition(":")[0] for each in found} == {"streamer/decoding.py", "streamer/messages.py"}
    assert 0.0 < sum(each.seconds for each in found) < spent
    assert [each.seconds for each in found] == sorted((each.seconds for each in found), reverse=True)
    assert all(each.text for each in found)


def test_the_watch_ends_with_a_fault_of_what_is_watched(packed: Packed) -> None:
    with pytest.raises(ValueError, match="the buffer"):
        timed(lambda: decode(packed.images[0], np.empty(3)))
    assert timed(lambda: None) == []
    assert sys.gettrace() is None or "timed" not in repr(sys.gettrace())


PERF = """
# Total Lost Samples: 0
# Overhead  Shared Object
    50.00%  [JIT] tid 123
    20.50%  ext.cpython-311-x86_64-linux-gnu.so
    10.00%  libtorch_cpu.so
     9.50%  libpython3.11.so.1.0
     5.00%  [kernel.kallsyms]
     3.00%  libscipy_openblas64_-32a4b2a6.so
     2.00%  something.so
"""


def test_samples_are_told_by_library() -> None:
    shares = profile.by_kind(PERF)
    assert shares["our compiled kernels"] == 50.0
    assert shares["bitshuffle"] == 20.5
    assert shares["numpy and scipy"] == 3.0
    assert shares[profile.OTHER] == 2.0
    assert sum(shares.values()) == pytest.approx(100.0)


def test_no_sample_is_said() -> None:
    with pytest.raises(RuntimeError, match="no sample"):
        profile.by_kind("Error: nothing recorded")


# --- tables -----------------------------------------------------------------------------

PAGE = (
    "# Page\n\n<!-- bench decode -->\nold\n<!-- /bench -->\n\nprose\n\n<!-- bench memory -->\nkept\n<!-- /bench -->\n"
)


def test_a_report_comes_back_from_its_json() -> None:
    where = machine()
    name, report, machine_again = from_json(as_json("decode", REPORT, where))
    assert (name, machine_again) == ("decode", where)
    text = as_text(report, where)
    assert text == as_text(REPORT, where)
    for part in ("across", "2.5", "not measured", "ratio  ours / theirs: 0.50  (bar 1)", where["command"]):
        assert part in text
    assert not any(line.endswith(" ") for line in text.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\x00",
        '{"benchmark": "x"}',
        '{"benchmark": "x", "machine": {}}',
        '{"benchmark": "x", "machine": {}, "title": "t", "figures": [1]}',
    ],
)
def test_what_no_benchmark_wrote_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no figures of a benchmark"):
        from_json(text)
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(BadPage, match=r"b\.json: no figures"):
        read_tables([tmp_path / "b.json"])


def test_a_table_goes_where_its_place_is_and_all_else_stays() -> None:
    changed, placed = render(PAGE, {"decode": "new \\1", "absent": "x"})
    assert placed == ["decode"]
    assert changed == PAGE.replace("old", "```\nnew \\1\n```")
    assert render(changed, {"decode": "new \\1"}) == (changed, ["decode"])


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (PAGE.replace("<!-- /bench -->", "", 1), "has no end"),
        (PAGE + "<!-- /bench -->\n", "has no end"),
        (PAGE + "<!-- bench other -->\n", "has no end"),
        (PAGE.replace("memory", "decode"), "two places"),
    ],
)
def test_places_that_make_no_sense_are_refused(page: str, words: str) -> None:
    with pytest.raises(BadPage, match=words):
        render(page, {"decode": "x"})


def _written(folder: Path, name: str) -> Path:
    file = folder / f"bench-{name}.json"
    file.write_text(as_json(name, REPORT, machine()))
    return file


def test_the_command_fills_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("decode", "cascade"):
        _written(tmp_path / "runs", name)
    (tmp_path / "p.md").write_text(PAGE)
    done = cxls("bench", "docs", "--page", "p.md")
    assert done.returncode == 0, done.stderr
    assert "p.md: decode replaced" in done.stdout
    assert "no place in it for cascade" in done.stdout
    assert "decode: a title" in (tmp_path / "p.md").read_text()


def test_the_command_refuses_in_one_line_and_leaves_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "runs/bench-*.json" in refusal("bench", "docs")
    one = _written(tmp_path, "decode")
    assert "absent.json" in refusal("bench", "docs", "--tables", "absent.json")
    assert "a second file of bench decode" in refusal("bench", "docs", "--tables", one, "--tables", one)
    assert "absent.md" in refusal("bench", "docs", "--tables", one, "--page", "absent.md")
    broken = tmp_path / "broken.md"
    broken.write_text(PAGE + "<!-- bench other -->\n")
    assert "broken.md" in refusal("bench", "docs", "--tables", one, "--page", broken)
    assert broken.read_text() == PAGE + "<!-- bench other -->\n"
    assert "one of" in refusal("bench", "nothing")


def test_every_benchmark_that_is_listed_is_there_and_runs_by_its_name() -> None:
    listed = [line.split()[0] for line in cxls("bench", "list").stdout.splitlines()]
    assert {"decode", "preprocess", "cascade", "end-to-end", "scaling", "roofline", "profile"} <= set(listed)
    for name in listed:
        module: Any = importlib.import_module("cxls.bench." + name.replace("-", "_"))
        assert callable(module.run)


def test_the_page_of_the_repository_has_places_for_the_benchmarks_of_speed() -> None:
    page = Path(__file__).parents[2] / "docs" / "performance.md"
    names = ["receive", "parse", "decode", "preprocess", "cascade", "end-to-end", "scaling", "workers", "roofline",
             "profile"]  # fmt: skip
    tables = {name: json.dumps(name) for name in names}
    assert sorted(render(page.read_text(), tables)[1]) == sorted(names)
