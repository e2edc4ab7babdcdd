"""More routers, each with a way of its own to translate and to route, one after the other under one running gateway:
what the NAT does to the flow decides. Each serves FTP, active and passive, and a call of SIP with sound both ways.

What is forwarded and translated by a router without a gateway has to be so with one, whoever has written the rules, and
whatever the inside addresses look like. After each case is the thread that it is taken from.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.lab import uplinks
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_OUT4, ROUTER_OUT6, SERVER4, SERVER6, Lab
from tests.lab.servers import FtpServer
from tests.lab.uplinks import FAR4, FAR6, SECOND4, SECOND6
from tests.net.test_sip import Media
from tests.net.test_sip_addresses import sdp
from tests.net.test_uplinks import TEXT, Router, Setup, _ask, _call, _Server

POOL = frozenset(f"198.51.100.{last}" for last in range(64, 128))  # addresses that the outside finds at the router
GLOBAL6, GLOBAL6_NET, GLOBAL6_ROUTER = "2001:db8:56::10", "2001:db8:56::/64", "2001:db8:56::2"
PREFIXES = ("2001:db8:113:56::/64", "2001:db8:113:57::/64")  # for NPTv6


class Case(NamedTuple):
    """What makes a router so, what ends that, and as what `server` sees the client."""

    seen: frozenset[str]
    make: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    server: str = SERVER4
    client: str = CLIENT4


Commands = tuple[tuple[str, ...], tuple[str, ...]]


def one(address: str) -> frozenset[str]:
    return frozenset({address})


def nft(table: str, text: str) -> Commands:
    return (f"nft {shlex.quote(f'table {table} {{ {text} }}')}",), (f"nft delete table {table}",)


def nat(*rules: str, priority: str = "srcnat - 1", family: str = "ip") -> Commands:
    """A table of the operator's, whose rules come before those of the lab's own firewall."""
    return nft(
        f"{family} field", f"chain post {{ type nat hook postrouting priority {priority}; {' ; '.join(rules)} ; }};"
    )


def iptables(*rules: str, program: str = "iptables") -> Commands:
    """Rules of POSTROUTING before the lab's own."""
    made = tuple(f"{program} -t nat -I POSTROUTING {rule}" for rule in rules)
    return made, tuple(command.replace("-I POSTROUTING", "-D POSTROUTING") for command in made)


def mark(*rules: str) -> Commands:
    made = tuple(f"iptables -t mangle -A PREROUTING {rule}" for rule in rules)
    return made, tuple(command.replace(" -A ", " -D ") for command in made)


def ip(*commands: str) -> Commands:
    made = tuple(f"ip {command}" for command in commands)
    return made, tuple(command.replace(" add ", " del ") for command in reversed(made))


def join(*parts: Commands) -> Commands:
    return tuple(c for made, _ in parts for c in made), tuple(c for _, ended in reversed(parts) for c in ended)


LAN = "192.168.56.0/24"
MAIN_FIRST = "rule add table main suppress_prefixlength 0 pref 90"
PORTS = "numgen inc mod 8 map { 0 : 7472, 1 : 7473, 2 : 7474, 3 : 7475, 4 : 11568, 5 : 11569, 6 : 11570, 7 : 11571 }"

