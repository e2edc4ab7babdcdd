"""SOCKS BIND: waits for the one connection that a client expects from outside (RFC 1928 section 4; SOCKS 4
likewise)."""

from __future__ import annotations

import ipaddress
import time

import gevent.select
import gevent.socket as gsocket
import structlog

from alg.address import Endpoint
from alg.socks import socks4
from gateway.flow.dial import DialError
from gateway.flow.lookup import AdmittedRequest, JudgedRequest, Lookup
from gateway.flow.table import Flows
from gateway.front.socks.request import SocksRequest
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, PinholeRequest
from gateway.net.addresses import is_local, public_address, source_towards
from gateway.net.relay.half import Head, Legacy
from gateway.net.sockets import abort, endpoint, prepare
from gateway.pinhole.userspace import Accepted, UserspacePinholes, listen

log = structlog.get_logger()

REASON = "socks.bind"
READ_SIZE = 4096
VERDICT = 1.0  # seconds that a decision holds while a client waits; then the policy is asked again
MAX_EARLY = 65536  # bytes that a client may send before its peer has come
ELSEWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}  # stands for the outside if all hosts are expected (RFC 5737, RFC 3849)


class BindCommand:
    """Carries out BIND requests. `outside`: as in the configuration; `timeout`: seconds within which the expected peer
    must have connected."""

    def __init__(self, lookup: Lookup, pinholes: UserspacePinholes, flows: Flows, outside: str, timeout: float) -> None:
        self._lookup = lookup
        self._pinholes = pinholes
        self._flows = flows
        self._outside = outside
        self._timeout = timeout

    def run(self, request: SocksRequest) -> None:
        """Serve one request; owns its socket."""
        try:
            judged = self._lookup.judge(request.connect_request())
            peers, towards = self._expected(request, judged)
            admission = judged.admit(None if peers is None else ipaddress.ip_address(towards))
            try:
                lease, advertised, listener = self._listen(request, peers, towards)
            except DialError:
                admission.session.release()
                raise
        except DialError as error:
            request.fail(error)
            return
        reason, peer = "gone", None
        try:
            request.grant(advertised)  # only now: a client that reads it may have its peer connect at once
            reason, peer = self._wait(request, lease, listener, peers)
        except OSError:
            pass  # the client has gone
        finally:
            listener.close()
            self._pinholes.release(lease, reason)
        if peer is not None:
            self._carry(request, *peer, admission)
            return
        admission.session.release()
        if reason in ("expired", "revoked"):
            request.refuse("timeout" if reason == "expired" else "denied")
        else:
            request.sock.close()

    def _expected(self, request: SocksRequest, judged: JudgedRequest) -> tuple[frozenset[str] | None, str]:
        """Return the addresses of which one may connect (None: all hosts), and one address of that family. Raises
        DialError."""
        if judged.is_of_anybody():
            return None, ELSEWHERE[6 if ":" in request.host else 4]
        permitted = judged.addresses()
        if request.version == socks4.VERSION:
            permitted = [address for address in permitted if address.version == 4]
        for address in permitted:
            if source_towards(str(address)):
                like = [str(other) for other in permitted if other.version == address.version]
                return frozenset(like), str(address)
        raise DialError("network", f"there is no way to {request.host}")

    def _listen(
        self, request: SocksRequest, peers: frozenset[str] | None, towards: str
    ) -> tuple[Lease, Endpoint, gsocket.socket]:
        """Open the pinhole. Returns it, the endpoint to tell the client, and the listening socket. Raises DialError."""
        facing = source_towards(towards)
        if peers is None and self._outside != "auto" and is_local(self._outside):
            facing = self._outside
        if facing is None:
            raise DialError("network", "no address of this host faces the outside")
        public = public_address(self._outside, facing)
        wanted = PinholeRequest(
            flow="",
            reason=REASON,
            client=request.client.host,
            direction="in",
            transport="tcp",
            target=request.client,
            peer=towards if peers else None,
            public_host=public.local,
            ttl=self._timeout,
        )
        try:
            lease, listener = self._pinholes.reserve(wanted, listen)
        except PinholeRefused as error:
            raise DialError("failed", str(error), error.rule) from error
        return lease, Endpoint(public.advertised, lease.public.port), listener

    def _wait(
        self, request: SocksRequest, lease: Lease, listener: gsocket.socket, peers: frozenset[str] | None
    ) -> tuple[str, Accepted | None]:
        """Wait for the peer. Returns why the wait ended, and the peer. What the client sends meanwhile is kept for the
        peer. Raises OSError when the client has gone."""
        until = time.monotonic() + self._timeout
        listener.settimeout(0.0)
        while (left := until - time.monotonic()) > 0:
            denied_by = self._denied_by(request, peers)
            if denied_by is not None:
                log.warning("bind.denied", pinhole=lease.id, **request.names(), denied_by=denied_by)
                return "revoked", None
            full = len(request.incoming.buffer) >= MAX_EARLY
            watched = [listener] if full else [listener, request.sock]
            readable, _, _ = gevent.select.select(watched, [], [], min(left, VERDICT))
            if request.sock in readable and (data := _what_came(request.sock)) is not None:
                if not data:
                    return "gone", None
                request.incoming.buffer += data
            if listener in readable and (peer := self._accept(request, lease, listener, peers)) is not None:
                return "used", peer
        return "expired", None

    def _denied_by(self, request: SocksRequest, peers: frozenset[str] | None) -> str | None:
        """Return the rule by which this is not allowed any more; rules may change, and time goes on."""
        try:
            judged = self._lookup.judge(request.connect_request())
            if peers is None:
                judged.is_of_anybody()
            else:
                for peer in peers:
                    judged.check(ipaddress.ip_address(peer))
        except DialError as error:
            return error.rule
        return None

    def _accept(
        self, request: SocksRequest, lease: Lease, listener: gsocket.socket, peers: frozenset[str] | None
    ) -> Accepted | None:
        """Accept a connection, and return it if it is the expected peer's. Any other is closed."""
        try:
            peer, address = listener.accept()
        except OSError:  # it has gone already
            return None
        remote = endpoint(address)
        if self._is_expected(request, remote, peers):
            return Accepted(peer, remote)
        log.warning("pinhole.stranger", pinhole=lease.id, peer=str(remote))
        abort(peer)
        return None

    def _is_expected(self, request: SocksRequest, remote: Endpoint, peers: frozenset[str] | None) -> bool:
        if peers is not None:
            return remote.host in peers
        try:
            self._lookup.judge(request.connect_request()).check(remote.ip)
        except DialError:
            return False
        return True

    def _carry(self, request: SocksRequest, peer: gsocket.socket, remote: Endpoint, admission: AdmittedRequest) -> None:
        try:
            request.grant(remote)
            prepare(request.sock)
            prepare(peer)
        except OSError:  # the client has gone
            admission.session.release()
            abort(request.sock)
            abort(peer)
            return
        # The peer has chosen its port, so it says nothing of the protocol: no module.
        flow = self._flows.add("socks", request.client, remote, request.user, rule=admission.decision.rule)
        flow.module = REASON
        flow.rate, flow.session = admission.decision.rate, admission.session
        self._flows.relay(flow, request.sock, peer, legacy=Legacy(up=Head(bytes(request.incoming.buffer))))


def _what_came(sock: gsocket.socket) -> bytes | None:
    """Return the bytes that have come; None if they are a part of an encrypted message, which is not waited for."""
    before = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        return sock.recv(READ_SIZE)
    except BlockingIOError:
        return None
    finally:
        sock.settimeout(before)
