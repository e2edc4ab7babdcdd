"""The routes of an association to the outside: its sockets there, and where datagrams go."""

from __future__ import annotations

import _socket
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from gevent import get_hub

from gateway.flow.dial import DialError
from gateway.front.socks.request import log_failure
from gateway.model.requests import ConnectRequest, Lease
from gateway.net.addresses import PublicAddress

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

    from gateway.front.udp.reader import Messages

READ = 1  # libev's EV_READ
MAX_ROUTES = 1024  # targets of an association, and peers that may answer; the one used least recently makes room

Host = tuple[str, int]
Key = TypeVar("Key")
Value = TypeVar("Value")


class Options(msgspec.Struct, frozen=True):
    """Options of associations. `open_answers`: all hosts may answer, not only those to which the client has sent;
    `reassemble`: fragments are put together, otherwise dropped; `idle_timeout`: seconds without a datagram; `outside`:
    as in the configuration."""

    open_answers: bool
    reassemble: bool
    idle_timeout: float
    outside: str


class Outside:
    """A socket towards the outside, its pinhole, and `public`, the endpoint at which the world finds it.

    `hosts`: addresses that may send to it from whichever port."""

    __slots__ = ("hosts", "lease", "messages", "public", "sock", "watcher")

    def __init__(self, lease: Lease, sock: _socket.socket, public: PublicAddress) -> None:
        self.lease = lease
        self.sock = sock
        self.public = public
        self.messages: dict[str, Messages] = {}  # what is read of what passes, by the module that reads it
        self.hosts: dict[str, None] = {}
        self.watcher: _IoWatcher = get_hub().loop.io(sock.fileno(), READ)

    def let_in(self, hosts: Iterable[str]) -> None:
        """These addresses may send to it from now on; of many the latest."""
        for host in hosts:
            self.hosts.pop(host, None)
            self.hosts[host] = None
        bound(self.hosts)


class Route:
    """Where datagrams with a certain header go, until the time of the next decision."""

    __slots__ = ("messages", "sock", "target", "until", "waiting")

    def __init__(self, until: float) -> None:
        self.until = until
        self.target: Host = ("", 0)
        self.sock: _socket.socket | None = None  # where all go at once; None: nowhere, not yet, or not unread
        self.messages: Messages | None = None  # who reads them
        self.waiting: list[bytes] | None = None  # data, while it is being decided


class _Datagram(NamedTuple):
    """A datagram of a flow, to be sent as `wish` says."""

    flow: str
    wish: ConnectRequest

    def names(self) -> dict[str, str]:
        target = f"{self.wish.host}:{self.wish.port}"
        return {"flow": self.flow, "client": str(self.wish.client), "command": "udp", "target": target}


class Refusals:
    """Logs the refusals of an association, one a second at most, because its client may send to the whole world."""

    def __init__(self, flow: str) -> None:
        self._flow = flow
        self._told = 0.0

    def tell(self, wish: ConnectRequest, error: DialError) -> None:
        """Log a refusal, unless one was logged just now."""
        if monotonic() < self._told + 1:
            return
        self._told = monotonic()
        log_failure(_Datagram(self._flow, wish), error)


def bound(table: dict[Key, Value]) -> None:
    """Remove the oldest entry if there are too many."""
    if len(table) > MAX_ROUTES:
        del table[next(iter(table))]
