"""Conversations over UDP, with real packets: pairs, fixed source ports both ways, who may send, and their end."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from alg.address import Endpoint
from gateway.broker import conntrack
from gateway.broker.elements import SETS, Element
from gateway.broker.netfilter import Netfilter
from gateway.lease.messages import (
    Close,
    Count,
    Counted,
    Hello,
    Update,
    Updated,
)
from gateway.model.requests import Lease, PinholeRequest, PinholeUpdate
from tests.net.broker_rig import (
    CLIENT,
    CLIENT6,
    PUBLIC,
    PUBLIC6,
    SERVER,
    SERVER6,
    STRANGER,
    STRANGER6,
    Phones,
    Rig,
    inbound,
    wait_for,
)

pytestmark = pytest.mark.net

FAMILIES = pytest.mark.parametrize(
    ("client", "public", "server", "stranger"),
    [(CLIENT, PUBLIC, SERVER, STRANGER), (CLIENT6, PUBLIC6, SERVER6, STRANGER6)],
    ids=["ipv4", "ipv6"],
)


def conversation(**changes: Any) -> PinholeRequest:
    base: dict[str, Any] = {
        "transport": "udp",
        "kind": "conversation",
        "peer": None,
        "peers": (SERVER,),
        "reason": "sip.rtp",
    }
    return inbound(**{**base, "target": Endpoint(CLIENT, 4000), **changes})


def update(rig: Rig, lease: Lease, **changes: Any) -> Lease:
    rig.send(Update(next(rig.ids), PinholeUpdate(lease.id, **changes)))
    answer = rig.hear()
    assert isinstance(answer, Updated), answer
    return answer.lease


def traffic(rig: Rig, leases: list[str], slot: int = 0) -> dict[str, tuple[int, int]]:
    rig.send(Count(next(rig.ids), tuple(leases)), slot)
    answer = rig.hear(slot)
    assert isinstance(answer, Counted), answer
    return answer.packets


def gets(receiver: socket.socket, sender: socket.socket, to: Endpoint, data: bytes = b"media") -> Endpoint:
    """The datagram arrives, if not at once then one of those that follow it, as media do; where from."""
    end = time.monotonic() + 2
    while True:
        sender.sendto(data, (to.host, to.port))
        receiver.settimeout(0.1)
        try:
            got, source = receiver.recvfrom(2000)
            break
        except TimeoutError:
            assert time.monotonic() < end, f"nothing arrives at {to}"
    assert got == data
    return Endpoint(source[0], source[1])


def gets_nothing(receiver: socket.socket, sender: socket.socket, to: Endpoint) -> bool:
    receiver.settimeout(0.3)
    try:
        sender.sendto(b"intruder", (to.host, to.port))
        return receiver.recv(2000) != b"intruder"
    except TimeoutError:
        return True
    finally:
        receiver.settimeout(5)


def of(sock: socket.socket) -> Endpoint:
    return Endpoint(*sock.getsockname()[:2])


@FAMILIES
def test_media_passes_both_ways_and_only_for_the_peer(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    lease = rig.open(
        conversation(client=client, target=Endpoint(client, 4000), second=4001, public_host=public, peers=(server,))
    )
    assert lease.public.port % 2 == 0
    rtcp = Endpoint(public, lease.public.port + 1)
    phone, phone_rtcp = phones.at(rig.inside, client, 4000), phones.at(rig.inside, client, 4001)
    first, second, third = (phones.at(rig.outside, server) for _ in range(3))
    assert gets(phone, first, lease.public) == of(first)
    assert gets(first, phone, of(first)) == lease.public
    assert gets(phone, second, lease.public) == of(second)  # any port of the peer
    assert gets(phone_rtcp, first, rtcp) == of(first)
    assert gets(third, phone, of(third)) == lease.public  # begun inside, through a FORWARD policy of DROP
    assert gets(phone, third, lease.public) == of(third)
    assert gets(third, phone_rtcp, of(third)) == rtcp
    other = phones.at(rig.outside, stranger)
    assert gets_nothing(phone, other, lease.public)
    assert gets_nothing(phone_rtcp, other, rtcp)
    assert gets_nothing(other, phone, of(other))  # the policy forbids it, and it is no peer
    (row,) = rig.pinholes()
    assert (row["packets_in"], row["packets_out"]) == (4, 3)
    assert traffic(rig, [lease.id, "0123456789abcdef"]) == {lease.id: (4, 3)}
    assert (row["packets"], row["bytes"]) == (7, 7 * (5 + 8 + (40 if ":" in client else 20)))
    assert row["peer"] == server


def test_with_any_peer_everybody_may_send(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation(peers=None))
    phone = phones.at(rig.inside, CLIENT, 4000)
    for host in (SERVER, STRANGER):
        far = phones.at(rig.outside, host)
        assert gets(phone, far, lease.public) == of(far)
        other = phones.at(rig.outside, host)
        assert gets(other, phone, of(other)) == lease.public
    (row,) = rig.pinholes()
    assert row["peer"] is None
    assert row["packets"] == 4


def test_an_offer_waits_for_its_answer_and_a_peer_that_goes_is_silent_at_once(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation(peers=()))
    phone = phones.at(rig.inside, CLIENT, 4000)
    far, other = phones.at(rig.outside, SERVER), phones.at(rig.outside, STRANGER)
    assert gets_nothing(phone, far, lease.public)
    changed = update(rig, lease, peers=(SERVER,))
    assert changed.public == lease.public
    assert gets(phone, far, lease.public) == of(far)
    update(rig, lease, peers=(SERVER, STRANGER))
    assert gets(phone, other, lease.public) == of(other)
    assert gets(far, phone, of(far)) == lease.public
    update(rig, lease, peers=(STRANGER,))
    assert gets_nothing(phone, far, lease.public)
    assert gets_nothing(far, phone, of(far))
    assert gets(other, phone, of(other)) == lease.public
    (row,) = rig.pinholes()
    assert row["packets"] == 2  # of the peers that it has; a change of others keeps their counters


def test_closing_stops_media_under_way_and_what_follows_has_nothing_of_it(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation())
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, lease.public) == of(far)
    assert gets(far, phone, of(far)) == lease.public
    rig.send(Close(lease.id))
    wait_for(lambda: rig.pinholes() == [], "closed")
    for name in ("snat4", "many4", "in4", "out4"):
        assert rig.count(name) == 0
    wait_for(lambda: "port=4000" not in rig.at(rig.router, "conntrack -L -p udp"), "connections to be forgotten")
    assert gets_nothing(phone, far, lease.public)
    assert gets_nothing(far, phone, of(far))


@FAMILIES
def test_what_a_socket_sends_as_its_port_closes_belongs_to_its_next_pinhole(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    """As a boot ROM does that fetches one file after the other: connection tracking still translates its next request
    to the port that has just closed. Each datagram is sent once only."""
    request = conversation(
        client=client, target=Endpoint(client, 2070), public_host=public, peers=(server,), reason="tftp.data"
    )
    boot, asked, answers = (
        phones.at(rig.inside, client, 2070),
        phones.at(rig.outside, server, 69),
        phones.at(rig.outside, server, 3000),
    )
    for sock in (boot, asked):
        sock.settimeout(3)
    before = None
    for number in range(3):
        lease = rig.open(request)
        assert before in (None, lease.public)
        before = lease.public
        boot.sendto(b"request %d" % number, (server, 69))
        data, source = asked.recvfrom(100)
        assert (data, Endpoint(*source[:2])) == (b"request %d" % number, lease.public)
        answers.sendto(b"file %d" % number, (public, lease.public.port))
        assert boot.recv(100) == b"file %d" % number
        rig.send(Close(lease.id))
    wait_for(lambda: rig.pinholes() == [], "closed")
    assert gets_nothing(boot, answers, before or lease.public)


def test_media_stops_at_the_timeout_though_the_broker_is_dead(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation(ttl=1.0))
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, lease.public) == of(far)
    rig.end(signal.SIGKILL)
    wait_for(lambda: rig.count("in4") == 0, "the kernel's timeout")
    assert gets_nothing(phone, far, lease.public)
    assert gets_nothing(far, phone, of(far))


def test_a_refresh_keeps_it_open_and_counting(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation(ttl=2.0, second=4001))
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, lease.public) == of(far)
    refreshed = update(rig, lease, ttl=60.0)
    assert refreshed.expires == pytest.approx(lease.expires + 58, abs=2)
    assert gets(phone, far, lease.public) == of(far)
    (row,) = rig.pinholes()
    assert row["packets"] == 2
    assert row["expires"] == refreshed.expires
    listing = msgspec.json.decode(rig.at(rig.router, "nft -j list set inet algate in4"))
    elements = next(entry["set"]["elem"] for entry in listing["nftables"] if "set" in entry)
    assert [element["elem"]["timeout"] for element in elements] == [60, 60]


def test_a_target_that_moves_takes_its_public_port_along(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation())
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, lease.public) == of(far)
    moved = phones.at(rig.inside, CLIENT, 4002)
    assert update(rig, lease, target=Endpoint(CLIENT, 4002)).public == lease.public
    assert gets(moved, far, lease.public) == of(far)
    assert gets(far, moved, of(far)) == lease.public
    assert gets_nothing(far, phone, of(far))


@FAMILIES
def test_a_connection_that_was_there_before_begins_anew_from_the_public_port(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    iptables = "ip6tables" if ":" in client else "iptables"
    rig.at(rig.router, f"{iptables} -A FORWARD -i in -o out -j ACCEPT")
    phone, far = phones.at(rig.inside, client, 4000), phones.at(rig.outside, server)
    before = gets(far, phone, of(far))
    target = Endpoint(client, 4000)
    lease = rig.open(conversation(client=client, target=target, public_host=public, peers=()))
    assert before.port != lease.public.port
    wait_for(lambda: gets(far, phone, of(far)) == lease.public, "it to begin anew")
    # And while nobody may send in, the answer comes as ever.
    rig.at(rig.router, f"{iptables} -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT")
    assert gets(phone, far, lease.public) == of(far)


@FAMILIES
def test_a_client_that_talks_while_its_pinhole_opens_hears_and_is_heard(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    """As a phone that answers a call does: its media are on their way before its answer is. What the peer sends then
    meets the phone's own connection, and connection tracking gives it another port."""
    rig.at(rig.router, f"{'ip6tables' if ':' in client else 'iptables'} -A FORWARD -i in -o out -j ACCEPT")
    phone, far = phones.at(rig.inside, client, 4000), phones.at(rig.outside, server)
    gets(far, phone, of(far))
    target = Endpoint(client, 4000)
    lease = rig.open(conversation(client=client, target=target, public_host=public, peers=(server,)))
    far.sendto(b"first", (public, lease.public.port))
    assert phone.recv(100) == b"first"
    wait_for(lambda: gets(far, phone, of(far)) == lease.public, "the phone to be heard from its public port", 3.0)
    wait_for(lambda: gets(phone, far, lease.public) == of(far), "the peer to be heard from its own port", 3.0)


