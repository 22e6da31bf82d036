"""The HTTP address of a running analysis, as a user gives it."""

import http.client
import ssl
from urllib.parse import SplitResult, urlsplit

from cxls.settings import BadSettings


def parse_address(text: str, option: str) -> SplitResult:
    """The parts of ``http(s)://HOST:PORT``, or of HOST:PORT alone. Raises ``BadSettings``, which names ``option``."""
    where = urlsplit("")
    try:
        where = urlsplit(text if "://" in text else f"http://{text}")
        # A password in it would be shown wherever the address is.
        named = where.hostname and "@" not in where.netloc
        known = where.scheme in ("http", "https") and named and (where.port or True)
    except ValueError:
        known = False
    if not known or not text.isprintable():
        raise BadSettings(f"{option} {text!a}: not an address; for instance http://127.0.0.1:8080".strip())
    return where


def open_connection(where: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to it that follows no redirection and uses no proxy; nothing is sent yet."""
    assert where.hostname is not None
    if where.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(where.hostname, where.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(where.hostname, where.port, timeout=timeout_s)
