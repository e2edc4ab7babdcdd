"""SIP through SOCKS UDP ASSOCIATE under other configurations: what is not read, limits, idle associations."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT4,
    CLIENT6,
    ROUTER_IN4,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    Lab,
)
from tests.net.socks_wire import ask5
from tests.net.test_sip import Media, pinholes, rows, split
from tests.net.test_sip_addresses import Server, message, sdp
from tests.net.test_sip_associate import MEDIA, SERVER_MEDIA, SIP, Phone, hears
from tests.net.udp_client import UDP, Client, associate, udp

IDLE = 3.0


@contextlib.contextmanager
def running(lab: Lab, **sections: Any) -> Iterator[tuple[Gateway, Phone]]:
    """A gateway of its own, and a phone with a server."""
    gateway = lab.start_gateway(lab.write_config(process={"workers": 1}, **sections))
    server = Server(lab)
    try:
        phone = Phone(lab, server)
        try:
            yield gateway, phone
        finally:
            phone.client.close()
    finally:
        server.end.close()
        assert gateway.stop() == 0, lab.tail_of_logs()


@pytest.mark.parametrize(
    "section",
    [{"mode": "off"}, {"transports": ["tcp"]}, {"ports": [5070]}, {"stand_down": [SERVER4]}, {"mode": "observe"}],
    ids=lambda section: next(iter(section)) + "-" + str(next(iter(section.values()))).strip("[]'"),
)
def test_what_is_not_to_be_changed(lab: Lab, section: dict[str, Any]) -> None:
    """Byte for byte, and nothing is opened; "observe" shows what would be."""
    with running(lab, alg={"sip": section}) as (gateway, phone):
        invite = phone.request("INVITE", 1, body=sdp(CLIENT4, MEDIA))
        phone.send(invite)
        assert phone.server.answer().encode() == invite
        assert f"Contact: <sip:ann@{phone.own};x=Y>".encode() in phone.receive()
        [association] = gateway.admin("pinholes")
        assert association["reason"] == "socks.udp"
        shown = [row for row in gateway.admin("trace") if row["data"].startswith("INVITE ")]
        if section.get("mode") == "observe":
            assert f"Contact: <sip:ann@{association['public']};x=Y>" in shown[0]["after"]
            assert "m=audio 0 RTP/AVP 0" in shown[0]["after"]
            assert gateway.admin("calls") != []
        elif "stand_down" in section:
            assert shown[0]["edits"] == []
        else:
            assert shown == []


def test_without_kernel_pinholes_the_signalling_is_repaired(lab: Lab) -> None:
    """The description passes as it is: media have no way. Who is called is reached all the same."""
    with running(lab, pinhole={"backend": "userspace"}) as (_, phone):
        got = phone.ask("INVITE", 1, body=sdp(CLIENT4, MEDIA))
        assert got.endswith(sdp(CLIENT4, MEDIA))
        assert f"Contact: <sip:ann@{ROUTER_OUT4}:" in got


def test_quotas_hold(lab: Lab) -> None:
    """A pair of ports too many: the description passes as it is, and the call goes on."""
    with running(lab, pinhole={"per_client": 2}) as (_, phone):
        streams = "".join(f"m=audio {port} RTP/AVP 0\r\n" for port in range(MEDIA + 2, MEDIA + 12, 2))
        body = sdp(CLIENT4, MEDIA) + streams
        assert phone.ask("INVITE", 1, body=body).endswith(body)
        phone.hang_up(2)


def test_a_flood_passes_as_it_is(lab: Lab) -> None:
    rate = 20
    with running(lab, alg={"sip": {"rate": rate}}) as (gateway, phone):
        phone.ask("OPTIONS", 1)
        [association] = gateway.admin("pinholes")
        got = []
        for number in range(200):
            phone.send(phone.request("OPTIONS", 100 + number))
            got.append(phone.server.end.hears(2) or b"")
        untouched = [data for data in got if phone.own.encode() in data]
        repaired = [data for data in got if association["public"].encode() in data]
        assert len(untouched) + len(repaired) == 200
        assert len(untouched) > 100
        assert rate <= len(repaired) < 100


def test_an_idle_association_takes_its_calls_along_and_one_with_media_is_not_idle(lab: Lab) -> None:
    with running(lab, socks={"udp_idle_timeout": IDLE}) as (gateway, phone):
        ends = Media(lab, "inside", CLIENT4, MEDIA), Media(lab, "outside", SERVER4, SERVER_MEDIA)
        public = phone.call(1)
        lab.wait_for(lambda: hears(ends, public), 3, "media from outside")
        until = time.monotonic() + 2 * IDLE + 1
        while time.monotonic() < until:  # nobody signals, but they speak
            assert hears(ends, public)
            time.sleep(0.2)
        assert len(pinholes(gateway, "sip.rtp")) == 1
        lab.wait_for(lambda: gateway.admin("pinholes") == [], 2 * IDLE + 2, "the association to end")
        assert not hears(ends, public)
        assert rows(gateway, "flows") == []
        for end in ends:
            end.close()


def test_a_client_that_is_found_by_its_hint_is_read_from_then_on(lab: Lab) -> None:
    """Another program was faster; what the rightful one says is repaired for it, and the other one's call is over."""
    with running(lab) as (gateway, other):
        control = lab.connect("inside", ROUTER_IN4, 1080)
        hinted = udp(lab, "inside", CLIENT4)
        code, host, port = ask5(control, CLIENT4, hinted.getsockname()[1], UDP)
        assert code == 0
        first = Client(control, udp(lab, "inside", CLIENT4), (host, port))
        other.client.close()
        other.client, other.own = first, "{}:{}".format(*first.sock.getsockname())
        other.call(1)
        assert len(pinholes(gateway, "sip.rtp")) == 1
        rightful = Phone.__new__(Phone)
        rightful.client, rightful.server = Client(control, hinted, (host, port)), other.server
        rightful.own = "{}:{}".format(*hinted.getsockname())
        rightful.ask("OPTIONS", 1)
        lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 2, "the media of the other one to close")
        first.sock.close()
        rightful.client.close()


