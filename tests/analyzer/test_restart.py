"""A killed run's note, and what the next run makes of it: the header of the running series, and what was lost."""

import json
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.hits.journal import Journal
from analyzer.kept_changes import Asked
from analyzer.restart import Restart
from analyzer.sinks import ResultsExist, hold, open_results
from analyzer.sinks.hold import note_path
from streamer.account import Account
from streamer.messages import EndMessage, ImageMessage, StartMessage
from streamer.series import ImageAccepted, SeriesOpened, SeriesTracker
from streamer.validity import Validity
from tests.analyzer.builders import SHAPE, image_data, metadata, water
from tests.analyzer.writer_child import result

IMAGE = {"threshold_1": image_data(water(0.1))}


class Program:
    """A run: what it receives goes through a real tracker; ``records`` are what it got to write before its end."""

    def __init__(self, results: Path, append: bool = True, **settings: Any) -> None:
        self.file = open_results(results, append=append)
        self.restart = Restart(results, self.file, append, settings)
        self.restart.start()
        self.account = Account()
        self.tracker = SeriesTracker(self.account, self.restart.known)
        self.opened: list[SeriesOpened] = []
        self.note = note_path(results)

    def hear(self, *messages: Any) -> "Program":
        for number, each in enumerate(messages):
            for event in self.tracker.handle(each, float(number) * 1e-3):
                if isinstance(event, SeriesOpened):
                    self.opened.append(event)
                if not isinstance(event, ImageAccepted):
                    self.restart.event(event)
        return self

    def records(self, ids: Iterable[int]) -> "Program":
        self.file.write([result(n) for n in ids])
        return self

    def killed(self) -> None:
        """What a kill leaves once the thread of the note has had its turn."""
        written(self)
        self.file.close()
        assert self.restart._hold is not None
        self.restart._hold.release()

    def ends(self) -> int:
        for event in self.tracker.finish():
            if not isinstance(event, ImageAccepted):
                self.restart.event(event)
        self.file.close()
        self.restart.close()
        return self.restart.lost


def start(images: int | None = 60, series_id: int = 1, unique: str | None = "a", **changes: Any) -> StartMessage:
    return StartMessage(series_id, metadata(images, **changes), unique)


def images(ids: Iterable[int], series_id: int = 1, unique: str | None = "a") -> list[ImageMessage]:
    return [ImageMessage(series_id, n, IMAGE, unique_id=unique) for n in ids]


def test_a_run_that_ends_by_itself_leaves_no_note_and_the_next_counts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = Program(path).hear(start(), *images(range(30))).records(range(30))
    assert first.note.exists()
    assert first.ends() == 0
    assert [each.name for each in tmp_path.iterdir()] == ["r.jsonl"]
    assert Program(path).hear(*images(range(40, 60))).ends() == 0


@pytest.mark.parametrize("unique", ["a", None])
def test_a_running_series_is_joined_with_its_header_and_what_was_lost_is_counted(
    tmp_path: Path, unique: str | None
) -> None:
    path = tmp_path / "r.jsonl"
    mask = np.zeros(SHAPE, "u4")
    mask[3:5, 7] = 1
    begun = start(unique=unique, masks={"threshold_1": mask}, arm_date="2026-11-30T12:00:00", saturation_value=99)
    Program(path).hear(begun, *images(range(30), unique=unique)).records(range(28)).killed()
    again = Program(path).hear(*images(range(33, 58), unique=unique))
    (opened,) = again.opened
    known = opened.series.metadata
    assert opened.series.joined
    assert np.array_equal(known.masks["threshold_1"] != 0, mask != 0)
    assert (known.number_of_images, known.arm_date, known.saturation_value) == (60, "2026-11-30T12:00:00", 99)
    assert (known.camera_length_m, known.photon_energy_eV, known.beam_center_x_px) == (0.15, 7000.0, 37.5)
    assert again.restart.lost == 5, "said at once, not only when the series is over"
    again.records(range(33, 58))
    assert again.ends() == 5
    missing = again.account.missing
    assert (missing["head"], missing["gap"], missing["tail"]) == (33, 0, 2)
    assert 28 + again.account.accepted + 5 + missing["gap"] + missing["tail"] == 60


def test_images_that_were_received_and_not_recorded_of_a_series_that_was_over_are_counted_at_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).hear(start(10), *images(range(9)), EndMessage(1, "a")).records(range(7)).killed()
    assert Program(path).restart.lost == 2, "the tenth never came, which the killed run's account said"