def burst(rig: Rig, phones: Phones, count: int) -> None:
    """So many connections of others, which make every search longer."""
    sender = phones.at(rig.inside, CLIENT)
    for number in range(count):
        sender.sendto(b"x", (SERVER, 10_000 + number))


@pytest.mark.parametrize("others", [0, pytest.param(20_000, marks=pytest.mark.long)])
def test_clients_that_talk_early_one_right_after_another(rig: Rig, phones: Phones, others: int) -> None:
    """A tenth of the time at most goes into searches at once. Whoever comes when that is used up is searched for soon
    after, and all of them are heard from their public ports."""
    rig.at(rig.router, "iptables -A FORWARD -i in -o out -j ACCEPT")
    burst(rig, phones, others)
    pairs = [(phones.at(rig.inside, CLIENT, 4000 + 2 * number), phones.at(rig.outside, SERVER)) for number in range(24)]
    for phone, far in pairs:
        gets(far, phone, of(far))
    publics = [rig.open(conversation(target=of(phone), peers=(SERVER,))).public for phone, _ in pairs]
    for (_, far), public in zip(pairs, publics, strict=True):
        far.sendto(b"first", (public.host, public.port))
    for phone, _ in pairs:
        assert phone.recv(100) == b"first"
    begun = time.monotonic()
    for (phone, far), public in zip(pairs, publics, strict=True):
        wait_for(lambda: gets(far, phone, of(far)) == public, "the phone to be heard from its public port", 3.0)  # noqa: B023
        wait_for(lambda: gets(phone, far, public) == of(far), "the peer to be heard from its own port", 3.0)  # noqa: B023
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("peers", [(SERVER,), ()], ids=["answer", "offer"])
def test_a_phone_whose_rtcp_alone_was_early(rig: Rig, phones: Phones, peers: tuple[str, ...]) -> None:
    """Its first report has left before its description."""
    rig.at(rig.router, "iptables -A FORWARD -i in -o out -j ACCEPT")
    media, reports = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.inside, CLIENT, 4001)
    far, far_reports = phones.at(rig.outside, SERVER), phones.at(rig.outside, SERVER)
    gets(far_reports, reports, of(far_reports))
    rig.open(conversation(target=Endpoint(CLIENT, 6000), peers=()))  # a search has just been made
    lease = rig.open(conversation(second=4001, peers=peers))
    second = Endpoint(lease.public.host, lease.public.port + 1)
    begun = time.monotonic()
    wait_for(lambda: gets(far_reports, reports, of(far_reports)) == second, "reports from the public port", 1.0)
    if not peers:
        update(rig, lease, peers=(SERVER,))
    assert gets(reports, far_reports, second) == of(far_reports)
    assert gets(far, media, of(far)) == lease.public
    assert gets(media, far, lease.public) == of(far)
    assert time.monotonic() - begun < 2


