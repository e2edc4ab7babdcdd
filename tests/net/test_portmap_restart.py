"""What is mapped stays mapped: processes that are killed, rules that are flushed, an address that changes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.lab import firewall
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.lab.udp import Udp
from tests.net import pcp_client
from tests.net.pcp_client import PcpClient
from tests.net.test_portmap import holes
from tests.net.test_upgrade import pid_of as pid_of_supervisor

MORE_OUT4 = "203.0.113.3"


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Gateway]:
    lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4])
    gateway = lab.start_gateway(
        lab.write_config(
            portmap={"protocols": ["pcp", "natpmp"], "lifetime": "2-7200"},
            forward=[{"outside": f"{ROUTER_OUT4}:8443", "inside": f"{CLIENT2_4}:443", "protocol": "tcp+udp"}],
            process={"workers": 1},
        )
    )
    yield gateway
    successor = pid_of_supervisor(gateway)
    if successor not in (None, gateway.process.pid):  # after an upgrade
        os.kill(successor, signal.SIGTERM)
        lab.wait_for(lambda: not Path(f"/proc/{successor}").exists(), 20, "the new version to end")
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []
    lab.run("router", ["ip", "route", "del", "default"])


def works(lab: Lab, public: int, inside: int, host: str = ROUTER_OUT4) -> bool:
    """Whether a datagram of a stranger reaches the client, and the answer comes back."""
    with Udp(lab, "inside", CLIENT4, inside) as near, Udp(lab, "stranger", STRANGER4) as far:
        near.sock.settimeout(0.5)
        far.send(b"in", (host, public))
        try:
            data, source = near.receive()
            near.send(b"out", source)
            return (data, far.receive()) == (b"in", (b"out", (host, public)))
        except TimeoutError:
            return False


def pid_of(gateway: Gateway, name: str) -> int:
    [supervisor] = [row for row in gateway.admin("status") if row["process"] == "supervisor"]
    return int(supervisor["children"][name]["pid"]) if name != "supervisor" else int(supervisor["pid"])


@pytest.mark.parametrize("name", ["portmap", "broker"])
def test_a_process_that_is_killed(lab: Lab, gateway: Gateway, name: str) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        before = client.map(5000, suggested=5000, lifetime=3600)
        [hole] = holes(gateway)
        seen = len(gateway.log_lines())
        os.kill(pid_of(gateway, name), signal.SIGKILL)
        assert works(lab, 5000, 5000)
        gateway.wait_for_log(r"portmap\.recovered" if name == "portmap" else r"broker\.table ", 15, seen)
        [again] = holes(gateway)
        assert again["id"] == hole["id"]
        assert hole["expires"] - 5 <= again["expires"] <= hole["expires"] + 1
        assert works(lab, 5000, 5000)
        after = client.map(5000, lifetime=3600)
        assert (after.result, after.port) == (0, 5000)
        assert after.epoch >= before.epoch
        assert client.map(5000, nonce=bytes(12)).result == 2  # the nonce is known


def test_all_processes_that_are_killed(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        before = client.map(5001, suggested=5001, lifetime=3600)
        short = client.map(5002, suggested=5002, lifetime=3)
        gateway.kill()
        killed = time.monotonic()
        assert works(lab, 5001, 5001)
        assert works(lab, 5002, 5002) or time.monotonic() > killed + short.lifetime
        lab.wait_for(lambda: not works(lab, 5002, 5002), 10, "the kernel to end the mapping")
        gateway.start()
        [again] = holes(gateway)
        assert (again["target"], again["public"]) == (f"{CLIENT4}:5001", f"{ROUTER_OUT4}:5001")
        assert works(lab, 5001, 5001)
        after = client.map(5001, lifetime=3600)
        assert (after.result, after.port) == (0, 5001)
        assert after.epoch >= before.epoch
        static = [hole for hole in gateway.admin("pinholes") if hole["reason"] == "map.static"]
        assert len(static) == 1


def test_the_supervisor_that_is_killed_alone(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        before = client.map(5008, suggested=5008, lifetime=3600)
        [hole] = holes(gateway)
        children = gateway.pids()
        os.kill(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait(5)
        lab.gateways.remove(gateway)
        lab.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 10, "the children to end")
        assert works(lab, 5008, 5008)
        gateway.start(rules=False)
        [again] = holes(gateway)
        assert (again["id"], again["public"]) == (hole["id"], f"{ROUTER_OUT4}:5008")
        assert works(lab, 5008, 5008)
        after = client.map(5008, lifetime=3600)
        assert (after.result, after.port) == (0, 5008)
        assert after.epoch >= before.epoch
        assert client.map(5008, nonce=bytes(12)).result == 2


def test_a_peer_outlives_its_process(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        assert client.peer(5009, (SERVER4, 7000), suggested=5009).result == 0
        seen = len(gateway.log_lines())
        os.kill(pid_of(gateway, "portmap"), signal.SIGKILL)
        gateway.wait_for_log(r"portmap\.recovered.*lost=0", 15, seen)
        assert client.peer(5009, (SERVER4, 7000), nonce=bytes(12)).result == 2
        assert client.peer(5009, (SERVER4, 7000), lifetime=0).result == 0
        assert [hole for hole in gateway.admin("pinholes") if hole["reason"] == "map.peer"] == []


def test_a_flush_of_all_rules(tmp_path: Path) -> None:
    with Lab(logs=tmp_path) as lab:
        config = lab.write_config(
            network={"outside": ROUTER_OUT4}, portmap={"protocols": ["pcp"]}, process={"workers": 1}
        )
        gateway = lab.start_gateway(config)
        with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
            before = client.map(5003, suggested=5003)
            assert works(lab, 5003, 5003)
            [hole] = holes(gateway)
            lab.run("router", ["nft", "flush", "ruleset"])
            flushed = time.monotonic()
            lab.wait_for(lambda: works(lab, 5003, 5003), 5, "the mapping to be back")
            assert time.monotonic() - flushed < 2.5
            after = client.map(5003)
            assert (after.result, after.port) == (0, 5003)
            assert after.epoch >= before.epoch
            assert [each["id"] for each in holes(gateway)] == [hole["id"]]
        assert gateway.stop() == 0
        firewall.load(lab)


@contextlib.contextmanager
def hearing(lab: Lab) -> Iterator[socket.socket]:
    """A client's socket for announcements (RFC 6887 section 14.1.1)."""
    with lab.enter("inside"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("224.0.0.1", 5350))
    group = struct.pack("4s4s", socket.inet_aton("224.0.0.1"), socket.inet_aton(CLIENT4))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    sock.settimeout(10)
    with sock:
        yield sock


