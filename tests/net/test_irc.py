"""DCC offers over IRC through the router: a client and a server that do what a test says, and strangers."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conformance.ways import by_socks, direct
from tests.lab import irc
from tests.lab.gateway import Gateway
from tests.lab.irc import IRC, Irssi, Weechat
from tests.lab.lab import CLIENT2_4, CLIENT4, CLIENT6, ROUTER_OUT4, ROUTER_OUT6, SERVER4, SERVER6, Lab
from tests.lab.tap import Tap, differences

WELCOME = b":irc.example.test 001 ann :Welcome\r\n"


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway()
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@dataclass
class Session:
    """A client that has been welcomed by its server."""

    client: socket.socket
    server: socket.socket
    inside: str
    router: str
    through_socks: bool

    def says(self, line: bytes) -> bytes:
        """The client sends a line; how the server reads it."""
        return _pass(self.client, self.server, line)

    def hears(self, line: bytes) -> bytes:
        """The server sends a line; how the client reads it."""
        return _pass(self.server, self.client, line)

    def offer(self, port: int) -> tuple[bytes, int]:
        """An offer of the client's, as the server reads it, and its public port."""
        line = _send(self.inside, port)
        read = self.says(line)
        found = re.fullmatch(rb"PRIVMSG bob :\x01DCC SEND a\.txt ([0-9a-f:]+) (\d+) 100\x01\r\n", read)
        assert found is not None, read
        public = int(found[2])
        assert read == _send(self.router, public)  # and not a byte else
        assert public != port
        return read, public


def _send(host: str, port: int) -> bytes:
    ip = ipaddress.ip_address(host)
    shown = str(int(ip)) if ip.version == 4 else str(ip)
    return f"PRIVMSG bob :\x01DCC SEND a.txt {shown} {port} 100\x01\r\n".encode()


def _pass(sender: socket.socket, receiver: socket.socket, line: bytes) -> bytes:
    sender.sendall(line)
    read = b""
    while not read.endswith(b"\n"):
        more = receiver.recv(4096)
        assert more, read
        read += more
    return read


def holes(gateway: Gateway) -> list[dict[str, Any]]:
    return [hole for hole in gateway.admin("pinholes") if hole["reason"].startswith("irc.")]


@pytest.fixture(params=["redirect", "redirect IPv6", "SOCKS"])
def session(request: pytest.FixtureRequest, lab: Lab, gateway: Gateway) -> Iterator[Session]:
    v6 = "6" in request.param
    host = SERVER6 if v6 else SERVER4
    with lab.listen("outside", host, IRC) as listener:
        client = (by_socks if request.param == "SOCKS" else direct)(lab, host, IRC)
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(15)
    inside, router = (CLIENT6, ROUTER_OUT6) if v6 else (CLIENT4, ROUTER_OUT4)
    session = Session(client, server, inside, router, request.param == "SOCKS")
    assert session.says(b"NICK ann\r\n") == b"NICK ann\r\n"
    assert session.hears(WELCOME) == WELCOME
    yield session
    client.close()
    server.close()


def connects(lab: Lab, host: str, port: int) -> bool:
    """Whether a stranger's connection is taken; else it is refused, or the router's firewall says nothing."""
    try:
        lab.connect("stranger", host, port, timeout=1).close()
    except OSError:
        return False
    return True


def listen_inside(lab: Lab, host: str, port: int) -> socket.socket:
    with lab.enter("inside"):
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.settimeout(15)
    return listener


def test_an_offer_lets_one_stranger_in_and_no_second(lab: Lab, gateway: Gateway, session: Session) -> None:
    """Nobody knows who the other user is, so it is whoever connects first, once; the bytes arrive."""
    with listen_inside(lab, session.inside, 5000) as listener:
        _, public = session.offer(5000)
        [hole] = holes(gateway)
        assert (hole["reason"], hole["client"], hole["peer"]) == ("irc.send", session.inside, None)
        assert hole["kind"] == ("local" if session.through_socks else "anybody")
        with lab.connect("stranger", session.router, public, timeout=15) as stranger:
            inside, _ = listener.accept()
            with inside:
                junk = bytes(range(256)) * 400
                inside.sendall(junk)
                inside.shutdown(socket.SHUT_WR)
                got = b""
                while more := stranger.recv(65536):
                    got += more
                assert got == junk
                assert not connects(lab, session.router, public)


