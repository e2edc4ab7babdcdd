"""`python -m tests.conformance.bittorrent`: BitTorrent clients behind the router, with the gateway and without.

The kernel has no helper for it.

Needs root. Puts the table into docs/protocols/bittorrent.md. With `--check` it writes nothing. Exit code 1 where the
gateway failed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.table import Trial, gateway, main, plain_nat
from tests.lab import bittorrent
from tests.lab.bittorrent import TRACKER, Listener, http_announce, http_answer, shakes_hands, udp_announce, udp_connect
from tests.lab.lab import CLIENT2_4, CLIENT4, ROUTER_OUT4, SERVER4, STRANGER4, Lab, Role
from tests.lab.udp import Udp

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "bittorrent.md"
HASH, OTHER = b"h" * 20, b"o" * 20
WAIT = 3.0  # seconds until something that should have come has not


def announced(lab: Lab, said: bytes, role: Role = "inside") -> bytes:
    """What the tracker reads where a client says this over HTTP."""
    with lab.listen("outside", SERVER4, TRACKER) as listener, lab.connect(role, SERVER4, TRACKER) as client:
        client.settimeout(WAIT)
        client.sendall(said)
        server, _ = listener.accept()
        with server:
            server.settimeout(WAIT)
            read = b""
            while not read.endswith(b"\r\n\r\n"):
                read += server.recv(65536)
            server.sendall(http_answer())
            client.recv(4096)
    return read


def port_in(read: bytes) -> int:
    return int(read.partition(b"&port=")[2].split(b" ")[0].split(b"&")[0])


def reached(lab: Lab, port: int, info_hash: bytes = HASH) -> bool:
    try:
        shakes_hands(lab, "stranger", ROUTER_OUT4, port, info_hash, 1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def ended(lab: Lab, said: bytes, role: Role = "inside") -> Iterator[int]:
    """The port that the tracker reads; at the end the client has stopped."""
    port = port_in(announced(lab, said, role))
    yield port
    announced(lab, said.replace(b" HTTP/", b"&event=stopped HTTP/", 1), role)


def aria2(scheme: str) -> Trial:
    """A whole file, from a client inside to one outside that knows of it from the tracker alone."""

    def attempt(lab: Lab) -> None:
        folder = lab.tmp / f"torrent{len(list(lab.tmp.glob('torrent*')))}"
        for part in ("seeds", "leeches"):
            (folder / part).mkdir(parents=True)
        file = folder / "seeds" / "file.bin"
        file.write_bytes(os.urandom(500_000))
        made, info_hash = bittorrent.torrent(file, f"{scheme}://{SERVER4}:{TRACKER}/announce")
        known = folder / "known.torrent"
        known.write_bytes(made)
        tracker = bittorrent.opentracker(lab, SERVER4, info_hash)
        seeder = bittorrent.aria2(lab, "inside", folder / "seeds", known, 6981, "--seed-ratio=0.0")
        leecher = None
        try:
            lab.wait_for(lambda: list(bittorrent.peers_of(lab, SERVER4, info_hash)), 10, "the tracker to know")
            leecher = bittorrent.aria2(lab, "stranger", folder / "leeches", known, 6991, "--seed-time=0")
            lab.wait_for(lambda: leecher.poll() is not None, 15, "the file to arrive")
            assert (folder / "leeches" / "file.bin").read_bytes() == file.read_bytes()
        finally:
            seeder.send_signal(signal.SIGINT)
            with contextlib.suppress(Exception):
                seeder.wait(5)
            for process in (seeder, tracker, *([leecher] if leecher is not None else [])):
                lab.stop(process)

    return Trial(f"aria2 seeds, a tracker over {scheme.upper()}", attempt)


def strangers(lab: Lab) -> None:
    with Listener(lab, "inside", CLIENT4, 6881, HASH), ended(lab, http_announce(HASH, 6881)) as port:
        assert port == 6881
        assert reached(lab, port)
        assert reached(lab, port)


def two_clients(lab: Lab) -> None:
    said = http_announce(HASH, 6882)
    with (
        Listener(lab, "inside", CLIENT4, 6882, HASH) as torrent,
        Listener(lab, "client2", CLIENT2_4, 6882, HASH) as other,
        ended(lab, said) as first,
        ended(lab, said, "client2") as second,
    ):
        for port in (first, second):
            assert reached(lab, port)
        assert STRANGER4 in torrent.peers
        assert STRANGER4 in other.peers


def udp_tracker(lab: Lab) -> None:
    with (
        Listener(lab, "inside", CLIENT4, 6883, HASH),
        Udp(lab, "inside", CLIENT4, 6883) as client,
        Udp(lab, "outside", SERVER4, TRACKER) as tracker,
    ):
        for sock in (client.sock, tracker.sock):
            sock.settimeout(WAIT)
        client.send(udp_connect(), (SERVER4, TRACKER))
        _, seen = tracker.receive()
        tracker.send(bytes(4) + b"conn12345678", seen)
        client.receive()
        client.send(udp_announce(b"12345678", HASH, 6883), (SERVER4, TRACKER))
        data, _ = tracker.receive()
        assert reached(lab, int.from_bytes(data[96:98]))


def datagrams(lab: Lab) -> None:
    """uTP and DHT: a stranger's datagram comes in, and the answer leaves from the same port."""
    with (
        Listener(lab, "inside", CLIENT4, 6884, HASH),
        Udp(lab, "inside", CLIENT4, 6884) as client,
        Udp(lab, "stranger", STRANGER4) as stranger,
        ended(lab, http_announce(HASH, 6884)) as port,
    ):
        client.sock.settimeout(WAIT)
        stranger.send(b"ping", (ROUTER_OUT4, port))
        data, source = client.receive()
        client.send(b"pong", source)
        assert (data, stranger.receive()) == (b"ping", (b"pong", (ROUTER_OUT4, port)))


