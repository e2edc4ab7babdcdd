"""SIP through SOCKS UDP ASSOCIATE: calls of both directions through a real proxy, and what becomes of an association.

Every scenario of tests/net/sip is played through an association too: `test_sip_scenarios.py`, the cases "socks".
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.lab.sip_peers import Kamailio, Sipp, sipp, succeeds
from tests.lab.socks_phone import SocksPhone
from tests.net.test_sip import FAR, PHONE, PROXY, Media, confirmed, pinholes, rows, split
from tests.net.test_sip_addresses import Server, message, offered, sdp
from tests.net.udp_client import Client, associate, silent, udp, works

SIP = 5060
MEDIA = 4000
SERVER_MEDIA = 9100


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture
def empty(lab: Lab, gateway: Gateway) -> Iterator[None]:
    """Whatever a test has opened is gone soon after it."""
    yield
    lab.wait_for(lambda: rows(gateway, "flows") == [], 5, "the associations to end")
    lab.wait_for(lambda: gateway.admin("pinholes") == [], 5, "the pinholes to close")


# --- between SIPp inside and a real proxy outside ---------------------------------------------------------------------


@pytest.fixture
def kamailio(lab: Lab, gateway: Gateway, empty: None) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4)
    yield kamailio
    kamailio.stop()


@pytest.fixture
def helper(lab: Lab, kamailio: Kamailio) -> Iterator[SocksPhone]:
    """Through it SIPp inside speaks to the proxy."""
    with SocksPhone(lab, CLIENT4, SIP, (SERVER4, SIP)) as helper:
        yield helper


@pytest.fixture
def near(lab: Lab, helper: SocksPhone) -> Sipp:
    """The phone inside, "ann", has registered with the proxy, through its association."""
    options = ["-s", "ann", "-rsa", helper.local]
    return succeeds(lab, sipp(lab, "inside", "register", local=PHONE, remote=PROXY, options=options))


@pytest.fixture
def far(lab: Lab, kamailio: Kamailio) -> None:
    """A phone outside, "bob", is registered with the proxy."""
    succeeds(lab, sipp(lab, "outside", "register", local=FAR, remote=PROXY, options=["-s", "bob"]))


def talk(lab: Lab, gateway: Gateway, far_port: int) -> None:
    """Media pass both ways through the call's pinhole, and a stranger's do not; then they are counted."""
    (media,) = pinholes(gateway, "sip.rtp")
    assert (media["peer"], media["backend"]) == (SERVER4, "kernel")
    public = split(media["public"])
    phone = Media(lab, "inside", *split(media["target"]))
    peer, stranger = Media(lab, "outside", SERVER4, far_port), Media(lab, "stranger", STRANGER4, far_port)
    try:
        phone.send((SERVER4, far_port), b"from inside")
        data, source = peer.socket.recvfrom(99)
        assert (data, source) == (b"from inside", public)
        peer.send(public, b"from outside")
        assert phone.hears() == b"from outside"
        stranger.send(public, b"from a stranger")
        assert phone.hears() is None
        (call,) = confirmed(gateway)
        (stream,) = call["media"]
        assert (call["transport"], call["client"], call["server"]) == ("udp", CLIENT4, SERVER4)
        assert (stream["lease"], stream["packets_in"], stream["packets_out"]) == (media["id"], 1, 1)
        [flow] = rows(gateway, "flows")
        assert (flow["id"], flow["module"]) == (call["flow"], "socks.udp")
        lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 10, "the media to close with the call")
        peer.send(public, b"after the BYE")
        assert phone.hears() is None
    finally:
        for end in (phone, peer, stranger):
            end.close()


def test_a_registration_names_the_associations_own_socket(lab: Lab, gateway: Gateway, near: Sipp) -> None:
    """Nothing is opened for it: it is there. Outside it is the contact, inside nothing of it is seen."""
    assert pinholes(gateway, "sip.signalling") == []
    [association] = pinholes(gateway, "socks.udp")
    assert split(association["public"])[0] == ROUTER_OUT4
    answer = near.received("SIP/2.0 200")[-1]
    assert f"Contact: <sip:ann@{PHONE}>" in answer
    assert f"Via: SIP/2.0/UDP {PHONE};branch=" in answer
    assert ROUTER_OUT4 not in answer
    register = next(row for row in gateway.admin("trace") if row["data"].startswith("REGISTER "))
    assert f"Contact: <sip:ann@{association['public']}>" in register["after"]
    assert f"Via: SIP/2.0/UDP {association['public']};" in register["after"]
    assert register["flow"] == association["flow"]


def test_a_call_to_the_outside(lab: Lab, gateway: Gateway, helper: SocksPhone, near: Sipp, far: None) -> None:
    callee = sipp(lab, "outside", "uas", local=FAR, audio=SERVER_MEDIA)
    options = ["-s", "bob", "-d", "3000", "-rsa", helper.local]
    caller = sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=options)
    lab.wait_for(lambda: confirmed(gateway), 10, "the call" + lab.tail_of_logs())
    talk(lab, gateway, SERVER_MEDIA)
    succeeds(lab, caller, callee)
    assert CLIENT4 not in callee.received("INVITE ")[0].partition("\n\n")[2]
    assert confirmed(gateway) == []


def test_a_call_from_the_outside(lab: Lab, gateway: Gateway, helper: SocksPhone, near: Sipp) -> None:
    callee = sipp(lab, "inside", "uas", local=PHONE, audio=MEDIA, options=["-rsa", helper.local])
    options = ["-s", "ann", "-d", "3000", "-key", "audio", str(SERVER_MEDIA)]
    caller = sipp(lab, "outside", "uac", local=f"{SERVER4}:5071", remote=PROXY, audio=SERVER_MEDIA, options=options)
    lab.wait_for(lambda: confirmed(gateway), 10, "the call" + lab.tail_of_logs())
    talk(lab, gateway, SERVER_MEDIA)
    succeeds(lab, caller, callee)
    invite = callee.received("INVITE ")[0]
    assert invite.startswith(f"INVITE sip:ann@{PHONE} SIP/2.0")
    assert ROUTER_OUT4 not in invite
    assert CLIENT4 not in caller.received("SIP/2.0 200")[0]


def test_a_phone_by_a_socks_library_that_does_not_tell_it_its_address(
    lab: Lab, gateway: Gateway, kamailio: Kamailio, far: None
) -> None:
    """Dante's: the phone writes port 0 where it would write its own."""
    callee = sipp(lab, "outside", "uas", local=FAR, audio=SERVER_MEDIA)
    options = ["-s", "bob", "-d", "3000"]
    caller = sipp(lab, "inside", "uac", local=PHONE, remote=PROXY, options=options, socks=ROUTER_IN4)
    lab.wait_for(lambda: confirmed(gateway), 10, "the call" + lab.tail_of_logs())
    talk(lab, gateway, SERVER_MEDIA)
    succeeds(lab, caller, callee)
    assert f"Via: SIP/2.0/UDP {CLIENT4}:0;" in caller.received("SIP/2.0 200")[0]
    assert CLIENT4 not in callee.received("INVITE ")[0].partition("\n\n")[2]


