"""The socket of a UDP association towards its client, and which endpoint the client is."""

from __future__ import annotations

import _socket
from typing import TYPE_CHECKING

import structlog
from gevent import get_hub

from alg.address import Endpoint
from gateway.front.socks.request import SocksRequest
from gateway.net.libev import EV_READ

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

log = structlog.get_logger()


class ClientSide:
    """The client of one association.

    `sock`: bound and non-blocking. `endpoint`: the one endpoint that is served, as the socket spells it; None until its
    first datagram. `protection`: how its datagrams are protected (GSS-API), if they are.
    """

    def __init__(self, sock: _socket.socket, request: SocksRequest, flow: str) -> None:
        self.sock = sock
        self.watcher: _IoWatcher = get_hub().loop.io(sock.fileno(), EV_READ)
        self.endpoint: tuple[object, ...] | None = None
        self.protection = request.protection
        self.host = request.client.host
        # A hint only (RFC 1928 section 4): a port of the client's own address is preferred to one that came first.
        self._hint = request.port if request.host == request.client.host else 0
        self._flow = flow
        self._logged = False

    def accepts(self, sender: tuple[object, ...]) -> bool:
        """Whether `sender` is the client of the association. The client has the address of the control connection, and
        the port that the request named or, if it named none, that of its first datagram. Other senders are logged
        once."""
        host = str(sender[0]).partition("%")[0]
        if host != self.host or (self.endpoint is not None and sender[1] != self._hint):
            if not self._logged:
                log.warning("socks.udp_stranger", flow=self._flow, peer=f"{host} port {sender[1]}")
            self._logged = True
            return False
        self.endpoint = sender
        return True

    def source(self) -> Endpoint:
        """The source of the client's datagrams, of which there has been one."""
        assert self.endpoint is not None
        return Endpoint(self.host, int(str(self.endpoint[1])))
