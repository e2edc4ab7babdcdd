"""Several phones at one inside address, told apart by their ports (two accounts of a box, a box and a softphone beside
it): each is restored what is its own, and hears of the others as everybody outside does."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.lab.first_media import message, udp
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab


class Phone(NamedTuple):
    """A phone that has registered, and where it is outside."""

    user: str
    sock: socket.socket
    public: tuple[str, int]

    @property
    def own(self) -> str:
        return f"{CLIENT4}:{self.sock.getsockname()[1]}"

    @property
    def outside(self) -> str:
        return f"{self.public[0]}:{self.public[1]}"


@pytest.fixture(scope="module")
def server(lab: Lab, gateway: Gateway) -> Iterator[socket.socket]:
    with udp(lab, "outside", SERVER4, 5060) as server:
        server.settimeout(5)
        yield server


@pytest.fixture(scope="module", params=[(5060, 5062), (5062, 5060), (5070, 5071)], ids=str)
def phones(lab: Lab, server: socket.socket, request: pytest.FixtureRequest) -> Iterator[list[Phone]]:
    found = []
    for user, port in zip(("ann", "bob"), request.param, strict=True):
        sock = udp(lab, "inside", CLIENT4, port)
        sock.settimeout(5)
        lines = [f"Via: SIP/2.0/UDP {CLIENT4}:{port};rport;branch=z9hG4bK{user}", f"From: <sip:{user}@x>;tag=1"]
        lines += [f"To: <sip:{user}@x>", f"Call-ID: {user}{port}", "CSeq: 1 REGISTER"]
        lines.append(f"Contact: <sip:{user}@{CLIENT4}:{port}>;expires=300")
        sock.sendto(message("REGISTER sip:x SIP/2.0", lines), (SERVER4, 5060))
        data, source = server.recvfrom(65535)
        place = re.search(rb"^Contact: <sip:\w+@([0-9.]+):([0-9]+)>", data, re.MULTILINE)
        assert place
        server.sendto(data.replace(b"REGISTER sip:x SIP/2.0", b"SIP/2.0 200 OK"), source)
        assert sock.recv(65535).startswith(b"SIP/2.0 200")
        found.append(Phone(user, sock, (place[1].decode(), int(place[2]))))
    yield found
    for phone in found:
        phone.sock.close()


@pytest.mark.parametrize("method", ["INVITE", "BYE", "NOTIFY", "REFER"])
def test_what_comes_is_restored_to_whom_it_is_for(server: socket.socket, phones: list[Phone], method: str) -> None:
    for one, other in (phones, phones[::-1]):
        lines = [f"Via: SIP/2.0/UDP {SERVER4};branch=z9hG4bK{method}{one.user}", f"From: <sip:{other.user}@x>;tag=2"]
        lines += [f"To: <sip:{one.user}@x>;tag=1", f"Call-ID: {method}", f"CSeq: 2 {method}"]
        lines += [f"Record-Route: <sip:{SERVER4};lr>", f"Contact: <sip:{other.user}@{other.outside}>"]
        server.sendto(message(f"{method} sip:{one.user}@{one.outside} SIP/2.0", lines), one.public)
        heard = one.sock.recv(65535).decode()
        assert heard.startswith(f"{method} sip:{one.user}@{one.own} SIP/2.0\r\n")
        assert f"Contact: <sip:{other.user}@{other.outside}>" in heard  # another phone, as everybody outside names it


@pytest.mark.parametrize("method", ["ACK", "BYE", "INVITE"])
def test_what_goes_to_the_other_keeps_its_public_contact(
    server: socket.socket, phones: list[Phone], method: str
) -> None:
    for one, other in (phones, phones[::-1]):
        lines = [f"Via: SIP/2.0/UDP {one.own};rport;branch=z9hG4bK{method}", f"Route: <sip:{SERVER4};lr>"]
        lines += [f"From: <sip:{one.user}@x>;tag=1", f"To: <sip:{other.user}@x>;tag=2", "Call-ID: there"]
        lines += [f"CSeq: 3 {method}", f"Contact: <sip:{one.user}@{one.own}>"]
        one.sock.sendto(message(f"{method} sip:{other.user}@{other.outside} SIP/2.0", lines), (SERVER4, 5060))
        heard = server.recv(65535).decode()
        assert heard.startswith(f"{method} sip:{other.user}@{other.outside} SIP/2.0\r\n")
        assert f"Contact: <sip:{one.user}@{one.outside}>" in heard