# --- a client that speaks SOCKS itself --------------------------------------------------------------------------------


class Phone:
    """A phone with a SOCKS client of its own, in one dialog with a server outside."""

    def __init__(self, lab: Lab, server: Server) -> None:
        self.client: Client = associate(lab)
        self.server = server
        self.own = "{}:{}".format(*self.client.sock.getsockname())

    def request(self, method: str, number: int, tag: str = "", body: str = "") -> bytes:
        lines = [
            f"Via: SIP/2.0/UDP {self.own};branch=z9hG4bK{method}{number};rport",
            "From: <sip:ann@example.test>;tag=near",
            f"To: <sip:bob@example.test>{tag}",
            "Call-ID: through-socks",
            f"CSeq: {number} {method}",
            f"Contact: <sip:ann@{self.own};x=Y>",
        ]
        return message(f"{method} sip:bob@{SERVER4} SIP/2.0", lines, body)

    def send(self, data: bytes, port: int = SIP) -> None:
        self.client.send(SERVER4, port, data)

    def receive(self) -> bytes:
        host, port, data = self.client.receive()
        assert (host, port) == (SERVER4, SIP)
        return data

    def ask(self, method: str, number: int, tag: str = "", body: str = "") -> str:
        """Send a request; what the server has read of it. The answer shows the phone's own words, byte for byte."""
        sent = self.request(method, number, tag, body)
        self.send(sent)
        got = self.server.answer()
        if method != "ACK":
            answer = self.receive()
            assert answer.startswith(b"SIP/2.0 200")
            for line in sent.split(b"\r\n"):
                if line.startswith((b"Via:", b"Contact:", b"From:", b"Call-ID:")):
                    assert line + b"\r\n" in answer
            assert ROUTER_OUT4.encode() not in answer
        return got

    def call(self, number: int) -> tuple[str, int]:
        """Set up a call; where the far side is told to send media."""
        public = offered(self.ask("INVITE", number, body=sdp(CLIENT4, MEDIA)))
        self.ask("ACK", number, ";tag=far")
        return public

    def hang_up(self, number: int) -> None:
        self.ask("BYE", number, ";tag=far")


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    server = Server(lab)
    yield server
    server.end.close()


@pytest.fixture
def phone(lab: Lab, gateway: Gateway, empty: None, server: Server) -> Iterator[Phone]:
    phone = Phone(lab, server)
    yield phone
    phone.client.close()


@pytest.fixture
def ends(lab: Lab) -> Iterator[tuple[Media, Media]]:
    """The phone's media socket, and the server's."""
    ends = Media(lab, "inside", CLIENT4, MEDIA), Media(lab, "outside", SERVER4, SERVER_MEDIA)
    yield ends
    for end in ends:
        end.close()


def hears(ends: tuple[Media, Media], public: tuple[str, int]) -> bool:
    near, far = ends
    far.send(public, b"from outside")
    return near.hears(0.1) == b"from outside"


