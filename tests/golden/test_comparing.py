"""What of two records differs, what of it is allowed, and what a person is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.comparing import DEVICE, TOLERANCES, beyond, compare, read, table, written
from tests.golden.renew import renew, renewed

PEAK = {"fs": 10.5, "ss": 20.25, "intensity_photons": 99.0, "snr": 9.5, "saturated": False}


def record(image: int = 0, **changes: Any) -> dict[str, Any]:
    fields = {
        "series": "near", "image_id": image, "decision": "hit", "hit": True, "hit_probability": 0.75, "peak_count": 1,
        "peaks": [PEAK], "estimate_reason": "photon energy known to 2297 eV only", "bundle": "default-1",
    }  # fmt: skip
    return fields | changes


def changes_of(**changes: Any) -> list[tuple[str, float]]:
    found = compare({"c": [record()]}, {"c": [record(**changes)]})
    return [(change.field, change.excess) for change in found]


def test_equal_records_have_no_change() -> None:
    assert changes_of() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decision", "miss"), ("hit", False), ("hit", 1), ("peak_count", 2), ("bundle", "default-2"),
        ("hit_probability", None), ("estimate_reason", None), ("hit_probability", float("nan")),
        ("hit_probability", float("inf")),
    ],
)  # fmt: skip
def test_what_is_no_number_with_a_fraction_is_equal_or_not(field: str, value: Any) -> None:
    assert changes_of(**{field: value}) == [(field, float("inf"))]


def test_a_number_may_differ_by_its_last_digit() -> None:
    ((field, excess),) = changes_of(hit_probability=0.750001)
    assert field == "hit_probability"
    assert 0 < excess < 1
    ((field, excess),) = changes_of(hit_probability=0.75001)
    assert excess > 1


@pytest.mark.parametrize(("moved", "allowed"), [(10.501, True), (10.502, False)])
def test_peaks_stay_within_a_thousandth_of_a_pixel(moved: float, allowed: bool) -> None:
    ((field, excess),) = changes_of(peaks=[PEAK | {"fs": moved}])
    assert field == "peaks.fs"
    assert (excess <= 1) is allowed


def test_a_peak_more_or_less_is_a_change() -> None:
    assert {field for field, _ in changes_of(peaks=[PEAK, PEAK])} == {f"peaks.{name}" for name in PEAK}
    assert all(excess == float("inf") for _, excess in changes_of(peaks=[]))


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("photon energy known to 2298 eV only", True),
        ("photon energy known to 2340 eV only", False),
        ("camera length known to 2297 eV only", False),
    ],
)
def test_numbers_in_a_reason_may_be_rounded_otherwise(text: str, allowed: bool) -> None:
    ((_, excess),) = changes_of(estimate_reason=text)
    assert (excess <= 1) is allowed


def test_a_device_is_allowed_more_of_numbers_and_of_nothing_else() -> None:
    golden = {"c": [record()]}
    assert not beyond(compare(golden, {"c": [record(hit_probability=0.750012)]}, DEVICE))
    assert beyond(compare(golden, {"c": [record(decision="miss")]}, DEVICE))


def test_a_record_that_only_one_side_has_is_a_change() -> None:
    (change,) = compare({"c": [record(0), record(1)]}, {"c": [record(0)]})
    assert (change.field, change.golden, change.found) == ("record", "a record", "absent")
    assert compare({}, {"c": [record()]})[0].golden == "absent"


def test_the_table_has_the_biggest_change_first() -> None:
    one = [record(n) for n in range(3)]
    other = [record(0, hit_probability=0.7502), record(1, hit_probability=0.76), record(2, peak_count=5)]
    first, second, *none = table(compare({"c": one}, {"c": other})).splitlines()[1:]
    assert none == []
    assert first.split() == ["c", "peak_count", "1", "near", "2", "1", "5", "exact"]
    assert second.split()[:7] == ["c", "hit_probability", "2", "near", "1", "0.75", "0.76"]


def test_what_is_written_is_read_and_has_a_peak_a_line(tmp_path: Path) -> None:
    records = [record(0, peaks=[PEAK, PEAK]), record(1, peaks=[], estimate_reason=None)]
    (tmp_path / "c.json").write_text(written(records))
    assert read(tmp_path) == {"c": records}
    assert sum("intensity_photons" in line for line in written(records).splitlines()) == 2


def test_renewal_writes_what_changed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b", "gone"):
        (tmp_path / f"{name}.json").write_text(written([record(0), record(1)]))
    untouched = (tmp_path / "b.json").read_text()
    found = {
        "a": [record(0, hit_probability=0.750001), record(1, hit=False)],
        "b": [record(0), record(1, hit_probability=0.750001)],
    }
    said = renew(tmp_path, found, every=True)
    assert "hit" in said
    assert "written: a, gone" in said
    assert json.loads((tmp_path / "a.json").read_text()) == [record(0), record(1, hit=False)]
    assert (tmp_path / "b.json").read_text() == untouched
    assert not (tmp_path / "gone.json").exists()
    assert renew(tmp_path, found, every=True) == "no golden record changed"


def test_renewal_of_one_case_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(written([record()]))
    renew(tmp_path, {"a": [record()]}, every=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_a_record_within_tolerances_stays_as_it_is() -> None:
    near = record(0, peaks=[PEAK | {"fs": 10.501}])
    assert renewed([record()], [near]) == [record()]


def test_every_tolerance_is_of_a_number_that_is_rounded() -> None:
    assert all(each.absolute or each.relative for each in TOLERANCES.values())
