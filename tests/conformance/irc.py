"""`python -m tests.conformance.irc`: direct connections of IRC with the gateway, the kernel's helper and neither.

Needs root. Puts the table into docs/protocols/irc.md. With `--check` it writes nothing. Exit code 1 where the gateway
failed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.table import Trial, gateway, kernel_helper, main, plain_nat
from tests.lab import irc
from tests.lab.irc import IRC, Irssi
from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, Lab

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "irc.md"
WAIT = 3.0  # seconds until something that should have come has not
OWN = str(int(ipaddress.ip_address(CLIENT4))).encode()
PUBLIC = str(int(ipaddress.ip_address(ROUTER_OUT4))).encode()


@contextlib.contextmanager
def session(lab: Lab, begin: bytes = b"NICK ann\r\n") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client that its server has welcomed, and the server's end."""
    with lab.listen("outside", SERVER4, IRC) as listener, lab.connect("inside", SERVER4, IRC) as client:
        server, _ = listener.accept()
        with server:
            for end in (client, server):
                end.settimeout(WAIT)
            passed(client, server, begin)
            passed(server, client, b":irc.example.test 001 ann :Welcome\r\n")
            yield client, server


def passed(sender: socket.socket, receiver: socket.socket, *parts: bytes) -> bytes:
    """How the other side reads it; parts are segments of their own."""
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    read = b""
    for part in parts:
        sender.sendall(part)
    while read.count(b"\n") < b"".join(parts).count(b"\n"):
        more = receiver.recv(4096)
        assert more, read
        read += more
    return read


def offer(port: int, name: bytes = b"a.txt", kind: bytes = b"SEND", address: bytes = OWN) -> bytes:
    return b"PRIVMSG bob :\x01DCC %b %b %b %d 100\x01\r\n" % (kind, name, address, port)


def offered(read: bytes, kind: bytes = b"SEND") -> int:
    """The public port in an offer that names the router."""
    found = re.search(rb"DCC " + kind + rb" .* (\d+) (\d+) 100\x01", read)
    assert found is not None, read
    assert found[1] == PUBLIC, read
    return int(found[2])


def taken(lab: Lab, port: int, inside: int) -> bool:
    """Whether a stranger's connection comes to the client."""
    with lab.listen("inside", CLIENT4, inside) as listener:
        try:
            with lab.connect("stranger", ROUTER_OUT4, port, timeout=1):
                listener.settimeout(1)
                listener.accept()[0].close()
        except OSError:
            return False
    return True


def works(title: str, *parts: bytes, port: int, kind: bytes = b"SEND") -> Trial:
    """An offer that has to be read, and whose port has to open."""

    def attempt(lab: Lab) -> None:
        with session(lab) as (client, server):
            read = passed(client, server, *parts)
            assert taken(lab, offered(read, kind), port)

    return Trial(title, attempt)


def stays(title: str, said: bytes, port: int, begin: bytes = b"NICK ann\r\n") -> Trial:
    """What has to pass as it is, and to open nothing."""

    def attempt(lab: Lab) -> None:
        with session(lab, begin) as (client, server):
            assert passed(client, server, said) == said
            assert not taken(lab, port, port)

    return Trial(title, attempt)


def irssi(lab: Lab) -> None:
    server = irc.ngircd(lab, SERVER4)
    try:
        with Irssi(lab, "inside", SERVER4, "ann") as ann, Irssi(lab, "stranger", SERVER4, "bob") as bob:
            data = os.urandom(100_000)
            (ann.folder / "file.bin").write_bytes(data)
            ann.says(f"/dcc send bob {ann.folder}/file.bin")
            lab.wait_for(lambda: bob.has("file.bin", data), 10, "the file")
    finally:
        lab.stop(server)


def two_offers(lab: Lab) -> None:
    with session(lab) as (client, server):
        first, second = passed(client, server, offer(5021) + offer(5022)).splitlines()
        assert offered(first) != offered(second)


def second_taker(lab: Lab) -> None:
    with session(lab) as (client, server):
        port = offered(passed(client, server, offer(5023)))
        assert taken(lab, port, 5023)
        assert not taken(lab, port, 5023)


def who_came(lab: Lab) -> None:
    """The client sees the address of who connects to it."""
    with session(lab) as (client, server), lab.listen("inside", CLIENT4, 5024) as listener:
        port = offered(passed(client, server, offer(5024)))
        with lab.connect("stranger", ROUTER_OUT4, port, timeout=2) as stranger:
            connection, address = listener.accept()
            connection.close()
            assert address[0] == stranger.getsockname()[0]


def resume(lab: Lab) -> None:
    """The client hears of its own port, and the other one of the public one."""
    with session(lab) as (client, server):
        port = offered(passed(client, server, offer(5025)))
        line = b":bob!b@x PRIVMSG ann :\x01DCC RESUME a.txt %d 50\x01\r\n"
        assert passed(server, client, line % port) == line % 5025
        line = b"PRIVMSG bob :\x01DCC ACCEPT a.txt %d 50\x01\r\n"
        assert passed(client, server, line % 5025) == line % port


HTTP = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"
TRIALS = [
    Trial("irssi sends a file", irssi),
    works("an offer of a file", offer(5001), port=5001),
    works("an encrypted one (SSEND)", offer(5002, kind=b"SSEND"), port=5002, kind=b"SSEND"),
    works("a name in quotes, with blanks", offer(5003, b'"my file.txt"'), port=5003),
    works("behind another line in one segment", b"PING :x\r\n" + offer(5004), port=5004),
    works("cut in the port", offer(5005)[:45], offer(5005)[45:], port=5005),
    works("message tags of IRCv3 before it", b"@label=1 " + offer(5006), port=5006),
    works("in a NOTICE", offer(5007).replace(b"PRIVMSG", b"NOTICE"), port=5007),
    Trial("two offers in one segment", two_offers),
    Trial("RESUME and ACCEPT name the port that each side knows", resume),
    Trial("one connection only", second_taker),
    Trial("the client sees who came", who_came),
    stays("PONG with an offer in it (CVE-2022-2663) opens nothing", b"PONG :" + offer(5012)[13:], 5012),
    stays("HTTP with an offer in its body opens nothing", offer(5013), 5013, HTTP),
    stays("another host's address opens nothing", offer(5014, address=b"3232249955"), 5014),
    stays("a service's port (3306) opens nothing", offer(3306), 3306),
]
WAYS = {
    "plain NAT": plain_nat,
    "nf_conntrack_irc": kernel_helper("irc", "tcp", IRC, ["iptables"]),
    "algate": gateway(process={"workers": 1}),
}

if __name__ == "__main__":
    sys.exit(main("tests.conformance.irc", PAGE, TRIALS, WAYS, sys.argv[1:]))
