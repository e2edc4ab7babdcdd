"""More chains of others that drop, each with rules of its own, one after the other on one router with a running
gateway: the doctor finds by trying which one stops what is opened, its lines are added, and all serves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_OUT4, ROUTER_OUT6, Lab
from tests.lab.servers import FtpServer
from tests.net.test_foreign_firewalls import call, findings, reload_firewall, transfers

NAT = """flush ruleset
table ip nat { chain postrouting { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }
table ip6 nat { chain postrouting { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }
"""
NEW = 'iifname "eth0" ct state new'
PASSING = "ct state established,related accept; meta l4proto { icmp, ipv6-icmp } accept"
# Chains as (hook, priority, policy, rules), by the threads that they are taken from.
CHAINS = {
    # rpthms/nft-geo-filter#5: what is new from outside ends before it is translated
    "geo filter": ("prerouting", -190, "accept", f"{PASSING}; {NEW} meta l4proto {{ tcp, udp }} drop"),
    "raw": (
        "prerouting", -300, "accept",
        'iifname "eth0" tcp flags & (syn | ack) == syn drop; iifname "eth0" udp dport 32768-65535 drop',
    ),
    "prerouting's policy": ("prerouting", -150, "drop", f'iifname {{ "lo", "eth1" }} accept; {PASSING}'),
    "behind the NAT": ("prerouting", -50, "drop", f'iifname {{ "lo", "eth1" }} accept; {PASSING}'),
    # evilsocket/opensnitch#1423, daeuniverse/dae#351: what this host may send
    "output's policy": ("output", 0, "drop", f'oifname "lo" accept; {PASSING}; tcp dport {{ 21, 53, 443 }} accept'),
    "output's ports": ("output", 0, "accept", 'oifname "eth0" ct state new tcp dport != { 53, 80, 443 } reject'),
    "postrouting": (
        "postrouting", -150, "drop", f'oifname {{ "lo", "eth1" }} accept; {PASSING}; th dport {{ 21, 5060 }} accept',
    ),
    # vopono's (jamesmcm/vopono#278), netavark's (containers/netavark#977) and miniupnpd's (miniupnp/miniupnp#422)
    "late": ("forward", 200, "drop", f"{PASSING}; udp dport 5060 accept"),
    "before ours": ("forward", -10, "drop", f'{PASSING}; iifname "eth1" oifname "eth0" accept'),
    "what is new, by interface": ("forward", 0, "accept", f"{PASSING}; {NEW} drop"),
    "resets and silence": (
        "forward", 50, "accept",
        f"{PASSING}; {NEW} meta l4proto tcp reject with tcp reset; {NEW} meta l4proto udp drop",
    ),
    "input, by interface": (
        "input", 0, "accept",
        f'iif lo accept; {PASSING}; iifname "eth0" drop; iifname "eth1" tcp dport != {{ 22, 53 }} ct state new drop',
    ),
    "input before ours": ("input", -150, "drop", f'iif lo accept; {PASSING}; iifname "eth1" accept'),
}  # fmt: skip
ALL_WELL = dict.fromkeys(("passive", "active", "passive through SOCKS", "active through SOCKS"), 0)
LONG = {"raw", "behind the NAT", "output's ports", "late", "resets and silence", "input before ours"}


@pytest.fixture(scope="module")
def nft_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(logs=tmp_path_factory.mktemp("lab")) as lab:
        reload_firewall(lab, NAT)
        yield lab


@pytest.fixture(scope="module")
def gateway(nft_lab: Lab) -> Iterator[Gateway]:
    gateway = nft_lab.start_gateway(nft_lab.write_config(process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, nft_lab.tail_of_logs()


@pytest.fixture(scope="module")
def server(nft_lab: Lab) -> Iterator[FtpServer]:
    server = nft_lab.vsftpd()
    yield server
    server.stop()


@pytest.mark.parametrize(
    "chain",
    [pytest.param(chain, id=name, marks=[pytest.mark.long] if name in LONG else []) for name, chain in CHAINS.items()],
)
def test_the_doctors_lines_let_through(
    nft_lab: Lab, gateway: Gateway, server: FtpServer, chain: tuple[str, int, str, str]
) -> None:
    lab = nft_lab
    hook, priority, policy, rules = chain
    text = f"chain theirs {{ type filter hook {hook} priority {priority}; policy {policy}; {rules}; }}"
    lab.run("router", ["nft", "-f", "-"], stdin=f"table inet field {{ {text}; }}\n")
    try:
        found = findings(gateway)
        assert {finding["check"] for finding in found} == {"openings through inet field theirs"}, found
        for finding in found:
            lab.run("router", shlex.split(finding["remedy"]))
        assert transfers(lab, server) == ALL_WELL
        call(lab, gateway, "udp")
    finally:
        lab.run("router", ["nft", "delete", "table", "inet", "field"])
        lab.run("router", ["conntrack", "-F"])


@pytest.mark.parametrize("name", ["before ours", "prerouting's policy", "behind the NAT"])
def test_the_doctors_lines_open_nothing_else(nft_lab: Lab, gateway: Gateway, name: str) -> None:
    """Clients have addresses to which the outside has a route, as in IPv6 without translation: their own ports stay
    behind the chain that drops."""
    lab = nft_lab
    hook, priority, policy, rules = CHAINS[name]
    routes = [("-4", CLIENT4, ROUTER_OUT4), ("-6", CLIENT6, ROUTER_OUT6)]
    text = f"chain theirs {{ type filter hook {hook} priority {priority}; policy {policy}; {rules}; }}"
    for version, client, router in routes:
        lab.run("outside", ["ip", version, "route", "replace", client, "via", router])
    try:
        for _, client, _ in routes:
            with lab.listen("inside", client, 45000):
                lab.connect("outside", client, 45000).close()  # there is a way
        lab.run("router", ["nft", "-f", "-"], stdin=f"table inet field {{ {text}; }}\n")
        for finding in findings(gateway):
            lab.run("router", shlex.split(finding["remedy"]))
        assert "accept comment" in lab.run("router", ["nft", "list", "table", "inet", "field"]).stdout
        for _, client, _ in routes:
            with lab.listen("inside", client, 45000), pytest.raises(TimeoutError):
                lab.connect("outside", client, 45000, timeout=1.5).close()
    finally:
        lab.run("router", ["nft", "delete", "table", "inet", "field"], check=False)
        for version, client, _ in routes:
            lab.run("outside", ["ip", version, "route", "del", client])


def test_iptables_legacy_beside_iptables(nft_lab: Lab, gateway: Gateway, server: FtpServer) -> None:
    """Tables of both iptables drop (docker-library/docker#467, moby/moby#46636): the commands are the other one's."""
    lab = nft_lab
    if lab.run("router", ["sh", "-c", "command -v iptables-legacy ip6tables-legacy"], check=False).returncode:
        pytest.skip("iptables-legacy is not installed")
    rules = [
        "-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i eth1 -o eth0 -j ACCEPT", "-P INPUT DROP", "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]  # fmt: skip
    programs = ("iptables-legacy", "ip6tables-legacy")
    for program in programs:
        for rule in rules:
            lab.run("router", [program, *rule.split()])
    lab.run("router", ["ip6tables-legacy", "-A", "INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT"])
    try:
        found = findings(gateway)
        remedies = {finding["remedy"] for finding in found}
        assert {finding["status"] for finding in found} == {"warning"}
        assert len(remedies) == 1
        (remedy,) = remedies
        assert "iptables-legacy -I FORWARD -m connmark --mark 0x20000000/0x20000000 -j ACCEPT" in remedy
        lab.run("router", ["sh", "-c", remedy])
        (well,) = findings(gateway)
        assert well["status"] == "ok", well
        assert transfers(lab, server) == ALL_WELL
    finally:
        for program in programs:
            for chain in ("INPUT", "FORWARD"):
                lab.run("router", [program, "-P", chain, "ACCEPT"])
            lab.run("router", [program, "-F"])


def test_apply_adds_the_lines_where_that_is_wanted(tmp_path: Path) -> None:
    """What is plain from the rules' form: policies at every hook, and rules about new connections of an interface."""
    names = ("what is new, by interface", "output's policy", "prerouting's policy", "before ours")
    with Lab(logs=tmp_path) as lab:
        reload_firewall(lab, NAT)
        server = lab.vsftpd()
        for number, name in enumerate(names):
            hook, priority, policy, rules = CHAINS[name]
            text = f"chain theirs {{ type filter hook {hook} priority {priority}; policy {policy}; {rules}; }}"
            lab.run("router", ["nft", "-f", "-"], stdin=f"table inet field{number} {{ {text}; }}\n")
        gateway = lab.start_gateway(lab.write_config(rules={"foreign": "add"}, process={"workers": 1}))
        assert transfers(lab, server) == ALL_WELL
        call(lab, gateway, "udp")
        assert gateway.stop() == 0
        assert "algate" not in lab.run("router", ["nft", "list", "ruleset"]).stdout
        server.stop()
