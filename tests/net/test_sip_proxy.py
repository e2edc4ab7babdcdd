"""What algate is compared with: calls through Kamailio and rtpengine on the router, as the benchmark has them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, Lab
from tests.lab.sip_proxy import RTPENGINE, OutboundProxy
from tests.net.test_sip import Media
from tests.net.test_sip_addresses import message, offered, sdp

pytestmark = pytest.mark.skipif(not RTPENGINE, reason="rtpengine is not on PATH")
HEAD = ["From: <sip:ann@example.test>;tag=near", "Call-ID: call", f"Contact: <sip:ann@{CLIENT4}>", "Max-Forwards: 70"]


@pytest.fixture
def proxy(lab: Lab) -> Iterator[OutboundProxy]:
    proxy = OutboundProxy(lab)
    yield proxy
    proxy.stop()


def hears(end: Media, first: str) -> str:
    """The next message that begins so; those before it are left."""
    while (heard := end.hears(5)) is not None:
        text = heard.decode()
        if text.startswith(first):
            return text
    raise AssertionError(f"no {first}")


def of(text: str, *names: str) -> list[str]:
    """The lines of these headers."""
    return [line for line in text.split("\r\n") if line.partition(":")[0] in names]


def ports(lab: Lab) -> list[str]:
    """rtpengine's sockets for media."""
    lines = lab.run("router", ["ss", "-Haunp"]).stdout.splitlines()
    return [line for line in lines if '"rtpengine"' in line and ":2223" not in line]


def test_a_call_and_its_media(lab: Lab, proxy: OutboundProxy) -> None:
    phone, near = Media(lab, "inside", CLIENT4, 5060), Media(lab, "inside", CLIENT4, 4000)
    server, far = Media(lab, "outside", SERVER4, 5060), Media(lab, "outside", SERVER4, 9100)
    via = f"Via: SIP/2.0/UDP {CLIENT4};branch=z9hG4bK"
    try:
        lines = [via + "1", f"Route: <sip:{proxy.address};lr>", "To: <sip:bob@example.test>", "CSeq: 1 INVITE", *HEAD]
        invite = message(f"INVITE sip:bob@{SERVER4} SIP/2.0", lines, sdp(CLIENT4, 4000))
        phone.send((proxy.address, 5060), invite)
        asked = hears(server, "INVITE")
        outside = offered(asked)
        assert outside[0] == ROUTER_OUT4
        assert CLIENT4 not in asked.partition("\r\n\r\n")[2]
        back = of(asked, "Via", "Record-Route", "From", "Call-ID", "CSeq")
        to = "To: <sip:bob@example.test>;tag=far"
        answer = [*back, to, f"Contact: <sip:bob@{SERVER4}>"]
        server.send((ROUTER_OUT4, 5060), message("SIP/2.0 200 OK", answer, sdp(SERVER4, 9100)))
        answered = hears(phone, "SIP/2.0 200")
        inside = offered(answered)
        assert inside[0] == ROUTER_IN4
        assert of(answered, "Via") == [via + "1"]

        far.send(outside, b"\x80\0from outside")
        assert near.hears(2) == b"\x80\0from outside"
        near.send(inside, b"\x80\0from inside")
        assert far.hears(2) == b"\x80\0from inside"

        assert len(ports(lab)) == 4
        route = [f"Route: {line.partition(': ')[2]}" for line in reversed(of(answered, "Record-Route"))]
        assert [re.findall(r"sip:([0-9.]+)", line) for line in route] == [[ROUTER_IN4], [ROUTER_OUT4]]
        bye = [via + "2", *route, to, "CSeq: 2 BYE", *HEAD]
        phone.send((proxy.address, 5060), message(f"BYE sip:bob@{SERVER4} SIP/2.0", bye))
        ended = hears(server, "BYE")
        assert len(of(ended, "Via")) == 2
        assert of(ended, "Route") == []
        lab.wait_for(lambda: ports(lab) == [], 3, "rtpengine to close its ports")
    finally:
        for end in (phone, near, server, far):
            end.close()


def test_nobody_outside_uses_it(lab: Lab, proxy: OutboundProxy) -> None:
    with_route = ["Via: SIP/2.0/UDP " + SERVER4 + ";branch=z9hG4bK1", f"Route: <sip:{ROUTER_OUT4};lr>"]
    server = Media(lab, "outside", SERVER4, 5060)
    try:
        lines = [*with_route, "To: <sip:ann@example.test>", "CSeq: 1 INVITE", *HEAD]
        server.send((ROUTER_OUT4, 5060), message(f"INVITE sip:ann@{CLIENT4} SIP/2.0", lines, sdp(SERVER4, 9100)))
        assert hears(server, "SIP/2.0 403")
    finally:
        server.close()
