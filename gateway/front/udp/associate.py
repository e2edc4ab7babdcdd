"""SOCKS UDP ASSOCIATE (RFC 1928 section 4): makes an association, and ends it with its TCP connection."""

from __future__ import annotations

import _socket
import errno
import random
import socket

import gevent
import structlog

from gateway.flow.dial import DialError
from gateway.flow.table import Flows
from gateway.front.socks.request import SocksRequest
from gateway.front.udp.association import Association, AssociationMeans
from gateway.front.udp.outsides import REASON
from gateway.front.udp.sockets import bind_datagrams
from gateway.net.relay.wheel import Wheel
from gateway.net.sockets import endpoint, prepare

log = structlog.get_logger()

READ_SIZE = 4096
PAUSE = 0.05  # seconds between two reads of a control connection: a client that floods it waits, and no other does
TRIES = 64  # random ports


class UdpAssociateCommand:
    """Carries out UDP ASSOCIATE requests. `ports`: lowest and highest port, also of sockets towards the client."""

    def __init__(self, means: AssociationMeans, flows: Flows, wheel: Wheel, ports: tuple[int, int]) -> None:
        self._means = means
        self._lookup = means.lookup
        self._flows = flows
        self._wheel = wheel
        self._ports = ports
        self._random = random.SystemRandom()

    def run(self, request: SocksRequest) -> None:
        """Serve one request, to the end of its association; owns its socket."""
        try:
            admission = self._lookup.admit_association(request.connect_request())
            holder = None
            try:
                holder = self._lookup.take_association(request.client.host)
                inner = self._bind(str(request.incoming.local[0]))
            except DialError:
                self._lookup.give_back_association(holder)
                admission.session.release()
                raise
        except DialError as error:
            request.fail(error)
            return
        bound = endpoint(inner.getsockname())
        flow = self._flows.add("socks", request.client, bound, request.user, rule=admission.decision.rule)
        flow.module, flow.session = REASON, admission.session
        reasons: list[str] = []

        def end(reason: str) -> None:
            """Wake the greenlet below, which waits for the end of the control connection."""
            reasons.append(reason)
            try:
                request.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended by itself

        association = Association(request, inner, flow, self._means, end)
        flow.hand_over(association)
        entry = self._wheel.add(association.active + self._means.options.idle_timeout, association.renew)
        try:
            association.start()
            request.grant(bound)
            prepare(request.sock)
            while request.sock.recv(READ_SIZE):  # nothing that comes here means anything
                gevent.sleep(PAUSE)
        except OSError:
            reasons.append("reset")
        finally:
            self._wheel.discard(entry)
            association.close()
            request.sock.close()
            if association.dropped:
                log.info("socks.udp_dropped", flow=flow.id, **association.dropped)
            self._lookup.give_back_association(holder)
            self._flows.end(flow, reasons[0] if reasons else "eof")

    def _bind(self, host: str) -> _socket.socket:
        """Bind a socket for the client at the address to which it has connected. Raises DialError."""
        host = host.removeprefix("::ffff:") if "." in host else host
        for _ in range(TRIES):
            try:
                return bind_datagrams(host, self._random.randint(*self._ports))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise DialError("failed", error.strerror or str(error)) from error
        raise DialError("failed", "no port is free")
