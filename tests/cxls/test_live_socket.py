"""The live page's socket on a real analysis: what a browser gets, what strangers get, who is waited for: nobody."""

import json
import socket as sockets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from analyzer.live.budget import Budget
from analyzer.live.frames import Look
from analyzer.live.preview import Region
from analyzer.live.socket import MOST_CLIENTS, MOST_PICTURE_BYTES, Wish, _Studio
from tests.analyzer.builders import SHAPE, frame, plan, series
from tests.analyzer.live.made import result
from tests.cxls.programs import Analysis, Sender, wait_for
from tests.cxls.test_http import Live, get


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    from tests.analyzer.builders import write_bundle

    folder = tmp_path_factory.mktemp("live")
    with Sender() as sender:
        analysis = Analysis(
            [sender.endpoint],
            write_bundle(folder / "bundle"),
            folder / "r.jsonl",
            hit_rule="peaks",
            min_peaks=1,
            split_tag="laser",
            map_tags="x,y",
            target_hits=1000,
        )
        one = Live(sender, analysis)
        analysis.start()
        wait_for(lambda: get(one.address, "/readyz")[0] == 200)
        one.analyse(20)
        yield one
        analysis.stop()


def counted(live: Live, reason: str) -> float:
    text = get(live.address, "/metrics")[2]
    line = next(line for line in text.splitlines() if line.startswith(f'cxls_web_refused_total{{reason="{reason}"}}'))
    return float(line.split()[1])


def browser(live: Live, **options: Any) -> ClientConnection:
    return connect(f"ws://{live.address}/live", max_size=None, **options)