def test_a_series_of_which_nothing_comes_any_more_is_given_up_when_the_next_begins_or_the_run_ends(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).hear(start(), *images(range(58))).records(range(55)).killed()
    waiting = Program(path)
    assert waiting.restart.lost == 0
    waiting.hear(start(20, 2, "b"))
    assert waiting.restart.lost == 5
    waiting.killed()
    assert Program(path).ends() == 5 + 20


def test_kills_add_up_and_none_is_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).hear(start(), *images(range(20))).records(range(18)).killed()
    Program(path).killed()
    Program(path).hear(*images(range(25, 40))).records(range(25, 39)).killed()
    last = Program(path).hear(*images(range(41, 60)), EndMessage(1, "a")).records(range(41, 60))
    assert last.ends() == 60 - 18 - 14 - 19
    assert not last.note.exists()


def test_a_series_that_began_while_nobody_listened_is_counted_from_its_first_image(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).hear(start(10), *images(range(10)), EndMessage(1, "a")).records(range(10)).killed()
    again = Program(path).hear(*images(range(7, 12), 2, "b"))
    assert again.opened[0].series.metadata.number_of_images is None
    assert again.ends() == 7


def test_series_that_came_while_nobody_listened_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).hear(start(10), *images(range(10)), EndMessage(1, "a")).records(range(10)).killed()
    Program(path).hear(start(10, 4, "d")).ends()
    assert "series 2 to 3 came while nobody listened" in caplog.text
    caplog.clear()
    Program(path).hear(start(10, 9, "e")).ends()
    assert "nobody" not in caplog.text, "the run before ended by itself"


def test_a_detector_that_counts_anew_does_not_go_on_with_the_old_header(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).hear(start(), *images(range(30))).records(range(30)).killed()
    other = Program(path).hear(*images(range(33, 40), unique="b"))
    assert other.opened[0].series.metadata.number_of_images is None
    other.killed()
    (tmp_path / "2").mkdir()
    path = tmp_path / "2" / "r.jsonl"
    Program(path).hear(start(unique=None), *images(range(30), unique=None)).records(range(30)).killed()
    repeated = Program(path).hear(*images(range(5, 9), unique=None))
    assert repeated.opened[0].series.metadata.number_of_images is None


@pytest.mark.parametrize("content", [b"", b"x", b"CXLSHITS", b"\0" * 4000])
def test_a_note_that_is_none_costs_no_start(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).records(range(3)).ends()
    note_path(path).write_bytes(content)
    again = Program(path)
    assert again.restart.crashed
    assert again.hear(*images(range(5, 9))).ends() == 2


def test_any_cut_of_a_note_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).hear(start(), *images(range(30))).records(range(28)).killed()
    whole = note_path(path).read_bytes()
    for length in range(0, len(whole), 7):
        note_path(path).write_bytes(whole[:length])
        file = open_results(path, append=True)
        assert Restart(path, file, True).crashed
        file.close()


BOTH = pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])


def killed_in_a_series(path: Path) -> None:
    Program(path).hear(start(10), *images(range(9)), EndMessage(1, "a"), start(10, 2, "b")).records(range(7)).killed()
    assert note_path(path).exists()


@BOTH
def test_a_second_run_is_refused_while_the_first_lives_and_its_note_stays(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "WAIT_S", 0.0)
    path = tmp_path / f"r{suffix}"
    first = Program(path).hear(start(), *images(range(30))).records(range(30))
    note = first.note.stat().st_ino
    with pytest.raises(ResultsExist, match="another analysis"):
        Program(path)
    first.file.close()
    with pytest.raises(ResultsExist, match="another analysis"):
        Program(path)
    assert first.note.stat().st_ino == note
    first.restart.close()
    after = Program(path)
    assert not after.restart.crashed
    assert after.ends() == 0


def test_a_run_takes_away_its_own_note_alone(tmp_path: Path) -> None:
    first = Program(tmp_path / "r.jsonl")
    other = tmp_path / "other"
    other.write_bytes(b"of another run")
    other.replace(first.note)
    first.ends()
    assert first.note.read_bytes() == b"of another run"


