"""``cxls replay --fault``: what it refuses and prints, and an analysis's metrics against the report of faults."""

import json
import re
import socket
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sim_replay.faults import KINDS
from sim_replay.faults.kinds import table
from tests.cxls.programs import Analysis, cxls, refusal, wait_for
from tests.support import REPOSITORY

PAGE = REPOSITORY / "docs" / "faults.md"


def test_every_kind_is_listed_with_what_it_does_and_where_it_shows() -> None:
    done = cxls("replay", "--list-faults")
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    for name, chance, text, shown in table():
        assert (
            f"{name} (probability: of {'an image' if chance == 'image' else 'a series'}) {text} shows: {shown}" in words
        )
    assert len(KINDS) >= 24


def test_the_page_has_the_table_of_the_program() -> None:
    page = PAGE.read_text()
    rows = [f"| `{name}` | {chance} | {text} | {shown} |" for name, chance, text, shown in table()]
    assert "\n".join(rows) in page


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--fault", "drop"], "fault 'drop' is not known; `cxls replay --list-faults` lists them"),
        (["--fault", "reorder"], "fault 'reorder' says not how often; write reorder=0.01, or reorder@5"),
        (["--fault", "drop_image=2"], "'2' is no probability; give a number from 0 to 1"),
        (["--fault-report", "f.jsonl"], "--fault-report without --fault reports nothing"),
        (["--fault-seed", "-1", "--fault", "reorder=1"], "--fault-seed"),
        (["--fault", "all=0.1", "--fault-report", "/no/such/folder/f.jsonl"], "/no/such/folder/f.jsonl: No such file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(master: Path, arguments: list[str], line: str) -> None:
    assert line in refusal("replay", master, "--bind", "tcp://127.0.0.1:0", *arguments)


CHANCE = {"oddities.pause", "oddities.clock_back", "oddities.clock_jump"}


def metrics(address: str) -> Counter[str]:
    """The counters of an account by the names of a report of faults."""
    names = {"frames_dropped": "dropped", "frames_undecodable": "undecodable", "frames_missing": "missing",
             "messages_invalid": "invalid", "series_ended": "series_ended", "stream_oddities": "oddities"}  # fmt: skip
    found: Counter[str] = Counter()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for metric, child, value in re.findall(r'^cxls_(\w+)_total\{\w+="([^"]*)"\} (\S+)$', text, re.M):
        if metric in names:
            found[f"{names[metric]}.{child}"] += int(float(value))
    for name in ("announced", "received"):
        found[name] = int(float(re.search(rf"^cxls_frames_{name}_total (\S+)$", text, re.M)[1]))  # type: ignore[index]
    return +found


@pytest.mark.parametrize("stream", ["v1", "v2"])
def test_the_metrics_of_an_analysis_are_what_the_report_of_faults_adds_up_to(
    master: Path, bundle_folder: Path, tmp_path: Path, stream: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    analysis = Analysis([address], bundle_folder, tmp_path / "r.jsonl").start()
    assert analysis.session.web is not None
    served = analysis.session.web.address
    report = tmp_path / "faults.jsonl"
    faults = ["--fault", "all=0.03", "--fault", "drop_image@4", "--fault", "slow_trickle=0,oversize=0,flip_bits=0"]
    done = cxls(
        "replay", *[master] * 12, "--bind", address, "--stream", stream, *faults, "--fault-seed", 8,
        "--fault-report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in report.read_text().splitlines()]
    kinds = Counter(line["kind"] for line in lines)
    assert kinds["drop_image"] > 5
    assert len(kinds) > 5
    assert re.findall(r"^fault (\w+): (\d+)$", done.stdout, re.M) == [(k, str(n)) for k, n in kinds.items()]
    expected = Counter({"announced": 12 * 12, "received": 12 * 12, "series_ended.end message": 12})
    for line in lines:
        assert line.keys() == {"kind", "series_id", "image_id", "stream", "expected", "detail"}
        expected.update({name: value for name, value in line["expected"].items() if name != "any"})

    def explained() -> bool:
        left = metrics(served)
        left.subtract(expected)
        # Of those that say "any of these" only a missing end is left here.
        others = sum(value for name, value in left.items() if name.startswith("series_ended") and value > 0)
        rest = {name: value for name, value in left.items() if value and not name.startswith("series_ended")}
        # A busy machine adds pauses; malformed messages have times of their own.
        rest = {name: value for name, value in rest.items() if value < 0 or name not in CHANCE}
        return rest == {} and others == kinds["drop_end"]

    wait_for(explained)
    analysis.stop()
    # A detector that rebooted says the same ids again, so pairs of ids may come twice, and records not.
    assert len(analysis.records) == analysis.account.accepted
    assert analysis.account.received == analysis.account.settled
