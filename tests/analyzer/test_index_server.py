"""Handing hits to indexers: real sockets, REQ workers as indexamajig's, and clients that do their worst."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from analyzer.indexing import CannotBind, IndexingSettings, IndexServer
from analyzer.indexing import router as router_module
from analyzer.indexing import server as server_module
from analyzer.indexing.hits import HitQueue, WaitingHit
from analyzer.indexing.router import KEEP_ALIVE, Router
from analyzer.results import Decision, FrameResult, Peak
from streamer.frames import Frame
from streamer.series import Series
from streamer.validity import Validity
from tests.analyzer import crystfel_reader as reader
from tests.analyzer import stream_text
from tests.analyzer.builders import BROKEN, CHANNEL, SHAPE, frame, series, water

LOOPBACK = "tcp://127.0.0.1:0"
CRYSTFEL_WAITS_MS = 3000
SERIES = series(1, 7)


def result(image_id: int, peaks: int = 12, of: Series = SERIES, **changes: Any) -> FrameResult:
    found = [Peak(10.0 + n, 20.0 + n, 50.0, 9.0, False) for n in range(peaks)]
    facts: dict[str, Any] = {
        "series_id": of.series_id, "image_id": image_id, "channel": CHANNEL, "start_time": 0.0, "exposure_s": 0.001,
        "received_at": 1e9, "decision": Decision.HIT, "hit": True, "hit_probability": 0.9,
        "indexable": peaks >= 10, "peak_count": peaks, "peaks": found, "ordinal": of.ordinal,
    }  # fmt: skip
    return FrameResult(**(facts | changes))


def packed_frame(image_id: int, of: Series = SERIES) -> Frame:
    return frame(water(1.0, seed=image_id), image_id, of)


class Hits:
    """A running server and what it is offered."""

    def __init__(self, **settings: Any) -> None:
        mask = settings.pop("mask", lambda: None)
        self.server = IndexServer(IndexingSettings(**({"address": LOOPBACK} | settings)), mask)
        self.server.start()
        self.address = self.server.router.address

    def offer(self, *image_ids: int, **changes: Any) -> None:
        for image_id in image_ids:
            self.server.offer(packed_frame(image_id), result(image_id, **changes))


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Hits]:
    hits = Hits(**settings)
    try:
        yield hits
    finally:
        if hits.server._closed_at is None:
            hits.server.close()


class Worker:
    """One worker of indexamajig: a REQ socket that asks. CrystFEL's waits no longer than ``CRYSTFEL_WAITS_MS``."""

    def __init__(self, address: str, identity: bytes = b"", waits_ms: int = 30_000) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.socket = self._context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, waits_ms)
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(address)

    def ask(self, request: bytes = b"next") -> None:
        self.socket.send(request)

    def reply(self) -> bytes:
        return bytes(self.socket.recv())

    def fetch(self) -> int:
        """The image id of the next hit, keep-alives passed over as CrystFEL does."""
        self.ask()
        return self.wait()

    def wait(self) -> int:
        """The same once it has asked."""
        while len(reply := self.reply()) < reader.SHORTEST_MESSAGE:
            self.ask()
        return image_of(reply)

    def die(self) -> None:
        self.socket.close()
        self._context.term()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.socket.closed:
            self.die()


def image_of(reply: bytes) -> int:
    found = reader.header(reply, "frame_id", reader.Reading())
    assert isinstance(found, int)
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def settled(count: Callable[[], int]) -> None:
    """Until a count stands still: what a client left behind has been read."""
    before = -1
    while before != (before := count()):
        time.sleep(0.3)


# --- handing out -------------------------------------------------------------------------


def test_a_hit_is_handed_to_a_worker_that_waits() -> None:
    with serving() as hits, Worker(hits.address) as worker:
        worker.ask()
        wait_for(lambda: hits.server.router.waiting == 1)
        hits.offer(5)
        assert worker.wait() == 5


