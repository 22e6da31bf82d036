"""What front and workers say to each other: a kind, a header and parts, of whoever connects.

The header is given as JSON, which mutations get further in than in msgpack; as it is where it is no JSON.
"""

import contextlib
from collections.abc import Iterator

import msgspec
import numpy as np

from analyzer.cascade import CascadeSettings, PlanCache, plan_of, undecodable
from analyzer.crew.outcome import read_coverage, read_outcome
from analyzer.crew.wire import (
    ArrayFacts,
    BadMessage,
    Done,
    Hello,
    Item,
    Kind,
    Told,
    Work,
    describe,
    frame_facts,
    header_of,
    kind_of,
    message,
    pack_series,
    read_frame,
    read_series,
)
from analyzer.kernels import PEAK_DTYPE
from analyzer.results import Decision, FrameResult
from streamer.frames import Frame
from streamer.messages import Defect, SeriesMetadata
from streamer.series import Series
from tests.fuzz import said_well
from tests.fuzz.messages import SEPARATOR
from tests.support import SHAPE, packed_image, poisson

SERIES = Series(
    1,
    7,
    "01H",
    SeriesMetadata(
        number_of_images=3, shape=SHAPE, channels=("threshold_1",), photon_energy_eV=7000.0, camera_length_m=0.15,
        pixel_size_x_m=75e-6, pixel_size_y_m=75e-6, beam_center_x_px=25.0, beam_center_y_px=18.0,
    ),
)  # fmt: skip
IMAGE = packed_image(poisson(1)[0])
FRAMES = [
    Frame(SERIES, 0, "threshold_1", IMAGE, 1.0, 0.1, 2.0, {"a": 1}),
    Frame(SERIES, 1, "threshold_1", Defect("bad_block", "cut"), None, None, 2.0),
]
PLAN = plan_of(CascadeSettings(), PlanCache(), FRAMES[0], SHAPE, np.dtype("u2"))


def one(data: bytes) -> None:
    parts = data.split(SEPARATOR)
    if len(parts) > 1:
        with contextlib.suppress(UnicodeDecodeError, RecursionError, OverflowError, ValueError):
            parts[1] = msgspec.msgpack.encode(msgspec.json.decode(parts[1]))
    try:
        kind = kind_of(parts)
        if kind == Kind.HELLO:
            header_of(parts, Hello)
        elif kind == Kind.OUTCOME:
            done = header_of(parts, Done)
            read_outcome(done, parts[2:], FRAMES[: len(done.results)], lambda frame: PLAN)
        elif kind == Kind.COVERAGE:
            read_coverage(parts, [((1,), PLAN)])
        elif kind == Kind.SERIES:
            number, series = read_series(parts)
            again = read_series(pack_series(series, number))
            assert again[0] == number
            # By their texts, in which NaN is NaN.
            assert repr(again[1].metadata) == repr(series.metadata)
        elif kind == Kind.WORK:
            for facts in header_of(parts, Work).frames:
                read_frame(facts, SERIES, parts[2] if len(parts) > 2 else b"")
        else:
            header_of(parts, Told)
    except BadMessage as error:
        said_well(error, 1000)


def seeds() -> Iterator[bytes]:
    mask = np.zeros(SHAPE, np.uint32)
    mask[3, 4] = 1
    masked = SERIES.metadata.with_changes(masks={"threshold_1": mask}, raw={"a": [1, "b"]})
    facts = [frame_facts(frame, 1, {"a": 1}, 0) for frame in FRAMES]
    good = FrameResult(
        series_id=7, image_id=0, channel="threshold_1", start_time=1.0, exposure_s=0.1, received_at=2.0, ordinal=1,
        decision=Decision.MISS, hit=False, hit_probability=0.1,
    )  # fmt: skip
    arrays = (
        np.zeros(1, np.int64), np.zeros((2, 5), "f4"), np.zeros((3, PLAN.sectors.bins), "f4"), np.zeros(1, PEAK_DTYPE),
        np.zeros(1, bool),
    )  # fmt: skip
    item = Item(5, 1, PLAN.sectors.bins, 1.0)
    outcome = Done(1, [good, undecodable(FRAMES[1], "bad_block", "cut")], [item], {"decode": 0.1}, 0.1, [(1, 2, 1)])
    covered = np.zeros(PLAN.surrounded.shape, np.uint64), np.zeros(PLAN.bin_pixels.shape, np.float64)
    coverage = {"ordinal": 1, "plans": [(SHAPE, *map(describe, covered))]}
    for parts in (
        message(Kind.HELLO, Hello(1, "name", "host", 1, 2, 8, 16, True)),
        message(Kind.READY, Told(1)),
        message(Kind.UNFIT, Told(1, "why")),
        message(Kind.OUTCOME, outcome, [b"".join(array.tobytes() for array in arrays)]),
        message(Kind.OUTCOME, Done(1, [], [], {}, 0.1), [b""]),
        message(Kind.COVERAGE, coverage, [array.tobytes() for array in covered]),
        message(Kind.COVERAGE, {"ordinal": 1, "plans": [((2, 2), ArrayFacts("<u8", (1,)), ArrayFacts("<f8", (1,)))]}),
        message(Kind.BEAT),
        message(Kind.WORK, Work(1, 1, facts), [IMAGE.data]),
        pack_series(SERIES, 1),
        pack_series(Series(2, 8, None, masked), 2),
    ):
        kind, header, *rest = map(bytes, parts)
        yield SEPARATOR.join([kind, header, *rest])
        text = msgspec.json.encode(msgspec.msgpack.decode(header))
        yield SEPARATOR.join([kind, text, *rest])
        yield SEPARATOR.join([kind, text.replace(b'["threshold_1"]', b"7"), *rest])  # was no error of the protocol
