"""What stands before every request: names that are not ours, answers that nobody takes, too many large ones."""

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from analyzer.web import connections, guard
from analyzer.web.guard import MOST_LARGE, Refusals
from analyzer.web.http import HttpServer, bind
from tests.cxls.programs import wait_for

LARGE = 8 << 20


class Served:
    """A server of one small and one large answer."""

    def __init__(self, listen: str = "127.0.0.1:0") -> None:
        self.refusals = Refusals()
        routes = [Route("/small", self._small), Route("/large", self._large)]
        self.server = HttpServer(bind(listen), routes, self.refusals)
        self.port = int(self.server.address.rpartition(":")[2])

    def _small(self, request: Request) -> Response:
        del request
        return Response(b"ok")

    def _large(self, request: Request) -> Response:
        del request
        return Response(bytes(range(256)) * (LARGE >> 8))

    def get(self, path: str, host: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    def open(self, path: str) -> socket.socket:
        """A connection that asks and reads nothing."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", self.port))
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        return raw


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    wait_for(lambda: one.get("/small")[0] == 200)
    yield one
    one.server.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_it_answers_by_its_own_names(served: Served, host: str) -> None:
    assert served.get("/small", host.format(port=served.port)) == (200, b"ok")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.", "@"])
def test_on_loopback_a_stranger_s_name_is_refused_and_counted(served: Served, host: str) -> None:
    before = served.refusals.counts["host"]
    assert served.get("/small", host)[0] == 421
    assert served.refusals.counts["host"] == before + 1


def test_on_a_wider_address_any_name_is_answered() -> None:
    wide = Served("0.0.0.0:0")
    wait_for(lambda: wide.get("/small", "beamline.example")[0] == 200)
    wide.server.close()


def test_a_large_answer_arrives_whole(served: Served) -> None:
    status, body = served.get("/large")
    assert (status, len(body)) == (200, LARGE)
    assert body == bytes(range(256)) * (LARGE >> 8)


def test_clients_that_read_nothing_are_hung_up_on_and_large_answers_are_few(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SEND_TIMEOUT_S", 1.0)
    silent = [served.open("/large") for _ in range(MOST_LARGE)]
    wait_for(lambda: served.get("/large")[0] == 503)
    assert served.get("/small") == (200, b"ok")
    wait_for(lambda: served.refusals.counts["too_slow"] == MOST_LARGE)
    assert served.get("/large")[0] == 200
    for each in silent:
        each.close()


def silent(served: Served, count: int, said: bytes = b"") -> list[socket.socket]:
    opened = [socket.create_connection(("127.0.0.1", served.port), timeout=60) for _ in range(count)]
    for each in opened:
        with contextlib.suppress(ConnectionError):  # hung up on already
            each.sendall(said)
    return opened


def is_hung_up_on(raw: socket.socket) -> bool:
    try:
        return raw.recv(1) == b""
    except ConnectionError:  # what it sent was not read
        return True


@pytest.mark.parametrize(
    "said", [b"", b"GET /small HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: b"], ids=["silent", "half a head"]
)
def test_whoever_asks_is_served_however_many_merely_connect(
    served: Served, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 20)
    idle = silent(served, 60, said)
    for _ in range(5):
        assert served.get("/small")[0] == 200
    wait_for(lambda: len(served.server._server.server_state.connections) <= 20)
    assert served.refusals.counts["connections"] >= 40
    # The first to come were the first to go.
    assert is_hung_up_on(idle[0])
    for each in idle:
        each.close()


def test_a_head_that_comes_byte_by_byte_has_its_time_and_no_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    slow = silent(served, 3, b"GET /small HTTP/1.1\r\n")
    began = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT012
        while time.monotonic() < began + 10:
            time.sleep(0.05)
            for each in slow:
                each.sendall(b"X")
    assert time.monotonic() - began < 9, "of 10 s in which bytes come"
    wait_for(lambda: served.refusals.counts["no_request"] == 3)
    for each in slow:
        each.close()


def test_an_answer_that_takes_longer_than_a_request_may_is_not_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.2)
    raw = served.open("/large")
    time.sleep(0.6)
    received = 0
    while received < LARGE:
        part = raw.recv(1 << 20)
        assert part
        received += len(part)
    raw.close()


def test_a_head_of_many_bytes_is_refused(served: Served) -> None:
    with silent(served, 1)[0] as raw:
        raw.sendall(b"GET /small HTTP/1.1\r\n" + b"X-A: " + b"a" * (connections.MOST_HEAD_BYTES + 1))
        assert raw.recv(12) == b"HTTP/1.1 400"
    assert served.get("/small")[0] == 200


def test_a_connection_may_ask_again_and_again(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    for _ in range(5):
        connection.request("GET", "/small")
        assert connection.getresponse().read() == b"ok"
    connection.close()
    assert not any(served.refusals.counts.values())
