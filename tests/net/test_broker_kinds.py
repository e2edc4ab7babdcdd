"""The kinds of pinholes beside `once` and `conversation`, with real packets: FORWARD drops everything else."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from alg.address import Endpoint
from gateway.lease.messages import Close, RequestRefused, Update, Updated
from gateway.model.requests import Lease, PinholeRequest, PinholeUpdate
from gateway.observe.admin import ask
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
from tests.net.test_broker_udp import gets, gets_nothing

pytestmark = pytest.mark.net

OTHER, OTHER6 = "192.168.56.12", "fd00:56::12"
INNER = "192.168.56.1"

FAMILIES = pytest.mark.parametrize(
    ("client", "public", "server", "stranger"),
    [(CLIENT, PUBLIC, SERVER, STRANGER), (CLIENT6, PUBLIC6, SERVER6, STRANGER6)],
    ids=["ipv4", "ipv6"],
)


@pytest.fixture(autouse=True)
def two_clients(rig: Rig) -> None:
    """A second client inside; and what comes to the router itself is dropped."""
    for host in (f"{OTHER}/24", f"{OTHER6}/64"):
        rig.at(rig.inside, f"ip address add {host} dev eth0" + (" nodad" if ":" in host else ""))
    for iptables in ("iptables", "ip6tables"):
        rig.at(rig.router, f"{iptables} -P INPUT DROP")
    rig.at(rig.router, "ip6tables -A INPUT -p icmpv6 -j ACCEPT")


def mapping(**changes: Any) -> PinholeRequest:
    base: dict[str, Any] = {
        "kind": "mapping",
        "transport": "tcp+udp",
        "peer": None,
        "peers": None,
        "reason": "map.pcp",
        "ttl": 600.0,
    }
    return inbound(**{**base, **changes})


def refused(rig: Rig, request: PinholeRequest, slot: int = 0) -> str:
    answer = rig.ask(request, slot)
    assert isinstance(answer, RequestRefused), answer
    return answer.rule


def update(rig: Rig, lease: Lease, slot: int = 0, **changes: Any) -> Lease:
    rig.send(Update(next(rig.ids), PinholeUpdate(lease.id, **changes)), slot)
    answer = rig.hear(slot)
    assert isinstance(answer, Updated), answer
    return answer.lease


@contextlib.contextmanager
def connected(
    rig: Rig, to: Endpoint, source: str, server: socket.socket, namespace: str = ""
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from outside, and its other end."""
    near = rig.connect(namespace or rig.outside, to, source)
    far, _ = server.accept()
    with near, far:
        near.sendall(b"in")
        far.settimeout(5)
        assert far.recv(10) == b"in"
        far.sendall(b"out")
        assert near.recv(10) == b"out"
        yield near, far


def is_shut(rig: Rig, to: Endpoint, source: str, namespace: str = "") -> bool:
    try:
        rig.connect(namespace or rig.outside, to, source, 0.7).close()
    except (TimeoutError, ConnectionRefusedError):
        return True
    return False


# --- mappings -------------------------------------------------------------------------------------------------------