def test_two_users_inside_reach_each_other(lab: Lab, session: Session) -> None:
    """The other one reads the public port, and the router lets it in from inside too (hairpin)."""
    if session.through_socks:
        pytest.skip("the port is the worker's own: whoever connects comes to it")
    with listen_inside(lab, session.inside, 5000) as listener:
        _, public = session.offer(5000)
        with lab.connect("client2", session.router, public, timeout=15) as other:
            taken, _ = listener.accept()
            with taken:
                taken.sendall(b"a file")
                assert other.recv(100) == b"a file"


def test_resume_and_accept_name_the_port_that_each_side_knows(session: Session) -> None:
    _, public = session.offer(5000)
    head = b":bob!b@example.test PRIVMSG ann :\x01DCC RESUME a.txt "
    assert session.hears(head + b"%d 50\x01\r\n" % public) == head + b"5000 50\x01\r\n"
    said = b"PRIVMSG bob :\x01DCC ACCEPT a.txt %d 50\x01\r\n"
    assert session.says(said % 5000) == said % public


def test_the_end_of_the_connection_closes_what_nobody_has_used(lab: Lab, gateway: Gateway, session: Session) -> None:
    session.offer(5000)
    session.client.close()
    session.server.close()
    lab.wait_for(lambda: not holes(gateway), 15, "the port to close")


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(_send("192.168.56.99", 5000), id="another host"),
        pytest.param(_send(CLIENT4, 22), id="a service's port"),
        pytest.param(_send(CLIENT4, 0), id="a passive offer"),
        pytest.param(b"PONG :\x01DCC SEND a.txt 3232249866 5000 100\x01\r\n", id="PONG, CVE-2022-2663"),
    ],
)
def test_what_opens_nothing(gateway: Gateway, session: Session, line: bytes) -> None:
    assert session.says(line) == line
    assert holes(gateway) == []


def test_a_port_of_a_service_stays_closed(lab: Lab, gateway: Gateway) -> None:
    """The broker refuses it, and the line goes as it came. (A client of SOCKS has asked the gateway itself.)"""
    with lab.listen("outside", SERVER4, IRC) as listener:
        client = direct(lab, SERVER4, IRC)
        server, _ = listener.accept()
    with client, server:
        for end in (client, server):
            end.settimeout(15)
        session = Session(client, server, CLIENT4, ROUTER_OUT4, False)
        assert session.says(b"NICK ann\r\n")
        session.hears(WELCOME)
        line = _send(CLIENT4, 3306)
        assert session.says(line) == line
        assert holes(gateway) == []


def test_a_web_page_opens_nothing(lab: Lab, gateway: Gateway) -> None:
    """NAT pinning: an offer in the body of an HTTP request, in a segment of its own."""
    with lab.listen("outside", SERVER4, IRC) as listener:
        client = direct(lab, SERVER4, IRC)
        server, _ = listener.accept()
    seen = len(gateway.log_lines())
    with client, server:
        for end in (client, server):
            end.settimeout(15)
        head = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"
        assert _pass(client, server, head) == head
        offer = _send(CLIENT4, 5000)
        assert _pass(client, server, offer) == offer
        gateway.wait_for_log("irc.not-irc", 10, seen)
        assert holes(gateway) == []


def test_an_offer_of_the_routers_own_address_has_its_port_edited_only(session: Session) -> None:
    """As mIRC and HexChat write it, which learn it from the server."""
    if session.through_socks:
        pytest.skip("the port is the worker's own, whose address the client knows already")
    read = session.says(_send(session.router, 5000))
    found = re.search(rb" (\d+) 100\x01", read)
    assert found is not None
    assert read == _send(session.router, int(found[1]))
    assert found[1] != b"5000"


