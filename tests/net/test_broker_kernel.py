"""Kernel pinholes, with real packets: who comes through, how often, for how long, whoever of us is dead."""

from __future__ import annotations

import signal
import socket
import threading

import pytest

from alg.address import Endpoint
from gateway.lease.messages import Close, Hello, RequestRefused
from tests.net.broker_rig import (
    CLIENT,
    CLIENT6,
    PUBLIC,
    PUBLIC6,
    SERVER,
    SERVER6,
    STRANGER,
    STRANGER6,
    Rig,
    inbound,
    outbound,
    wait_for,
)

pytestmark = pytest.mark.net


def talk(outer: socket.socket, inner: socket.socket) -> None:
    """Bytes pass both ways."""
    inner.settimeout(5)
    outer.settimeout(5)
    outer.sendall(b"ping")
    assert inner.recv(4) == b"ping"
    inner.sendall(b"pong")
    assert outer.recv(4) == b"pong"


def shut_to(rig: Rig, to: Endpoint, source: str) -> bool:
    """A connection from `source` gets nothing: refused or never answered."""
    try:
        rig.connect(rig.outside, to, source, timeout=0.5).close()
    except (ConnectionRefusedError, TimeoutError):
        return True
    return False


@pytest.mark.parametrize(
    ("client", "public", "server", "stranger"),
    [(CLIENT, PUBLIC, SERVER, STRANGER), (CLIENT6, PUBLIC6, SERVER6, STRANGER6)],
    ids=["ipv4", "ipv6"],
)
def test_the_peer_comes_through_once_and_nobody_else(
    rig: Rig, client: str, public: str, server: str, stranger: str
) -> None:
    listener = rig.listen(rig.inside, client, 50000)
    lease = rig.open(inbound(client=client, target=Endpoint(client, 50000), peer=server, public_host=public))
    assert lease.public.host == public
    assert 40000 <= lease.public.port <= 40999
    assert shut_to(rig, lease.public, stranger)
    outer = rig.connect(rig.outside, lease.public, server)
    inner, source = listener.accept()
    assert source[0] == server
    talk(outer, inner)
    assert shut_to(rig, lease.public, server)
    assert shut_to(rig, lease.public, stranger)
    talk(outer, inner)
    counters = rig.status()["counters"]
    assert counters["admitted"]["packets"] == 1
    assert counters["data"]["packets"] > 6
    assert rig.pinholes() == []


@pytest.mark.rig(ports="40000-40001")
def test_a_used_pinholes_port_is_not_given_out_again(rig: Rig) -> None:
    rig.listen(rig.inside, CLIENT, 50000)
    first = rig.open(inbound())
    rig.connect(rig.outside, first.public, SERVER)
    assert rig.pinholes() == []
    second = rig.open(inbound())
    assert second.public != first.public
    assert "'ports'" in repr(rig.ask(inbound()))


@pytest.mark.rig(ports="40000-40003")
def test_a_port_that_somebody_has_is_not_given_out(rig: Rig) -> None:
    for port in (40000, 40001, 40003):
        rig.listen(rig.router, PUBLIC, port)
    assert rig.open(inbound()).public.port == 40002
    assert "'ports'" in repr(rig.ask(inbound()))
    assert "'public'" in repr(rig.ask(inbound(public_host="203.0.113.77")))


def test_a_closed_pinhole_is_shut_and_what_it_admitted_lives_on(rig: Rig) -> None:
    listener = rig.listen(rig.inside, CLIENT, 50000)
    used, unused = rig.open(inbound()), rig.open(inbound())
    outer = rig.connect(rig.outside, used.public, SERVER)
    inner, _ = listener.accept()
    rig.send(Close(used.id))
    rig.send(Close(unused.id))
    wait_for(lambda: rig.count("once4") == 0, "closed in the kernel")
    assert rig.at(rig.router, "nft list map inet algate dnat4").count("comment") == 0
    assert shut_to(rig, unused.public, SERVER)
    talk(outer, inner)


def test_after_its_time_a_pinhole_is_gone_though_the_broker_was_killed(rig: Rig) -> None:
    listener = rig.listen(rig.inside, CLIENT, 50000)
    short, long = rig.open(inbound(ttl=1.0)), rig.open(inbound())
    rig.end(signal.SIGKILL)
    wait_for(lambda: rig.count("once4") == 1, "the kernel's timeout")
    assert shut_to(rig, short.public, SERVER)
    outer = rig.connect(rig.outside, long.public, SERVER)
    talk(outer, listener.accept()[0])
    assert shut_to(rig, long.public, SERVER)
    assert rig.count("once4") == 0


def test_a_live_broker_forgets_it_too(rig: Rig) -> None:
    rig.open(inbound(ttl=1.0))
    assert len(rig.pinholes()) == 1
    wait_for(lambda: rig.pinholes() == [], "expiry")


def test_a_new_broker_reads_back_what_is_open(rig: Rig) -> None:
    rig.listen(rig.inside, CLIENT, 50000)
    used = rig.open(inbound())
    six = inbound(client=CLIENT6, target=Endpoint(CLIENT6, 50001), peer=SERVER6, public_host=PUBLIC6, flow="w1-9")
    leases = [rig.open(inbound()), rig.open(six, slot=1), rig.open(outbound())]
    before = {row["id"]: row for row in rig.pinholes()}
    assert before.keys() == {used.id, *(lease.id for lease in leases)}
    rig.connect(rig.outside, used.public, SERVER)
    rig.end(signal.SIGKILL)
    rig.start()
    after = {row["id"]: row for row in rig.pinholes()}
    assert after.keys() == {lease.id for lease in leases}
    for lease_id, row in after.items():
        assert row.pop("expires") == pytest.approx(before[lease_id].pop("expires"), abs=1.0)
        assert row == before[lease_id]
    rig.send(Close(leases[0].id), slot=1)  # not its own
    rig.send(Close(leases[1].id), slot=1)
    wait_for(lambda: {row["id"] for row in rig.pinholes()} == {leases[0].id, leases[2].id}, "closed by its own slot")


