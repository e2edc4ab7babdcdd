"""A router that offloads what it forwards (a flowtable): SIP and media are kept out of it, all else is offloaded.

Needs a kernel with nf_flow_table: `make emulated` has one.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, PATIENCE, ROUTER_OUT6, SERVER4, SERVER6, Lab
from tests.net.ftp_control import Control, fails, port_command
from tests.net.test_sip import Media, pinholes, split
from tests.net.test_sip_seen import OFFER, Wire

FLOWTABLE = """table inet fast {
	flowtable f {
		hook ingress priority 0
		devices = { eth0, eth1 }
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		meta l4proto { tcp, udp } flow add @f
	}
}
"""
OTHER = 7777  # a UDP port of nobody


@pytest.fixture(scope="module", autouse=True)
def _a_kernel_that_can(lab: Lab) -> None:
    if lab.run("router", ["nft", "--check", "-f", "-"], stdin=FLOWTABLE, check=False).returncode:
        pytest.skip("this kernel has no flowtables")


@pytest.fixture
def flowtable(lab: Lab, gateway: Gateway) -> Iterator[None]:
    """Somebody else's, which comes when the gateway runs."""
    lab.run("router", ["nft", "-f", "-"], stdin=FLOWTABLE)
    yield
    lab.run("router", ["nft", "delete", "table", "inet", "fast"])
    lab.run("router", ["conntrack", "-F"])


def connections(lab: Lab, family: str = "ipv4") -> list[str]:
    return lab.run("router", ["conntrack", "-L", "-f", family], check=False).stdout.splitlines()


def offloaded(lab: Lab, port: int, family: str = "ipv4") -> bool:
    """Whether a connection with this port has left the rules behind."""
    return any(re.search(rf"[sd]port={port}\b", line) and "[OFFLOAD]" in line for line in connections(lab, family))


def kept_aside(lab: Lab, gateway: Gateway) -> bool:
    return "chain aside" in lab.run("router", ["nft", "list", "ruleset"]).stdout


def finding(gateway: Gateway) -> dict[str, str]:
    found = json.loads(gateway.algate("doctor", "--json", check=False).stdout)
    finding: dict[str, str] = next(finding for finding in found if finding["check"] == "flow offload")
    return finding


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_call_is_read_to_its_end_and_everything_else_is_offloaded(
    lab: Lab, gateway: Gateway, flowtable: None, transport: str
) -> None:
    lab.wait_for(lambda: kept_aside(lab, gateway), 10, "the broker to keep its flows out of it")
    far, near = Media(lab, "outside", SERVER4, OTHER), Media(lab, "inside", CLIENT4, OTHER)
    wire = Wire(lab, transport)
    phone, peer = Media(lab, "inside", CLIENT4, 4000), Media(lab, "outside", SERVER4, 9100)
    try:
        for _ in range(4):
            near.send((SERVER4, OTHER))
            far.socket.settimeout(5)
            _, source = far.socket.recvfrom(64)
            far.send(source[:2])
            assert near.hears(5)
        assert offloaded(lab, OTHER), connections(lab)

        for number in range(100, 106):
            wire.ask("OPTIONS", number)  # each answer is put back, or `ask` fails
        wire.ask("INVITE", 1, OFFER)
        (media,) = lab.wait_for(lambda: pinholes(gateway, "sip.rtp"), 10, "the media's pinhole")
        public = split(media["public"])
        for _ in range(6):
            phone.send((SERVER4, 9100), b"out")
            assert peer.hears(5) == b"out"
            peer.send(public, b"in")
            assert phone.hears(5) == b"in"
        assert not offloaded(lab, 5060), connections(lab)
        assert not offloaded(lab, 9100), connections(lab)
        wire.ask("BYE", 2)
        lab.wait_for(lambda: not pinholes(gateway, "sip.rtp"), 10, "the end of the call")
        peer.send(public, b"after the end")
        assert phone.hears(1) is None
    finally:
        wire.close()
        for end in (far, near, phone, peer):
            end.close()


