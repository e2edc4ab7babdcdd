"""What programs that judge a NAT say of this one (turnutils_natdiscovery by RFC 5780, stun by RFC 3489) is the same
with the gateway and without; a mapped socket is open; and two ICE agents behind two gateways find each other."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lab import namespaces
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, Lab
from tests.lab.peers import LIBRARIES, unpacked
from tests.net.pcp_client import PcpClient

SECOND4 = "203.0.113.11"  # another address of the server: RFC 5780 needs two
PORT = 32000
ENVIRONMENT = {"LD_LIBRARY_PATH": str(LIBRARIES)}
AGENT = Path(__file__).parents[1] / "lab" / "ice_agent.py"


@contextlib.contextmanager
def stun_server(lab: Lab) -> Iterator[None]:
    """coturn as a server of STUN, with two addresses and two ports."""
    lab.run("outside", ["ip", "address", "add", f"{SECOND4}/24", "dev", "eth0"])
    server = unpacked("coturn", "usr/bin/turnserver")
    options = ["-n", "--stun-only", "-L", SERVER4, "-L", SECOND4, "--no-tls", "--no-dtls", "--no-cli"]
    options += ["--log-file", "stdout", "--pidfile", str(lab.tmp / "turnserver.pid")]
    process = lab.popen("outside", [server, *options], env=ENVIRONMENT)
    lab.wait_for(lambda: _answers(lab), 10, "the server of STUN to answer")
    try:
        yield
    finally:
        lab.stop(process)


@pytest.fixture(scope="module")
def stun(lab: Lab) -> Iterator[None]:
    with stun_server(lab):
        yield


def _answers(lab: Lab) -> bool:
    with lab.enter("outside"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        sock.sendto(b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12), (SERVER4, 3478))  # Binding (RFC 8489)
        try:
            return sock.recv(1000)[:2] == b"\1\1"
        except OSError:
            return False


def natdiscovery(lab: Lab, *options: str) -> list[str]:
    """The verdict of turnutils_natdiscovery about a client's NAT: mapping and filtering."""
    program = unpacked("coturn", "usr/bin/turnutils_natdiscovery")
    options = options or ("-m", "-f")
    done = lab.run("inside", [program, "-L", CLIENT4, *options, SERVER4], env=ENVIRONMENT, check=False)
    said = done.stdout + done.stderr
    verdict = re.findall(r"NAT with [A-Za-z ]+|No NAT[A-Za-z ]*", said)
    assert verdict, said
    return verdict


def stun_client(lab: Lab) -> str:
    """The verdict of stun about a client's NAT."""
    program = unpacked("stun-client", "usr/bin/stun")
    done = lab.run("inside", [program, SERVER4, "-i", CLIENT4], env=ENVIRONMENT, check=False, timeout=60)
    found = re.search(r"Primary: (.*)", done.stdout + done.stderr)
    assert found is not None, done.stdout + done.stderr
    return found[1]


def start(lab: Lab) -> Gateway:
    network = {"outside": ROUTER_OUT4}
    return lab.start_gateway(lab.write_config(network=network, portmap={"protocols": ["pcp"]}, process={"workers": 1}))


def test_the_verdict_is_as_without_the_gateway(lab: Lab, stun: None) -> None:
    before = natdiscovery(lab), stun_client(lab)
    assert before[0] == [
        "NAT with Endpoint Independent Mapping",
        "NAT with Address and Port Dependent Filtering",
    ]  # moderate
    gateway = start(lab)
    try:
        assert (natdiscovery(lab), stun_client(lab)) == before
    finally:
        assert gateway.stop() == 0


def test_a_mapped_socket_is_open(lab: Lab, stun: None) -> None:
    gateway = start(lab)
    try:
        with PcpClient(lab, "inside", CLIENT4, ROUTER_IN4) as client:
            assert client.map(PORT, suggested=PORT + 1).result == 0
            # By two runs: a second question of one run leaves from another port.
            assert natdiscovery(lab, "-m", "-l", str(PORT)) == ["NAT with Endpoint Independent Mapping"]
            assert natdiscovery(lab, "-f", "-l", str(PORT)) == ["NAT with Endpoint Independent Filtering"]
            client.map(0, protocol=0, lifetime=0)
    finally:
        assert gateway.stop() == 0


