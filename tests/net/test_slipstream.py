"""NAT slipstreaming (Kamkar 2020, and its second version): a web page makes the browser say SIP. No pinhole, ever."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab

REGISTER = (
    f"REGISTER sip:evil.test;transport=TCP SIP/2.0\r\nVia: SIP/2.0/TCP {CLIENT4}:5060;branch=z9hG4bK-1\r\n"
    f"Max-Forwards: 70\r\nFrom: <sip:wuz@evil.test>;tag=1\r\nTo: <sip:wuz@evil.test>\r\nCall-ID: x\r\n"
    f"CSeq: 1 REGISTER\r\nContact: <sip:wuz@{CLIENT4}:3306>\r\nExpires: 600\r\nContent-Length: 0\r\n\r\n"
).encode()
DESCRIPTION = f"v=0\r\no=- 1 1 IN IP4 {CLIENT4}\r\ns=-\r\nc=IN IP4 {CLIENT4}\r\nt=0 0\r\nm=audio 3306 RTP/AVP 0\r\n"
INVITE = (
    f"INVITE sip:wuz@evil.test SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT4}:5060;branch=z9hG4bK-2\r\nFrom: <sip:a@b>;tag=1\r\n"
    f"To: <sip:c@d>\r\nCall-ID: y\r\nCSeq: 1 INVITE\r\nContact: <sip:wuz@{CLIENT4}:3306>\r\n"
    f"Content-Type: application/sdp\r\nContent-Length: {len(DESCRIPTION)}\r\n\r\n{DESCRIPTION}"
).encode()
OK = REGISTER.replace(b"REGISTER sip:evil.test;transport=TCP SIP/2.0", b"SIP/2.0 200 OK", 1)


@pytest.mark.parametrize("message", [REGISTER, INVITE])
def test_a_post_whose_segment_begins_with_sip(lab: Lab, gateway: Gateway, message: bytes) -> None:
    listener = lab.listen("outside", SERVER4, 5060)
    with lab.connect("inside", SERVER4, 5060) as browser:
        server, _ = listener.accept()
        server.settimeout(10)
        browser.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b"POST / HTTP/1.1\r\nHost: evil.test:5060\r\nContent-Length: 5000\r\n\r\n"
        sent = b""
        for part in (head, b"x" * (1448 - len(head)), message, b"y" * 100, message):
            browser.sendall(part)
            sent += part
            got = b""
            while len(got) < len(part):  # so the next one is a segment of its own
                got += server.recv(4096)
            assert got == part
            server.sendall(OK)
            answer = b""
            while len(answer) < len(OK):
                answer += browser.recv(4096)
            assert answer == OK
            assert gateway.admin("pinholes") == []
        server.close()
    listener.close()
    assert gateway.wait_for_log("event=alg.revoke .*sip.not-sip")


@pytest.mark.parametrize("port", [3478, 5060])
def test_a_turn_message_whose_fragment_begins_with_a_forged_header_and_sip(
    lab: Lab, gateway: Gateway, port: int
) -> None:
    """The browser's TURN client sends a long user name: the second fragment is the attacker's from its first byte."""
    with lab.enter("outside"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((SERVER4, port))
    with lab.enter("inside"):
        browser = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        browser.bind((CLIENT4, 0))
        # Without this Linux asks for the path's MTU and does not fragment.
        browser.setsockopt(socket.IPPROTO_IP, 10, 0)
    server.settimeout(5)
    forged = struct.pack(">HHHH", 5060, 5060, 8 + len(INVITE), 0) + INVITE
    stun = struct.pack(">HHI12s", 0x0003, 2000, 0x2112A442, b"transaction!")
    payload = stun + b"u" * (1480 - 8 - len(stun)) + forged
    payload += b"z" * (2980 - len(payload))
    try:
        for _ in range(3):
            browser.sendto(payload, (SERVER4, port))
            data, address = server.recvfrom(65535)
            assert data == payload
            server.sendto(OK, address)
            assert gateway.admin("pinholes") == []
        # Nor afterwards from the same socket, once it has shown that it does not speak SIP.
        if port == 5060:
            browser.sendto(INVITE, (SERVER4, port))
            data, _ = server.recvfrom(65535)
            assert data == INVITE
            assert gateway.admin("pinholes") == []
    finally:
        browser.close()
        server.close()


def test_the_same_messages_from_a_phone_do_open_pinholes(lab: Lab, gateway: Gateway) -> None:
    """What the attackers send would be believed if it were where a phone sends it: so these tests can fail."""

    def targets() -> list[str]:
        return sorted(row["target"] for row in gateway.admin("pinholes"))

    listener = lab.listen("outside", SERVER4, 5060)
    with lab.connect("inside", SERVER4, 5060) as phone:
        phone.sendall(INVITE)
        lab.wait_for(lambda: targets() == [f"{CLIENT4}:3306"], 10, "a pinhole for media")
        listener.accept()[0].close()
    lab.wait_for(lambda: targets() == [], 10, "its end")
    listener.close()
    with lab.enter("inside"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((CLIENT4, 0))
        datagrams.sendto(REGISTER, (SERVER4, 5060))
        lab.wait_for(lambda: f"{CLIENT4}:5060" in targets(), 10, "a pinhole for signalling")
