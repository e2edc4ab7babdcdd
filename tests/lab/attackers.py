"""Attackers of the lab, each as hard as it can, and the servers that they use: `python -m tests.lab.attackers`.

tests/bench/attacks.py measures what they do to everybody else, and tests/net/test_attacks.py looks that every process
of the gateway answers meanwhile.

    attack NAME         one of ATTACKS, until it is ended
    serve echo|others   the servers
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, Lab, LabError, Role

SOCKS, ECHO, BULK, FTP, SIP, PUBLISHED, SINK, CONFIRMED = 1080, 7007, 7008, 21, 5060, 2121, 7009, 7010
IDENT, SILENT_NAMES = 113, 5398
GIVE_UP = 5.0  # seconds for one connection
STEP = 65536
SEED = 11
MESSAGE = b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 0\r\n\r\n"


def in_the_background() -> None:
    """Attackers, and the servers of attacks, are other machines in truth: here they get only what of the processors the
    gateway and everybody else leave. A niceness counts within a session, where the kernel groups by sessions."""
    os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def in_the_foreground() -> None:
    """The clients whose waiting is measured, and their servers, are other machines too: they never wait for a processor
    that the gateway or an attacker keeps busy here. It holds for the threads that are made from now on too."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


def forever(work: Callable[[], None], count: int = 1) -> None:
    """Run `work` again and again in so many threads, whatever becomes of its connections."""

    def run() -> None:
        while True:
            with contextlib.suppress(OSError):
                work()
            time.sleep(0.01)

    for _ in range(count - 1):
        threading.Thread(target=run, daemon=True).start()
    run()


