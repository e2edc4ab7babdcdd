"""A router whose firewall is nftables.service, with chains that drop: what is missing is found by trying, said, and
added if that is wanted. Real packets, real clients."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, SERVER4, Lab
from tests.lab.servers import FtpServer
from tests.net.test_sip import Media, pinholes, split
from tests.net.test_sip_seen import OFFER, Wire

# Debian's /etc/nftables.conf as a router has it: everything is dropped that is not named.
NFTABLES_CONF = """flush ruleset
table inet filter {
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto { icmp, ipv6-icmp } accept
		iifname "eth1" tcp dport { 22, 1080 } accept
	}
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "eth1" oifname "eth0" accept
	}
}
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth0" masquerade
	}
}
table ip6 nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth0" masquerade
	}
}
"""


@pytest.fixture
def nft_lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(logs=tmp_path) as lab:
        reload_firewall(lab)
        yield lab


@pytest.fixture
def server(nft_lab: Lab) -> Iterator[FtpServer]:
    server = nft_lab.vsftpd()
    yield server
    server.stop()


def reload_firewall(lab: Lab, text: str = NFTABLES_CONF) -> None:
    """As `systemctl reload nftables` does."""
    lab.run("router", ["nft", "-f", "-"], stdin=text)


def transfers(lab: Lab, server: FtpServer, *names: str) -> dict[str, int]:
    """curl's exit code of each way to transfer, or of those that are named: what is dropped takes five seconds."""
    socks = ["--socks5-hostname", f"{ROUTER_IN4}:1080"]
    active = ["--disable-eprt", "--ftp-port", "-"]
    ways: dict[str, list[str]] = {
        "passive": [], "active": active, "passive through SOCKS": socks, "active through SOCKS": [*socks, *active],
    }  # fmt: skip
    url = server.url("pub/")
    return {
        name: lab.run("inside", ["curl", "-sS", "--max-time", "5", *way, url], check=False).returncode
        for name, way in ways.items()
        if not names or name in names
    }


def findings(gateway: Gateway) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(gateway.algate("doctor", "--json", check=False).stdout)
    return [finding for finding in found if finding["check"].startswith("openings")]


def test_doctor_finds_the_lines_by_trying_and_with_them_all_works(nft_lab: Lab, server: FtpServer) -> None:
    lab = nft_lab
    gateway = lab.start_gateway(lab.write_config())
    warning = gateway.wait_for_log("event=rules.foreign.*filter forward")
    assert "ct mark and 0x20000000 == 0x20000000 accept" in warning
    assert transfers(lab, server, "active")["active"] != 0
    found = findings(gateway)
    stopped = {finding["check"] for finding in found}
    assert stopped == {"openings through inet filter input", "openings through inet filter forward"}
    assert all(finding["status"] == "warning" and "policy drop" in finding["detail"] for finding in found)
    lines = [finding["remedy"] for finding in found]
    assert 'nft insert rule inet filter input iifname "eth1" tcp dport 10800 ct status dnat accept comment algate' in [
        line.replace(gateway_instance(gateway), "algate") for line in lines
    ]
    assert not any("tcp dport 1080 " in line for line in lines), "that is let in already"
    for line in lines:
        lab.run("router", shlex.split(line))
    assert transfers(lab, server) == dict.fromkeys(transfers(lab, server), 0)
    for transport in ("udp", "tcp"):
        call(lab, gateway, transport)
    (all_well,) = findings(gateway)
    assert all_well["status"] == "ok", all_well
    assert gateway.stop() == 0
    reload_firewall(lab, "flush ruleset")
    lab._baseline = []


def call(lab: Lab, gateway: Gateway, transport: str) -> None:
    """A phone inside calls, media go both ways, and nothing is open afterwards."""
    wire = Wire(lab, transport)
    phone, peer = Media(lab, "inside", CLIENT4, 4000), Media(lab, "outside", SERVER4, 9100)
    try:
        wire.ask("INVITE", 1, OFFER)
        (media,) = lab.wait_for(lambda: pinholes(gateway, "sip.rtp"), 10, "the media's pinhole")
        peer.send(split(media["public"]), b"from outside")
        assert phone.hears(5) == b"from outside"
        phone.send((SERVER4, 9100), b"from inside")
        assert peer.hears(5) == b"from inside"
        wire.ask("BYE", 2)
        lab.wait_for(lambda: not pinholes(gateway, "sip.rtp"), 10, "the end of the call")
    finally:
        wire.close()
        phone.close()
        peer.close()


