"""What limits are held against never leaks: whatever happened, in whatever order, in the end it is at zero."""

from __future__ import annotations

import random
from collections import Counter

import gevent
import gevent.event
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.front.accept import Acceptor
from gateway.front.auth.guard import GuessGuard
from gateway.lease.quotas import LeaseLimits
from gateway.lease.table import LeaseTable
from gateway.model.errors import PinholeRefused
from gateway.policy.limits import LimitReached, RuleLimits, Session
from gateway.policy.rules import Decision, Limits
from tests.greenlets import join_all
from tests.unit.broker.test_validate import INBOUND

CLIENTS = [f"192.168.56.{host}" for host in range(10, 14)]
PAUSES = st.floats(0, 30)
WHICH = st.integers(0, 1000)


@given(st.lists(st.tuples(st.sampled_from(["enter", "enter", "release", "again"]), WHICH, PAUSES), max_size=200))
def test_sessions_of_rules(steps: list[tuple[str, int, float]]) -> None:
    """Refused ones (by any of the three limits) and those that several hands release count nothing."""
    limits = RuleLimits()
    live: list[Session] = []
    over: list[Session] = []
    now = 0.0
    for action, which, pause in steps:
        now += pause / 30
        if action == "enter":
            rule = Decision(True, "rule" + str(which % 3), limits=Limits(sessions=6, per_client=2, rate=3.0))
            try:
                live.append(limits.enter(rule, CLIENTS[which % len(CLIENTS)], now))
            except LimitReached:
                continue
        elif action == "release" and live:
            over.append(live.pop(which % len(live)))
            over[-1].release()
        elif over:
            over[which % len(over)].release()
        assert sum(limits.counts().values()) == sum(cell.live for cell in limits._clients.values()) == len(live)
    for session in live:
        session.release()
    assert not limits.counts()
    assert not limits._clients


class Failure(Exception):
    """Of a handler, on purpose."""


@given(st.lists(st.sampled_from(["return", "raise", "exit", "wait", "kill", "kill unborn"]), max_size=40))
@settings(deadline=None, max_examples=50)
def test_connections_being_handled(ends: list[str]) -> None:
    """However a handler ends, and even if it never began, it is handled no more."""
    acceptor = Acceptor()
    hub = gevent.get_hub()
    go = gevent.event.Event()
    mine: list[gevent.Greenlet[..., None]] = []

    def handle(end: str) -> None:
        if end in ("wait", "kill"):
            go.wait()
        if end == "raise":
            raise Failure
        if end == "exit":
            raise gevent.GreenletExit

    quiet, hub.NOT_ERROR = hub.NOT_ERROR, (*hub.NOT_ERROR, Failure)
    try:
        for end in ends:
            before = set(acceptor._handling)
            acceptor.spawn(lambda end=end: handle(end), "192.0.2.1")  # type: ignore[misc]
            (greenlet,) = acceptor._handling - before
            mine.append(greenlet)
            if end == "kill unborn":
                greenlet.kill(block=False)
        assert acceptor.handling == len(ends)
        gevent.idle()
        for end, greenlet in zip(ends, mine, strict=True):
            if end == "kill":
                greenlet.kill(block=False)
        go.set()
        join_all(mine, 5)
        gevent.idle()
        assert acceptor.handling == 0
    finally:
        hub.NOT_ERROR = quiet


@given(st.lists(st.tuples(WHICH, PAUSES), max_size=200), st.integers(0, 5))
def test_guessers(failures: list[tuple[int, float]], limit: int) -> None:
    """A failure counts until the window and the ban are over; then the next one of anybody forgets them all."""
    guard = GuessGuard(limit, window=60, ban=100, capacity=8)
    now = 0.0
    for which, pause in failures:
        now += pause
        guard.failed(f"198.51.100.{which % 12}", now)
        assert len(guard) <= 8
    now += 161
    assert not any(guard.banned(f"198.51.100.{host}", now) for host in range(12))
    assert guard.failed("203.0.113.1", now).failures == 1
    assert len(guard) == 1


LEASE_STEPS = ["open", "open", "open", "use", "close", "owner", "expire", "renew"]


@given(st.lists(st.tuples(st.sampled_from(LEASE_STEPS), WHICH, PAUSES), max_size=150), st.integers(0, 2**32))
def test_pinholes_of_clients(steps: list[tuple[str, int, float]], seed: int) -> None:
    """Pinholes and conversations (UDP), used up, closed by any of the ways, expired, extended, refused."""
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40031), per_client=4, total=9, rate=1.0))
    rng, now = random.Random(seed), 0.0
    for action, which, pause in steps:
        now += pause / 5
        live = table.live()
        client = CLIENTS[which % len(CLIENTS)]
        if action == "open":
            udp = bool(which & 8)
            request = msgspec.structs.replace(
                INBOUND,
                flow=f"w0-{which % 5}",
                client=client,
                target=Endpoint(client, 50000 + which % 7 * 2),
                ttl=1.0 + which % 50,
                **(
                    {"transport": "udp", "kind": "conversation", "peer": None, "second": 50001 + which % 7 * 2}
                    if udp
                    else {}
                ),
            )
            try:
                table.open(request, now=now, unix=now, rng=rng, is_free=lambda port: bool(port % 5), owner=which % 2)
            except PinholeRefused:
                continue
        elif action == "owner":
            table.close_owner(which % 2, now=now)
        elif action == "expire":
            table.expire(now)
        elif live and (lease := live[which % len(live)]):
            if action == "use":
                table.use(lease.id)
            elif action == "renew":
                table.replace(lease, deadline=now + 5.0)
            else:
                table.close(lease.id, now=now, owner=which % 2)  # not always its owner
        counts = {each: len(table.of_client(each)) for each in CLIENTS}
        assert sum(counts.values()) == len(table) == len(table.live()) <= 9
        kinds = Counter((lease.client, lease.protocol) for lease in table.live())
        assert max(kinds.values(), default=0) <= 4
    table.close_all(now=now)
    now += 1000
    table.expire(now)
    assert len(table) == 0
    assert not table._quotas._clients
    assert not table._quotas._hosts
    assert not table._quotas._kinds
    assert not table._quotas._networks
    assert not table._entries
    assert not table._sockets._public
    assert not table._sockets._holders
    assert not table._ports._busy
    assert table.deadline() is None
