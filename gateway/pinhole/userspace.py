"""Pinholes in userspace: listen on the public address, check the peer, relay. For clients to which the kernel has no
route."""

from __future__ import annotations

import errno
import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import gevent
import gevent.socket as gsocket
import msgspec
import structlog

from alg.address import Endpoint
from gateway.flow.table import Flows
from gateway.lease.quotas import LeaseLimits
from gateway.lease.table import LeaseTable, lease_row
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Done, Lease, Network, PinholeRequest, PinholeUpdate
from gateway.net.sockets import abort, endpoint, prepare
from gateway.observe.metrics import Sample
from gateway.pinhole.admission import LocalPorts
from gateway.pinhole.backend import Carry
from gateway.pinhole.passage import Passage

log = structlog.get_logger()

CONNECT_TIMEOUT = 10.0  # seconds to reach the target
BACKLOG = 16


class Closable(Protocol):
    def close(self) -> None: ...


S = TypeVar("S", bound=Closable)


class Listener(Protocol):
    """What accepts connections: a listening socket, or something that is used like one. `accept` raises OSError;
    `fileno` is readable when one waits."""

    def accept(self) -> tuple[gsocket.socket, tuple[object, ...]]: ...

    def settimeout(self, value: float | None, /) -> None: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Accepted(NamedTuple):
    """A connection, and where it came from: the kernel does not tell that of one that was reset since."""

    sock: gsocket.socket
    remote: Endpoint


