"""However many UDP associations are flooded, whoever uses something else is served in time."""

from __future__ import annotations

import ipaddress
import socket as stdlib
import time
from collections.abc import Iterator
from typing import Any, cast

import gevent
import gevent.socket as gsocket
import pytest

from alg.address import Endpoint
from alg.socks.udp import encode_target
from gateway.flow.lookup import Lookup
from gateway.flow.table import Flow
from gateway.front.socks.request import Incoming, SocksRequest
from gateway.front.udp.association import Association, AssociationMeans
from gateway.front.udp.routes import AssociationOptions
from gateway.front.udp.sockets import bind_datagrams
from gateway.net.slices import BUDGET
from gateway.net.turns import Turns, turns
from gateway.policy.decide import Policy, PolicyInForce
from gateway.policy.limits import RuleLimits

MANY = 60
DATAGRAMS = 40  # that wait at each
LONGEST = 0.02  # seconds of this process' work until another socket is looked at


class Flooded:
    """An association whose client sends to one refused target after the other."""

    def __init__(self) -> None:
        self.control = gsocket.socketpair()
        policy = PolicyInForce(Policy([ipaddress.ip_network("127.0.0.0/8")]))
        lookup = Lookup(policy, cast(Any, None), RuleLimits())
        self.client = stdlib.socket(type=stdlib.SOCK_DGRAM)
        self.client.bind(("127.0.0.1", 0))
        self.client.setblocking(False)
        inner = bind_datagrams("127.0.0.1", 0)
        self.client.connect(inner.getsockname())
        end = Endpoint(*self.client.getsockname())
        request = SocksRequest(Incoming(self.control[0]), 5, "udp", end, "0.0.0.0", 0)
        flow = Flow("flow-1", "socks", end, Endpoint(*inner.getsockname()), None)
        means = AssociationMeans(lookup, cast(Any, None), AssociationOptions(False, False, 60.0, "auto"), {})
        self.association = Association(request, inner, flow, means, lambda reason: None)
        self.association.start()

    def send(self, first: int) -> None:
        for port in range(first, first + DATAGRAMS):
            self.client.send(encode_target("127.0.0.1", port) + b"x")

    def close(self) -> None:
        self.association.close()
        self.client.close()
        for sock in self.control:
            sock.close()


@pytest.fixture
def flooded() -> Iterator[list[Flooded]]:
    all_of_them = [Flooded() for _ in range(MANY)]
    yield all_of_them
    for each in all_of_them:
        each.close()
    assert not len(turns())
    gevent.sleep(0)


def test_others_are_served_in_time(flooded: list[Flooded]) -> None:
    near, far = gsocket.socketpair()
    longest, sent = 0.0, 0
    with near, far:
        for turn in range(10):
            for each in flooded:
                each.send(1 + turn * DATAGRAMS)
            sent += DATAGRAMS
            far.send(b"x")
            began = time.process_time()
            near.recv(1)
            longest = max(longest, time.process_time() - began)
        with gevent.Timeout(20):
            while not all(each.association.dropped["refused"] == sent for each in flooded):
                gevent.sleep(0.001)
    assert longest < LONGEST


def test_one_that_is_closed_while_it_waits(flooded: list[Flooded]) -> None:
    for each in flooded:
        each.send(1)
    gevent.sleep(0)
    while not len(turns()):
        gevent.sleep(0.0001)
    for each in flooded:
        each.association.close()
    assert not len(turns())
    gevent.sleep(0.01)


def test_each_gets_its_turn() -> None:
    line, called = Turns(), list[str]()
    pairs = {name: gsocket.socketpair() for name in "abc"}
    loop = gevent.get_hub().loop
    watchers = {name: loop.io(pair[0].fileno(), 1) for name, pair in pairs.items()}

    def call(name: str) -> None:
        if line.is_on(watchers[name], call, name):
            called.append(name)
            until = time.monotonic() + 0.8 * BUDGET
            while time.monotonic() < until:
                pass
            line.spend(0.8 * BUDGET)

    for name, watcher in watchers.items():
        pairs[name][1].send(b"x")  # and nobody reads it
        watcher.start(call, name)
    with gevent.Timeout(5):
        while len(called) < 60:
            gevent.sleep(0.001)
    for name, watcher in watchers.items():
        line.forget(watcher)
        watcher.close()
        for sock in pairs[name]:
            sock.close()
    assert min(map(called.count, "abc")) >= 15, called
