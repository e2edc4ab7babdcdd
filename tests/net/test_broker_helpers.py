"""`algate doctor`, and a start that is refused: a kernel helper that is attached to the flows of a module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab, algate

pytestmark = pytest.mark.net

NFT = """
add table inet mine
add ct helper inet mine myftp { type "ftp" protocol tcp; }
add chain inet mine pre { type filter hook prerouting priority -200; }
add rule inet mine pre tcp dport { 21, 990 } ct helper set "myftp"
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(logs=tmp_path) as lab:
        yield lab


def findings(lab: Lab, config: Path, code: int) -> dict[str, dict[str, str]]:
    done = lab.run("router", [algate(), "doctor", "-c", config, "--json"], check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


def test_a_good_router_is_well_and_unchanged(lab: Lab) -> None:
    lab.run("router", ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"])
    found = findings(lab, lab.write_config(), 0)
    # What is not well here is the machine's: its name server is in no namespace, and its port range is Linux's own.
    warnings = {name for name, finding in found.items() if finding["status"] != "ok"}
    assert {name for name in warnings if not name.startswith("name server")} <= {"pinhole ports", "rules"}, found
    assert "kernel: kernel pinholes" in found
    assert lab.leftovers() == []
    text = lab.run("router", [algate(), "doctor", "-c", lab.write_config()]).stdout
    assert "FAILED" not in text


def test_what_stops_the_gateway_is_said_with_its_remedy(lab: Lab) -> None:
    lab.run("router", ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    config = lab.write_config(network={"inside_interfaces": ["eth1", "eth7"]})
    found = findings(lab, config, 1)
    failed = {name: finding["remedy"] for name, finding in found.items() if finding["status"] == "failed"}
    assert failed["forwarding IPv4"] == "sysctl -w net.ipv4.ip_forward=1"
    assert "interface eth7" in failed
    lab.run("router", failed["forwarding IPv4"].split())
    assert "forwarding IPv4" not in [
        name for name, finding in findings(lab, config, 1).items() if finding["status"] == "failed"
    ]


@pytest.mark.parametrize("how", ["iptables", "ip6tables", "nft"])
def test_a_kernel_helper_on_the_same_flows(lab: Lab, how: str) -> None:
    if how == "nft":
        lab.run("router", ["nft", "-f", "-"], stdin=NFT)
    else:
        lab.run("router", f"{how} -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp".split())
    config = lab.write_config()
    finding = findings(lab, config, 1)["kernel helper ftp"]
    assert finding["status"] == "failed"
    done = lab.run("router", [algate(), "run", "-c", config], check=False, timeout=20)
    assert done.returncode == 1
    assert "alg.ftp" in done.stderr
    assert finding["remedy"] in done.stderr
    # It may run without the module, and with it once the helper is detached as it was told.
    off = findings(lab, lab.write_config(alg={"ftp": {"mode": "off"}}), 0)
    assert "kernel helper ftp" not in off
    lab.run("router", finding["remedy"].split())
    assert findings(lab, config, 0)["kernel helper ftp"]["status"] == "ok"
    gateway = lab.start_gateway(config)
    assert gateway.stop() == 0


def test_a_helper_elsewhere_is_no_concern(lab: Lab) -> None:
    rule = "-p tcp --dport 2021 -j CT --helper ftp"
    lab.run("router", ["iptables", "-t", "raw", "-A", "PREROUTING", *rule.split()])
    assert findings(lab, lab.write_config(), 0)["kernel helper ftp"]["status"] == "ok"
