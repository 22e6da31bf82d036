"""An ssh server of the test's own on loopback, and a port that is forwarded through it."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import free_port, require

START_S = 20.0


def _key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def _wait_for_port(port: int, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert program.poll() is None, f"{program.args!r} ended with {program.returncode}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens at port {port}"
        time.sleep(0.05)


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """The port of a server that lets in who has ``folder / "user"``."""
    for each in ("sshd", "ssh", "ssh-keygen"):
        require(each, "openssh-server")
    host, user, port = _key(folder / "host"), _key(folder / "user"), free_port()
    if os.geteuid() == 0:
        # Where services are not started by systemd nobody has made it.
        Path("/run/sshd").mkdir(exist_ok=True)
    settings = folder / "sshd_config"
    settings.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host}\nAuthorizedKeysFile {user}.pub\nStrictModes no\nPidFile none\n"
        f"PasswordAuthentication no\nUsePAM no\n"
    )
    sshd = shutil.which("sshd")
    assert sshd is not None
    with subprocess.Popen([sshd, "-D", "-e", "-f", settings], stderr=subprocess.DEVNULL) as program:
        try:
            _wait_for_port(port, program)
            yield port
        finally:
            program.terminate()


@contextmanager
def forwarded(folder: Path, server_port: int, to_port: int, from_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """``ssh -L from_port:127.0.0.1:to_port``, for as long as it is open or until somebody ends it."""
    options = ("ExitOnForwardFailure=yes", "UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "BatchMode=yes")
    command = ["ssh", "-N", "-F", "none", "-i", folder / "user", "-p", server_port]
    command += [word for each in options for word in ("-o", each)]
    command += ["-L", f"127.0.0.1:{from_port}:127.0.0.1:{to_port}", f"{getpass.getuser()}@127.0.0.1"]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as program:
        try:
            _wait_for_port(from_port, program)
            yield program
        finally:
            program.terminate()
