"""The router's own addresses, in every spelling and whatever they are: no way leads to a service of the router."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import ROUTER_OUT4, ROUTER_OUT6, SERVER4, Lab
from tests.net.socks_wire import ask5
from tests.net.udp_client import Client, associate, udp
from tests.unit.spellings import spellings, translated

SERVICE = 7777
SECONDARY, PEERLESS, ROUTED, SECONDARY6 = "203.0.113.3", "198.51.100.9", "198.18.5.5", "2001:db8:113::3"
TRANSLATED = [ipaddress.IPv6Network(f"2001:db8:6400::/{length}") for length in (40, 48, 56, 64, 96)]
ADDED = [
    f"address add {SECONDARY}/24 dev eth0",
    f"address add {SECONDARY6}/64 dev eth0 nodad",
    f"address add {PEERLESS}/32 dev eth0",
    "route add local 198.18.5.0/24 dev lo",
]
OWN4 = [ROUTER_OUT4, SECONDARY, PEERLESS, ROUTED, "203.0.113.255"]
OWN6 = [ROUTER_OUT6, SECONDARY6, "2001:db8:113::"]


class Service(NamedTuple):
    """What the router serves itself, on all its addresses."""

    tcp: socket.socket
    udp: socket.socket


@pytest.fixture(scope="module")
def addresses(lab: Lab) -> Iterator[None]:
    for command in ADDED:
        lab.run("router", ["ip", *command.split()])
    yield
    for command in reversed(ADDED):
        lab.run("router", ["ip", *command.replace(" add ", " delete ").replace(" nodad", "").split()])


@pytest.fixture(scope="module")
def gateway(lab: Lab, addresses: None) -> Iterator[Gateway]:
    network = {"nat64": [str(TRANSLATED[-1]), "2001:db8:6464::/64"]}
    gateway = lab.start_gateway(lab.write_config(network=network, process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.fixture(scope="module")
def service(lab: Lab, addresses: None) -> Iterator[Service]:
    with lab.listen("router", "::", SERVICE) as tcp, udp(lab, "router", "::", SERVICE) as datagrams:
        tcp.settimeout(0)
        datagrams.settimeout(0)
        yield Service(tcp, datagrams)


def links(lab: Lab) -> list[str]:
    """The router's link-local addresses."""
    text = lab.run("router", ["ip", "-6", "-o", "address", "show", "scope", "link"]).stdout
    return [line.split()[3].partition("/")[0] for line in text.splitlines()]


def as_the_c_library_reads(address: ipaddress.IPv4Address) -> list[str]:
    """Spellings that inet_aton(3) reads as this address, in one way only."""
    a, b, c, d = address.packed
    number = int(address)
    found = [str(number), hex(number), f"0x{a:02X}.{b}.{c:#x}.{d}", f"{a}.{b}.{c << 8 | d}", f"{a}.{number & 0xFFFFFF}"]
    assert {socket.inet_aton(text) for text in found} == {address.packed}
    return [*found, f"[{address}]"]


def all_spellings(lab: Lab) -> list[str]:
    """Every way in which the router's own addresses can be written in a request."""
    found: list[str] = [*OWN4, *OWN6, *(f"[{text}]" for text in OWN6)]
    for text in OWN4:
        address = ipaddress.IPv4Address(text)
        found += (str(spelling) for _, spelling in spellings(address))
        found.append(str(translated(TRANSLATED[-1], address)))
        found.append(str(translated(ipaddress.IPv6Network("2001:db8:6464::/64"), address)))
        found += as_the_c_library_reads(address)
    for text in [*OWN6, *links(lab)]:
        found += (f"{text}%{zone}" for zone in ("eth0", "eth1", "1", "2", "lo", "nothing"))
    return [*found, *links(lab)]


def nobody_came(service: Service) -> None:
    for sock in service:
        with pytest.raises(BlockingIOError):
            raise AssertionError(f"{sock.accept() if sock is service.tcp else sock.recvfrom(2048)}")


def test_connect(lab: Lab, gateway: Gateway, service: Service) -> None:
    for host in all_spellings(lab):
        with lab.connect("inside", "192.168.56.2", 1080) as sock:
            code, _, _ = ask5(sock, host, SERVICE)
        assert code == (4 if "%" in host else 2), host  # a zone makes no host; anything else is not allowed
    nobody_came(service)


def test_bind(lab: Lab, gateway: Gateway) -> None:
    """Nobody at an address of the router is a peer either."""
    for host in (*OWN4[:4], *OWN6[:2], "64:ff9b:1::203.0.113.3"):
        with lab.connect("inside", "192.168.56.2", 1080) as sock:
            assert ask5(sock, host, SERVICE, 2)[0] == 2, host


