"""Hits by tags: every value its own count with an interval, two numbers as a map, both bounded."""

import math
import random
from typing import Any

import pytest

from analyzer.live.splits import ABSENT, MOST_CELLS, MOST_VALUES, OTHER, TagMap, TagSplit
from analyzer.results import Decision, FrameResult
from tests.analyzer.live.made import result


def tagged(tags: Any, hit: bool = False, **changes: Any) -> FrameResult:
    return result(0, Decision.HIT if hit else Decision.MISS, tags=tags, **changes)


def test_each_value_of_a_tag_has_its_own_hit_ratio_with_an_interval() -> None:
    split = TagSplit("laser")
    split.add([tagged({"laser": "on"}, hit=n < 30) for n in range(40)])
    split.add([tagged({"laser": "off"}, hit=n < 10) for n in range(40)])
    off, on = split.facts()["values"]
    assert (off["value"], off["beam"], off["hits"], off["ratio"]) == ("off", 40, 10, 0.25)
    assert (on["value"], on["beam"], on["hits"], on["ratio"]) == ("on", 40, 30, 0.75)
    assert off["low"] < 0.25 < off["high"] < on["low"]


def test_frames_without_the_tag_and_without_beam_are_told_apart() -> None:
    split = TagSplit("laser")
    split.add([tagged(None), tagged({"other": 1}), tagged({"laser": True}), result(1, Decision.NO_BEAM)])
    assert [(each["value"], each["beam"]) for each in split.facts()["values"]] == [("true", 1), (ABSENT, 2)]


def test_endless_values_count_together() -> None:
    split = TagSplit("t")
    split.add([tagged({"t": n}) for n in range(10_000)])
    values = split.facts()["values"]
    assert len(values) == MOST_VALUES + 1
    assert values[-1]["value"] == OTHER
    assert sum(each["beam"] for each in values) == 10_000


@pytest.mark.parametrize("value", ["a" * 10_000, "\x1b[31m\n", {"deep": [1, 2]}, [1] * 1000, 1e308, "é"])
def test_a_strange_value_becomes_a_short_printable_label(value: Any) -> None:
    split = TagSplit("t")
    split.add([tagged({"t": value})])
    label = split.facts()["values"][0]["value"]
    assert 0 < len(label) <= 40
    assert label.isprintable()


def test_a_scan_is_mapped_where_it_was() -> None:
    grid = TagMap("x", "y")
    for x in range(20):
        for y in range(10):
            grid.add([tagged({"x": 1e-5 * x, "y": -2.5 * y}, hit=x == y) for _ in range(3)])
    facts = grid.facts()
    assert facts["tags"] == ["x", "y"]
    assert facts["step"] == pytest.approx([1e-5, 2.5], rel=1e-3)
    assert len(facts["cells"]) == 200
    on_diagonal = [cell for cell in facts["cells"] if cell[3] == 3]
    assert len(on_diagonal) == 10
    assert all(cell[2] == 3 and math.isclose(cell[1], -2.5e5 * cell[0], abs_tol=1e-2) for cell in on_diagonal)


def test_one_wild_reading_does_not_paint_over_a_scan() -> None:
    grid = TagMap("x", "y")
    for x in [*(0.001 * n for n in range(11)), 9e8]:
        grid.add([tagged({"x": x, "y": 0.0})])
    assert grid.facts()["step"][0] == pytest.approx(0.001, rel=1e-3)


def test_a_map_of_places_that_never_repeat_becomes_coarser_and_loses_none() -> None:
    grid, places = TagMap("x", "y"), random.Random(1)
    for _ in range(20):
        grid.add([tagged({"x": places.uniform(-1, 1), "y": places.uniform(0, 100)}, hit=True) for _ in range(1000)])
    cells = grid.facts()["cells"]
    assert 500 < len(cells) <= MOST_CELLS
    assert sum(cell[2] for cell in cells) == sum(cell[3] for cell in cells) == 20_000
    assert all(-1.1 < cell[0] < 1.1 and -5 < cell[1] < 105 for cell in cells)


@pytest.mark.parametrize("bad", ["1", True, None, math.nan, math.inf, 10**400, -1e300, [1], {}])
def test_what_is_no_number_is_not_on_the_map(bad: Any) -> None:
    grid = TagMap("x", "y")
    grid.add([tagged({"x": bad, "y": 1.0}), tagged({"x": 0.0}), tagged(None)])
    assert grid.facts()["cells"] == []


def test_a_reset_forgets_the_places() -> None:
    grid, split = TagMap("x", "y"), TagSplit("x")
    for each in (grid, split):
        each.add([tagged({"x": 1.0, "y": 2.0})])
        each.reset()
    assert grid.facts()["cells"] == []
    assert split.facts()["values"] == []
