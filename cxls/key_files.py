"""Keys of the link between a front and workers on other hosts, in files.

A secret key is alone in a file of mode 0600. Public keys stand one a line, a name after each, as in ssh's list of
authorised keys; lines that begin with a hash and a space are remarks.
"""

import contextlib
import logging
import os
import threading
import time
from pathlib import Path

from analyzer.crew.curve import FrontKeys, WorkerKeys, is_key, new_keys, public_of
from cxls.settings import BadSettings
from cxls.token_file import read_secret
from streamer.text_files import read_text

log = logging.getLogger(__name__)

MOST_KEYS = 1000
SECRET, PUBLIC = ".secret", ".public"
_MOST_BYTES = 256 << 10
_LOOK_S = 1.0
_WAIT_S = 0.2
_MAKE = "cxls worker-keys NAME makes one"


def make_keys(out: Path) -> tuple[Path, Path]:
    """A new pair: OUT.secret for this machine alone, OUT.public to be handed on. Raises ``BadSettings``."""
    public, secret = new_keys()
    if not out.name or not out.name.isprintable():
        raise BadSettings(f"{str(out)!a}: give a name for the two files, such as this host's")
    paths = out.with_name(out.name + SECRET), out.with_name(out.name + PUBLIC)
    written: list[Path] = []
    try:
        for path, mode, text in (
            (paths[0], 0o600, secret),
            (paths[1], 0o644, public + b" " + out.name.encode()),
        ):
            # Never a file that is there, nor one that a link leads to.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            written.append(path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text + b"\n")
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise BadSettings(f"{error.filename or out}: {error.strerror or error}; give another name") from None
    return paths


def read_worker_keys(secret: Path, front: Path) -> WorkerKeys:
    """A worker's keys. Raises ``BadSettings``."""
    found = _read_public(front, "--front-key")
    if len(found) != 1:
        raise BadSettings(f"--front-key {front}: {len(found)} keys, a front has one; give the front's .public file")
    return WorkerKeys(_read_secret(secret), next(iter(found)))


class AllowedKeys:
    """The public keys in a file, read again when it has changed, so that a worker can be let in, or out, while the
    front runs. ``more``: keys that are allowed besides. Raises ``BadSettings`` for a file that cannot be used at first;
    later on the last good one holds, and where the disk does not answer nobody waits for it for longer than a moment.
    """

    def __init__(self, path: Path, more: frozenset[bytes] = frozenset()) -> None:
        self._path, self._more = path, more
        self._stamp = _stamp(path)
        self._keys = _read_public(path, "--worker-keys") | more
        self._looked_s = time.monotonic()
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None

    def __call__(self) -> frozenset[bytes]:
        with self._lock:
            now = time.monotonic()
            stuck = self._looking is not None and self._looking.is_alive()
            if now - self._looked_s >= _LOOK_S and not stuck:
                self._looked_s = now
                self._looking = threading.Thread(target=self._look, name="worker-keys", daemon=True)
                self._looking.start()
                self._looking.join(_WAIT_S)
                if self._looking.is_alive():
                    log.warning("%s: the disk does not answer; the keys read before hold until it does", self._path)
            return self._keys

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read_public(self._path, "--worker-keys") | self._more
            log.info("%s was read again: %d keys of workers", self._path, len(self._keys - self._more))
        except BadSettings as error:
            log.warning("%s; the keys read before hold", error)


def read_front_keys(secret: Path, allowed: Path, more: frozenset[bytes] = frozenset()) -> FrontKeys:
    """The front's keys; ``more``: public keys of its own workers. Raises ``BadSettings``."""
    return FrontKeys(_read_secret(secret), AllowedKeys(allowed, more))


def _read_secret(path: Path) -> bytes:
    key = read_secret(path, "--worker-key", "key").encode()
    try:
        public_of(key)
    except ValueError:
        raise BadSettings(f"--worker-key {path}: not a secret key; {_MAKE}") from None
    return key


def _read_public(path: Path, option: str) -> frozenset[bytes]:
    try:
        lines = read_text(path, "file of public keys", _MOST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise BadSettings(f"{option} {path}: {getattr(error, 'strerror', None) or error}; {_MAKE}") from None
    found = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(b"# "):
            continue
        key = line.split()[0]
        if not is_key(key):
            raise BadSettings(f"{option} {path}: line {number} does not begin with a public key; {_MAKE}")
        found.add(key)
    if len(found) > MOST_KEYS:
        raise BadSettings(f"{option} {path}: {len(found)} keys, at most {MOST_KEYS} are read")
    return frozenset(found)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None