def gateway_instance(gateway: Gateway) -> str:
    table: str = next(row["table"] for row in gateway.admin("status") if row["process"] == "broker")
    return table


def test_apply_prints_what_is_missing_and_adds_it_where_that_is_wanted(nft_lab: Lab, server: FtpServer) -> None:
    lab = nft_lab
    asks = lab.start_gateway(lab.write_config(), rules=False)
    said = asks.algate("rules", "apply").stderr
    assert "inet filter forward seems to drop what the gateway admits (policy drop). It needs:" in said
    assert "nft insert rule inet filter forward ct mark and 0x20000000 == 0x20000000 accept" in said
    asks.algate("rules", "remove")
    assert asks.stop() == 0

    gateway = lab.start_gateway(lab.write_config(rules={"foreign": "add"}))
    assert transfers(lab, server) == dict.fromkeys(transfers(lab, server), 0)
    gateway.algate("rules", "apply")  # again, and there are no more lines than before
    instance = gateway_instance(gateway)
    before = lab.run("router", ["nft", "list", "table", "inet", "filter"]).stdout
    lines = before.count(f'comment "{instance}"')
    assert lines >= 7, before
    lab.wait_for(lambda: "applied" in gateway.algate("status").stdout, 5, "them to be seen")
    seen = len(gateway.log_lines())
    reload_firewall(lab)  # takes all of it away, and all of it comes back
    gateway.wait_for_log("event=rules.restored", 5, seen)
    assert lab.run("router", ["nft", "list", "table", "inet", "filter"]).stdout.count(f'comment "{instance}"') == lines
    assert transfers(lab, server) == dict.fromkeys(transfers(lab, server), 0)
    assert gateway.stop() == 0
    left = lab.run("router", ["nft", "list", "ruleset"]).stdout
    assert instance not in left
    assert "10800" not in left
    # iptables-nft puts its chains in upper case into the firewall's own table `ip nat`, and takes them away again.
    assert "POSTROUTING" not in left, left
    assert "chain postrouting" in left
    reload_firewall(lab, "flush ruleset")
    lab._baseline = []


def test_a_rule_that_rejects_is_named_with_its_words(nft_lab: Lab) -> None:
    lab = nft_lab
    lab.run("router", ["nft", "flush", "ruleset"])
    text = """table inet filter {
	chain forward {
		type filter hook forward priority 10; policy accept;
		ct state established,related accept
		iifname "eth1" accept
		jump rest
	}
	chain rest {
		counter reject with icmpx type admin-prohibited
	}
}
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth0" masquerade
	}
}
"""
    reload_firewall(lab, text)
    gateway = lab.start_gateway(lab.write_config())
    (found,) = findings(gateway)
    assert found["check"] == "openings through inet filter forward"
    assert "inet filter rest: counter packets" in found["detail"]
    assert "reject with icmpx admin-prohibited stops IPv4: a pinhole to a client" in found["detail"]
    assert gateway.stop() == 0
    reload_firewall(lab, "flush ruleset")
    lab._baseline = []


def test_rules_as_nft_text_serve_a_host_without_iptables_rules(nft_lab: Lab, server: FtpServer) -> None:
    lab = nft_lab
    # The lab's kernel has no `queue` for nft, which what is read over UDP needs.
    config = lab.write_config(alg={"sip": {"mode": "off"}, "tftp": {"mode": "off"}})
    text = Gateway(lab, config).algate("rules", "show", "--nft").stdout
    reload_firewall(lab, NFTABLES_CONF + text)
    lines = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    hooks = text.split("# First in a chain at ")[1:]
    assert [part.split()[0] for part in hooks] == ["input", "forward"]
    for part in hooks:
        for line in [line.removeprefix("#   ") for line in part.splitlines() if line.startswith("#   ")]:
            lab.run("router", ["nft", "insert", "rule", "inet", "filter", part.split()[0], *shlex.split(line)])
    assert lines
    gateway = lab.start_gateway(config, rules=False)
    assert transfers(lab, server) == dict.fromkeys(transfers(lab, server), 0)
    opened = [line for line in gateway.log_lines() if "event=pinhole.open" in line]
    assert any("reason=ftp.port" in line and "backend=kernel" in line for line in opened)
    assert SERVER4 in opened[0]
    assert gateway.stop() == 0
    reload_firewall(lab, "flush ruleset")
    lab._baseline = []
