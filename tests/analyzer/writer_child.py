"""A child process of the tests of outputs: writes results for ever, or under a limit on the size of files.

writer_child.py PATH forever | writer_child.py PATH limit BYTES BATCHES
"""

import resource
import signal
import sys
from pathlib import Path

from analyzer.results import Decision, FrameResult, HitRule, Peak
from analyzer.sinks import files, open_results


def result(image_id: int) -> FrameResult:
    """A hit with a few peaks."""
    peaks = [Peak(1.5 * n, 2.5 * n, 20.0, 4.0, False) for n in range(20)]
    return FrameResult(
        series_id=1, image_id=image_id, channel="threshold_1", start_time=0.001 * image_id, exposure_s=0.001,
        received_at=1e9, latency_s=0.01, tags={"sample": "a"}, decision=Decision.HIT, hit=True, hit_probability=0.9,
        hit_rule=HitRule.NETWORK, indexable=True, peak_count=20, peaks=peaks, bundle="b", mask="none", ordinal=1,
    )  # fmt: skip


def main() -> None:
    path, mode = Path(sys.argv[1]), sys.argv[2]
    files.PART_RECORDS = 50
    sink = open_results(path)
    if mode == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
        for batch in range(int(sys.argv[4])):
            sink.write([result(10 * batch + n) for n in range(10)])
        sink.close()
        print(sink.lost)
        return
    image_id = 0
    while True:
        sink.write([result(image_id + n) for n in range(7)])
        image_id += 7
        print(image_id, flush=True)


if __name__ == "__main__":
    main()