def test_a_hundred_offers_in_a_second(gateway: Gateway, session: Session) -> None:
    """Eight are open, the others go as they came, and the session lives."""
    lines = [_send(session.inside, 5000 + number) for number in range(100)]
    session.client.sendall(b"".join(lines) + b"PING :end\r\n")
    read = b""
    while not read.endswith(b"PING :end\r\n"):
        read += session.server.recv(65536)
    heard = read.splitlines(keepends=True)[:-1]
    assert len(heard) == 100
    assert sum(line != said for line, said in zip(heard, lines, strict=True)) == 8
    assert len(holes(gateway)) == 8
    assert session.hears(b"PONG :end\r\n") == b"PONG :end\r\n"


def test_a_resume_of_a_port_that_is_not_this_clients_is_unchanged(lab: Lab, gateway: Gateway, session: Session) -> None:
    """Nobody's port, and one of another client's offer."""
    with lab.listen("outside", SERVER4, IRC) as listener:
        client = lab.connect("client2", SERVER4, IRC)
        server, _ = listener.accept()
    with client, server:
        for end in (client, server):
            end.settimeout(15)
        other = Session(client, server, CLIENT2_4, ROUTER_OUT4, False)
        other.says(b"NICK eve\r\n")
        other.hears(WELCOME)
        _, public = other.offer(5000)
        for port in (public, 40000, 5000):
            line = b":eve!e@example.test PRIVMSG ann :\x01DCC RESUME a.txt %d 50\x01\r\n" % port
            assert session.hears(line) == line


@pytest.mark.parametrize("way", ["redirect", "SOCKS"])
def test_behind_starttls_nothing_is_read(lab: Lab, gateway: Gateway, way: str) -> None:
    with lab.listen("outside", SERVER4, IRC) as listener:
        client = (by_socks if way == "SOCKS" else direct)(lab, SERVER4, IRC)
        server, _ = listener.accept()
    seen = len(gateway.log_lines())
    with client, server:
        for end in (client, server):
            end.settimeout(15)
        assert _pass(client, server, b"STARTTLS\r\n") == b"STARTTLS\r\n"
        answer = b":irc.example.test 670 * :STARTTLS successful\r\n"
        assert _pass(server, client, answer) == answer
        gateway.wait_for_log("event=alg.bypass", 5, seen)
        for line in (WELCOME, _send(CLIENT4, 5000)):
            sender, receiver = (server, client) if line == WELCOME else (client, server)
            assert _pass(sender, receiver, line) == line
        assert holes(gateway) == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_offer_that_nobody_takes_ends_after_three_minutes(lab: Lab, gateway: Gateway, session: Session) -> None:
    with listen_inside(lab, session.inside, 5000):
        _, public = session.offer(5000)
        time.sleep(175)
        assert len(holes(gateway)) == 1
        lab.wait_for(lambda: not holes(gateway), 15, "the port to close")
        assert not connects(lab, session.router, public)
        line = b":bob!b@example.test PRIVMSG ann :\x01DCC RESUME a.txt %d 50\x01\r\n" % public
        assert session.hears(line) == line


# --- real clients and a real server -----------------------------------------------------------------------------------


@pytest.fixture(params=["ngircd", "InspIRCd"])
def server(request: pytest.FixtureRequest, lab: Lab, gateway: Gateway) -> Iterator[None]:
    process = {"ngircd": irc.ngircd, "InspIRCd": irc.inspircd}[request.param](lab, SERVER4)
    yield
    lab.stop(process)


def passed(within: Tap, beyond: Tap) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """The numbers that differ in what the client said and in what the server said, as each end of the connection has
    them. Nothing else may differ."""
    [inside] = within.streams()
    [outside] = [one for one in beyond.streams() if one.source == ROUTER_OUT4]
    return differences(inside.client, outside.client), differences(outside.server, inside.server)