def fill(rig: Rig, script: Path, name: str, size: int = 65536) -> None:
    """A set of sockets has no room left."""
    elements = [f"10.{number >> 14}.{number >> 6 & 255}.1 . {1024 + (number & 63)}" for number in range(size)]
    for start in range(0, size, 4096):
        listed = ", ".join(elements[start : start + 4096])
        script.write_text(f"add element inet {rig.table} {name} {{ {listed} }}\n")
        rig.at(rig.router, f"nft -f {script}")


def test_a_connection_that_was_there_before_is_found_though_there_was_no_room_to_note_it(
    rig: Rig, phones: Phones, tmp_path: Path
) -> None:
    """An inside resolver has 65,536 sockets in ten minutes; media of later calls leave from the public port all the
    same, and soon."""
    rig.at(rig.router, "iptables -A FORWARD -i in -o out -j ACCEPT")
    fill(rig, tmp_path / "fill.nft", "talked4")
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    before = gets(far, phone, of(far))
    lease = rig.open(conversation(peers=()))
    assert before.port != lease.public.port
    wait_for(lambda: gets(far, phone, of(far)) == lease.public, "it to begin anew", 1.0)


def test_who_comes_too_early_is_heard_at_once_when_he_is_let_in(rig: Rig, phones: Phones) -> None:
    """What came before is not remembered as a connection to this host."""
    lease = rig.open(conversation(peers=()))
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    for _ in range(3):
        far.sendto(b"early", (lease.public.host, lease.public.port))
    update(rig, lease, peers=(SERVER,))
    far.sendto(b"in time", (lease.public.host, lease.public.port))
    phone.settimeout(0.5)
    assert phone.recv(100) == b"in time"
    assert rig.status()["counters"]["early"]["packets"] == 3


