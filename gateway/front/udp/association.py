"""One UDP association: datagrams of a client to permitted targets, and their answers, in libev callbacks.

No greenlet carries a datagram. There is one socket towards the client, on the address that the client knows, and
towards the outside one for each address of this host that faces a target; each of these is a pinhole with its lease.
Nothing is ever sent to hosts other than the client and the targets that the policy has permitted.
"""

from __future__ import annotations

import _socket
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from time import monotonic
from typing import NamedTuple

import structlog

from alg.address import Address, Endpoint
from alg.api import Side
from alg.socks.socks5 import SocksError
from alg.socks.udp import (
    MAX_ADDRESS_HEADER,
    MAX_HEADER,
    Reassembly,
    encode_header,
    header_size,
    parse_header,
)
from gateway.flow.carrier import ModuleAtWork
from gateway.flow.dial import DialError
from gateway.flow.lookup import Lookup
from gateway.flow.table import Flow
from gateway.front.socks.request import SocksRequest
from gateway.front.udp.client_side import ClientSide
from gateway.front.udp.decisions import VERDICT, Decisions
from gateway.front.udp.outsides import Outsides
from gateway.front.udp.reader import MessageReader, Reading
from gateway.front.udp.routes import AssociationOptions, Route
from gateway.front.udp.sockets import Host, Outside, bound, close_watched
from gateway.net.relay.connection import local_hosts
from gateway.net.turns import turns
from gateway.pinhole.userspace import UserspacePinholes

log = structlog.get_logger()

BATCH = 64  # datagrams that one callback may move, so that one association does not starve the others,
TURN = 0.0003  # and seconds: deciding on a target, or reading a message, takes as long as moving a dozen
MAX_WAITING = 16  # datagrams that wait for one decision
_BUFFER = bytearray(MAX_HEADER + 65535)  # for all associations: a callback is done with it before the next one begins
_VIEW = memoryview(_BUFFER)


class AssociationMeans(NamedTuple):
    """What all associations of a worker use. `readers`: the modules that read datagrams, by the targets' ports."""

    lookup: Lookup
    pinholes: UserspacePinholes
    options: AssociationOptions
    readers: Mapping[int, MessageReader]


