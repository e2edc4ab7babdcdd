"""The iptables rules of a gateway that runs, beside others who change netfilter: what they remove is noticed, told and
put back; what the operator removes is not."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.config.load import load_config
from gateway.host import rules
from gateway.host.keeper import RESTORATIONS
from tests.lab import firewall
from tests.lab.gateway import Gateway
from tests.lab.lab import Lab

PORT = 9180
NOTICED = 2.0  # seconds

FIREWALL = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth1 -o eth0 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
*mangle
COMMIT
"""
NFT_FIREWALL = """flush ruleset
table inet filter {
	chain forward { type filter hook forward priority filter; policy accept; }
}
table ip nat {
	chain postrouting { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
}
"""
WAYS = {
    "iptables -F": ["iptables -F", "iptables -t nat -F PREROUTING"],
    "only the jumps": ["iptables -D INPUT 1", "iptables -D FORWARD 1", "iptables -t nat -D PREROUTING 1"],
    "only one jump": ["iptables -t nat -D PREROUTING 1"],
    "a rule in a chain of ours": ["iptables -D ALGATE-FORWARD 1"],
    "all of one table": ["iptables -t mangle -F", "iptables -t mangle -X"],
    "only IPv6": ["ip6tables -F"],
    "iptables-restore by somebody else": ["iptables-restore"],
    "nft flush ruleset": ["nft flush ruleset"],
    "systemctl reload nftables": ["nft -f -"],
}


def missing(gateway: Gateway) -> list[str] | None:
    with gateway.lab.enter("router"):
        return rules.missing(load_config(str(gateway.config)))[0]


def disturb(lab: Lab, gateway: Gateway, commands: list[str]) -> None:
    chain = load_config(str(gateway.config)).instance.upper()
    for command in commands:
        text = {"iptables-restore": FIREWALL, "nft -f -": NFT_FIREWALL}.get(command)
        lab.run("router", command.replace("ALGATE", chain).split(), stdin=text)


def restored(gateway: Gateway, deadline: float = NOTICED) -> None:
    end = time.monotonic() + deadline
    while missing(gateway) != []:
        assert time.monotonic() < end, missing(gateway)
        time.sleep(0.02)


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(logs=tmp_path) as lab:
        yield lab


def page(lab: Lab, path: str) -> str:
    return lab.run("router", ["curl", "-s", f"http://127.0.0.1:{PORT}{path}"]).stdout


def applied(lab: Lab) -> str:
    (line,) = [line for line in page(lab, "/metrics").splitlines() if line.startswith("algate_rules_applied")]
    return line.split()[-1]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_what_others_remove_is_put_back(own_lab: Lab, way: list[str]) -> None:
    lab = own_lab
    server = lab.vsftpd()
    gateway = lab.start_gateway(lab.write_config(console={"listen": f"127.0.0.1:{PORT}"}))
    lab.wait_for(lambda: page(lab, "/readyz") == "ok\n", 5, "it to be ready")
    disturb(lab, gateway, way)
    restored(gateway)
    assert "missing=" in gateway.wait_for_log("event=rules.gone")
    gateway.wait_for_log("event=rules.restored")
    lab.wait_for(lambda: page(lab, "/readyz") == "ok\n" and applied(lab) == "1.0", 3, "it to be told")
    # The router's own translation may have gone with the rest: whoever flushes all puts that back.
    lab.run("router", ["iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"])
    lab.run("inside", ["curl", "-sS", "--max-time", "8", "--disable-epsv", "--ftp-port", "-", server.url("pub/")])
    assert gateway.stop() == 0
    server.stop()
    firewall.load(lab)


def test_what_is_not_wanted_to_be_put_back_is_told(own_lab: Lab) -> None:
    lab = own_lab
    config = lab.write_config(console={"listen": f"127.0.0.1:{PORT}"}, rules={"restore": False})
    gateway = lab.start_gateway(config)
    lab.wait_for(lambda: page(lab, "/readyz") == "ok\n" and applied(lab) == "1.0", 5, "it to be ready")
    assert "iptables rules: applied" in gateway.algate("status").stdout
    disturb(lab, gateway, WAYS["only the jumps"])
    gateway.wait_for_log("event=rules.gone", NOTICED)
    lab.wait_for(lambda: applied(lab) == "0.0", NOTICED, "the metric to tell")
    assert "iptables rules: gone: iptables -t nat PREROUTING" in page(lab, "/readyz")
    assert "iptables rules: gone: " in gateway.algate("status").stdout
    (finding,) = [finding for finding in doctor(gateway) if finding["check"] == "rules"]
    assert finding["status"] == "warning"
    assert finding["remedy"] == "algate rules apply"
    assert missing(gateway)
    gateway.algate("rules", "apply")
    lab.wait_for(lambda: page(lab, "/readyz") == "ok\n" and applied(lab) == "1.0", NOTICED, "all to be well")
    assert gateway.stop() == 0


def has_restored(gateway: Gateway, times: int) -> bool:
    return gateway.log.read_text().count("event=rules.restored") >= times


def doctor(gateway: Gateway) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(gateway.algate("doctor", "--json", check=False).stdout)
    return found


