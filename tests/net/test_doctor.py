"""`algate doctor` about the host: each thing that is not well, made so in a namespace, and well again by its remedy."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import pytest

from tests.lab import upper
from tests.lab.lab import ROUTER_IN4, SERVER4, Lab, algate


def findings(lab: Lab, config: Path, before: str = "", code: int = 0) -> dict[str, dict[str, str]]:
    done = lab.run("router", ["sh", "-c", f"{before} exec {algate()} doctor -c {config} --json"], check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


@contextmanager
def name_server(lab: Lab) -> Iterator[None]:
    """One in `outside` that answers anything with nothing."""
    with lab.enter("outside"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((SERVER4, 53))

    def answer() -> None:
        while True:
            data, sender = sock.recvfrom(4096)
            if not data:
                return
            sock.sendto(dns.message.make_response(dns.message.from_wire(data)).to_wire(), sender)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        with lab.enter("outside"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", (SERVER4, 53))
        thread.join()
        sock.close()


def test_a_name_server_that_answers_and_one_that_does_not(lab: Lab) -> None:
    config = lab.write_config(dns={"servers": [SERVER4, ROUTER_IN4]})
    with name_server(lab):
        found = findings(lab, config)
    assert found[f"name server {SERVER4}"]["status"] == "ok"
    assert found[f"name server {ROUTER_IN4}"]["status"] == "warning"


def test_source_addresses_that_nobody_checks(lab: Lab) -> None:
    config = lab.write_config()
    lab.run("router", ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"])
    found = findings(lab, config)["reverse path"]
    assert found["status"] == "warning"
    assert "eth0" in found["detail"]
    lab.run("router", found["remedy"].partition(" (")[0].split())
    assert findings(lab, config)["reverse path"]["status"] == "ok"
    lab.run("router", ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"])


def test_pinhole_ports_that_the_host_uses_itself(lab: Lab) -> None:
    config = lab.write_config()
    found = findings(lab, config)["pinhole ports"]
    assert found["status"] == "warning"
    lab.run("router", found["remedy"].split())
    assert findings(lab, config)["pinhole ports"]["status"] == "ok"
    lab.run("router", ["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports="])


def test_few_descriptors_an_absent_address_and_a_clock_in_the_past(lab: Lab) -> None:
    config = lab.write_config(socks={"listen": ["192.168.56.99:1080"]})
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1024)
    found = findings(lab, config, f"ulimit -n {hard};")
    assert found["descriptors"]["status"] == "warning"
    assert found["socks.listen 192.168.56.99:1080"]["status"] == "warning"
    assert found["clock"]["status"] == "ok"


NFT_CHAIN = "add table ip mine; add chain ip mine pre { type nat hook prerouting priority -150; };"
NFT_RULE = "add rule ip mine pre tcp dport 21 redirect to :2121"


@pytest.mark.parametrize(
    ("add", "remove"),
    [
        (
            "iptables -t nat -I PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.56.11",
            "iptables -t nat -D PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.56.11",
        ),
        (
            f"nft '{NFT_CHAIN} {NFT_RULE}'",
            "nft delete table ip mine",
        ),
    ],
)
def test_somebody_else_translates_the_same_ports(lab: Lab, add: str, remove: str) -> None:
    config = lab.write_config()
    assert findings(lab, config)["other rules"]["status"] == "ok"
    lab.run("router", ["sh", "-c", add])
    try:
        found = findings(lab, config)["other rules"]
        assert found["status"] == "warning"
        assert "mine" in found["detail"] or "192.168.56.11" in found["detail"]
    finally:
        lab.run("router", ["sh", "-c", remove])


def test_what_it_may_not_see_it_does_not_call_well(lab: Lab) -> None:
    config = lab.write_config()
    argv: list[str | Path] = [
        "setpriv",
        "--inh-caps=-all",
        "--bounding-set=-all",
        algate(),
        "doctor",
        "-c",
        config,
        "--json",
    ]
    done = lab.run("router", argv, check=False)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    for name in ("kernel helpers", "other rules", "NAT type", "rules"):
        assert (found[name]["status"], found[name]["remedy"]) == ("warning", "run the doctor as root"), found[name]
    assert not [name for name in found if name.startswith("kernel helper ")]


def test_our_own_rules_are_not_others(lab: Lab) -> None:
    gateway = lab.start_gateway()
    assert findings(lab, gateway.config)["other rules"]["status"] == "ok"
    assert gateway.stop() == 0


def test_a_nat_that_is_strict(lab: Lab) -> None:
    config = lab.write_config()
    found = findings(lab, config)
    assert (found["NAT type"]["status"], found["NAT type"]["detail"].partition(":")[0]) == ("ok", "moderate")
    rule = ["POSTROUTING", "-o", "eth0", "-p", "udp", "-j", "MASQUERADE", "--random-fully"]
    lab.run("router", ["iptables", "-t", "nat", "-A", *rule])
    lab.run("router", ["sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout_stream=60"])
    try:
        found = findings(lab, config)
    finally:
        lab.run("router", ["iptables", "-t", "nat", "-D", *rule])
        lab.run("router", ["sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout_stream=120"])
    assert (found["NAT type"]["status"], found["NAT type"]["detail"].partition(":")[0]) == ("warning", "strict")
    assert "--random-fully" in found["NAT type"]["detail"]
    assert found["UDP timeout"]["status"] == "warning"


def test_a_router_that_translates_nothing(lab: Lab) -> None:
    config = lab.write_config()
    assert findings(lab, config)["translation"]["status"] == "ok"
    saved = lab.run("router", ["iptables-save", "-t", "nat"]).stdout
    lab.run("router", ["iptables", "-t", "nat", "-F", "POSTROUTING"])
    try:
        found = findings(lab, config)["translation"]
    finally:
        lab.run("router", ["iptables-restore"], stdin=saved)
    assert found["status"] == "warning"
    assert "MASQUERADE" in found["remedy"]


def test_inside_networks_that_are_elsewhere(lab: Lab) -> None:
    """`inside` that no route knows, that is outside, and that is a part of what is inside."""
    networks = ["10.9.9.0/24", "203.0.113.0/24", "192.168.56.128/25", "192.168.0.0/16"]
    found = findings(lab, lab.write_config(network={"inside": networks}))
    said = [(found[f"inside {network}"]["status"], found[f"inside {network}"]["detail"]) for network in networks]
    assert said == [
        ("warning", "no route but a default one leads there"),
        ("warning", "is behind eth0, which is no inside interface"),
        ("ok", "behind eth1"),
        ("ok", "behind eth1"),
    ]


def test_another_nat_in_front(lab: Lab) -> None:
    config = lab.write_config(portmap={"protocols": ["pcp"]})
    assert found_public(lab, config)["status"] == "warning"  # no default route, no address
    lab.run("router", ["ip", "route", "add", "default", "via", SERVER4])
    try:
        assert found_public(lab, config)["status"] == "ok"
        lab.run("router", ["ip", "address", "add", "100.64.0.2/24", "dev", "eth0"])
        lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4, "src", "100.64.0.2"])
        behind = found_public(lab, config)
        assert (behind["status"], "another NAT" in behind["detail"]) == ("warning", True)
    finally:
        lab.run("router", ["ip", "route", "del", "default"])
        lab.run("router", ["ip", "address", "del", "100.64.0.2/24", "dev", "eth0"], check=False)


def found_public(lab: Lab, config: Path) -> dict[str, str]:
    return findings(lab, config)["public address IPv4"]


def test_its_own_ports_are_its_own(lab: Lab) -> None:
    config = lab.write_config(portmap={"protocols": ["pcp", "natpmp", "upnp"]}, process={"workers": 1})
    gateway = lab.start_gateway(config)
    try:
        found = findings(lab, config)
    finally:
        assert gateway.stop() == 0
    assert [one["status"] for name, one in found.items() if name.startswith("port ")] == ["ok"] * 3


def test_another_program_has_the_ports_at_which_clients_ask(lab: Lab) -> None:
    config = lab.write_config(
        portmap={"protocols": ["pcp", "natpmp", "upnp"], "http_port": 5000}, process={"workers": 1}
    )
    names = ("port 5351/udp (PCP, NAT-PMP)", "port 1900/udp (SSDP)", "port 5000/tcp (UPnP)")
    with upper.miniupnpd(lab, pcp=True, role="router", address=ROUTER_IN4, network="192.168.56.0/24"):
        found = findings(lab, config, code=1)
        assert [found[name]["status"] for name in names] == ["failed", "warning", "failed"]
        assert all("miniupnpd (process " in found[name]["detail"] for name in names)


def test_an_interface_is_there_also_beside_files_of_another_namespace(lab: Lab) -> None:
    """As in containers, where /sys is the host's. The lab's programs have a /sys of their own, this one has not."""
    config = lab.write_config(network={"inside_interfaces": ["inside7", "inside8"]})
    with lab.enter("router"):
        subprocess.run(["ip", "link", "add", "inside7", "type", "veth", "peer", "name", "inside9"], check=True)
        done = subprocess.run([algate(), "doctor", "-c", config, "--json"], capture_output=True, text=True, check=False)
        subprocess.run(["ip", "link", "del", "inside7"], check=True)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["interface inside7"]["status"] == "ok"
    assert found["interface inside8"]["status"] == "failed"
    assert "inside7" in found["interface inside8"]["detail"]
