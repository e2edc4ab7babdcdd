"""Refuses a client's SYN if its server does not listen, at ports that a module reads.

The kernel accepts a redirected connection before the server is asked. A client that could use UDP instead (a SIP
request that goes over TCP only for its length, RFC 3261 section 18.1.1), or another address of the server (RFC 8305),
does so when its connection is refused, and not when it was accepted and reset. So the SYN waits in the queue until the
server was asked: for `LONGEST` seconds at most, and not if the answer is known. A refused SYN gets a mark, for which
the kernel answers with a reset (`iptables/algate.nft`); anything else goes on as before.
docs/decisions/0121-as-the-nat-would.md
"""

from __future__ import annotations

import contextlib
import errno
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence

import gevent
import gevent.socket as gsocket

from alg.address import Endpoint, canonical
from gateway.broker.marks import PASSING, PROBE
from gateway.broker.nfqueue import QueuedPacket
from gateway.front.packets.packet import TCP, NotWhole, ends_of
from gateway.model.requests import Network
from gateway.observe.log import get_logger

LONGEST = 0.9  # seconds that a SYN waits: its sender repeats it after one
SERVES, REFUSES = 10.0, 2.0  # seconds that an answer of a server is believed
MOST_KNOWN = 4096
MOST, MOST_OF_CLIENT = 128, 8  # servers that are asked at a time; a further SYN does not wait

log = get_logger()


class Handshakes:
    """The SYNs that wait. `take` is called with each packet of TCP of the queue. `identify`: which addresses are one
    client."""

    def __init__(
        self,
        inside: Sequence[Network],
        now: Callable[[], float] = time.monotonic,
        identify: Callable[[str], str] = str,
    ) -> None:
        self._inside = inside
        self._now = now
        self._identify = identify
        self._known: dict[Endpoint, tuple[float, bool]] = {}  # until when, and whether it refuses
        self._waiting: dict[Endpoint, list[QueuedPacket]] = {}
        self._asked_for: Counter[str] = Counter()
        self.refused = 0

    def take(self, packet: QueuedPacket) -> None:
        """Handle one packet of the queue."""
        try:
            client, server = ends_of(packet.get_payload(), TCP)
        except NotWhole:
            packet.accept()
            return
        known = self._known.get(server)
        if known is not None and known[0] > self._now():
            self._answer(packet, known[1])
        elif (waiting := self._waiting.get(server)) is not None and len(waiting) < MOST_OF_CLIENT:
            waiting.append(packet)
        elif (
            waiting is not None
            or len(self._waiting) >= MOST
            or self._is_inside(server)
            or self._asked_for[host := self._identify(client.host)] >= MOST_OF_CLIENT
        ):
            packet.accept()
        else:
            self._waiting[server] = [packet]
            self._asked_for[host] += 1
            gevent.spawn(self._ask, client, host, server)

    def _is_inside(self, server: Endpoint) -> bool:
        address = canonical(server.host)
        return any(address in network for network in self._inside)

    def _ask(self, client: Endpoint, host: str, server: Endpoint) -> None:
        refuses = False
        try:
            refuses = _refuses(server)
        finally:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[server] = self._now() + (REFUSES if refuses else SERVES), refuses
            self._asked_for[host] -= 1
            if not self._asked_for[host]:
                del self._asked_for[host]
            if refuses:
                log.info("transparent.refused", client=client.host, server=str(server))
            for packet in self._waiting.pop(server):
                self._answer(packet, refuses)

    def _answer(self, packet: QueuedPacket, refuses: bool) -> None:
        if refuses:
            self.refused += 1
            packet.set_mark(packet.mark | PASSING)
        packet.accept()


def _refuses(server: Endpoint) -> bool:
    """Whether the server refuses the connection, because no program listens there. Any other result counts as no."""
    family = gsocket.AF_INET6 if server.version == 6 else gsocket.AF_INET
    try:
        probe = gsocket.socket(family, gsocket.SOCK_STREAM)
    except OSError:  # no descriptor is left
        return False
    with probe as sock:
        sock.settimeout(LONGEST)
        try:
            # By the priority nft knows it (chain `speaking`), and lets nothing of it out but its SYN and its reset: the
            # server's program never sees a connection.
            with contextlib.suppress(PermissionError):  # without CAP_NET_ADMIN it is a connection, reset at once
                sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_PRIORITY, struct.pack("=I", PROBE))
            sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.connect((server.host, server.port))
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False
