"""Requests of a UDP phone that go over TCP for their length alone (RFC 3261, 18.1.1): whoever reads their Contact
reaches the phone over UDP, whatever the stack writes and from whatever port its connection comes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.lab.first_media import message, udp
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab

OWN = 5062  # the phone's UDP port
PUBLIC = re.compile(rb"^Contact: <sip:ann@([0-9.]+):([0-9]+)", re.MULTILINE)


def request(method: str, contact: str, transport: str, number: int = 1, name: str = "long") -> bytes:
    lines = [f"Via: SIP/2.0/{transport} {CLIENT4}:{OWN};rport;branch=z9hG4bK{number}{method}"]
    lines += ["From: <sip:ann@example.com>;tag=1", f"To: <sip:{'ann' if method == 'REGISTER' else 'bob'}@example.com>"]
    lines += [f"Call-ID: {name}", f"CSeq: {number} {method}", f"Contact: {contact}"]
    if transport == "TCP":
        lines.append("X-Long: " + "x" * 1400)
    return message(f"{method} sip:example.com SIP/2.0", lines, "")


@pytest.fixture(scope="module")
def phone(lab: Lab, gateway: Gateway) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A phone that has registered over UDP, and the registrar."""
    with udp(lab, "inside", CLIENT4, OWN) as near, udp(lab, "outside", SERVER4, 5060) as far:
        near.settimeout(5)
        far.settimeout(5)
        near.sendto(request("REGISTER", f"<sip:ann@{CLIENT4}:{OWN}>", "UDP"), (SERVER4, 5060))
        data, source = far.recvfrom(65535)
        far.sendto(data.replace(b"REGISTER sip:example.com SIP/2.0", b"SIP/2.0 200 OK", 1), source)
        assert near.recv(65535).startswith(b"SIP/2.0 200")
        yield near, far


def over_tcp(lab: Lab, data: bytes, source: int) -> bytes:
    """What the server hears of a request of the phone that comes over TCP from the port `source`."""
    with lab.listen("outside", SERVER4, 5060) as listener, lab.enter("inside"), socket.socket() as client:
        listener.settimeout(5)
        client.settimeout(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((CLIENT4, source))
        client.connect((SERVER4, 5060))
        server, _ = listener.accept()
        with server:
            server.settimeout(5)
            client.sendall(data)
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += server.recv(65535)
            return heard


@pytest.mark.parametrize("source", [0, OWN, 5070], ids=["any", "the same number", "another"])
@pytest.mark.parametrize(
    ("method", "contact"),
    [
        ("INVITE", f"<sip:ann@{CLIENT4}:{OWN};ob>"),  # pjsip/pjproject#831
        ("INVITE", f"<sip:ann@{CLIENT4}:{OWN}>"),  # RestComm/restcomm-ios-sdk#150: sofia-sip has both at one port
        ("INVITE", f'<sip:ann@{CLIENT4}:{OWN};transport=UDP>;+sip.instance="<urn:uuid:1>"'),  # linphone, Zoiper
        ("UPDATE", f"sip:ann@{CLIENT4}:{OWN}"),
        ("SUBSCRIBE", f'"Ann" <sip:ann@{CLIENT4}:{OWN};line=x>;expires=60'),
        ("REGISTER", f"<sip:ann@{CLIENT4}:{OWN}>;expires=300"),  # pjsip/pjproject#5075: with its Authorization
    ],
)
def test_the_contact_is_the_udp_socket(
    lab: Lab, phone: tuple[socket.socket, socket.socket], method: str, contact: str, source: int
) -> None:
    near, far = phone
    heard = over_tcp(lab, request(method, contact, "TCP", name=f"{method}-{source}"), source)
    place = PUBLIC.search(heard.replace(b"Contact: sip:", b"Contact: <sip:").replace(b'"Ann" ', b""))
    assert place, heard
    public = place[1].decode(), int(place[2])
    lines = [f"Via: SIP/2.0/UDP {SERVER4};branch=z9hG4bK9", "From: <sip:bob@example.com>;tag=2"]
    lines += ["To: <sip:ann@example.com>;tag=1", f"Call-ID: {method}-{source}", "CSeq: 2 BYE"]
    far.sendto(message(f"BYE sip:ann@{public[0]}:{public[1]} SIP/2.0", lines), public)
    assert near.recv(65535).startswith(b"BYE sip:ann@" + CLIENT4.encode() + b":%d " % OWN)


@pytest.mark.parametrize(
    "contact", [f"<sip:ann@{CLIENT4}:{OWN};transport=TCP>", f"<sip:ann@{CLIENT4}:5080>", f"<sip:ann@{CLIENT4}>"]
)
def test_what_is_no_udp_socket_of_the_phone_is_the_connection(
    lab: Lab, phone: tuple[socket.socket, socket.socket], contact: str
) -> None:
    """Some stacks leave `transport=tcp` out although they mean it (sipsorcery-org/sipsorcery#1794)."""
    heard = over_tcp(lab, request("INVITE", contact, "TCP", name=contact), 0)
    place = PUBLIC.search(heard)
    via = re.search(rb"^Via: SIP/2.0/TCP ([0-9.]+):([0-9]+)", heard, re.MULTILINE)
    assert place
    assert via
    assert place.groups() == via.groups()