def messages(page: ClientConnection, seconds: float = 5.0) -> Iterator[dict[str, Any]]:
    """What comes, pictures with their pixels under "pixels"."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = page.recv(left)
        except TimeoutError:
            return
        if isinstance(message, str):
            yield json.loads(message)
            continue
        (length,) = struct.unpack_from("<I", message)
        header = json.loads(message[4 : 4 + length])
        pixels = np.frombuffer(zlib.decompress(message[4 + length :]), "<u2")
        yield header | {"pixels": pixels.reshape(header["rows"], header["columns"])}


def first(page: ClientConnection, kind: str, seconds: float = 60.0) -> dict[str, Any]:
    return next(message for message in messages(page, seconds) if message["kind"] == kind)


def ends(page: ClientConnection, texts: list[str]) -> bool:
    """Whether a browser that says this is hung up on."""
    try:
        for text in texts:
            page.send(text)
        list(messages(page, 60))
    except ConnectionClosed:
        return True
    return False


# --- what a browser gets ----------------------------------------------------------------


def test_a_browser_is_told_the_state_the_curves_the_hits_and_shown_the_latest_frame(live: Live) -> None:
    with browser(live) as page:
        seen: dict[str, dict[str, Any]] = {}
        for message in messages(page, 60):
            seen.setdefault(message["kind"], message)
            if len(seen) == 4:
                break
    status = seen["state"]["status"]
    assert status["account"]["received"] == sum(status["account"]["processed"].values())
    assert status["targets"]["hits"]["target"] == 1000
    assert "history" not in status
    assert "peaks" not in status["last"]
    assert isinstance(status["alarms"], list)
    curves = seen["curves"]
    assert sum(curves["time"]["analysed"]) >= 20
    assert sum(curves["images"]["beam"]) <= sum(curves["time"]["analysed"])
    assert curves["split"]["tag"] == "laser"
    assert curves["map"]["tags"] == ["x", "y"]
    assert len(curves["scatter"]) >= 20
    assert seen["image"]["pixels"].shape == SHAPE
    assert seen["image"]["show"] == "latest"


def test_a_hit_is_shown_when_asked_for_and_the_part_asked_for(live: Live) -> None:
    with browser(live) as page:
        held = first(page, "hits")["held"]
        assert held
        wanted = held[0]
        page.send(json.dumps({"show": "held", "key": wanted["key"], "region": [10, 20, 15, 12], "most_px": 200}))
        picture = next(m for m in messages(page, 60) if m["kind"] == "image" and m["show"] == "held")
    assert picture["image_id"] == wanted["image_id"]
    assert picture["region"] == [10, 20, 15, 12]
    assert picture["pixels"].shape == (12, 15)
    assert len(picture["peaks"]) == wanted["peak_count"]


def test_a_frame_that_has_not_changed_is_not_sent_twice(live: Live) -> None:
    with browser(live) as page:
        first(page, "image")
        kinds = [message["kind"] for message in messages(page, 1.5)]
        while "state" not in kinds:
            kinds.append(next(messages(page, 60))["kind"])
    assert "image" not in kinds


def test_a_paused_browser_gets_no_pictures_and_the_rest(live: Live) -> None:
    with browser(live) as page:
        page.send('{"show":"none"}')
        first(page, "state")
        list(messages(page, 0.5))
        live.analyse(4, 5)
        kinds = [message["kind"] for message in messages(page, 2)]
        while "state" not in kinds:
            kinds.append(next(messages(page, 60))["kind"])
    assert "image" not in kinds


def test_new_frames_come_as_they_are_analysed(live: Live) -> None:
    with browser(live) as page:
        before = first(page, "image")
        live.analyse(6, 9)
        after = first(page, "image")
    assert after["key"] != before["key"]


def test_an_unknown_key_shows_nothing_and_hurts_nothing(live: Live) -> None:
    with browser(live) as page:
        page.send('{"show":"held","key":"99:99"}')
        list(messages(page, 0.5))
        assert first(page, "state")["status"]["ready"]


# --- strangers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1", "http://localhost.evil.example:80", "null", "http://[", ""]
)
def test_a_page_of_another_site_is_refused_and_counted(live: Live, origin: str) -> None:
    before = counted(live, "origin")
    with pytest.raises(InvalidStatus) as refused, browser(live, additional_headers={"Origin": origin}):
        pass
    assert refused.value.response.status_code == 403
    assert counted(live, "origin") == before + 1


def test_a_page_of_its_own_is_welcome(live: Live) -> None:
    with browser(live, additional_headers={"Origin": f"http://{live.address}"}) as page:
        assert first(page, "state")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", '{"show":"everything"}', '{"most_px":1e9}', '{"most_px":99}', '{"region":[0,0,0,5]}',
        '{"region":[0,0,1]}', '{"region":[0,0,1,1e99]}', '{"key":7}', '{"unknown":1}', "[" * 2000, "\u0000",
        '{"key":"' + "x" * 65 + '"}', '{"region":[9223372036854775807,0,5,5]}',
    ],
)  # fmt: skip
def test_what_is_no_wish_is_counted_and_ends_that_browser_alone(live: Live, text: str) -> None:
    before = counted(live, "malformed")
    with browser(live) as page, browser(live) as other:
        page.send(text)
        with pytest.raises(ConnectionClosed) as closed:
            list(messages(page, 60))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert first(other, "state")
    assert counted(live, "malformed") == before + 1


def test_binary_from_a_browser_is_no_wish(live: Live) -> None:
    before = counted(live, "malformed")
    with browser(live) as page:
        page.send(b"\x00\x01")
        with pytest.raises(ConnectionClosed):
            list(messages(page, 60))
    assert counted(live, "malformed") == before + 1


@pytest.mark.parametrize("size", [5000, 100_000, 30_000_000])
def test_a_long_message_ends_that_browser_and_is_counted(live: Live, size: int) -> None:
    before = counted(live, "too_large")
    with browser(live) as page:
        assert ends(page, ["x" * size])
    wait_for(lambda: counted(live, "too_large") == before + 1)


def test_a_browser_that_never_stops_talking_is_hung_up_on(live: Live) -> None:
    before = counted(live, "too_fast")
    with browser(live) as page:
        assert ends(page, [json.dumps({"show": "none", "most_px": 100 + n}) for n in range(500)])
    assert counted(live, "too_fast") == before + 1


def test_more_browsers_than_are_served_are_told_to_come_later(live: Live) -> None:
    wait_for(lambda: "cxls_web_clients 0.0" in get(live.address, "/metrics")[2])
    with ExitStack() as pages:
        for _ in range(MOST_CLIENTS):
            pages.enter_context(browser(live))
        before = counted(live, "too_many")
        with pytest.raises(InvalidStatus), browser(live):
            pass
        assert counted(live, "too_many") == before + 1
    wait_for(lambda: "cxls_web_clients 0.0" in get(live.address, "/metrics")[2])


def test_a_page_that_asks_by_a_stranger_s_name_is_refused(live: Live) -> None:
    host, _, port = live.address.rpartition(":")
    raw = sockets.create_connection((host, int(port)))
    with pytest.raises(InvalidStatus) as refused, connect("ws://evil.example/live", sock=raw):
        pass
    assert refused.value.response.status_code == 403


# --- slow ones --------------------------------------------------------------------------


def _silent(live: Live) -> sockets.socket:
    """A browser that asks for the page's socket and never reads again."""
    host, port = live.address.split(":")
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    raw.sendall(
        f"GET /live HTTP/1.1\r\nHost: {live.address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return raw


def test_a_browser_that_never_reads_neither_slows_analysis_nor_grows_memory(live: Live) -> None:
    silent = [_silent(live) for _ in range(4)]
    try:
        began = time.monotonic()
        live.analyse(40, 21)
        assert time.monotonic() - began < 20
        with browser(live) as page:
            assert first(page, "state")["status"]["account"]["identity"]
    finally:
        for each in silent:
            each.close()


def test_a_browser_that_takes_nothing_for_long_is_hung_up_on(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyzer.live.socket.SEND_TIMEOUT_S", 1.0)
    for topic in live.analysis.session._live_socket._topics:
        monkeypatch.setattr(topic, "_every_s", 0.0)
    before = counted(live, "too_slow")
    silent = _silent(live)
    try:
        # What the kernel buffers on both sides has to fill up first.
        wait_for(lambda: counted(live, "too_slow") == before + 1, 60)
    finally:
        silent.close()


def test_a_picture_that_packs_badly_is_made_coarser() -> None:
    noise = np.random.default_rng(1).integers(0, 1 << 15, (1500, 1500)).astype(np.uint16)
    look = Look.of(frame(noise, of=series(shape=noise.shape)), result(0), plan(noise.shape))
    message = _Studio()._make(look, Wish(most_px=1200))
    assert MOST_PICTURE_BYTES / 4 < len(message) <= MOST_PICTURE_BYTES
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    assert header["bin"] * header["rows"] >= 1500
    small = Region(0, 0, 60, 50)
    whole = _Studio()._make(look, Wish(region=(0, 0, 60, 50), most_px=1200))
    (length,) = struct.unpack_from("<I", whole)
    assert json.loads(whole[4 : 4 + length])["columns"] == small.width


def test_pictures_come_at_most_ten_times_a_second(live: Live) -> None:
    with browser(live) as page:
        first(page, "image")
        counts: list[float] = []
        began = time.monotonic()
        for n in range(5):
            live.analyse(10, 300 + n)
            counts.extend(time.monotonic() for message in messages(page, 0.4) if message["kind"] == "image")
        took = time.monotonic() - began
    assert counts
    assert len(counts) <= 10.5 * took + 1


def test_in_no_second_are_more_than_two_megabytes_sent_however_badly_pictures_pack(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noted(Budget):
        """When a message was sent, and how long it was; when it arrives is the kernel's affair too."""

        def spend(self, size: int, now_s: float) -> None:
            sent.append((now_s, size))
            super().spend(size, now_s)

    sent: list[tuple[float, int]] = []
    monkeypatch.setattr("analyzer.live.socket.Budget", Noted)
    random = np.random.default_rng(4)
    shape = (700, 700)
    of, seen = series(shape=shape), plan(shape)
    noise = [frame(random.integers(0, 1 << 15, shape).astype(np.uint16), n, of) for n in range(4)]
    over, latest = threading.Event(), live.analysis.session.front.latest

    def measure() -> None:
        number = 0
        while not over.wait(0.05):
            number += 1
            latest.add([noise[number % 4]], [result(number, at=time.time())], [seen])

    detector = threading.Thread(target=measure, daemon=True)
    detector.start()
    arrived, pictures = 0, 0
    began = time.monotonic()
    try:
        with browser(live) as page:
            while (left := began + 6 - time.monotonic()) > 0:
                try:
                    message = page.recv(left)
                except TimeoutError:
                    break
                arrived += len(message if isinstance(message, bytes) else message.encode())
                if isinstance(message, bytes):
                    pictures += 1
                    # Who moves about is sent pictures sooner, so that bytes are what holds them back.
                    page.send(json.dumps({"most_px": 700, "region": [pictures % 2, 0, 699, 700]}))
    finally:
        over.set()
        detector.join()
    for at_s, _ in sent:
        assert sum(size for each_s, size in sent if at_s <= each_s < at_s + 1.0) <= 2e6
    assert arrived <= sum(size for _, size in sent)
    assert pictures > 2
    assert arrived > 2e6, "pictures that do not come near the limit say nothing of it"
