"""Peers of BitTorrent for tests that say what is on the wire: a client that listens, a tracker, and the real ones."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.peers import installed, unpacked

if TYPE_CHECKING:
    import subprocess

    from tests.lab.lab import Lab, Role

PSTR = b"\x13BitTorrent protocol"
TRACKER = 6969
PIECE = 16384


class Listener:
    """A client's listening port: answers the handshake for the torrents `known`, hangs up on others."""

    def __init__(self, lab: Lab, role: Role, host: str, port: int, *known: bytes) -> None:
        self.host, self.port, self.known = host, port, list(known)
        with lab.enter(role):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._sock = socket.create_server((host, port), family=family)
        self.peers: list[str] = []  # who has shaken hands
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)  # a thread waits in accept, which closing does not end
        self._sock.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = self._sock.accept()
                threading.Thread(target=self._greet, args=(connection, str(address[0])), daemon=True).start()

    def _greet(self, connection: socket.socket, host: str) -> None:
        connection.settimeout(20)
        with connection, contextlib.suppress(OSError):
            data = b""
            while len(data) < 68:
                more = connection.recv(68 - len(data))
                if not more:
                    return
                data += more
            if data[:20] != PSTR or data[28:48] not in self.known:
                return
            self.peers.append(host)
            connection.sendall(PSTR + b"\0\0\0\0\0\x10\0\5" + data[28:48] + b"-XX0001-abcdefghijkl")
            while more := connection.recv(4096):
                connection.sendall(more)  # an echo, for tests that ask whether a connection lives


def shakes_hands(lab: Lab, role: Role, host: str, port: int, info_hash: bytes, timeout: float = 5) -> socket.socket:
    """A peer's connection to a client's public port, after the handshake. OSError where nobody answers."""
    sock = lab.connect(role, host, port, timeout)
    try:
        sock.sendall(PSTR + bytes(8) + info_hash + b"-YY0001-abcdefghijkl")
        data = b""
        while len(data) < 68:
            more = sock.recv(68 - len(data))
            if not more:
                raise ConnectionError("hung up")
            data += more
        assert data[28:48] == info_hash
    except BaseException:
        sock.close()
        raise
    return sock


def http_announce(info_hash: bytes, port: int | str, more: str = "", headers: str = "") -> bytes:
    """As aria2 writes it."""
    known = urllib.parse.quote(info_hash, safe="")
    query = f"info_hash={known}&peer_id=A2-1-36-0-123456789a&uploaded=0&downloaded=0&left=0&compact=1&key=abcd"
    head = "User-Agent: aria2/1.36.0\r\nAccept: */*\r\nHost: tracker.example\r\n"
    return f"GET /announce?{query}&no_peer_id=1&port={port}{more} HTTP/1.1\r\n{head}{headers}\r\n".encode()


def http_answer(interval: int = 1800) -> bytes:
    body = f"d8:intervali{interval}e5:peers0:e"
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def udp_connect(transaction: bytes = b"conn") -> bytes:
    return bytes.fromhex("0000041727101980") + bytes(4) + transaction


def udp_announce(connection: bytes, info_hash: bytes, port: int, event: int = 2, host: str = "0.0.0.0") -> bytes:
    """As libtorrent writes it, with the options of BEP 41 behind."""
    data = connection + b"\0\0\0\1anno" + info_hash + b"-LT2080-123456789abc" + bytes(24) + event.to_bytes(4)
    data += ipaddress.ip_address(host).packed + b"key!" + b"\xff" * 4 + port.to_bytes(2)
    return data + b"\x02\x09/announce"


def torrent(path: Path, tracker: str) -> tuple[bytes, bytes]:
    """A torrent's file for one file, and its info hash."""
    data = path.read_bytes()
    pieces = b"".join(hashlib.sha1(data[at : at + PIECE]).digest() for at in range(0, len(data), PIECE))
    name = path.name.encode()
    info = b"d6:lengthi%de4:name%d:%b12:piece lengthi%de6:pieces%d:%be" % (
        len(data), len(name), name, PIECE, len(pieces), pieces,
    )  # fmt: skip
    made = b"d8:announce%d:%b4:info%be" % (len(tracker), tracker.encode(), info)
    return made, hashlib.sha1(info).digest()


