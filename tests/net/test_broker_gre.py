"""The packets of calls of PPTP (GRE), which the test speaks itself, through a router that forwards nothing else."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from alg.address import Endpoint
from gateway.lease.messages import Close, RequestRefused, Update
from gateway.model.requests import PinholeRequest, PinholeUpdate
from tests.net.broker_rig import CLIENT, PUBLIC, SERVER, STRANGER, Rig, inbound, wait_for
from tests.net.test_broker_kinds import OTHER, refused, two_clients, update

__all__ = ["two_clients"]

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]

QUIET = 0.3  # seconds after which nothing is on its way any more
CALL, SERVERS = 7, 40

_HEADER = struct.Struct(">BBHHH")


def packet(call_id: int, text: bytes) -> bytes:
    """A packet of RFC 2637, 4.1: with a key, version 1, PPP, no sequence number."""
    return _HEADER.pack(0x20, 0x01, 0x880B, len(text), call_id) + text


class Tunnels:
    """Raw sockets of GRE in the rig's namespaces."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._sockets: list[socket.socket] = []

    def at(self, namespace: str, host: str) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
            sock.bind((host, 0))
            return sock

        sock = self._rig.within(namespace, make)
        self._sockets.append(sock)
        return sock

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def tunnels(rig: Rig) -> Iterator[Tunnels]:
    tunnels = Tunnels(rig)
    yield tunnels
    tunnels.close()


def call(client: str = CLIENT, call_id: int = CALL, **changes: Any) -> PinholeRequest:
    base: dict[str, Any] = {
        "client": client,
        "target": Endpoint(client, call_id),
        "kind": "gre",
        "transport": "gre",
        "reason": "pptp.call",
    }
    return inbound(**{**base, **changes})


def heard(sock: socket.socket, timeout: float = 5.0) -> tuple[str, int, bytes]:
    """Source, call ID and text of the next packet. TimeoutError if there is none."""
    sock.settimeout(timeout)
    data = sock.recv(2000)
    payload = data[(data[0] & 15) * 4 :]
    *_, call_id = _HEADER.unpack_from(payload)
    return socket.inet_ntoa(data[12:16]), call_id, payload[_HEADER.size :]


def is_silent(*sockets: socket.socket) -> bool:
    for sock in sockets:
        try:
            heard(sock, QUIET)
        except TimeoutError:
            continue
        return False
    return True


def test_two_clients_with_one_call_id(rig: Rig, tunnels: Tunnels) -> None:
    near, beside = tunnels.at(rig.inside, CLIENT), tunnels.at(rig.inside, OTHER)
    server, stranger = tunnels.at(rig.outside, SERVER), tunnels.at(rig.outside, STRANGER)
    first, second = rig.open(call(), slot=0), rig.open(call(OTHER), slot=1)
    assert first.public == Endpoint(PUBLIC, CALL)
    assert second.public.host == PUBLIC
    assert second.public.port != CALL
    assert rig.count("gre4") == rig.count("ingre4") == 2
    # Each reads its own packets, with the call ID that it has chosen.
    server.sendto(packet(first.public.port, b"to one"), (PUBLIC, 0))
    assert heard(near) == (SERVER, CALL, b"to one")
    server.sendto(packet(second.public.port, b"to two"), (PUBLIC, 0))
    assert heard(beside) == (SERVER, CALL, b"to two")
    # A stranger's packet reaches nobody, nor does one of a call that there is not, of another version or protocol.
    stranger.sendto(packet(CALL, b"no"), (PUBLIC, 0))
    server.sendto(packet(CALL + 1, b"no"), (PUBLIC, 0))
    server.sendto(_HEADER.pack(0x20, 0x00, 0x880B, 2, CALL) + b"no", (PUBLIC, 0))
    server.sendto(_HEADER.pack(0x20, 0x01, 0x0800, 2, CALL) + b"no", (PUBLIC, 0))
    assert is_silent(near, beside)
    # What clients send leaves only with the call ID of the server, as soon as that is known.
    near.sendto(packet(SERVERS, b"early"), (SERVER, 0))
    assert is_silent(server)
    assert update(rig, first, second=SERVERS).second == SERVERS
    update(rig, second, slot=1, second=SERVERS + 1)
    for sock, number in ((near, SERVERS), (beside, SERVERS + 1)):
        sock.sendto(packet(number, b"up"), (SERVER, 0))
        assert heard(server) == (PUBLIC, number, b"up")
    near.sendto(packet(SERVERS + 1, b"another's"), (SERVER, 0))
    near.sendto(packet(SERVERS, b"elsewhere"), (STRANGER, 0))
    assert is_silent(server, stranger)
    (row,) = (row for row in rig.pinholes() if row["id"] == first.id)
    assert (row["kind"], row["protocol"], row["peer"], row["second"]) == ("gre", "gre", SERVER, SERVERS)
    assert (row["packets_in"], row["packets_out"]) == (1, 1)