@FAMILIES
def test_two_strangers_at_once_over_tcp_and_udp(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    target = Endpoint(client, 50000)
    with rig.listen(rig.inside, client, 50000) as listener:
        phone = phones.at(rig.inside, client, 50000)
        lease = rig.open(mapping(client=client, target=target, public_host=public))
        assert (lease.kind, lease.protocol, lease.public.host) == ("mapping", "tcp+udp", public)
        with connected(rig, lease.public, server, listener), connected(rig, lease.public, stranger, listener):
            for host in (server, stranger):
                far = phones.at(rig.outside, host)
                source = gets(phone, far, lease.public)
                assert source.host == host
                assert gets(far, phone, source) == lease.public
        (row,) = rig.pinholes()
        assert (row["kind"], row["protocol"], row["reason"]) == ("mapping", "tcp+udp", "map.pcp")
        assert row["packets_in"] >= 2


@FAMILIES
def test_what_a_mapped_socket_sends_leaves_from_the_public_port(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    lease = rig.open(mapping(client=client, target=Endpoint(client, 50000), public_host=public))
    phone = phones.at(rig.inside, client, 50000)
    for host in (server, stranger):
        far = phones.at(rig.outside, host)
        assert gets(far, phone, Endpoint(host, far.getsockname()[1])) == lease.public
    allow = "ip6tables" if ":" in client else "iptables"
    rig.at(rig.router, f"{allow} -I FORWARD -i in -p tcp -j ACCEPT")
    rig.at(rig.router, f"{allow} -I FORWARD -m state --state ESTABLISHED -j ACCEPT")
    with rig.listen(rig.outside, server, 7000) as listener:
        sock = rig.within(
            rig.inside, lambda: socket.create_connection((server, 7000), 5, source_address=(client, 50000))
        )
        with sock:
            _, source = listener.accept()
    assert Endpoint(source[0], source[1]) == lease.public


@FAMILIES
def test_prefixes_may_change_and_datagrams_stop_at_once(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    size = 128 if ":" in client else 32
    with rig.listen(rig.inside, client, 50000) as listener:
        phone = phones.at(rig.inside, client, 50000)
        near, far = phones.at(rig.outside, server), phones.at(rig.outside, stranger)
        lease = rig.open(
            mapping(client=client, target=Endpoint(client, 50000), public_host=public, peers=(f"{server}/{size}",))
        )
        gets(phone, near, lease.public)
        assert gets_nothing(phone, far, lease.public)
        assert is_shut(rig, lease.public, stranger)
        with connected(rig, lease.public, server, listener) as (peer, other):
            update(rig, lease, peers=(f"{stranger}/{size}",))
            gets(phone, far, lease.public)
            assert gets_nothing(phone, near, lease.public)
            with connected(rig, lease.public, stranger, listener):
                assert is_shut(rig, lease.public, server)
            peer.sendall(b"still")  # TCP lives on
            assert other.recv(10) == b"still"
        update(rig, lease, peers=None)
        gets(phone, near, lease.public)
        gets(phone, far, lease.public)


def test_the_end_of_a_mapping(rig: Rig, phones: Phones) -> None:
    with rig.listen(rig.inside, CLIENT, 50000) as listener:
        phone, far = phones.at(rig.inside, CLIENT, 50000), phones.at(rig.outside, SERVER)
        lease = rig.open(mapping())
        source = gets(phone, far, lease.public)
        with connected(rig, lease.public, SERVER, listener) as (peer, other):
            rig.send(Close(lease.id))
            wait_for(lambda: rig.pinholes() == [], "the end")
            assert gets_nothing(phone, far, lease.public)
            assert gets_nothing(far, phone, source)
            assert is_shut(rig, lease.public, STRANGER)
            peer.sendall(b"lives")
            assert other.recv(10) == b"lives"


def test_time_is_over_and_everything_of_ours_is_dead(rig: Rig, phones: Phones) -> None:
    with rig.listen(rig.inside, CLIENT, 50000) as listener:
        phone, far = phones.at(rig.inside, CLIENT, 50000), phones.at(rig.outside, SERVER)
        lease = rig.open(mapping(ttl=5.0))
        rig.kill()
        gets(phone, far, lease.public)
        with connected(rig, lease.public, STRANGER, listener):
            pass
        wait_for(lambda: rig.count("map4") == 0, "its time is over", 10)
        assert gets_nothing(phone, far, lease.public)
        assert is_shut(rig, lease.public, SERVER)


def test_a_mapping_is_renewed_and_known_after_the_brokers_death(rig: Rig, phones: Phones) -> None:
    lease = rig.open(mapping(ttl=20.0, peers=("198.51.100.0/24", f"{SERVER}/32")))
    once = rig.open(inbound(kind="anybody", peer=None, target=Endpoint(CLIENT, 50001)))
    renewed = update(rig, lease, ttl=7200.0)
    assert renewed.public == lease.public
    before = {row["id"]: row for row in rig.pinholes()}
    rig.kill()
    rig.start()
    after = {row["id"]: row for row in rig.pinholes()}
    assert set(after) == {lease.id, once.id}
    for lease_id, row in after.items():
        assert row["expires"] == pytest.approx(before[lease_id]["expires"], abs=1)
        assert {**row, "expires": 0} == {**before[lease_id], "expires": 0}
    phone, far = phones.at(rig.inside, CLIENT, 50000), phones.at(rig.outside, SERVER)
    gets(phone, far, lease.public)
    assert update(rig, lease, peers=None).peers is None
    rig.send(Close(lease.id))
    rig.send(Close(once.id))
    wait_for(lambda: rig.pinholes() == [], "the end")
    for name in ("map4", "only4", "inonly4", "outonly4", "inany4", "outany4", "snat4", "onceany4", "dnatany4"):
        assert rig.count(name) == 0, name


@FAMILIES
def test_hairpin_from_another_client_and_from_the_same(
    rig: Rig, phones: Phones, client: str, public: str, server: str, stranger: str
) -> None:
    other = OTHER6 if ":" in client else OTHER
    # Two clients in two places: what one sends to the other goes through the router only by its public address.
    with rig.listen(rig.inside, client, 50000) as listener:
        phone = phones.at(rig.inside, client, 50000)
        lease = rig.open(mapping(client=client, target=Endpoint(client, 50000), public_host=public))
        for host in (other, client):
            with connected(rig, lease.public, host, listener, rig.inside):
                pass
            near = phones.at(rig.inside, host)
            source = gets(phone, near, lease.public)
            assert source.host not in (other, client)  # so that the answer comes back through the router
            assert gets(near, phone, source) == lease.public


def test_a_wished_port(rig: Rig, phones: Phones) -> None:
    assert rig.open(mapping(suggested=51413)).public.port == 51413
    second = mapping(target=Endpoint(CLIENT, 50010), suggested=51413)
    assert rig.open(second).public.port not in (51413, *range(40000, 41000))
    assert refused(rig, mapping(target=Endpoint(CLIENT, 50011), suggested=51413, exact=True)) == "wish"
    with rig.listen(rig.router, PUBLIC, 52000):
        assert refused(rig, mapping(target=Endpoint(CLIENT, 50012), suggested=52000, exact=True)) == "wish"
    phones.at(rig.router, "0.0.0.0", 52001)
    assert refused(rig, mapping(target=Endpoint(CLIENT, 50012), suggested=52001, exact=True)) == "wish"
    assert (
        refused(rig, mapping(target=Endpoint(CLIENT, 50012), suggested=10800, exact=True)) == "wish"
    )  # transparent.port
    once = rig.open(inbound())
    assert refused(rig, mapping(target=Endpoint(CLIENT, 50012), suggested=once.public.port, exact=True)) == "wish"


@pytest.mark.parametrize(
    "rule",
    [
        "iptables -t nat -A PREROUTING -i out -p tcp --dport 53000 -j DNAT --to-destination 192.168.56.12:80",
        "iptables -t nat -A PREROUTING -p tcp -m multiport --dports 22,52990:53005 -j DNAT --to 192.168.56.12",
        "nft add rule ip theirs pre iifname out tcp dport 53000 dnat to 192.168.56.12:80",
        "nft add rule ip theirs pre iifname out tcp dport { 80, 52990-53005 } dnat to 192.168.56.12",
        "nft add rule ip theirs pre dnat to tcp dport map { 53000 : 192.168.56.12 }",
    ],
)
def test_an_operators_forwarding_goes_first(rig: Rig, rule: str) -> None:
    if rule.startswith("nft"):
        rig.at(rig.router, "nft add table ip theirs")
        rig.at(rig.router, "nft add chain ip theirs pre { type nat hook prerouting priority -100 ; }")
    rig.at(rig.router, rule)
    assert refused(rig, mapping(suggested=53000, exact=True)) == "wish"
    assert rig.open(mapping(suggested=53000)).public.port != 53000
    assert rig.open(mapping(target=Endpoint(CLIENT, 50010), suggested=53999, exact=True)).public.port == 53999


def test_a_forwarding_that_comes_later_goes_before_the_mapping(rig: Rig) -> None:
    """Also where nobody reads the operator's rules: ours stand behind them."""
    lease = rig.open(mapping(suggested=53000, exact=True))
    with rig.listen(rig.inside, CLIENT, 50000) as listener, rig.listen(rig.inside, OTHER, 8080) as theirs:
        with connected(rig, lease.public, SERVER, listener):
            pass
        to = f"-p tcp --dport 53000 -j DNAT --to-destination {OTHER}:8080"
        rig.at(rig.router, f"iptables -t nat -A PREROUTING {to}")
        rig.at(rig.router, f"iptables -I FORWARD -d {OTHER} -j ACCEPT")
        rig.at(rig.router, f"iptables -I FORWARD -s {OTHER} -j ACCEPT")
        with connected(rig, lease.public, STRANGER, theirs):
            pass


# --- one inside socket has one public port --------------------------------------------------------------------------


def conversation(**changes: Any) -> PinholeRequest:
    base: dict[str, Any] = {"transport": "udp", "kind": "conversation", "peer": None, "peers": (SERVER,)}
    return inbound(**{**base, "reason": "sip.rtp", **changes})


def test_a_mapping_and_a_conversation_of_one_socket_agree(rig: Rig, phones: Phones) -> None:
    phone, far = phones.at(rig.inside, CLIENT, 50000), phones.at(rig.outside, STRANGER)
    near = phones.at(rig.outside, SERVER)
    mapped = rig.open(mapping(transport="udp", peers=(f"{STRANGER}/32",)))
    talk = rig.open(conversation(), slot=1)
    assert talk.public == mapped.public
    gets(phone, far, mapped.public)
    gets(phone, near, mapped.public)
    rig.send(Close(mapped.id))
    wait_for(lambda: len(rig.pinholes()) == 1, "the end of the mapping")
    assert gets_nothing(phone, far, mapped.public)
    gets(phone, near, talk.public)
    again = rig.open(mapping(transport="tcp+udp", suggested=51413))
    assert again.public == talk.public
    assert refused(rig, mapping(transport="udp", suggested=51413, exact=True)) == "wish"
    rig.send(Close(talk.id), slot=1)
    wait_for(lambda: len(rig.pinholes()) == 1, "the end of the conversation")
    gets(phone, near, again.public)
    rig.send(Close(again.id))
    wait_for(lambda: rig.pinholes() == [], "the end")
    for name in ("held4", "snat4", "map4", "many4", "in4", "inany4", "outany4", "only4", "inonly4"):
        assert rig.count(name) == 0, name


def test_a_second_call_from_the_same_media_port_is_served(rig: Rig, phones: Phones) -> None:
    """The first one was never hung up: its BYE was lost."""
    phone = phones.at(rig.inside, CLIENT, 4000)
    near, far = phones.at(rig.outside, SERVER), phones.at(rig.outside, STRANGER)
    first = rig.open(conversation(target=Endpoint(CLIENT, 4000), second=4001, ttl=5.0))
    second = rig.open(conversation(target=Endpoint(CLIENT, 4000), second=4001, peers=(STRANGER,)), slot=1)
    assert second.public == first.public
    gets(phone, near, first.public)
    gets(phone, far, second.public)
    assert gets(far, phone, Endpoint(STRANGER, far.getsockname()[1])) == second.public
    wait_for(lambda: len(rig.pinholes()) == 1, "the end of the first one", 10)
    assert gets_nothing(phone, near, first.public)
    gets(phone, far, second.public)
    assert rig.count("held4") == 0


def test_those_that_share_are_known_after_the_brokers_death(rig: Rig, phones: Phones) -> None:
    phone, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, STRANGER)
    target = Endpoint(CLIENT, 4000)
    first = rig.open(conversation(target=target, second=4001, ttl=60.0))
    second = rig.open(conversation(target=target, second=4001, peers=(SERVER, STRANGER), ttl=90.0), slot=1)
    third = rig.open(mapping(target=target, peers=("198.51.100.0/24",), transport="udp"), slot=1)
    before = {row["id"]: row for row in rig.pinholes()}
    rig.kill()
    rig.start()
    after = {row["id"]: row for row in rig.pinholes()}
    assert set(after) == {first.id, second.id, third.id}
    for lease_id, row in after.items():
        assert {**row, "expires": 0} == {**before[lease_id], "expires": 0}
    rig.send(Close(second.id), slot=1)
    rig.send(Close(third.id), slot=1)
    wait_for(lambda: len(rig.pinholes()) == 1, "one is left")
    assert gets_nothing(phone, far, first.public)
    gets(phone, phones.at(rig.outside, SERVER), first.public)
    assert rig.count("held4") == 0
    rig.at(rig.router, "nft flush ruleset")
    wait_for(lambda: "algate" in rig.tables(), "the table is back")


# --- once, for anybody ----------------------------------------------------------------------------------------------


@FAMILIES
def test_anybody_once_admits_one_and_no_second(rig: Rig, client: str, public: str, server: str, stranger: str) -> None:
    with rig.listen(rig.inside, client, 50000) as listener:
        request = inbound(
            client=client,
            target=Endpoint(client, 50000),
            public_host=public,
            kind="anybody",
            peer=None,
            reason="irc.send",
        )
        lease = rig.open(request)
        rig.kill()  # the kernel counts
        with connected(rig, lease.public, stranger, listener):
            assert is_shut(rig, lease.public, server)
            assert is_shut(rig, lease.public, stranger)
        rig.start()
        assert rig.pinholes() == []


def test_kinds_have_quotas_of_their_own(rig: Rig) -> None:
    for number in range(8):
        rig.open(inbound(kind="anybody", peer=None, target=Endpoint(CLIENT, 50000 + number)))
    wait_for(lambda: refused(rig, inbound(kind="anybody", peer=None)) == "quota", "the quota")
    rig.open(inbound())
    rig.open(mapping())


# --- exchanges ------------------------------------------------------------------------------------------------------


def exchange(**changes: Any) -> PinholeRequest:
    base: dict[str, Any] = {
        "transport": "udp",
        "kind": "exchange",
        "peer": None,
        "target": Endpoint(CLIENT, 0),
        "visitor": STRANGER,
        "outer": Endpoint(STRANGER, 5000),
        "inner_host": INNER,
        "reason": "rtsp.rtp",
    }
    return inbound(**{**base, **changes})


@pytest.mark.parametrize("server_begins", [True, False])
def test_an_exchange_whoever_begins(rig: Rig, phones: Phones, server_begins: bool) -> None:
    camera, viewer = phones.at(rig.inside, CLIENT, 6970), phones.at(rig.outside, STRANGER, 5000)
    other = phones.at(rig.outside, SERVER, 5000)
    lease = rig.open(exchange(second=0, outer_second=5001))
    assert lease.inner is not None
    assert (lease.public.host, lease.inner.host) == (PUBLIC, INNER)
    assert lease.public.port % 2 == lease.inner.port % 2 == 0
    assert gets_nothing(camera, viewer, lease.public)  # where it leads is not known yet
    update(rig, lease, target=Endpoint(CLIENT, 6970), second=6971)
    for sender, receiver, to, seen in sorted(
        [(camera, viewer, lease.inner, lease.public), (viewer, camera, lease.public, lease.inner)],
        key=lambda way: (way[0] is camera) != server_begins,
    ):
        assert gets(receiver, sender, to) == seen
    assert gets_nothing(camera, other, lease.public)
    rtcp, far = phones.at(rig.inside, CLIENT, 6971), phones.at(rig.outside, STRANGER, 5001)
    assert gets(far, rtcp, Endpoint(INNER, lease.inner.port + 1)) == Endpoint(PUBLIC, lease.public.port + 1)
    before = rig.pinholes()
    rig.kill()
    rig.start()
    assert [{**row, "expires": 0} for row in rig.pinholes()] == [{**row, "expires": 0} for row in before]
    rig.send(Close(lease.id))
    wait_for(lambda: rig.pinholes() == [], "the end")
    assert gets_nothing(viewer, camera, lease.inner)
    assert gets_nothing(camera, viewer, lease.public)
    for name in ("snat4", "many4", "in4"):
        assert rig.count(name) == 0, name


# --- who may ask ----------------------------------------------------------------------------------------------------


@pytest.mark.rig(kinds=("once",))
def test_a_process_may_ask_only_for_the_kinds_that_its_modules_declare(rig: Rig) -> None:
    rig.open(inbound())
    for request in (mapping(), exchange(), conversation(), inbound(kind="anybody", peer=None)):
        assert refused(rig, request) == "kind"
    rig.open(inbound(kind="local"))


def test_kick_ends_a_mapping(rig: Rig) -> None:
    lease = rig.open(mapping())
    (row,) = ask(str(rig._admin_path), "kick", 5.0, lease.id)
    assert row["id"] == lease.id
    assert rig.pinholes() == []
    assert time.time() < lease.expires
