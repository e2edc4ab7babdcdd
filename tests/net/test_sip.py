"""SIP over UDP through the NAT: real peers (Kamailio, SIPp), real media, and who does not get in."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.cli.live import collect
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.lab.sip_peers import Kamailio, Sipp, sipp, succeeds
from tests.lab.sip_text import streams
from tests.net.socks_wire import ask5

PROXY = f"{SERVER4}:5060"
PHONE = f"{CLIENT4}:5060"
FAR = f"{SERVER4}:5070"


@pytest.fixture(scope="module")
def kamailio(lab: Lab, gateway: Gateway) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4)
    yield kamailio
    kamailio.stop()


@pytest.fixture
def far(lab: Lab, kamailio: Kamailio) -> None:
    """A phone outside, "bob", is registered with the proxy."""
    succeeds(lab, sipp(lab, "outside", "register", local=FAR, remote=PROXY, options=["-s", "bob"]))


@pytest.fixture
def near(lab: Lab, kamailio: Kamailio) -> Sipp:
    """The phone inside, "ann", has registered with the proxy."""
    return succeeds(lab, sipp(lab, "inside", "register", local=PHONE, remote=PROXY, options=["-s", "ann"]))


def rows(gateway: Gateway, verb: str) -> list[dict[str, Any]]:
    """As `algate VERB --json` shows them, without a process that takes half a second of a short call."""
    return collect(str(gateway.config), verb)


def pinholes(gateway: Gateway, reason: str) -> list[dict[str, Any]]:
    """Those that somebody may come through: a call that failed keeps its port for a while, for nobody."""
    return [row for row in rows(gateway, "pinholes") if row["reason"] == reason and row["peer"] != ""]


def confirmed(gateway: Gateway) -> list[dict[str, Any]]:
    return [call for call in rows(gateway, "calls") if call["state"] == "confirmed"]


class Media:
    """Sockets for RTP: one of the inside phone, one of a peer outside."""

    def __init__(self, lab: Lab, role: Any, address: str, port: int) -> None:
        with lab.enter(role):
            self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind((address, port))
        self.socket.settimeout(2)

    def send(self, to: tuple[str, int], data: bytes = b"\x80rtp") -> None:
        self.socket.sendto(data, to)

    def hears(self, timeout: float = 0.4) -> bytes | None:
        self.socket.settimeout(timeout)
        with contextlib.suppress(TimeoutError):
            return self.socket.recv(2048)
        return None

    def close(self) -> None:
        self.socket.close()


def split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


def test_a_registration_shows_the_public_address_outside_and_the_own_one_inside(
    lab: Lab, gateway: Gateway, near: Sipp
) -> None:
    (signalling,) = pinholes(gateway, "sip.signalling")
    assert signalling["target"] == PHONE
    assert signalling["peer"] == SERVER4
    assert split(signalling["public"])[0] == ROUTER_OUT4
    answer = near.received("SIP/2.0 200")[-1]
    assert f"Contact: <sip:ann@{PHONE}>" in answer
    assert f"Via: SIP/2.0/UDP {PHONE};branch=" in answer
    assert ROUTER_OUT4 not in answer


def test_a_call_to_the_outside_with_media_both_ways(lab: Lab, gateway: Gateway, near: Sipp, far: None) -> None:
    callee = sipp(lab, "outside", "uas", local=FAR, audio=9100)
    caller = sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=["-s", "bob", "-d", "3000"])
    lab.wait_for(lambda: confirmed(gateway), 10, "the call" + lab.tail_of_logs())
    (media,) = pinholes(gateway, "sip.rtp")
    assert media["peer"] == SERVER4
    public = split(media["public"])
    phone = Media(lab, "inside", CLIENT4, split(media["target"])[1])
    peer = Media(lab, "outside", SERVER4, 9100)
    stranger = Media(lab, "stranger", STRANGER4, 9100)
    try:
        phone.send((SERVER4, 9100), b"from inside")
        assert peer.hears() == b"from inside"
        peer.send(public, b"from outside")
        assert phone.hears() == b"from outside"
        stranger.send(public, b"from a stranger")
        assert phone.hears() is None
        (call,) = confirmed(gateway)
        assert call["duration"] >= 0
        assert "bob@example.test" in call["callee"]
        (stream,) = call["media"]
        assert (stream["packets_in"], stream["packets_out"]) == (1, 1)
        succeeds(lab, caller, callee)
        assert pinholes(gateway, "sip.rtp") == []
        peer.send(public, b"after the BYE")
        assert phone.hears() is None
        assert confirmed(gateway) == []
    finally:
        for end in (phone, peer, stranger):
            end.close()


def test_a_call_from_the_outside_comes_to_the_phone(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    callee = sipp(lab, "inside", "uas", local=PHONE)
    caller = sipp(lab, "outside", "uac", local=f"{SERVER4}:5071", remote=PROXY, options=["-s", "ann", "-d", "300"])
    succeeds(lab, caller, callee)
    invite = callee.received("INVITE ")[0]
    assert invite.startswith(f"INVITE sip:ann@{PHONE} SIP/2.0")
    assert ROUTER_OUT4 not in invite
    answer = caller.received("SIP/2.0 200")[0]
    assert CLIENT4 not in answer


def test_a_strangers_invite_does_not_arrive(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    (signalling,) = pinholes(gateway, "sip.signalling")
    phone = Media(lab, "inside", CLIENT4, 5060)
    stranger = Media(lab, "stranger", STRANGER4, 5060)
    stranger.send(split(signalling["public"]), b"INVITE sip:ann@203.0.113.2 SIP/2.0\r\n\r\n")
    assert phone.hears() is None
    registrar = Media(lab, "outside", SERVER4, 5072)
    registrar.send(split(signalling["public"]), b"OPTIONS sip:ann@203.0.113.2 SIP/2.0\r\n\r\n")
    assert phone.hears() == b"OPTIONS sip:ann@203.0.113.2 SIP/2.0\r\n\r\n"
    for end in (phone, stranger, registrar):
        end.close()


def test_two_phones_inside_that_call_each_other_hear_each_other(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    """Both know the other by the proxy only; each is told the other's own address for media (hairpin)."""
    other = f"{CLIENT2_4}:5060"
    succeeds(lab, sipp(lab, "client2", "register", local=other, remote=PROXY, options=["-s", "carol"]))
    callee = sipp(lab, "client2", "uas", local=other, audio=9200)
    caller = sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=["-s", "carol", "-d", "1500"])
    lab.wait_for(lambda: len(confirmed(gateway)) == 2, 10, "the call, seen at both" + lab.tail_of_logs())
    ends: dict[str, Media] = {}
    for role, said in (("inside", callee.received("INVITE ")[0]), ("client2", caller.received("SIP/2.0 200")[0])):
        (found,) = streams(said) or []
        ends[role] = Media(lab, role, found.host, found.rtp)
        assert f"c=IN IP4 {ROUTER_OUT4}" not in said
    assert [ends[role].socket.getsockname() for role in ends] == [(CLIENT4, 9000), (CLIENT2_4, 9200)]
    assert pinholes(gateway, "sip.rtp") == [], "nobody outside may send"
    ends["inside"].send((CLIENT2_4, 9200), b"from ann")
    assert ends["client2"].hears() == b"from ann"
    ends["client2"].send((CLIENT4, 9000), b"from carol")
    assert ends["inside"].hears() == b"from carol"
    succeeds(lab, caller, callee)
    for end in ends.values():
        end.close()
    assert confirmed(gateway) == []