def test_hits_that_wait_go_out_oldest_first_to_one_worker_each() -> None:
    with serving() as hits, Worker(hits.address) as one, Worker(hits.address) as two:
        hits.offer(*range(6))
        assert [one.fetch(), two.fetch(), one.fetch(), one.fetch(), two.fetch(), two.fetch()] == list(range(6))
        wait_for(lambda: hits.server.fates["sent"] == 6)
        assert hits.server.fates == {"sent": 6, "dropped": 0, "filtered": 0, "undecodable": 0, "unserved": 0}


def test_the_oldest_request_is_answered_first() -> None:
    with serving() as hits, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(hits.address)) for _ in range(5)]
        for count, worker in enumerate(workers, 1):
            worker.ask()
            wait_for(lambda count=count: hits.server.router.waiting == count)  # type: ignore[misc]
        hits.offer(*range(5))
        assert [worker.wait() for worker in workers] == list(range(5))


def test_forty_workers_share_the_hits_and_each_gets_its_own() -> None:
    taken: list[int] = []
    lock = threading.Lock()
    done = threading.Event()

    def work(address: str) -> None:
        with Worker(address) as worker:
            while not done.is_set():
                worker.ask()
                reply = worker.reply()
                if len(reply) >= reader.SHORTEST_MESSAGE:
                    with lock:
                        taken.append(image_of(reply))

    with serving() as hits:
        threads = [threading.Thread(target=work, args=(hits.address,)) for _ in range(40)]
        for thread in threads:
            thread.start()
        wait_for(lambda: hits.server.router.waiting == 40)
        hits.offer(*range(300))
        wait_for(lambda: len(taken) == 300)
        done.set()
        for thread in threads:
            thread.join()
        assert sorted(taken) == list(range(300))
        assert hits.server.router.replies_lost == 0


def test_every_event_id_is_another_even_when_series_ids_begin_anew() -> None:
    first, rebooted = series(1, 1), series(2, 1)
    with serving() as hits, Worker(hits.address) as worker:
        for of in (first, rebooted):
            hits.server.offer(packed_frame(3, of), result(3, of=of))
        ids = []
        for _ in range(2):
            worker.ask()
            ids.append(reader.header(worker.reply(), "event_id", reader.Reading()))
        assert len(set(ids)) == 2
        assert all(str(each).startswith("series1-image3-run") for each in ids)


# --- keep-alives -------------------------------------------------------------------------


def test_without_a_hit_a_worker_is_told_to_ask_again_well_before_three_seconds() -> None:
    with serving() as hits, Worker(hits.address, waits_ms=CRYSTFEL_WAITS_MS) as worker:
        worker.ask()
        began = time.monotonic()
        reply = worker.reply()
        assert 0.5 < time.monotonic() - began < 3.0
        assert reply == KEEP_ALIVE
        assert len(reply) < reader.SHORTEST_MESSAGE
        hits.offer(1)
        assert worker.fetch() == 1
        assert hits.server.router.keep_alives == 1


# --- bounds and filters ------------------------------------------------------------------


def test_the_newest_hits_are_kept_and_the_others_counted() -> None:
    with serving(queue=3) as hits, Worker(hits.address) as worker:
        hits.offer(*range(10))
        assert [worker.fetch() for _ in range(3)] == [7, 8, 9]
        assert hits.server.fates["dropped"] == 7


def test_packed_images_are_bounded_in_bytes_too() -> None:
    one = WaitingHit("e", SERIES, result(0), packed_frame(0))
    queue = HitQueue(100, 3 * one.held_bytes + 1000)
    for image_id in range(10):
        queue.put(WaitingHit(str(image_id), SERIES, result(image_id), packed_frame(0)))
    assert (len(queue), queue.dropped) == (3, 7)
    taken = queue.take()
    assert taken is not None
    assert taken.event_id == "7"
    queue.put_back(taken)
    assert (len(queue), queue.dropped) == (3, 7)


def test_a_hit_larger_than_the_queue_is_dropped_and_counted() -> None:
    queue = HitQueue(100, 10)
    queue.put(WaitingHit("e", SERIES, result(0)))
    assert (len(queue), queue.dropped) == (0, 1)


