"""Exit codes and what is said with them; signals go to child processes."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analyzer.sinks import open_results
from tests.analyzer.builders import frames_of_a_run, write_series
from tests.cxls.programs import CXLS, LOOPBACK, Child, cxls, environment, records, refusal, wait_for


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_files_are_analysed_with_exit_code_0(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    done = cxls("analyze", master, "--results", results, "--bundle", bundle_folder)
    assert done.returncode == 0, done.stderr
    assert "12 frames analysed" in done.stdout
    assert "received 12 = processed 12 + dropped 0 + undecodable 0" in done.stdout
    assert len(records(results)) == 12
    assert "listening" not in done.stderr, "files serve nothing unless asked to"


# --- bad usage --------------------------------------------------------------------------


def test_an_unknown_option_is_named() -> None:
    assert "--hit-rulez" in refusal("analyze", "x.h5", "--hit-rulez", "network")


def test_an_unknown_command_is_named() -> None:
    assert "analyse" in refusal("analyse", "x.h5")


def test_a_source_is_needed() -> None:
    assert "SOURCE" in refusal("analyze")


def test_a_bad_value_names_its_option() -> None:
    assert "--min-peaks" in refusal("analyze", "x.h5", "--min-peaks", "0")


def test_an_unknown_name_in_the_environment_is_refused() -> None:
    assert "CXLS_HIT_RULEZ" in refusal("config", "check", CXLS_HIT_RULEZ="x")


def test_good_settings_are_said_to_be_good() -> None:
    done = cxls("config", "check", CXLS_TEST_REQUIRE="x", CXLS_MIN_PEAKS="6")
    assert (done.returncode, done.stdout) == (0, "settings are good\n")


def test_where_a_setting_came_from_is_shown(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("batch = 4")
    shown = cxls("config", "show", "--config", tmp_path / "c.toml", CXLS_MIN_PEAKS="6").stdout
    lines = {line.split()[0]: line for line in shown.splitlines() if " = " in line}
    assert "environment" in lines["min_peaks"]
    assert "c.toml" in lines["batch"]
    assert "default" in lines["hit_rule"]


def test_the_difference_channel_is_refused() -> None:
    assert "difference" in refusal("analyze", "x.h5", "--channel", "difference")


def test_addresses_and_files_do_not_mix() -> None:
    assert "not both" in refusal("analyze", "tcp://127.0.0.1:1", "x.h5")


# --- bad input --------------------------------------------------------------------------


def test_a_missing_file_is_named(bundle_folder: Path) -> None:
    assert "nowhere.h5: no such file" in refusal("analyze", "nowhere.h5", "--bundle", bundle_folder)


def test_a_text_file_is_no_hdf5(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.h5").write_text("a text")
    assert "not an HDF5 file" in refusal("analyze", tmp_path / "notes.h5", "--bundle", bundle_folder)


def test_a_glob_without_a_match_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    assert "no file matches" in refusal("analyze", tmp_path / "*_master.h5", "--bundle", bundle_folder)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://",
        "tcp://host",
        "udp://127.0.0.1:5",
        "tcp://127.0.0.1:99999999",
    ],
)
def test_an_address_that_is_none_is_refused(bundle_folder: Path, address: str) -> None:
    assert address in refusal("analyze", address, "--bundle", bundle_folder)


def test_a_master_whose_data_file_is_gone_analyses_the_rest_and_says_so(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(3))
    (tmp_path / "run_data_000001.h5").unlink()
    line = refusal("analyze", master, "--bundle", bundle_folder)
    assert "run_data_000001.h5" in line


def test_a_bundle_with_a_wrong_hash_is_refused(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    (spoilt / "hit.safetensors").write_bytes(b"other weights")
    assert "SHA-256" in refusal("analyze", master, "--bundle", spoilt)


def test_an_existing_results_file_is_refused_and_left_alone(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    results.write_text("precious\n")
    assert "--append" in refusal("analyze", master, "--results", results, "--bundle", bundle_folder)
    assert results.read_text() == "precious\n"


@pytest.mark.parametrize("name", ["no/folder/r.jsonl", "r.csv"])
def test_results_that_cannot_be_written_are_refused(
    master: Path, bundle_folder: Path, tmp_path: Path, name: str
) -> None:
    assert name in refusal("analyze", master, "--results", tmp_path / name, "--bundle", bundle_folder)


def test_a_full_disk_is_a_failure_while_running(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").symlink_to("/dev/full")
    done = cxls("analyze", master, "--results", tmp_path / "r.jsonl", "--overwrite", "--bundle", bundle_folder)
    assert done.returncode == 1
    assert "12 records could not be written" in done.stderr
    assert "12 frames analysed" in done.stdout, "analysis goes on"


def test_a_mask_that_is_none_is_refused(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.npy").write_bytes(b"\x93NUMPY junk")
    assert "--mask" in refusal("analyze", master, "--mask", tmp_path / "m.npy", "--bundle", bundle_folder)


def test_a_port_in_use_for_listening_is_refused(master: Path, bundle_folder: Path, taken: socket.socket) -> None:
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    line = refusal("analyze", master, "--listen", address, "--bundle", bundle_folder)
    assert "--listen" in line
    assert address in line


@pytest.mark.parametrize("address", ["8080", "127.0.0.1:http", "127.0.0.1:99999", ":8080"])
def test_a_listening_address_that_is_none_is_refused(master: Path, bundle_folder: Path, address: str) -> None:
    assert "--listen" in refusal("analyze", master, "--listen", address, "--bundle", bundle_folder)


def test_a_refused_address_leaves_no_results_file_behind(
    master: Path, bundle_folder: Path, tmp_path: Path, taken: socket.socket
) -> None:
    address, results = f"127.0.0.1:{taken.getsockname()[1]}", tmp_path / "r.jsonl"
    refusal("analyze", master, "--listen", address, "--results", results, "--bundle", bundle_folder)
    assert not results.exists(), "else the same command, put right, is refused for the file it left"


def test_a_port_in_use_for_the_replay_is_refused(master: Path, taken: socket.socket) -> None:
    address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    assert "in use" in refusal("replay", master, "--bind", address)


def test_a_replay_of_nothing_is_refused() -> None:
    assert "no such file" in refusal("replay", "nowhere.h5", "--bind", LOOPBACK)


def test_results_that_another_analysis_writes_are_refused(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    first = open_results(results)
    said = refusal("analyze", master, "--results", results, "--bundle", bundle_folder, "--append")
    assert said == f"cxls: {results}: another analysis writes to it; end that one, or give other results"
    first.close()
    assert cxls("analyze", master, "--results", results, "--bundle", bundle_folder, "--append").returncode == 0


# --- signals ----------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_live_analysis_with_everything_received_written(
    master: Path, bundle_folder: Path, tmp_path: Path, number: int, code: int
) -> None:
    results = tmp_path / "r.jsonl"
    with (
        Child("replay", master, "--bind", LOOPBACK, "--rate", "200") as replay,
        Child(
            "analyze", replay.listening("replay"), "--results", results, "--bundle", bundle_folder,
            "--listen", "127.0.0.1:0",
        ) as analysis,
    ):  # fmt: skip
        assert replay.end() == 0
        wait_for(lambda: results.exists() and len(records(results)) == 12)
        assert analysis.end(number) == code
        assert "Traceback" not in "".join(analysis.errors)
    assert sorted(record["image_id"] for record in records(results)) == list(range(12))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_twice_at_once_costs_neither_records_nor_the_summary(
    master: Path, bundle_folder: Path, tmp_path: Path, number: int
) -> None:
    results = tmp_path / "r.parquet"
    with (
        Child("replay", master, "--bind", LOOPBACK, "--rate", "200") as replay,
        Child(
            "analyze", replay.listening("replay"), "--results", results, "--bundle", bundle_folder,
            "--products", tmp_path / "products", "--listen", "127.0.0.1:0",
        ) as analysis,
    ):  # fmt: skip
        assert replay.end() == 0
        wait_for(lambda: "series 1 over" in "".join(analysis.errors))
        analysis.process.send_signal(number)
        time.sleep(0.05)
        # As the interpreter ends it answers no more; all is written then.
        assert analysis.end(number) in (128 + number, -number)
        assert analysis.process.stdout is not None
        assert "received 12 = processed 12" in analysis.process.stdout.read()
    assert sorted(pq.read_table(results)["image_id"].to_pylist()) == list(range(12))


STUCK = """
import threading, time
from cxls.cli import stop_on_signals
stop = threading.Event()
stop_on_signals(stop)
print("ready", flush=True)
stop.wait()
print("stops", flush=True)
time.sleep(60)
"""


def test_a_signal_some_time_after_the_first_ends_a_program_that_does_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "stops\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            time.sleep(1.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == -signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_replay_without_a_consumer(master: Path, number: int, code: int) -> None:
    with Child("replay", master, "--bind", LOOPBACK) as replay:
        replay.listening("replay")
        assert replay.end(number) == code
        assert "Traceback" not in "".join(replay.errors)


def test_a_signal_ends_an_offline_analysis_and_append_completes_it(bundle_folder: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(800, (200, 220)))
    results = tmp_path / "r.jsonl"
    with Child("analyze", master, "--results", results, "--bundle", bundle_folder, "--batch", "1") as analysis:
        wait_for(lambda: (results.exists() and results.stat().st_size > 0) or analysis.process.poll() is not None)
        code = analysis.end(signal.SIGINT)
    found = records(results)
    assert code in (0, 130), "0 where all was analysed before the signal came"
    assert len(found) > 0
    done = cxls("analyze", master, "--results", results, "--bundle", bundle_folder, "--append")
    assert done.returncode == 0
    assert sorted(record["image_id"] for record in records(results)) == list(range(800))


def test_the_program_is_installed_and_says_its_version() -> None:
    done = subprocess.run([*CXLS, "--version"], capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 0
    assert done.stdout.startswith("cxls, version ")


# --- models -----------------------------------------------------------------------------


def test_a_bundle_shows_its_card(bundle_folder: Path) -> None:
    done = cxls("models", "show", bundle_folder)
    assert done.returncode == 0, done.stderr
    assert '"hit-zones-and-cells"' in done.stdout


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "bundle.json" in refusal("models", "show", tmp_path)


def test_an_interrupted_simulation_leaves_nothing_behind_and_says_so_in_its_exit_code(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "cxls", "simulate", str(tmp_path / "long"), "--frames", "100000", "--flux", "3e6"]
    process = subprocess.Popen(
        program, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not list(tmp_path.iterdir())
