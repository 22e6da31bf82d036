"""What it costs to read an image message, against general decoders.

Pixel bytes are never touched by our parsers; a general CBOR decoder copies them.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2

from cxls.bench.inputs import BRIGHT_FLUX, image_data, packed_frames, simulate
from cxls.bench.report import Report, over_rounds, ratios
from cxls.settings import BenchSettings
from streamer import stream_v1, stream_v2
from streamer.messages import ImageMessage

ROUNDS = 15
_CALLS = 200


def cpu_us(work: Callable[[], Any], calls: int = _CALLS) -> float:
    """CPU microseconds a call."""
    began = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - began) / calls * 1e6


def untag(*given: Any) -> Any:
    """What stands behind a tag. cbor2 before 6 gives a hook (decoder, tag), since then (tag, immutable)."""
    return next(value for value in given if isinstance(value, cbor2.CBORTag)).value


def run(settings: BenchSettings) -> Report:
    """Both protocols on one message."""
    del settings
    with tempfile.TemporaryDirectory(prefix="cxls-bench-") as folder:
        frame = packed_frames(simulate(Path(folder), 1, flux=BRIGHT_FLUX))[0]
    message = ImageMessage(
        7, 42, {"threshold_1": image_data(frame)}, 1.0, 1.001, 0.001, unique_id="01HBV3JPF23X8Y2ZQW8Y6WZ6PH"
    )
    v2 = stream_v2.encode_image(message)
    v1 = [memoryview(bytes(part)) for part in stream_v1.encode_image(message)]
    texts = [bytes(v1[part]) for part in (0, 1, 3)]
    work: dict[str, Callable[[], Any]] = {
        "v2: ours": lambda: stream_v2.parse(v2),
        "v2: cbor2.loads with a tag hook": lambda: cbor2.loads(v2, tag_hook=untag),
        "v1: ours": lambda: stream_v1.parse(v1),
        "v1: json.loads of the three texts": lambda: [json.loads(text) for text in texts],
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for each in work.values():
        cpu_us(each, 20)
    for _ in range(ROUNDS):
        for name, each in work.items():
            times[name].append(cpu_us(each))
    values = list(times.values())
    return Report(
        f"parse: an image message of {len(v2) / 1e6:.2f} MB",
        [over_rounds(name, "us CPU", found) for name, found in times.items()],
        ratios("v2 ours / cbor2", values[0], values[1]) + ratios("v1 ours / json", values[2], values[3]),
        ("ours checks every field and makes typed messages; the peers only decode",),
    )
