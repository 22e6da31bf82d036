"""The log of the program: text for a person, JSON for a program, and what nobody can make it say."""

import ast
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from analyzer.logs import Repeats, event
from analyzer.logs.counting import LogCounts
from analyzer.logs.formats import MOST_CHARACTERS, JsonFormatter, TextFormatter
from analyzer.logs.output import MOST_WAITING, Output
from analyzer.logs.repeats import MOST_KINDS
from tests.analyzer.builders import image
from tests.cxls.programs import CXLS, Analysis, Child, Sender, environment, refusal, wait_for
from tests.cxls.test_http import get
from tests.cxls.test_live import Wire

DOCS = Path(__file__).parents[2] / "docs"
FORGED = "x\n2026-11-30 12:00:00,000 INFO forged\r\x1b[2J‮\x85 \udcff"


def record(text: str, *arguments: Any, level: int = logging.WARNING, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("analyzer.front", level, __file__, 1, text, arguments, None)
    made.__dict__.update(extra)
    return made


class Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Messages of the logger ``told``."""
    told, logger = Told(), logging.getLogger("told")
    logger.addHandler(told)
    logger.setLevel(logging.INFO)
    yield told.messages
    logger.removeHandler(told)


# --- formats ----------------------------------------------------------------------------


def test_no_message_begins_a_line_of_its_own() -> None:
    line = TextFormatter().format(record("series 3: %s", FORGED))
    assert line.isprintable()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING series 3: x\\n2026", line)
    made = json.loads(JsonFormatter().format(record("series 3: %s", FORGED, **event("header_problem", text=FORGED))))
    assert made["message"].isprintable()
    assert made["text"] == FORGED, "a field is what it was, escaped as JSON has it"
    assert "\n" not in JsonFormatter().format(record("%s", FORGED, **event("header_problem", text=FORGED)))


def test_a_traceback_cannot_forge_a_line_either() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        made = record("failed", exc_info=(ValueError, error, error.__traceback__))
    first, *rest = TextFormatter().format(made).split("\n")
    assert first.endswith("WARNING failed")
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert "ValueError" in json.loads(JsonFormatter().format(made))["exception"]


def test_a_message_of_a_megabyte_is_cut() -> None:
    assert len(TextFormatter().format(record("y" * (1 << 20)))) < MOST_CHARACTERS + 100


def test_json_has_time_level_logger_message_event_and_fields() -> None:
    made = record("series %d began", 7, level=logging.INFO, **event("series_began", series_id=7, ratio=float("nan")))
    line = JsonFormatter().format(made)
    assert line.isascii()
    content = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content.pop("time"))
    assert content == {
        "level": "info", "logger": "analyzer.front", "message": "series 7 began", "event": "series_began",
        "series_id": 7, "ratio": None,
    }  # fmt: skip


def test_a_field_does_not_take_the_place_of_the_message() -> None:
    content = json.loads(JsonFormatter().format(record("true", **event("x", message="false", level="low", name="n"))))
    assert (content["message"], content["level"], content["name"]) == ("true", "warning", "n")


# --- repeats ----------------------------------------------------------------------------


def test_repeats_are_told_of_after_the_pause(said: list[str]) -> None:
    repeats = Repeats(logging.getLogger("told"), pause_s=0.3)
    for n in range(18):
        repeats.warning("refused", f"message {n} refused", "message_refused")
    repeats.warning("other", "another kind", "other")
    assert said == ["message 0 refused", "another kind"]
    wait_for(lambda: len(said) == 3, 30)
    assert re.fullmatch(r"17 more in \d s: message 17 refused", said[2])
    time.sleep(0.4)
    repeats.warning("refused", "message 18 refused", "message_refused")
    assert said[3] == "message 18 refused", "after a quiet pause it is said at once"


def test_a_flood_that_goes_on_is_a_line_a_pause(said: list[str]) -> None:
    repeats = Repeats(logging.getLogger("told"), pause_s=0.2)
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < 1.1:
        repeats.warning("refused", "refused", "message_refused")
        sent += 1
        time.sleep(0.001)
    took_s = time.monotonic() - began
    repeats.close()
    assert 3 <= len(said) <= took_s / 0.2 + 3
    assert 1 + sum(int(line.split()[0]) for line in said[1:]) == sent, "none is forgotten"


def test_what_is_held_back_is_said_at_the_end(said: list[str]) -> None:
    repeats = Repeats(logging.getLogger("told"), pause_s=1000)
    for _ in range(4):
        repeats.warning("refused", "refused", "message_refused")
    repeats.close()
    assert said == ["refused", "3 more in 0 s: refused"]


def test_kinds_from_the_wire_fill_neither_memory_nor_log(said: list[str]) -> None:
    repeats = Repeats(logging.getLogger("told"), pause_s=1000)
    for n in range(5000):
        repeats.warning(f"kind {n}", f"text {n}", "x")
    assert len(repeats._kinds) <= MOST_KINDS + 1
    assert len(said) <= MOST_KINDS + 1
    repeats.close()
    assert sum(int(line.split()[0]) for line in said if " more in " in line) == 5000 - MOST_KINDS - 1


def test_a_burst_is_said_whole(said: list[str]) -> None:
    repeats = Repeats(logging.getLogger("told"), pause_s=1000, burst=3)
    for n in range(5):
        repeats.say(logging.INFO, "began", f"series {n}", "series_began")
    repeats.close()
    assert said == ["series 0", "series 1", "series 2", "2 more in 0 s: series 4"]


# --- where lines go ---------------------------------------------------------------------


class Stuck:
    """A terminal that takes nothing until it is let go."""

    def __init__(self) -> None:
        self.go, self.text = threading.Event(), ""

    def write(self, text: str) -> None:
        self.go.wait(30)
        self.text += text

    def flush(self) -> None:
        pass


def test_a_terminal_that_stands_still_holds_nobody_up_and_lost_lines_are_told_of() -> None:
    stuck = Stuck()
    output = Output(stuck)  # type: ignore[arg-type]
    output.setFormatter(TextFormatter())
    output.handle(record("line"))
    wait_for(lambda: not output._waiting)
    began = time.monotonic()
    for _ in range(MOST_WAITING + 100):
        output.handle(record("line"))
    assert time.monotonic() - began < 15, "of 30 s that it stands still"
    stuck.go.set()
    output.flush()
    wait_for(lambda: "are lost" in stuck.text)
    assert stuck.text.count("line\n") == MOST_WAITING + 1
    assert "100 lines of the log are lost" in stuck.text


def test_a_line_that_cannot_be_formatted_is_one_line_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    stuck = Stuck()
    stuck.go.set()
    output = Output(stuck)  # type: ignore[arg-type]
    output.setFormatter(TextFormatter())
    output.handle(record("%d images", "no number"))
    output.flush()
    assert stuck.text.count("\n") == 1
    assert "a line of analyzer.front cannot be written: TypeError" in stuck.text
    assert capsys.readouterr().err == ""


def test_lines_are_written_with_no_descriptor_left() -> None:
    program = (
        "import logging, resource; from analyzer import logs; logs.configure(detached=True);"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); logging.warning('red \\x1b[31m \\u202e'); logs.settle()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.endswith("WARNING red \\x1b[31m \\u202e\n")
    assert done.stderr.count("\n") == 1


def test_what_asyncio_says_again_and_again_is_said_once() -> None:
    program = (
        "import logging; from analyzer import logs; logs.configure(detached=True);"
        "[logging.getLogger('asyncio').error('socket.accept() out of system resource') for _ in range(2000)];"
        "logs.settle()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("out of system resource") == 1


def test_warnings_and_errors_are_counted_from_0() -> None:
    registry, counts = CollectorRegistry(), LogCounts()
    registry.register(counts)
    assert b'cxls_log_messages_total{level="warning"} 0.0' in generate_latest(registry)
    assert b'cxls_log_messages_total{level="error"} 0.0' in generate_latest(registry)
    with counts:
        logging.getLogger("a").warning("x")
        logging.getLogger("a").error("x")
        logging.getLogger("a").critical("x")
        logging.getLogger("a").info("x")
    logging.getLogger("a").warning("after")
    assert b'cxls_log_messages_total{level="warning"} 1.0' in generate_latest(registry)
    assert b'cxls_log_messages_total{level="error"} 2.0' in generate_latest(registry)


def events_of(source: str) -> Iterator[str]:
    """The names of events in a module: of ``event(NAME, …)`` and of what ``Repeats`` is told."""
    place = {"event": 0, "exception": 1, "warning": 2, "say": 3}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Attribute):
            of = ast.unparse(function.value)
            name = function.attr if function.attr == "event" or of.endswith(("repeats", "series_lines")) else ""
        else:
            name = ast.unparse(function)
        given = node.args[place[name]] if name in place and len(node.args) > place[name] else None
        if isinstance(given, ast.Constant):
            yield str(given.value)


def test_the_page_lists_every_event() -> None:
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", (DOCS / "logs.md").read_text(), re.M))))
    told = {"series_began", "series_joined", "series_metadata", "library"}  # named by a variable
    told |= {"control_change", "control_restored"}
    for package in ("streamer", "analyzer", "sim_replay", "cxls"):
        for path in (DOCS.parent / package).rglob("*.py"):
            if "logs" not in path.parent.name:
                told |= set(events_of(path.read_text()))
    assert told - {"x"} | {"log_lost", "log_line_failed"} == listed


# --- the program ------------------------------------------------------------------------


def test_a_run_of_files_in_json_is_a_line_a_series_event_and_none_a_frame(master: Path, bundle_folder: Path) -> None:
    options = ["--bundle", str(bundle_folder), "--log-format", "json", "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*CXLS, "analyze", str(master), *options],
        capture_output=True, text=True, timeout=200, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    events = [line["event"] for line in lines if "event" in line]
    assert [name for name in events if name.startswith("series")] == ["series_began", "series_over"]
    assert "listening" in events
    over = next(line for line in lines if line.get("event") == "series_over")
    assert (over["images"], over["analysed"], over["why"]) == (12, 12, "end message")
    assert over["missing"] == {"head": 0, "gap": 0, "tail": 0}
    assert len(lines) < 12, "fewer lines than frames"


def test_text_stays_the_default(master: Path, bundle_folder: Path) -> None:
    done = subprocess.run(
        [*CXLS, "analyze", str(master), "--bundle", str(bundle_folder)],
        capture_output=True, text=True, timeout=200, env=environment(),
    )  # fmt: skip
    assert re.search(r"^\d{4}-\d\d-\d\d [\d:,]+ INFO series 1 over \(end message\): 12 images of 12", done.stderr, re.M)


def test_the_reason_of_a_failure_is_json_too() -> None:
    child = Child("analyze", "tcp://127.0.0.1:x", "--log-format", "json")
    assert child.end() == 2
    (line,) = [json.loads(line) for line in child.errors]
    assert (line["level"], line["event"], line["code"]) == ("error", "ended", 2)


def test_another_format_is_refused() -> None:
    assert "--log-format" in refusal("analyze", "x.h5", "--log-format", "xml")


def test_series_events_and_refused_messages_of_a_stream(
    bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wire = Wire("v2")
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl").start()
        for _ in range(30):
            sender.send(b"\xff not cbor\n2026-11-30 forged")
        for images in (2, 3):
            # Of one arming: another date would be another series.
            sender.send(*wire.start(1, images, arm_date="2026-11-30T12:00:00Z"))
        for n in range(3):
            sender.send(*wire.image(image(n)))
        sender.send(*wire.end(1))
        wait_for(lambda: len(analysis.session.front.reports) == 1)
        assert analysis.session.web is not None
        metrics = get(analysis.session.web.address, "/metrics")[2]
        analysis.stop()
    assert float(re.findall(r'^cxls_log_messages_total{level="warning"} (.*)$', metrics, re.M)[0]) >= 1
    events = [getattr(each, "cxls_event", "") for each in caplog.records]
    assert [name for name in events if name.startswith("series")] == ["series_began", "series_metadata", "series_over"]
    refused = [each.getMessage() for each in caplog.records if getattr(each, "cxls_event", "") == "message_refused"]
    assert len(refused) == 2
    assert refused[1].startswith("29 more in ")


def test_a_stranger_cannot_fill_the_log_with_broken_requests(bundle_folder: Path, tmp_path: Path) -> None:
    with Child(
        "analyze", "tcp://127.0.0.1:1", "--bundle", bundle_folder, "--listen", "127.0.0.1:0", "--log-format", "json"
    ) as child:
        host, _, port = child_address(child).rpartition(":")
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(b"\x00\x01 nonsense\r\n\r\n")
                connection.recv(1000)
        assert get(f"{host}:{port}", "/healthz")[0] == 200
        child.end(2)
        lines = [json.loads(line) for line in child.errors]
    assert sum("Invalid HTTP request" in line["message"] for line in lines) <= 2


def child_address(child: Child) -> str:
    found: list[str] = []

    def said() -> bool:
        found.extend(
            line["address"]
            for line in map(json.loads, list(child.errors))
            if line.get("event") == "listening" and line["name"] == "http"
        )
        return bool(found)

    wait_for(said, 60)
    return found[0]
