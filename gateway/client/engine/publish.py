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
    """A port of the program, and the host that may connect to it. `asked`: the public port that was asked for; SOCKS
    cannot ask for one, so it is only said that the proxy has chosen another."""

    port: int
    peer: str = ANYBODY
    asked: int | None = None


def parse_published(text: str) -> Published:
    """Read PORT, PEER:PORT, or PUBLIC:PORT with two numbers. Raises ValueError."""
    peer, _, port = text.rpartition(":")
    if not _is_port(port):
        raise ValueError(f"{text!r} is not PORT, PEER:PORT or PUBLIC:PORT")
    if peer.isascii() and peer.isdigit():
        if not _is_port(peer):
            raise ValueError(f"{text!r}: {peer} is no port")
        return Published(int(port), asked=int(peer))
    return Published(int(port), peer.strip("[]") or ANYBODY)


def publish(published: Published, chain: Chain, inward: Inward, timeout: float) -> None:
    """Lead connections to the program, for ever. Each has a port of the proxy's own, which is said."""
    said = ""
    while True:
        try:
            with listen(chain, published.peer, 0, timeout) as waiting:
                say(f"port {published.port} is at {_shown(waiting.address)}{_instead_of(published, waiting.address)}")
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


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= 65535


def _instead_of(published: Published, address: Address) -> str:
    if published.asked in (None, address[1]):
        return ""
    return f" (the proxy chooses the public port; {published.asked} cannot be asked for)"


def _shown(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