def test_peaks_alone_hold_no_image_in_memory() -> None:
    with serving() as hits:
        hits.offer(1)
        waiting = hits.server.queue.take()
        assert waiting is not None
        assert waiting.frame is None


def test_frames_with_few_peaks_stay_here_when_asked() -> None:
    with serving(indexable_only=True) as hits, Worker(hits.address) as worker:
        hits.offer(1, peaks=9)
        hits.offer(2, peaks=10)
        assert worker.fetch() == 2
        assert hits.server.fates["filtered"] == 1


def test_a_hit_without_peaks_goes_out_only_with_its_image() -> None:
    with serving() as hits:
        hits.offer(1, peaks=0)
        assert hits.server.fates["filtered"] == 1
    with serving(images=True) as hits, Worker(hits.address) as worker:
        hits.offer(1, peaks=0)
        assert worker.fetch() == 1


# --- images ------------------------------------------------------------------------------


def test_images_go_along_with_the_mask_of_the_moment() -> None:
    extra = Validity("user", np.ones(SHAPE, np.uint8))
    extra.valid[3, 4] = 0
    masks: list[Validity | None] = [None]
    with serving(images=True, mask=lambda: masks[0]) as hits, Worker(hits.address) as worker:
        for image_id, bad_pixels in ((1, 0), (2, 1)):
            hits.offer(image_id)
            worker.ask()
            reply = worker.reply()
            pixels, bad = reader.image(reply, reader.Reading(), SHAPE)
            assert bad.sum() == bad_pixels
            assert pixels is not None
            assert np.array_equal(pixels[~bad], water(1.0, seed=image_id)[~bad])
            masks[0] = extra


def test_an_image_that_does_not_unpack_is_counted_and_the_next_is_sent() -> None:
    with serving(images=True) as hits, Worker(hits.address) as worker:
        hits.server.offer(frame(BROKEN, 1, SERIES), result(1))
        hits.offer(2)
        assert worker.fetch() == 2
        assert hits.server.fates["undecodable"] == 1


def test_a_hit_that_cannot_be_packed_is_counted_and_the_next_is_sent() -> None:
    with serving() as hits, Worker(hits.address) as worker:
        hits.offer(1, received_at="never")
        hits.offer(2)
        assert worker.fetch() == 2
        assert hits.server.fates["undecodable"] == 1


def test_hits_that_take_long_to_pack_do_not_keep_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(images=True) as hits, contextlib.ExitStack() as stack:
        pixels = hits.server._decoder.pixels

        def slowly(*given: Any) -> Any:
            time.sleep(0.3)
            return pixels(*given)

        monkeypatch.setattr(hits.server._decoder, "pixels", slowly)
        workers = [stack.enter_context(Worker(hits.address, waits_ms=CRYSTFEL_WAITS_MS)) for _ in range(12)]
        for worker in workers:
            worker.ask()
        wait_for(lambda: hits.server.router.waiting == 12)
        hits.offer(*range(12))
        # Twelve hits take longer than CrystFEL waits; each worker hears from us in time all the same.
        for worker in workers:
            assert worker.reply()


# --- workers that vanish, servers that restart -------------------------------------------


def test_a_worker_that_died_waiting_costs_no_hit() -> None:
    with serving() as hits, Worker(hits.address) as living:
        dead = Worker(hits.address)
        dead.ask()
        wait_for(lambda: hits.server.router.waiting == 1 and len(hits.server.router.door) == 2)
        dead.die()
        wait_for(lambda: len(hits.server.router.door) == 1)
        time.sleep(0.2)  # until libzmq knows it, too
        hits.offer(1)
        assert living.fetch() == 1
        assert hits.server.router.replies_lost == 1
        wait_for(lambda: hits.server.fates["sent"] == 1)


def test_the_last_worker_s_death_leaves_the_hit_for_the_next_that_comes() -> None:
    with serving() as hits:
        for _ in range(3):
            dead = Worker(hits.address)
            dead.ask()
            wait_for(lambda: hits.server.router.waiting >= 1)
            dead.die()
        wait_for(lambda: not len(hits.server.router.door))
        time.sleep(0.2)
        hits.offer(1)
        with Worker(hits.address) as late:
            assert late.fetch() == 1


