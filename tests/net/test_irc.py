"""DCC offers over IRC through the router: a client and a server that do what a test says, and strangers."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conformance.ways import by_socks, direct
from tests.lab import irc
from tests.lab.gateway import Gateway
from tests.lab.irc import IRC, Irssi, Weechat
from tests.lab.lab import (
    CLIENT2_4,
    CLIENT4,
    CLIENT6,
    ROUTER_IN4,
    ROUTER_IN6,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    Lab,
    Role,
)
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


@pytest.fixture(params=["redirect", "redirect IPv6", "SOCKS", "SOCKS IPv6"])
def session(request: pytest.FixtureRequest, lab: Lab, gateway: Gateway) -> Iterator[Session]:
    v6 = "6" in request.param
    host = SERVER6 if v6 else SERVER4
    with lab.listen("outside", host, IRC) as listener:
        client = (by_socks if "SOCKS" in request.param else direct)(lab, host, IRC)
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(15)
    inside, router = (CLIENT6, ROUTER_OUT6) if v6 else (CLIENT4, ROUTER_OUT4)
    session = Session(client, server, inside, router, "SOCKS" in request.param)
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


NOTHING: dict[str, Callable[[str], bytes]] = {
    "another host": lambda own: _send(own.rpartition("0")[0] + "9", 5000),
    "a service's port": lambda own: _send(own, 22),
    "a port that is too high": lambda own: _send(own, 65558),
    "a passive offer": lambda own: _send(own, 0),
    "a passive offer as irssi writes it": lambda own: b"PRIVMSG bob :\x01DCC SEND a.txt 16843009 0 100 7\x01\r\n",
    "PONG, CVE-2022-2663": lambda own: b"PONG :" + _send(own, 5000)[13:],
    "within words": lambda own: _send(own, 5000).replace(b":\x01", b":see \x01"),
    "two in a line": lambda own: _send(own, 5000).replace(b"\x01\r", b"\x01\x01DCC SEND b 1 5001 1\x01\r"),
    "quoted as CTCP": lambda own: _send(own, 5000).replace(b"DCC SEND", b"DCC\x10 SEND"),
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_opens_nothing(gateway: Gateway, session: Session, what: str) -> None:
    line = NOTHING[what](session.inside)
    assert session.says(line) == line
    assert holes(gateway) == []


def test_a_host_outside_is_named(lab: Lab, gateway: Gateway, session: Session) -> None:
    """It might be the router's public address, which only an open port tells: so that closes at once (0177)."""
    line = _send("2001:db8::7" if ":" in session.inside else "198.51.100.7", 5000)
    assert session.says(line) == line
    lab.wait_for(lambda: not holes(gateway), 5, "the port to close")


@pytest.mark.parametrize("cut", ["in one segment", "byte by byte"])
def test_two_offers_at_once(lab: Lab, gateway: Gateway, session: Session, cut: str) -> None:
    """Both have a port, however the lines come."""
    said = b"PING :x\r\n" + _send(session.inside, 5000) + _send(session.inside, 5001)
    session.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in [said] if cut == "in one segment" else [bytes([byte]) for byte in said]:
        session.client.sendall(piece)
    read = b""
    while read.count(b"\n") < 3:
        read += session.server.recv(4096)
    first, second = (int(port) for port in re.findall(rb" (\d+) 100\x01", read))
    assert read == b"PING :x\r\n" + _send(session.router, first) + _send(session.router, second)
    assert len(holes(gateway)) == 2
    for own, public in ((5001, second), (5000, first)):
        with listen_inside(lab, session.inside, own) as listener, lab.connect("stranger", session.router, public, 15):
            listener.accept()[0].close()


def test_a_chat_is_offered(lab: Lab, gateway: Gateway, session: Session) -> None:
    own = _send(session.inside, 5000).replace(b"SEND a.txt", b"CHAT chat").replace(b" 100", b"")
    read = session.says(own)
    found = re.search(rb" (\d+)\x01", read)
    assert found is not None
    public = int(found[1])
    assert read == _send(session.router, public).replace(b"SEND a.txt", b"CHAT chat").replace(b" 100", b"")
    assert [hole["reason"] for hole in holes(gateway)] == ["irc.chat"]
    with listen_inside(lab, session.inside, 5000) as listener, lab.connect("stranger", session.router, public) as bob:
        taken, _ = listener.accept()
        with taken:
            bob.sendall(b"hello\n")
            assert taken.recv(100) == b"hello\n"
            taken.sendall(b"hello to you\n")
            assert bob.recv(100) == b"hello to you\n"


