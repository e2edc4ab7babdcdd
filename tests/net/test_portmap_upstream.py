"""A router behind another NAT asks the router above for the ports that its clients ask for (portmap.upstream): a
stranger outside reaches the client through both, and the client knows the address that the world sees."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import upper
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, Lab
from tests.lab.udp import Udp
from tests.lab.upper import ROUTER, SERVER, STRANGER, UPPER_IN, UPPER_OUT, UPPER_OUT_2
from tests.net import pcp_client
from tests.net.pcp_client import TCP, PcpClient
from tests.net.test_portmap import listening, natpmpc, reaches
from tests.net.test_portmap_restart import hearing, pid_of
from tests.net.upnp_client import Igd


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(logs=tmp_path_factory.mktemp("double")) as lab:
        upper.build(lab)
        yield lab


def start(lab: Lab, **more: Any) -> Gateway:
    portmap = {"protocols": ["pcp", "natpmp", "upnp"], "lifetime": "2-7200", "upstream": True, **more}
    return lab.start_gateway(lab.write_config(portmap=portmap, process={"workers": 1}))


def works(lab: Lab, public: int, inside: int, host: str = UPPER_OUT) -> bool:
    """Whether a stranger's datagram comes through both routers, and the answer goes back."""
    with Udp(lab, "inside", CLIENT4, inside) as near, Udp(lab, "stranger", STRANGER) as far:
        far.send(b"in", (host, public))
        far.sock.settimeout(0.5)
        near.sock.settimeout(0.5)
        try:
            data, source = near.receive()
            near.send(b"out", source)
            return (data, source[0], far.receive()) == (b"in", STRANGER, (b"out", (host, public)))
        except TimeoutError:
            return False


def above(gateway: Gateway) -> set[tuple[str, str]]:
    """What is open at the router above: reasons and targets."""
    return {(hole["reason"], hole["target"]) for hole in gateway.admin("pinholes") if hole["kind"] == "mapping"}


def asked_by(gateway: Gateway) -> str:
    """By which protocol the router above is asked."""
    [row] = [row for row in gateway.admin("status") if row["process"] == "portmap"]
    return str(row["upstream"].get("protocol", ""))


def client_of(lab: Lab) -> PcpClient:
    return PcpClient(lab, "inside", CLIENT4, ROUTER_IN4)


# --- each protocol, with algate above ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["pcp", "natpmp", "upnp"])
def test_a_stranger_comes_through_both(double: Lab, protocol: str) -> None:
    above_it = upper.start_algate(double, portmap={"protocols": [protocol]})
    gateway = start(double)
    try:
        assert asked_by(gateway) == protocol
        with client_of(double) as client:
            answer = client.map(5000, suggested=5000)
            assert (answer.result, answer.address, answer.port) == (0, UPPER_OUT, 5000)
            assert above(above_it) == {(f"map.{protocol}", f"{ROUTER}:5000")}
            assert works(double, 5000, 5000)
            assert client.map(5001, protocol=TCP, suggested=5100).port == 5100
            with listening(double, CLIENT4, 5001):
                assert reaches(double, UPPER_OUT, 5100)
            with Udp(double, "inside", CLIENT4, 5000) as near, Udp(double, "outside", SERVER) as far:
                near.send(b"play", far.sock.getsockname()[:2])  # what it sends leaves from the mapped port, twice
                assert far.receive() == (b"play", (UPPER_OUT, 5000))
            assert f"Public IP address : {UPPER_OUT}" in natpmpc(double)
            assert natpmpc(double, "-a", "5002", "5002", "udp", "60").count("Mapped public port 5002") == 1
            igd = Igd(double, "inside", CLIENT4)
            assert igd.ask(igd.connection, "GetExternalIPAddress").value("NewExternalIPAddress") == UPPER_OUT
            assert igd.add(5003, 5003).status == 200
            assert len(above(above_it)) == 4
            client.map(0, protocol=0, lifetime=0)
            natpmpc(double, "-a", "5002", "5002", "udp", "0")
            assert igd.delete(5003).status == 200
            double.wait_for(lambda: above(above_it) == set(), 10, "the router above to be told of the ends")
            assert not works(double, 5000, 5000)
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0


