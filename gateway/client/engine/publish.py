"""Ports of a program that hosts outside can reach: the proxy waits for one connection after the other (BIND)."""

from __future__ import annotations

import socket
import time
from typing import NamedTuple

from gateway.client.blocking import Address, listen
from gateway.client.engine.messages import say, thread
from gateway.client.engine.relay import Inward, relay
from gateway.client.proxy import Chain
from gateway.client.sockets import reset

ANYBODY = "0.0.0.0"
PAUSE = 5.0  # seconds until the proxy is asked again


class Published(NamedTuple):
    """A port of the program, and the host that may connect to it."""

    port: int
    peer: str = ANYBODY


def parse_published(text: str) -> Published:
    """Read PORT, or PEER:PORT. Raises ValueError."""
    peer, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not PORT or PEER:PORT")
    return Published(int(port), peer.strip("[]") or ANYBODY)


def publish(published: Published, chain: Chain, inward: Inward, timeout: float) -> None:
    """Lead connections to the program, for ever. Each has a port of the proxy's own, which is said."""
    said = ""
    while True:
        try:
            with listen(chain, published.peer, 0, timeout) as waiting:
                say(f"port {published.port} is at {_shown(waiting.address)}")
                sock, peer = waiting.accept(None)
        except TimeoutError:
            continue  # nobody has come, and the proxy waits no longer
        except OSError as error:
            if str(error) != said:
                said = str(error)
                say(f"port {published.port} is not published: {error}")
            time.sleep(PAUSE)
            continue
        try:
            thread(_lead, published.port, sock, peer, inward)
        except BlockingIOError:
            reset(sock)


def _lead(port: int, sock: socket.socket, peer: Address, inward: Inward) -> None:
    try:
        inside = inward(peer, ("127.0.0.1", port))
    except OSError:
        reset(sock)
        return
    relay(inside, sock)


def _shown(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