def flood(host: str, port: int, unit: bytes, first: bytes = b"") -> None:
    """Say `unit` as fast as it is taken, and read what comes."""
    with socket.create_connection((host, port), 5) as sock:
        threading.Thread(target=_swallow, args=[sock], daemon=True).start()
        sock.sendall(first)
        piece = unit * max(1, 65536 // len(unit))
        while True:
            sock.sendall(piece)


def _swallow(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(STEP):
            pass


def dribbled_message() -> None:
    """A SIP message of 7,000 headers, and then its body byte by byte."""
    with socket.create_connection((SERVER4, SIP), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"OPTIONS sip:a SIP/2.0\r\n" + b"a:\r\n" * 7000 + b"Content-Length: 30000\r\n\r\n")
        for _ in range(30000):
            sock.sendall(b"x")


def socks(host: str, port: int, command: int = 1) -> socket.socket:
    """A connection through the gateway."""
    sock = socket.create_connection((ROUTER_IN4, SOCKS), GIVE_UP)
    sock.settimeout(GIVE_UP)
    sock.sendall(b"\5\1\0")
    exactly(sock, 2)
    sock.sendall(bytes((5, command, 0, 1)) + socket.inet_aton(host) + port.to_bytes(2, "big"))
    answer = exactly(sock, 10)
    if answer[1]:
        sock.close()
        raise ConnectionRefusedError(f"SOCKS reply {answer[1]}")
    return sock


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError("closed")
        data += part
    return data


def association() -> None:
    """The control connection of a UDP association, flooded."""
    with socks("0.0.0.0", 0, 3) as sock:
        while True:
            sock.sendall(bytes(STEP))


def download() -> None:
    """A bulk transfer at full speed."""
    with socks(SERVER4, SINK) as sock:
        sock.sendall(b"d")
        while sock.recv(1 << 20):
            pass


def urgent() -> None:
    """A bulk transfer with urgent bytes in it."""
    with socks(SERVER4, SINK) as sock:
        sock.sendall(b"u")
        while True:
            sock.sendall(bytes(STEP))
            sock.send(b"!", socket.MSG_OOB)


def handshake() -> None:
    """Handshakes that go as far as the request and then dribble."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(100):
            sock = socket.create_connection((ROUTER_IN4, SOCKS), 5)
            stack.enter_context(sock)
            held.append(sock)
        for byte in b"\5\xff" + bytes(200):
            for sock in held:
                sock.send(bytes([byte]))


HTTP_HEAD = f"CONNECT {SERVER4}:{SINK} HTTP/1.1\r\n".encode()
"""Not to the victim's own server: some of these heads do end, and what is said then is for the server to bear."""

HALF_HEADS = (
    (b"", HTTP_HEAD),
    (HTTP_HEAD + b"a:", b"x"),
    (HTTP_HEAD + b"a:" + b"x" * 15000, b"x"),
    (HTTP_HEAD, b"\r\n\r"),
    (HTTP_HEAD, b"\n"),
    (b"CONNECT a.example:80 HTTP/1.1\r\n", b"a:\r\n"),
)
"""Beginnings of heads of HTTP that do not end, and with what they go on."""


def heads() -> None:
    """Heads of HTTP that come byte by byte and do not end."""
    with contextlib.ExitStack() as stack:
        held = []
        for start, unit in HALF_HEADS * 50:
            sock = stack.enter_context(socket.create_connection((ROUTER_IN4, SOCKS), 5))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(start)
            held.append((sock, unit))
        for turn in range(16384):
            for sock, unit in held:
                sock.send(unit[turn % len(unit) :][:1])


def fields() -> None:
    """A head of HTTP of 4,000 fields, for one connection."""
    with socket.create_connection((ROUTER_IN4, SOCKS), 5) as sock:
        sock.settimeout(GIVE_UP)
        sock.sendall(HTTP_HEAD + b"a:\r\n" * 4000 + b"\r\n")
        while sock.recv(STEP):
            pass


def protected(up: bool) -> None:
    """A bulk transfer through GSSAPI with confidentiality."""
    from tests.net import gssapi_client  # where the library is

    client = gssapi_client.Client(ROUTER_IN4, SOCKS)
    with client.sock:
        client.authenticate()
        client.agree(2)
        client.send(b"\5\1\0" + gssapi_client.address(SERVER4, SINK))
        client.receive()
        client.send(b"u" if up else b"d")
        piece = bytes(20000)
        while client.sock.recv(1 << 20) if not up else True:  # nobody need read what came
            if up:
                client.send(piece)


def ident() -> None:
    """Requests that make the gateway ask us for a user, over and over; the answer is nearly nothing but blanks."""

    def answer(sock: socket.socket) -> None:
        asked = sock.recv(STEP).strip()
        sock.sendall(asked + b" " * 950 + b": USERID : UNIX :" + b" " * 20 + b"\r\n")

    def ask() -> None:
        with socks(SERVER4, CONFIRMED):
            pass

    threading.Thread(target=_listen, args=[IDENT, answer], daemon=True).start()
    forever(ask, 8)


def names() -> None:
    """Requests for names of a silent server, as many as are taken."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(socket.create_connection((ROUTER_IN4, SOCKS), GIVE_UP))
            name = f"n{next(_numbers)}.{os.getpid()}.example.net".encode()
            sock.sendall(b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name + ECHO.to_bytes(2, "big"))
        time.sleep(1)


_numbers = itertools.count()
_held: list[socket.socket] = []


def idle() -> None:
    """Connections through the gateway that are kept, as many as are given."""
    _held.append(socks(SERVER4, SINK))


def associations() -> None:
    """UDP associations that are kept, as many as are given."""
    _held.append(socks("0.0.0.0", 0, 3))


def datagrams() -> None:
    """Datagrams to the port of SIP, from a thousand sockets."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(1000)]
    for sock in itertools.cycle(sockets):
        with contextlib.suppress(OSError):
            sock.sendto(MESSAGE, (SERVER4, SIP))


class Attack(NamedTuple):
    """What is done (as a table says it), by whom, how, and in how many threads; `extra`: "gssapi" for a gateway that
    asks for it."""

    title: str
    role: Role
    work: Callable[[], None]
    threads: int = 4
    extra: str = ""


ATTACKS: dict[str, Attack] = {
    "ftp-lines": Attack("FTP: one letter a line, from a client", "inside", lambda: flood(SERVER4, FTP, b"A\n")),
    "ftp-blank": Attack("FTP: blank lines, from a client", "inside", lambda: flood(SERVER4, FTP, b"\n")),
    "ftp-replies": Attack(
        "FTP: replies that nobody waits for, from the server that a client has chosen",
        "inside",
        lambda: flood(SERVER4, FTP, b"NOOP\r\n", b"FLOOD\r\n"),
    ),
    "ftp-stranger": Attack(
        "FTP: one letter a line, from a stranger at a published server",
        "stranger",
        lambda: flood(ROUTER_OUT4, PUBLISHED, b"A\n"),
    ),
    "sip-junk": Attack("SIP over TCP: junk", "inside", lambda: flood(SERVER4, SIP, random.Random(1).randbytes(65536))),
    "sip-headers": Attack("SIP over TCP: 7,000 headers, then the body byte by byte", "inside", dribbled_message, 30),
    "sip-messages": Attack(
        "SIP over TCP: small messages, 30 connections", "inside", lambda: flood(SERVER4, SIP, MESSAGE), 30
    ),
    "sip-datagrams": Attack("SIP over UDP: datagrams from a thousand sockets", "inside", datagrams, 1),
    "association": Attack("SOCKS: control connections of UDP associations, flooded", "inside", association, 6),
    "associations": Attack("SOCKS: as many UDP associations as there are", "inside", associations),
    "idle": Attack("SOCKS: as many idle connections as there are", "inside", idle),
    "names": Attack("SOCKS: names of a silent server", "inside", names),
    "handshakes": Attack("SOCKS: hundreds of handshakes that dribble", "inside", handshake),
    "http-heads": Attack("HTTP CONNECT: hundreds of heads that dribble and do not end", "inside", heads),
    "http-fields": Attack("HTTP CONNECT: heads of 4,000 fields", "inside", fields),
    "downloads": Attack("SOCKS: 20 downloads at full speed", "inside", download, 20),
    "urgent": Attack("SOCKS: urgent bytes in uploads at full speed", "inside", urgent),
    "ident": Attack("ident: answers of 950 blanks", "inside", ident, 1),
    "gssapi-down": Attack("GSSAPI: protected downloads at full speed", "inside", lambda: protected(False), 4, "gssapi"),
    "gssapi-up": Attack("GSSAPI: protected uploads at full speed", "inside", lambda: protected(True), 4, "gssapi"),
}


def sections(name: str, kerberos: Any = None) -> dict[str, Any]:
    """What a gateway needs in its configuration, so that an attack is possible; `kerberos` for those with GSSAPI."""
    users: dict[str, Any] = {"protocols": ["socks5", "socks4", "http"]} if name.startswith("http-") else {}
    if ATTACKS[name].extra == "gssapi":
        file = kerberos.home / "users"
        file.write_text("ann:*:staff\n")
        kerberos.keytab.chmod(0o600)
        users = {
            "auth": ["none", "gssapi"],
            "users": str(file),
            "gssapi": {"keytab": str(kerberos.keytab), "realm": kerberos.realm, "protection": ["confidentiality"]},
        }
    confirmed = [
        {"name": "confirmed", "action": "permit", "port": [CONFIRMED], "user": ["root"], "ident": True},
        {"name": "unconfirmed", "action": "deny", "port": [CONFIRMED]},
        {"name": "all", "action": "permit"},
    ]
    return {
        "publish": [{"outside": f"{ROUTER_OUT4}:{PUBLISHED}", "inside": f"{CLIENT4}:{FTP}"}],
        "socks": users,
        "dns": {"servers": [f"{SERVER4}:{SILENT_NAMES}"]} if name == "names" else {},
        "rule": confirmed if name == "ident" else None,
    }


def serve(which: str) -> None:
    """The servers outside: "echo" and a transfer, or those of attacks (a sink and source, FTP, SIP)."""

    def echo(sock: socket.socket) -> None:
        while data := sock.recv(STEP):
            sock.sendall(data)

    def bulk(sock: socket.socket) -> None:
        data = random.Random(SEED).randbytes(1 << 20)
        while True:
            for at in range(0, len(data), STEP):
                sock.sendall(data[at : at + STEP])
                time.sleep(STEP / 10e6)

    def sink(sock: socket.socket) -> None:
        if sock.recv(1) == b"d":
            while True:
                sock.sendall(bytes(1 << 20))
        _swallow(sock)

    def ftp(sock: socket.socket) -> None:
        sock.sendall(b"220 here\r\n")
        if b"FLOOD" in sock.recv(STEP):
            threading.Thread(target=_swallow, args=[sock], daemon=True).start()
            while True:
                sock.sendall(b"200\n" * 16384)
        _swallow(sock)

    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # a name server that never answers
    if which != "echo":
        silent.bind(("", SILENT_NAMES))
    ours, theirs = {ECHO: echo, BULK: bulk}, {SINK: sink, FTP: ftp, SIP: _swallow}
    for port, talk in (ours if which == "echo" else theirs).items():
        threading.Thread(target=_listen, args=[port, talk], daemon=True).start()
    threading.Event().wait()


def _listen(port: int, talk: Callable[[socket.socket], None]) -> None:
    def handle(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            talk(sock)

    listener = socket.create_server(("", port), backlog=1024)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=handle, args=[sock], daemon=True).start()


@contextlib.contextmanager
def servers(lab: Lab) -> Iterator[None]:
    """The servers that attackers and their victims use."""
    places: list[tuple[Role, str]] = [("outside", "echo"), ("outside", "others"), ("inside", "others")]
    with contextlib.ExitStack() as stack:
        for role, which in places:
            stack.enter_context(running(lab, role, "serve", which))
        lab.wait_for(lambda: _reachable(lab), 10, "the servers")
        yield


@contextlib.contextmanager
def running(lab: Lab, role: Role, *arguments: str, env: dict[str, str] | None = None) -> Iterator[None]:
    """This program in a namespace."""
    process = lab.popen(role, [sys.executable, "-m", "tests.lab.attackers", *arguments], env=env)
    try:
        yield
        if process.poll() is not None:
            raise LabError(f"{arguments} has ended{lab.tail_of_logs()}")
    finally:
        lab.stop(process, 0.5)


def _reachable(lab: Lab) -> bool:
    try:
        lab.connect("outside", SERVER4, ECHO).close()
        lab.connect("outside", SERVER4, SIP).close()
        lab.connect("inside", CLIENT4, FTP).close()
    except OSError:
        return False
    return True


def main() -> None:
    match sys.argv[1:]:
        case ["attack", name]:
            in_the_background()
            forever(ATTACKS[name].work, ATTACKS[name].threads)
        case ["serve", which]:
            if which == "echo":
                in_the_foreground()
            else:
                in_the_background()
            serve(which)


if __name__ == "__main__":
    main()
