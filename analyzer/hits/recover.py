"""Finishing what runs left that were killed, or that a disk did not let finish."""

import contextlib
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

from analyzer.hits.files import make_files
from analyzer.hits.places import (
    JOURNALS,
    journals_of,
    reason,
    remove_temporaries,
    run_lock,
    runs_with_journals,
)
from streamer.errors import first_line

KEPT = ".kept"
"""Ending of a journal that holds something no file could be made of."""


@dataclass(slots=True)
class Recovery:
    """What was found: files made of journals and hits in them; runs that are still running.

    ``problems`` are a line each. ``notes`` too: a write that a kill cut short, as it may.
    """

    files: list[Path] = field(default_factory=list)
    hits: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)


def recover(folder: Path, own_run: str | None = None) -> Recovery:
    """Make files of every journal that no running analyser holds; what is done twice is done once.

    A journal goes when all that it holds is in files. One with damage is kept under another name, its intact hits in
    files. ``own_run`` is left alone. Never raises for what is wrong with a journal or with the disk: these are
    problems.
    """
    found = Recovery()
    for run in runs_with_journals(folder):
        if run == own_run:
            continue
        lock = run_lock(folder, run)
        try:
            if not lock.acquire():
                found.running.append(run)
                continue
        except OSError as error:
            found.problems.append(f"{folder / JOURNALS}: {reason(error)}; its journals are left as they are")
            return found
        try:
            with contextlib.suppress(OSError):
                remove_temporaries(folder, run)
            for journal in journals_of(folder, run):
                _finish(folder, journal, found)
        finally:
            lock.release(remove=True)
    return found


def _finish(folder: Path, journal: Path, found: Recovery) -> None:
    try:
        # For writing, though nothing is written: over NFS an exclusive lock wants it so.
        fd = os.open(journal, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        found.problems.append(f"{journal}: {reason(error)}")
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its run's lock is ours, unless somebody removed that file
        made = make_files(fd, folder, journal)
        found.files += made.files
        found.hits += made.hits
        for damage in made.damage:
            (found.notes if damage.torn else found.problems).append(f"{journal}: {damage.text}")
        found.problems += [f"{journal}: {text}" for text in made.unstored]
        settle(journal, made.complete)
    except BlockingIOError:
        found.running.append(journal.stem)
    except OSError as error:
        found.problems.append(f"{journal}: {reason(error)}; it stays, recover again when there is room")
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # UnreadableJournal, and h5py's words
        found.problems.append(f"{journal}: {first_line(error)}; it stays")
    finally:
        os.close(fd)


def settle(journal: Path, complete: bool) -> None:
    """Remove a journal whose hits are all in files; keep another under a name that is not read again."""
    with contextlib.suppress(FileNotFoundError):
        if complete:
            journal.unlink()
        else:
            journal.rename(journal.with_name(journal.name + KEPT))
