"""Requests that nobody means well: hostile query strings, askers that hang up, and who is warned of a wide address."""

import http.client
import logging
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from analyzer.web.connections import MOST_HEAD_BYTES
from tests.cxls.programs import Analysis, Sender, wait_for
from tests.cxls.test_http import Live

PATHS = (
    "/", "/metrics", "/healthz", "/readyz", "/status", "/static/main.js", "/products", "/products/powder.png",
    "/products/peak_counts.json", "/products/powder.npy", "/report", "/runs.csv", "/nothing",
)  # fmt: skip
QUERIES = (
    "theme=%00", "theme=dark%00", "theme=dark&theme=light", "theme=" + "d" * 20_000, "&".join(["theme=dark"] * 1500),
    "theme[]=dark", "=", "&&&&", "%", "%zz=%f", "theme=%ff%fe", "theme=../../../../etc/passwd", "theme=<script>",
    "theme=%0d%0aSet-Cookie:%20a=b", "name[]=up&name[]=", "?" * 500, ";" * 500,
    "\u00e9\u20ac".encode().decode("latin-1"),
)  # fmt: skip


@pytest.fixture(scope="module")
def live(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Sender() as sender:
        one = Live(sender, Analysis([sender.endpoint], bundle_folder, tmp_path_factory.mktemp("live") / "r.jsonl"))
        one.analysis.start()
        one.analyse(5)
        yield one
        one.analysis.stop()


def asked(live: Live, target: str, headers: str = "") -> tuple[int, str, bytes]:
    """Status, head and body of what answers a GET of ``target``, sent as it is."""
    host, port = live.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        head = f"GET {target} HTTP/1.1\r\nHost: {live.address}\r\nConnection: close\r\n{headers}\r\n"
        raw.sendall(head.encode("latin-1"))
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        return answer.status, str(answer.headers), answer.read()


def errors(live: Live) -> float:
    text = asked(live, "/metrics")[2].decode()
    (found,) = re.findall(r'^cxls_log_messages_total\{level="error"\} (\S+)$', text, re.M)
    return float(found)


# --- query strings ----------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_no_query_string_changes_what_a_path_answers_but_the_one_that_is_meant(live: Live, path: str) -> None:
    before, plain = errors(live), asked(live, path)
    for query in QUERIES:
        status, head, _ = asked(live, f"{path}?{query}")
        # A character that no address may have is refused by the HTTP server itself.
        assert status == plain[0] or (status == 400 and not query.isascii()), (path, query[:40])
        assert "set-cookie" not in head.lower()
    assert errors(live) == before
    assert asked(live, "/healthz")[0] == 200


def test_only_the_theme_that_is_meant_is_drawn_and_kept_and_no_other(live: Live) -> None:
    light, dark = (asked(live, f"/products/powder.png{query}")[2] for query in ("", "?theme=dark"))
    assert light[:8] == dark[:8] == b"\x89PNG\r\n\x1a\n"
    assert light != dark
    for query in ("theme=%00", "theme=dark%00", "theme=DARK", "theme[]=dark", "theme=dark&theme=light"):
        assert asked(live, f"/products/powder.png?{query}")[2] == light, query
    kept = next(
        route.endpoint.__self__._kept  # type: ignore[attr-defined]
        for route in _routes(live)
        if getattr(route, "path", "") == "/products/{file}"
    )
    assert {key for key in kept if "powder" in key} == {"powder.png", "powder.png dark"}


def _routes(live: Live) -> list[object]:
    web = live.analysis.session.web
    assert web is not None
    guard = web._server.config.app
    return list(guard._app.routes)  # type: ignore[union-attr]


def test_an_address_without_end_is_refused_and_the_next_one_is_answered(live: Live) -> None:
    try:
        status = asked(live, "/products/powder.png?theme=" + "d" * (32 * MOST_HEAD_BYTES))[0]
    except (OSError, http.client.HTTPException):
        # Hung up on while it still talked.
        status = 400
    assert status == 400
    assert asked(live, "/healthz")[0] == 200


# --- those who hang up ------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_scrapers_that_ask_and_hang_up_leave_nothing_behind(live: Live, reset: bool) -> None:
    before, threads = errors(live), threading.active_count()
    host, port = live.address.split(":")
    for n in range(60):
        raw = socket.create_connection((host, int(port)), timeout=20)
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        path = ("/metrics", "/status", "/products/powder.npy")[n % 3]
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {live.address}\r\n\r\n".encode())
        raw.close()
    live.analyse(3, 77)
    status, _, body = asked(live, "/metrics")
    assert status == 200
    assert b"\ncxls_frames_received_total " in body
    web = live.analysis.session.web
    assert web is not None
    wait_for(lambda: not web._server.server_state.connections)
    assert errors(live) == before
    # What answers requests is a pool of bounded size.
    assert threading.active_count() <= threads + 45


# --- whom the address reaches -----------------------------------------------------------


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("[::1]", False)])
def test_an_address_that_others_reach_is_warned_of_and_loopback_is_not(
    bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING), Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", listen=f"{host}:0")
        analysis.start().stop()
    said = [each.getMessage() for each in caplog.records if "whoever reaches this address" in each.getMessage()]
    assert len(said) == warned
    assert all(line.startswith(f"--listen {host}:0: ") for line in said)