@pytest.mark.parametrize("name", [b"my own file.txt", b'"my own file.txt"', "Müller 100 5000.txt".encode(), b"x" * 200])
def test_names_of_files(session: Session, name: bytes) -> None:
    """They are never read further than their end."""
    read = session.says(_send(session.inside, 5000).replace(b"a.txt", name))
    found = re.search(rb" (\d+) 100\x01", read)
    assert found is not None
    assert read == _send(session.router, int(found[1])).replace(b"a.txt", name)


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


@pytest.mark.parametrize(
    ("inside", "proxy", "host", "router"),
    [(CLIENT4, ROUTER_IN4, SERVER6, ROUTER_OUT6), (CLIENT6, ROUTER_IN6, SERVER4, ROUTER_OUT4)],
)
def test_a_server_of_the_other_family(
    lab: Lab, gateway: Gateway, inside: str, proxy: str, host: str, router: str
) -> None:
    """A client of SOCKS reaches it, and those who take its files reach the client likewise."""
    with lab.listen("outside", host, IRC) as listener:
        client = by_socks(lab, host, IRC, proxy)
        server, _ = listener.accept()
    with client, server, listen_inside(lab, inside, 5000) as listener:
        for end in (client, server):
            end.settimeout(15)
        session = Session(client, server, inside, router, True)
        session.says(b"NICK ann\r\n")
        session.hears(WELCOME)
        _, public = session.offer(5000)
        with lab.connect("stranger", router, public, timeout=15) as stranger:
            taken, _ = listener.accept()
            with taken:
                taken.sendall(b"a file")
                assert stranger.recv(100) == b"a file"


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


def send_whole_and_half(lab: Lab, gateway: Gateway, ann: Irssi | Weechat, bob: Irssi | Weechat) -> None:
    """Have `ann` send two files to `bob`, who has a third of the second one already."""
    data = os.urandom(300_000)
    for name in ("whole.bin", "half.bin"):
        (ann.folder / name).write_bytes(data)
    bob.began("half.bin", data[:100_000])
    for name in ("whole.bin", "half.bin"):
        ann.says(f"/dcc send bob {ann.folder}/{name}")
        lab.wait_for(lambda name=name: bob.has(name, data), 30, name)  # type: ignore[misc]
        if isinstance(ann, Irssi):  # else it would wait with the next one, in vain sometimes
            ann.wait_to_see("DCC sent file")
    lab.wait_for(lambda: holes(gateway) == [], 15, "all ports to be used")


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("sender", ["irssi", "WeeChat"])
def test_irssi_and_weechat(lab: Lab, gateway: Gateway, sender: str) -> None:
    """One behind the router offers a file, which the other one outside takes; then half of it is there already. What
    both ends of the connection to the server have seen differs in addresses and ports only."""
    inside, outside = (Irssi, Weechat) if sender == "irssi" else (Weechat, Irssi)
    with (
        Tap(lab, "inside", IRC) as within,
        Tap(lab, "outside", IRC) as beyond,
        inside(lab, "inside", SERVER4, "ann") as ann,
        outside(lab, "stranger", SERVER4, "bob") as bob,
    ):
        send_whole_and_half(lab, gateway, ann, bob)
    said, heard = passed(within, beyond)
    own, public = (str(int(ipaddress.ip_address(host))).encode() for host in (CLIENT4, ROUTER_OUT4))
    assert [pair for pair in said if own in pair] == [(own, public)] * 2
    ports = [pair for pair in said if own not in pair]
    assert len(ports) == 3, said  # two offers, and ACCEPT, which names the port of the second one
    assert ports[2] == ports[1]
    assert all(40000 <= int(port) <= 49999 for _, port in ports)
    assert heard == [ports[1][::-1]]  # RESUME


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("server", ["ngircd"], indirect=True)
@pytest.mark.parametrize("other", ["stranger", "client2"])
def test_names_that_users_choose(lab: Lab, gateway: Gateway, other: Role) -> None:
    """Blanks and other letters; to a user outside, and to one who is behind the same router (hairpin)."""
    with Irssi(lab, "inside", SERVER4, "ann") as ann, Irssi(lab, other, SERVER4, "bob") as bob:
        for name in ("my own file.bin", "Müller 100 5000.bin"):
            data = os.urandom(200_000)
            (ann.folder / name).write_bytes(data)
            ann.says(f'/dcc send bob "{ann.folder}/{name}"')
            lab.wait_for(lambda name=name, data=data: bob.takes(name, data), 20, name)  # type: ignore[misc]
        lab.wait_for(lambda: holes(gateway) == [], 15, "all ports to be used")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("server", ["InspIRCd"], indirect=True)
