"""The ways from a client inside to a server outside that a conformance table compares."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.lab.lab import ROUTER_IN4, ROUTER_IN6, Lab

Connect = Callable[[str, int], socket.socket]
TIMEOUT = 1.0  # seconds until something that should have come is counted as missing


@dataclass(frozen=True)
class Way:
    """`connect(host, port)` makes a connection of the client; `prepare` puts the router in order, for a while."""

    name: str
    prepare: Callable[[Lab], contextlib.AbstractContextManager[None]]
    connect: Callable[[Lab, str, int], socket.socket]


def direct(lab: Lab, host: str, port: int) -> socket.socket:
    return lab.connect("inside", host, port, timeout=TIMEOUT)


def by_socks(lab: Lab, host: str, port: int, proxy: str = "") -> socket.socket:
    """Through SOCKS5, CONNECT by address. `proxy`: at this address of the router, if not at the one of the same
    family."""
    proxy = proxy or (ROUTER_IN6 if ":" in host else ROUTER_IN4)
    sock = lab.connect("inside", proxy, 1080, timeout=TIMEOUT)
    family, kind = (socket.AF_INET6, b"\4") if ":" in host else (socket.AF_INET, b"\1")
    sock.sendall(b"\5\1\0" + b"\5\1\0" + kind + socket.inet_pton(family, host) + port.to_bytes(2, "big"))
    answer = _exactly(sock, 6)
    rest = {1: 4, 4: 16}[answer[5]] + 2
    _exactly(sock, rest)
    if answer[3] != 0:
        sock.close()
        raise ConnectionError(f"SOCKS reply {answer[3]}")
    return sock


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError("end of stream")
        data += more
    return data


@contextlib.contextmanager
def _nothing(lab: Lab) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _kernel_helper(lab: Lab) -> Iterator[None]:
    """nf_conntrack_ftp and nf_nat_ftp, attached to what goes to port 21."""
    rule = ["PREROUTING", "-p", "tcp", "--dport", "21", "-j", "CT", "--helper", "ftp"]
    for program in ("iptables", "ip6tables"):
        lab.run("router", [program, "-t", "raw", "-A", *rule])
    try:
        yield
    finally:
        for program in ("iptables", "ip6tables"):
            lab.run("router", [program, "-t", "raw", "-D", *rule])


@contextlib.contextmanager
def _gateway(lab: Lab) -> Iterator[None]:
    gateway = lab.start_gateway()
    try:
        yield
    finally:
        gateway.stop()


WAYS = (
    Way("plain NAT", _nothing, direct),
    Way("kernel helper", _kernel_helper, direct),
    Way("algate, transparent", _gateway, direct),
    Way("algate, SOCKS", _gateway, by_socks),
)