def test_a_server_that_starts_again_serves_workers_that_were_busy_and_new_ones() -> None:
    with serving() as hits, Worker(hits.address) as busy:
        hits.offer(1)
        assert busy.fetch() == 1
        hits.server.close()
        with serving(address=hits.address) as again, Worker(hits.address) as new:
            again.offer(2)
            assert busy.fetch() == 2
            again.offer(3)
            assert new.fetch() == 3


# --- the end of a run --------------------------------------------------------------------


def test_the_end_hands_out_what_waits_to_workers_that_ask() -> None:
    with serving() as hits, Worker(hits.address) as worker:
        hits.offer(*range(20))
        taken = [worker.fetch()]
        closing = threading.Thread(target=hits.server.close)
        closing.start()
        taken += [worker.fetch() for _ in range(19)]
        closing.join(10)
        assert not closing.is_alive()
        assert taken == list(range(20))
        assert hits.server.fates["unserved"] == 0


def test_the_end_waits_for_nobody_and_counts_what_is_left() -> None:
    with serving() as hits:
        hits.offer(*range(4))
        began = time.monotonic()
        hits.server.close()
        assert time.monotonic() - began < server_module.QUIET_S
        assert hits.server.fates["unserved"] == 4


def test_the_end_gives_up_when_no_worker_asks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "QUIET_S", 0.5)
    with serving() as hits, Worker(hits.address) as worker:
        hits.offer(*range(4))
        worker.fetch()
        began = time.monotonic()
        hits.server.close()
        assert time.monotonic() - began < 20.0, "of 30 s that it would wait for one that asks"
        assert (hits.server.fates["sent"], hits.server.fates["unserved"]) == (1, 3)


def slow_worker(address: str, stop: threading.Event, taken: list[str]) -> None:
    """A worker with more to do than there is time for: it asks on, a hit every half second."""
    with (
        Worker(address, waits_ms=3000) as worker,
        contextlib.suppress(zmq.Again),
    ):  # nobody answers once the server is closed
        while not stop.is_set():
            worker.ask()
            if len(reply := worker.reply()) >= reader.SHORTEST_MESSAGE:
                taken.append(str(reader.header(reply, "event_id", reader.Reading())))
                stop.wait(0.5)


def test_somebody_who_waits_for_the_end_waits_seconds_and_every_hit_is_counted(tmp_path: Path) -> None:
    """Workers that ask on would otherwise keep a Ctrl-C for as long as the backlog lasts."""
    stop, hurry, taken = threading.Event(), threading.Event(), []
    stream = tmp_path / "out.stream"
    server = IndexServer(IndexingSettings(address=LOOPBACK, stream=stream), hurry=hurry.is_set)
    server.start()
    worker = threading.Thread(target=slow_worker, args=(server.router.address, stop, taken))
    for number in range(40):
        server.offer(packed_frame(number), result(number))
    worker.start()
    wait_for(lambda: len(taken) >= 2)
    stream.write_text(stream_text.HEADER + "".join(stream_text.chunk(name) for name in taken[:2]))
    closing = threading.Thread(target=server.close)
    closing.start()
    time.sleep(1.0)
    assert closing.is_alive()  # a run that ends by itself hands out what waits
    hurry.set()
    began = time.monotonic()
    closing.join(30)
    assert time.monotonic() - began < 15.0, "of 20 s that the backlog would take"
    sent, unserved = server.fates["sent"], server.fates["unserved"]
    stop.set()
    worker.join(30)
    assert (sent + unserved, sent) == (40, len(taken))
    assert unserved > 20
    assert server.awaited == sent - 2
    assert server.summary == (
        f"hits for indexing: sent {sent}, dropped 0, filtered 0, undecodable 0, unserved {unserved}; "
        f"{sent - 2} of those sent without a result when the run ended"
    )