@pytest.mark.parametrize("walk", [0, 1_000_000], ids=["host by host", "all at once"])
def test_only_connections_of_these_sockets_are_forgotten(
    rig: Rig, phones: Phones, walk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "_WALK", walk)
    far = {host: phones.at(rig.outside, host, 7000) for host in (SERVER, STRANGER, SERVER6)}
    for host, sock in far.items():
        for port in (41000, 41001):
            sock.sendto(b"early", (PUBLIC6 if ":" in host else PUBLIC, port))

    def forget() -> int:
        ends = [(PUBLIC, 41000), (STRANGER, 7000), (PUBLIC6, 41001), (PUBLIC6, 7000)]
        table = conntrack.Conntrack()
        found = table.find({Endpoint(*end) for end in ends})
        return sum(table.delete(entry) for entry in found)

    assert rig.within(rig.router, forget) == 4
    assert rig.within(rig.router, forget) == 0
    (left,) = rig.at(rig.router, "conntrack -L -p udp -f ipv4").splitlines()
    assert f"src={SERVER} dst={PUBLIC} sport=7000 dport=41001" in left
    (left,) = rig.at(rig.router, "conntrack -L -p udp -f ipv6").splitlines()
    assert f"src={SERVER6} dst={PUBLIC6} sport=7000 dport=41000" in left


def test_one_inside_socket_has_one_public_port(rig: Rig) -> None:
    lease = rig.open(conversation(second=4001))
    assert rig.open(conversation(), slot=1).public == lease.public
    assert "'taken'" in repr(rig.ask(conversation(target=Endpoint(CLIENT, 4002), second=4001)))
    rig.send(Hello(2), slot=1)
    rig.send(Close(lease.id))
    rig.open(conversation(target=Endpoint(CLIENT, 4002), second=4001))


def test_untranslated_ipv6_is_only_admitted(rig: Rig, phones: Phones) -> None:
    rig.at(rig.outside, "ip route add fd00:56::/64 via 2001:db8::1")
    target = Endpoint(CLIENT6, 4000)
    phone, far = phones.at(rig.inside, CLIENT6, 4000), phones.at(rig.outside, SERVER6)
    other = phones.at(rig.outside, STRANGER6)
    assert gets_nothing(phone, far, target)
    lease = rig.open(conversation(client=CLIENT6, target=target, public_host=None, peers=(SERVER6,)))
    assert lease.public == target
    assert gets(phone, far, target) == of(far)
    assert gets(far, phone, of(far)) == target  # no MASQUERADE
    assert gets_nothing(phone, other, target)