def test_a_phone_that_asks_where_it_is_seen_reads_its_own_address(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    """The proxy writes what it sees into received and rport (RFC 3581)."""
    phone = Media(lab, "inside", CLIENT4, 5080)
    bound = f"{CLIENT4}:5080"
    options = request("OPTIONS", "sip:example.test", 1, bound, "<sip:example.test>").replace(
        b"SIP/2.0/TCP", b"SIP/2.0/UDP"
    )
    phone.send((SERVER4, 5060), options)
    answer = (phone.hears(5) or b"").decode()
    assert answer.startswith("SIP/2.0 200")
    assert f"Via: SIP/2.0/UDP {bound};branch=z9hG4bK-OPTIONS-1;rport=5080;received={CLIENT4}\r\n" in answer
    assert ROUTER_OUT4 not in answer
    phone.close()


def test_a_call_that_is_given_up_leaves_nothing(lab: Lab, gateway: Gateway, near: Sipp, far: None) -> None:
    callee = sipp(lab, "outside", "uas-cancel", local=FAR)
    succeeds(lab, sipp(lab, "inside", "uac-cancel", local=PHONE, remote=PROXY, options=["-s", "bob"]), callee)
    lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 10, "the media to close")
    assert confirmed(gateway) == []


def test_hold_the_old_and_the_new_way_keeps_the_port(lab: Lab, gateway: Gateway, near: Sipp, far: None) -> None:
    callee = sipp(lab, "outside", "uas-hold", local=FAR, audio=9100)
    caller = sipp(lab, "inside", "uac-hold", local=PHONE, remote=PROXY, options=["-s", "bob", "-d", "200"])
    succeeds(lab, caller, callee)
    offers = callee.received("INVITE ")
    ports = [line.split()[1] for offer in offers for line in offer.splitlines() if line.startswith("m=audio")]
    assert len(ports) == 5
    assert len(set(ports)) == 1
    connections = [line for offer in offers for line in offer.splitlines() if line.startswith("c=")]
    assert connections[1] == "c=IN IP4 0.0.0.0"
    assert set(connections) == {"c=IN IP4 0.0.0.0", f"c=IN IP4 {ROUTER_OUT4}"}
    assert pinholes(gateway, "sip.rtp") == []