@BOTH
def test_a_note_counts_nothing_of_results_that_were_moved_away(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    killed_in_a_series(path)
    path.rename(tmp_path / f"kept{suffix}")
    again = Program(path).hear(start(10, 3, "c"), *images(range(10), 3, "c"))
    assert not again.restart.crashed
    assert again.ends() == 0
    assert not again.note.exists()


@BOTH
def test_a_note_counts_nothing_of_other_results_in_the_place_of_its_own(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / f"r{suffix}", tmp_path / f"other{suffix}"
    killed_in_a_series(path)
    Program(other).records(range(3)).ends()
    path.rename(tmp_path / f"kept{suffix}")
    other.rename(path)
    assert Program(path).ends() == 0
    assert "is of other results" in caplog.text


@BOTH
@pytest.mark.parametrize("overwrite", [True, False])
def test_whoever_begins_results_anew_takes_the_note_of_the_old_ones_away(
    tmp_path: Path, suffix: str, overwrite: bool
) -> None:
    path = tmp_path / f"r{suffix}"
    killed_in_a_series(path)
    if not overwrite:
        path.rename(tmp_path / f"kept{suffix}")
    open_results(path, overwrite=overwrite).close()
    assert not note_path(path).exists()
    assert not Program(path).restart.crashed


def test_a_folder_that_takes_no_note_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analyzer.restart.Journal", full)
    caplog.set_level(logging.WARNING)
    run = Program(tmp_path / "r.jsonl").hear(start(), *images(range(5))).records(range(5))
    assert run.ends() == 0
    assert "will not be known" in caplog.text
    assert len((tmp_path / "r.jsonl").read_bytes().splitlines()) == 5


def written(run: Program) -> None:
    """Until the thread that writes has written everything: it waits for more."""
    deadline = time.monotonic() + 30
    waiting = run.restart._waiting
    while not (waiting.empty() and waiting.not_empty._waiters):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("open_at_the_end", [True, False])
def test_a_note_does_not_grow_without_end_and_still_says_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_at_the_end: bool
) -> None:
    monkeypatch.setattr("analyzer.restart._ANEW_BYTES", 20_000)
    path, mask = tmp_path / "r.jsonl", np.zeros(SHAPE, "u4")
    mask[3:5, 7] = 1
    run = Program(path).records(range(3))
    sizes, files = [], set()
    for series in range(1, 101):
        # Said twice, as a detector may; the first series had an image more than was recorded.
        begun = start(9, series, f"s{series}", masks={"threshold_1": mask}, saturation_value=series)
        run.hear(begun, begun, *images(range(4), series, f"s{series}"))
        if series < 100 or not open_at_the_end:
            run.hear(EndMessage(series, f"s{series}"))
        if series % 5 == 0:
            written(run)
            sizes.append(run.note.stat().st_size)
            files.add(run.note.stat().st_ino)
    assert len(files) > 1
    assert max(sizes) < 40_000, "a header has some kilobytes, and there were two hundred"
    assert not run.note.with_name(f"{run.note.name}.new").exists()
    run.killed()
    again = Program(path)
    assert again.restart.lost == 1 + 4 * (98 if open_at_the_end else 99)
    if open_at_the_end:
        (opened,) = again.hear(*images(range(4, 9), 100, "s100")).opened
        assert opened.series.metadata.saturation_value == 100
        assert np.array_equal(opened.series.metadata.masks["threshold_1"] != 0, mask != 0)
    again.ends()


def test_masks_are_known_of_a_series_that_began_after_the_note_was_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mask = tmp_path / "r.jsonl", np.zeros(SHAPE, "u4")
    mask[3:5, 7] = 1
    run = Program(path).hear(start(4, masks={"threshold_1": mask}), *images(range(4)), EndMessage(1, "a"))
    written(run)
    monkeypatch.setattr("analyzer.restart._ANEW_BYTES", 1)
    run.restart._anew_at = 1
    note = run.note.stat().st_ino
    run.hear(start(4, 2, "b", masks={"threshold_1": mask}), *images(range(4), 2, "b"), EndMessage(2, "b"))
    written(run)
    assert run.note.stat().st_ino != note
    run.hear(start(9, 3, "c", masks={"threshold_1": mask}), *images(range(1), 3, "c")).killed()
    (opened,) = Program(path).hear(*images(range(3, 9), 3, "c")).opened
    assert np.array_equal(opened.series.metadata.masks["threshold_1"] != 0, mask != 0)


def test_where_a_second_note_has_no_room_the_first_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    run = Program(path).hear(start(), *images(range(10))).records(range(8))
    written(run)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analyzer.restart.Journal", full)
    run.restart._anew_at = 1
    run.hear(EndMessage(1, "a"), start(5, 2, "b"), *images(range(5), 2, "b")).killed()
    monkeypatch.undo()
    again = Program(path)
    assert again.restart.lost == 2
    assert again.ends() == 7


def test_entries_that_a_disk_keeps_waiting_are_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, append = threading.Event(), Journal.append

    def stuck(journal: Journal, *given: Any) -> None:
        assert go_on.wait(10)
        append(journal, *given)

    monkeypatch.setattr("analyzer.restart._MOST_WAITING", 3)
    run = Program(tmp_path / "r.jsonl")
    monkeypatch.setattr(Journal, "append", stuck)
    for series in range(1, 9):
        run.hear(start(1, series, f"s{series}"), *images(range(1), series, f"s{series}"))
    go_on.set()
    assert caplog.text.count("less exactly") == 1
    assert run.ends() == 0
    assert not run.note.exists()


def test_records_of_ids_that_are_there_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Program(path).records(range(5)).ends()
    again = Program(path).records(range(3, 9))
    values = {each.name: each.samples[0].value for each in again.restart.collect()}
    assert values == {"cxls_frames_lost_in_crash": 0, "cxls_results_repeated": 2}
    again.ends()


# --- what was changed -------------------------------------------------------------------


def asked(kind: str, **body: Any) -> Asked:
    return Asked(kind=kind, body=json.dumps(body).encode())


def bodies(run: Program) -> dict[str, Any]:
    return {kind: json.loads(each.body or b"null") for kind, each in run.restart.asked.items()}


def test_of_each_kind_the_latest_change_is_left_by_a_kill_and_none_by_a_run_that_ends(tmp_path: Path) -> None:
    path, valid = tmp_path / "r.jsonl", (np.random.default_rng(1).random((40, 30)) < 0.9).astype("u1")
    first = Program(path)
    assert first.restart.asked == {}
    for value in (0.1, 0.2, 0.3):
        first.restart.keep(asked("threshold", value=value))
    first.restart.keep(asked("channel", name="threshold_2"))
    first.restart.keep(Asked(kind="bundle", body=b'{"path": "/b"}', label="b-1"))
    first.restart.keep(Asked(kind="mask", masks=(None, Validity("hot.npy", valid)), first=True))
    first.restart.keep(Asked(kind="channel"))
    first.killed()
    second = Program(path)
    assert bodies(second) == {"threshold": {"value": 0.3}, "bundle": {"path": "/b"}, "mask": None}
    left = second.restart.asked
    assert left["bundle"].label == "b-1"
    mask = left["mask"]
    assert mask.masks is not None
    own, hot = mask.masks
    assert (own, mask.first) == (None, True)
    assert hot is not None
    assert hot.name == "hot.npy"
    assert np.array_equal(hot.valid, valid)
    # Killed before it had asked for them again.
    second.killed()
    third = Program(path)
    assert set(bodies(third)) == {"threshold", "bundle", "mask"}
    third.ends()
    assert Program(path).restart.asked == {}


def test_a_start_that_is_refused_leaves_the_note_of_a_killed_run_to_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = Program(path).hear(start(), *images(range(30))).records(range(28))
    first.restart.keep(asked("threshold", value=0.1))
    first.killed()
    refused = Program(path)
    refused.file.close()
    refused.restart.close(began=False)
    again = Program(path).hear(*images(range(33, 60)))
    assert bodies(again) == {"threshold": {"value": 0.1}}
    assert again.restart.lost == 5
    again.records(range(33, 60)).ends()
    refused = Program(path)
    refused.file.close()
    refused.restart.close(began=False)
    assert not refused.note.exists(), "there was no kill before"


@pytest.mark.parametrize("what", ["not added to", "moved away"])
def test_changes_are_of_the_results_they_were_made_with(tmp_path: Path, what: str) -> None:
    path = tmp_path / "r.jsonl"
    first = Program(path)
    first.restart.keep(asked("threshold", value=0.1))
    first.killed()
    path.rename(tmp_path / "kept.jsonl")
    assert Program(path, append=what == "moved away").restart.asked == {}


@pytest.mark.parametrize(
    ("before", "now", "kept", "instead"),
    [
        ({}, {}, {"threshold", "mask", "peaks", "run"}, []),
        ({"threshold": 0.5}, {"threshold": 0.5}, {"threshold", "mask", "peaks", "run"}, []),
        ({"threshold": 0.5}, {"threshold": 0.7}, {"mask", "peaks", "run"}, [("threshold", ["threshold"])]),
        ({"threshold": 0.5}, {"threshold": None}, {"mask", "peaks", "run"}, [("threshold", ["threshold"])]),
        ({"mask": "/a"}, {"mask": "/b", "calibration": "/c"}, {"peaks", "run"},
         [("threshold", ["calibration"]), ("mask", ["mask"])]),
        ({"min_peaks": 5}, {"min_peaks": 6}, {"threshold", "mask", "peaks", "run"}, [("peaks", ["min_peaks"])]),
        ({"run_number": 1}, {"run_number": 2}, {"threshold", "mask", "peaks", "run"}, [("run", ["run_number"])]),
        ({"bundle": "/a"}, {"bundle": "/b"}, {"threshold", "mask", "peaks", "run"}, []),
    ],
)  # fmt: skip
def test_settings_that_were_changed_since_come_before_changes_of_the_same_kind(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], kept: set[str], instead: list[Any]
) -> None:
    path = tmp_path / "r.jsonl"
    first = Program(path, **before)
    first.restart.keep(asked("threshold", value=0.1))
    first.restart.keep(Asked(kind="mask", masks=(Validity("m", np.ones((4, 4), "u1")), None)))
    first.restart.keep(asked("peaks", min_peaks=9, finder="poisson"))
    first.restart.keep(asked("run", number=3, sample="a", notes="b"))
    first.killed()
    second = Program(path, **now)
    assert set(second.restart.asked) == kept
    assert second.restart.overruled == instead
    peaks, run = json.loads(second.restart.asked["peaks"].body), json.loads(second.restart.asked["run"].body)
    assert set(peaks) == ({"finder"} if "min_peaks" in now else {"finder", "min_peaks"})
    assert set(run) == ({"sample"} if "run_number" in now else {"number", "sample", "notes"})
    second.killed()
    # What gave way is gone for good: this run's settings are what the next one is compared with.
    assert set(Program(path, **before).restart.asked) <= kept