@FAMILIES
def test_a_new_broker_knows_whose_sockets_had_pinholes_before(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    """The broker before this one had no time left to search for what its closed pinhole has left behind."""
    asked = conversation(client=client, target=Endpoint(client, 4000), public_host=public, peers=(server,))
    lease = rig.open(asked)
    phone, far = phones.at(rig.inside, client, 4000), phones.at(rig.outside, server)
    gets(phone, far, lease.public)
    gets(far, phone, of(far))
    rig.send(Close(lease.id))
    wait_for(lambda: not rig.pinholes(), "the pinhole to be closed")
    rig.kill()
    rig.start()
    begun = time.monotonic()
    lease = rig.open(asked)
    wait_for(lambda: gets(far, phone, of(far)) == lease.public, "the phone to be heard from its new public port", 1.0)
    assert gets(phone, far, lease.public) == of(far)
    assert time.monotonic() - begun < 2


def test_a_new_broker_reads_conversations_back(rig: Rig, phones: Phones) -> None:
    leases = [
        rig.open(conversation(second=4001, peers=(SERVER, STRANGER))),
        rig.open(conversation(target=Endpoint(CLIENT, 4002), peers=None)),
        rig.open(conversation(target=Endpoint(CLIENT, 4004), peers=(), second=4009)),
    ]
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    assert gets(phone, far, leases[0].public) == of(far)
    before = {row.pop("id"): row for row in rig.pinholes()}
    rig.end(signal.SIGKILL)
    rig.start()
    after = {row.pop("id"): row for row in rig.pinholes()}
    assert before.keys() == after.keys() == {lease.id for lease in leases}
    for lease_id, row in after.items():
        assert row.pop("expires") == pytest.approx(before[lease_id].pop("expires"), abs=1.0)
        assert row == before[lease_id]
    assert update(rig, leases[0], peers=(SERVER,)).peers == (SERVER,)
    assert gets(phone, far, leases[0].public) == of(far)


def test_the_quick_look_sees_the_same_as_the_whole_one(rig: Rig, phones: Phones) -> None:
    lease = rig.open(conversation())
    rig.open(conversation(client=CLIENT6, target=Endpoint(CLIENT6, 4000), public_host=PUBLIC6, peers=None))
    rig.open(inbound())
    assert gets(phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER), lease.public) is not None

    def read() -> tuple[list[Element], list[Element]]:
        table = Netfilter(rig.table)
        return table.elements(), table.glance(SETS)

    whole, glanced = rig.within(rig.router, read)
    assert glanced == [
        Element(element.set, element.key, None, 0.0, "", element.packets, element.octets, element.end)
        for element in whole
    ]
    assert {element.set for element in whole} >= {"dnat4", "once4", "snat4", "in4", "out4", "snat6", "inany6"}
    assert sum(element.packets for element in whole) > 0
    assert all(0 < element.timeout <= 60 for element in whole)


def test_another_worker_cannot_change_it(rig: Rig) -> None:
    lease = rig.open(conversation(), slot=0)
    rig.send(Update(next(rig.ids), PinholeUpdate(lease.id, peers=None)), slot=1)
    assert "'lease'" in repr(rig.hear(1))
    assert rig.count("any4") == 0
    assert traffic(rig, [lease.id], slot=1) == {}


def test_two_conversations_cannot_be_made_one(rig: Rig) -> None:
    rig.open(conversation())
    lease = rig.open(conversation(target=Endpoint(CLIENT, 4002)))
    for changes in ({"target": Endpoint(CLIENT, 4000)}, {"second": 4000}, {"target": Endpoint("192.168.56.11", 4000)}):
        rig.send(Update(next(rig.ids), PinholeUpdate(lease.id, **changes)))
        assert "Refused" in repr(rig.hear())


def test_what_a_dead_worker_left_is_its_successors_to_keep(rig: Rig) -> None:
    """Media go on; what the successor never heard of gives way when it wants the same socket, and nothing else does."""
    known, unknown = rig.open(conversation()), rig.open(conversation(target=Endpoint(CLIENT, 4010)))
    rig.send(Hello(2, keep=True))
    assert update(rig, known, ttl=50.0).public == known.public
    again = rig.open(conversation(target=Endpoint(CLIENT, 4010)))
    assert again.public == unknown.public
    assert {row["id"] for row in rig.pinholes()} == {known.id, again.id}
    second = rig.open(conversation())
    assert second.public == known.public
    assert {row["id"] for row in rig.pinholes()} == {known.id, again.id, second.id}
    rig.send(Hello(3))
    wait_for(lambda: rig.pinholes() == [], "a successor that knows nothing keeps nothing")