def test_open_answers_are_read_as_well(lab: Lab) -> None:
    """Where anybody may answer, a call may come from a server that was not written to; it names the client's socket."""
    with running(lab, socks={"udp_answers": "open"}) as (gateway, phone):
        phone.ask("OPTIONS", 1)
        [association] = gateway.admin("pinholes")
        another = Media(lab, "stranger", STRANGER4, SIP)
        request = phone.request("OPTIONS", 2).replace(b"near", b"elsewhere")
        line = request.partition(b"\r\n")[0]
        to_public = f"OPTIONS sip:ann@{association['public']} SIP/2.0".encode()
        another.send(split(association["public"]), request.replace(line, to_public))
        host, port, data = phone.client.receive()
        assert (host, port) == (STRANGER4, SIP)
        assert data == request.replace(line, f"OPTIONS sip:ann@{phone.own} SIP/2.0".encode())
        another.close()


@pytest.mark.parametrize("version", [6, 4], ids=["IPv6", "IPv4 to IPv6"])
def test_ipv6(lab: Lab, version: int) -> None:
    """Both in IPv6: media too. From an IPv4 client to an IPv6 server: it is called back, and its description stays."""
    gateway = lab.start_gateway(lab.write_config(process={"workers": 1}))
    server, client = udp(lab, "outside", SERVER6, SIP), associate(lab, version)
    try:
        address, literal = (CLIENT6, f"[{CLIENT6}]") if version == 6 else (CLIENT4, CLIENT4)
        own = f"{literal}:{client.sock.getsockname()[1]}"
        family = f"IP{version}"
        body = (
            f"v=0\r\no=- 1 1 IN {family} {address}\r\ns=-\r\nc=IN {family} {address}\r\nt=0 0\r\n"
            "m=audio 4000 RTP/AVP 0\r\n"
        )
        lines = [
            f"Via: SIP/2.0/UDP {own};branch=z9hG4bK1",
            "From: <sip:ann@example.test>;tag=near",
            "To: <sip:bob@example.test>",
            "Call-ID: six",
            "CSeq: 1 INVITE",
            f"Contact: <sip:ann@{own}>",
        ]
        invite = message("INVITE sip:bob@example.test SIP/2.0", lines, body)
        client.send(SERVER6, SIP, invite)
        data, seen = server.recvfrom(8192)
        [association] = [row for row in gateway.admin("pinholes") if row["reason"] == "socks.udp"]
        assert association["public"] == f"[{ROUTER_OUT6}]:{seen[1]}"
        head, _, description = data.decode().partition("\r\n\r\n")
        assert f"Via: SIP/2.0/UDP {association['public']};branch=z9hG4bK1\r\n" in head
        assert f"Contact: <sip:ann@{association['public']}>\r\n" in head
        if version == 6:
            assert f"c=IN IP6 {ROUTER_OUT6}\r\n" in description
        else:
            assert description == body
        server.sendto(data.replace(b"INVITE sip:bob@example.test SIP/2.0", b"SIP/2.0 486 Busy Here", 1), seen)
        _, _, answer = client.receive()
        assert f"Via: SIP/2.0/UDP {own};branch=z9hG4bK1\r\n" in answer.decode()
        assert f"Contact: <sip:ann@{own}>\r\n" in answer.decode()
    finally:
        client.close()
        server.close()
        assert gateway.stop() == 0, lab.tail_of_logs()
