"""SOCKS and HTTP CONNECT inside TLS (RFC 8446): the handshake, and the user that a client's certificate names."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

import gevent
import gevent.socket as gsocket
import structlog

from alg.address import Endpoint
from gateway.front.auth.passwords import Accounts
from gateway.front.socks.request import Identity, Incoming
from gateway.front.socks.server import SocksFront
from gateway.model.certificates import common_name
from gateway.net.sockets import close_gently, endpoint
from gateway.net.tls import TlsError, TlsSocket

log = structlog.get_logger()

GOODBYE = 1.0  # seconds in which a client may read why its handshake has failed


class TlsFront:
    """Makes the TLS handshake of clients, and lets `front` serve what is inside.

    `context`: called for each connection, since certificates change. `timeout`: seconds for both handshakes together,
    however slowly their bytes come.
    """

    def __init__(
        self, front: SocksFront, context: Callable[[], ssl.SSLContext | None], accounts: Accounts, timeout: float
    ) -> None:
        self._front = front
        self._context = context
        self._accounts = accounts
        self._timeout = timeout

    def handle(self, sock: gsocket.socket, address: tuple[object, ...]) -> None:
        """Serve one accepted connection; owns the socket."""
        until = time.monotonic() + self._timeout
        client = endpoint(address)
        context = self._context()
        if context is None:  # a reload has taken TLS away while this client was in the backlog
            sock.close()
            return
        stream = TlsSocket(sock, context)
        try:
            with gevent.Timeout(self._timeout):
                stream.handshake()
                incoming = Incoming(stream, self._identity(stream))
        except gevent.Timeout:
            self._front.log_timeout(client)
            stream.close()
        except (TlsError, ValueError) as error:
            self._refuse(stream, client, str(error))
        except OSError:  # the client has gone
            stream.close()
        else:
            self._front.serve(incoming, address, until - time.monotonic())

    def _refuse(self, stream: TlsSocket, client: Endpoint, reason: str) -> None:
        log.info("socks.tls_failed", client=str(client), reason=reason)
        close_gently(stream.plain(), GOODBYE)

    def _identity(self, stream: TlsSocket) -> Identity | None:
        """Return the user of the client's certificate; None if there is no certificate. Raises ValueError if it does
        not name exactly one user."""
        certificate = stream.peer_certificate
        if not certificate:
            return None
        name = common_name(certificate)
        return Identity(name, self._accounts.groups(name))
