"""What an association knows of its ways to the outside: its sockets there, and where datagrams go."""

from __future__ import annotations

import _socket
from typing import TYPE_CHECKING, TypeVar

import msgspec
from gevent import get_hub

from gateway.config import Config
from gateway.model import Lease

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

READ = 1  # libev's EV_READ
MAX_ROUTES = 1024  # targets of an association, and peers that may answer; the one used least recently makes room

Host = tuple[str, int]
Key = TypeVar("Key")
Value = TypeVar("Value")


class Options(msgspec.Struct, frozen=True):
    """`open_answers`: anybody may answer, not only whom the client has written to. `reassemble`: fragments are put
    together, else dropped. `idle_timeout`: seconds without a datagram. `outside` as in the configuration."""

    open_answers: bool
    reassemble: bool
    idle_timeout: float
    outside: str

    @classmethod
    def of(cls, config: Config) -> Options:
        """The options of a configuration."""
        socks = config.socks
        return cls(
            socks.udp_answers == "open", socks.udp_fragments == "reassemble", socks.udp_idle_timeout,
            config.network.outside,
        )  # fmt: skip


class Outside:
    """A socket towards the outside, and its pinhole."""

    __slots__ = ("lease", "sock", "watcher")

    def __init__(self, lease: Lease, sock: _socket.socket) -> None:
        self.lease = lease
        self.sock = sock
        self.watcher: _IoWatcher = get_hub().loop.io(sock.fileno(), READ)


class Route:
    """Where datagrams with a certain header go, until the decision is to be asked for again."""

    __slots__ = ("sock", "target", "until", "waiting")

    def __init__(self, until: float) -> None:
        self.until = until
        self.target: Host = ("", 0)
        self.sock: _socket.socket | None = None  # None: nowhere, or not yet
        self.waiting: list[bytes] | None = None  # data, while it is being decided


def bound(table: dict[Key, Value]) -> None:
    """Let the oldest entry go when there are too many."""
    if len(table) > MAX_ROUTES:
        del table[next(iter(table))]
