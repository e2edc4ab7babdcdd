"""The sockets of a UDP association towards the outside: one for each address of this host that faces a target, each of
them a pinhole with its lease."""

from __future__ import annotations

import _socket
from collections.abc import Callable, Iterator

from gevent.lock import BoundedSemaphore

from alg.address import Address
from gateway.flow.dial import DialError
from gateway.front.udp.client_side import ClientSide
from gateway.front.udp.routes import AssociationOptions
from gateway.front.udp.sockets import Outside, bind_datagrams, close_watched
from gateway.model.errors import PinholeRefused
from gateway.model.requests import PinholeRequest
from gateway.net.addresses import public_address
from gateway.pinhole.userspace import UserspacePinholes

REASON = "socks.udp"
MAX_OUTSIDE = 8  # addresses of this host that an association sends from


class Outsides:
    """The sockets of one association. `opened(outside)` is called for each new socket, which can be watched then."""

    def __init__(
        self,
        flow: str,
        client: ClientSide,
        pinholes: UserspacePinholes,
        options: AssociationOptions,
        opened: Callable[[Outside], None],
    ) -> None:
        self._flow = flow
        self._client = client
        self._pinholes = pinholes
        self._options = options
        self._opened = opened
        self._sockets: dict[str, Outside] = {}  # by the address that it is bound to
        self._opening = BoundedSemaphore(1)
        self._closed = False

    def __iter__(self) -> Iterator[_socket.socket]:
        return (outside.sock for outside in self._sockets.values())

    def get(self, facing: str) -> Outside | None:
        """Return the socket at the address `facing` of this host, if there is one."""
        return self._sockets.get(facing)

    def get_or_open(self, facing: str, address: Address) -> Outside:
        """Return the socket at the address `facing`, from where datagrams go to `address`. May wait for the broker.
        Raises DialError."""
        with self._opening:
            return self._sockets.get(facing) or self._open(facing, address)

    def renew(self) -> None:
        """Let the pinholes live for as long as an association may be idle, and as long again."""
        for outside in self._sockets.values():
            self._pinholes.renew(outside.lease, 2 * self._options.idle_timeout)

    def close(self) -> None:
        """Close all of them, and their pinholes."""
        self._closed = True
        for outside in self._sockets.values():
            close_watched(outside.watcher, outside.sock)
            self._pinholes.release(outside.lease, "closed")
        self._sockets.clear()

    def _open(self, facing: str, address: Address) -> Outside:
        if len(self._sockets) >= MAX_OUTSIDE:
            raise DialError("failed", "the association sends from too many addresses")
        public = public_address(self._options.outside, facing)
        request = PinholeRequest(
            flow=self._flow,
            reason=REASON,
            client=self._client.host,
            direction="in",
            transport="udp",
            target=self._client.source(),
            peer=None if self._options.open_answers else str(address),  # and the other hosts to which the client sends
            public_host=public.local,
            ttl=2 * self._options.idle_timeout,
            kind="local",
        )
        try:
            lease, sock = self._pinholes.reserve(request, bind_datagrams)
        except PinholeRefused as error:
            raise DialError("failed", str(error), error.rule) from error
        if self._closed:
            sock.close()
            self._pinholes.release(lease, "closed")
            raise DialError("failed", "the association has ended")
        outside = self._sockets[facing] = Outside(lease, sock, public)
        self._opened(outside)
        return outside
