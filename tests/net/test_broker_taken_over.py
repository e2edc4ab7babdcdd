"""A process that was taken over asks the broker for whatever it likes: nothing of others changes, and what it gets is
harmless. Its requests are those of every kind with a few things otherwise, and what is no request at all."""

from __future__ import annotations

import ipaddress
import random
import re
import signal
import socket
import time
from typing import Any

import msgspec
import pytest

from alg.address import Endpoint
from gateway.lease.messages import MAX_PACKET, Close, Count, Open, encode
from gateway.lease.validate import SERVICE_PORTS
from gateway.model.requests import Along, Lease, PinholeRequest
from tests.net.broker_rig import (
    CLIENT,
    CLIENT6,
    PUBLIC,
    PUBLIC6,
    SERVER,
    SERVER6,
    STRANGER,
    Phones,
    Rig,
    inbound,
    outbound,
)
from tests.net.test_broker_gre import call
from tests.net.test_broker_kinds import INNER, OTHER, OTHER6, conversation, exchange, mapping, two_clients, update
from tests.net.test_broker_udp import gets

__all__ = ["two_clients"]

pytestmark = [pytest.mark.net, pytest.mark.timeout(600), pytest.mark.rig(per_client=200, ports="40000-49999")]

INSIDE = [ipaddress.ip_network(each) for each in ("192.168.56.0/24", "fd00:56::/64")]
OWN = {PUBLIC, PUBLIC6, INNER, "fd00:56::1"}
HOSTS = [CLIENT, CLIENT6, OTHER, OTHER6, SERVER, SERVER6, STRANGER, *sorted(OWN), "127.0.0.1", "0.0.0.0", "::", "", "x"]
PORTS = [0, 7, 22, 1023, 1024, 1900, 3306, 4000, 4001, 4002, 50000, 50001, 50002, 65535, 65536, -1, 2**40]


def requests(client: str) -> list[PinholeRequest]:
    """A good request of each kind, for a client with an IPv4 address."""
    of: dict[str, Any] = {"client": client}
    outer = 5000 if client == CLIENT else 5002  # a socket outside has one exchange
    return [
        inbound(**of, target=Endpoint(client, 50000)),
        outbound(**of),
        inbound(**of, target=Endpoint(client, 50001), kind="anybody", peer=None),
        conversation(**of, target=Endpoint(client, 4000), second=4001),
        conversation(**of, target=Endpoint(client, 4002), kind="read"),
        mapping(**of, target=Endpoint(client, 50002), ttl=3600.0, peers=("203.0.113.0/29",)),
        mapping(**of, target=Endpoint(client, 50003), ttl=3600.0, suggested=51413 if client == CLIENT else 51414),
        exchange(**of, target=Endpoint(client, 0), second=0, outer=Endpoint(STRANGER, outer), outer_second=outer + 1),
        call(client, 7),
        inbound(**of, kind="local", target=Endpoint(client, 50004)),
    ]