# --- two agents -------------------------------------------------------------------------------------------------------

FAR_NET, FAR_ROUTER_IN, FAR_CLIENT, FAR_ROUTER_OUT = "192.168.57.0/24", "192.168.57.2", "192.168.57.10", "203.0.113.3"


def put_behind_another_router(lab: Lab) -> Gateway:
    """Move the second client behind a router of its own, with a gateway on it: the role "upper"."""
    names = {role: lab.ns(role) for role in ("upper", "outside", "client2")}
    namespaces.add(names["upper"])
    lab.run("upper", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    lab.run("client2", ["ip", "link", "del", "eth0"])
    link = ["ip", "link", "add"]
    lab.run("upper", [*link, "eth0", "type", "veth", "peer", "name", "p3", "netns", names["outside"]])
    lab.run("upper", [*link, "eth1", "type", "veth", "peer", "name", "eth0", "netns", names["client2"]])
    lab.run("outside", ["ip", "link", "set", "p3", "master", "eth0", "up"])
    lab.run("upper", ["ip", "address", "add", f"{FAR_ROUTER_OUT}/24", "dev", "eth0"])
    lab.run("upper", ["ip", "address", "add", f"{FAR_ROUTER_IN}/24", "dev", "eth1"])
    lab.run("client2", ["ip", "address", "add", f"{FAR_CLIENT}/24", "dev", "eth0"])
    for role, device in (("upper", "lo"), ("upper", "eth0"), ("upper", "eth1"), ("client2", "eth0")):
        lab.run(role, ["ip", "link", "set", device, "up"])  # type: ignore[arg-type]
    lab.run("client2", ["ip", "route", "add", "default", "via", FAR_ROUTER_IN])
    firewall = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth1 -o eth0 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""
    lab.run("upper", ["iptables-restore"], stdin=firewall)
    config = lab.write_config(
        network={"outside": FAR_ROUTER_OUT, "inside": [FAR_NET]},
        socks={"listen": [f"{FAR_ROUTER_IN}:1080"]},
        portmap={"protocols": ["pcp"]},
        process={"workers": 1},
    )
    gateway = Gateway(lab, config, "upper")
    gateway.start()
    return gateway


@pytest.mark.skipif(find_spec("aioice") is None, reason="aioice is not installed: make setup")
def test_two_ice_agents_behind_two_gateways(tmp_path: Path) -> None:
    # Where INPUT accepts what nobody asked for, the first datagram of either side is a connection to the other router
    # itself, and what the agent behind it sends then leaves from another port: no NAT of Linux gets over that.
    with Lab(input_drop=True, logs=tmp_path) as lab, stun_server(lab):
        meet(lab)


def meet(lab: Lab) -> None:
    """Let the two agents find each other."""
    gateway, far = start(lab), put_behind_another_router(lab)
    agents = {}
    try:
        for role, part in (("inside", "controlling"), ("client2", "controlled")):
            log = lab.logs / f"ice-{part}.log"
            command = [sys.executable, AGENT, SERVER4, "3478", part]
            agents[part] = log, lab.popen(role, command, log=log, stdin=subprocess.PIPE)  # type: ignore[arg-type]

        def said(part: str, number: int) -> dict[str, object]:
            log, process = agents[part]

            def line() -> str:
                assert process.poll() is None, log.read_text()
                lines = [one for one in log.read_text().splitlines() if one.startswith("{")]
                return lines[number] if len(lines) > number else ""

            found: dict[str, object] = json.loads(lab.wait_for(line, 30, f"{part} to say something"))
            return found

        own = {part: said(part, 0) for part in agents}
        assert "typ srflx" in str(own["controlling"]["candidates"]), own
        assert "typ relay" not in str(own)  # no TURN
        for part, other in (("controlling", "controlled"), ("controlled", "controlling")):
            stdin = agents[part][1].stdin
            assert stdin is not None
            stdin.write(json.dumps(own[other]).encode() + b"\n")
            stdin.flush()
        assert said("controlling", 1) == {"heard": "I am controlled"}
        assert said("controlled", 1) == {"heard": "I am controlling"}
    finally:
        for _, process in agents.values():
            lab.stop(process)
        assert far.stop() == 0
        assert gateway.stop() == 0
