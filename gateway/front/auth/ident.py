"""Asks a client's host which user owns a connection (RFC 1413). The answer is worth as much as that host is trusted."""

from __future__ import annotations

import re

import gevent
import gevent.socket as gsocket

from alg.address import Endpoint

PORT = 113
LONGEST_REPLY = 1000  # bytes (RFC 1413 section 4: a reply may not be longer)
LONGEST_FIELD = 128  # bytes of an operating system's name, and of a character set's
_BLANKS = b" \t\r\n\v\f"
_PORT = re.compile(rb"[0-9]{1,5}")
_NAME = re.compile(r"[^\x00-\x20:\x7f]{1,255}")


def parse_reply(line: bytes, client_port: int, our_port: int) -> str | None:
    """Return the user id in a reply without its end of line; None if it is an error, for other ports, or no plain name.

    A reply of the kind OTHER, whose id is no user name of that host (section 6.2), gives None too.
    """
    ports, _, rest = line.partition(b":")
    kind, _, rest = rest.partition(b":")
    system, colon, text = rest.partition(b":")
    theirs, comma, own = ports.partition(b",")
    numbers = theirs.strip(_BLANKS), own.strip(_BLANKS)
    if not colon or not comma or kind.strip(_BLANKS) != b"USERID" or not all(map(_PORT.fullmatch, numbers)):
        return None
    if (int(numbers[0]), int(numbers[1])) != (client_port, our_port):
        return None
    name_of_system, _, charset = system.partition(b",")
    if not 0 < len(name_of_system.strip(_BLANKS)) <= LONGEST_FIELD or len(charset) > LONGEST_FIELD:
        return None
    if name_of_system.strip(_BLANKS).upper() == b"OTHER":
        return None
    try:
        name = text.strip(b" \t").decode()
    except UnicodeDecodeError:
        return None
    return name if _NAME.fullmatch(name) else None


class IdentClient:
    """Asks ident servers. `timeout`: seconds for a whole exchange; `port`: the port of the ident server."""

    def __init__(self, timeout: float, port: int = PORT) -> None:
        self._timeout = timeout
        self._port = port

    def ask(self, client: Endpoint, ours: Endpoint) -> str | None:
        """Return which user owns the client's end of its connection to `ours`, an endpoint of this host; None: no
        answer in time, or none that can be used."""
        try:
            with gevent.Timeout(self._timeout, TimeoutError):
                line = self._exchange(client, ours)
        except OSError:
            return None
        return parse_reply(line, client.port, ours.port)

    def _exchange(self, client: Endpoint, ours: Endpoint) -> bytes:
        with gsocket.socket(gsocket.AF_INET6 if client.version == 6 else gsocket.AF_INET) as sock:
            sock.bind((ours.host, 0))  # section 3: the addresses of the connection are those that are asked about
            sock.connect((client.host, self._port))
            sock.sendall(f"{client.port}, {ours.port}\r\n".encode())
            reply = b""
            while b"\n" not in reply and len(reply) <= LONGEST_REPLY:
                data = sock.recv(LONGEST_REPLY)
                if not data:
                    break
                reply += data
        line, newline, _ = reply.partition(b"\n")
        return line.rstrip(b"\r") if newline and len(line) <= LONGEST_REPLY else b""
