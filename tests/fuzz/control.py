"""Bodies of ``POST /control/…``: the request by its first byte, then JSON; taken, or refused in a line."""

from collections.abc import Iterator

import msgspec

from analyzer.cascade import CascadeSettings
from analyzer.peak_parameters import RANGES, BadPeaks, Pf8Options, changed, peaks_in_force
from analyzer.runs import BadRun, RunInfo
from analyzer.web.control import (
    BundleRequest,
    ChannelRequest,
    MaskRequest,
    ResetRequest,
    RunRequest,
    TargetRequest,
    ThresholdRequest,
    _decoded,
    _given,
    _path,
    _Refusal,
)
from tests.fuzz import said_well

REQUESTS = {
    b"b": BundleRequest, b"t": ThresholdRequest, b"m": MaskRequest, b"c": ChannelRequest, b"r": RunRequest,
    b"a": TargetRequest, b"x": ResetRequest,
}  # fmt: skip
EXAMPLES = (
    b'b{"path": "/models/one"}',
    b't{"value": 0.5}',
    b't{"value": null}',
    b'm{"path": "/masks/one.npy"}',
    b'm{"mask": "hot-pixels"}',
    b'c{"name": "threshold_2"}',
    b'r{"number": 7, "sample": "lysozyme", "notes": "a\\nb", "new": true}',
    b'a{"hits": 1000, "indexed": null}',
    b"x{}",
    b'p{"min_peaks": 3, "hit_rule": "both", "finder": "peakfinder8", "pf8_threshold": 5.0}',
)


def one(data: bytes) -> None:
    kind, body = data[:1], data[1:]
    try:
        if kind == b"p":
            cascade, numbers = changed(CascadeSettings(), Pf8Options(), _decoded(body, dict[str, object]))
            # What is in force has to be JSON: it is shown.
            assert len(msgspec.json.encode(peaks_in_force(cascade, numbers))) < 10_000
        elif kind in REQUESTS:
            request = _decoded(body, REQUESTS[kind])
            if isinstance(request, BundleRequest):
                _path(request.path)
            elif isinstance(request, RunRequest):
                run = _given(request)
                run.pop("new", None)
                assert RunInfo(**run).name.isprintable()
    except _Refusal as refusal:
        said_well(ValueError(refusal.text), 500)  # what is answered and logged
    except (BadPeaks, BadRun) as error:
        said_well(error, 500)


def seeds() -> Iterator[bytes]:
    yield from EXAMPLES
    yield from (b"p" + msgspec.json.encode({key: value}) for key in RANGES for value in (0, 1, 2.5, "x", None, [], {}))