class Association:
    """Carries one association from `start` to `close`. It is its flow's carrier: `up` and `down` count payload."""

    def __init__(
        self,
        request: SocksRequest,
        inner: _socket.socket,
        flow: Flow,
        means: AssociationMeans,
        end: Callable[[str], None],
    ) -> None:
        """`inner`: a bound, non-blocking UDP socket for the client. `end(reason)` is called, from the hub, when the
        association should be closed."""
        self.up = self.down = 0
        self.active = monotonic()
        self.dropped: Counter[str] = Counter()
        self._client = ClientSide(inner, request, flow.id)
        self._options = options = means.options
        self._reading = Reading(means.readers, flow, options.idle_timeout, self._pass_on, self._moved)
        self._end = end
        self._reassembly = Reassembly()
        self._routes: dict[bytes, Route] = {}
        self._peers: dict[Host, bytes] = {}  # the hosts that may answer, and the header of their answers
        self._outsides = Outsides(flow.id, self._client, means.pinholes, options, self._watch)
        self._decisions = Decisions(
            request.connect_request(), flow.id, means.lookup, self._outsides, self._direct, self._decided
        )
        self._turns = turns()
        self._closed = False

    def start(self) -> None:
        self._client.watcher.start(self._from_client)

    def close(self) -> None:
        """Stop for good, and close its sockets and pinholes."""
        self._closed = True
        close_watched(self._client.watcher, self._client.sock)
        self._read_anew()
        self._outsides.close()

    def readers(self) -> tuple[ModuleAtWork, ...]:
        """The modules that read its datagrams, one for each socket towards the outside."""
        reading = self._reading.all()
        return tuple(ModuleAtWork(each.name, each.driver.module, each.conversations, "udp") for each in reading)

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its sockets use."""
        return local_hosts(self._client.sock, *self._outsides)

    def abort(self, reset: bool = True) -> None:
        """End the association from outside, as a drain does."""
        self._end("aborted")

    def renew(self, now: float) -> float | None:
        """The wheel's check. Returns when to check again; None, after `end`, if nothing has moved for too long."""
        due = self.active + self._options.idle_timeout
        if now >= due:
            self._end("idle")
            return None
        self._outsides.renew()
        return due

    # --- from the client --------------------------------------------------------------------------------------------

    def _from_client(self) -> None:
        client = self._client
        if self._turns.is_on(client.watcher, self._from_client):
            now = monotonic()
            self._move_from_client(client, now)
            self._turns.spend(monotonic() - now)

    def _move_from_client(self, client: ClientSide, now: float) -> None:
        receive, view, protection = client.sock.recvfrom_into, _VIEW, client.protection
        until = now + TURN
        for _ in range(BATCH):
            try:
                size, sender = receive(view)
            except BlockingIOError:
                return
            except OSError:  # an earlier answer that could not be delivered
                continue
            if sender != client.endpoint and not self._is_client(sender):
                self.dropped["stranger"] += 1
                continue
            self.active = now
            if protection is None:
                self._take(view[:size], now)
            else:
                try:
                    datagram = protection.unwrap(bytes(view[:size]))
                except ValueError:
                    self.dropped["protection"] += 1
                    continue
                self._take(memoryview(datagram), now)
            if monotonic() >= until:
                return

    def _is_client(self, sender: tuple[object, ...]) -> bool:
        known = self._client.endpoint is not None
        accepted = self._client.accepts(sender)
        if accepted and known:  # it has another port now
            self._read_anew()
        return accepted

    def _take(self, datagram: memoryview, now: float) -> None:
        size = header_size(datagram)
        header, data = bytes(datagram[:size]), datagram[size:]
        if not size or header[2]:
            whole = self._reassemble(header, bytes(data), now) if size else None
            if whole is None:
                return
            header, data = header[:2] + b"\0" + header[3:], memoryview(whole)
        elif self._reassembly.pending:
            self._reassembly.abandon()
        route = self._routes.get(header)
        if route is None or now >= route.until:
            route = self._route(header, now)
        if route.sock is not None:
            self._send(route.sock, route.target, data)
        elif route.messages is not None:
            route.messages.take(Side.CLIENT, route.target, bytes(data))
        elif route.waiting is not None and len(route.waiting) < MAX_WAITING:
            route.waiting.append(bytes(data))
        else:
            self.dropped["refused"] += 1

    def _reassemble(self, header: bytes, data: bytes, now: float) -> bytes | None:
        if not self._options.reassemble:
            self.dropped["fragment"] += 1
            return None
        try:
            return self._reassembly.add(parse_header(header)[0], data, now)
        except SocksError:
            self.dropped["malformed"] += 1
            return None

    def _send(self, sock: _socket.socket, target: Host, data: bytes | memoryview) -> None:
        try:
            self.up += sock.sendto(data, target)
        except OSError:  # no room, too long, or the router's own filter
            self.dropped["send"] += 1

    # --- decisions --------------------------------------------------------------------------------------------------

    def _route(self, header: bytes, now: float) -> Route:
        """Decide anew where datagrams with this header go."""
        route = Route(now + VERDICT)
        self._routes.pop(header, None)  # behind the others, for it is in use
        self._routes[header] = route
        bound(self._routes)
        self._decisions.decide(route, header)
        return route

    def _decided(self, route: Route, waiting: list[bytes]) -> None:
        """Send on what has waited for a decision."""
        if not self._closed:
            for data in waiting:
                if route.sock is not None:
                    self._send(route.sock, route.target, data)
                elif route.messages is not None:
                    route.messages.take(Side.CLIENT, route.target, data)

    def _direct(self, route: Route, outside: Outside, address: Address, port: int) -> None:
        """Let the route lead to a permitted address. Raises DialError."""
        if not port:
            raise DialError("failed", "there is no port 0")
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        route.target = (socket.inet_ntop(family, address.packed), port)  # as `recvfrom` spells it
        header = self._peers.pop(route.target, None) or encode_header(Endpoint(str(address), port))
        route.messages = self._reading.begin(outside, self._client.source, route.target, header)
        if route.messages is None:
            route.sock = outside.sock
            self._peers[route.target] = header
            bound(self._peers)

    # --- what is read -----------------------------------------------------------------------------------------------

    def _read_anew(self) -> None:
        """Stop reading all datagrams. The next datagram to each target is decided on again."""
        self._routes.clear()
        self._reading.close()

    def _pass_on(self, outside: Outside, side: Side, target: Host, data: bytes) -> None:
        """Pass on a datagram of `side` that a module has read."""
        if side is Side.CLIENT:
            self._send(outside.sock, target, data)
        else:
            messages = self._reading.of(outside, target)
            self._answer((messages.peers[target] if messages is not None else _header(target)) + data, len(data))

    def _moved(self) -> None:
        self.active = monotonic()

    def _watch(self, outside: Outside) -> None:
        outside.watcher.start(self._from_outside, outside)

    # --- from outside -----------------------------------------------------------------------------------------------

    def _from_outside(self, outside: Outside) -> None:
        if self._turns.is_on(outside.watcher, self._from_outside, outside):
            now = monotonic()
            self._move_from_outside(outside, now)
            self._turns.spend(monotonic() - now)

    def _move_from_outside(self, outside: Outside, now: float) -> None:
        receive, view = outside.sock.recvfrom_into, _VIEW[MAX_ADDRESS_HEADER:]
        until = now + TURN
        for _ in range(BATCH):
            try:
                size, sender = receive(view)
            except BlockingIOError:
                return
            except OSError:
                continue
            header = self._peers.get(sender[:2])
            if header is not None or (header := self._from_another(outside, sender[:2], view[:size])) is not None:
                self.active = now
                start = MAX_ADDRESS_HEADER - len(header)
                _BUFFER[start:MAX_ADDRESS_HEADER] = header
                self._answer(_VIEW[start : MAX_ADDRESS_HEADER + size], size)
            if monotonic() >= until:
                return

    def _from_another(self, outside: Outside, sender: Host, data: memoryview) -> bytes | None:
        """Return the header for a datagram that comes from none of the peers; None if a module reads it, or it was not
        asked for."""
        messages = self._reading.of(outside, sender)
        if messages is None and sender[0] in outside.hosts:  # a module knows that it answers from another port
            header = self._peers[sender] = _header(sender)
            bound(self._peers)
            return header
        if messages is None:
            if not self._options.open_answers:
                self.dropped["unasked"] += 1
                return None
            header = _header(sender)
            messages = self._reading.begin(outside, self._client.source, sender, header)
            if messages is None:
                return header
        self._moved()
        messages.take(Side.SERVER, sender, bytes(data))
        return None

    def _answer(self, datagram: bytes | memoryview, size: int) -> None:
        client = self._client
        wire = datagram if client.protection is None else client.protection.wrap(bytes(datagram))
        assert client.endpoint is not None
        try:
            client.sock.sendto(wire, client.endpoint)
        except OSError:  # no room, or too long with its header
            self.dropped["send"] += 1
        else:
            self.down += size


def _header(target: Host) -> bytes:
    """Return the header of datagrams that come from `target`."""
    return encode_header(Endpoint.of(target[0].partition("%")[0], target[1]))