def test_a_request_waits_for_the_next_broker(rig: Rig) -> None:
    rig.end(signal.SIGKILL)
    threading.Timer(0.2, rig.start).start()
    rig.open(inbound())
    wait_for(lambda: len(rig.pinholes()) == 1, "the new broker answers")


def test_workers_cannot_touch_each_others_leases(rig: Rig) -> None:
    first, second = rig.open(inbound(), slot=0), rig.open(inbound(), slot=1)
    rig.send(Close(first.id), slot=1)
    rig.send(Hello(1), slot=1)
    wait_for(lambda: [row["id"] for row in rig.pinholes()] == [first.id], "slot 1 lost its own lease and no other")
    assert second.id != first.id
    rig.send(Hello(2), slot=0)
    wait_for(lambda: rig.pinholes() == [], "a new worker in slot 0 has none")
    assert rig.count("once4") == 0


def test_a_worker_that_talks_nonsense_harms_nobody(rig: Rig) -> None:
    for junk in (b"", b"\xc1", b"x" * 8193, b"\x81\xa4type\xa4open", b"\x93" * 4000):
        rig.workers[1].send(junk)
    assert rig.open(inbound(), slot=0)
    assert rig.open(inbound(), slot=1)


def test_a_lost_syn_may_come_again(rig: Rig) -> None:
    listener = rig.listen(rig.inside, CLIENT, 50000)
    lease = rig.open(inbound())
    rig.at(rig.inside, "iptables -A INPUT -p tcp --dport 50000 -j DROP")
    outer = rig.within(rig.outside, lambda: socket.socket())
    outer.setblocking(False)
    with outer:
        outer.bind((SERVER, 0))
        outer.connect_ex((lease.public.host, lease.public.port))
        wait_for(lambda: rig.count("once4") == 0, "the first SYN was admitted")
        rig.at(rig.inside, "iptables -F INPUT")
        talk(outer, listener.accept()[0])
    assert rig.status()["counters"]["admitted"]["packets"] == 1
    assert rig.status()["counters"]["late"]["packets"] == 0


def test_the_translation_of_others_is_left_alone(rig: Rig) -> None:
    listener = rig.listen(rig.inside, CLIENT, 50001)
    rig.open(inbound(target=Endpoint(CLIENT, 50001)))
    rig.at(rig.router, f"iptables -t nat -A PREROUTING -p tcp --dport 8443 -j DNAT --to {CLIENT}:50001")
    rig.at(rig.router, "iptables -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT")
    for _ in range(2):
        outer = rig.connect(rig.outside, Endpoint(PUBLIC, 8443), STRANGER)
        talk(outer, listener.accept()[0])
    assert rig.status()["counters"]["late"]["packets"] == 0
    assert rig.status()["counters"]["data"]["packets"] == 0


def test_an_outbound_pinhole_passes_a_forward_policy_of_drop_once(rig: Rig) -> None:
    server = rig.listen(rig.outside, SERVER, 30000)
    with pytest.raises(TimeoutError):
        rig.connect(rig.inside, Endpoint(SERVER, 30000), CLIENT, timeout=0.5)
    lease = rig.open(outbound())
    assert lease.public == lease.target == Endpoint(SERVER, 30000)
    outer = rig.connect(rig.inside, Endpoint(SERVER, 30000), CLIENT)
    inner, source = server.accept()
    assert source[0] == PUBLIC
    talk(outer, inner)
    with pytest.raises(TimeoutError):
        rig.connect(rig.inside, Endpoint(SERVER, 30000), CLIENT, timeout=0.5)


def test_the_same_outbound_wish_takes_the_old_ones_place(rig: Rig) -> None:
    first, second = rig.open(outbound()), rig.open(outbound())
    assert [row["id"] for row in rig.pinholes()] == [second.id]
    rig.send(Close(first.id))
    assert len(rig.pinholes()) == rig.count("once4") == 1
    # Not that of another process, which could take pinholes away by it. What it asks for is open, all the same.
    answer = rig.ask(outbound(), slot=1)
    assert isinstance(answer, RequestRefused)
    assert answer.rule == "taken"
    assert [row["id"] for row in rig.pinholes()] == [second.id]


def test_a_udp_pinhole_admits_one_conversation(rig: Rig) -> None:
    def datagram(host: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(0.5)
        sock.bind((host, 50000 if host == CLIENT else 0))
        return sock

    inner = rig.within(rig.inside, lambda: datagram(CLIENT))
    stranger = rig.within(rig.outside, lambda: datagram(STRANGER))
    first, second = (rig.within(rig.outside, lambda: datagram(SERVER)) for _ in range(2))
    with inner, stranger, first, second:
        public = rig.open(inbound(transport="udp")).public
        stranger.sendto(b"stranger", (public.host, public.port))
        for _ in range(3):
            first.sendto(b"peer", (public.host, public.port))
            data, back = inner.recvfrom(100)
            assert data == b"peer"
            inner.sendto(b"answer", back)
            assert first.recv(100) == b"answer"
        second.sendto(b"second", (public.host, public.port))
        with pytest.raises(TimeoutError):
            inner.recv(100)