@pytest.fixture
def client(lab: Lab, gateway: Gateway) -> Iterator[Client]:
    client = associate(lab)
    yield client
    client.close()
    lab.wait_for(lambda: gateway.admin("flows") == [], 10, "the association to end")


def test_udp(lab: Lab, client: Client, service: Service) -> None:
    """Before and after the association has a socket towards each family: what is decided then is not the same code."""
    with udp(lab, "outside", SERVER4, 5300) as outside, udp(lab, "outside", "2001:db8:113::10", 5300) as outside6:
        for round_number in range(2):
            for host in all_spellings(lab):
                client.send(host, SERVICE, b"to the router")
            for end in (outside, outside6):
                # Whatever waits for a decision is decided by when these have passed.
                host, port = end.getsockname()[:2]
                client.send(host, port, b"%d" % round_number)
                assert end.recvfrom(64)[0] == b"%d" % round_number
    nobody_came(service)


def test_what_comes_later(lab: Lab, gateway: Gateway, service: Service) -> None:
    """What is remembered of an address ends when the address changes."""
    later = "203.0.113.77"

    def code() -> int:
        with lab.connect("inside", "192.168.56.2", 1080) as sock:
            return ask5(sock, later, SERVICE)[0]

    assert code() == 4  # there is no such host
    lab.run("router", ["ip", "address", "add", f"{later}/24", "dev", "eth0"])
    try:
        assert code() == 2
    finally:
        lab.run("router", ["ip", "address", "delete", f"{later}/24", "dev", "eth0"])
    assert code() == 4
    nobody_came(service)


def test_an_address_that_nothing_goes_over_may_go(lab: Lab, gateway: Gateway) -> None:
    """A connection from a secondary address does not end with another address."""
    with lab.listen("outside", SERVER4, 7001) as listener:
        lab.run("router", ["ip", "route", "add", f"{SERVER4}/32", "dev", "eth0", "src", SECONDARY])
        lab.run("router", ["ip", "address", "add", "203.0.113.99/24", "dev", "eth0"])
        try:
            with lab.connect("inside", "192.168.56.2", 1080) as sock:
                assert ask5(sock, SERVER4, 7001)[:2] == (0, SECONDARY)
                server, _ = listener.accept()
                lab.run("router", ["ip", "address", "delete", "203.0.113.99/24", "dev", "eth0"])
                lab.run("router", ["ip", "address", "add", "203.0.113.98/24", "dev", "eth0"])
                lab.run("router", ["ip", "address", "delete", "203.0.113.98/24", "dev", "eth0"])
                sock.settimeout(1.5)  # the gateway looks half a second after an address has gone
                with pytest.raises(TimeoutError):
                    sock.recv(1)
                server.sendall(b"still there")
                assert sock.recv(64) == b"still there"
                server.close()
        finally:
            lab.run("router", ["ip", "route", "delete", f"{SERVER4}/32"])
    assert not [line for line in gateway.log_lines() if "flow.departed" in line]


def test_a_secondary_address_is_named(strict_lab: Lab) -> None:
    """`network.outside`: pinholes are where it says, and connections come from there."""
    lab = strict_lab
    lab.run("router", ["ip", "address", "add", f"{SECONDARY}/24", "dev", "eth0"])
    lab.run("router", ["iptables", "-t", "nat", "-I", "POSTROUTING", "-o", "eth0", "-j", "SNAT", "--to", SECONDARY])
    server = lab.vsftpd()
    gateway = lab.start_gateway(lab.write_config(network={"outside": SECONDARY}))
    try:
        (server.root / "pub/file").write_text("by the named address")
        for active in (True, False):
            copy = lab.tmp / f"copy{active}"
            lab.run(
                "inside",
                ["curl", "-sS", *(("--ftp-port", "-") if active else ()), "-o", copy, server.url("pub/file", 4)],
            )
            assert copy.read_text() == "by the named address"
        opened = [line.partition("public=")[2] for line in gateway.log_lines() if "direction=in public=" in line]
        assert {text.partition(":")[0] for text in opened} == {SECONDARY}
    finally:
        gateway.stop()
        server.stop()
        lab.run("router", ["iptables", "-t", "nat", "-D", "POSTROUTING", "1"])
        lab.run("router", ["ip", "address", "delete", f"{SECONDARY}/24", "dev", "eth0"])