@pytest.mark.parametrize("protocol", ["pcp", "upnp"])
def test_miniupnpd_above(tmp_path: Path, protocol: str) -> None:
    with Lab(logs=tmp_path) as lab:
        upper.build(lab, forward="ACCEPT")  # an accept in miniupnpd's table overrules no other drop
        with upper.miniupnpd(lab, pcp=protocol == "pcp"):
            gateway = start(lab)
            assert asked_by(gateway) == protocol
            with client_of(lab) as client:
                answer = client.map(5000, suggested=5000)
                assert (answer.result, answer.address, answer.port) == (0, UPPER_OUT, 5000)
                assert works(lab, 5000, 5000)
                assert client.map(5001, protocol=TCP, suggested=5001).address == UPPER_OUT
                with listening(lab, CLIENT4, 5001):
                    assert reaches(lab, UPPER_OUT, 5001)
                client.map(5000, lifetime=0)
                lab.wait_for(
                    lambda: (
                        ":5000"
                        not in lab.run("upper", ["nft", "list", "table", "inet", "filter"]).stdout.replace(" . ", ":")
                        and not works(lab, 5000, 5000)
                    ),
                    10,
                    "the mapping to end above",
                )
            assert gateway.stop() == 0, lab.tail_of_logs()


# --- what the router above says ---------------------------------------------------------------------------------------


def test_a_port_that_is_not_free_above(double: Lab) -> None:
    forward = [{"outside": f"{UPPER_OUT}:6000", "inside": "100.64.0.77:6000", "protocol": "tcp+udp"}]
    above_it = upper.start_algate(double, forward=forward)
    gateway = start(double)
    try:
        with client_of(double) as client:
            refused = client.map(6000, suggested=6000, options=pcp_client.PREFER_FAILURE)
            assert refused.result == 11
            double.wait_for(
                lambda: above(above_it) == {("map.static", "100.64.0.77:6000")}, 5, "what was given to be given back"
            )
            other = client.map(6000, suggested=6000)
            assert (other.result, other.address) == (0, UPPER_OUT)
            assert other.port not in (0, 6000)
            assert works(double, other.port, 6000)
            again = client.map(6000, suggested=other.port, suggested_host=UPPER_OUT, options=pcp_client.PREFER_FAILURE)
            assert (again.result, again.port) == (0, other.port)
            igd = Igd(double, "inside", CLIENT4)
            assert igd.add(6001, 6000).code == 718
            found = igd.add(6002, 6002)
            assert found.status == 200
            assert above(above_it) == {
                ("map.static", "100.64.0.77:6000"), ("map.pcp", f"{ROUTER}:6000"), ("map.pcp", f"{ROUTER}:6002")
            }  # fmt: skip
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0


def test_a_router_above_that_refuses(double: Lab) -> None:
    above_it = upper.start_algate(
        double, rule=[{"action": "deny", "command": ["map"], "port": ["6100-6199"]}, {"action": "permit"}]
    )
    gateway = start(double)
    try:
        with client_of(double) as client:
            assert client.map(6100, suggested=6100).result == 2
            assert [hole for hole in gateway.admin("pinholes") if hole["kind"] == "mapping"] == []
            assert any("portmap.upstream_refused" in line for line in gateway.log_lines())
            assert client.map(6200, suggested=6200).address == UPPER_OUT
            client.map(0, protocol=0, lifetime=0)
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0


def test_nobody_above_answers(double: Lab) -> None:
    gateway = start(double)
    try:
        with client_of(double) as client:
            answer = client.map(6300, suggested=6300)
            assert (answer.result, answer.address, answer.port) == (0, ROUTER, 6300)
        gateway.wait_for_log(r"portmap\.double_nat.*" + ROUTER)
        said = gateway.algate("doctor", check=False).stdout
        assert "answers neither PCP nor NAT-PMP nor UPnP" in said, said
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()


# --- as time goes on --------------------------------------------------------------------------------------------------


def test_renewals_outlive_what_the_router_above_grants(double: Lab) -> None:
    above_it = upper.start_algate(double, portmap={"protocols": ["pcp"], "lifetime": "2-4"})
    gateway = start(double)
    try:
        with client_of(double) as client:
            assert client.map(6400, suggested=6400, lifetime=3600).address == UPPER_OUT
            [hole] = [hole for hole in above_it.admin("pinholes") if hole["kind"] == "mapping"]
            until = time.time() + 9
            assert hole["expires"] < until - 4
            double.wait_for(lambda: time.time() > until, 20, "two lifetimes")
            assert works(double, 6400, 6400)
            assert {one["id"] for one in above_it.admin("pinholes") if one["kind"] == "mapping"} == {hole["id"]}
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0


