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
from typing import TYPE_CHECKING

import gevent
import msgspec
import structlog
from gevent import get_hub
from gevent.lock import BoundedSemaphore

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
from gateway.flow.dial import DialError
from gateway.flow.lookup import Lookup
from gateway.flow.table import Flow
from gateway.front.socks.request import SocksRequest
from gateway.front.udp.reader import MessageReader, Messages, Reading
from gateway.front.udp.routes import Options, Refusals, Route
from gateway.front.udp.sockets import Host, Outside, bind_datagrams, bound, close_watched, facing_address
from gateway.model.errors import PinholeRefused
from gateway.model.hosts import parse_address, read_host
from gateway.model.requests import ConnectRequest, PinholeRequest
from gateway.net.addresses import public_address
from gateway.net.libev import EV_READ
from gateway.net.relay.connection import local_hosts
from gateway.pinhole.userspace import UserspacePinholes

if TYPE_CHECKING:
    from gevent._types import _IoWatcher

log = structlog.get_logger()

REASON = "socks.udp"
BATCH = 64  # datagrams that one callback may move, so that one association does not starve the others
VERDICT = 1.0  # seconds that a decision on a target holds; then the policy is asked again
MAX_OUTSIDE = 8  # addresses of this host that an association sends from
MAX_WAITING = 16  # datagrams that wait for one decision
MAX_RESOLVING = 8  # names that an association resolves at the same time
MAX_OPENING = 32  # targets that wait for the first socket that faces them
_BUFFER = bytearray(MAX_HEADER + 65535)  # for all associations: a callback is done with it before the next one begins
_VIEW = memoryview(_BUFFER)


