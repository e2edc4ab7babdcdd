"""SIP over UDP when an address changes in the middle of a call: the router's outside one, or the phone's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_OUT4, SERVER4, Lab
from tests.net.test_sip import Media, confirmed, pinholes, split

OTHER4 = "203.0.113.3"
SERVER_MEDIA = 9100


def sdp(host: str, port: int) -> str:
    kind = "IP6" if ":" in host else "IP4"
    return f"v=0\r\no=- 1 1 IN {kind} {host}\r\ns=-\r\nc=IN {kind} {host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"


def message(first: str, lines: list[str], body: str = "") -> bytes:
    kind = ["Content-Type: application/sdp"] if body else []
    return "\r\n".join([first, *lines, *kind, f"Content-Length: {len(body)}", "", body]).encode()


class Server:
    """A server outside that answers 200 to everything, with a session description where it got one."""

    def __init__(self, lab: Lab) -> None:
        self.end = Media(lab, "outside", SERVER4, 5060)

    def answer(self) -> str:
        """Take a request and answer it; the request."""
        self.end.socket.settimeout(5)
        data, source = self.end.socket.recvfrom(65535)
        text = data.decode()
        if text.startswith("ACK"):
            return text
        lines = [
            line for line in text.splitlines() if line.startswith(("Via:", "From:", "Call-ID:", "CSeq:", "Contact:"))
        ]
        to = next(line for line in text.splitlines() if line.startswith("To:"))
        lines.append(to if "tag=" in to else f"{to};tag=far")
        self.end.send(source, message("SIP/2.0 200 OK", lines, sdp(SERVER4, SERVER_MEDIA) if "m=audio" in text else ""))
        return text


class Phone:
    """A phone inside, in one dialog with the server."""

    def __init__(self, lab: Lab, role: Any, host: str, server: Server) -> None:
        self.host, self.server, self.number = host, server, 0
        self.end = Media(lab, role, host, 5060)
        self.media = Media(lab, role, host, 4000)

    def ask(self, method: str, number: int, to_tag: str = "", extra: tuple[str, ...] = (), body: str = "") -> str:
        """Send a request; what the server read of it. The answer has to name this phone as it named itself."""
        uri = "sip:example.test" if method == "REGISTER" else f"sip:bob@{SERVER4}"
        lines = [
            f"Via: SIP/2.0/UDP {self.host};branch=z9hG4bK{method}{number}",
            "From: <sip:ann@example.test>;tag=near",
            f"To: <sip:{'ann' if method == 'REGISTER' else 'bob'}@example.test>{to_tag}",
            f"Call-ID: {'registration' if method == 'REGISTER' else 'call'}",
            f"CSeq: {number} {method}",
            f"Contact: <sip:ann@{self.host}>",
            *extra,
        ]
        self.end.send((SERVER4, 5060), message(f"{method} {uri} SIP/2.0", lines, body))
        got = self.server.answer()
        if method != "ACK":
            answer = self.end.hears(5)
            assert answer is not None
            assert lines[0].encode() in answer
        return got

    def close(self) -> None:
        self.end.close()
        self.media.close()


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    server = Server(lab)
    yield server
    server.end.close()


@pytest.fixture
def phone(lab: Lab, server: Server) -> Iterator[Phone]:
    phone = Phone(lab, "inside", CLIENT4, server)
    yield phone
    phone.close()


def offered(text: str) -> tuple[str, int]:
    """Where a session description wants media."""
    found = re.search(r"c=IN IP[46] (\S+)(?s:.*)m=audio ([0-9]+) ", text)
    assert found
    return found[1], int(found[2])


def talk(phone: Phone, public: tuple[str, int], far: Media) -> None:
    def heard() -> bool:
        far.send(public, b"from outside")
        return phone.media.hears(0.1) == b"from outside"

    Lab.wait_for(heard, 3, "media from outside")  # the pinhole learns of its peer while the answer passes
    while phone.media.hears(0.05):
        pass
    phone.media.send((SERVER4, SERVER_MEDIA), b"from inside")
    assert far.hears() == b"from inside"


def listening(gateway: Gateway) -> list[str]:
    """The addresses of the open pinholes."""
    return [split(row["public"])[0] for row in gateway.admin("pinholes")]


def test_the_routers_address(lab: Lab, gateway: Gateway, phone: Phone) -> None:
    far = Media(lab, "outside", SERVER4, SERVER_MEDIA)
    try:
        phone.ask("REGISTER", 1, extra=("Expires: 600",))
        before = offered(phone.ask("INVITE", 1, body=sdp(CLIENT4, 4000)))
        phone.ask("ACK", 1, ";tag=far")
        assert before[0] == ROUTER_OUT4
        talk(phone, before, far)
        lab.run("router", ["ip", "address", "add", f"{OTHER4}/24", "dev", "eth0"])
        lab.run("router", ["ip", "address", "delete", f"{ROUTER_OUT4}/24", "dev", "eth0"])
        lab.run("router", ["ip", "address", "add", f"{OTHER4}/24", "dev", "eth0"], check=False)

        lab.wait_for(lambda: listening(gateway) == [OTHER4] * 2, 8, "all pinholes to follow" + lab.tail_of_logs())
        registered = phone.ask("REGISTER", 2, extra=("Expires: 600",))
        assert f"Contact: <sip:ann@{OTHER4}:" in registered
        assert ROUTER_OUT4 not in registered
        after = offered(phone.ask("INVITE", 2, ";tag=far", body=sdp(CLIENT4, 4000)))
        phone.ask("ACK", 2, ";tag=far")
        assert after[0] == OTHER4
        talk(phone, after, far)
        assert len(confirmed(gateway)) == 1
        phone.ask("BYE", 3, ";tag=far")
        phone.ask("REGISTER", 3, extra=("Expires: 0",))
        assert pinholes(gateway, "sip.rtp") == []
    finally:
        far.close()
        lab.run("router", ["ip", "address", "add", f"{ROUTER_OUT4}/24", "dev", "eth0"], check=False)
        lab.run("router", ["ip", "address", "delete", f"{OTHER4}/24", "dev", "eth0"], check=False)
        lab.run("router", ["ip", "address", "add", f"{ROUTER_OUT4}/24", "dev", "eth0"], check=False)
        lab.wait_for(lambda: OTHER4 not in listening(gateway), 8, "all pinholes to come back")


def test_the_phones_address(lab: Lab, gateway: Gateway, phone: Phone, server: Server) -> None:
    far = Media(lab, "outside", SERVER4, SERVER_MEDIA)
    elsewhere = Phone(lab, "client2", CLIENT2_4, server)
    try:
        before = offered(phone.ask("INVITE", 1, body=sdp(CLIENT4, 4000)))
        phone.ask("ACK", 1, ";tag=far")
        talk(phone, before, far)
        after = offered(elsewhere.ask("INVITE", 2, ";tag=far", body=sdp(CLIENT2_4, 4000)))
        elsewhere.ask("ACK", 2, ";tag=far")
        assert after != before
        talk(elsewhere, after, far)
        (row,) = pinholes(gateway, "sip.rtp")
        assert split(row["public"]) == after
        far.send(before, b"to the address before")
        assert phone.media.hears() is None
        (call,) = confirmed(gateway)
        assert call["client"] == CLIENT2_4
        elsewhere.ask("BYE", 3, ";tag=far")
        assert pinholes(gateway, "sip.rtp") == []
    finally:
        elsewhere.close()
        far.close()