@pytest.mark.parametrize(
    "protocol", ["pcp", pytest.param("natpmp", marks=pytest.mark.long), pytest.param("upnp", marks=pytest.mark.long)]
)
def test_a_router_above_that_forgets(double: Lab, protocol: str) -> None:
    above_it = upper.start_algate(double, portmap={"protocols": [protocol]})
    gateway = start(double)
    try:
        with client_of(double) as client:
            before = client.map(6500, suggested=6500, lifetime=3600)
            assert before.address == UPPER_OUT
            assert above_it.stop() == 0  # as a reboot: what it gave is gone
            assert not works(double, 6500, 6500)
            above_it.start()
            double.wait_for(lambda: works(double, 6500, 6500), 30, "the mapping to be asked for again")
            after = client.map(6500, lifetime=3600)
            assert (after.address, after.port) == (UPPER_OUT, 6500)
            assert after.epoch >= before.epoch  # nothing is otherwise for the client
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0


def test_another_address_of_the_router_above(double: Lab) -> None:
    above_it = upper.start_algate(double)
    gateway = start(double)
    try:
        with client_of(double) as client, hearing(double) as announcements:
            assert client.map(6600, suggested=6600, lifetime=3600).address == UPPER_OUT
            double.run("upper", ["ip", "address", "add", f"{UPPER_OUT_2}/24", "dev", "eth0"])
            double.run("upper", ["ip", "route", "replace", "default", "via", SERVER, "src", UPPER_OUT_2])
            try:
                double.wait_for(lambda: works(double, 6600, 6600, UPPER_OUT_2), 30, "the mapping to follow")
                double.wait_for(
                    lambda: client.map(6600, lifetime=3600).address == UPPER_OUT_2, 30, "the client to be told"
                )
                announcements.settimeout(30)
                while announcements.recvfrom(2000)[0][8:12] != bytes(map(int, UPPER_OUT_2.split("."))):
                    pass  # NAT-PMP's announcement has the address
                igd = Igd(double, "inside", CLIENT4)
                address = igd.ask(igd.connection, "GetExternalIPAddress").value("NewExternalIPAddress")
                assert address == UPPER_OUT_2
            finally:
                double.run("upper", ["ip", "route", "replace", "default", "via", SERVER])
                double.run("upper", ["ip", "address", "del", f"{UPPER_OUT_2}/24", "dev", "eth0"])
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0


def test_a_portmap_process_that_is_killed(double: Lab) -> None:
    above_it = upper.start_algate(double)
    gateway = start(double)
    try:
        with client_of(double) as client:
            before = client.map(6700, suggested=6700, lifetime=3600)
            [hole] = [hole for hole in above_it.admin("pinholes") if hole["kind"] == "mapping"]
            seen = len(gateway.log_lines())
            os.kill(pid_of(gateway, "portmap"), signal.SIGKILL)
            gateway.wait_for_log(r"portmap\.upstream ", 15, seen)
            after = client.map(6700, lifetime=3600)
            assert (after.address, after.port) == (UPPER_OUT, 6700)
            assert after.epoch >= before.epoch
            assert works(double, 6700, 6700)
            client.map(6700, lifetime=0)
            double.wait_for(lambda: above(above_it) == set(), 10, "the end to be told above, with the nonce of before")
            assert hole["reason"] == "map.pcp"
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0


def test_the_doctor_names_the_router_above(double: Lab) -> None:
    above_it = upper.start_algate(double, portmap={"protocols": ["upnp"]})
    gateway = start(double)
    try:
        said = gateway.algate("doctor", check=False).stdout
        assert f"{UPPER_OUT}, of the router above ({UPPER_IN}), which is asked by UPnP" in said, said
        gateway.config.write_text(gateway.config.read_text().replace("upstream = true", "upstream = false"))
        said = gateway.algate("doctor", check=False).stdout
        assert "opens ports by UPnP, but is not asked for any" in said, said
    finally:
        assert gateway.stop() == 0, double.tail_of_logs()
        assert above_it.stop() == 0
