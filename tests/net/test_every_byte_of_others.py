"""Every byte arrives on the ports of all modules of streams: random pieces, pauses, urgent bytes, slow readers, and all
ways to end a connection, through a running gateway."""

from __future__ import annotations

import fcntl
import random
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab import pptp_text
from tests.lab.bittorrent import http_announce, http_answer
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, Lab
from tests.net.test_every_byte import junk, through

PORTS = {"ftp": 21, "rtsp": 554, "irc": 6667, "bittorrent": 6969, "pptp": 1723, "sip": 5060}
DEADLINE = 40.0


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    alg = {"bittorrent": {"mode": "rewrite"}, "pptp": {"mode": "rewrite"}}
    gateway = lab.start_gateway(lab.write_config(alg=alg))
    pids = gateway.pids()
    yield gateway
    assert gateway.pids() == pids, "a process was replaced" + lab.tail_of_logs()
    assert "alg.broken" not in (gateway.log.read_text() if gateway.log.exists() else "")
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


def _interleaved(chance: random.Random) -> bytes:
    return b"$" + bytes([chance.randrange(2)]) + (size := chance.randrange(1400)).to_bytes(2) + chance.randbytes(size)


# What either side says that a module understands, and what it does not. `{port}`: of the client's own.
SAYS: dict[str, tuple[list[Callable[[random.Random], bytes]], list[Callable[[random.Random], bytes]]]] = {
    "ftp": (
        [
            lambda chance: b"NOOP\r\n",
            lambda chance: b"PORT %b,100,%d\r\n" % (CLIENT4.replace(".", ",").encode(), chance.randrange(256)),
            lambda chance: b"USER \xff\xfe x\r\n",
            lambda chance: b"\xff\xf4\xff\xf2ABOR\r\n",
        ],
        [lambda chance: b"220 here\r\n", lambda chance: b"200-a\r\n 227 (1,2,3,4,5,6)\r\n200 b\r\n"],
    ),
    "rtsp": (
        [
            lambda chance: b"OPTIONS rtsp://a/ RTSP/1.0\r\nCSeq: 1\r\n\r\n",
            lambda chance: (
                b"SETUP rtsp://a/1 RTSP/1.0\r\nCSeq: 2\r\nTransport: RTP/AVP;unicast;client_port=%d-%d\r\n\r\n"
                % (port := chance.randrange(4000, 6000) & ~1, port + 1)
            ),
            lambda chance: b"ANNOUNCE rtsp://a/ RTSP/1.0\r\nCSeq: 3\r\nContent-Length: 5\r\n\r\nabcde",
            _interleaved,
        ],
        [
            lambda chance: b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: SETUP\r\n\r\n",
            lambda chance: b"RTSP/1.0 401 No\r\nCSeq: 2\r\n\r\n",
            _interleaved,
        ],
    ),
    "irc": (
        [
            lambda chance: b"NICK ann\r\nUSER ann 0 * :Ann\r\n",
            lambda chance: b"PRIVMSG bob :%b\r\n" % (b"x" * chance.randrange(600)),
            lambda chance: (
                b"PRIVMSG bob :\x01DCC SEND a.txt %d %d 100\x01\r\n"
                % (int.from_bytes(socket.inet_aton(CLIENT4)), chance.randrange(4000, 6000))
            ),
            lambda chance: b"PONG :\x01DCC SEND\x01\n",
        ],
        [
            lambda chance: b":irc.example.test 001 ann :Welcome\r\n",
            lambda chance: b":bob!b@h PRIVMSG ann :\x01DCC SEND b.txt 16909060 5000 10\x01\r\n",
            lambda chance: b"PING :1\r\n",
        ],
    ),
    "bittorrent": (
        [
            lambda chance: http_announce(chance.randbytes(20), chance.randrange(4000, 6000)),
            lambda chance: b"GET /scrape?info_hash=%%00 HTTP/1.1\r\nHost: a\r\n\r\n",
            lambda chance: b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789",
        ],
        [lambda chance: http_answer(), lambda chance: b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"],
    ),
    "pptp": (
        [
            lambda chance: pptp_text.start_request(),
            lambda chance: pptp_text.call_request(chance.randrange(1, 9)),
            lambda chance: pptp_text.set_link_info(chance.randrange(1, 9)),
            lambda chance: pptp_text.message(5, b"echo", 16),
        ],
        [
            lambda chance: pptp_text.start_reply(),
            lambda chance: pptp_text.message(6, b"echo", 20),
            lambda chance: pptp_text.disconnect_notify(3),
        ],
    ),
    "sip": (
        [lambda chance: b"OPTIONS sip:a@b SIP/2.0\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 3\r\n\r\nabc"],
        [lambda chance: b"SIP/2.0 200 OK\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n\r\n", lambda chance: b"\r\n\r\n"],
    ),
}
# Where a module may have written another port or address; all other bytes are as they were.
EDITED = {
    "ftp": rb"(?<=PORT )\d+,\d+,\d+,\d+,\d+,\d+",
    "rtsp": rb"(?<=client_port=)\d+-\d+",
    "irc": rb"(?<=DCC SEND a\.txt )\d+ \d+",
    "bittorrent": rb"(?<=&port=)\d+",
    "pptp": None,
    "sip": None,
}


def without_edits(name: str, data: bytes) -> bytes:
    """The bytes, with all that a module may have edited taken out."""
    if name == "pptp":  # the call ID of a request (RFC 2637, 2.7), and in what names that call
        return re.sub(re.escape(pptp_text.call_request(0)[:12]) + rb"..", b"a call of ??", data, flags=re.DOTALL)
    pattern = EDITED[name]
    return re.sub(pattern, b"?", data) if pattern else data


def words(name: str, side: int, chance: random.Random) -> bytes:
    """What a side says: mostly what the module reads, then perhaps something else."""
    known = SAYS[name][side]
    said = b"".join(chance.choice(known)(chance) for _ in range(chance.randrange(12)))
    match chance.randrange(4):
        case 0:
            said += junk(chance.choice([1, 900, 40_000, 300_000]))
        case 1:
            said = said[: chance.randrange(len(said) + 1)]  # in the middle of a message
    return said


class Talk:
    """One side of a connection: says what it has, hears what comes, and ends."""

    def __init__(self, sock: socket.socket, said: bytes, chance: random.Random, slow: bool) -> None:
        self.sock, self.said, self.chance, self.slow = sock, said, chance, slow
        self.heard = bytearray()
        self.error: OSError | None = None
        self.ended = threading.Event()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def say(self) -> None:
        at = 0
        while at < len(self.said):
            size = self.chance.choice([1, 2, 7, 100, 1000, 20_000, 1 << 20])
            piece = self.said[at : at + size]
            at += len(piece)
            if len(self.said) > 100_000 and size < 1000:
                piece = self.said[at - len(piece) : at + 1000]
                at += 1000
            if self.chance.randrange(6) == 0:
                self.sock.sendall(piece[:-1])
                self.sock.send(piece[-1:], socket.MSG_OOB)
            else:
                self.sock.sendall(piece)
            if self.chance.randrange(5) == 0:
                time.sleep(self.chance.random() / 100)

    def hear(self) -> None:
        try:
            while part := self.sock.recv(500 if self.slow else 65536):
                self.heard += part
                if self.slow and len(self.heard) < 20_000:
                    time.sleep(0.002)
        except OSError as error:
            self.error = error
        self.ended.set()


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the gateway's kernel has not confirmed yet."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])


@pytest.mark.parametrize("way", ["transparent", "socks"])
@pytest.mark.parametrize("name", PORTS)
def test_what_was_said_right_before_a_reset_arrives(lab: Lab, gateway: Gateway, name: str, way: str) -> None:
    """The reset is there before the gateway looks at the connection, which then has no other end any more: of 400 such
    connections 372 lost all that they had said."""
    chance = random.Random(name)
    for _ in range(20):
        said = b"".join(chance.choice(SAYS[name][0])(chance) for _ in range(3))
        client, server = through(lab, way, PORTS[name])
        client.sendall(said)
        lab.wait_for(lambda: not unacknowledged(client), DEADLINE, "the gateway to have all")  # noqa: B023
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        heard = Talk(server, b"", chance, slow=False)
        heard.hear()
        assert without_edits(name, bytes(heard.heard)) == without_edits(name, said)
        assert isinstance(heard.error, ConnectionResetError)
        server.close()


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8))])
@pytest.mark.parametrize("end", ["half-close", "close", "reset"])
@pytest.mark.parametrize("way", ["transparent", "socks"])
@pytest.mark.parametrize("name", PORTS)
def test_whatever_is_said_and_however_it_ends(
    lab: Lab, gateway: Gateway, name: str, way: str, end: str, seed: int
) -> None:
    chance = random.Random(f"{name} {way} {end} {seed}")
    client_end, server_end = through(lab, way, PORTS[name])
    client = Talk(client_end, words(name, 0, chance), chance, slow=chance.randrange(3) == 0)
    server = Talk(server_end, words(name, 1, chance) if end == "half-close" else b"", chance, chance.randrange(3) == 0)
    threads = [threading.Thread(target=one, daemon=True) for side in (client, server) for one in (side.say, side.hear)]
    if end != "half-close":
        threads = [threading.Thread(target=client.say, daemon=True), threading.Thread(target=server.hear, daemon=True)]
    try:
        for thread in threads:
            thread.start()
        if end == "half-close":
            for side, thread in ((client, threads[0]), (server, threads[2])):
                thread.join(DEADLINE)
                side.sock.shutdown(socket.SHUT_WR)
        else:
            threads[0].join(DEADLINE)
            lab.wait_for(lambda: not unacknowledged(client.sock), DEADLINE, "the gateway to have all")
            if end == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()
        assert server.ended.wait(DEADLINE), f"the server waits, after {len(server.heard)} of {len(client.said)}"
        heard = bytes(server.heard)
        assert without_edits(name, heard) == without_edits(name, client.said)
        assert (server.error is not None) == (end == "reset"), server.error
        if end == "half-close":
            assert client.ended.wait(DEADLINE), f"the client waits, after {len(client.heard)} of {len(server.said)}"
            assert without_edits(name, bytes(client.heard)) == without_edits(name, server.said)
            assert client.error is None
        server.sock.close()
        lab.wait_for(lambda: not gateway.admin("flows"), DEADLINE, "the flow to end")
    finally:
        client.sock.close()
        server.sock.close()
