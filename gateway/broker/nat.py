"""Finds out what the NAT of this host makes of a flow, and makes connections with a client's own address.

The rules of the NAT are never read: the kernel is asked what it did (connection tracking), or given a packet to
translate (a probe). docs/decisions/0121-as-the-nat-would.md
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import ipaddress
import os
import random
import socket
import struct
import sys
import time

from alg.address import Endpoint
from gateway.broker.elements import Element
from gateway.broker.marks import PROBE, SPOKEN
from gateway.broker.netfilter import Change, Netfilter
from gateway.broker.translations import TranslationTable
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Along
from gateway.net.addresses import OwnAddresses

REMEMBERED = 0.5
"""Seconds for which an answer is reused: one message may begin many conversations, and a PBX begins many calls a second
along one flow. The kernel keeps what it has made of a flow, so only one that begins anew could have another address."""

_MOST = 4096
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_SO_MARK = 36
_TRIES = 16


class Nat:
    """Asks what the NAT makes of flows. Must not be used by several threads. `rng` chooses ports."""

    def __init__(self, netfilter: Netfilter, rng: random.Random) -> None:
        self._netfilter = netfilter
        self._rng = rng
        self._tracking = TranslationTable()
        self._own = OwnAddresses()
        self._known: dict[Along, tuple[float, str]] = {}
        self._begun: dict[tuple[Endpoint, Endpoint], tuple[bytes, int]] = {}  # the kernel's id of a flow, its interface

    def public_of(self, along: Along) -> str:
        """Return the address with which the flow's source is seen by its destination; the source's own address if
        nothing is translated. Raises PinholeRefused "public" if it cannot be found out, and NetfilterError."""
        now = time.monotonic()
        known = self._known.get(along)
        if known is None or known[0] < now:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[along] = (now + REMEMBERED, self._ask(along))
        return known[1]

    def _ask(self, along: Along) -> str:
        found = self._tracking.get(along.transport, along.source, along.destination)
        left = self._leaves_elsewhere(along, found.id if found is not None else b"")
        if found is not None:
            public = found.seen.host
            if along.transport != "udp" or public == along.source.host or (self._own.is_local(public) and not left):
                return public
            # The connection may be remembered from before this host lost that address, or from before its packets left
            # by another interface (fail-over: what a MASQUERADE has translated is forgotten by the kernel then).
            afresh = self._probe(along, 0)
            return afresh if afresh is not None and self._own.is_local(afresh) else public
        if along.transport == "udp":
            probed = self._probe(along, along.source.port)
            if probed is not None:
                return probed
        elif self._own.is_local(along.source.host):
            return along.source.host  # what is not tracked is not translated
        raise PinholeRefused(
            "public", f"it cannot be found out with which address {along.destination} sees {along.source}"
        )

    def _leaves_elsewhere(self, along: Along, entry: bytes) -> bool:
        """Whether a flow's packets leave by another interface than when connection tracking's `entry` of it was first
        seen here, or before it was there (b"")."""
        if not along.device:
            return False
        flow = along.source, along.destination
        known, device = self._begun.get(flow, (entry, along.device))
        if not entry or known not in (b"", entry):  # another one than before
            device = along.device
        if flow not in self._begun and len(self._begun) >= _MOST:
            self._begun.clear()
        self._begun[flow] = entry, device
        return device != along.device

    def _probe(self, along: Along, port: int) -> str | None:
        """Return what the NAT makes of a datagram like the flow's, from this port (0: any); None if it did not get that
        far."""
        host = along.source.host
        try:
            with contextlib.closing(_transparent(socket.SOCK_DGRAM, host, along.mark)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("=I", PROBE))
                if along.device:
                    device = socket.if_indextoname(along.device).encode()
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
                try:
                    sock.bind((host, port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    sock.bind((host, 0))  # a server of this host has that port
                source = Endpoint(host, sock.getsockname()[1])
                sock.sendto(b"", (along.destination.host, along.destination.port))
        except OSError as error:
            if error.errno != errno.EPERM:  # that is how our own chain ends it
                return None
        except ValueError:
            return None
        name, key = f"seen{source.version}", struct.pack(">H", source.port)
        data = self._netfilter.data(name, key)
        # An element that is there keeps its data: the next probe is to find none.
        self._netfilter.apply([Change(delete=(Element(name, key, None, 0.0, ""),))])
        return None if data is None else str(ipaddress.ip_address(data))

    def connect(self, client: Endpoint, server: Endpoint, port: int) -> tuple[_socket.socket, Endpoint]:
        """Begin a connection from the client's address to a port of the server's host, if the client's own connection
        to `server` was redirected to this host, and return it with the endpoint that the server sees. It is routed and
        translated like the client's packets. Raises PinholeRefused "flow" if there is no such connection, or "connect"
        with the errno as the detail, and NetfilterError."""
        asked = self._tracking.get("tcp", client, server)
        if asked is None or not asked.from_source or asked.answers == server:
            raise PinholeRefused("flow", f"{client} has no connection to {server} that was redirected")
        mark = self._netfilter.data("marks", asked.id)
        value = int.from_bytes(mark, sys.byteorder) if mark else 0
        sock = _transparent(socket.SOCK_STREAM, client.host, value)
        try:
            own = Endpoint(client.host, self._bind(sock, client.host))
            sock.setblocking(False)
            code = sock.connect_ex((server.host, port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            # The first packet has passed the NAT by now.
            found = self._tracking.get("tcp", own, Endpoint(server.host, port))
        except OSError as error:
            sock.close()
            raise PinholeRefused("connect", str(error.errno)) from error
        except BaseException:
            sock.close()
            raise
        return sock, found.seen if found is not None else own

    def _bind(self, sock: _socket.socket, host: str) -> int:
        for _ in range(_TRIES):
            port = self._rng.randint(*SPOKEN)
            try:
                sock.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _transparent(kind: int, host: str, mark: int) -> _socket.socket:
    """Make a socket that may be bound to any address. Needs CAP_NET_ADMIN."""
    version = 6 if ":" in host else 4
    sock = _socket.socket(_family(version), kind | socket.SOCK_CLOEXEC)
    try:
        if version == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, struct.pack("=I", mark))
    except BaseException:
        sock.close()
        raise
    return sock


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