def test_a_change_is_in_the_note_when_it_is_answered_and_a_mask_of_four_million_pixels_is_small_there(
    tmp_path: Path,
) -> None:
    run = Program(tmp_path / "r.jsonl")
    valid = np.ones((2167, 2070), "u1")
    valid.reshape(-1)[np.random.default_rng(1).integers(0, valid.size, 5000)] = 0
    before = run.note.stat().st_size
    run.restart.keep(Asked(kind="mask", masks=(Validity("m.npy", valid), None)))
    assert 0 < run.note.stat().st_size - before < 50_000
    run.killed()


def test_the_latest_changes_are_there_after_the_note_was_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyzer.restart._ANEW_BYTES", 20_000)
    path, valid = tmp_path / "r.jsonl", (np.random.default_rng(2).random((300, 200)) < 0.5).astype("u1")
    run = Program(path, threshold=0.5)
    run.restart._anew_at = 20_000
    notes = set()
    for n in range(40):
        run.restart.keep(Asked(kind="mask", masks=(Validity(f"m{n}", valid), None)))
        run.restart.keep(asked("threshold", value=n / 100))
        notes.add(run.note.stat().st_ino)
    assert len(notes) > 1
    assert run.note.stat().st_size < 60_000
    run.killed()
    again = Program(path, threshold=0.5)
    left = again.restart.asked
    assert json.loads(left["threshold"].body) == {"value": 0.39}
    assert left["mask"].masks is not None
    own = left["mask"].masks[0]
    assert own is not None
    assert own.name == "m39"
    assert np.array_equal(own.valid, valid)
    again.killed()
    assert set(Program(path, threshold=0.6).restart.asked) == {"mask"}, "the settings are in the new one, too"


