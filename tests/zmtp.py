"""A ZeroMQ peer by hand, for what libzmq would not send: parts of a message that never ends."""

import socket
import struct


def greet(connection: socket.socket, kind: bytes) -> None:
    """Shake hands over a connection as a socket of this ``kind`` without keys (ZMTP 3.0, NULL)."""
    connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    with connection.makefile("rb") as answers:
        # What comes before it has answered, libzmq may take for a fault of the greeting.
        assert answers.read(64)[:1] == b"\xff"
        connection.sendall(bytes([4, len(ready)]) + ready)
        assert b"READY" in answers.read(answers.read(2)[1])