TRANSLATED = {
    "ports of an upper range": Case(  # fakemanhk/openwrt-jp-ipoe#12
        one(ROUTER_OUT4), *iptables(*(f"-o eth0 -p {p} -j MASQUERADE --to-ports 20000-20100" for p in ("udp", "tcp")))
    ),
    "ports in turn, MAP-E": Case(  # openwrt/openwrt#11972
        one("198.51.100.73"),
        *nat(*(f"ip protocol {p} oifname eth0 snat ip to 198.51.100.73 : {PORTS}" for p in ("udp", "tcp"))),
    ),
    "random ports": Case(one(ROUTER_OUT4), *iptables("-o eth0 -j MASQUERADE --random-fully")),  # openwrt/openwrt#5442
    "persistent pool": Case(  # openwrt/firewall4#71
        POOL, *iptables(f"-s {LAN} -o eth0 -j SNAT --to-source 198.51.100.80-198.51.100.95 --persistent")
    ),
    "netmap": Case(one("198.51.100.74"), *iptables(f"-s {LAN} -o eth0 -j NETMAP --to 198.51.100.64/26")),
    "prefix": Case(  # FoobarOy/foomuuri#99
        one("198.51.100.74"), *nat("ip saddr 192.168.56.0/26 oifname eth0 snat ip prefix to 198.51.100.64/26")
    ),
    "map by client": Case(  # acassen/keepalived#1490
        one("198.51.100.71"),
        *nat("oifname eth0 snat to ip saddr map { 192.168.56.10 : 198.51.100.71, 192.168.56.11 : 198.51.100.72 }"),
    ),
    "hash by client": Case(
        POOL, *nat("oifname eth0 snat to jhash ip saddr mod 2 map { 0 : 198.51.100.75, 1 : 198.51.100.76 }")
    ),
    "by server": Case(one("198.51.100.81"), *iptables(f"-d {SERVER4} -o eth0 -j SNAT --to-source 198.51.100.81")),
    "one address for UDP, another for TCP": Case(
        POOL,
        *iptables(*(f"-o eth0 -p {p} -j SNAT --to-source 198.51.100.{n}" for p, n in (("udp", 78), ("tcp", 79)))),
    ),
    # Many a guide to nftables has its chains at priority 0: before those of iptables, and once before ours.
    "masquerade at priority 0": Case(one(ROUTER_OUT4), *nat("oifname eth0 masquerade", priority="0")),
    "snat at priority 0": Case(one("198.51.100.77"), *nat("oifname eth0 snat to 198.51.100.77", priority="0")),
    "NPTv6": Case(  # opnsense/core#8371
        one("2001:db8:113:56::10"),
        *nat(f"ip6 saddr fd00:56::/64 oifname eth0 snat ip6 prefix to {PREFIXES[0]}", family="ip6"),
        server=SERVER6, client=CLIENT6,
    ),
    "NETMAP of IPv6": Case(  # openwrt/packages#13048
        one("2001:db8:113:57::10"),
        *iptables(f"-s fd00:56::/64 -o eth0 -j NETMAP --to {PREFIXES[1]}", program="ip6tables"),
        server=SERVER6, client=CLIENT6,
    ),
}  # fmt: skip
UPLINKS = {
    "wg-quick": Case(  # firewalld/firewalld#1203: everything but the tunnel's own packets
        one(SECOND4), *ip(MAIN_FIRST, "rule add not fwmark 0xca6c table 2 pref 100"), server=FAR4
    ),
    "iif": Case(one(SECOND4), *ip("rule add iif eth1 table 2 pref 100"), server=FAR4),  # skycoin/skywire#3551
    "iif and from": Case(  # openwrt/packages#7474
        one(SECOND4), *ip(MAIN_FIRST, f"rule add iif eth1 from {LAN} table 2 pref 100"), server=FAR4
    ),
    "iif and mark": Case(  # openwrt/packages#24521
        one(SECOND4),
        *join(
            mark(f"-i eth1 -s {LAN} -j MARK --set-xmark 0x200/0x3f00"),
            ip(MAIN_FIRST, "rule add iif eth1 fwmark 0x200/0x3f00 table 2 pref 100"),
        ),
        server=FAR4,
    ),
    "iif, IPv6": Case(one(SECOND6), *ip("-6 rule add iif eth1 table 2 pref 100"), server=FAR6, client=CLIENT6),
    "by server": Case(one(SECOND4), *ip("rule add to 192.0.2.0/24 table 2 pref 100"), server=FAR4),
    "one client": Case(one(SECOND4), *ip(f"rule add from {CLIENT4} table 2 pref 100"), server=FAR4),
    "by protocol": Case(  # vyos/vyos-1x#3938
        one(SECOND4),
        *ip(MAIN_FIRST, *(f"rule add ipproto {p} from {LAN} table 2 pref 100" for p in ("tcp", "udp"))),
        server=FAR4,
    ),
    "a route": Case(one(SECOND4), *ip(f"route add {FAR4} via 198.51.100.10"), server=FAR4),
    "two next hops": Case(
        frozenset({ROUTER_OUT4, SECOND4}),
        ("ip route replace default nexthop via 203.0.113.10 nexthop via 198.51.100.10",),
        ("ip route replace default via 203.0.113.10",),
        server=FAR4,
    ),
    "mark by nft, pbr": Case(  # openwrt/firewall4#93
        one(SECOND4),
        *join(
            nft(
                "inet pbr",
                "chain pre { type filter hook prerouting priority mangle; iifname eth1 ip saddr 192.168.56.0/24"
                " meta mark set meta mark and 0xff00ffff or 0x20000 ; };",
            ),
            ip(MAIN_FIRST, "rule add fwmark 0x20000/0xff0000 table 2 pref 100"),
        ),
        server=FAR4,
    ),
    "mark of seven bits": Case(
        one(SECOND4),
        *join(
            mark(f"-i eth1 -s {CLIENT4} -j MARK --set-xmark 0x65/0x7f"),
            ip(MAIN_FIRST, "rule add fwmark 0x65/0x7f table 2 pref 100"),
        ),
        server=FAR4,
    ),
    "one translates, the other does not": Case(  # openwrt/packages#24521
        one(GLOBAL6),
        *join(
            iptables(f"-s {GLOBAL6_NET} -o eth2 -j RETURN", program="ip6tables"),
            ip(f"-6 rule add from {GLOBAL6_NET} table 2 pref 100", f"-6 route add {GLOBAL6_NET} dev eth1 table 2"),
        ),
        server=FAR6, client=GLOBAL6,
    ),
}  # fmt: skip
PUBLIC_LOOKING = {
    "89.16": Case(one(ROUTER_OUT4), client="89.16.0.10"),  # lancachenet/lancache-dns#148
    "30": Case(one(ROUTER_OUT4), client="30.5.6.10"),  # jakobwesthoff/playgrounds#1
    "33.33.33": Case(one(ROUTER_OUT4), client="33.33.33.10"),  # eaton/vagrant-chef-dlamp#5
    "1.1.1": Case(one(ROUTER_OUT4), client="1.1.1.10"),
    "198.18": Case(one(ROUTER_OUT4), client="198.18.7.10"),  # gitsang/lxc-iptag#14
    "class E": Case(one(ROUTER_OUT4), client="240.1.1.10"),
    "by the second uplink": Case(
        one(SECOND4),
        *ip("rule add from 30.5.6.0/24 table 2 pref 100", "route add 30.5.6.0/24 dev eth1 table 2"),
        server=FAR4, client="30.5.6.10",
    ),
    "global IPv6": Case(one(ROUTER_OUT6), server=SERVER6, client=GLOBAL6),  # opnsense/core#10526
}  # fmt: skip
CASES = [*TRANSLATED.items(), *UPLINKS.items(), *PUBLIC_LOOKING.items()]
OTHERS = sorted({case.client for case in PUBLIC_LOOKING.values()} - {GLOBAL6})  # clients with a /24 of their own


