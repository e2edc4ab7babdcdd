"""algate beside firewalld, ufw, Docker, fail2ban, iptables-persistent, a second NAT (docs/how-to/beside-firewalls.md):
passive and active FTP, straight and through SOCKS, before and after the other one's reload or restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import firewalls
from tests.lab.gateway import Gateway
from tests.lab.lab import Lab
from tests.lab.servers import FtpServer
from tests.net.test_foreign_firewalls import findings, transfers

ALL_WELL = dict.fromkeys(("passive", "active", "passive through SOCKS", "active through SOCKS"), 0)


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(logs=tmp_path, input_drop=True) as lab:
        yield lab


@pytest.fixture
def server(own_lab: Lab) -> Iterator[FtpServer]:
    server = own_lab.vsftpd()
    yield server
    server.stop()


def bare(lab: Lab) -> None:
    """A router without any firewall."""
    lab.run("router", ["nft", "flush", "ruleset"])


def all_well(lab: Lab, server: FtpServer, deadline: float = 20) -> None:
    end = time.monotonic() + deadline
    while (now := transfers(lab, server)) != ALL_WELL:
        assert time.monotonic() < end, now


def is_logged(gateway: Gateway, event: str) -> bool:
    return any(f"event={event}" in line for line in gateway.log_lines())


@pytest.mark.slow
def test_firewalld(own_lab: Lab, server: FtpServer) -> None:
    lab = own_lab
    bare(lab)
    firewalld = firewalls.Firewalld(lab)
    # As docs/how-to/beside-firewalls.md has it.
    firewalld.cmd("--permanent", "--zone=internal", "--add-interface=eth1")
    firewalld.cmd("--permanent", "--zone=external", "--add-interface=eth0")
    firewalld.cmd("--permanent", "--new-policy=out")
    firewalld.cmd("--permanent", "--policy=out", "--add-ingress-zone=internal")
    firewalld.cmd("--permanent", "--policy=out", "--add-egress-zone=external")
    firewalld.cmd("--permanent", "--policy=out", "--set-target=ACCEPT")
    firewalld.cmd("--reload")
    asking = lab.start_gateway(lab.write_config())
    assert transfers(lab, server, "passive")["passive"] == 0, "with our own chains it is not worse than without us"
    stopped = findings(asking)
    assert {finding["check"] for finding in stopped} == {"openings through inet firewalld filter_INPUT"}, stopped
    assert any("tcp dport 1080" in finding["remedy"] for finding in stopped)
    assert asking.stop() == 0

    gateway = lab.start_gateway(lab.write_config(rules={"foreign": "add"}))
    all_well(lab, server)
    seen = len(gateway.log_lines())
    firewalld.cmd("--reload")
    gateway.wait_for_log("event=rules.restored", 10, seen)
    all_well(lab, server)
    (found,) = findings(gateway)
    assert found["status"] == "ok"
    assert gateway.stop() == 0
    assert "algate" not in lab.run("router", ["nft", "list", "ruleset"]).stdout
    firewalld.close()
    bare(lab)
    lab._baseline = []


def test_ufw(own_lab: Lab, server: FtpServer) -> None:
    lab = own_lab
    bare(lab)
    ufw = firewalls.Ufw(lab)
    ufw.cmd("--force", "enable")
    ufw.cmd("route", "allow", "in", "on", "eth1", "out", "on", "eth0")
    lab.run("router", ["iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"])
    gateway = lab.start_gateway()
    all_well(lab, server)
    (found,) = findings(gateway)
    assert found["status"] == "ok", found
    ufw.cmd("reload")
    all_well(lab, server)
    ufw.cmd("disable")  # flushes all chains, also those of others
    ufw.cmd("--force", "enable")
    masquerade = "POSTROUTING -o eth0 -j MASQUERADE"
    lab.run("router", ["sh", "-c", f"iptables -t nat -C {masquerade} || iptables -t nat -A {masquerade}"])
    all_well(lab, server)
    assert gateway.stop() == 0
    ufw.cmd("disable")
    bare(lab)
    lab._baseline = []


def test_docker(own_lab: Lab, server: FtpServer) -> None:
    lab = own_lab
    docker = firewalls.Dockerd(lab)
    assert "-P FORWARD DROP" in lab.run("router", ["iptables", "-S"]).stdout
    gateway = lab.start_gateway()
    all_well(lab, server)
    docker.stop()
    docker.start()  # its rules are before ours now
    first = lab.run("router", ["iptables", "-S", "FORWARD"]).stdout.splitlines()[1]
    assert "DOCKER" in first
    all_well(lab, server)
    (found,) = findings(gateway)
    assert found["status"] == "ok", found
    assert gateway.stop() == 0
    docker.close()
    lab._baseline = []


def test_fail2ban_bans_whom_it_wants_and_nobody_is_in_the_others_way(own_lab: Lab, server: FtpServer) -> None:
    lab = own_lab
    gateway = lab.start_gateway()
    fail2ban = firewalls.Fail2ban(lab)
    fail2ban.client("set", "sshd", "banip", *(f"203.0.113.{100 + last}" for last in range(20)))

    def banned() -> bool:
        return "203.0.113.119" in lab.run("router", ["nft", "list", "ruleset"]).stdout

    lab.wait_for(banned, 20, "the bans")
    all_well(lab, server)
    assert not is_logged(gateway, "rules.gone")
    assert not is_logged(gateway, "rules.foreign")
    fail2ban.client("reload")
    all_well(lab, server)
    assert gateway.stop() == 0
    fail2ban.close()


def test_iptables_persistent_restores_what_was_saved_before_us(own_lab: Lab, server: FtpServer) -> None:
    lab = own_lab
    saved = {name: lab.run("router", [f"{name}-save"]).stdout for name in ("iptables", "ip6tables")}
    gateway = lab.start_gateway()
    all_well(lab, server)
    seen = len(gateway.log_lines())
    for name, text in saved.items():  # netfilter-persistent reload
        lab.run("router", [f"{name}-restore"], stdin=text)
    gateway.wait_for_log("event=rules.restored", 5, seen)
    all_well(lab, server)
    assert gateway.stop() == 0


def test_a_second_nat_of_somebody_else(own_lab: Lab, server: FtpServer) -> None:
    """A container engine's or VPN's own translation in a table of its own: it goes on, and so do we."""
    lab = own_lab
    text = """table ip vpn {
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.8.0.0/24 oifname "eth0" masquerade
	}
	chain pre {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "eth0" tcp dport 8443 dnat to 192.168.56.10:443
	}
}
"""
    lab.run("router", ["nft", "-f", "-"], stdin=text)
    gateway = lab.start_gateway()
    all_well(lab, server)
    lab.run("router", ["nft", "-f", "-"], stdin="delete table ip vpn\n" + text)
    all_well(lab, server)
    assert not is_logged(gateway, "rules.gone")
    assert gateway.stop() == 0
    lab.run("router", ["nft", "delete", "table", "ip", "vpn"])