def test_what_the_phone_reads_and_what_the_server_does(lab: Lab, gateway: Gateway, phone: Phone) -> None:
    got = phone.ask("OPTIONS", 1)
    [association] = pinholes(gateway, "socks.udp")
    public = association["public"]
    expected = phone.request("OPTIONS", 1).decode().replace(phone.own, public)
    assert got == expected, "nothing else was changed"


@pytest.mark.parametrize("end", ["closed", "shut", "kicked"])
def test_an_association_that_ends_in_a_call_takes_the_media_along(
    lab: Lab, gateway: Gateway, phone: Phone, ends: tuple[Media, Media], end: str
) -> None:
    public = phone.call(1)
    lab.wait_for(lambda: hears(ends, public), 3, "media from outside")
    (call,) = confirmed(gateway)
    if end == "closed":
        phone.client.control.close()
    elif end == "shut":
        phone.client.control.shutdown(socket.SHUT_WR)
    else:
        gateway.algate("kick", call["flow"])
    lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 2, "the media to close")
    lab.wait_for(lambda: not hears(ends, public), 2, "the media to end")
    assert rows(gateway, "calls") == []


def test_a_call_that_is_kicked_ends_its_media_only(
    lab: Lab, gateway: Gateway, phone: Phone, ends: tuple[Media, Media]
) -> None:
    public = phone.call(1)
    lab.wait_for(lambda: hears(ends, public), 3, "media from outside")
    assert "through-socks" in gateway.algate("kick", "through-socks").stdout
    lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 2, "the media to close")
    assert not hears(ends, public)
    phone.hang_up(2)


def test_sip_in_something_else_revokes_that_pair(lab: Lab, gateway: Gateway, phone: Phone) -> None:
    """Byte for byte, in its place; what it opened before goes on, and nothing new is opened. Keep-alives are none."""
    for keep_alive in (b"\r\n\r\n", b"\0", b"", b"NAT Keep Alive Msg", b"GET / HTTP/1.1\r\n\r\n"):
        phone.send(keep_alive)
        assert phone.server.end.socket.recv(99) == keep_alive
    assert offered(phone.ask("INVITE", 1, body=sdp(CLIENT4, MEDIA)))[0] == ROUTER_OUT4
    phone.hang_up(2)
    assert pinholes(gateway, "sip.rtp") == []
    post = b"POST / HTTP/1.1\r\n\r\nREGISTER sip:x SIP/2.0\r\n\r\n"
    phone.send(post)
    assert phone.server.end.socket.recv(99) == post
    gateway.wait_for_log(f"event=alg.revoke .*client={phone.own} server={SERVER4} rule=sip.not-sip")
    for number in (3, 4):
        invite = phone.request("INVITE", number, body=sdp(CLIENT4, MEDIA))
        phone.send(invite)
        assert phone.server.answer().encode() == invite
        answer = phone.receive()
        assert f"Contact: <sip:ann@{phone.own};x=Y>".encode() in answer
        assert pinholes(gateway, "sip.rtp") == []
        time.sleep(1.1)  # a decision on a target holds for a second: the next one is a new one


def test_a_message_that_waits_keeps_its_order_and_nobody_else(lab: Lab, gateway: Gateway, phone: Phone) -> None:
    """The broker does not answer: after two seconds the message goes as it is. What came behind it stays behind it;
    what goes elsewhere, read or not, and what comes from there, does not wait."""
    [broker] = [row["pid"] for row in gateway.admin("status") if row["process"] == "broker"]
    phone.ask("OPTIONS", 1)
    [association] = pinholes(gateway, "socks.udp")
    other, provider = udp(lab, "outside", SERVER4, 5300), Media(lab, "stranger", STRANGER4, SIP)
    works(phone.client, other)
    os.kill(broker, signal.SIGSTOP)
    try:
        invite = phone.request("INVITE", 2, body=sdp(CLIENT4, MEDIA))
        began = time.monotonic()
        phone.send(invite)
        phone.send(b"\r\n\r\n")
        works(phone.client, other, b"meanwhile")
        options = phone.request("OPTIONS", 3)
        phone.client.send(STRANGER4, SIP, options)
        assert provider.hears(1) == options.replace(phone.own.encode(), association["public"].encode())
        assert time.monotonic() < began + 1
        phone.server.end.socket.settimeout(5)
        first = phone.server.end.socket.recv(8192)
        assert 1.5 < time.monotonic() - began < 2.6
        assert first == invite
        assert phone.server.end.socket.recv(99) == b"\r\n\r\n"
    finally:
        os.kill(broker, signal.SIGCONT)
        other.close()
        provider.close()
    lab.wait_for(lambda: pinholes(gateway, "sip.rtp") == [], 3, "nothing to be open that nobody was told of")


def test_a_call_with_a_stranger_who_was_not_asked(lab: Lab, gateway: Gateway, phone: Phone) -> None:
    """An INVITE comes from whom the client has written to, and from nobody else."""
    phone.ask("OPTIONS", 1)
    [association] = pinholes(gateway, "socks.udp")
    stranger = Media(lab, "stranger", STRANGER4, SIP)
    stranger.send(split(association["public"]), b"INVITE sip:ann@203.0.113.2 SIP/2.0\r\n\r\n")
    silent(phone.client.sock)
    stranger.close()