def test_another_public_address(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client, hearing(lab) as announcements:
        before = client.map(5004, suggested=5004, lifetime=3600)
        assert before.address == ROUTER_OUT4
        lab.run("router", ["ip", "address", "add", f"{MORE_OUT4}/24", "dev", "eth0"])
        lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4, "src", MORE_OUT4])
        try:
            gateway.wait_for_log(r"portmap\.address.*" + MORE_OUT4, 10)
            heard: dict[int, bytes] = {}
            # That the epoch has begun with the gateway may still be announced, with the address of then.
            while heard.get(0, b"")[8:12] != socket.inet_aton(MORE_OUT4) or 2 not in heard:
                data, source = announcements.recvfrom(2000)
                assert source == (ROUTER_IN4, 5351)
                heard[data[0]] = data
            announced = pcp_client.read(heard[2])
            assert (announced.opcode, announced.result) == (0, 0)
            assert announced.epoch <= 10
            lab.wait_for(lambda: works(lab, 5004, 5004, MORE_OUT4), 5, "the mapping to follow")
            after = client.map(5004, lifetime=3600)
            assert (after.result, after.port, after.address) == (0, 5004, MORE_OUT4)
        finally:
            lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4])
            lab.run("router", ["ip", "address", "del", f"{MORE_OUT4}/24", "dev", "eth0"])


