"""The terminal view of a running analysis, and what any other server may answer it."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from cxls.watching.client import MOST_BYTES, Heard
from cxls.watching.screen import Screen
from cxls.watching.view import PLAIN_BARS, Memory, lines, one_line
from tests.cxls.programs import CXLS, Analysis, Sender, cxls, environment, refusal, wait_for
from tests.cxls.test_http import Live

RESTORED = "\x1b[?1049l"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def live(bundle_folder: Path, tmp_path: Path) -> Iterator[Live]:
    with Sender() as sender:
        running = Live(sender, Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl"))
        running.analysis.start()
        yield running
        running.analysis.stop()


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that takes a request and does as it is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        answer(connection)
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def http(body: bytes, status: str = "200 OK", *headers: str) -> Callable[[socket.socket], None]:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]) + "\r\n\r\n"
    return lambda connection: connection.sendall(head.encode() + body)


def text_of(status: dict[str, object]) -> str:
    return "\n".join(f"{line.label} {line.text}" for line in lines(status, Memory(), PLAIN_BARS, 80))


class Terminal:
    """``cxls watch`` in a terminal of its own; ``screen`` is what was drawn last."""

    def __init__(self, address: str, rows: int = 24, columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(rows, columns)
        variables = environment(TERM="xterm-256color")
        for name in ("COLUMNS", "LINES"):
            variables.pop(name, None)
        self.process = subprocess.Popen(
            [*CXLS, "watch", address, "--interval", "0.2"], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
        )
        os.close(theirs)
        self.written = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> str:
        while select.select([self._ours], [], [], 0.05)[0]:
            try:
                self.written += os.read(self._ours, 1 << 16).decode("utf-8", "replace")
            except OSError:
                break
        return self.written

    def screen(self) -> list[str]:
        drawn = self.read().rpartition("\x1b[H")[2].partition("\x1b[?25h")[0]
        return ESCAPES.sub("", drawn).replace("\r", "").split("\n")

    def shows(self, text: str, timeout_s: float = 30) -> list[str]:
        wait_for(lambda: any(text in row for row in self.screen()), timeout_s)
        return self.screen()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.read()
        return code

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


# --- a real analysis --------------------------------------------------------------------


def test_a_snapshot_says_what_the_analysis_knows(live: Live) -> None:
    live.analyse(6)
    done = cxls("watch", f"http://{live.address}", "--once")
    assert done.returncode == 0, done.stderr
    assert "received 6 = processed 6 + dropped 0 + undecodable 0" in done.stdout
    assert re.search(r"^hit rate  \d+\.\d% of 6|^hit rate  \d+\.\d% of 100", done.stdout, re.M)
    assert "series 1" in done.stdout
    assert "header 7.000" in done.stdout
    assert "\x1b" not in done.stdout, "stdout is no terminal"


def test_a_single_look_tells_of_what_was_lost_before_anybody_looked(live: Live) -> None:
    live.sender.send(b"no message at all")
    wait_for(lambda: sum(live.analysis.session.front.account.invalid.values()) == 1)
    done = cxls("watch", f"http://{live.address}", "--once")
    assert re.search(r"^alarm {5}\[! \] 1 messages refused in five minutes", done.stdout, re.M), done.stdout


def test_an_address_without_a_scheme_is_an_http_one(live: Live) -> None:
    assert cxls("watch", live.address, "--once").returncode == 0


def test_the_view_fits_a_terminal_of_80_by_24_follows_its_size_and_restores_it(live: Live) -> None:
    live.analyse(6)
    with Terminal(f"http://{live.address}") as terminal:
        rows = terminal.shows("received 6 = processed 6")
        assert len(rows) <= 24
        assert max(map(len, rows)) <= 80
        terminal.resize(10, 50)
        wait_for(lambda: max(map(len, terminal.screen())) <= 50)
        small = terminal.shows("received 6 = processed 6")
        assert len(small) <= 10
        assert any(row.startswith("hit rate") for row in small)
        assert terminal.end(signal.SIGINT) == 130
        assert RESTORED in terminal.written
        assert "\x1b[?25h" in terminal.written.rpartition("\x1b[?25l")[2], "the cursor is shown again"


def test_an_analysis_that_vanishes_is_said_to_and_looked_for(live: Live) -> None:
    live.analyse(3)
    with Terminal(f"http://{live.address}") as terminal:
        terminal.shows("received 3 = processed 3")
        live.analysis.stop()
        rows = terminal.shows("no answer for")
        assert any("Connection refused" in row for row in rows)
        assert any("received 3" in row for row in rows), "what was known stays"
        host, _, port = live.address.rpartition(":")
        body = b'{"account": {"identity": "another run"}}'
        with socket.create_server((host, int(port))) as server:
            threading.Thread(target=lambda: _serve_once_and_again(server, http(body)), daemon=True).start()
            rows = terminal.shows("another run")
            assert not any("no answer" in row for row in rows)
            assert terminal.end(signal.SIGTERM) == 143
            server.shutdown(socket.SHUT_RDWR)
        assert RESTORED in terminal.written


def _serve_once_and_again(server: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                answer(connection)
        except OSError:
            return


def test_without_a_terminal_each_look_is_a_line_until_a_signal(live: Live) -> None:
    live.analyse(4)
    command = [*CXLS, "watch", f"http://{live.address}", "--interval", "0.2"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(3)]
    child.send_signal(signal.SIGINT)
    rest, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors == ""
    for line in said:
        assert re.fullmatch(r"\d\d:\d\d:\d\d \w+ \| hit rate .* \| queue 0 \| dropped 0\n", line), line
    assert "\x1b" not in "".join(said) + rest


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(live: Live) -> None:
    command = f"{' '.join(CXLS)} watch http://{live.address} --interval 0.2 | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, env=environment())
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


# --- no answer, or a bad one ------------------------------------------------------------


def test_no_server_is_an_exit_code_of_1_and_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = cxls("watch", f"http://127.0.0.1:{port}", "--once")
    assert done.returncode == 1
    assert done.stderr == "cxls: no connection: Connection refused\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    "address",
    [
        "ftp://127.0.0.1:8080",
        "file:///etc/passwd",
        "http://",
        "http://a:99999",
        "tcp://127.0.0.1:1",
        "http://a:b@c:1",
        "\x1b[2J",
    ],
)
def test_what_is_no_http_address_is_refused(address: str) -> None:
    said = refusal("watch", address, "--once")
    assert "not an address" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (http(b"<html>hello</html>"), "not the JSON"),
        (http(b"[1, 2]"), "not the JSON"),
        (http(b"[" * 200_000), "not the JSON"),
        (http(b"\xff\xfe{}"), "not the JSON"),
        (http(b"{}", "302 Found", "Location: http://127.0.0.1:1/status"), "not followed"),
        (http(b"{}", "500 Internal Server Error"), "HTTP 500"),
        (http(b" " * (MOST_BYTES + 10)), "more than 8 MiB"),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"), "broke off"),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), "no connection"),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 \x1b[2J\x07\r\n" + b"A: b\r\n" * 5000), "no connection"),
        (lambda connection: None, "no connection"),
    ],
)
def test_a_bad_answer_is_none(answer: Callable[[socket.socket], None], why: str) -> None:
    with answering(answer) as address:
        done = cxls("watch", address, "--once")
    assert done.returncode == 1
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr


def test_an_endless_body_is_not_taken_in() -> None:
    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with answering(pour) as address:
        done = cxls("watch", address, "--once")
    assert "more than 8 MiB" in done.stderr


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_server_that_drips_is_left_after_three_seconds(head: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(head or b"HTTP/1.1 200 ")
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.2)

    began = time.monotonic()
    with answering(drip) as address:
        done = cxls("watch", address, "--once")
    assert done.returncode == 1
    assert "nothing whole within 3 s" in done.stderr
    assert time.monotonic() - began < 6


# --- what is in an answer ---------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"account": None, "hit_ratio": [], "estimate": "x", "header": 3, "alarms": {}, "changes": [1, None], "run": []},
        {"account": {"dropped": {"queue_full": "many", "x": None}, "identity": 7}, "hit_ratio": {"100": "half"}},
        {"hit_ratio": {"100": True, "1000": 10**400}, "queue_frames": float("nan"), "threshold": float("inf")},
        {"alarms": [{}], "changes": [{}], "targets": {"hits": {}, "indexed": {"collected": 3}}, "last_hit": {}},
        {"alarms": [{"severity": ["x"], "text": {"a": 1}, "since": 1e300}], "header": {"frame_time_s": 0}},
    ],
)
def test_missing_and_senseless_keys_are_borne(status: dict[str, object]) -> None:
    memory = Memory()
    memory.add(status, 1.0)
    assert "account" in text_of(status)
    assert "hit rate" in one_line(status, memory)
    console = Console(width=40, height=8, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Screen(urlsplit("http://h:1"), lambda: Heard(status, time.monotonic()), memory, 1.0))


def test_nothing_from_a_server_steers_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\n‮\x9b31m"
    status = {
        "run": {"number": 1, "sample": evil},
        "bundle": evil,
        "alarms": [{"severity": evil, "text": evil}],
        "changes": [{"time": 1, "text": evil}],
        "account": {"identity": evil, "dropped": {evil: 3}},
        "estimate": {"estimate_reason": evil},
        "series_id": evil,
        "last_hit": {"image_id": evil},
    }
    with answering(http(json.dumps(status).encode())) as address:
        done = cxls("watch", address, "--once")
    assert done.returncode == 0
    assert "owned" in done.stdout
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)


def test_files_that_were_read_to_their_end_are_over_and_not_unready() -> None:
    status: dict[str, object] = {"over": True, "ready": False, "connected": False, "series_open": False}
    assert text_of(status).startswith("state [=] over\n")
    assert " over | " in one_line(status, Memory())
    assert text_of(status | {"over": "yes"}).startswith("state [.] not ready\n")


def test_alarms_have_signs_and_come_first() -> None:
    status = {
        "alarms": [
            {"severity": "critical", "text": "12 images dropped", "since": 0},
            {"severity": "warning", "text": "no beam", "since": 0},
        ]
    }
    said = text_of(status).splitlines()
    assert "[!!] 12 images dropped" in said[1]
    assert "[! ] no beam" in said[2]
    assert "[!!] 12 images dropped" in one_line(status, Memory())


def test_a_small_terminal_keeps_state_hit_rate_alarms_and_account() -> None:
    status = {
        "alarms": [{"severity": "critical", "text": "disk full", "since": 0}],
        "hit_ratio": {"100": 0.25},
        "account": {"identity": "received 1 = processed 1"},
        "changes": [{"time": 0, "text": f"change {n}"} for n in range(9)],
    }
    with open(os.devnull, "w") as nowhere:
        console = Console(width=60, height=9, record=True, file=nowhere)
        console.print(Screen(urlsplit("http://h:1"), lambda: Heard(status, time.monotonic()), Memory(), 1.0))
    drawn = console.export_text()
    for text in ("disk full", "25.0% of 100", "received 1 = processed 1", "running"):
        assert text in drawn
    assert len(drawn.splitlines()) <= 9


@pytest.mark.parametrize(
    ("interval_s", "silent_s", "gone"), [(1.0, 2.0, False), (1.0, 5.0, True), (60.0, 59.0, False), (60.0, 64.0, True)]
)
def test_a_server_has_gone_only_once_its_next_answer_was_due(interval_s: float, silent_s: float, gone: bool) -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=60, height=20, record=True, file=nowhere)
        heard = Heard({}, time.monotonic() - silent_s)
        console.print(Screen(urlsplit("http://h:1"), lambda: heard, Memory(), interval_s))
    assert ("no answer for" in console.export_text()) is gone


def test_the_sparkline_goes_from_old_to_new() -> None:
    memory = Memory()
    for second in range(301):
        memory.add({"hit_ratio": {"100": second / 300}}, float(second))
    drawn = memory.sparkline(8, PLAIN_BARS)
    assert drawn == PLAIN_BARS


def test_another_run_at_the_same_address_begins_the_curves_anew() -> None:
    memory = Memory()
    for second, received in enumerate((100, 200, 300)):
        memory.add({"hit_ratio": {"100": 0.5}, "account": {"received": received}}, float(second))
    assert memory.frames_hz() == 100
    memory.add({"hit_ratio": {"100": 0.5}, "account": {"received": 3}}, 3.0)
    assert memory.frames_hz() is None
    assert memory.sparkline(8, PLAIN_BARS) == ""