def opentracker(lab: Lab, host: str, *hashes: bytes) -> subprocess.Popen[bytes]:
    """opentracker outside, for these torrents, over HTTP and UDP at `TRACKER`."""
    program = unpacked("opentracker", "usr/bin/opentracker")
    folder = lab.tmp / f"tracker{len(list(lab.tmp.glob('tracker*')))}"
    folder.mkdir()
    (folder / "allowed").write_text("".join(f"{info_hash.hex().upper()}\n" for info_hash in hashes))
    argv: list[str | Path] = [program, "-i", host, "-p", str(TRACKER), "-P", str(TRACKER), "-u", "nobody"]
    process = lab.popen("outside", [*argv, "-d", folder, "-w", "allowed"])

    def serves() -> bool:
        assert process.poll() is None, lab.tail_of_logs()
        try:
            lab.connect("outside", host, TRACKER, timeout=1).close()
        except OSError:
            return False
        return True

    lab.wait_for(serves, 10, "opentracker")
    return process


def aria2(lab: Lab, role: Role, folder: Path, file: Path, port: int, *more: str) -> subprocess.Popen[bytes]:
    """aria2 with one torrent, at this port, with nothing but its tracker to find peers by.

    It asks trackers over UDP by the socket of its DHT, which has nobody here to ask.
    """
    argv = [
        str(installed("aria2", "/usr/bin/aria2c")), "--no-conf", f"--dir={folder}", f"--listen-port={port}",
        "--enable-dht=true", f"--dht-listen-port={port}", f"--dht-file-path={folder}/dht.dat", "--enable-dht6=false",
        "--enable-peer-exchange=false", "--bt-enable-lpd=false", "--check-certificate=false",
        "--console-log-level=notice", "--summary-interval=0", "--file-allocation=none", "--bt-hash-check-seed=true",
        "--allow-overwrite=true", "--check-integrity=true", "--disable-ipv6=true", *more, str(file),
    ]  # fmt: skip
    return lab.popen(role, argv)


_SEED = """
import sys, time
import libtorrent as lt
folder, known, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
off = ("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp")
session = lt.session({"listen_interfaces": f"0.0.0.0:{port}", **dict.fromkeys(off, False)})
session.add_torrent({"ti": lt.torrent_info(known), "save_path": folder})
while True:
    time.sleep(1)
"""


def libtorrent(lab: Lab, role: Role, folder: Path, file: Path, port: int) -> subprocess.Popen[bytes]:
    """libtorrent (of qBittorrent and Deluge) with one torrent, at this port, with nothing but its tracker."""
    modules = "/usr/lib/python3/dist-packages"
    if not list(Path(modules).glob("libtorrent*")):
        pytest.skip("python3-libtorrent is not installed: make setup brings it, where this release has it")
    return lab.popen(role, [installed("python3", "/usr/bin/python3"), "-c", _SEED, folder, file, str(port)])


def rtorrent(lab: Lab, role: Role, folder: Path, file: Path, port: int) -> subprocess.Popen[bytes]:
    """rtorrent with one torrent, at this port, with nothing but its tracker. It asks trackers over UDP by a socket that
    is not the listening one."""
    program = installed("rtorrent", "/usr/bin/rtorrent")
    options = {
        "network.port_range.set": f"{port}-{port}",
        "network.port_random.set": "no",
        "directory.default.set": str(folder),
        "dht.mode.set": "disable",
        "protocol.pex.set": "no",
        "trackers.use_udp.set": "yes",
        "pieces.hash.on_completion.set": "no",
        "system.daemon.set": "true",
    }
    set_ = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return lab.popen(role, [program, "-n", *set_, file])


def peers_of(lab: Lab, host: str, info_hash: bytes) -> Iterator[tuple[str, int]]:
    """Who a tracker (HTTP) says has a torrent."""
    with lab.connect("stranger", host, TRACKER) as sock:
        sock.sendall(http_announce(info_hash, 6999).replace(b"left=0", b"left=1").replace(b"&no_peer_id=1", b""))
        data = b""
        while more := sock.recv(65536):
            data += more
            if b"\r\n\r\n" in data and data.endswith(b"e"):
                break
    body = data.partition(b"\r\n\r\n")[2]
    at = body.find(b"5:peers")
    assert at >= 0, body
    size, _, rest = body[at + 7 :].partition(b":")
    compact = rest[: int(size)]
    for at in range(0, len(compact), 6):
        yield socket.inet_ntoa(compact[at : at + 4]), int.from_bytes(compact[at + 4 : at + 6])
