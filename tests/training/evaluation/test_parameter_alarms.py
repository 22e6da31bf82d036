"""The header's check on drawn profiles: what is wrong is found, what is right is not called wrong."""

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from sim_replay.detector import eiger2_4m
from training.evaluation import parameter_alarms
from training.evaluation.parameter_alarms import SUM_FRAMES, alarm_table, study_alarms


def test_three_percent_are_found_in_every_look_and_a_right_header_is_left_alone() -> None:
    tables = load_bundle(DEFAULT_BUNDLE).scattering
    assert tables is not None
    steps = []
    (row,) = study_alarms(eiger2_4m(), tables, (2,), 4 * SUM_FRAMES, 3, lambda *done: steps.append(done))
    assert (row.looks, row.false) == (4, 0)
    assert set(row.found.values()) == {parameter_alarms.WRONG_LOOKS}
    assert steps[-1] == (4 + parameter_alarms.WRONG_LOOKS,) * 2


def test_the_table_sums_the_conditions_up() -> None:
    rows = [parameter_alarms.Alarms(1, looks=2, false=1), parameter_alarms.Alarms(9, looks=3)]
    table = alarm_table(rows)
    assert table.rows[0][0] == "1: 0.15 m, 6 keV"
    assert table.rows[-1][:3] == ("all", 5 * SUM_FRAMES, 1)