def test_a_server_that_never_started_closes() -> None:
    server = IndexServer(IndexingSettings(address=LOOPBACK))
    server.offer(packed_frame(1), result(1))
    server.close()
    assert server.fates["unserved"] == 1


# --- hostile -----------------------------------------------------------------------------


def dealer(address: str) -> tuple["zmq.Context[Any]", Any]:
    context: zmq.Context[Any] = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    client.setsockopt(zmq.RCVTIMEO, 3000)
    client.connect(address)
    return context, client


@pytest.fixture
def attacked() -> Iterator[tuple[Hits, Any]]:
    """A server and a DEALER that may send whatever it likes; afterwards a worker is served as ever."""
    with serving() as hits:
        context, client = dealer(hits.address)
        yield hits, client
        client.close()
        context.term()
        settled(lambda: hits.server.router.requests["next"])
        with Worker(hits.address) as worker:
            hits.offer(77)
            assert worker.fetch() == 77


@pytest.mark.parametrize("request_", [b"", b"nex", b"next\0", b"NEXT", b"resetplots", b"m", b"\xff" * 1000])
def test_unknown_requests_are_answered(request_: bytes) -> None:
    with serving() as hits, Worker(hits.address) as worker:
        worker.ask(request_)
        assert worker.reply() == b"What?"
        assert hits.server.router.requests == {"next": 0, "unknown": 1, "malformed": 0}


def test_a_request_too_large_closes_its_connection_only(attacked: tuple[Hits, Any]) -> None:
    hits, client = attacked
    client.send_multipart([b"", b"x" * (1 << 20)])
    with pytest.raises(zmq.Again):
        client.recv_multipart()
    assert sum(hits.server.router.requests.values()) == 0


@pytest.mark.parametrize(
    "parts",
    [[b"a", b"next"], [b"", b"b", b"next"], [b""] * 20, [b"x"] * 1000, [b"y"] * 30_000, [b"", b"next", b"more", b""]],
)
def test_malformed_multiparts_are_counted(attacked: tuple[Hits, Any], parts: list[bytes]) -> None:
    hits, client = attacked
    client.send_multipart(parts)
    wait_for(lambda: hits.server.router.requests["malformed"] == 1)


def test_a_dealer_without_the_empty_part_is_served(attacked: tuple[Hits, Any]) -> None:
    hits, client = attacked
    client.send(b"next")
    wait_for(lambda: hits.server.router.waiting == 1)
    hits.offer(4)
    (reply,) = client.recv_multipart()
    assert image_of(reply) == 4


def test_asking_a_thousand_times_without_reading_takes_one_place_and_no_memory(attacked: tuple[Hits, Any]) -> None:
    hits, client = attacked
    client.setsockopt(zmq.SNDHWM, 0)
    for _ in range(20_000):
        client.send_multipart([b"", b"next"])
    wait_for(lambda: hits.server.router.requests["next"] == 20_000)
    assert hits.server.router.waiting <= 1


def test_more_workers_than_can_be_kept_are_told_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "MOST_WORKERS", 3)
    monkeypatch.setattr(router_module, "KEEP_ALIVE_S", 60.0)
    with serving() as hits, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(hits.address)) for _ in range(4)]
        for worker in workers[:3]:
            worker.ask()
        wait_for(lambda: hits.server.router.waiting == 3)
        workers[3].ask()
        assert workers[3].reply() == KEEP_ALIVE, "not only in a minute"


def test_two_clients_of_one_name_leave_the_first_served() -> None:
    with serving() as hits, Worker(hits.address, b"twin") as first:
        first.ask()
        wait_for(lambda: hits.server.router.waiting == 1)
        with Worker(hits.address, b"twin") as second:
            second.ask()
            hits.offer(1)
            assert first.wait() == 1


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"", b"\0" * 100_000])
def test_what_is_no_zeromq_harms_nothing(greeting: bytes) -> None:
    with serving() as hits, Worker(hits.address) as worker:
        host, port = hits.address.removeprefix("tcp://").split(":")
        raw = socket.create_connection((host, int(port)))
        with contextlib.suppress(OSError):
            raw.sendall(greeting)
        hits.offer(1)
        assert worker.fetch() == 1
        raw.close()


