"""The broker's own checks: nothing that a worker says is believed."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alg.address import Endpoint
from gateway.lease.quotas import LeaseLimits
from gateway.lease.table import LeaseTable
from gateway.lease.validate import SERVICE_PORTS, check_connection, check_request, check_update, valid_lease_id
from gateway.model.errors import PinholeRefused
from gateway.model.requests import PinholeRequest, PinholeUpdate, transports_of

INSIDE = [ipaddress.ip_network("192.168.56.0/24"), ipaddress.ip_network("fd00:56::/64")]

INBOUND = PinholeRequest(
    flow="w0-17",
    reason="ftp.port",
    client="192.168.56.10",
    direction="in",
    transport="tcp",
    target=Endpoint("192.168.56.10", 50000),
    peer="203.0.113.5",
    public_host="203.0.113.1",
    ttl=60.0,
)
OUTBOUND = msgspec.structs.replace(
    INBOUND, direction="out", reason="ftp.pasv", target=Endpoint("203.0.113.5", 30000), peer=None, public_host=None
)
INBOUND6 = msgspec.structs.replace(
    INBOUND, client="fd00:56::10", target=Endpoint("fd00:56::10", 50000), peer="2001:db8::5", public_host="2001:db8::1"
)


def rule_of(request: PinholeRequest) -> str | None:
    try:
        check_request(request, INSIDE)
    except PinholeRefused as refusal:
        return refusal.rule
    return None


@pytest.mark.parametrize("request_", [INBOUND, OUTBOUND, INBOUND6])
def test_good_requests_pass(request_: PinholeRequest) -> None:
    assert rule_of(request_) is None


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"target": Endpoint("192.168.56.11", 50000)}, "target"),  # a third host
        ({"target": Endpoint("203.0.113.9", 50000)}, "target"),
        ({"target": Endpoint("192.168.56.10", 22)}, "port"),
        ({"target": Endpoint("192.168.56.10", 1023)}, "port"),
        ({"target": Endpoint("192.168.56.10", 3306)}, "port"),
        ({"target": Endpoint("192.168.56.10", 65536)}, "port"),
        ({"target": Endpoint("192.168.56.10", -1)}, "port"),
        ({"client": "203.0.113.9", "target": Endpoint("203.0.113.9", 50000)}, "client"),
        ({"client": "localhost"}, "client"),
        ({"client": "192.168.056.010"}, "client"),
        ({"peer": None}, "peer"),
        ({"peer": "192.168.56.77"}, "peer"),
        ({"peer": "0.0.0.0"}, "peer"),
        ({"peer": "224.0.0.1"}, "peer"),
        ({"peer": "127.0.0.1"}, "peer"),
        ({"peer": "255.255.255.255"}, "peer"),
        ({"peer": "example.com"}, "peer"),
        ({"peer": "2001:db8::5"}, "family"),
        ({"public_host": None}, "public"),
        ({"public_host": "192.168.56.1"}, "public"),
        ({"public_host": "169.254.169.254"}, "public"),
        ({"public_host": "2001:db8::1"}, "family"),
        ({"ttl": 0.5}, "ttl"),
        ({"ttl": 301.0}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"ttl": float("inf")}, "ttl"),
        ({"ttl": -1.0}, "ttl"),
        ({"kind": "conversation"}, "kind"),
        ({"kind": "read"}, "kind"),
        ({"flow": ""}, "flow"),
        ({"flow": "a b"}, "flow"),
        ({"flow": "a\n"}, "flow"),
        ({"flow": "x" * 49}, "flow"),
        ({"reason": 'ftp" drop'}, "reason"),
        ({"reason": "x" * 25}, "reason"),
    ],
)
def test_bad_inbound_requests(changes: dict[str, Any], rule: str) -> None:
    assert rule_of(msgspec.structs.replace(INBOUND, **changes)) == rule


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"peer": "203.0.113.5"}, "peer"),
        ({"public_host": "203.0.113.1"}, "peer"),
        ({"target": Endpoint("192.168.56.11", 30000)}, "target"),
        ({"target": Endpoint("203.0.113.5", 25)}, "port"),
        ({"target": Endpoint("2001:db8::5", 30000)}, "family"),
        ({"client": "203.0.113.9"}, "client"),
    ],
)
def test_bad_outbound_requests(changes: dict[str, Any], rule: str) -> None:
    assert rule_of(msgspec.structs.replace(OUTBOUND, **changes)) == rule


@pytest.mark.parametrize("text", ["::ffff:192.168.56.10", "fe80::1%eth0", "FD00:56::10", "fd00:56:0::10"])
def test_an_address_has_one_spelling_and_no_disguise(text: str) -> None:
    assert rule_of(msgspec.structs.replace(INBOUND6, client=text, target=Endpoint(text, 50000))) in ("client", "target")


addresses = st.sampled_from(
    ["192.168.56.10", "192.168.56.11", "203.0.113.5", "203.0.113.1", "fd00:56::10", "2001:db8::5", "127.0.0.1", "", "x"]
) | st.ip_addresses().map(str)
endpoints = st.builds(Endpoint, addresses, st.integers(-5, 70000) | st.sampled_from([80, 3306, 50000]))


CONVERSATION = msgspec.structs.replace(
    INBOUND, transport="udp", kind="conversation", peer=None, peers=("203.0.113.5",), second=50001, ttl=3600.0
)
LOCAL = msgspec.structs.replace(INBOUND, kind="local", target=Endpoint("192.168.56.10", 80))
LOCAL_UDP = msgspec.structs.replace(LOCAL, transport="udp", peer=None, peers=None)
prefixes = st.sampled_from(
    ["198.51.100.0/24", "198.51.100.7/32", "10.0.0.0/8", "0.0.0.0/0", "198.51.100.1/24", "2001:db8::/32", "::/0", "x"]
)
ports = st.sampled_from([0, 22, 1023, 1024, 1900, 5000, 5001, 65535, 65536, -1])
MAPPING = msgspec.structs.replace(
    INBOUND, kind="mapping", transport="tcp+udp", peer=None, peers=None, ttl=7200.0, suggested=51413
)
ANYBODY = msgspec.structs.replace(INBOUND, kind="anybody", peer=None, reason="irc.send")
EXCHANGE = msgspec.structs.replace(
    INBOUND,
    kind="exchange",
    transport="udp",
    peer=None,
    target=Endpoint("192.168.56.10", 0),
    visitor="203.0.113.5",
    outer=Endpoint("203.0.113.5", 5000),
    inner_host="192.168.56.1",
    ttl=600.0,
)
GRE = msgspec.structs.replace(
    INBOUND, kind="gre", transport="gre", target=Endpoint("192.168.56.10", 7), reason="pptp.call", ttl=7200.0
)
EXCHANGE_PAIR = msgspec.structs.replace(EXCHANGE, second=0, outer_second=5001)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "client": addresses,
    "direction": st.sampled_from(["in", "out"]),
    "transport": st.sampled_from(["tcp", "udp", "tcp+udp", "gre"]),
    "kind": st.sampled_from(["once", "anybody", "conversation", "read", "local", "mapping", "exchange", "gre"]),
    "target": endpoints,
    "peer": st.none() | addresses,
    "peers": st.none() | st.lists(addresses | prefixes, max_size=9).map(tuple),
    "public_host": st.none() | addresses,
    "ttl": st.floats(),
    "second": st.none() | ports,
    "visitor": st.none() | addresses,
    "suggested": st.none() | ports,
    "exact": st.booleans(),
    "outer": st.none() | endpoints,
    "outer_second": st.none() | ports,
    "inner_host": st.none() | addresses,
    "flow": st.text(max_size=60),
    "reason": st.text(max_size=30),
}


@st.composite
def requests(draw: st.DrawFn) -> PinholeRequest:
    """A good request of some kind, of which a few things are otherwise."""
    base = draw(
        st.sampled_from(
            [
                *(INBOUND, OUTBOUND, INBOUND6, CONVERSATION, LOCAL, LOCAL_UDP),
                *(MAPPING, ANYBODY, EXCHANGE, EXCHANGE_PAIR, GRE),
            ]
        )
    )
    names = draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=4, unique=True))
    return msgspec.structs.replace(base, **{name: draw(CHANGES[name]) for name in names})


@pytest.mark.parametrize("request_", [MAPPING, ANYBODY, EXCHANGE, EXCHANGE_PAIR, GRE])
def test_good_requests_of_each_kind_pass(request_: PinholeRequest) -> None:
    assert rule_of(request_) is None


@pytest.mark.parametrize(
    ("base", "changes", "rule"),
    [
        (MAPPING, {"target": Endpoint("192.168.56.11", 50000)}, "target"),
        (MAPPING, {"target": Endpoint("192.168.56.10", 22)}, "port"),
        (MAPPING, {"target": Endpoint("192.168.56.10", 3306)}, "port"),
        (MAPPING, {"target": Endpoint("192.168.56.10", 1900)}, "port"),
        (MAPPING, {"suggested": 80}, "wish"),
        (MAPPING, {"suggested": None, "exact": True}, "wish"),
        (MAPPING, {"ttl": 7201.0}, "ttl"),
        (MAPPING, {"peers": ("198.51.100.1/24",)}, "peers"),
        (MAPPING, {"peers": ("0.0.0.0/0",)}, "peers"),
        (MAPPING, {"peers": ("10.0.0.0/8", "10.1.0.0/16")}, "peers"),
        (MAPPING, {"peers": tuple(f"198.51.100.{last}/32" for last in range(9))}, "peers"),
        (MAPPING, {"peers": ("2001:db8::/32",)}, "peers"),
        (MAPPING, {"second": 50001}, "kind"),
        (MAPPING, {"peer": "203.0.113.5"}, "kind"),
        (MAPPING, {"visitor": "203.0.113.5"}, "visitor"),
        (INBOUND, {"suggested": 50000}, "kind"),
        (INBOUND, {"transport": "tcp+udp"}, "kind"),
        (INBOUND, {"outer": Endpoint("203.0.113.5", 5000)}, "kind"),
        (ANYBODY, {"peer": "203.0.113.5"}, "peer"),
        (ANYBODY, {"transport": "udp"}, "peer"),
        (ANYBODY, {"direction": "out", "public_host": None}, "kind"),
        (ANYBODY, {"ttl": 301.0}, "ttl"),
        (EXCHANGE, {"target": Endpoint("192.168.56.11", 0)}, "target"),
        (EXCHANGE, {"target": Endpoint("192.168.56.10", 22)}, "port"),
        (EXCHANGE, {"outer": Endpoint("192.168.56.11", 5000), "visitor": "192.168.56.11"}, "visitor"),
        (EXCHANGE, {"outer": Endpoint("203.0.113.6", 5000)}, "visitor"),
        (EXCHANGE, {"outer": Endpoint("203.0.113.5", 53)}, "port"),
        (EXCHANGE, {"outer_second": 5001}, "ports"),
        (EXCHANGE_PAIR, {"outer_second": 5000}, "port"),
        (EXCHANGE, {"inner_host": None}, "public"),
        (EXCHANGE, {"inner_host": "fd00:56::1"}, "family"),
        (EXCHANGE, {"client": "203.0.113.9", "target": Endpoint("203.0.113.9", 0)}, "client"),
        (EXCHANGE, {"peers": None}, "kind"),
        (GRE, {"target": Endpoint("192.168.56.11", 7)}, "target"),
        (GRE, {"target": Endpoint("192.168.56.10", 65536)}, "port"),
        (GRE, {"second": -1}, "port"),
        (GRE, {"peer": None}, "peer"),
        (GRE, {"peer": "192.168.56.11"}, "peers"),
        (GRE, {"peers": None}, "kind"),
        (GRE, {"transport": "udp"}, "kind"),
        (GRE, {"kind": "mapping"}, "kind"),
        (GRE, {"direction": "out"}, "kind"),
        (GRE, {"public_host": "192.168.56.1"}, "public"),
        (GRE, {"ttl": 7201.0}, "ttl"),
        (GRE, {"client": "fd00:56::10", "target": Endpoint("fd00:56::10", 7)}, "family"),
    ],
)
def test_bad_requests_of_each_kind(base: PinholeRequest, changes: dict[str, Any], rule: str) -> None:
    assert rule_of(msgspec.structs.replace(base, **changes)) == rule


@given(requests())
@example(INBOUND)
@example(OUTBOUND)
@example(MAPPING)
@example(EXCHANGE)
@example(EXCHANGE_PAIR)
@example(GRE)
def test_whatever_passes_is_harmless(request_: PinholeRequest) -> None:
    if rule_of(request_) is not None:
        return
    kind, client = request_.kind, ipaddress.ip_address(request_.client)
    assert is_inside(client)
    assert 1 <= request_.ttl <= (300 if request_.single else 7200)
    assert " " not in request_.flow + request_.reason
    if kind == "local":
        return  # who comes in reaches the worker, and nothing else
    assert request_.direction == "out" or request_.target.host == request_.client
    for transport in transports_of(request_.transport):
        for port in {request_.target.port, request_.second} - {None}:
            if kind == "exchange" and port == 0:
                continue  # not known yet: nothing passes
            assert 1024 <= (port or 0) <= 65535
            assert request_.direction == "out" or port not in SERVICE_PORTS[transport]
    match kind:
        case "once":
            other = request_.peer if request_.direction == "in" else request_.target.host
            assert not is_inside(ipaddress.ip_address(other or ""))
        case "anybody":
            assert (request_.transport, request_.direction, request_.peer) == ("tcp", "in", None)
        case "conversation" | "read":
            assert request_.transport == "udp"
            assert not any(is_inside(ipaddress.ip_address(peer)) for peer in request_.peers or ())
        case "mapping":
            assert request_.suggested is None or request_.suggested >= 1024
            networks = [ipaddress.ip_network(peer) for peer in request_.peers or ()]
            assert len(networks) <= 8
            assert not any(network.overlaps(other) for at, network in enumerate(networks) for other in networks[:at])
        case "exchange":
            assert request_.outer is not None
            assert request_.visitor == request_.outer.host
            assert not is_inside(ipaddress.ip_address(request_.outer.host))
            assert not is_inside(ipaddress.ip_address(request_.public_host or ""))
        case "gre":
            assert request_.direction == "in"
            assert not is_inside(ipaddress.ip_address(request_.peer or ""))
            assert all(0 <= number <= 65535 for number in (request_.target.port, request_.second or 0))
        case _:
            raise AssertionError(kind)


def is_inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in network for network in INSIDE)


@pytest.mark.parametrize("port", sorted(SERVICE_PORTS["tcp"]))
def test_a_server_outside_may_be_passive_at_any_port(port: int) -> None:
    """Ports of services are kept closed inside; a server outside takes its passive ports at random among all."""
    assert rule_of(msgspec.structs.replace(OUTBOUND, target=Endpoint(OUTBOUND.target.host, port))) is None


@pytest.mark.parametrize("port", sorted(SERVICE_PORTS["tcp"] - SERVICE_PORTS["udp"]))
def test_media_may_use_a_port_where_nothing_listens_by_udp(port: int) -> None:
    """Phones choose any: a description with one stream that cannot be opened is not repaired at all."""
    target = Endpoint("192.168.56.10", port)
    assert rule_of(msgspec.structs.replace(CONVERSATION, target=target, second=None)) is None
    assert rule_of(msgspec.structs.replace(INBOUND, target=target)) == "port"


@pytest.mark.parametrize("peers", [(), None, ("203.0.113.5", "203.0.113.6")])
def test_good_conversations_pass(peers: tuple[str, ...] | None) -> None:
    assert rule_of(msgspec.structs.replace(CONVERSATION, peers=peers)) is None
    assert rule_of(msgspec.structs.replace(CONVERSATION, peers=peers, public_host=None, second=None)) is None


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"transport": "tcp"}, "kind"),
        ({"direction": "out"}, "kind"),
        ({"kind": "once", "ttl": 60.0}, "kind"),
        ({"peer": "203.0.113.5"}, "peer"),
        ({"peers": ("192.168.56.11",)}, "peers"),
        ({"peers": ("203.0.113.5", "203.0.113.5")}, "peers"),
        ({"peers": tuple(f"203.0.113.{last}" for last in range(1, 10))}, "peers"),
        ({"peers": ("example.com",)}, "peers"),
        ({"peers": ("2001:db8::5",)}, "family"),
        ({"second": 50000}, "port"),
        ({"second": 1023}, "port"),
        ({"second": 1900}, "port"),
        ({"target": Endpoint("192.168.56.10", 11211)}, "port"),
        ({"second": 65536}, "port"),
        ({"target": Endpoint("192.168.56.11", 50000)}, "target"),
        ({"public_host": "192.168.56.1"}, "public"),
        ({"ttl": 7201.0}, "ttl"),
        ({"client": "203.0.113.9", "target": Endpoint("203.0.113.9", 50000)}, "client"),
    ],
)
def test_bad_conversations(changes: dict[str, Any], rule: str) -> None:
    assert rule_of(msgspec.structs.replace(CONVERSATION, **changes)) == rule


@pytest.mark.parametrize("changes", [{"peers": ("203.0.113.5",)}, {"second": 50001}])
def test_only_a_conversation_has_what_conversations_have(changes: dict[str, Any]) -> None:
    assert rule_of(msgspec.structs.replace(INBOUND, **changes)) == "kind"


INNER = msgspec.structs.replace(
    LOCAL, peer="192.168.56.10", public_host="192.168.56.2", target=Endpoint("203.0.113.9", 40000)
)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, None),
        ({"public_host": "203.0.113.2"}, None),  # a client inside that uses a published server's outside address
        ({"target": Endpoint("192.168.56.10", 50000)}, None),
        ({"peer": "192.168.56.11"}, "target"),
        ({"client": "203.0.113.9", "peer": "203.0.113.9"}, "client"),
        ({"public_host": None}, "public"),
        ({"public_host": "127.0.0.1"}, "public"),
        ({"public_host": "2001:db8:113::2"}, "family"),
        ({"target": Endpoint("2001:db8::9", 40000)}, "family"),
        ({"target": Endpoint("203.0.113.9", 0)}, "port"),
        ({"peers": ("203.0.113.9",)}, "kind"),
        ({"second": 50001}, "local"),
        ({"ttl": 301.0}, "ttl"),
        ({"visitor": "203.0.113.9"}, None),  # the client outside whom the server inside connects to
        ({"visitor": "203.0.113.8"}, "visitor"),
    ],
)
def test_ports_of_a_worker_for_somebody_inside(changes: dict[str, Any], rule: str | None) -> None:
    assert rule_of(msgspec.structs.replace(INNER, **changes)) == rule


@pytest.mark.parametrize("request_", [LOCAL, LOCAL_UDP, msgspec.structs.replace(LOCAL, peer=None)])
def test_ports_of_a_worker_itself_pass(request_: PinholeRequest) -> None:
    assert rule_of(request_) is None


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"client": "203.0.113.9"}, "client"),
        ({"target": Endpoint("192.168.56.11", 50000)}, "target"),
        ({"public_host": "192.168.56.1"}, "public"),
        ({"public_host": "127.0.0.1"}, "public"),
        ({"public_host": None}, "public"),
        ({"direction": "out"}, "local"),
        ({"second": 50001}, "local"),
        ({"visitor": INBOUND.peer}, None),  # the client outside of a server inside
        ({"visitor": "203.0.113.8"}, "visitor"),
        ({"kind": "once", "visitor": INBOUND.peer, "target": Endpoint("192.168.56.10", 50000)}, "visitor"),
        ({"transport": "udp"}, "peer"),
        ({"peer": "192.168.56.11"}, "peers"),
        ({"peers": None}, "kind"),
        ({"ttl": 301.0}, "ttl"),
    ],
)
def test_bad_ports_of_a_worker_itself(changes: dict[str, Any], rule: str) -> None:
    assert rule_of(msgspec.structs.replace(LOCAL, **changes)) == rule


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, None),
        ({"ttl": 60.0, "peers": None, "target": Endpoint("192.168.56.10", 4000), "second": 4001}, None),
        ({"ttl": 0.5}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"peers": ("192.168.56.11",)}, "peers"),
        ({"peers": ("2001:db8::5",)}, "family"),
        ({"target": Endpoint("192.168.56.11", 4000)}, "target"),
        ({"target": Endpoint("192.168.56.10", 22)}, "port"),
        ({"second": 22}, "port"),
    ],
)
def test_updates(changes: dict[str, Any], rule: str | None) -> None:
    table = LeaseTable(backend="kernel", limits=LeaseLimits(ports=(40000, 40099)))
    lease = table.open(CONVERSATION, now=0.0, unix=0.0, rng=random.Random(1), is_free=lambda port: True)
    try:
        check_update(PinholeUpdate(lease.id, **changes), lease, INSIDE)
    except PinholeRefused as refusal:
        assert refusal.rule == rule  # noqa: PT017
    else:
        assert rule is None


def test_lease_ids() -> None:
    assert valid_lease_id("0123456789abcdef")
    assert not valid_lease_id("0123456789abcdef\n")
    assert not valid_lease_id("../../etc")


@pytest.mark.parametrize(
    ("port", "rule"),
    [(0, None), (1024, None), (65535, None), (1023, "port"), (21, "port"), (-1, "port"), (65536, "port")],
)
def test_data_go_to_the_same_host_and_to_no_service(port: int, rule: str | None) -> None:
    """A connection with a client's address, which the gateway makes to the server of a redirected one."""
    client, server = Endpoint("192.168.56.10", 4000), Endpoint("203.0.113.10", 21)
    inside = [ipaddress.ip_network("192.168.56.0/24")]
    if rule is None:
        check_connection(client, server, port, inside)
        return
    with pytest.raises(PinholeRefused) as refused:
        check_connection(client, server, port, inside)
    assert refused.value.rule == rule
