"""``cxls view``: files on the live page, which stays when they are over."""

import json
import signal
from pathlib import Path

from tests.cxls.programs import Child, refusal, wait_for
from tests.cxls.test_http import get


def test_files_are_shown_until_ctrl_c_and_nothing_is_written(master: Path, bundle_folder: Path, tmp_path: Path) -> None:
    before = set(master.parent.iterdir())
    with Child("view", master, "--listen", "127.0.0.1:0", "--bundle", bundle_folder) as child:
        address = child.listening("http")
        wait_for(lambda: json.loads(get(address, "/status")[2])["over"], 60)
        status = json.loads(get(address, "/status")[2])
        assert status["account"]["identity"] == "received 12 = processed 12 + dropped 0 + undecodable 0"
        assert status["alarms"] == []
        assert get(address, "/")[0] == 200
        assert child.end(signal.SIGINT) == 130
    assert set(master.parent.iterdir()) == before


def test_a_stream_is_told_where_it_is_shown() -> None:
    assert "cxls analyze tcp://127.0.0.1:31001" in refusal("view", "tcp://127.0.0.1:31001")


def test_a_file_that_is_not_there_is_refused() -> None:
    assert "nothing.h5" in refusal("view", "nothing.h5")
