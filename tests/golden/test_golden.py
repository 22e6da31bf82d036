"""Committed frames give their committed records, on this machine as on the one that made them."""

from collections.abc import Sequence

import pytest

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from tests.golden.analysing import Record, by_command, by_stream, frames_of, records_of
from tests.golden.cases import CASES, INPUTS, RECORDS, SUMS
from tests.golden.comparing import RENEW, beyond, compare, read, table
from tests.golden.make_inputs import sums

GOLDEN = read(RECORDS)


@pytest.fixture(scope="module")
def made() -> dict[str, list[Record]]:
    """The records of each case, by this program."""
    return {name: records_of(case) for name, case in CASES.items()}


def test_the_inputs_are_the_bytes_that_were_committed() -> None:
    assert sums() == SUMS.read_text(), f"files in {INPUTS} are not those of SHA256SUMS; get them again from git"


@pytest.mark.parametrize("case", CASES)
def test_records_are_the_golden_ones(case: str, made: dict[str, list[Record]]) -> None:
    changes = beyond(compare({case: GOLDEN.get(case, [])}, {case: made[case]}))
    assert not changes, f"golden records changed\n{table(changes)}\n{RENEW}"


def test_every_golden_file_is_of_a_case() -> None:
    assert set(GOLDEN) == set(CASES), RENEW


def test_golden_records_are_of_the_shipped_bundle() -> None:
    labels = {each["bundle"] for records in GOLDEN.values() for each in records if each["status"] == "ok"}
    assert labels == {load_bundle(DEFAULT_BUNDLE).label}, f"the bundle is another one. {RENEW}"


# --- what they cover ----------------------------------------------------------------------


def by_place(records: Sequence[Record]) -> dict[tuple[str, int], Record]:
    return {(each["series"], each["image_id"]): each for each in records}


def test_golden_records_hold_whatever_a_record_can_say() -> None:
    default = GOLDEN["default"]
    assert {each["status"] for each in default} == {"ok", "undecodable"}
    assert {each["decision"] for each in default} == {"hit", "miss", "no_beam", None}
    assert {each["indexable"] for each in default} == {True, False, None}
    assert {peak["saturated"] for each in default for peak in each["peaks"] or ()} == {True, False}
    assert any(each["photon_energy_eV"] and each["camera_length_m"] for each in default)
    assert any(each["camera_length_over_energy_m_per_eV"] and each["estimate_reason"] for each in default)
    masks = {each["mask"] for records in GOLDEN.values() for each in records if each.get("mask")}
    assert any("gaps of EIGER2 4M" in mask for mask in masks)
    assert any(".geom" in mask and ".h5" in mask for mask in masks)


def test_every_rule_decides_otherwise_than_the_network_somewhere() -> None:
    default = by_place(GOLDEN["default"])
    of_rules = {name: by_place(GOLDEN[f"rule-{name}"]) for name in ("peaks", "either", "both")}
    for rule, records in of_rules.items():
        assert {each["hit_rule"] for each in records.values()} == {rule, None}
        threshold = CASES[f"rule-{rule}"].settings.get("threshold")
        network = {
            place: default[place]["hit"]
            if threshold is None or each["hit"] is None
            else each["hit_probability"] >= threshold
            for place, each in records.items()
        }
        assert any(each["hit"] != network[place] for place, each in records.items()), rule
    assert len({tuple(each["hit"] for each in records.values()) for records in of_rules.values()}) == 3


def test_every_finder_finds_otherwise_than_the_others_somewhere() -> None:
    found = [
        [each["peaks"] for each in GOLDEN[name]]
        for name in ("default", "finder-learned", "finder-peakfinder8", "finder-peakfinder8-poisson")
    ]
    for number, one in enumerate(found):
        assert all(one != other for other in found[:number])


def test_two_channels_have_two_records() -> None:
    one, two = (by_place(GOLDEN[f"channel-{n}"]) for n in (1, 2))
    assert all(two[place]["background_photons"] != each["background_photons"] for place, each in one.items())
    assert [each["status"] for each in two.values()] == ["ok", "ok", "ok", "undecodable"]


# --- a record is a function of its frame: no bit differs ------------------------------------


def assert_same_bits(case: str, found: Sequence[Record], made: dict[str, list[Record]]) -> None:
    changes = compare({case: made[case]}, {case: found})
    assert not changes, f"records depend on more than their frames\n{table(changes)}"


@pytest.mark.parametrize("case", ["default", "finder-learned", "finder-peakfinder8-poisson", "attributes"])
def test_the_batch_and_the_order_change_no_bit(case: str, made: dict[str, list[Record]]) -> None:
    assert_same_bits(case, records_of(CASES[case], batch=3, backwards=True), made)


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_a_live_stream_changes_no_bit(protocol: str, made: dict[str, list[Record]]) -> None:
    assert_same_bits("default", by_stream(CASES["default"], protocol), made)


@pytest.mark.parametrize("options", [(), ("--processes", 2)])
def test_the_command_changes_no_bit(options: tuple[object, ...], made: dict[str, list[Record]]) -> None:
    assert_same_bits("default", by_command(CASES["default"], *options), made)


def test_what_was_judged_before_changes_no_bit(made: dict[str, list[Record]]) -> None:
    assert_same_bits("default", records_of(CASES["default"], before=100, batch=5), made)


def test_recorded_messages_are_frames() -> None:
    assert [frame.channel for frame in frames_of("two-channels", "threshold_2")] == ["threshold_2"] * 4