def test_a_process_that_is_killed_while_the_uplink_is_down(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        assert client.map(5007, suggested=5007, lifetime=3600).address == ROUTER_OUT4
        seen = len(gateway.log_lines())
        lab.run("router", ["ip", "route", "del", "default"])
        os.kill(pid_of(gateway, "portmap"), signal.SIGKILL)
        gateway.wait_for_log(r"portmap\.recovered", 15, seen)
        lab.run("router", ["ip", "address", "add", f"{MORE_OUT4}/24", "dev", "eth0"])
        lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4, "src", MORE_OUT4])
        try:
            lab.wait_for(lambda: works(lab, 5007, 5007, MORE_OUT4), 8, "the mapping to follow")
            [hole] = holes(gateway)
            assert hole["public"] == f"{MORE_OUT4}:5007"
        finally:
            lab.run("router", ["ip", "route", "replace", "default", "via", SERVER4])
            lab.run("router", ["ip", "address", "del", f"{MORE_OUT4}/24", "dev", "eth0"])


def test_reload_takes_the_right_away(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        assert client.map(5005).result == 0
        text = gateway.config.read_text()
        rule = '\n[[rule]]\naction = "deny"\ncommand = ["map"]\nfrom = ["192.168.56.10"]\n'
        gateway.config.write_text(text + rule)
        gateway.algate("reload")
        lab.wait_for(lambda: holes(gateway) == [], 10, "the mapping to end")
        refused = client.map(5005)
        assert (refused.result, refused.lifetime) == (2, 1800)


def test_an_upgrade(lab: Lab, gateway: Gateway) -> None:
    with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
        before = client.map(5006, suggested=5006)
        gateway.algate("reload", "--upgrade")
        [hole] = holes(gateway)
        assert hole["public"] == f"{ROUTER_OUT4}:5006"
        assert works(lab, 5006, 5006)
        after = client.map(5006)
        assert (after.result, after.port) == (0, 5006)
        assert after.epoch >= before.epoch


def test_an_inside_interface_that_comes_later(lab: Lab) -> None:
    config = lab.write_config(
        network={"inside": ["192.168.56.0/24", "192.168.57.0/24"], "inside_interfaces": ["eth1", "lan+"]},
        portmap={"protocols": ["pcp"]},
        process={"workers": 1},
    )
    gateway = lab.start_gateway(config)
    try:
        with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
            before = client.announce()
            assert before is not None
            lab.run("router", ["ip", "link", "add", "lan7", "type", "veth", "peer", "name", "eth7"])
            lab.run("router", ["ip", "link", "set", "eth7", "netns", lab.ns("client2")])
            lab.run("router", ["ip", "address", "add", "192.168.57.1/24", "dev", "lan7"])
            lab.run("router", ["ip", "link", "set", "lan7", "up"])
            lab.run("client2", ["ip", "address", "add", "192.168.57.2/24", "dev", "eth7"])
            lab.run("client2", ["ip", "link", "set", "eth7", "up"])
            with PcpClient(lab, "client2", "192.168.57.2", "192.168.57.1") as late:
                lab.wait_for(lambda: late.send(late.request(5000)[:24] + bytes(36), 0.5), 15, "an answer at lan7")
            after = client.announce()
            assert after is not None
            assert after.epoch >= before.epoch
    finally:
        lab.run("router", ["ip", "link", "del", "lan7"], check=False)
        assert gateway.stop() == 0, lab.tail_of_logs()


def test_forwardings_follow_a_reload(lab: Lab, gateway: Gateway) -> None:
    def forwardings() -> set[tuple[str, str, str]]:
        static = [hole for hole in gateway.admin("pinholes") if hole["reason"] == "map.static"]
        return {(hole["protocol"], hole["public"], hole["target"]) for hole in static}

    before = ("tcp+udp", f"{ROUTER_OUT4}:8443", f"{CLIENT2_4}:443")
    assert forwardings() == {before}
    text = gateway.config.read_text()
    document = tomllib.loads(text)
    document["forward"].append({"outside": f"{ROUTER_OUT4}:5010", "inside": f"{CLIENT4}:5011", "protocol": "udp"})
    gateway.config.write_text(tomli_w.dumps(document))
    gateway.algate("reload")
    added = ("udp", f"{ROUTER_OUT4}:5010", f"{CLIENT4}:5011")
    lab.wait_for(lambda: forwardings() == {before, added}, 5, "the new one")
    assert works(lab, 5010, 5011)
    gateway.config.write_text(text)
    gateway.algate("reload")
    lab.wait_for(lambda: forwardings() == {before}, 5, "it to be gone")
    assert not works(lab, 5010, 5011)
