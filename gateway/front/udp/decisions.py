"""Decides where the datagrams of a UDP association go: which target a header names, whether the policy permits it, and
from which socket they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic

import gevent
import msgspec

from alg.address import Address
from alg.socks.socks5 import SocksError
from alg.socks.udp import parse_header
from gateway.flow.dial import DialError
from gateway.flow.lookup import JudgedRequest, Lookup
from gateway.front.udp.outsides import Outsides
from gateway.front.udp.routes import Refusals, Route
from gateway.front.udp.sockets import Outside, facing_address
from gateway.model.hosts import parse_address, read_host
from gateway.model.requests import ConnectRequest

VERDICT = 1.0  # seconds that a decision on a target holds; then the policy is asked again
MAX_RESOLVING = 8  # names that an association resolves at the same time
MAX_OPENING = 32  # targets that wait for the first socket that faces them

Direct = Callable[[Route, Outside, Address, int], None]


class Decisions:
    """Decides for one association. `request`: the one with which the client asked for it.

    `direct(route, outside, address, port)` lets a route lead to a permitted address; it may raise DialError.
    `decided(route, waiting)` is called with the datagrams that have waited for the decision.
    """

    def __init__(
        self,
        request: ConnectRequest,
        flow: str,
        lookup: Lookup,
        outsides: Outsides,
        direct: Direct,
        decided: Callable[[Route, list[bytes]], None],
    ) -> None:
        self._request = request
        self._lookup = lookup
        self._outsides = outsides
        self._direct = direct
        self._decided = decided
        self._deciding: Counter[int] = Counter()
        self._refusals = Refusals(flow)

    def decide(self, route: Route, header: bytes) -> None:
        """Decide where datagrams with this header go, at once or later."""
        try:
            parsed, _ = parse_header(header)
        except SocksError:
            return
        host = read_host(parsed.host)
        request = msgspec.structs.replace(self._request, host=host, port=parsed.port)
        try:
            address = parse_address(host)
        except ValueError:
            self._decide_later(request, None, route, MAX_RESOLVING)
            return
        try:
            judged = self._lookup.judge(request)
            judged.check(address)
            outside = self._outsides.get(facing_address(address))
            if outside is not None:
                self._direct(route, outside, address, parsed.port)
            else:
                self._decide_later(request, judged, route, MAX_OPENING)
        except DialError as error:
            self._refusals.log_refusal(request, error)

    def _decide_later(self, request: ConnectRequest, judged: JudgedRequest | None, route: Route, limit: int) -> None:
        """Decide in a greenlet, because that may wait. The datagrams of this route wait too; all others go on. There
        are at most `limit` such greenlets of a kind, so that names do not keep addresses waiting."""
        if self._deciding[limit] >= limit:
            return
        self._deciding[limit] += 1
        route.waiting = []
        route.until = float("inf")  # what comes meanwhile waits with the others
        gevent.spawn(self._decide, request, judged, route, limit)

    def _decide(self, request: ConnectRequest, judged: JudgedRequest | None, route: Route, limit: int) -> None:
        try:
            address = (judged or self._lookup.judge(request)).addresses()[0]
            outside = self._outsides.get_or_open(facing_address(address), address)
            self._direct(route, outside, address, request.port)
        except DialError as error:
            self._refusals.log_refusal(request, error)
        finally:
            self._deciding[limit] -= 1
            route.until = monotonic() + VERDICT
            waiting, route.waiting = route.waiting or [], None
        self._decided(route, waiting)