class Hostile:
    """Makes the packets. `known`: ids of leases, its own and those of others."""

    def __init__(self, seed: int, known: list[str]) -> None:
        self._rng = random.Random(seed)
        self._good = [*requests(CLIENT), *requests(OTHER)]
        self._known = known
        self._seeds = [encode(Open(1, each)) for each in self._good]
        self._seeds += [encode(Close(each)) for each in known[:2]]

    def packet(self) -> bytes:
        choice = self._rng.randrange(10)
        if choice == 0:
            return self._rng.randbytes(self._rng.randrange(300))
        if choice == 1:
            return self._torn(bytearray(self._rng.choice(self._seeds)))
        if choice == 2 and self._rng.randrange(10) == 0:
            return self._rng.choice(self._seeds) * self._rng.randrange(2, 20)
        return msgspec.msgpack.encode([self._message() for _ in range(self._rng.choice((1, 1, 2, 5)))])

    def _torn(self, data: bytearray) -> bytes:
        for _ in range(self._rng.randrange(1, 4)):
            data[self._rng.randrange(len(data))] = self._rng.randrange(256)
        return bytes(data[: self._rng.randrange(len(data))] if self._rng.randrange(3) == 0 else data)

    def _message(self) -> object:
        number = self._rng.randrange(2**31)
        match self._rng.randrange(12):
            case 0:
                return Close(self._id())
            case 1:
                return Count(number, tuple(self._id() for _ in range(3)))
            case 2 | 3 | 4:
                return {"type": "update", "id": number, "update": {"lease": self._id(), **self._changes("update")}}
            case 5:
                source, destination = self._endpoint(), self._endpoint()
                return {"type": "dial", "id": number, "client": source, "server": destination}
            case 6:
                along = {"transport": "udp", "source": self._endpoint(), "destination": self._endpoint()}
                return {"type": "look", "id": number, "along": along}
            case 7:
                return {"type": "hello", "pid": number, "keep": True}
        request = msgspec.to_builtins(self._rng.choice(self._good))
        return {"type": "open", "id": number, "request": {**request, **self._changes("open")}}

    def _changes(self, what: str) -> dict[str, object]:
        names = ["ttl", "peers", "target", "second"]
        if what == "open":
            names += ["client", "direction", "transport", "kind", "peer", "public_host", "visitor", "wish", "exact"]
            names += ["outer", "outer_second", "inner_host", "flow", "reason", "along", "find"]
        return {name: self._value(name) for name in self._rng.sample(names, self._rng.randrange(4))}

    def _value(self, name: str) -> object:
        rng = self._rng
        if rng.randrange(20) == 0:  # of another type
            return rng.choice([None, 7, -1, "x" * 5000, [], {}, 2**63 - 1, 0.5, True])
        match name:
            case "client" | "peer" | "public_host" | "visitor" | "inner_host":
                return rng.choice([None, *HOSTS])
            case "target" | "outer":
                return self._endpoint()
            case "second" | "outer_second" | "wish":
                return rng.choice([None, *PORTS])
            case "peers":
                hosts = [*HOSTS, "203.0.113.0/24", "0.0.0.0/0", "2001:db8::/32", "192.168.56.0/24"]
                return rng.choice([None, [rng.choice(hosts) for _ in range(rng.randrange(10))]])
            case "direction":
                return rng.choice(["in", "out", "up"])
            case "transport":
                return rng.choice(["tcp", "udp", "tcp+udp", "gre", "sctp"])
            case "kind":
                kinds = ["once", "anybody", "conversation", "read", "local", "mapping", "exchange", "gre", "all"]
                return rng.choice(kinds)
            case "ttl":
                return rng.choice([float("nan"), float("inf"), -1.0, 0.0, 1.0, 300.0, 7200.0, 7201.0])
            case "exact" | "find":
                return rng.choice([True, False])
            case "along":
                return msgspec.to_builtins(Along("udp", Endpoint(CLIENT, 4000), Endpoint(rng.choice(HOSTS), 5060)))
        return rng.choice(["", "w0-1", '"; drop', "x" * 48, "a\nb", "sip.rtp"])

    def _endpoint(self) -> dict[str, object]:
        return {"host": self._rng.choice(HOSTS), "port": self._rng.choice(PORTS)}

    def _id(self) -> str:
        return self._rng.choice([*self._known, "0" * 16, "*", ""])


def in_kernel(rig: Rig) -> set[str]:
    """The ids of the leases that the kernel's table names."""
    return set(re.findall(r'"algate 1 \d+ ([0-9a-f]{16}) ', rig.at(rig.router, "nft list table inet algate")))


def lasting(rig: Rig) -> dict[str, Any]:
    """The rows of the pinholes, without what time and packets change."""
    changing = ("packets", "packets_in", "packets_out", "bytes")
    return {row["id"]: {key: row[key] for key in row if key not in changing} for row in rig.pinholes()}