def test_doctor_says_what_to_add_for_ipv6_and_that_serves(lab: Lab, gateway: Gateway, flowtable: None) -> None:
    lab.wait_for(lambda: kept_aside(lab, gateway), 10, "the broker to keep its flows out of it")
    found = finding(gateway)
    assert found["status"] == "warning"
    assert "inet fast f: SIP over UDP over IPv6" in found["detail"]
    condition = shlex.split(found["remedy"].partition("before it: ")[2])
    lab.run("router", ["nft", "flush", "chain", "inet", "fast", "forward"])
    rule = ["meta", "l4proto", "{ tcp, udp }", *condition, "flow", "add", "@f"]
    lab.run("router", ["nft", "add", "rule", "inet", "fast", "forward", *rule])
    with lab.enter("outside"):
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        server.bind((SERVER6, 5060))
    with lab.enter("inside"):
        phone = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        phone.bind((CLIENT6, 5060))
    with server, phone:
        for end in (server, phone):
            end.settimeout(5)
        for number in range(1, 7):
            lines = [
                f"OPTIONS sip:bob@[{SERVER6}] SIP/2.0",
                f"Via: SIP/2.0/UDP [{CLIENT6}]:5060;branch=z9hG4bK{number}",
                "From: <sip:ann@example.test>;tag=near",
                "To: <sip:bob@example.test>",
                "Call-ID: six",
                f"CSeq: {number} OPTIONS",
                f"Contact: <sip:ann@[{CLIENT6}]:5060>",
                "Content-Length: 0",
                "",
                "",
            ]
            phone.sendto("\r\n".join(lines).encode(), (SERVER6, 5060))
            data, source = server.recvfrom(4096)
            assert f"[{ROUTER_OUT6}]:".encode() in data
            assert CLIENT6.encode() not in data
            head = b"SIP/2.0 200 OK\r\n" + data.partition(b"\r\n")[2]
            server.sendto(head, source)
            assert lines[1].encode() in phone.recv(4096)
        assert not offloaded(lab, 5060, "ipv6"), connections(lab, "ipv6")


def test_a_pinhole_of_ftp_serves_once_and_its_bytes_pass_by_all_rules(
    lab: Lab, gateway: Gateway, flowtable: None
) -> None:
    """Data connections are offloaded as any other; what the gateway reads and relays itself is not forwarded at all."""
    with lab.listen("outside", SERVER4, 21) as listener:
        control = Control(lab, SERVER4)
        server, _ = listener.accept()
    server.settimeout(PATIENCE * 10)
    server.sendall(b"220 ready\r\n")
    assert control.reply() == "220 ready"
    with lab.listen("inside", CLIENT4) as near, lab.listen("outside", SERVER4) as passive:
        control.send(port_command(CLIENT4, near.getsockname()[1]))
        public = split(re.sub(r"^PORT (.*),(\d+),(\d+)\r\n$", _endpoint, server.recv(100).decode()))
        server.sendall(b"200 fine\r\n")
        assert control.reply() == "200 fine"
        far, inner = lab.connect("outside", *public), near.accept()[0]
        assert _back_and_forth(far, inner) == _back_and_forth(inner, far)
        assert offloaded(lab, public[1]), connections(lab)
        assert fails(lab, "outside", public)

        control.send(b"PASV\r\n")
        assert server.recv(100) == b"PASV\r\n"
        server.sendall(b"227 (" + port_command(SERVER4, passive.getsockname()[1])[5:-2] + b")\r\n")
        assert control.reply().startswith("227 ")
        outward, arrived = lab.connect("inside", *passive.getsockname()), passive.accept()[0]
        assert _back_and_forth(outward, arrived) == _back_and_forth(arrived, outward)
        assert offloaded(lab, passive.getsockname()[1]), connections(lab)

        control.send(port_command(CLIENT4, near.getsockname()[1]))
        public = split(re.sub(r"^PORT (.*),(\d+),(\d+)\r\n$", _endpoint, server.recv(100).decode()))
        control.send(port_command("198.51.100.99", 4000))  # of a third host: this flow opens nothing any more
        lab.wait_for(lambda: not pinholes(gateway, "ftp.port"), 10, "what is unused to close")
        assert fails(lab, "outside", public)
        assert not offloaded(lab, 21), connections(lab)
        assert _back_and_forth(far, inner) == _back_and_forth(inner, far)  # what runs goes on
    for sock in (far, inner, outward, arrived, control.socket, server):
        sock.close()


def _endpoint(found: re.Match[str]) -> str:
    return f"{found[1].replace(',', '.')}:{int(found[2]) * 256 + int(found[3])}"


def _back_and_forth(one: socket.socket, other: socket.socket) -> bytes:
    """Many packets, so that they could be offloaded; what arrived."""
    data = bytes(range(256)) * 40
    one.sendall(data)
    other.settimeout(PATIENCE * 10)
    heard = b""
    while len(heard) < len(data):
        heard += (part := other.recv(65536))
        assert part
    assert heard == data
    return heard


def test_one_that_goes_offloads_nothing_of_ours(lab: Lab, gateway: Gateway, flowtable: None) -> None:
    """The rules that keep us aside stay, whoever takes the flowtable away and brings it back."""
    lab.wait_for(lambda: kept_aside(lab, gateway), 10, "the broker to keep its flows out of it")
    lab.run("router", ["nft", "delete", "table", "inet", "fast"])
    lab.run("router", ["nft", "-f", "-"], stdin=FLOWTABLE)
    wire = Wire(lab, "udp")
    try:
        for number in range(100, 106):
            wire.ask("OPTIONS", number)
        assert not offloaded(lab, 5060), connections(lab)
    finally:
        wire.close()
