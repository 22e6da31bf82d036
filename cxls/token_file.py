"""Files that hold a secret, such as the control token: for their owner's eyes only."""

import os
import stat
from pathlib import Path

from cxls.settings import BadSettings

MAX_TOKEN_BYTES = 4096


def read_token(path: Path, option: str) -> str:
    """The token in a file that only its owner may read, without the white space around it. Raises ``BadSettings``."""
    return read_secret(path, option, "token")


def read_secret(path: Path, option: str, what: str) -> str:
    """What stands in a file that only its owner may read, without the white space around it.

    ``option`` names the setting and ``what`` the secret, for messages; none shows the content. Raises ``BadSettings``.
    """
    try:
        # Not to wait at a pipe; what is looked at is what is read.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadSettings(f"{option} {path}: not a regular file; write the {what} into a file of mode 0600")
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise BadSettings(f"{option} {path}: others may use it (mode {mode:04o}); run: chmod 600 {path}")
            raw = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise BadSettings(
            f"{option} {path}: {error.strerror or error}; name a file of mode 0600 with a {what}"
        ) from None
    except ValueError as error:
        if isinstance(error, BadSettings):
            raise
        raise BadSettings(f"{option}: {error}") from None
    if len(raw) > MAX_TOKEN_BYTES:
        raise BadSettings(f"{option} {path}: more than {MAX_TOKEN_BYTES} bytes; a {what} is one short line")
    token = raw.strip()
    if not token:
        raise BadSettings(f"{option} {path}: empty; for instance: (umask 077; openssl rand -hex 32 > {path})")
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise BadSettings(f"{option} {path}: a {what} is one line of printable ASCII without spaces")
    return token.decode("ascii")