def rules(rig: Rig) -> list[str]:
    """All rules of the router, without what was counted."""
    listing = rig.at(rig.router, "nft -s -t list ruleset")
    return [line for line in listing.splitlines() if not line.strip().startswith("#")]


def is_harmless(row: dict[str, Any], now: float) -> bool:
    """What the broker says that is open leads to the client that owns it, to no service, and nowhere from inside."""

    def within(host: str) -> bool:
        return any(ipaddress.ip_address(host) in network for network in INSIDE)

    def apart(text: str) -> tuple[str, int]:
        host, _, port = text.rpartition(":")
        return host.strip("[]"), int(port)

    (target, port), (public, _), kind = apart(row["target"]), apart(row["public"]), row["kind"]
    longest = 300 if row["uses"] else 7200
    if not within(row["client"]) or row["expires"] > now + longest + 1:
        return False
    peers = [peer for peer in (row["peer"] or "").split(",") if peer]
    if kind == "local":
        return public in OWN and row["backend"] == "userspace"
    if row["direction"] == "out":
        return not within(target) and port >= 1024
    if target != row["client"] or (public not in OWN and public != target) or (within(public) and public != target):
        return False
    if kind != "mapping" and any(within(peer) for peer in peers):
        return False
    if kind == "gre":
        return row["protocol"] == "gre" and len(peers) == 1
    transports = [each for each in ("tcp", "udp") if each in row["protocol"]]
    ports = [each for each in (port, row["second"]) if each is not None and (kind != "exchange" or each)]
    return all(
        1024 <= each <= 65535 and each not in SERVICE_PORTS[transport] for each in ports for transport in transports
    )


@pytest.mark.parametrize("count", [30_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_nothing_of_others_changes(rig: Rig, phones: Phones, count: int) -> None:
    others: list[Lease] = []
    for client in (CLIENT, OTHER):  # of those for whom the hostile one asks too
        others += [rig.open(request, slot=1) for request in requests(client)]
    ids = {lease.id for lease in others}
    talk = next(lease for lease in others if lease.kind == "conversation")
    mine = [rig.open(inbound(target=Endpoint(CLIENT, 55000 + at))).id for at in range(3)]
    phone, server = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    before, ruleset = lasting(rig), rules(rig)
    assert ids <= in_kernel(rig)
    seed = 20261130 + count
    hostile, sock = Hostile(seed, [*mine, *ids]), rig.workers[0]
    sock.setblocking(False)
    sent, begun = 0, time.monotonic()
    while sent < count:
        try:
            sock.send(hostile.packet()[:MAX_PACKET])
            sent += 1
        except BlockingIOError:
            time.sleep(0.001)
        _drain(sock)
        if sent % 1000 == 0:
            gets(phone, server, talk.public)  # the others' packets pass all the time
            assert time.monotonic() - begun < count / 100, "the broker hardly answers"
    assert rig.broker is not None
    assert rig.broker.poll() is None
    sock.setblocking(True)
    sock.settimeout(5)
    status = rig.status()
    assert status["opened"] > count / 100, "what it sent was nonsense only"
    assert status["refused"] > count / 10
    after = lasting(rig)
    assert {each: after.get(each) for each in ids} == {each: before[each] for each in ids}
    now = time.time()
    strange = [row for row in after.values() if row["id"] not in ids and not is_harmless(row, now)]
    assert strange == []
    unnamed = ids - in_kernel(rig)
    assert not unnamed, [after[each] for each in unnamed]
    assert rules(rig) == ruleset
    assert update(rig, talk, slot=1, ttl=100.0).public == talk.public
    gets(phone, server, talk.public)
    third = "192.168.56.14"  # of whom the hostile one knows nothing
    rig.open(mapping(client=third, target=Endpoint(third, 51000)), slot=1)
    assert rig.end(signal.SIGTERM) == 0
    assert "algate" not in rig.tables()


def _drain(sock: socket.socket) -> None:
    try:
        while True:
            sock.recv(MAX_PACKET)
    except BlockingIOError:
        pass