class UserspacePinholes:
    """The userspace backend of one worker. What comes through a pinhole is a flow of its own, with the front "pinhole".

    `ports`, `per_client`, `rate`: see LeaseLimits. With `admission` the broker enforces them where it knows the
    pinhole.
    """

    elsewhere = False
    outbound = False  # a SOCKS client reaches the outside through us, whatever the FORWARD policy is

    def __init__(
        self, flows: Flows, ports: tuple[int, int], per_client: int, rate: float, admission: LocalPorts | None = None
    ) -> None:
        self._flows = flows
        self._admission = admission
        self._table = LeaseTable(backend="userspace", limits=LeaseLimits(ports, per_client=per_client, rate=rate))
        self._rng = random.SystemRandom()
        self._waiting: dict[str, gevent.Greenlet[..., str]] = {}
        self._passages: dict[str, Passage] = {}  # by the lease, until the peer is joined to the target
        self._carriers: dict[str, Carry] = {}  # of those that something else than the relay is to carry
        self._elsewhere: set[str] = set()  # those at which an upstream listens

    def configure(self, ports: tuple[int, int], per_client: int, rate: float, inside: Sequence[Network]) -> None:
        """Use other limits from now on. What is open stays open."""
        self._table.configure(LeaseLimits(ports, per_client=per_client, rate=rate))
        if self._admission is not None:
            self._admission.inside = tuple(inside)

    def reserve(self, request: PinholeRequest, make: Callable[[str, int], S]) -> tuple[Lease, S]:
        """Lease a port of the public host for a caller that serves it itself, with the socket that `make(host, port)`
        has bound there (OSError: the port is not free). `release` ends it. Raises PinholeRefused."""
        if self._admission is not None and self._admission.concerns(request):
            lease, sock = self._admission.reserve(request, make)
            self._table.restore(lease, owner=0, deadline=time.monotonic() + request.ttl)
            _log_open(lease)
            return lease, sock
        made: list[S] = []

        def is_free(port: int) -> bool:
            """Try to bind the port, and return whether that worked."""
            try:
                made.append(make(request.public_host or "", port))
            except OSError:
                return False
            return True

        now = time.monotonic()
        self._table.expire(now)
        try:
            lease = self._table.open(request, now=now, unix=time.time(), rng=self._rng, is_free=is_free)
        except PinholeRefused:
            for sock in made:
                sock.close()
            raise
        _log_open(lease)
        return lease, made[-1]

    def renew(self, lease: Lease, ttl: float) -> None:
        """Let a reserved port live for `ttl` seconds from now, because it is in use."""
        current = self._table.get(lease.id, owner=0)
        if current is not None:
            lease = msgspec.structs.replace(current, expires=time.time() + ttl)
            self._table.replace(lease, deadline=time.monotonic() + ttl)
        if self._admission is not None and lease.id in self._admission:
            gevent.spawn(self._admission.renew, lease.id, ttl)

    def release(self, lease: Lease, reason: str) -> None:
        """Give a reserved port back. The caller has closed its socket. `reason` is for the log."""
        self._table.close(lease.id, now=time.monotonic())
        if self._admission is not None:
            self._admission.release(lease.id)
        log.info("pinhole.close", pinhole=lease.id, flow=lease.flow, protocol=lease.protocol, reason=reason)

    def open(self, request: PinholeRequest) -> Lease:
        """Listen, and return when a peer can connect. Raises PinholeRefused."""
        if request.transport != "tcp":
            raise PinholeRefused("transport", f"{request.transport} is not available")
        lease, listener = self.reserve(request, listen)
        self._begin(lease, listener, request.ttl)
        return lease

    def read(self, request: PinholeRequest, carry: Carry) -> Lease:
        """Open a pinhole whose connection `carry` takes in place of the relay. Raises PinholeRefused."""
        lease, listener = self.reserve(request, listen)
        self._carriers[lease.id] = carry
        self._begin(lease, listener, request.ttl)
        return lease

    def check(self, request: PinholeRequest) -> None:
        """Count a request for its client, and raise PinholeRefused if that may not have one more pinhole."""
        now = time.monotonic()
        self._table.expire(now)
        self._table.check_limits(request, now)

    def wait(self, request: PinholeRequest, public: Endpoint, listener: Listener) -> Lease:
        """Serve a pinhole at `public`, where another program (an upstream) listens; owns `listener`, which accepts one
        connection. `check` was called before."""
        lease = Lease(
            id=f"{self._rng.getrandbits(64):016x}",
            flow=request.flow,
            reason=request.reason,
            client=request.client,
            direction="in",
            protocol="tcp",
            public=public,
            target=request.target,
            peer=request.peer,
            expires=time.time() + request.ttl,
            backend="userspace",
        )
        self._table.restore(lease, owner=0, deadline=time.monotonic() + request.ttl)
        self._elsewhere.add(lease.id)
        _log_open(lease)
        self._begin(lease, listener, request.ttl)
        return lease

    def _begin(self, lease: Lease, listener: Listener, ttl: float) -> None:
        serving = gevent.Greenlet(self._serve, lease, listener, ttl)
        serving.link(functools.partial(self._ended, lease, listener))  # runs however it ends, begun or not
        self._waiting[lease.id] = serving
        self._passages[lease.id] = Passage(listener)
        serving.start()

    def passage(self, lease: Lease) -> Passage | None:
        """Return the passage of an open pinhole's peer."""
        return self._passages.get(lease.id)

    def join(
        self,
        client: Endpoint,
        server: Endpoint,
        sources: tuple[str, str],
        reason: str,
        reach: Callable[[Endpoint], gsocket.socket] | None = None,
    ) -> Passage:
        """Connect to both sides, each from the address at which it knows us (`sources`), and relay. Returns at once,
        with the passage at the client. `reach`: connects to the server in another way."""
        passage = Passage()
        joining = gevent.Greenlet(self._join, client, server, sources, reason, reach, passage)
        joining.link(lambda _: passage.end())  # however it ends, begun or not
        joining.start()
        return passage

    def meet(self, request: PinholeRequest, inner_host: str) -> tuple[Lease, Endpoint]:
        """Open a port for the request's peer, and one at `inner_host` for its client, and relay when both have come.
        Returns the lease of the peer's port, and the client's endpoint. Raises PinholeRefused."""
        entry = msgspec.structs.replace(request, peer=request.client, public_host=inner_host)
        entrance, inner = self.reserve(entry, listen)
        try:
            lease, outer = self.reserve(request, listen)
        except BaseException:
            inner.close()
            self.release(entrance, "refused")
            raise
        serving = gevent.Greenlet(self._meet, lease, inner, outer, request.ttl)
        serving.link(functools.partial(self._met, (lease, outer), (entrance, inner)))
        self._waiting[lease.id] = serving
        serving.start()
        return lease, endpoint(inner.getsockname())

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        """Refuse: this backend has no conversations."""
        refusal = PinholeRefused("transport", "conversations are for the kernel backend")
        gevent.get_hub().loop.run_callback(done, refusal)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Return nothing: this backend has no conversations."""
        return {}

    def close(self, lease: Lease) -> None:
        """Close a pinhole, if it is still open. Connections that it admitted go on."""
        waiting = self._waiting.get(lease.id)
        if waiting is not None:
            waiting.kill(block=False)

    def kick(self, name: str) -> list[dict[str, Any]]:
        """Close the pinhole with this id, if it is served here, and return it."""
        lease = self._table.get(name, owner=0)
        if lease is None or lease.id not in self._waiting:
            return []
        log.warning("pinhole.kick", pinhole=lease.id, flow=lease.flow, client=lease.client)
        self.close(lease)
        return [{"id": name, "kind": "pinhole", "client": lease.client, "server": lease.peer}]

    def close_departed(self, is_local: Callable[[str], bool]) -> None:
        """Close pinholes at an address that this host no longer has."""
        for lease in self._table.live():
            if lease.id not in self._elsewhere and not is_local(lease.public.host):
                self.close(lease)

    def rows(self) -> list[dict[str, Any]]:
        """Return the open pinholes as `algate pinholes --json` shows them, except those that the broker shows."""
        admission = self._admission or ()
        return [lease_row(lease) for lease in self._table.live() if lease.id not in admission]

    def samples(self) -> list[Sample]:
        """Return the open pinholes, for the metrics, including those that the broker only admits."""
        return self._table.samples()

    def _serve(self, lease: Lease, listener: Listener, ttl: float) -> str:
        """Admit the peer once, until the pinhole's time is over. Returns why it ended."""
        try:
            with gevent.Timeout(ttl):
                peer = self._accept_peer(lease, listener)
                self._let_in(lease, peer)
        except gevent.Timeout:
            return "expired"
        except OSError as error:  # of an upstream only: it waits no more, or has let in somebody else
            log.info("pinhole.lost", pinhole=lease.id, flow=lease.flow, reason=str(error))
            return "lost"
        return "used"

    def _ended(self, lease: Lease, listener: Listener, serving: gevent.Greenlet[..., str]) -> None:
        self._elsewhere.discard(lease.id)
        if serving.value not in ("used", "lost"):
            self._admit_waiting(lease, listener)
        elif serving.value == "lost":
            self._passed(lease)
        listener.close()
        del self._waiting[lease.id]
        self._carriers.pop(lease.id, None)
        self.release(lease, serving.value if isinstance(serving.value, str) else "closed")

    def _meet(self, lease: Lease, inner: gsocket.socket, outer: gsocket.socket, ttl: float) -> str:
        client = server = None
        reason = "used"
        try:
            with gevent.Timeout(ttl):
                client = self._accept(lease, inner, lease.client)
                server = self._accept(lease, outer, lease.peer)
        except gevent.Timeout:
            reason = "expired"
        except gevent.GreenletExit:
            reason = "closed"
            try:  # a peer that connected before the close must not be lost
                for listener in (inner, outer):
                    listener.settimeout(0)
                client = client or self._accept(lease, inner, lease.client)
                server = self._accept(lease, outer, lease.peer)
            except OSError:  # no peer has connected
                pass
        if client is not None and server is not None:
            log.info("pinhole.use", pinhole=lease.id, flow=lease.flow)
            self._relay(lease.reason, lease.flow, client, server)
        elif client is not None:
            abort(client.sock)
        return reason

    def _met(
        self,
        outward: tuple[Lease, gsocket.socket],
        inward: tuple[Lease, gsocket.socket],
        serving: gevent.Greenlet[..., str],
    ) -> None:
        del self._waiting[outward[0].id]
        for lease, listener in (outward, inward):
            listener.close()
            self.release(lease, serving.value if isinstance(serving.value, str) else "closed")

    def _join(
        self,
        client: Endpoint,
        server: Endpoint,
        sources: tuple[str, str],
        reason: str,
        reach: Callable[[Endpoint], gsocket.socket] | None,
        passage: Passage,
    ) -> None:
        near = None
        try:
            near = connect_target(client, sources[0])  # first: what the server sends has to go somewhere
            passage.end()
            far = reach(server) if reach is not None else connect_target(server, sources[1])
        except OSError as error:
            log.info("relay.failed", client=str(client), server=str(server), reason=str(error))
            if near is not None:
                abort(near)
            return
        self._relay(reason, None, Accepted(near, client), Accepted(far, server))

    def _relay(self, reason: str, parent: str | None, client: Accepted, server: Accepted) -> None:
        """Relay two connected sockets as a flow of its own."""
        try:
            for sock, _ in (client, server):
                sock.settimeout(None)
                prepare(sock)
            flow = self._flows.add_data(client.remote, server.remote, parent, reason)
        except OSError:  # one of them has gone
            abort(client.sock)
            abort(server.sock)
            return
        self._flows.relay(flow, client.sock, server.sock)

    def _accept_peer(self, lease: Lease, listener: Listener) -> Accepted:
        return self._accept(lease, listener, lease.peer)

    def _accept(self, lease: Lease, listener: Listener, peer: str | None) -> Accepted:
        while True:
            sock, address = listener.accept()
            remote = endpoint(address)
            if peer is None or remote.host == peer:
                return Accepted(sock, remote)
            log.warning("pinhole.stranger", pinhole=lease.id, peer=str(remote))
            abort(sock)
            if (passage := self._passages.get(lease.id)) is not None:
                passage.turned_away()

    def _admit_waiting(self, lease: Lease, listener: Listener) -> None:
        """Admit a peer that has connected before the close: a server may send everything, and say so, before we
        accept."""
        listener.settimeout(0)
        try:
            peer = self._accept_peer(lease, listener)
        except OSError:  # no peer has connected
            self._passed(lease)
            return
        peer.sock.settimeout(None)
        self._let_in(lease, peer)

    def _let_in(self, lease: Lease, peer: Accepted) -> None:
        if (passage := self._passages.get(lease.id)) is not None:
            passage.begin()
        log.info("pinhole.use", pinhole=lease.id, flow=lease.flow)
        gevent.spawn(self._connect, lease, peer, self._carriers.get(lease.id, self._flows.relay))

    def _passed(self, lease: Lease) -> None:
        if (passage := self._passages.pop(lease.id, None)) is not None:
            passage.end()

    def _connect(self, lease: Lease, accepted: Accepted, carry: Carry) -> None:
        """Join the peer to the target. The data connection has the same client as the flow that it belongs to: that is
        the target, except for a published server, whose client is the peer outside."""
        peer, far = accepted
        try:
            target = connect_target(lease.target)
        except OSError as error:
            log.info("pinhole.target_failed", pinhole=lease.id, target=str(lease.target), reason=str(error))
            abort(peer)
            return
        finally:
            self._passed(lease)
        try:
            prepare(peer)
            prepare(target)
            client, server = (peer, target) if lease.target.host != lease.client else (target, peer)
            ends = (far, lease.target) if client is peer else (lease.target, far)
            flow = self._flows.add_data(*ends, lease.flow, lease.reason)
        except OSError:  # one of them has gone
            abort(peer)
            abort(target)
            return
        carry(flow, client, server)


def _log_open(lease: Lease) -> None:
    log.info(
        "pinhole.open",
        pinhole=lease.id,
        flow=lease.flow,
        protocol=lease.protocol,
        reason=lease.reason,
        public=str(lease.public),
        target=str(lease.target),
        peer=lease.peer,
    )


def listen(host: str, port: int) -> gsocket.socket:
    """Return a TCP socket that listens at this address and port. Raises OSError."""
    listener = gsocket.socket(gsocket.AF_INET6 if ":" in host else gsocket.AF_INET, gsocket.SOCK_STREAM)
    try:
        # Connections of an earlier pinhole at this port may linger; two listeners are still impossible.
        listener.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def connect_target(target: Endpoint, source: str | None = None) -> gsocket.socket:
    """Connect to a target, from `source` if that is an address of this host. Raises OSError."""
    sock = gsocket.socket(gsocket.AF_INET6 if target.version == 6 else gsocket.AF_INET, gsocket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT)
        if source is not None:
            try:
                sock.bind((source, 0))
            except OSError as error:
                # The control connection has another address, which is not this host's: the kernel chooses.
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        sock.connect((target.host, target.port))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock
