"""Which faults happen where: asked for, drawn, and kept apart."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim_replay.faults import KINDS, FaultPlan, parse_specs
from sim_replay.faults.kinds import Where
from sim_replay.faults.plan import SeriesFaults, Stream
from streamer.files import BadInput

STREAM = Stream("v2", 50, 50)


def faults(*specs: str, stream: Stream = STREAM, seed: int = 0, ordinal: int = 1) -> SeriesFaults:
    return FaultPlan(parse_specs(specs), seed).series(ordinal, stream)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("drop", "fault 'drop' is not known; `cxls replay --list-faults` lists them"),
        ("drop_image", "fault 'drop_image' says not how often; write drop_image=0.01, or drop_image@5"),
        ("drop_start", "fault 'drop_start' says not how often; write drop_start=0.01"),
        ("all@3", "fault 'all@3' says not how often; write all=0.01"),
        ("drop_image=", "'' is no probability; give a number from 0 to 1"),
        ("drop_image=nan", "'nan' is no probability"),
        ("drop_image=1.5", "'1.5' is no probability"),
        ("drop_image=-1", "'-1' is no probability"),
        ("drop_image@-1", "'-1' is no image id; write drop_image@5"),
        ("drop_image@x", "'x' is no image id"),
        ("drop_image@" + "9" * 30, "is no image id"),
        ("drop_end@4", "it happens to a whole series; write drop_end=1 for every one"),
        ("drop_image@3=1", "fault 'drop_image@3' is not known"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_specs([text])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_are_given_together_or_apart() -> None:
    apart = ["drop_image=0.1", "reorder@3", "oversize=1"]
    assert parse_specs(["drop_image=0.1,reorder@3", " oversize=1 "]) == parse_specs(apart)
    assert [spec.kind.name for spec in parse_specs(["all=0.5"])] == list(KINDS)
    assert parse_specs([]) == ()


def test_of_two_probabilities_the_later_one_holds() -> None:
    specs = {spec.kind.name: spec.chance for spec in parse_specs(["all=0.5", "oversize=0,drop_image=1"])}
    assert (specs["oversize"], specs["drop_image"], specs["reorder"]) == (0.0, 1.0, 0.5)


def test_a_fault_at_an_image_happens_there_in_every_series() -> None:
    plan = FaultPlan(parse_specs(["drop_image@7", "reorder@20"]), 3)
    for ordinal in (1, 2, 99):
        assert plan.series(ordinal, STREAM).images == {7: KINDS["drop_image"], 20: KINDS["reorder"]}


def test_the_same_seed_gives_the_same_faults_and_another_others() -> None:
    drawn = [faults("all=0.02", seed=seed, ordinal=ordinal) for seed in (1, 2) for ordinal in (1, 2)]
    assert drawn == [faults("all=0.02", seed=seed, ordinal=ordinal) for seed in (1, 2) for ordinal in (1, 2)]
    assert len({str(each) for each in drawn}) == 4


def test_what_has_no_place_is_named() -> None:
    assert faults("drop_image@50").left_out == ("drop_image@50: no room at that image",)
    assert faults("drop_image@4", "duplicate_image@5").left_out == ("duplicate_image@5: no room at that image",)
    assert faults("early_end@10", "drop_image@20").left_out == ("drop_image@20: no room at that image",)
    # Images that a second puller took are a gap only where others follow.
    assert faults("second_puller@42").left_out == ("second_puller@42: no room at that image",)
    assert faults("second_puller@41").images == {41: KINDS["second_puller"]}
    (text,) = faults("wrong_channel@3", stream=Stream("v1", 50, 50)).left_out
    assert text == "wrong_channel@3: not in this series of 50 images over stream v1"


def test_a_certain_fault_of_images_leaves_every_other_one_alone() -> None:
    assert sorted(faults("drop_image=1").images) == list(range(0, 50, 2))
    assert sorted(faults("reorder=1").images) == list(range(0, 49, 3))


def test_the_chance_of_a_fault_is_that_of_an_image() -> None:
    plan = FaultPlan(parse_specs(["drop_image=0.01", "duplicate_image=0.03"]), 5)
    images = plan.series(1, Stream("v2", 100_000, None)).images
    names = [kind.name for kind in images.values()]
    assert names.count("drop_image") == pytest.approx(1000, rel=0.15)
    assert names.count("duplicate_image") == pytest.approx(3000, rel=0.15)


def test_a_series_whose_start_is_lost_has_no_other_fault() -> None:
    drawn = faults("drop_start=1", "drop_image=1", "drop_image@4", "early_end=1", "drop_end=1")
    assert (drawn.start, drawn.end, drawn.images) == (KINDS["drop_start"], None, {})


@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        ("drop_start", Stream("v2", 2, 2)),  # nothing is joined after two images
        ("drop_start", Stream("v1", 9, 9, fresh=False)),
        ("reboot", Stream("v1", 9, None, resettable=False)),
        ("reboot", Stream("v2", 9, 9, rearms=False)),
        ("rearm_without_end", Stream("v2", 9, 9, rearms=False)),
        ("early_end", Stream("v2", 1, 1)),
        ("reorder", Stream("v2", 1, 1)),
        ("burst_after_pause", Stream("v2", 11, 11)),
        ("second_puller", Stream("v2", 8, 8)),
    ],
)
def test_what_could_not_be_told_from_something_else_is_never_drawn(kind: str, stream: Stream) -> None:
    assert faults(f"{kind}=1", stream=stream) == SeriesFaults()


@settings(max_examples=200, deadline=None)
@given(
    images=st.integers(1, 80),
    chance=st.sampled_from([0.003, 0.03, 0.3, 1.0]),
    seed=st.integers(0, 2**62),
    at=st.dictionaries(
        st.sampled_from([name for name, kind in KINDS.items() if kind.where in (Where.IMAGE, Where.REST)]),
        st.integers(0, 90),
        max_size=6,
    ),
    stream=st.sampled_from(["v1", "v2"]),
)
def test_between_two_faults_lies_an_image_without_one(
    images: int, chance: float, seed: int, at: dict[str, int], stream: str
) -> None:
    specs = [f"all={chance}", *(f"{name}@{image}" for name, image in at.items())]
    drawn = faults(*specs, stream=Stream(stream, images, images), seed=seed)
    touched = [
        (first, images if kind.where == Where.REST else first + kind.images)
        for first, kind in sorted(drawn.images.items())
    ]
    for (_, end), (first, _) in pairwise(touched):
        assert first > end
    assert all(0 <= first < end <= images for first, end in touched)
    rest = [kind for kind in drawn.images.values() if kind.where == Where.REST]
    assert len(rest) <= 1
    if drawn.end is not None:
        assert not rest
        assert all(end < images for _, end in touched)
    if drawn.start is not None:
        assert not touched
    assert all(stream in kind.streams for kind in drawn.images.values())
    for text in drawn.left_out:
        assert text.partition("@")[0] in at