class Association:
    """Carries one association from `start` to `close`. It is its flow's carrier: `up` and `down` count payload."""

    def __init__(
        self,
        request: SocksRequest,
        inner: _socket.socket,
        flow: Flow,
        lookup: Lookup,
        pinholes: UserspacePinholes,
        options: Options,
        readers: Mapping[int, MessageReader],
        end: Callable[[str], None],
    ) -> None:
        """`inner`: a bound, non-blocking UDP socket for the client. `readers`: the modules that read datagrams, by the
        targets' ports. `end(reason)` is called, from the hub, when the association should be closed."""
        self.up = self.down = 0
        self.active = monotonic()
        self.dropped: Counter[str] = Counter()
        self._request = request.connect_request()
        self._protection = request.protection
        # A hint only (RFC 1928 section 4): a port of the client's own address is preferred to one that came first.
        self._hint = request.port if request.host == request.client.host else 0
        self._client: tuple[object, ...] | None = None  # the one endpoint that is served, as the socket tells it
        self._inner = inner
        self._inner_watcher: _IoWatcher = get_hub().loop.io(inner.fileno(), EV_READ)
        self._flow = flow
        self._lookup = lookup
        self._pinholes = pinholes
        self._options = options
        self._reading = Reading(readers, flow, options.idle_timeout, self._pass_on, self._moved)
        self._end = end
        self._reassembly = Reassembly()
        self._routes: dict[bytes, Route] = {}
        self._peers: dict[Host, bytes] = {}  # the hosts that may answer, and the header of their answers
        self._outsides: dict[str, Outside] = {}
        self._deciding: Counter[int] = Counter()
        self._opening = BoundedSemaphore(1)
        self._closed = False
        self._refusals = Refusals(flow.id)

    def start(self) -> None:
        self._inner_watcher.start(self._from_client)

    def close(self) -> None:
        """Stop for good, and close its sockets and pinholes."""
        self._closed = True
        close_watched(self._inner_watcher, self._inner)
        self._read_anew()
        for outside in self._outsides.values():
            close_watched(outside.watcher, outside.sock)
            self._pinholes.release(outside.lease, "closed")
        self._outsides.clear()

    def messages(self) -> list[Messages]:
        """The modules that read its datagrams, by the sockets towards the outside."""
        return self._reading.all()

    def hosts(self) -> tuple[str, ...]:
        """The addresses of this host that its sockets use."""
        return local_hosts(self._inner, *(outside.sock for outside in self._outsides.values()))

    def abort(self, reset: bool = True) -> None:
        """End the association from outside, as a drain does."""
        self._end("aborted")

    def renew(self, now: float) -> float | None:
        """The wheel's check. Returns when to check again; None, after `end`, if nothing has moved for too long."""
        due = self.active + self._options.idle_timeout
        if now >= due:
            self._end("idle")
            return None
        for outside in self._outsides.values():
            self._pinholes.renew(outside.lease, 2 * self._options.idle_timeout)
        return due

    # --- from the client --------------------------------------------------------------------------------------------

    def _from_client(self) -> None:
        now = monotonic()
        receive, view = self._inner.recvfrom_into, _VIEW
        for _ in range(BATCH):
            try:
                size, sender = receive(view)
            except BlockingIOError:
                return
            except OSError:  # an earlier answer that could not be delivered
                continue
            if sender != self._client and not self._is_client(sender):
                self.dropped["stranger"] += 1
                continue
            self.active = now
            if self._protection is None:
                self._take(view[:size], now)
            else:
                try:
                    datagram = self._protection.unwrap(bytes(view[:size]))
                except ValueError:
                    self.dropped["protection"] += 1
                    continue
                self._take(memoryview(datagram), now)

    def _is_client(self, sender: tuple[object, ...]) -> bool:
        """Whether the sender is the client: its address, and the first port of it or the one that it had told."""
        host = str(sender[0]).partition("%")[0]
        if host != self._request.client.host or (self._client is not None and sender[1] != self._hint):
            if not self.dropped["stranger"]:
                log.warning("socks.udp_stranger", flow=self._flow.id, peer=f"{host} port {sender[1]}")
            return False
        before, self._client = self._client, sender
        if before is not None:
            self._read_anew()
        return True

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
        try:
            parsed, _ = parse_header(header)
        except SocksError:
            return route
        host = read_host(parsed.host)
        request = msgspec.structs.replace(self._request, host=host, port=parsed.port)
        try:
            address = parse_address(host)
        except ValueError:
            self._decide_later(request, route, MAX_RESOLVING)
            return route
        try:
            self._lookup.check(request, address)
            outside = self._outsides.get(facing_address(address))
            if outside is not None:
                self._direct(route, outside, address, parsed.port)
            else:
                self._decide_later(request, route, MAX_OPENING)
        except DialError as error:
            self._refusals.log_refusal(request, error)
        return route

    def _decide_later(self, request: ConnectRequest, route: Route, limit: int) -> None:
        """Decide in a greenlet, because that may wait. The datagrams of this route wait too; all others go on. There
        are at most `limit` such greenlets of a kind, so that names do not keep addresses waiting."""
        if self._deciding[limit] >= limit:
            return
        self._deciding[limit] += 1
        route.waiting = []
        route.until = float("inf")  # what comes meanwhile waits with the others
        gevent.spawn(self._decide, request, route, limit)

    def _decide(self, request: ConnectRequest, route: Route, limit: int) -> None:
        try:
            address = self._lookup.permitted(request)[0]
            facing = facing_address(address)
            with self._opening:
                outside = self._outsides.get(facing) or self._open(facing, address)
            self._direct(route, outside, address, request.port)
        except DialError as error:
            self._refusals.log_refusal(request, error)
        finally:
            self._deciding[limit] -= 1
            route.until = monotonic() + VERDICT
            waiting, route.waiting = route.waiting or [], None
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
        route.messages = self._reading.begin(outside, self._client_socket, route.target, header)
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

    def _client_socket(self) -> Endpoint:
        assert self._client is not None
        return Endpoint(self._request.client.host, int(str(self._client[1])))

    def _open(self, facing: str, address: Address) -> Outside:
        """Open a socket, with its pinhole, at the address `facing` of this host. May wait for the broker. Raises
        DialError."""
        if len(self._outsides) >= MAX_OUTSIDE:
            raise DialError("failed", "the association sends from too many addresses")
        public = public_address(self._options.outside, facing)
        request = PinholeRequest(
            flow=self._flow.id,
            reason=REASON,
            client=self._request.client.host,
            direction="in",
            transport="udp",
            target=self._client_socket(),
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
        outside = self._outsides[facing] = Outside(lease, sock, public)
        outside.watcher.start(self._from_outside, outside)
        return outside

    # --- from outside -----------------------------------------------------------------------------------------------

    def _from_outside(self, outside: Outside) -> None:
        now = monotonic()
        receive, view = outside.sock.recvfrom_into, _VIEW[MAX_ADDRESS_HEADER:]
        for _ in range(BATCH):
            try:
                size, sender = receive(view)
            except BlockingIOError:
                return
            except OSError:
                continue
            header = self._peers.get(sender[:2])
            if header is None and (header := self._from_another(outside, sender[:2], view[:size])) is None:
                continue
            self.active = now
            start = MAX_ADDRESS_HEADER - len(header)
            _BUFFER[start:MAX_ADDRESS_HEADER] = header
            self._answer(_VIEW[start : MAX_ADDRESS_HEADER + size], size)

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
            messages = self._reading.begin(outside, self._client_socket, sender, header)
            if messages is None:
                return header
        self._moved()
        messages.take(Side.SERVER, sender, bytes(data))
        return None

    def _answer(self, datagram: bytes | memoryview, size: int) -> None:
        wire = datagram if self._protection is None else self._protection.wrap(bytes(datagram))
        assert self._client is not None
        try:
            self._inner.sendto(wire, self._client)
        except OSError:  # no room, or too long with its header
            self.dropped["send"] += 1
        else:
            self.down += size


def _header(target: Host) -> bytes:
    """Return the header of datagrams that come from `target`."""
    return encode_header(Endpoint.of(target[0].partition("%")[0], target[1]))
