"""Benchmarks of a device: what they say without one, and on the kernels built for the CPU."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analyzer.bundle import load_bundle
from analyzer.cascade import Analyser, CascadeSettings
from analyzer.cuda.compiler import source_of
from analyzer.cuda.engine import DevicePrograms, open_programs
from analyzer.cuda.reduce import SOURCES
from analyzer.cuda.signatures import kernels_of
from cxls.bench import gpu, gpu_parts, host_gpu, kernels_gpu
from cxls.bench.report import Report, from_json
from cxls.bench.worker import bench_bundle
from cxls.cli import Failed
from cxls.commands import bench
from cxls.settings import BenchSettings, resolve
from streamer.frames import Frame
from tests.analyzer.builders import frame, image_data, series, water, with_spots
from tests.analyzer.cuda.host_build import HostProgram
from tests.analyzer.cuda.host_reduce import programs
from tests.cxls.programs import cxls


class HostClock:
    """The kernels built for the CPU are done when their launch returns."""

    held = 0

    def hold(self) -> None:
        self.held += 1

    def mark(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        pass

    def ms(self, before: float, after: float) -> float:
        return 1e3 * (after - before)


def some_frames(count: int = 5) -> list[Frame]:
    return [frame(with_spots(water(0.1, seed=n), 80), n, series(1)) for n in range(count)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> DevicePrograms:
    return DevicePrograms(HostProgram("bslz4.cu", tmp_path_factory.mktemp("host")), programs())


def test_every_kernel_of_the_way_is_timed_once_a_round(host: DevicePrograms) -> None:
    clock = HostClock()
    found = kernels_gpu.by_kernel(some_frames(), host, clock, rounds=3)
    of_reduction = {name for source in SOURCES for name in kernels_of(source_of(source))}
    assert set(found) == {kernels_gpu.COPY, "bslz4_u16"} | of_reduction
    assert list(found)[:2] == [kernels_gpu.COPY, "bslz4_u16"]
    assert {len(each) for each in found.values()} == {3}
    assert min(min(each) for each in found.values()) > 0.0
    assert clock.held == 4, "the first round does not count"


def test_rows_of_kernels_agree_with_each_other() -> None:
    found = {
        "copy to the device": [3.0, 4.0],
        "bslz4_u16": [50.0, 40.0],
        "reduce_a": [1.0, 2.0],
        "reduce_b": [5.0, 3.0],
    }
    rows = {row.name: (row.value, row.median, row.unit) for row in kernels_gpu.figures("usual", found, "a device")}
    assert rows["GPU, usual: bslz4_u16"] == (40.0, 45.0, "us a frame")
    assert rows["GPU, usual: decode kernel alone"] == (25000.0, 22500.0, "frames/s")
    assert rows["GPU, usual: all kernels of the reduction"] == (5.0, 5.5, "us a frame")


def test_frames_that_do_not_decode_are_no_benchmark(host: DevicePrograms) -> None:
    image = image_data(water(3.0))
    damaged = bytearray(image.data)
    damaged[20:28] = b"\xff" * 8
    bad = frame(replace(image, data=bytes(damaged)))
    with pytest.raises(RuntimeError, match="does not decode"):
        kernels_gpu.by_kernel([bad], host, HostClock(), rounds=1)


def test_the_hosts_share_counts_all_threads_and_all_frames() -> None:
    bundle = load_bundle(bench_bundle())
    workers = [Analyser(bundle, CascadeSettings()) for _ in range(2)]
    cpu, rate = host_gpu.host_cpu(workers, some_frames(), 2, 2)
    assert cpu.value is not None
    assert rate.value is not None
    # Two threads have no more than two processors.
    assert 0.0 < cpu.value * rate.value / 1e3 <= 2.2
    assert cpu.note == "2 workers, batches of 32"


def test_without_a_device_the_rows_say_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    rows = [*kernels_gpu.measure({"usual": some_frames()}), *host_gpu.measure(some_frames(), bench_bundle())]
    assert len(rows) == 4
    assert {(row.value, row.note) for row in rows} == {(None, "not measured on a GPU")}


@pytest.mark.gpu
def test_a_device_is_timed() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = kernels_gpu.by_kernel(some_frames(), open_programs("cuda", None), kernels_gpu.DeviceClock(), rounds=2)
    assert min(np.ravel(list(found.values()))) > 0.0
    rows = host_gpu.measure(some_frames(), bench_bundle())
    assert all(row.value is not None and row.value > 0.0 for row in rows)


# --- all of it in one command ----------------------------------------------------------------

LEAVE = """
import json, sys
figure = {"name": sys.argv[2], "unit": "ms", "value": 1.0}
json.dump({"benchmark": "x", "machine": {}, "title": "x", "figures": [figure]}, open(sys.argv[1], "w"))
"""


def part(folder: Path, name: str, code: str = LEAVE) -> gpu.Part:
    return gpu.Part(name, [sys.executable, "-c", code, str(folder / f"{name}.json"), f"row of {name}"])


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


def test_parts_are_done_once_and_those_that_failed_again(tmp_path: Path) -> None:
    parts = [part(tmp_path, "one"), part(tmp_path, "two", "raise SystemExit(3)"), part(tmp_path, "three")]
    report = gpu.qualify("a device", parts, tmp_path, soon())
    assert [figure.name for figure in report.figures] == ["row of one", "row of three"]
    assert report.title == "gpu: a device, 2 of 3 parts done and in order"
    assert report.failed.startswith(f"two: ended with exit code 3, see {tmp_path / 'two.log'}")
    never = "raise SystemExit('done again')"
    parts = [part(tmp_path, "one", never), part(tmp_path, "two"), part(tmp_path, "three", never)]
    report = gpu.qualify("a device", parts, tmp_path, soon())
    assert [figure.name for figure in report.figures] == ["row of one", "row of two", "row of three"]
    assert report.failed == ""
    assert "row of two" in (tmp_path / gpu.TABLE).read_text()


def test_a_part_that_hangs_is_ended_with_all_it_started_and_the_next_has_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_FEWEST_S", 0.5)
    sleeping = tmp_path / "sleeping"
    hang = (
        "import subprocess; p = subprocess.Popen(['sleep', '600']); "
        f"open({str(sleeping)!r}, 'w').write(str(p.pid)); p.wait()"
    )
    began = time.monotonic()
    report = gpu.qualify("a device", [part(tmp_path, "hangs", hang), part(tmp_path, "good")], tmp_path, soon(6.0))
    assert time.monotonic() - began < 6.0
    assert [figure.name for figure in report.figures] == ["row of good"]
    assert report.failed.startswith("hangs: not done within 3 s")
    state = Path(f"/proc/{sleeping.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    report = gpu.qualify("a device", [part(tmp_path, "one")], tmp_path, soon(0.0))
    assert report.failed.startswith("one: no time left")
    assert not (tmp_path / "one.log").exists()


def sources(folder: Path, body: str) -> Path:
    (folder / "tests" / "deep").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a device\n")
    (folder / "tests" / "deep" / "test_some.py").write_text(f"import pytest\n\n{body}")
    (folder / "tests" / "test_other.py").write_text("def test_that_needs_none():\n    pass\n")
    return folder


GOOD = "@pytest.mark.gpu\n@pytest.mark.parametrize('n', [1, 2])\ndef test_a(n):\n    pass\n"


def test_the_tests_that_need_a_device_are_found_and_counted_by_file(tmp_path: Path) -> None:
    root = sources(tmp_path / "sources", GOOD)
    files, without = gpu.test_files(root, tmp_path, 60.0)
    assert (files, without) == (["tests/deep/test_some.py"], [])
    report = gpu.qualify("a device", [gpu.of_tests(root, file, tmp_path) for file in files], tmp_path, soon())
    (row,) = report.figures
    assert (row.name, row.value, row.note) == ("tests-deep-test_some", 2.0, "of 2, 0 failed, 0 skipped")
    assert report.failed == ""
    # Listed once.
    assert gpu.test_files(tmp_path / "gone", tmp_path, 60.0) == (files, [])


@pytest.mark.parametrize(
    "more",
    ["@pytest.mark.gpu\ndef test_b():\n    assert False\n", "@pytest.mark.gpu\ndef test_b(missing):\n    pass\n"],
)
def test_a_test_that_fails_fails_the_command(tmp_path: Path, more: str) -> None:
    root = sources(tmp_path / "sources", GOOD + more)
    tests = gpu.of_tests(root, "tests/deep/test_some.py", tmp_path)
    report = gpu.qualify("a device", [tests], tmp_path, soon())
    assert report.figures[0].value == 2.0
    assert "1 failed, exit code 1" in report.failed


def test_tests_that_all_skip_are_not_in_order(tmp_path: Path) -> None:
    skips = "@pytest.mark.gpu\ndef test_a():\n    pytest.skip('no device')\n"
    tests = gpu.of_tests(sources(tmp_path / "sources", skips), "tests/deep/test_some.py", tmp_path)
    assert gpu.qualify("a device", [tests], tmp_path, soon()).failed


def test_where_there_are_no_tests_it_says_so_and_measures(tmp_path: Path) -> None:
    files, without = gpu.test_files(tmp_path / "nothing", tmp_path, 60.0)
    report = gpu.qualify("a device", [part(tmp_path, "one")], tmp_path, soon(), without)
    assert files == []
    assert report.failed.startswith("tests: not here, they come with the sources")
    assert len(report.figures) == 1


def test_every_row_of_a_device_is_a_part() -> None:
    assert set(gpu_parts.PARTS) == {*gpu.FIRST, *gpu.LAST}


def test_the_command_without_a_device_says_of_each_part_that_it_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    done = cxls("bench", "gpu")
    assert done.returncode == 0, done.stderr
    _, report, _ = from_json((tmp_path / "runs" / "bench-gpu.json").read_bytes())
    assert {row.note for row in report.figures} == {"not measured on a GPU"}
    assert len(report.figures) == 1 + len(gpu_parts.PARTS)
    assert not (tmp_path / "runs" / "gpu").exists()


def test_a_benchmark_that_found_a_fault_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "run", lambda settings: Report("gpu", [], failed="two tests failed"))
    with pytest.raises(Failed, match="two tests failed"):
        bench.run(resolve(BenchSettings, {}, None), "gpu")
    assert (tmp_path / "runs" / "bench-gpu.json").exists()


@pytest.mark.gpu
def test_a_part_leaves_its_rows(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = BenchSettings(frames=4, parts=tmp_path)
    report = gpu.qualify("a device", [gpu._of_rows("limits", settings)], tmp_path, soon(240.0))
    assert report.failed == ""
    assert all(row.value is not None for row in report.figures)