def test_packets_stop_with_the_call(rig: Rig, tunnels: Tunnels) -> None:
    near, server = tunnels.at(rig.inside, CLIENT), tunnels.at(rig.outside, SERVER)
    lease = rig.open(call())
    update(rig, lease, second=SERVERS)
    server.sendto(packet(CALL, b"in"), (PUBLIC, 0))
    near.sendto(packet(SERVERS, b"out"), (SERVER, 0))
    assert (heard(near)[2], heard(server)[2]) == (b"in", b"out")
    rig.send(Close(lease.id))
    wait_for(lambda: rig.pinholes() == [], "the end")
    server.sendto(packet(CALL, b"in"), (PUBLIC, 0))
    near.sendto(packet(SERVERS, b"out"), (SERVER, 0))
    assert is_silent(near, server)
    for name in ("gre4", "call4", "ingre4", "outgre4", "snatgre4"):
        assert rig.count(name) == 0, name
    # Connection tracking still knows where its packets lead: the call ID is not another client's yet, but its own.
    assert rig.open(call(OTHER)).public.port != CALL
    again = rig.open(call())
    assert again.public.port == CALL
    server.sendto(packet(CALL, b"again"), (PUBLIC, 0))
    assert heard(near)[2] == b"again"


def test_calls_are_known_after_the_brokers_death(rig: Rig, tunnels: Tunnels) -> None:
    beside, server = tunnels.at(rig.inside, OTHER), tunnels.at(rig.outside, SERVER)
    first, second = rig.open(call(ttl=20.0)), rig.open(call(OTHER, ttl=7200.0))
    update(rig, first, second=0)
    before = {row["id"]: row for row in rig.pinholes()}
    rig.kill()
    server.sendto(packet(second.public.port, b"nobody is there"), (PUBLIC, 0))
    assert heard(beside)[1:] == (CALL, b"nobody is there")
    rig.start()
    after = {row["id"]: row for row in rig.pinholes()}
    assert set(after) == {first.id, second.id}
    for lease_id, row in after.items():
        ignored = dict.fromkeys(("expires", "packets", "packets_in", "bytes"), 0)
        assert {**row, **ignored} == {**before[lease_id], **ignored}
    assert rig.open(call("192.168.56.13")).public.port not in (CALL, second.public.port)
    renewed = update(rig, first, ttl=100.0)
    assert renewed.second == 0
    rig.at(rig.router, "nft flush ruleset")
    wait_for(lambda: "algate" in rig.tables() and rig.count("ingre4") == 3, "the calls are back")
    server.sendto(packet(second.public.port, b"back"), (PUBLIC, 0))
    assert heard(beside)[1:] == (CALL, b"back")


def test_the_kernel_ends_a_call_when_its_time_is_over(rig: Rig, tunnels: Tunnels) -> None:
    near, server = tunnels.at(rig.inside, CLIENT), tunnels.at(rig.outside, SERVER)
    rig.open(call(ttl=2.0))
    rig.kill()
    server.sendto(packet(CALL, b"in"), (PUBLIC, 0))
    assert heard(near)[2] == b"in"
    wait_for(lambda: rig.count("ingre4") == 0, "its time is over")
    server.sendto(packet(CALL, b"late"), (PUBLIC, 0))
    assert is_silent(near)


def test_a_router_that_does_not_translate(rig: Rig, tunnels: Tunnels) -> None:
    rig.at(rig.router, "iptables -t nat -F POSTROUTING")
    rig.at(rig.outside, "ip route add 192.168.56.0/24 via 203.0.113.1")
    near, server = tunnels.at(rig.inside, CLIENT), tunnels.at(rig.outside, SERVER)
    lease = rig.open(call(public_host=None))
    assert lease.public == lease.target
    update(rig, lease, second=SERVERS)
    server.sendto(packet(CALL, b"in"), (CLIENT, 0))
    near.sendto(packet(SERVERS, b"out"), (SERVER, 0))
    assert (heard(near), heard(server)) == ((SERVER, CALL, b"in"), (CLIENT, SERVERS, b"out"))
    assert refused(rig, call(public_host=None)) == "ports"


def test_a_call_keeps_its_ends_and_has_a_quota(rig: Rig) -> None:
    assert refused(rig, call(public_host=STRANGER)) == "public"  # no address of this host
    lease = rig.open(call())
    assert refused(rig, call(public_host=None), slot=1) == "ports"  # the packets would be the same
    assert rig.count("ingre4") == 1
    for changes in ({"target": Endpoint(CLIENT, 8)}, {"peers": (STRANGER,)}):
        rig.send(Update(next(rig.ids), PinholeUpdate(lease.id, **changes)))
        answer = rig.hear()
        assert isinstance(answer, RequestRefused)
        assert answer.rule == "target"
    for number in range(7):
        rig.open(call(call_id=100 + number))
    assert refused(rig, call(call_id=200)) in ("quota", "rate")
    rig.open(call(OTHER))