def router_of(client: str) -> str:
    return f"{client.rpartition('.')[0]}.1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(logs=tmp_path_factory.mktemp("lab")) as lab:
        uplinks.add(lab)
        for client in OTHERS:
            lab.run("router", ["ip", "address", "add", f"{router_of(client)}/24", "dev", "eth1"])
            lab.run("inside", ["ip", "address", "add", f"{client}/24", "dev", "eth0"])
        lab.run("router", ["ip", "address", "add", f"{GLOBAL6_ROUTER}/64", "dev", "eth1", "nodad"])
        lab.run("inside", ["ip", "address", "add", f"{GLOBAL6}/64", "dev", "eth0", "nodad"])
        routes = [("198.51.100.64/26", ROUTER_OUT4), (GLOBAL6_NET, SECOND6)]
        for network, via in (*routes, *((prefix, ROUTER_OUT6) for prefix in PREFIXES)):
            lab.run("outside", ["ip", "route", "add", network, "via", via])
        for program, device, networks in (
            ("iptables", "eth0", ["198.51.100.64/26"]), ("ip6tables", "p3", [GLOBAL6_NET]),
            ("ip6tables", "eth0", PREFIXES),
        ):  # fmt: skip
            for network in networks:
                lab.run("outside", [program, "-I", "INPUT", "-i", device, "-s", network, "-j", "ACCEPT"])
        uplinks.rebase(lab)
        yield lab


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    inside = [LAN, "fd00:56::/64", GLOBAL6_NET, *(f"{client.rpartition('.')[0]}.0/24" for client in OTHERS)]
    before = rules(lab)
    gateway = lab.start_gateway(lab.write_config(network={"inside": inside}, process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert rules(lab) == before
    assert lab.leftovers() == []


def rules(lab: Lab) -> str:
    return "".join(lab.run("router", ["ip", family, "rule"]).stdout for family in ("-4", "-6"))


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[FtpServer]:
    server = lab.vsftpd(connect_from_port_20="NO")
    (server.root / "pub/file").write_text(TEXT)
    yield server
    server.stop()


@contextlib.contextmanager
def made_so(lab: Lab, case: Case) -> Iterator[None]:
    """The router with the case's rules, and the client with its address."""

    def use(client: str) -> None:
        via = {CLIENT4: "192.168.56.2", CLIENT6: "fd00:56::2", GLOBAL6: GLOBAL6_ROUTER}.get(client, router_of(client))
        lab.run("inside", ["ip", "route", "replace", "default", "via", via, "src", client])

    try:
        for command in case.make:
            lab.run("router", shlex.split(command))
        use(case.client)
        lab.run("router", ["conntrack", "-F"])
        yield
    finally:
        for command in case.end:
            lab.run("router", shlex.split(command), check=False)
        use(CLIENT6 if ":" in case.client else CLIENT4)
        lab.run("router", ["conntrack", "-F"])


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name for name, _ in CASES])
def test_it_serves(lab: Lab, gateway: Gateway, server: FtpServer, number: int) -> None:
    case = CASES[number][1]
    version = 6 if ":" in case.server else 4
    host = f"[{case.server}]" if version == 6 else case.server
    setup = Setup(lambda _: None, case.server, case.seen, client=case.client)
    curl = ["curl", "-sS", "--max-time", "10", "--interface", case.client]
    with made_so(lab, case):
        for mode in ([], ["--ftp-port", case.client]):
            url = server.url("pub/file", version, host)
            assert lab.run("inside", [*curl, *mode, url]).stdout == TEXT, mode
        # A phone of its own: a registration keeps its public address as long as it lasts.
        _call(Router(lab, gateway, setup), case.client, case.server, case.seen, (5100 + number, 4000 + 2 * number))


