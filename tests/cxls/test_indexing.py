"""cxls analyze hands hits to an indexer and takes its results back; records are published beside it."""

import http.client
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from tests.analyzer import crystfel_reader as reader
from tests.analyzer.builders import SHAPE, frames_of_a_run, write_bundle, write_series
from tests.cxls.indexamajig import Indexamajig, panel_geometry, peaks_of
from tests.cxls.programs import LOOPBACK, Analysis, Child, Sender, refusal, replaying, wait_for
from tests.support import require

FRAMES = 24


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series in which every second image has eight bright spots."""
    return write_series(tmp_path_factory.mktemp("bright"), frames_of_a_run(FRAMES))


def by_peaks(sources: list[Any], bundle: Path, results: Path, **settings: Any) -> Analysis:
    """An analysis where peaks make a hit, so that the bundle's random weights do not matter."""
    given: dict[str, Any] = {"hit_rule": "peaks", "min_peaks": 5, "index_listen": LOOPBACK}
    return Analysis(sources, bundle, results, **(given | settings))


def indexing_of(analysis: Analysis) -> Any:
    (output,) = analysis.session.front.hit_outputs
    return output


def get(address: str, path: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_hits_go_to_an_indexer_and_its_stream_comes_back(bright: Path, bundle_folder: Path, tmp_path: Path) -> None:
    stream, geometry = tmp_path / "out.stream", tmp_path / "live.geom"
    with replaying(bright) as (endpoint, _):
        analysis = by_peaks(
            [endpoint], bundle_folder, tmp_path / "r.jsonl", index_stream=stream, index_geometry=geometry
        )
        server = indexing_of(analysis)
        with Indexamajig(server.router.address, stream, decides=lambda peaks: int(len(peaks) == 8)) as indexer:
            analysis.start()
            wait_for(lambda: server.outcomes.counts["indexed"] + server.outcomes.counts["not_indexed"] == FRAMES // 2)
            status = json.loads(get(analysis.session.web.address, "/status"))["indexing"]  # type: ignore[union-attr]
            metrics = get(analysis.session.web.address, "/metrics")  # type: ignore[union-attr]
            analysis.stop()
    analysis.assert_closes()
    hits = {record["image_id"]: record for record in analysis.records if record["hit"]}
    assert set(hits) == set(range(1, FRAMES, 2))
    assert not indexer.errors

    # Every hit once, its peaks where the record has them and half a pixel on.
    sent = peaks_of(indexer.messages)
    assert len(indexer.messages) == len(sent) == len(hits)
    for image_id, peaks in sent.items():
        recorded = [(peak["fs"] + 0.5, peak["ss"] + 0.5, peak["intensity_photons"]) for peak in hits[image_id]["peaks"]]
        assert np.allclose(peaks, recorded, rtol=0, atol=1e-4)

    whole = sum(len(peaks) == 8 for peaks in sent.values())
    assert status["outcomes"] == {
        "indexed": whole, "not_indexed": len(hits) - whole, "repeated": 0, "unknown": 0, "no_event_id": 0,
    }  # fmt: skip
    assert status["cell"]["median"] == {"a": 79.0, "b": 79.0, "c": 38.0, "alpha": 90.0, "beta": 90.0, "gamma": 90.0}
    assert len(status["cells"]) == whole
    assert status["hits"]["sent"] == len(hits)
    assert f'cxls_index_hits_total{{fate="sent"}} {len(hits)}.0' in metrics
    assert f'cxls_index_results_total{{outcome="indexed"}} {whole}.0' in metrics

    (panel,) = panel_geometry(geometry).panels
    assert (panel.max_ss + 1, panel.max_fs + 1) == SHAPE
    assert (panel.corner_x, panel.corner_y) == (-37.5, -30.5)


def test_images_go_along_when_asked(bright: Path, bundle_folder: Path, tmp_path: Path) -> None:
    analysis = by_peaks([bright], bundle_folder, tmp_path / "r.jsonl", index_images=True)
    with Indexamajig(indexing_of(analysis).router.address, tmp_path / "out.stream") as indexer:
        analysis.start().join()
    pixels = frames_of_a_run(FRAMES)
    assert len(indexer.messages) == FRAMES // 2
    for message in indexer.messages:
        number = reader.header(message, "frame_id", reader.Reading())
        assert isinstance(number, int)
        seen, bad = reader.image(message, reader.Reading(), SHAPE)
        assert seen is not None
        assert not bad.any()
        assert np.array_equal(seen, pixels[number])


def test_records_are_the_same_with_and_without_an_indexer(bright: Path, bundle_folder: Path, tmp_path: Path) -> None:
    plain = by_peaks([bright], bundle_folder, tmp_path / "plain.jsonl", index_listen=None).start().join()
    served = by_peaks([bright], bundle_folder, tmp_path / "served.jsonl", index_images=True, broadcast=LOOPBACK)
    served.start().join()

    def told(analysis: Analysis) -> list[dict[str, Any]]:
        found = sorted(analysis.records, key=lambda record: record["image_id"])
        return [{k: v for k, v in record.items() if k not in ("received_at", "latency_s")} for record in found]

    assert told(plain) == told(served)
    # Nobody asked: every hit is accounted for all the same.
    fates = indexing_of(served).fates
    assert fates["unserved"] == sum(fates.values()) == FRAMES // 2


def test_every_record_is_published(bright: Path, bundle_folder: Path, tmp_path: Path) -> None:
    with replaying(bright) as (endpoint, _):
        analysis = by_peaks(
            [endpoint], bundle_folder, tmp_path / "r.jsonl", index_listen=None, broadcast=LOOPBACK, series=1
        )
        (publisher,) = [sink for sink in analysis.session.front.sinks if getattr(sink, "name", "") == "broadcast"]
        context: zmq.Context[Any] = zmq.Context()
        subscriber = context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"cxls/1/")
        subscriber.setsockopt(zmq.RCVTIMEO, 10_000)
        subscriber.connect(publisher.address)  # type: ignore[attr-defined]
        threading.Event().wait(0.3)
        analysis.start().join()
        messages = [msgspec.msgpack.decode(subscriber.recv_multipart()[1]) for _ in range(FRAMES)]
        subscriber.close()
        context.term()
    assert [message["sequence"] for message in messages] == list(range(FRAMES))
    assert [message["record"] for message in messages] == analysis.records
    assert all(message["streamvis"]["beam_energy"] == 7000.0 for message in messages)


def test_the_program_says_where_and_its_metrics_pass_promtool(
    bright: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle, stream = write_bundle(tmp_path_factory.mktemp("bundle")), tmp_path / "out.stream"
    with (
        replaying(bright) as (endpoint, _),
        Child(
            "analyze", endpoint, "--bundle", bundle, "--hit-rule", "peaks", "--listen", "127.0.0.1:0",
            "--index-listen", LOOPBACK, "--index-stream", stream, "--broadcast", "tcp://127.0.0.1:*",
        ) as child,
    ):  # fmt: skip
        where = child.listening("indexing")
        assert child.listening("broadcast").startswith("tcp://127.0.0.1:")
        http_address = child.listening("http")
        with Indexamajig(where, stream):
            wait_for(lambda: 'outcome="indexed"} 12.0' in get(http_address, "/metrics"), 60)
            metrics = get(http_address, "/metrics")
            status = json.loads(get(http_address, "/status"))
        assert child.end(2) == 130, "".join(child.errors)
    assert status["broadcast"]["sent"] == FRAMES
    assert status["indexing"]["indexed_ratio"]["all"] == 1.0
    assert 'cxls_indexed_ratio{window="100"} 1.0' in metrics
    assert "hits for indexing: sent 12" in "".join(child.errors)
    assert child.process.stdout is not None
    assert child.process.stdout.read().splitlines()[-1].startswith("hits for indexing: sent 12")
    require("promtool")
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# --- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--index-listen", "--broadcast"])
def test_an_address_in_use_is_refused_in_one_line(bright: Path, option: str) -> None:
    with Sender() as taken:
        line = refusal("analyze", bright, option, taken.endpoint)
    assert line.startswith(f"cxls: {option} '{taken.endpoint}': Address already in use; ")


@pytest.mark.parametrize("option", ["--index-listen", "--broadcast"])
@pytest.mark.parametrize("address", ["127.0.0.1:5", "tcp://127.0.0.1:70000", "nonsense", "tcp://*"])
def test_what_is_no_address_is_refused_in_one_line(bright: Path, option: str, address: str) -> None:
    assert f"{option} '{address}': " in refusal("analyze", bright, option, address)


@pytest.mark.parametrize(
    "options", [["--index-images"], ["--index-indexable"], ["--index-stream", "x"], ["--index-geometry", "x"]]
)
def test_options_of_indexing_without_an_address_are_refused(bright: Path, options: list[str]) -> None:
    assert "give --index-listen" in refusal("analyze", bright, *options)


@pytest.mark.parametrize("option", ["--index-stream", "--index-geometry"])
def test_a_file_in_no_folder_is_refused(bright: Path, option: str, tmp_path: Path) -> None:
    line = refusal("analyze", bright, "--index-listen", LOOPBACK, option, tmp_path / "none" / "file")
    assert "no such folder" in line