@pytest.mark.usefixtures("server")
def test_irssi_sends_a_file_and_goes_on_with_half_of_it(lab: Lab, gateway: Gateway) -> None:
    """Active, resumed, and a reply to a passive offer from outside: each needs what is edited."""
    with Irssi(lab, "inside", SERVER4, "ann") as ann, Irssi(lab, "stranger", SERVER4, "bob") as bob:
        sent = {name: os.urandom(200_000) for name in ("whole.bin", "half.bin")}
        for name, data in sent.items():
            (ann.folder / name).write_bytes(data)
        ann.says(f"/dcc send bob {ann.folder}/whole.bin")
        lab.wait_for(lambda: bob.has("whole.bin", sent["whole.bin"]), 20, "the file")
        (bob.downloads / "half.bin").write_bytes(sent["half.bin"][:100_000])
        seen = len(gateway.log_lines())
        ann.says(f"/dcc send bob {ann.folder}/half.bin")
        lab.wait_for(lambda: bob.has("half.bin", sent["half.bin"]), 20, "the other half")
        edits = [line for line in gateway.log_lines()[seen:] if "alg.edit" in line and "reason=irc.port" in line]
        assert len(edits) == 3, edits  # the offer, RESUME and ACCEPT
        other = os.urandom(200_000)
        (bob.folder / "other.bin").write_bytes(other)
        bob.says(f"/dcc send -passive ann {bob.folder}/other.bin")
        lab.wait_for(lambda: ann.has("other.bin", other), 20, "the file from outside")
        lab.wait_for(lambda: holes(gateway) == [], 15, "all ports to be used")


@pytest.mark.usefixtures("server")
def test_irssi_chats_both_ways(lab: Lab, gateway: Gateway) -> None:
    """A chat that the one inside offers, and one that it is offered; each says something in both."""
    with Irssi(lab, "inside", SERVER4, "ann") as ann, Irssi(lab, "stranger", SERVER4, "bob") as bob:
        seen = len(gateway.log_lines())
        ann.says("/dcc chat bob")
        gateway.wait_for_log("event=pinhole.open .*reason=irc.chat", 10, seen)
        ann.wait_to_see("DCC CHAT connection with")
        for user in (ann, bob):
            user.says("/window goto 2")
        for number, (one, other) in enumerate(((ann, bob), (bob, ann))):
            one.says(f"/msg ={other.nick} word{number} from inside")
            other.wait_to_see(f"word{number} from inside")
        assert holes(gateway) == []
    with Irssi(lab, "inside", SERVER4, "cat") as cat, Irssi(lab, "stranger", SERVER4, "dan") as dan:
        seen = len(gateway.log_lines())
        dan.says("/dcc chat cat")
        dan.wait_to_see("DCC CHAT connection with")
        for user in (cat, dan):
            user.says("/window goto 2")
        for number, (one, other) in enumerate(((cat, dan), (dan, cat))):
            one.says(f"/msg ={other.nick} word{number} from outside")
            other.wait_to_see(f"word{number} from outside")
        assert not any("pinhole.open" in line for line in gateway.log_lines()[seen:])


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("sender", ["irssi", "WeeChat"])
def test_irssi_and_weechat(lab: Lab, gateway: Gateway, sender: str) -> None:
    """One behind the router offers a file, which the other one outside takes; then half of it is there already. What
    both ends of the connection to the server have seen differs in addresses and ports only."""
    inside, outside = (Irssi, Weechat) if sender == "irssi" else (Weechat, Irssi)
    data = os.urandom(300_000)
    with (
        Tap(lab, "inside", IRC) as within,
        Tap(lab, "outside", IRC) as beyond,
        inside(lab, "inside", SERVER4, "ann") as ann,
        outside(lab, "stranger", SERVER4, "bob") as bob,
    ):
        for name in ("whole.bin", "half.bin"):
            (ann.folder / name).write_bytes(data)
        bob.began("half.bin", data[:100_000])
        for name in ("whole.bin", "half.bin"):
            ann.says(f"/dcc send bob {ann.folder}/{name}")
            lab.wait_for(lambda name=name: bob.has(name, data), 30, name)  # type: ignore[misc]
            if isinstance(ann, Irssi):  # else it would wait with the next one, in vain sometimes
                ann.wait_to_see("DCC sent file")
        lab.wait_for(lambda: holes(gateway) == [], 15, "all ports to be used")
    said, heard = passed(within, beyond)
    own, public = (str(int(ipaddress.ip_address(host))).encode() for host in (CLIENT4, ROUTER_OUT4))
    assert [pair for pair in said if own in pair] == [(own, public)] * 2
    ports = [pair for pair in said if own not in pair]
    assert len(ports) == 3, said  # two offers, and ACCEPT, which names the port of the second one
    assert ports[2] == ports[1]
    assert all(40000 <= int(port) <= 49999 for _, port in ports)
    assert heard == [ports[1][::-1]]  # RESUME