def test_what_the_operator_removes_stays_away(own_lab: Lab) -> None:
    lab = own_lab
    gateway = lab.start_gateway(lab.write_config(console={"listen": f"127.0.0.1:{PORT}"}))
    lab.wait_for(lambda: applied(lab) == "1.0", 5, "it to be known")
    gateway.algate("rules", "remove")
    lab.wait_for(lambda: applied(lab) == "0.0", NOTICED, "the metric to tell")
    lab.run("router", ["nft", "add", "table", "inet", "elsewhere"])  # a reason to look again
    lab.run("router", ["nft", "delete", "table", "inet", "elsewhere"])
    assert page(lab, "/readyz") == "ok\n"
    assert "iptables rules: not applied" in gateway.algate("status").stdout
    assert missing(gateway) is None
    assert not [line for line in gateway.log_lines() if "event=rules." in line]
    gateway.algate("rules", "apply")
    lab.wait_for(lambda: applied(lab) == "1.0", NOTICED, "them to be seen")
    disturb(lab, gateway, WAYS["only the jumps"])  # and from now on they are kept again
    restored(gateway)
    assert gateway.stop() == 0


def _with_another_port_in_its_file(lab: Lab, folder: Path) -> Gateway:
    """A gateway whose rules are seen to be applied, and whose configuration has another port of FTP since then."""
    process = {"run_dir": str(folder / "run"), "workers": 1}
    config = lab.write_config(alg={"ftp": {"ports": [21]}}, process=process)
    gateway = lab.start_gateway(config)
    lab.wait_for(lambda: "rules: applied" in gateway.algate("status").stdout, 5, "the rules to be seen")
    shutil.copy(lab.write_config(alg={"ftp": {"ports": [2121]}}, process=process), config)
    return gateway


def test_what_the_operator_applies_before_a_reload_is_not_undone(
    own_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rules as before, with another port in them, and IPv6's take a second, as they may on a small router."""
    lab, gateway = own_lab, _with_another_port_in_its_file(own_lab, tmp_path)
    slow = tmp_path / "slow" / "ip6tables-restore"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {shutil.which("ip6tables-restore")} "$@"\n')
    slow.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        gateway.rules("apply")
    redirected = nat(lab)
    assert "2121" in redirected
    gateway.reload()
    _kept_from_now_on(lab, gateway)
    assert nat(lab) == redirected
    assert gateway.stop() == 0


def test_rules_that_a_reload_has_changed_are_not_gone(own_lab: Lab, tmp_path: Path) -> None:
    lab, gateway = own_lab, _with_another_port_in_its_file(own_lab, tmp_path)
    gateway.reload()
    redirected = nat(lab)
    assert "2121" in redirected
    _kept_from_now_on(lab, gateway)
    assert nat(lab) == redirected
    assert gateway.stop() == 0


def nat(lab: Lab) -> str:
    return lab.run("router", ["iptables", "-t", "nat", "-S"]).stdout


def _kept_from_now_on(lab: Lab, gateway: Gateway) -> None:
    """What is there counts as whole, and only the next loss is one."""
    lab.wait_for(lambda: "rules: applied" in gateway.algate("status").stdout, 5, "the rules to be seen again")
    disturb(lab, gateway, ["iptables -t mangle -F ALGATE-TO"])
    gateway.wait_for_log("event=rules.restored")
    (gone,) = [line for line in gateway.log_lines() if "rules.gone" in line]
    assert "-t mangle" in gone


def test_nobody_is_fought(own_lab: Lab) -> None:
    lab = own_lab
    gateway = lab.start_gateway(lab.write_config(console={"listen": f"127.0.0.1:{PORT}"}))
    lab.wait_for(lambda: applied(lab) == "1.0", 5, "it to be known")
    for number in range(RESTORATIONS):
        disturb(lab, gateway, WAYS["only one jump"])
        lab.wait_for(partial(has_restored, gateway, number + 1), 5, "them to be back")
    disturb(lab, gateway, WAYS["only one jump"])
    gateway.wait_for_log("event=rules.disputed")
    lab.wait_for(lambda: "again and again" in page(lab, "/readyz"), 3, "it to be told")
    assert missing(gateway)
    gateway.algate("rules", "apply")  # the operator's word counts
    lab.wait_for(lambda: page(lab, "/readyz") == "ok\n", NOTICED, "all to be well")
    assert gateway.stop() == 0


def test_iptables_legacy_tells_nobody_and_is_watched_all_the_same(
    own_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = own_lab
    for family in ("iptables", "ip6tables"):
        for program in ("", "-save", "-restore"):
            legacy = shutil.which(f"{family}-legacy{program}", path="/usr/sbin:/sbin")
            if legacy is None:
                pytest.skip("iptables-legacy is not installed")
            (tmp_path / f"{family}{program}").symlink_to(legacy)
    for family in ("iptables", "ip6tables"):
        lab.run("router", [f"{family}", "-F"])
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gateway = lab.start_gateway(lab.write_config(console={"listen": f"127.0.0.1:{PORT}"}))
    lab.wait_for(lambda: applied(lab) == "1.0", 5, "it to be known")
    disturb(lab, gateway, WAYS["iptables -F"])
    restored(gateway, NOTICED + 1)
    gateway.wait_for_log("event=rules.restored")
    assert gateway.stop() == 0