def closed(title: str, said: bytes, port: int, known: bytes) -> Trial:
    def attempt(lab: Lab) -> None:
        with Listener(lab, "inside", CLIENT4, port, known):
            assert announced(lab, said) == said
            assert not reached(lab, port, known)

    return Trial(title, attempt)


def service(lab: Lab) -> None:
    """A port at which something else listens."""
    said = http_announce(HASH, 8123)
    with lab.listen("inside", CLIENT4, 8123) as listener:
        assert announced(lab, said) == said
        listener.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            listener.accept()[0].close()  # the proof
        try:
            lab.connect("stranger", ROUTER_OUT4, 8123, timeout=1).close()
        except OSError:
            return
        raise AssertionError("it is open")


def forged_udp(lab: Lab) -> None:
    with (
        Listener(lab, "inside", CLIENT4, 6889, HASH),
        Udp(lab, "inside", CLIENT4) as client,
        Udp(lab, "outside", SERVER4, TRACKER) as tracker,
    ):
        tracker.sock.settimeout(WAIT)
        client.send(udp_announce(b"12345678", HASH, 6889), (SERVER4, TRACKER))
        tracker.receive()
        assert not reached(lab, 6889)


BROWSER = http_announce(HASH, 6887, headers="Accept-Language: en\r\nReferer: http://evil.example/\r\n")
TRIALS = [
    aria2("http"),
    aria2("udp"),
    Trial("strangers reach the client at its own port", strangers),
    Trial("two clients with one port are both reached", two_clients),
    Trial("a tracker over UDP names a port that is reached", udp_tracker),
    Trial("datagrams (uTP, DHT) come in and go out by one port", datagrams),
    closed("a web page's announce opens nothing", BROWSER, 6887, HASH),
    closed("an announce for a torrent that the client has not opens nothing", http_announce(OTHER, 6888), 6888, HASH),
    Trial("an announce for the port of something else opens nothing", service),
    Trial("an announce over UDP that no tracker has asked for opens nothing", forged_udp),
]
WAYS = {
    "plain NAT": plain_nat,
    "algate": gateway(process={"workers": 1}, alg={"bittorrent": {"mode": "rewrite"}}),
}

if __name__ == "__main__":
    sys.exit(main("tests.conformance.bittorrent", PAGE, TRIALS, WAYS, sys.argv[1:]))