# More ways in which an address is the router's own, each as commands of ip(8), and an address of it.
WAYS = {
    "anycast on lo": (["address add 198.18.0.53/32 dev lo"], "198.18.0.53"),  # as of DNS resolvers and kube-proxy
    "VRRP": (["address add 203.0.113.50/32 dev eth0 noprefixroute"], "203.0.113.50"),  # netbirdio/netbird#5851
    "point to point": (["address add 10.99.0.1 peer 10.99.0.2 dev eth0"], "10.99.0.1"),
    "of host scope": (["address add 203.0.113.52/32 dev eth0 scope host"], "203.0.113.52"),
    "deprecated": (["address add 203.0.113.53/24 dev eth0 valid_lft 600 preferred_lft 0"], "203.0.113.53"),
    "deprecated, IPv6": (
        ["address add 2001:db8:113::53/64 dev eth0 nodad valid_lft 600 preferred_lft 0"], "2001:db8:113::53",
    ),
    "a whole network of IPv6": (["-6 route add local 2001:db8:aaaa::/64 dev lo"], "2001:db8:aaaa::77"),
    "in another table": (["route add local 198.18.7.0/24 dev lo table 77", "rule add pref 50 table 77"], "198.18.7.7"),
    "in a table of the workers' user": (
        ["route add local 198.18.8.0/24 dev lo table 78", "rule add pref 51 uidrange 65534-65534 table 78"],
        "198.18.8.8",
    ),
    "by destination": (
        ["route add local 198.18.9.0/24 dev lo table 79", "rule add pref 52 to 198.18.9.0/24 table 79"], "198.18.9.9",
    ),
    "on an interface that is down": (
        ["link add down0 type veth peer name down1", "address add 198.18.13.1/24 dev down0"], "198.18.13.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("commands", "host"), WAYS.values(), ids=WAYS)
def test_whatever_makes_it_so(
    lab: Lab, gateway: Gateway, service: Service, client: Client, commands: list[str], host: str
) -> None:
    for command in commands:
        lab.run("router", ["ip", *command.split()])
    try:
        with lab.connect("inside", "192.168.56.2", 1080) as sock:
            assert ask5(sock, host, SERVICE)[0] == 2
        with udp(lab, "outside", SERVER4, 5300) as outside:
            client.send(host, SERVICE, b"to the router")
            client.send(SERVER4, 5300, b"outside")
            assert outside.recvfrom(64)[0] == b"outside"
        nobody_came(service)
    finally:
        for command in reversed(commands):
            undo = re.sub(r" type .*| nodad| valid_lft .*", "", command.replace(" add ", " del ", 1))
            lab.run("router", ["ip", *undo.split()])


def test_groups_and_broadcasts_are_nobodys(lab: Lab, gateway: Gateway, client: Client) -> None:
    """What a service of the router hears by a group (mDNS, SSDP) is not for clients of SOCKS to send."""
    with udp(lab, "router", "0.0.0.0", 5353) as service, udp(lab, "outside", SERVER4, 5300) as outside:
        group = socket.inet_aton("224.0.0.251") + socket.inet_aton(ROUTER_OUT4)
        service.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        service.settimeout(0)
        for host in ("224.0.0.251", "239.255.255.250", "255.255.255.255", "203.0.113.255", "0.0.0.0", "127.1.2.3"):
            client.send(host, 5353, b"to a service")
        client.send(SERVER4, 5300, b"outside")
        assert outside.recvfrom(64)[0] == b"outside"
        with pytest.raises(BlockingIOError):
            raise AssertionError(service.recvfrom(64))


def test_a_named_address_that_comes_and_goes(strict_lab: Lab) -> None:
    """`network.outside` is a virtual address (VRRP, keepalived) that this router gets later, loses, and gets again."""
    lab, virtual = strict_lab, "203.0.113.60"
    lab.run("router", ["iptables", "-t", "nat", "-I", "POSTROUTING", "-o", "eth0", "-j", "SNAT", "--to", virtual])
    server = lab.vsftpd()
    (server.root / "pub/file").write_text("by the virtual address")
    gateway = lab.start_gateway(lab.write_config(network={"outside": virtual}, process={"workers": 1}))
    try:
        for _ in range(2):
            lab.run("router", ["ip", "address", "add", f"{virtual}/32", "dev", "eth0"])
            for mode in ([], ["--ftp-port", "-"]):
                done = lab.run("inside", ["curl", "-sS", "--max-time", "10", *mode, server.url("pub/file", 4)])
                assert done.stdout == "by the virtual address"
            lab.run("router", ["ip", "address", "delete", f"{virtual}/32", "dev", "eth0"])
        opened = [line.partition("public=")[2] for line in gateway.log_lines() if "direction=in public=" in line]
        assert {text.partition(":")[0] for text in opened} == {virtual}
    finally:
        gateway.stop()
        server.stop()
        lab.run("router", ["iptables", "-t", "nat", "-D", "POSTROUTING", "1"])
