"""``POST /control/…`` and ``cxls models use``: who may, what is refused, and that no frame is lost."""

import csv
import http.client
import http.server
import io
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response

from analyzer.bundle import DEFAULT_BUNDLE, load_bundle
from analyzer.control import ACTIONS
from analyzer.peak_parameters import FINDERS, RANGES
from analyzer.web.reports import ReportEndpoints
from cxls.settings import FinderName
from tests.analyzer.builders import SHAPE, frames_of_a_run, write_bundle, write_series
from tests.analyzer.test_control import HOW, damaged, renamed
from tests.cxls.programs import TOKEN, Analysis, Child, Sender, cxls, records, refusal, wait_for
from tests.cxls.test_live import Wire


def fetched(address: str, path: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


class Controlled:
    """A live analysis that can be controlled, with a sender of its own."""

    def __init__(self, sender: Sender, analysis: Analysis) -> None:
        self.sender, self.analysis = sender, analysis
        assert analysis.session.web is not None
        self.address = analysis.session.web.address

    def ask(
        self, action: str, body: bytes | dict[str, Any] = b"{}", token: str | None = TOKEN, **headers: str
    ) -> tuple[int, str]:
        """Status and body of a POST."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            connection.request("POST", f"/control/{action}", content, given | headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> str:
        return fetched(self.address, path)

    def fetch(self, path: str) -> tuple[str, str]:
        """Media type and body of a GET that is answered with 200."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return answer.headers["content-type"], answer.read().decode()

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/status"))
        return found

    def count(self, action: str, outcome: str) -> float:
        found = re.search(
            rf'^cxls_control_actions_total{{action="{action}",outcome="{outcome}"}} (\S+)$', self.get("/metrics"), re.M
        )
        assert found, "every child is there from the start"
        return float(found[1])

    def analyse(self, images: int, series_id: int = 1) -> None:
        before = len(self.analysis.session.front.reports)
        for message in Wire("v2").series(images, series_id):
            self.sender.send(*message)
        wait_for(lambda: len(self.analysis.session.front.reports) > before)


@pytest.fixture(scope="module")
def shared_live(
    bundle_folder: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controlled]:
    results = tmp_path_factory.mktemp("control") / "r.jsonl"
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, results, control_token=token_file).start()
        yield Controlled(sender, analysis)
        analysis.stop()


@pytest.fixture
def live(shared_live: Controlled, bundle_folder: Path) -> Controlled:
    """With the bundle, threshold and mask it began with."""
    facts = shared_live.status
    if facts["mask"] is not None:
        shared_live.ask("mask", {"path": None})
    if facts["threshold"] != 0.5:
        shared_live.ask("threshold", {"value": None})
    if not facts["bundle"].startswith("random-"):
        shared_live.ask("bundle", {"path": str(bundle_folder)})
    facts = shared_live.status
    assert (facts["mask"], facts["threshold"], facts["bundle"][:7]) == (None, 0.5, "random-")
    return shared_live


# --- who may ----------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_without_the_token_nothing_is_changed(live: Controlled, second: Path, action: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "bundle": {"path": str(second)}, "threshold": {"value": 0.1}, "mask": {"path": None}, "reset": {},
        "peaks": {"min_peaks": 50}, "channel": {"name": "threshold_1"}, "run": {"sample": "x"}, "target": {"hits": 1},
    }  # fmt: skip
    body = bodies[action]
    before, counted = live.status, live.count(action, "unauthorised")
    tokens = (None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "Ã¼", "x" * 5000)
    for token in tokens:
        code, text = live.ask(action, body, token)
        assert code == 401
        assert text.count("\n") == 1
        assert TOKEN not in text
    after = live.status
    for key in ("bundle", "threshold", "mask", "controls", "run", "changes", "targets"):
        assert after[key] == before[key]
    assert live.count(action, "unauthorised") == counted + len(tokens)


def test_the_scheme_is_bearer_and_its_case_is_free(live: Controlled) -> None:
    assert live.ask("reset", token=None, Authorization=f"Basic {TOKEN}")[0] == 401
    assert live.ask("reset", token=None, Authorization=TOKEN)[0] == 401
    assert live.ask("reset", token=None, Authorization=f"bearer {TOKEN}")[0] == 200


def test_tokens_are_not_logged(live: Controlled, caplog: pytest.LogCaptureFixture) -> None:
    live.ask("reset", token="a-wrong-token-from-somewhere")
    live.ask("reset")
    live.ask("bundle", {"path": "/nowhere"})
    assert "a-wrong-token-from-somewhere" not in caplog.text
    assert TOKEN not in caplog.text
    assert "/nowhere" in caplog.text, "what was refused is"