def test_a_disk_that_stands_still_keeps_no_change_waiting_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, append = threading.Event(), Journal.append

    def stuck(journal: Journal, *given: Any) -> None:
        assert go_on.wait(30)
        append(journal, *given)

    run = Program(tmp_path / "r.jsonl")
    monkeypatch.setattr(Journal, "append", stuck)
    monkeypatch.setattr("analyzer.restart.KEPT_S", 0.1)
    began = time.monotonic()
    run.restart.keep(asked("threshold", value=0.1))
    assert time.monotonic() - began < 5
    go_on.set()
    run.ends()


def test_any_cut_of_a_note_with_changes_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = Program(path)
    first.restart.keep(asked("threshold", value=0.1))
    first.restart.keep(Asked(kind="mask", masks=(Validity("m", np.ones(SHAPE, "u1")), None)))
    first.restart.keep(asked("threshold", value=0.2))
    first.killed()
    whole = note_path(path).read_bytes()
    seen = set()
    for length in [*range(0, len(whole), 7), len(whole)]:
        note_path(path).write_bytes(whole[:length])
        file = open_results(path, append=True)
        left = Restart(path, file, True).asked
        file.close()
        seen.add((left["threshold"].body if "threshold" in left else None, "mask" in left))
    assert seen == {(None, False), (b'{"value": 0.1}', False), (b'{"value": 0.1}', True), (b'{"value": 0.2}', True)}