CHANGES = {
    "fail-over": (  # openwrt/packages#13048: the first uplink keeps its address, and nobody empties conntrack
        ("ip route replace default via 198.51.100.10",), ("ip route replace default via 203.0.113.10",),
    ),
    "a tunnel comes up": ip(MAIN_FIRST, "rule add not fwmark 0xca6c table 2 pref 100"),
}  # fmt: skip


@pytest.mark.parametrize("calls", [False, True], ids=["", "calls"])
@pytest.mark.parametrize(("make", "end"), CHANGES.values(), ids=CHANGES)
def test_a_registered_phone_moves_with_its_packets(
    lab: Lab, gateway: Gateway, make: tuple[str, ...], end: tuple[str, ...], calls: bool
) -> None:
    """opnsense/core#4652: a phone that says something again and again is not to stay at the uplink before.
    Nor one that calls at once: its media is asked for along the way that its registration is at no more."""
    port = 5200 + list(CHANGES.values()).index((make, end)) + 10 * calls
    phone, far = Media(lab, "inside", CLIENT4, port), _Server(lab, FAR4)
    lab.run("router", ["conntrack", "-F"])
    try:
        assert _ask(phone, CLIENT4, far, "REGISTER", 1, ("Expires: 600",))[1] == ROUTER_OUT4
        far.patience = 0.7
        for command in make:
            lab.run("router", shlex.split(command))
        if calls:
            with contextlib.suppress(TimeoutError, AssertionError):
                _ask(phone, CLIENT4, far, "INVITE", 1, body=sdp(CLIENT4, port + 1000))
        numbers = iter(range(2, 100))

        def moved() -> bool:
            with contextlib.suppress(TimeoutError):
                text, source = _ask(phone, CLIENT4, far, "REGISTER", next(numbers), ("Expires: 600",))
                return source == SECOND4 and f"Contact: <sip:ann@{SECOND4}:" in text
            return False

        lab.wait_for(moved, 10, "the phone to be seen at the second uplink")
        _ask(phone, CLIENT4, far, "REGISTER", next(numbers), ("Expires: 0",))
    finally:
        phone.close()
        far.end.close()
        for command in end:
            lab.run("router", shlex.split(command))
        lab.run("router", ["conntrack", "-F"])