def test_strangers_cannot_fill_the_log(live: Controlled, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        assert live.ask("reset", token="wrong")[0] == 401
    assert caplog.text.count("refused (401)") <= 1


def test_without_a_token_file_there_is_no_control(bundle_folder: Path, tmp_path: Path) -> None:
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl").start()
        live = Controlled(sender, analysis)
        for token in (None, "", TOKEN, "None"):
            code, text = live.ask("reset", token=token)
            assert code == 403
            assert "--control-token" in text
        assert live.status["control"] is False
        analysis.stop()


def test_a_token_file_that_others_can_read_is_refused(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    said = refusal(
        "analyze", master, "--bundle", bundle_folder, "--listen", "127.0.0.1:0", "--control-token", token
    )  # fmt: skip
    assert "chmod 600" in said
    assert TOKEN not in said


def test_a_token_where_nothing_is_served_is_refused(master: Path, bundle_folder: Path, token_file: Path) -> None:
    assert "--listen" in refusal("analyze", master, "--bundle", bundle_folder, "--control-token", token_file)


def test_only_posts_are_answered(live: Controlled) -> None:
    connection = http.client.HTTPConnection(live.address, timeout=60)
    for method in ("GET", "PUT", "DELETE"):
        connection.request(method, "/control/reset", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 405
    connection.close()
    assert live.ask("nothing")[0] == 404


# --- bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("bundle", b""), ("bundle", b"{}"), ("bundle", b"null"), ("bundle", b'"path"'), ("bundle", b"{"),
        ("bundle", b'{"path": null}'), ("bundle", b'{"path": ""}'), ("bundle", b'{"path": 5}'),
        ("bundle", b'{"path": "a\\u0000b"}'), ("bundle", b'{"path": "a\\nb"}'), ("bundle", b'{"path": "\\ud800"}'),
        ("bundle", b'{"path": "x", "also": 1}'), ("bundle", b"\xff\xfe"), ("bundle", b"[" * 60_000),
        ("bundle", b'{"path": "' + b"x" * 5000 + b'"}'),
        ("threshold", b"{}"), ("threshold", b'{"value": "0.5"}'), ("threshold", b'{"value": 1.01}'),
        ("threshold", b'{"value": -0.01}'), ("threshold", b'{"value": NaN}'), ("threshold", b'{"value": 1e999}'),
        ("threshold", b'{"value": true}'), ("threshold", b'{"value": [0.5]}'),
        ("mask", b"{}"), ("mask", b'{"path": 1}'), ("mask", b'{"path": ""}'),
        ("reset", b"[]"), ("reset", b'{"all": true}'),
        ("peaks", b""), ("peaks", b"[]"), ("peaks", b"null"), ("peaks", b'{"min_peaks": NaN}'),
        ("peaks", b"{" * 60_000),
        ("peaks", b'{"min_peaks": 1e999}'), ("peaks", b'{"\xff": 1}'),
        ("peaks", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        ("channel", b"{}"), ("channel", b'{"name": ""}'), ("channel", b'{"name": 1}'),
        ("channel", b'{"name": "' + b"x" * 300 + b'"}'),
        ("run", b"[]"), ("run", b'{"number": -1}'), ("run", b'{"number": 1.5}'), ("run", b'{"number": "1"}'),
        ("run", b'{"number": ' + b"9" * 4000 + b"}"), ("run", b'{"sample": null}'), ("run", b'{"notes": ["a"]}'),
        ("run", b'{"new": "yes"}'), ("run", b'{"new": 1}'), ("run", b'{"began_at": 5}'),
        ("run", b'{"sample": "\\ud800"}'),
        ("run", b'{"sample": "\xc3"}'),
        ("target", b"{}"), ("target", b'{"hits": 0}'), ("target", b'{"hits": 1e12}'), ("target", b'{"hits": true}'),
        ("target", b'{"misses": 5}'),
    ],
)  # fmt: skip
def test_a_body_that_is_not_what_is_wanted_is_400_in_one_line(live: Controlled, action: str, body: bytes) -> None:
    before = live.status
    code, text = live.ask(action, body)
    assert code == 400, text
    assert text.count("\n") == 1
    assert len(text) < 1000
    after = live.status
    for key in ("threshold", "controls", "run", "changes"):
        assert after[key] == before[key]


@pytest.mark.parametrize(
    ("action", "body", "said"),
    [
        ("peaks", {"min_peaks": 0}, "min_peaks is 0; give a whole number from 1 to 100000"),
        ("peaks", {"hit_rule": "any"}, "one of network, peaks, either, both"),
        ("peaks", {"indexable_peaks": 3, "pf8_min_snr": 31}, "pf8_min_snr is 31; give a number from 0.01 to 30 or"),
        ("peaks", {"pf8_max_res": 10**300}, "pf8_max_res is too large"),
        ("peaks", {"finder": "learned"}, "no learned peak finder"),
        ("channel", {"name": "difference"}, "all ones"),
        ("run", {"sample": "a\x1b[2Jb"}, "U+001B"),
        ("run", {"sample": "\u202e"}, "U+202E"),
        ("run", {"notes": "a\x00b", "new": True}, "U+0000"),
        ("run", {"sample": "x" * 201}, "200 at most"),
        ("run", {"notes": "x" * 10_001}, "10000 at most"),
        ("target", {"indexed": 5}, "--index-stream"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_422_in_one_line_and_changes_nothing(
    live: Controlled, action: str, body: dict[str, Any], said: str
) -> None:
    before, refused = live.status, live.count(action, "refused")
    code, text = live.ask(action, body)
    assert code == 422, text
    assert said in text
    assert text.count("\n") == 1
    after = live.status
    for key in ("controls", "run", "changes", "targets"):
        assert after[key] == before[key]
    assert live.count(action, "refused") == refused + 1


# --- pages from elsewhere ---------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "file://", "http://", "http://[", "HOST", "http://HOST.evil.example"]
)
def test_a_page_of_another_host_changes_nothing_whatever_it_knows(live: Controlled, origin: str) -> None:
    before, counted = live.status, live.count("run", "unauthorised")
    given = origin.replace("HOST", live.address)
    for kind in ("application/json", "text/plain"):
        code, text = live.ask("run", {"sample": "theirs"}, Origin=given, **{"Content-Type": kind})
        assert code == 403, text
    assert live.status["run"] == before["run"]
    assert live.count("run", "unauthorised") == counted + 2


def test_the_page_itself_may_ask(live: Controlled) -> None:
    for scheme in ("http", "https"):
        headers = {"Origin": f"{scheme}://{live.address.upper()}", "Content-Type": "application/json; charset=utf-8"}
        assert live.ask("reset", {}, **headers)[0] == 200
    assert live.ask("reset", b"", Origin=f"http://{live.address}")[0] == 200, "nothing to say needs no type"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"])
def test_what_a_browser_sends_unasked_is_415_with_a_page_and_well_with_curl(live: Controlled, kind: str) -> None:
    given = {"Content-Type": kind} if kind else {}
    code, text = live.ask("reset", {}, Origin=f"http://{live.address}", **given)
    assert code == 415, text
    assert live.ask("reset", {}, **given)[0] == 200


def test_a_browser_that_asks_beforehand_is_told_nothing(live: Controlled) -> None:
    connection = http.client.HTTPConnection(live.address, timeout=60)
    connection.request("OPTIONS", "/control/reset", headers={
        "Origin": "http://evil.example", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    })  # fmt: skip
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 405
    assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control")]


def test_a_large_body_is_413(live: Controlled) -> None:
    assert live.ask("bundle", b" " * (65 << 10))[0] == 413


def test_a_large_body_of_unknown_length_is_413(live: Controlled) -> None:
    host, _, port = live.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /control/bundle HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        try:
            for _ in range(64):
                connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        except OSError:
            pass  # it has hung up
        assert b" 413 " in connection.recv(100)


def test_a_body_that_does_not_come_is_408_and_holds_up_nobody(
    live: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.web.control.BODY_TIMEOUT_S", 0.3)
    host, _, port = live.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /control/reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n"
            + f"Authorization: Bearer {TOKEN}\r\n\r\n{{".encode()
        )
        # One without a body: that of another might be late, too.
        assert live.ask("reset", b"")[0] == 200
        assert b" 408 " in connection.recv(100)


# --- what is done -----------------------------------------------------------------------


def test_a_bundle_is_swapped_and_everything_names_the_new_one(
    live: Controlled, bundle_folder: Path, second: Path
) -> None:
    done = live.count("bundle", "done")
    old, new = load_bundle(bundle_folder).label, load_bundle(second).label
    code, text = live.ask("bundle", {"path": str(second)})
    assert code == 200
    change = json.loads(text)
    assert (change["action"], change["old"], change["new"], change["drained"]) == ("bundle", old, new, True)
    assert live.status["bundle"] == new
    assert re.search(rf'^cxls_build_info{{.*bundle="{new}".*}} 1\.0$', live.get("/metrics"), re.M)
    assert live.count("bundle", "done") == done + 1
    live.analyse(4, 70)
    wait_for(lambda: len([r for r in live.analysis.records if r["series_id"] == 70]) == 4)
    assert {r["bundle"] for r in live.analysis.records if r["series_id"] == 70} == {new}


@pytest.mark.parametrize("how", HOW)
def test_a_bad_bundle_is_422_in_one_line_and_changes_nothing(
    live: Controlled, bundle_folder: Path, tmp_path: Path, how: str
) -> None:
    before = live.status["bundle"]
    folder = damaged(renamed(bundle_folder, tmp_path / "b", "bad"), how)
    code, text = live.ask("bundle", {"path": str(folder)})
    assert code == 422
    assert text.count("\n") == 1
    assert live.status["bundle"] == before


@pytest.mark.parametrize("path", ["/etc", "/etc/passwd", "/dev/zero", "../../..", "/proc/self", "nothing/here"])
def test_a_path_without_a_bundle_is_422(live: Controlled, path: str) -> None:
    code, text = live.ask("bundle", {"path": path})
    assert code == 422
    assert "root:" not in text


def test_a_threshold_and_the_bundles_own_again(live: Controlled) -> None:
    own = live.status["threshold"]
    assert json.loads(live.ask("threshold", {"value": 0.0})[1])["new"] == 0.0
    assert live.status["threshold"] == 0.0
    live.analyse(3, 71)
    wait_for(lambda: len([r for r in live.analysis.records if r["series_id"] == 71]) == 3)
    assert all(r["hit"] for r in live.analysis.records if r["series_id"] == 71)
    assert json.loads(live.ask("threshold", {"value": None})[1])["new"] == own


def test_a_mask_and_none_again(live: Controlled, tmp_path: Path) -> None:
    live.analyse(2, 72)
    bad = np.zeros(SHAPE, "u1")
    bad[:5] = 1
    np.save(tmp_path / "top.npy", bad)
    assert live.ask("mask", {"path": str(tmp_path / "top.npy")})[0] == 200
    assert live.status["mask"] == "top.npy"
    live.analyse(2, 73)
    wait_for(lambda: len([r for r in live.analysis.records if r["series_id"] == 73]) == 2)
    assert {r["mask"] for r in live.analysis.records if r["series_id"] == 73} == {"none + top.npy"}
    assert live.ask("mask", {"path": None})[0] == 200
    assert live.status["mask"] is None


def test_a_mask_that_does_not_fit_is_422_by_name(live: Controlled, tmp_path: Path) -> None:
    live.analyse(2, 74)
    np.save(tmp_path / "other.npy", np.zeros((10, 10)))
    for path, said in ((tmp_path / "other.npy", "(10, 10)"), (tmp_path / "none.npy", "no such file")):
        code, text = live.ask("mask", {"path": str(path)})
        assert code == 422
        assert path.name in text
        assert said in text
    assert live.status["mask"] is None


def test_a_reset_empties_the_windows_and_leaves_the_account(live: Controlled) -> None:
    live.analyse(5, 75)
    before = live.status
    assert before["hit_ratio"]["100"] is not None
    assert live.ask("reset", b"")[0] == 200
    after = live.status
    assert after["hit_ratio"] == {"100": None, "1000": None}
    assert after["history"] == []
    assert after["account"] == before["account"]
    assert "cxls_hit_ratio{" not in live.get("/metrics")
    live.analyse(5, 76)
    assert len(live.status["history"]) == 5


def test_a_second_change_meanwhile_is_409_and_pages_are_served(live: Controlled, second: Path) -> None:
    control = live.analysis.session.control
    loading, go_on = threading.Event(), threading.Event()
    load, answers = control._load, []

    def slow(folder: Path) -> Any:
        loading.set()
        assert go_on.wait(60)
        return load(folder)

    control._load = slow
    try:
        first = threading.Thread(target=lambda: answers.append(live.ask("bundle", {"path": str(second)})))
        first.start()
        assert loading.wait(30)
        began = time.monotonic()
        assert live.ask("threshold", {"value": 0.3})[0] == 409
        assert live.get("/healthz") == "alive\n"
        assert live.status["bundle"].startswith("random-")
        assert time.monotonic() - began < 30, "of 60 s that it loads"
        go_on.set()
        first.join(60)
    finally:
        control._load = load
        go_on.set()
    assert answers[0][0] == 200
    assert live.count("threshold", "busy") >= 1


# --- peaks, channel, runs, targets ------------------------------------------------------


def test_peak_parameters_and_what_was_before(live: Controlled) -> None:
    before = live.status["controls"]["peaks"]
    assert set(before) == set(RANGES)
    code, text = live.ask("peaks", {"hit_rule": "peaks", "min_peaks": 1, "finder": "peakfinder8", "pf8_threshold": 1})
    assert code == 200, text
    change = json.loads(text)
    assert change["old"] == {key: before[key] for key in ("hit_rule", "min_peaks", "finder", "pf8_threshold")}
    live.analyse(6, 80)
    wait_for(lambda: len([r for r in live.analysis.records if r["series_id"] == 80]) == 6)
    assert {r["hit_rule"] for r in live.analysis.records if r["series_id"] == 80} == {"peaks"}
    assert live.status["peak_finder"] == "peakfinder8"
    assert live.ask("peaks", change["old"])[0] == 200
    assert live.status["controls"]["peaks"] == before
    shown = [each["action"] for each in live.status["changes"]]
    assert shown[-2:] == ["peaks", "peaks"]


def test_a_channel_of_the_series_and_one_that_is_not(live: Controlled) -> None:
    live.analyse(3, 81)
    assert live.status["controls"]["channels"] == ["threshold_1"]
    assert live.ask("channel", {"name": "threshold_1"})[0] == 200
    assert live.status["controls"]["channel"] == "threshold_1"
    code, text = live.ask("channel", {"name": "threshold_7"})
    assert (code, text) == (422, "channel 'threshold_7': the series has 'threshold_1'\n")
    assert live.ask("channel", {"name": None})[0] == 200
    assert live.status["controls"]["channel"] is None


def test_targets_that_hits_count_towards(live: Controlled) -> None:
    assert live.ask("target", {"hits": 1000})[0] == 200
    assert live.status["targets"]["hits"]["target"] == 1000
    assert live.ask("target", {"hits": None})[0] == 200
    assert live.status["targets"]["hits"]["target"] is None


def test_runs_are_named_ended_and_told(live: Controlled) -> None:
    assert live.ask("run", {"number": 20, "sample": "=cmd()", "notes": "<b>one</b>"})[0] == 200
    run = live.status["run"]
    assert (run["number"], run["sample"], run["notes"]) == (20, "=cmd()", "<b>one</b>")
    assert abs(run["began_at"] - time.time()) < 600
    live.analyse(5, 82)
    kind, page = live.fetch("/report")
    assert kind == "text/html; charset=utf-8"
    assert "Run 0020: =cmd()" in page
    assert "<b>one</b>" not in page
    assert "<script" not in page
    code, text = live.ask("run", {"new": True})
    assert code == 200, text
    assert json.loads(text)["new"] == {"number": 21, "sample": "=cmd()", "notes": ""}
    assert live.status["hit_ratio"]["100"] is None
    live.analyse(4, 83)
    kind, table = live.fetch("/runs.csv")
    assert kind == "text/csv; charset=utf-8"
    found = list(csv.DictReader(io.StringIO(table, newline="")))[-2:]
    assert [(row["run_number"], row["sample"], row["series_ids"]) for row in found] == [
        ("20", "'=cmd()", found[0]["series_ids"]), ("21", "'=cmd()", "83"),
    ]  # fmt: skip
    assert found[0]["series_ids"].endswith("82")
    assert found[1]["frames"] == "4"
    assert found[1]["ended_utc"] == ""
    assert live.fetch("/report")[1].count("Run 0021") == 2, "the kept one is of another run"


def test_an_estimate_of_before_is_not_told_of_the_next_run(token_file: Path, tmp_path: Path) -> None:
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], DEFAULT_BUNDLE, tmp_path / "r.jsonl", control_token=token_file).start()
        live = Controlled(sender, analysis)
        live.analyse(12)
        wait_for(lambda: live.status["estimate"] != {})
        assert live.ask("run", {"new": True})[0] == 200
        assert live.status["estimate"] == {}
        live.analyse(12, 2)
        wait_for(lambda: live.status["estimate"] != {})
        assert live.status["estimate"]["frames"] == 12
        analysis.stop()


def test_a_report_is_made_once_for_many(live: Controlled, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def slow(capture: Any, draw: Any) -> bytes:
        made.append(time.monotonic())
        time.sleep(0.3)
        return b"<p>page</p>"

    monkeypatch.setattr("analyzer.web.reports.make_page", slow)
    live.ask("run", {"notes": f"at {time.time()}"})
    asking = [threading.Thread(target=live.fetch, args=("/report",)) for _ in range(8)]
    for thread in asking:
        thread.start()
    assert live.get("/healthz") == "alive\n", "others are served meanwhile"
    for thread in asking:
        thread.join(30)
    assert len(made) == 1


def test_who_asks_for_the_first_report_while_it_is_made_is_told_to_come_again(
    live: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, began = threading.Event(), threading.Event()

    def slow(capture: Any, draw: Any) -> bytes:
        began.set()
        go_on.wait(60)
        return b"made"

    monkeypatch.setattr("analyzer.web.reports.make_page", slow)
    reports = ReportEndpoints(live.analysis.session.control, live.analysis.session.pictures.draw)
    answers: list[Response] = []
    first = threading.Thread(target=lambda: answers.append(reports._report(Request({"type": "http"}))))
    first.start()
    assert began.wait(30)
    other = reports._report(Request({"type": "http"}))
    assert (other.status_code, other.headers["retry-after"]) == (503, "2")
    go_on.set()
    first.join(60)
    assert (answers[0].status_code, answers[0].body) == (200, b"made")
    assert reports._report(Request({"type": "http"})).body == b"made"


def test_a_report_that_fails_is_500_and_the_analysis_goes_on(live: Controlled, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(capture: Any, draw: Any) -> bytes:
        raise RuntimeError("no picture")

    monkeypatch.setattr("analyzer.web.reports.make_page", fails)
    live.ask("run", {"notes": f"at {time.time()}"})
    assert "could not be made" in live.get("/report")
    live.analyse(2, 84)


def test_a_change_of_an_analysis_that_ends_is_503(bundle_folder: Path, token_file: Path, tmp_path: Path) -> None:
    with Sender() as sender:
        analysis = Analysis([sender.endpoint], bundle_folder, tmp_path / "r.jsonl", control_token=token_file).start()
        live = Controlled(sender, analysis)
        analysis.session.front.stopping = True
        assert live.ask("reset")[0] == 503
        for action, body in (
            ("bundle", {"path": str(bundle_folder)}), ("peaks", {"min_peaks": 6}), ("channel", {"name": None}),
            ("run", {"new": True}), ("target", {"hits": 5}),
        ):  # fmt: skip
            assert live.ask(action, body)[0] == 503
        analysis.stop()


def test_changes_that_come_all_at_once_lose_nothing_and_fail_in_no_other_way(live: Controlled) -> None:
    """Done or busy, never anything else, while frames are analysed."""
    asked: list[tuple[str, dict[str, Any]]] = [
        ("threshold", {"value": 0.4}), ("peaks", {"min_peaks": 4}), ("run", {"new": True}), ("reset", {}),
        ("channel", {"name": None}), ("run", {"notes": "x"}), ("target", {"hits": 7}), ("threshold", {"value": None}),
    ]  # fmt: skip
    codes: list[int] = []
    threads = [threading.Thread(target=lambda each=each: codes.append(live.ask(*each)[0])) for each in asked * 3]  # type: ignore[misc]
    before = live.status["account"]
    for thread in threads:
        thread.start()
    live.analyse(40, 85)
    for thread in threads:
        thread.join(60)
    assert len(codes) == len(threads)
    assert set(codes) <= {200, 409}
    assert 200 in codes
    after = live.status["account"]
    assert after["received"] - before["received"] == 40
    assert after["received"] == sum(after["processed"].values())
    live.ask("peaks", {"min_peaks": 5})


# --- cxls control -----------------------------------------------------------------------


def test_the_command_line_and_the_endpoint_know_the_same(live: Controlled) -> None:
    assert get_args(FinderName) == FINDERS
    told = re.sub(r"\s+", " ", cxls("control", "--help").stdout)
    for name in (*RANGES, *ACTIONS[1:]):
        assert name in told


def test_every_change_can_be_made_from_the_command_line(live: Controlled, token_file: Path) -> None:
    live.ask("run", {"number": 30, "sample": ""})
    live.ask("target", {"hits": 40})
    for words, said in (
        (["threshold", "0.25"], "threshold 0.5 \u2192 0.25"),
        (["threshold", "none"], "threshold 0.25 \u2192 0.5"),
        (["peaks", "min_peaks=9", "pf8_max_res=500.5"], "peaks min_peaks 5 \u2192 9, pf8_max_res none \u2192 500.5"),
        (["peaks", "min_peaks=5", "pf8_max_res=none"], "peaks min_peaks 9 \u2192 5, pf8_max_res 500.5 \u2192 none"),
        (["channel", "threshold_1"], "channel first threshold \u2192 threshold_1"),
        (["channel", "none"], "channel threshold_1 \u2192 first threshold"),
        (["mask", "none"], "mask none \u2192 none"),
        (["reset"], "running products begun anew"),
        (["run", "number=31", "sample=a = b"], "run number 30 \u2192 31, sample a = b"),
        (["run", "new", "notes=two words"], "run 0031 ended, run 0032 began"),
        (["target", "hits=50"], "target hits 40 \u2192 50"),
        (["target", "hits=none"], "target hits 50 \u2192 none"),
        (["target", "hits=none"], "target as before"),
    ):
        done = cxls("control", *words, "--at", live.address, "--token", token_file)
        assert (done.returncode, done.stdout) == (0, said + "\n"), done.stderr
    run = live.status["run"]
    assert (run["number"], run["sample"], run["notes"]) == (32, "a = b", "two words")


def test_a_mask_from_the_command_line_has_its_whole_path(
    live: Controlled, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.analyse(2, 86)
    np.save(tmp_path / "here.npy", np.zeros(SHAPE, "u1"))
    monkeypatch.chdir(tmp_path)
    done = cxls("control", "mask", "here.npy", "--at", live.address, "--token", token_file)
    assert (done.returncode, done.stdout) == (0, "mask none \u2192 here.npy\n")
    assert "422" in refusal("control", "mask", "hot-pixels", "--at", live.address, "--token", token_file)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing argument"), (["bundle", "x"], "cxls models use"), (["nothing"], "no action"),
        (["threshold"], "give a probability"), (["threshold", "0.1", "0.2"], "give a probability"),
        (["threshold", "much"], "give a probability"), (["threshold", "nan"], "give a probability"),
        (["threshold", "7"], "400"), (["channel"], "give the name"), (["channel", "nope"], "threshold_1"),
        (["mask"], "give a file"), (["mask", "/nowhere.npy"], "no such file"), (["reset", "all"], "takes no value"),
        (["run"], "say what changes"), (["run", "number=x"], "give a whole number"), (["run", "what=x"], "KEY one of"),
        (["run", "sample"], "KEY=VALUE"), (["run", "sample=a", "sample=b"], "given twice"),
        (["run", "sample=a\nb"], "control character"), (["peaks"], "say what changes"),
        (["peaks", "min_peaks=none"], "min_peaks is None; give a whole number"), (["peaks", "what=1"], "known are"),
        (["target", "hits=many"], "400"), (["target", "hits=" + "9" * 400], "400"),
        (["peaks", "min_peaks=" + "9" * 400], "min_peaks is too large"),
        (["peaks", "pf8_min_snr=1e999"], "pf8_min_snr is '1e999'; give a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_one_line(
    live: Controlled, token_file: Path, words: list[str], said: str
) -> None:
    live.analyse(2, 87)
    before = live.status["changes"]
    assert said in refusal("control", *words, "--at", live.address, "--token", token_file)
    assert live.status["changes"] == before


def test_without_a_token_the_command_line_says_what_is_wanted(live: Controlled) -> None:
    assert "--token" in refusal("control", "reset", "--at", live.address)


# --- reports on the disk ----------------------------------------------------------------


def test_reports_lie_in_their_folder_after_ctrl_c(bundle_folder: Path, token_file: Path, tmp_path: Path) -> None:
    master = write_series(tmp_path, frames_of_a_run(40))
    folder = tmp_path / "reports"
    with Child("replay", master, "--bind", "tcp://127.0.0.1:0", "--rate", 50, "--loop") as replay:
        source = replay.listening("replay")
        with Child(
            "analyze", source, "--bundle", bundle_folder, "--listen", "127.0.0.1:0", "--control-token", token_file,
            "--reports", folder, "--run-number", 5, "--sample-name", "first sample", "--device", "cpu",
        ) as analysis:  # fmt: skip
            address = analysis.listening("http", 120)
            wait_for(lambda: json.loads(fetched(address, "/status"))["account"]["received"] > 60, 60)
            done = cxls("control", "run", "new", "notes=the jet moved", "--at", address, "--token", token_file)
            assert done.returncode == 0, done.stderr
            wait_for(lambda: (folder / "run-0005.html").exists(), 60)
            assert "cxls_reports_unwritten_total 0.0" in fetched(address, "/metrics")
            wait_for(
                lambda: int(list(csv.DictReader(io.StringIO(fetched(address, "/runs.csv"))))[-1]["frames"]) > 30, 60
            )
            assert analysis.end(signal.SIGINT) == 130
            assert analysis.process.stdout is not None
            summary = analysis.process.stdout.read()
    assert sorted(path.name for path in folder.iterdir()) == ["run-0005.html", "run-0006.html", "runs.csv"]
    found = list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text(), newline="")))
    assert [(row["run_number"], row["sample"], row["notes"]) for row in found] == [
        ("5", "first sample", ""), ("6", "first sample", "the jet moved"),
    ]  # fmt: skip
    received = re.search(r"received (\d+) =", summary)
    assert received
    assert sum(int(row["frames"]) for row in found) == int(received[1]), "the runs share out every frame"
    assert "the jet moved" in (folder / "run-0006.html").read_text()


def test_reports_of_files_are_written_when_they_are_over(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    done = cxls(
        "analyze", master, "--bundle", bundle_folder, "--device", "cpu", "--reports", tmp_path / "r", "--run-number", 3
    )
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO((tmp_path / "r" / "runs.csv").read_text(), newline=""))
    assert (row["run_number"], row["frames"], row["series"]) == ("3", "12", "1")
    assert (tmp_path / "r" / "run-0003.html").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--reports", "FILE"], "--reports FILE: File exists; choose a folder"),
        (["--reports", "FOREIGN"], "runs.csv: has other columns"),
        (["--reports", "/proc/nothing"], "choose a folder that can be written"),
        (["--run-number", "-1"], "run-number"), (["--run-number", "1e3"], "run-number"),
        (["--sample-name", "a\x07b"], "--sample-name: sample has a control character"),
        (["--sample-name", "x" * 201], "sample-name"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_or_named_is_refused_at_the_start(
    master: Path, bundle_folder: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "FILE").write_text("x")
    (tmp_path / "FOREIGN").mkdir()
    (tmp_path / "FOREIGN" / "runs.csv").write_text("sample,run\n1,2\n")
    given = [str(tmp_path / option) if option in ("FILE", "FOREIGN") else option for option in options]
    told = refusal("analyze", master, "--bundle", bundle_folder, *given).replace(f"{tmp_path}/", "")
    assert said in told


# --- cxls models use --------------------------------------------------------------------


def test_models_use_swaps_and_says_what_was_and_what_is(
    live: Controlled, bundle_folder: Path, second: Path, token_file: Path
) -> None:
    old, new = load_bundle(bundle_folder).label, load_bundle(second).label
    for at in (live.address, f"http://{live.address}", f"http://{live.address}/"):
        assert live.ask("bundle", {"path": str(bundle_folder)})[0] == 200
        done = cxls("models", "use", os.path.relpath(second), "--at", at, "--token", token_file)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{old} -> {new} in ")
        assert live.status["bundle"] == new


def test_models_use_looks_at_the_bundle_before_it_asks(live: Controlled, token_file: Path, tmp_path: Path) -> None:
    bad = damaged(write_bundle(tmp_path / "b"), "corrupt")
    refused = live.count("bundle", "refused")
    assert "SHA-256" in refusal("models", "use", bad, "--at", live.address, "--token", token_file)
    assert live.count("bundle", "refused") == refused


def test_models_use_with_a_wrong_token_or_none_says_so(live: Controlled, second: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("something else".replace(" ", "-"))
    wrong.chmod(0o600)
    assert "401" in refusal("models", "use", second, "--at", live.address, "--token", wrong)
    assert "--token" in refusal("models", "use", second, "--at", live.address)
    wrong.chmod(0o640)
    assert "chmod" in refusal("models", "use", second, "--at", live.address, "--token", wrong)


def test_models_use_where_nobody_listens_fails_in_one_line(second: Path, token_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    done = cxls("models", "use", second, "--at", f"127.0.0.1:{free}", "--token", token_file)
    assert done.returncode == 1
    assert "is the analysis running" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("at", ["ftp://127.0.0.1", "http://", "127.0.0.1:notaport", "http://a:99999", "a\nb"])
def test_models_use_refuses_what_is_no_address(second: Path, token_file: Path, at: str) -> None:
    assert "--at" in refusal("models", "use", second, "--at", at, "--token", token_file)


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [(200, b"<html>", 1, "not that of"), (200, b'{"new": "other"}', 1, "other"), (404, b"", 2, "no control"),
     (409, b"busy", 1, "busy"), (422, b"bad\nbundle", 2, "bad bundle"), (500, b"\xff" * 9999, 1, "500"),
     (302, b"", 1, "302")],
)  # fmt: skip
def test_models_use_tells_every_answer_apart(
    second: Path, token_file: Path, status: int, body: bytes, code: int, said: str
) -> None:
    asked: list[tuple[str, str | None]] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = cxls("models", "use", second, "--at", f"127.0.0.1:{server.server_address[1]}", "--token", token_file)
        server.shutdown()
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert asked == [("/control/bundle", f"Bearer {TOKEN}")], "a token follows no redirection"


# --- a real stream ----------------------------------------------------------------------


def settled(address: str) -> bool:
    """Whether all that was received has its fate, and nothing more comes."""
    account = json.loads(fetched(address, "/status"))["account"]
    time.sleep(0.3)
    again = json.loads(fetched(address, "/status"))["account"]
    return account["received"] == again["received"] == sum(again["processed"].values())


def test_a_swap_in_a_running_stream_loses_no_frame(
    bundle_folder: Path, second: Path, token_file: Path, tmp_path: Path
) -> None:
    """Replay, analysis and swap are programs of their own; the swap comes in the middle."""
    master = write_series(tmp_path, frames_of_a_run(60))
    results = tmp_path / "r.jsonl"
    old, new = load_bundle(bundle_folder).label, load_bundle(second).label
    with Child("replay", master, "--bind", "tcp://127.0.0.1:0", "--rate", 50, "--loop") as replay:
        source = replay.listening("replay")
        with Child(
            "analyze", source, "--bundle", bundle_folder, "--listen", "127.0.0.1:0", "--control-token", token_file,
            "--results", results, "--device", "cpu",
        ) as analysis:  # fmt: skip
            address = analysis.listening("http", 120)
            wait_for(lambda: results.exists() and len(records(results)) > 50, 60)
            done = cxls("models", "use", second, "--at", address, "--token", token_file)
            assert done.returncode == 0, done.stderr
            assert f"{old} -> {new}" in done.stdout
            swapped = len(records(results))
            wait_for(lambda: len(records(results)) > swapped + 50, 60)
            assert replay.end(signal.SIGINT) == 130
            wait_for(lambda: settled(address), 60)
            assert analysis.end(signal.SIGINT) == 130
            said = "".join(analysis.errors)
            assert f"control: bundle {old} \u2192 {new}" in said
            assert TOKEN not in said
            assert analysis.process.stdout is not None
            summary = analysis.process.stdout.read()
    found = records(results)
    identity = re.search(r"received (\d+) = processed (\d+) \+ dropped 0 \+ undecodable 0", summary)
    assert identity, summary
    assert int(identity[1]) == int(identity[2]) == len(found)
    assert {r["bundle"] for r in found} == {old, new}
    pairs = [(r["series_id"], r["image_id"]) for r in found]
    assert len(pairs) == len(set(pairs))
    for series_id in {s for s, _ in pairs}:
        ids = sorted(i for s, i in pairs if s == series_id)
        assert ids == list(range(len(ids))), "no gap"
    order = [r["bundle"] for r in sorted(found, key=lambda r: (r["series_id"], r["image_id"]))]
    first_new = order.index(new)
    last_old = len(order) - 1 - order[::-1].index(old)
    assert last_old - first_new < 8 * (os.cpu_count() or 1), "only batches in hand overlap"