def test_several_calls_that_start_together(lab: Lab, gateway: Gateway, near: Sipp, far: None) -> None:
    callee = sipp(lab, "outside", "uas", local=FAR, calls=8)
    options = ["-s", "bob", "-d", "500", "-r", "80", "-l", "8"]
    succeeds(lab, sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, calls=8, options=options), callee)
    assert confirmed(gateway) == []


def read_message(sock: socket.socket, beginning: bytes) -> str:
    """The next message that begins so, from a stream of messages; others are passed over."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            chunk = sock.recv(4096)
            assert chunk, data
            data += chunk
        head, _, rest = data.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        while len(rest) < length:
            rest += sock.recv(4096)
        message, data = head + b"\r\n\r\n" + rest[:length], rest[length:]
        if message.startswith(beginning):
            return message.decode()


def request(method: str, uri: str, number: int, own: str, to: str, extra: str = "", body: str = "") -> bytes:
    return (
        f"{method} {uri} SIP/2.0\r\nVia: SIP/2.0/TCP {own};branch=z9hG4bK-{method}-{number};rport\r\n"
        f"Max-Forwards: 70\r\nFrom: <sip:ann@example.test>;tag=t1\r\nTo: {to}\r\nCall-ID: over-tcp@{own}\r\n"
        f"CSeq: {number} {method}\r\nContact: <sip:ann@{own};transport=tcp>\r\n{extra}"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


@pytest.mark.parametrize("way", ["transparent", "socks"])
def test_a_call_over_tcp_in_many_segments(lab: Lab, gateway: Gateway, far: None, way: str) -> None:
    callee = sipp(lab, "outside", "uas", local=FAR, audio=9100)
    where = (ROUTER_IN4, 1080) if way == "socks" else (SERVER4, 5060)
    with lab.connect("inside", *where) as phone:
        if way == "socks":
            assert ask5(phone, SERVER4, 5060)[0] == 0
        phone.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        own = "{}:{}".format(*phone.getsockname())
        offer = f"v=0\r\no=- 1 1 IN IP4 {CLIENT4}\r\ns=-\r\nc=IN IP4 {CLIENT4}\r\nt=0 0\r\nm=audio 9300 RTP/AVP 0\r\n"
        bob = "<sip:bob@example.test>"
        invite = request("INVITE", bob[1:-1], 1, own, bob, "Content-Type: application/sdp\r\n", offer)
        for at in range(0, len(invite), 40):
            phone.sendall(invite[at : at + 40])
        answer = read_message(phone, b"SIP/2.0 200")
        assert f"Via: SIP/2.0/TCP {own};" in answer
        lines = answer.splitlines()
        to = next(line for line in lines if line.startswith("To:"))[4:]
        passed = ",".join(line[13:] for line in lines if line.startswith("Record-Route:")).split(",")
        route = f"Route: {','.join(reversed(passed))}\r\n"
        target = next(line for line in lines if line.startswith("Contact:"))[9:].strip("<>")
        phone.sendall(request("ACK", target, 1, own, to, route))
        (media,) = lab.wait_for(lambda: pinholes(gateway, "sip.rtp"), 10, "the media" + lab.tail_of_logs())
        assert media["peer"] == SERVER4
        assert media["target"] == f"{CLIENT4}:9300"
        near_media, far_media = Media(lab, "inside", CLIENT4, 9300), Media(lab, "outside", SERVER4, 9100)
        far_media.send(split(media["public"]), b"from outside")
        assert near_media.hears() == b"from outside"
        near_media.send((SERVER4, 9100), b"from inside")
        assert far_media.hears() == b"from inside"
        phone.sendall(request("BYE", target, 2, own, to, route))
        read_message(phone, b"SIP/2.0 200")
        succeeds(lab, callee)
        lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 10, "the media to close")
        near_media.close()
        far_media.close()
    offered = callee.received("INVITE ")[0]
    assert CLIENT4 not in offered.partition("\n\n")[2]
    assert f"m=audio {split(media['public'])[1]} RTP/AVP 0" in offered


def test_a_packets_process_that_dies_is_replaced(lab: Lab, gateway: Gateway, near: Sipp, far: None) -> None:
    supervisor = next(row for row in gateway.admin("status") if row["process"] == "supervisor")
    before = supervisor["children"]["packets"]["pid"]
    os.kill(before, signal.SIGKILL)

    def replaced() -> bool:
        rows = {row["process"]: row for row in gateway.admin("status")}
        return "packets" in rows and rows["packets"]["pid"] != before

    lab.wait_for(replaced, 10, "another packets process")
    succeeds(lab, sipp(lab, "inside", "register", local=PHONE, remote=PROXY, options=["-s", "ann"]))
    callee = sipp(lab, "outside", "uas", local=FAR)
    succeeds(lab, sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=["-s", "bob", "-d", "100"]), callee)
