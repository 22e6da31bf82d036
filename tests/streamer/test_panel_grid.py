"""Panels of a flat detector between its gaps."""

from streamer.panel_grid import panels_between


def test_panels_are_what_the_gaps_leave() -> None:
    panels = panels_between([(10, 12)], [(20, 24), (40, 41)], (30, 50), (25.5, 11.0), 75e-6, "/d", max_adu=9.0)
    bounds = {p.name: (p.min_ss, p.max_ss, p.min_fs, p.max_fs) for p in panels}
    assert bounds == {
        "m0_0": (0, 9, 0, 19), "m0_1": (0, 9, 24, 39), "m0_2": (0, 9, 41, 49),
        "m1_0": (12, 29, 0, 19), "m1_1": (12, 29, 24, 39), "m1_2": (12, 29, 41, 49),
    }  # fmt: skip
    last = panels[-1]
    assert (last.corner_x, last.corner_y) == (41 - 25.5, 12 - 11.0)
    assert (last.res_per_m, last.data, last.max_adu) == (1 / 75e-6, "/d", 9.0)


def test_gaps_at_the_rim_and_over_each_other_leave_no_empty_panel() -> None:
    panels = panels_between([(8, 10), (0, 3), (2, 5)], [], (10, 4), (0.0, 0.0), 1e-4, "/d")
    assert [(p.min_ss, p.max_ss, p.min_fs, p.max_fs) for p in panels] == [(5, 7, 0, 3)]