def test_irssi_asks_the_other_one_to_listen(lab: Lab, gateway: Gateway) -> None:
    """A passive offer from inside needs nothing, and goes as it came."""
    seen = len(gateway.log_lines())
    with (
        Tap(lab, "inside", IRC) as within,
        Tap(lab, "outside", IRC) as beyond,
        Irssi(lab, "inside", SERVER4, "ann") as ann,
        Irssi(lab, "stranger", SERVER4, "bob") as bob,
    ):
        data = os.urandom(200_000)
        (ann.folder / "passive.bin").write_bytes(data)
        ann.says(f"/dcc send -passive bob {ann.folder}/passive.bin")
        lab.wait_for(lambda: bob.has("passive.bin", data), 20, "the file")
    assert passed(within, beyond) == ([], [])
    assert not any("pinhole.open" in line for line in gateway.log_lines()[seen:])


def test_irssi_over_ipv6(lab: Lab, gateway: Gateway) -> None:
    """The offer has an address as text; a file, and the other half of one."""
    server = irc.ngircd(lab, SERVER6)
    try:
        with Irssi(lab, "inside", SERVER6, "ann") as ann, Irssi(lab, "stranger", SERVER6, "bob") as bob:
            seen = len(gateway.log_lines())
            for name in ("whole6.bin", "half6.bin"):
                data = os.urandom(200_000)
                (ann.folder / name).write_bytes(data)
                if name == "half6.bin":
                    bob.began(name, data[:100_000])
                ann.says(f"/dcc send bob {ann.folder}/{name}")
                lab.wait_for(lambda name=name, data=data: bob.has(name, data), 20, name)  # type: ignore[misc]
            edits = [line for line in gateway.log_lines()[seen:] if "alg.edit" in line]
            assert len([line for line in edits if "reason=irc.address" in line]) == 2, edits
            assert len([line for line in edits if "reason=irc.port" in line]) == 4, edits
            lab.wait_for(lambda: holes(gateway) == [], 15, "all ports to be used")
    finally:
        lab.stop(server)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("server", ["InspIRCd"], indirect=True)
def test_weechat_through_socks(lab: Lab, gateway: Gateway) -> None:
    """Its own SOCKS client, for the connection to the server: whoever takes the file comes to a port of the gateway."""
    seen = len(gateway.log_lines())
    with (
        Tap(lab, "inside", 1080) as within,
        Tap(lab, "outside", IRC) as beyond,
        Weechat(lab, "inside", SERVER4, "ann", proxy=ROUTER_IN4) as ann,
        Irssi(lab, "stranger", SERVER4, "bob") as bob,
    ):
        send_whole_and_half(lab, gateway, ann, bob)
    assert any("front=socks" in line for line in gateway.log_lines()[seen:])
    [inside] = within.streams()
    [outside] = [one for one in beyond.streams() if one.source == ROUTER_OUT4]
    said = differences(inside.client[inside.client.index(b"CAP LS") :], outside.client)
    own, public = (str(int(ipaddress.ip_address(host))).encode() for host in (CLIENT4, ROUTER_OUT4))
    assert [pair for pair in said if own in pair] == [(own, public)] * 2
    ports = [pair for pair in said if own not in pair]
    assert len(ports) == 3
    assert ports[2] == ports[1]
    assert differences(outside.server, inside.server[-len(outside.server) :]) == [ports[1][::-1]]
