"""The routes of an association: where its client's datagrams go."""

from __future__ import annotations

import _socket
from time import monotonic
from typing import NamedTuple

import msgspec

from gateway.flow.dial import DialError
from gateway.front.socks.request import log_failure
from gateway.front.udp.reader import ClientMessages
from gateway.front.udp.sockets import Host
from gateway.model.requests import ConnectRequest


class AssociationOptions(msgspec.Struct, frozen=True):
    """Options of associations. `open_answers`: all hosts may answer, not only those to which the client has sent;
    `reassemble`: fragments are put together, otherwise dropped; `idle_timeout`: seconds without a datagram; `outside`:
    as in the configuration."""

    open_answers: bool
    reassemble: bool
    idle_timeout: float
    outside: str


class Route:
    """Where datagrams with a certain header go, until the time of the next decision."""

    __slots__ = ("messages", "sock", "target", "until", "waiting")

    def __init__(self, until: float) -> None:
        self.until = until
        self.target: Host = ("", 0)
        self.sock: _socket.socket | None = None  # where all go at once; None: nowhere, not yet, or not unread
        self.messages: ClientMessages | None = None  # what reads them
        self.waiting: list[bytes] | None = None  # data, while it is being decided


class _Datagram(NamedTuple):
    """A datagram of a flow, to be sent as `request` says."""

    flow: str
    request: ConnectRequest

    def names(self) -> dict[str, str]:
        target = f"{self.request.host}:{self.request.port}"
        return {"flow": self.flow, "client": str(self.request.client), "command": "udp", "target": target}


class Refusals:
    """Logs the refusals of an association, one a second at most, because its client may send to the whole world."""

    def __init__(self, flow: str) -> None:
        self._flow = flow
        self._logged_at = 0.0

    def log_refusal(self, request: ConnectRequest, error: DialError) -> None:
        """Log a refusal, unless one was logged just now."""
        if monotonic() < self._logged_at + 1:
            return
        self._logged_at = monotonic()
        log_failure(_Datagram(self._flow, request), error)