def test_requests_without_pause_do_not_starve_the_others(attacked: tuple[Hits, Any]) -> None:
    hits, client = attacked
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(zmq.Again):
                client.send_multipart([b"", b"next"], zmq.DONTWAIT)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        with Worker(hits.address) as worker:
            worker.ask()
            assert worker.reply() == KEEP_ALIVE
    finally:
        stop.set()
        flooding.join()


def test_the_geometry_is_written_even_when_every_hit_stays_here_and_the_run_ends_at_once(tmp_path: Path) -> None:
    with serving(geometry=tmp_path / "live.geom", indexable_only=True) as hits:
        hits.offer(1, peaks=3)
        hits.server.close()
        assert "photon_energy = beam_energy eV" in (tmp_path / "live.geom").read_text()


# --- addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://127.0.0.1:99999", "port"),
        ("tcp://127.0.0.1", "not a TCP address"),
        ("tcp://:5", "."),
        ("127.0.0.1:5000", "not a TCP address"),
        ("ipc:///tmp/x:5", "not a TCP address"),
        ("tcp://no.such.host.invalid:0", "."),
        ("tcp://127.0.0.1:", "port"),
        ("tcp://127.0.0.1:-1", "port"),
        ("tcp://127.0.0.1:1\n2", "not a TCP address"),
        ("", "not a TCP address"),
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(address: str, why: str) -> None:
    with pytest.raises(CannotBind) as refused:
        Router(address)
    text = str(refused.value)
    assert "\n" not in text
    assert "like tcp://127.0.0.1:12322" in text
    assert why in text


def test_an_address_in_use_is_refused_and_free_again_after() -> None:
    with serving() as hits:
        with pytest.raises(CannotBind, match="in use"):
            IndexServer(IndexingSettings(address=hits.address))
        address = hits.address
    Router(address).close()


def test_a_star_takes_a_free_port() -> None:
    router = Router("tcp://127.0.0.1:*")
    assert int(router.address.rpartition(":")[2]) > 0
    router.close()


# --- what comes back ---------------------------------------------------------------------


def test_what_the_indexer_writes_comes_back_by_event_id(tmp_path: Path) -> None:
    stream = tmp_path / "out.stream"
    with serving(stream=stream) as hits, Worker(hits.address) as worker:
        hits.offer(*range(4))
        text = stream_text.HEADER
        for serial in range(4):
            worker.ask()
            name = reader.header(worker.reply(), "event_id", reader.Reading())
            found = [stream_text.crystal()] * (serial % 2)
            text += stream_text.chunk(str(name), found, serial)
        stream.write_text(text + stream_text.chunk("series9-image9-run00000000.1", [stream_text.crystal()]))
        wait_for(lambda: sum(hits.server.outcomes.counts.values()) == 5)
        facts = hits.server.facts()
        assert facts["outcomes"] == {"indexed": 2, "not_indexed": 2, "repeated": 0, "unknown": 1, "no_event_id": 0}
        assert facts["indexed_ratio"] == {"all": 0.5, "100": 0.5, "1000": 0.5}
        assert facts["cell"]["median"]["a"] == 79.0
        assert facts["stream"]["state"] == "following"
        assert facts["awaited"] == hits.server.fates["sent"] - 4
        msgspec.json.encode(facts)


def test_facts_and_metrics_are_there_from_the_start() -> None:
    with serving() as hits:
        facts = hits.server.facts()
        assert facts["waiting_workers"] == facts["queue_hits"] == 0
        assert facts["seconds_since_request"] is None
        assert facts["stream"] is facts["awaited"] is facts["geometry_differs"] is None
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in hits.server.collect()
            for sample in metric.samples
        }
        for fate in ("sent", "dropped", "filtered", "undecodable", "unserved"):
            assert samples["cxls_index_hits_total", fate] == 0
        for request in ("next", "unknown", "malformed"):
            assert samples["cxls_index_requests_total", request] == 0
