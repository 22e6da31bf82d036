"""The journal: what was appended is read again, whatever happened to the rest of the file."""

import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from analyzer.hits.journal import Damage, Entry, Journal, UnreadableJournal, read_body, read_entries
from tests.support import REPOSITORY

BODIES = [b"", b"one", bytes(range(256)) * 40, os.urandom(3 << 20), b"last"]


def journal(path: Path, bodies: list[bytes] = BODIES) -> list[int]:
    """A journal with these bodies; returns where each record ends."""
    made = Journal(path)
    ends = []
    for number, body in enumerate(bodies):
        made.append(2, f'{{"n":{number}}}'.encode(), memoryview(body))
        ends.append(made.nbytes)
    made.close()
    assert path.stat().st_size == ends[-1]
    return ends


def read(path: Path) -> tuple[list[bytes], list[Damage]]:
    """Bodies and damage."""
    with open(path, "rb") as file:
        found = list(read_entries(file.fileno()))
        bodies = [read_body(file.fileno(), entry) for entry in found if isinstance(entry, Entry)]
    return bodies, [entry for entry in found if isinstance(entry, Damage)]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal(tmp_path / "j")
    assert read(tmp_path / "j") == (BODIES, [])
    with open(tmp_path / "j", "rb") as file:
        heads = [entry.head for entry in read_entries(file.fileno()) if isinstance(entry, Entry)]
    assert heads == [f'{{"n":{n}}}'.encode() for n in range(len(BODIES))]


def test_a_journal_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    journal(tmp_path / "j")
    with pytest.raises(FileExistsError):
        Journal(tmp_path / "j")
    assert read(tmp_path / "j")[0] == BODIES


def test_every_cut_leaves_the_whole_records_and_says_so(tmp_path: Path) -> None:
    bodies = [b"a" * 30, b"b" * 40, b"c"]
    ends = journal(tmp_path / "j", bodies)
    whole = (tmp_path / "j").read_bytes()
    header = ends[0] - (ends[1] - ends[0]) + 10
    for cut in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:cut])
        found, damage = read(tmp_path / "cut")
        intact = sum(end <= cut for end in ends)
        assert found == bodies[:intact], cut
        at_a_record = cut in (header, *ends)
        assert [d.torn for d in damage] == ([] if at_a_record else [True]), cut


def test_any_flipped_byte_costs_its_own_record_at_most(tmp_path: Path) -> None:
    bodies = [b"a" * 20, b"b" * 20, b"c" * 20]
    ends = journal(tmp_path / "j", bodies)
    whole = bytearray((tmp_path / "j").read_bytes())
    record = ends[1] - ends[0]
    for position in range(ends[0] - record, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        (tmp_path / "flip").write_bytes(damaged)
        found, damage = read(tmp_path / "flip")
        hurt = sum(end <= position for end in ends)
        assert found == bodies[:hurt] + bodies[hurt + 1 :], position
        assert len(damage) == 1
        assert not damage[0].torn
        assert "lost" in damage[0].text


def test_zeros_at_the_end_as_a_power_cut_leaves_them_are_damage(tmp_path: Path) -> None:
    journal(tmp_path / "j")
    with open(tmp_path / "j", "ab") as file:
        file.write(bytes(5 << 20))
    found, damage = read(tmp_path / "j")
    assert found == BODIES
    assert [d.torn for d in damage] == [False]


def test_an_image_that_holds_a_journal_makes_no_records(tmp_path: Path) -> None:
    journal(tmp_path / "other")
    inner = (tmp_path / "other").read_bytes()
    ends = journal(tmp_path / "j", [b"first", inner, b"third"])
    with open(tmp_path / "j", "r+b") as file:  # so that reading has to look for the next record inside the image
        file.seek(ends[0])
        file.write(bytes(4))
    found, damage = read(tmp_path / "j")
    assert found == [b"first", b"third"]
    assert len(damage) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no journal"),
        (b"CXLSHITS" + bytes(100), "damaged"),
    ],
)
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(UnreadableJournal, match=says):
        read(tmp_path / "j")


def test_a_later_version_is_left_to_a_later_program(tmp_path: Path) -> None:
    head = struct.pack("<8sI8s", b"CXLSHITS", 2, bytes(8))
    (tmp_path / "j").write_bytes(head + struct.pack("<I", zlib.crc32(head)) + b"whatever follows")
    with pytest.raises(UnreadableJournal, match="version 2"):
        read(tmp_path / "j")


LIMITED = """
import resource, sys
from pathlib import Path
from analyzer.hits.journal import Journal
made = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
failed = 0
for number in range(8):
    try:
        made.append(2, b"{}", bytes([number]) * 30_000)
    except OSError:
        failed += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(failed)
"""


def test_a_record_that_did_not_fit_is_cut_away_and_writing_goes_on(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "j")], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.split() == ["1"]
    found, damage = read(tmp_path / "j")
    assert [body[0] for body in found] == [0, 1, 2, 4, 5, 6, 7]
    assert not damage


def test_a_record_of_kilobytes_that_claims_exabytes_is_torn(tmp_path: Path) -> None:
    ends = journal(tmp_path / "j", [b"good", b"bad"])
    raw = bytearray((tmp_path / "j").read_bytes())
    mark, kind, head, _, payload, _ = struct.unpack_from("<8sIIQII", raw, ends[0])
    prefix = struct.pack("<8sIIQI", mark, kind, head, 1 << 60, payload)
    raw[ends[0] : ends[0] + 32] = prefix + struct.pack("<I", zlib.crc32(prefix))
    (tmp_path / "j").write_bytes(raw)
    found, damage = read(tmp_path / "j")
    assert found == [b"good"]
    assert damage[0].torn
