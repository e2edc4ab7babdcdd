"""BitTorrent announces through the router: aria2 and opentracker, and a client and a tracker that a test plays."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.ways import by_socks
from tests.lab import bittorrent
from tests.lab.bittorrent import TRACKER, Listener, http_announce, http_answer, shakes_hands, udp_announce, udp_connect
from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT2_4,
    CLIENT4,
    CLIENT6,
    ROUTER_OUT4,
    SERVER4,
    SERVER6,
    STRANGER4,
    Lab,
    Role,
)
from tests.lab.peers import installed
from tests.lab.sshd import sshd
from tests.lab.tap import Tap
from tests.lab.udp import Udp
from tests.net.udp_client import associate

HASH, OTHER = b"h" * 20, b"\0\xff%&= +?#/:@[]\r\n\x7fabc"
INSIDE: dict[Role, str] = {"inside": CLIENT4, "client2": CLIENT2_4}


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(alg={"bittorrent": {"mode": "rewrite"}}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(scope="module")
def ports() -> Iterator[int]:
    return iter(range(6881, 7900))


@pytest.fixture
def port(ports: Iterator[int]) -> int:
    """A port of a client for this test alone: what others have left closes a little later."""
    return next(ports)


def holes(gateway: Gateway, port: int) -> list[dict[str, Any]]:
    """The mappings of clients' sockets with this port."""
    found = (hole for hole in gateway.admin("pinholes") if hole["reason"] == "map.bittorrent")
    return [hole for hole in found if hole["target"].endswith(f":{port}")]


class Tracker:
    """A tracker over HTTP: `hears` an announce, and answers it. At the end it hears that all have stopped."""

    def __init__(self, lab: Lab, host: str = SERVER4) -> None:
        self.lab, self.host = lab, host
        self.listener = lab.listen("outside", host, TRACKER)
        self._said: dict[tuple[bytes, Role, str], None] = {}

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for said, role, how in [] if kind is not None else list(self._said):
            if b"event=" not in said:
                self.hears(said.replace(b" HTTP/", b"&event=stopped HTTP/", 1), role, how=how)
        self.listener.close()

    def hears(self, said: bytes, role: Role = "inside", interval: int = 1800, how: str = "direct") -> bytes:
        """What the tracker reads where the client says this."""
        self._said[said, role, how] = None
        if how == "SOCKS":
            client = by_socks(self.lab, self.host, TRACKER)
        else:
            client = self.lab.connect(role, self.host, TRACKER, timeout=15)
        server, _ = self.listener.accept()
        with client, server:
            for end in (client, server):
                end.settimeout(15)
            client.sendall(said)
            read = b""
            while not read.endswith(b"\r\n\r\n"):
                more = server.recv(65536)
                assert more, read
                read += more
            answer = http_answer(interval)
            server.sendall(answer)
            got = b""
            while len(got) < len(answer):
                got += client.recv(4096)
            assert got == answer
            return read


def reaches(lab: Lab, host: str, port: int, info_hash: bytes = HASH) -> bool:
    try:
        shakes_hands(lab, "stranger", host, port, info_hash, 1).close()
    except OSError:
        return False
    return True


# --- a client and a tracker that a test plays -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["direct", "SOCKS"])
def test_nothing_is_edited_where_the_clients_port_is_free(lab: Lab, gateway: Gateway, how: str, port: int) -> None:
    """Strangers reach it, as many as there are, by TCP; an end of theirs is no end for others."""
    with Listener(lab, "inside", CLIENT4, port, OTHER) as client, Tracker(lab) as tracker:
        said = http_announce(OTHER, port)
        assert tracker.hears(said, how=how) == said
        [hole] = holes(gateway, port)
        assert (hole["kind"], hole["client"], hole["target"]) == ("mapping", CLIENT4, f"{CLIENT4}:{port}")
        assert hole["public"] == f"{ROUTER_OUT4}:{port}"
        for role in ("stranger", "outside"):
            shakes_hands(lab, role, ROUTER_OUT4, port, OTHER).close()
        assert {STRANGER4, SERVER4} <= set(client.peers)


def test_ipv6_is_opened_and_not_translated(lab: Lab, gateway: Gateway, port: int) -> None:
    with Listener(lab, "inside", CLIENT6, port, HASH) as client, Tracker(lab, SERVER6) as tracker:
        said = http_announce(HASH, port)
        assert tracker.hears(said) == said
        [hole] = holes(gateway, port)
        public = hole["public"].strip("[").partition("]")[0]
        assert reaches(lab, public, int(hole["public"].rpartition(":")[2]))
        assert client.peers


def test_two_clients_with_one_port(lab: Lab, gateway: Gateway, port: int) -> None:
    """The second one's announce names another port, and nothing else of it differs. Both are reached there."""
    with (
        Listener(lab, "inside", CLIENT4, port, HASH) as torrent,
        Listener(lab, "client2", CLIENT2_4, port, HASH) as other,
        Tracker(lab) as tracker,
    ):
        said = http_announce(HASH, port)
        assert tracker.hears(said) == said
        read = tracker.hears(said, "client2")
        [public] = [
            int(hole["public"].rpartition(":")[2]) for hole in holes(gateway, port) if hole["client"] == CLIENT2_4
        ]
        assert public != port
        assert read == http_announce(HASH, public)
        torrent.peers.clear()
        other.peers.clear()
        assert reaches(lab, ROUTER_OUT4, port)
        assert (len(torrent.peers), len(other.peers)) == (1, 0)
        assert reaches(lab, ROUTER_OUT4, public)
        assert (len(torrent.peers), len(other.peers)) == (1, 1)
        stopped = http_announce(HASH, port, "&event=stopped")
        assert tracker.hears(stopped, "client2") == http_announce(HASH, public, "&event=stopped")


@pytest.mark.parametrize("how", ["direct", "SOCKS"])
def test_the_clients_own_address_becomes_the_public_one(lab: Lab, gateway: Gateway, how: str, port: int) -> None:
    """And one of another host stays."""
    with Listener(lab, "inside", CLIENT4, port, HASH), Tracker(lab) as tracker:
        for key in ("ip", "ipv4"):
            said = http_announce(HASH, port, f"&{key}={CLIENT4}&numwant=50")
            assert tracker.hears(said, how=how) == http_announce(HASH, port, f"&{key}={ROUTER_OUT4}&numwant=50")
            for host in ("198.51.100.7", CLIENT2_4):
                said = http_announce(HASH, port, f"&{key}={host}")
                assert tracker.hears(said, how=how) == said


@pytest.mark.parametrize("how", ["direct", "SOCKS"])
@pytest.mark.parametrize("own", [0, 1])
def test_ports_of_clients_that_do_not_listen_pass(lab: Lab, gateway: Gateway, how: str, own: int) -> None:
    with Tracker(lab) as tracker:
        said = http_announce(HASH, own, f"&ip={CLIENT4}")
        assert tracker.hears(said, how=how) == said
        scrape = b"GET /scrape?info_hash=" + b"%68" * 20 + b" HTTP/1.1\r\nHost: tracker.example\r\n\r\n"
        assert tracker.hears(scrape, how=how) == scrape
        assert holes(gateway, own) == []


def connected(client: Udp, tracker: Udp, key: bytes = b"12345678") -> tuple[str, int]:
    """The client's socket gets an id of the tracker: as whom that sees it."""
    client.send(udp_connect(), (SERVER4, TRACKER))
    data, seen = tracker.receive()
    assert data == udp_connect()
    answer = bytes(4) + b"conn" + key
    tracker.send(answer, seen)
    assert client.receive() == (answer, (SERVER4, TRACKER))
    return seen


@pytest.mark.parametrize("options", [b"", b"\2\x09/announce"], ids=["98 bytes", "BEP 41"])
def test_over_udp_only_the_port_differs(lab: Lab, gateway: Gateway, options: bytes, port: int) -> None:
    with (
        Listener(lab, "inside", CLIENT4, port, HASH),
        Listener(lab, "client2", CLIENT2_4, port, HASH) as other,
        Udp(lab, "inside", CLIENT4, port) as first,
        Udp(lab, "client2", CLIENT2_4, port) as second,
        Udp(lab, "outside", SERVER4, TRACKER) as tracker,
    ):
        said = udp_announce(b"12345678", HASH, port)[:98] + options
        connected(first, tracker)
        first.send(said, (SERVER4, TRACKER))
        data, seen = tracker.receive()
        assert data == said
        answer = b"\0\0\0\1anno" + (1800).to_bytes(4) + bytes(8)
        tracker.send(answer, seen)
        assert first.receive()[0] == answer
        connected(second, tracker)
        second.send(said, (SERVER4, TRACKER))
        data, seen = tracker.receive()
        public = int.from_bytes(data[96:98])
        assert public != port
        assert data == said[:96] + public.to_bytes(2) + said[98:]
        assert reaches(lab, ROUTER_OUT4, public)
        assert STRANGER4 in other.peers
        assert {hole["client"] for hole in holes(gateway, port)} == {CLIENT4, CLIENT2_4}
        for client in (first, second):  # a client has four ports, and later tests need them
            client.send(udp_announce(b"12345678", HASH, port, event=3), (SERVER4, TRACKER))
            tracker.receive()


def test_over_udp_what_is_no_announce_passes(lab: Lab, gateway: Gateway, port: int) -> None:
    """A scrape and its answer, an error; an announce of port 1; addresses: the client's own one, and another host's."""
    with (
        Listener(lab, "inside", CLIENT4, port, HASH),
        Udp(lab, "inside", CLIENT4, port) as client,
        Udp(lab, "outside", SERVER4, TRACKER) as tracker,
    ):
        seen = connected(client, tracker)
        for said, answer in (
            (b"12345678\0\0\0\2scra" + HASH, b"\0\0\0\2scra" + bytes(12)),
            (b"12345678\0\0\0\2scra" + HASH, b"\0\0\0\3scrano such torrent"),
            (udp_announce(b"12345678", HASH, 1), b"\0\0\0\1anno" + bytes(12) + b"\xc0\xa8\x38\x0a\x1a\xe1"),
        ):
            client.send(said, (SERVER4, TRACKER))
            assert tracker.receive()[0] == said
            tracker.send(answer, seen)
            assert client.receive()[0] == answer
        assert holes(gateway, port) == holes(gateway, 1) == []
        for host, read in ((CLIENT4, ROUTER_OUT4), ("198.51.100.7", "198.51.100.7"), (CLIENT2_4, CLIENT2_4)):
            client.send(udp_announce(b"12345678", HASH, port, host=host), (SERVER4, TRACKER))
            assert tracker.receive()[0] == udp_announce(b"12345678", HASH, port, host=read)
        client.send(udp_announce(b"12345678", HASH, port, event=3), (SERVER4, TRACKER))
        tracker.receive()


def test_over_udp_through_socks(lab: Lab, gateway: Gateway, port: int) -> None:
    """The port that is opened is the one at which the client listens, not the association's."""
    with Listener(lab, "inside", CLIENT4, port, HASH), Udp(lab, "outside", SERVER4, TRACKER) as tracker:
        client = associate(lab)
        client.send(SERVER4, TRACKER, udp_connect())
        data, seen = tracker.receive()
        assert data == udp_connect()
        tracker.send(bytes(4) + b"conn12345678", seen)
        client.receive()
        said = udp_announce(b"12345678", HASH, port)
        client.send(SERVER4, TRACKER, said)
        assert tracker.receive()[0] == said
        assert [hole["public"] for hole in holes(gateway, port)] == [f"{ROUTER_OUT4}:{port}"]
        assert reaches(lab, ROUTER_OUT4, port)
        client.close()
    lab.wait_for(lambda: holes(gateway, port) == [], 10, "the end of the association to close it")


def test_an_id_that_nobody_has_given_opens_nothing(lab: Lab, gateway: Gateway, port: int) -> None:
    with (
        Listener(lab, "inside", CLIENT4, port, HASH),
        Udp(lab, "inside", CLIENT4, port) as client,
        Udp(lab, "outside", SERVER4, TRACKER) as tracker,
    ):
        said = udp_announce(b"12345678", HASH, port)
        client.send(said, (SERVER4, TRACKER))
        assert tracker.receive()[0] == said
        connected(client, tracker, b"87654321")
        client.send(said, (SERVER4, TRACKER))
        assert tracker.receive()[0] == said
        assert holes(gateway, port) == []


def test_datagrams_come_to_the_public_port_and_leave_from_it(lab: Lab, gateway: Gateway, port: int) -> None:
    """uTP and DHT use the UDP socket with the same number: whoever it writes to sees one port."""
    with (
        Listener(lab, "client2", CLIENT2_4, port, HASH),
        Listener(lab, "inside", CLIENT4, port, HASH),
        Udp(lab, "inside", CLIENT4, port) as client,
        Udp(lab, "stranger", STRANGER4) as stranger,
        Udp(lab, "outside", SERVER4) as node,
        Tracker(lab) as tracker,
    ):
        tracker.hears(http_announce(HASH, port), "client2")  # so that this client's is another one
        tracker.hears(http_announce(HASH, port))
        [public] = [
            int(hole["public"].rpartition(":")[2]) for hole in holes(gateway, port) if hole["client"] == CLIENT4
        ]
        stranger.send(b"ping", (ROUTER_OUT4, public))
        data, seen = client.receive()
        assert (data, seen[0]) == (b"ping", STRANGER4)
        client.send(b"pong", seen)
        assert stranger.receive() == (b"pong", (ROUTER_OUT4, public))
        client.send(b"hello", node.sock.getsockname())
        assert node.receive() == (b"hello", (ROUTER_OUT4, public))


def test_when_the_last_torrent_stops_nobody_new_comes_in(lab: Lab, gateway: Gateway, port: int) -> None:
    with Listener(lab, "inside", CLIENT4, port, HASH, OTHER), Tracker(lab) as tracker:
        tracker.hears(http_announce(HASH, port))
        tracker.hears(http_announce(OTHER, port))
        with shakes_hands(lab, "stranger", ROUTER_OUT4, port, HASH) as living:
            tracker.hears(http_announce(HASH, port, "&event=stopped"))
            assert reaches(lab, ROUTER_OUT4, port)
            tracker.hears(http_announce(OTHER, port, "&event=stopped"))
            lab.wait_for(lambda: holes(gateway, port) == [], 15, "the port to close")
            assert not reaches(lab, ROUTER_OUT4, port)
            living.sendall(b"still there")
            assert living.recv(100) == b"still there"


def test_without_an_announce_the_port_closes(lab: Lab, gateway: Gateway, port: int) -> None:
    """Its time is announced to the kernel: one and a half intervals, and two minutes."""
    with Listener(lab, "inside", CLIENT4, port, HASH), Tracker(lab) as tracker:
        tracker.hears(http_announce(HASH, port), interval=60)

        def announced() -> bool:
            return all(hole["expires"] - time.time() <= 211 for hole in holes(gateway, port))

        assert len(holes(gateway, port)) == 1
        lab.wait_for(announced, 15, "the time to be announced")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_without_an_announce_strangers_get_nothing_after_a_while(lab: Lab, gateway: Gateway, port: int) -> None:
    """In real time, with the shortest interval that is believed, a minute; a connection under way lives."""
    with Listener(lab, "inside", CLIENT4, port, HASH), Tracker(lab) as tracker:
        tracker.hears(http_announce(HASH, port), interval=1)
        with shakes_hands(lab, "stranger", ROUTER_OUT4, port, HASH) as living:

            def is_closed() -> bool:
                living.sendall(b"x")  # the client hangs up on whoever says nothing for twenty seconds
                assert living.recv(1) == b"x"
                return holes(gateway, port) == []

            lab.wait_for(is_closed, 240, "the port to close")
            assert not reaches(lab, ROUTER_OUT4, port)
            living.sendall(b"still there")
            assert living.recv(100) == b"still there"


# --- attacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["direct", "SOCKS"])
@pytest.mark.parametrize("port", [22, 80, 3306, 8080, 9100])
def test_a_forged_announce_opens_no_service(lab: Lab, gateway: Gateway, port: int, how: str) -> None:
    """What listens there is no BitTorrent client for that torrent; of those below 1024 it is not even asked."""
    with lab.listen("inside", CLIENT4, port) as service, Tracker(lab) as tracker:
        said = http_announce(HASH, port)
        assert tracker.hears(said, how=how) == said
        assert holes(gateway, port) == []
        service.settimeout(0.2)
        if port < 1024:
            with pytest.raises(TimeoutError):
                service.accept()


def test_a_real_web_server_is_no_torrent_client(lab: Lab, gateway: Gateway) -> None:
    port = 8080
    service = lab.popen("inside", [sys.executable, "-m", "http.server", "--bind", CLIENT4, str(port)])

    def serves() -> bool:
        assert service.poll() is None, lab.tail_of_logs()
        try:
            lab.connect("inside", CLIENT4, port, timeout=1).close()
        except OSError:
            return False
        return True

    lab.wait_for(serves, 15, "the web server")
    with Tracker(lab) as tracker:
        said = http_announce(OTHER, port)
        assert tracker.hears(said) == said
        assert holes(gateway, port) == []
    lab.stop(service)


def test_a_real_ssh_server_is_no_torrent_client(lab: Lab, gateway: Gateway) -> None:
    """At a port that may be opened: it says its own name first, and hangs up."""
    port = 2022
    service, _ = sshd(lab, port, [CLIENT4], role="inside")
    with Tracker(lab) as tracker:
        seen = len(gateway.log_lines())
        said = http_announce(OTHER, port)
        assert tracker.hears(said) == said
        gateway.wait_for_log("bittorrent.unproven", 5, seen)
        assert holes(gateway, port) == []
    lab.stop(service)


def test_another_torrent_of_a_real_client_opens_nothing(lab: Lab, gateway: Gateway, port: int) -> None:
    with Listener(lab, "inside", CLIENT4, 6890, HASH), Tracker(lab) as tracker:
        seen = len(gateway.log_lines())
        said = http_announce(OTHER, 6890)
        assert tracker.hears(said) == said
        gateway.wait_for_log("bittorrent.unproven", 5, seen)
        assert holes(gateway, port) == []


@pytest.mark.parametrize("header", ["Accept-Language: en", "Referer: http://evil.example/", "Sec-Fetch-Dest: image"])
def test_what_browsers_fetch_opens_nothing(lab: Lab, gateway: Gateway, header: str, port: int) -> None:
    """Although a client of this very torrent listens there."""
    with Listener(lab, "inside", CLIENT4, port, HASH), Tracker(lab) as tracker:
        seen = len(gateway.log_lines())
        said = http_announce(HASH, port, headers=f"{header}\r\n")
        assert tracker.hears(said) == said
        gateway.wait_for_log("bittorrent.browser", 5, seen)
        assert holes(gateway, port) == []


def test_an_image_in_a_page_of_a_real_browser(lab: Lab, gateway: Gateway, port: int) -> None:
    chromium = installed("chromium", "/usr/bin/chromium")
    page = lab.tmp / "page.html"
    known = "h" * 20
    source = f"http://{SERVER4}:{TRACKER}/announce?info_hash={known}&peer_id=A2-1-36-0-123456789a&port={port}"
    page.write_text(f"<img src='{source}'>")
    with Listener(lab, "inside", CLIENT4, port, HASH), lab.listen("outside", SERVER4, TRACKER) as listener:
        seen = len(gateway.log_lines())
        argv: list[str | Path] = [chromium, "--headless", "--no-sandbox", "--disable-gpu"]
        argv += [f"--user-data-dir={lab.tmp / 'profile'}"]
        browser = lab.popen("inside", [*argv, "--dump-dom", "--virtual-time-budget=5000", f"file://{page}"])
        listener.settimeout(40)
        server, _ = listener.accept()
        with server:
            server.settimeout(15)
            assert b"info_hash=" + known.encode() in server.recv(65536)
            gateway.wait_for_log("bittorrent.browser", 5, seen)
            assert holes(gateway, port) == []
        lab.stop(browser)


def test_five_hundred_torrents_at_once(lab: Lab, gateway: Gateway, port: int) -> None:
    """One public port, and the broker is asked by each worker once at most. What others ask for is opened meanwhile."""
    hashes = [number.to_bytes(2) * 10 for number in range(500)]
    request, data = b"\0\1boot.bin\0octet\0", b"\0\3\0\1the file"
    with (
        Listener(lab, "inside", CLIENT4, port, *hashes),
        Tracker(lab) as tracker,
        Udp(lab, "outside", SERVER4, 69) as boot,
        Udp(lab, "outside", SERVER4) as answerer,
    ):
        tracker.listener.listen(600)
        seen = len(gateway.log_lines())
        for at in range(0, 500, 50):
            clients = [lab.connect("inside", SERVER4, TRACKER, timeout=15) for _ in range(50)]
            for client, info_hash in zip(clients, hashes[at : at + 50], strict=True):
                client.sendall(http_announce(info_hash, port))
            with Udp(lab, "client2", CLIENT2_4) as other:
                other.send(request, (SERVER4, 69))
                answerer.send(data, boot.receive()[1])
                assert other.receive()[0] == data
            for _ in range(50):
                server, _ = tracker.listener.accept()
                server.settimeout(15)
                assert f"&port={port} ".encode() in server.recv(65536)
                server.close()
            for client in clients:
                client.close()
        assert {hole["public"] for hole in holes(gateway, port)} == {f"{ROUTER_OUT4}:{port}"}
        opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "map.bittorrent" in line]
        assert 1 <= len(opened) <= 2  # there are two workers


def test_the_packets_process_is_killed(lab: Lab, gateway: Gateway, port: int) -> None:
    """Announces pass meanwhile, the mapping stays, and the next process knows it."""
    with (
        Listener(lab, "inside", CLIENT4, port, HASH),
        Udp(lab, "inside", CLIENT4, port) as client,
        Udp(lab, "outside", SERVER4, TRACKER) as tracker,
    ):
        said = udp_announce(b"12345678", HASH, port)
        connected(client, tracker)
        client.send(said, (SERVER4, TRACKER))
        assert tracker.receive()[0] == said
        [pid] = [row["pid"] for row in gateway.admin("status") if row.get("process") == "packets"]
        lines = len(gateway.log_lines())
        os.kill(pid, signal.SIGKILL)
        assert reaches(lab, ROUTER_OUT4, port)
        gateway.wait_for_log("process.died child=packets", 10, lines)  # what it had not judged yet, ends with it
        client.send(said, (SERVER4, TRACKER))
        assert tracker.receive() == (said, (ROUTER_OUT4, port))
        gateway.wait_for_log("packets.taken_over", 10, lines)
        assert reaches(lab, ROUTER_OUT4, port)
        connected(client, tracker)
        client.send(udp_announce(b"12345678", HASH, port, event=3), (SERVER4, TRACKER))
        tracker.receive()
        client.send(said, (SERVER4, TRACKER))
        assert tracker.receive()[0] == said
        [hole] = holes(gateway, port)
        assert hole["public"] == f"{ROUTER_OUT4}:{port}"


# --- real clients -----------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(lab: Lab) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that end with the test, however that ends."""
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for process in running:
        lab.stop(process)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("scheme", ["http", "udp"])
@pytest.mark.parametrize("program", ["aria2", "libtorrent", "rtorrent"])
def test_a_seed_behind_the_router(
    lab: Lab, gateway: Gateway, programs: list[subprocess.Popen[bytes]], program: str, scheme: str, port: int
) -> None:
    """A client outside, which has nothing but the tracker's list, gets the whole file from the one inside."""
    seeds, leeches = lab.tmp / f"seeds-{port}", lab.tmp / f"leeches-{port}"
    for folder in (seeds, leeches):
        folder.mkdir()
    file = seeds / "file.bin"
    file.write_bytes(os.urandom(2_000_000))
    url = f"{scheme}://{SERVER4}:{TRACKER}/announce"
    made, info_hash = bittorrent.torrent(file, url)
    known = lab.tmp / f"{port}.torrent"
    known.write_bytes(made)
    programs.append(bittorrent.opentracker(lab, SERVER4, info_hash))
    with Tap(lab, "inside", TRACKER) as within, Tap(lab, "outside", TRACKER) as beyond:
        if program == "aria2":
            seeder = bittorrent.aria2(lab, "inside", seeds, known, port, "--seed-ratio=0.0")
        else:
            begin = bittorrent.libtorrent if program == "libtorrent" else bittorrent.rtorrent
            seeder = begin(lab, "inside", seeds, known, port)
        programs.append(seeder)
        lab.wait_for(lambda: bool(holes(gateway, port)), 20, "the port to open" + lab.tail_of_logs())
        lab.wait_for(
            lambda: (ROUTER_OUT4, port) in list(bittorrent.peers_of(lab, SERVER4, info_hash)), 10, "the tracker to know"
        )
    if scheme == "http":  # not a byte differs, either way
        came = sorted(one for one in beyond.streams() if one.source == ROUTER_OUT4)
        assert came == sorted(one._replace(source=ROUTER_OUT4) for one in within.streams())
        assert any(f"port={port}".encode() in one.client for one in came)
    # aria2 sends a second bitfield in place of many a "have", at which rtorrent hangs up, with a router between or not.
    if program == "rtorrent":
        leecher = bittorrent.libtorrent(lab, "stranger", leeches, known, 6991)
    else:
        leecher = bittorrent.aria2(lab, "stranger", leeches, known, 6991, "--seed-time=0")
    programs.append(leecher)
    wanted = hashlib.sha256(file.read_bytes()).digest()

    def has_arrived() -> bool:
        there = leeches / "file.bin"
        return there.exists() and hashlib.sha256(there.read_bytes()).digest() == wanted

    lab.wait_for(has_arrived, 60, "the file to arrive" + lab.tail_of_logs())
    seeder.send_signal(signal.SIGINT)  # it says "stopped"
    seeder.wait(20)
    if program == "aria2":
        lab.wait_for(lambda: holes(gateway, port) == [], 15, "the port to close")


@pytest.mark.timeout(120)
def test_two_real_seeds_with_one_port(
    lab: Lab, gateway: Gateway, programs: list[subprocess.Popen[bytes]], port: int
) -> None:
    """aria2 twice, on two hosts: the second one's announces name another port, and whoever wants its file gets it
    there."""
    torrents: dict[Role, tuple[Path, Path, bytes, bytes]] = {}
    for role in INSIDE:
        folder = lab.tmp / f"seeds-{role}-{port}"
        folder.mkdir()
        data = os.urandom(1_000_000)
        (folder / f"{role}.bin").write_bytes(data)
        made, info_hash = bittorrent.torrent(folder / f"{role}.bin", f"http://{SERVER4}:{TRACKER}/announce")
        (lab.tmp / f"{role}-{port}.torrent").write_bytes(made)
        torrents[role] = folder, lab.tmp / f"{role}-{port}.torrent", info_hash, data
    programs.append(bittorrent.opentracker(lab, SERVER4, *(info_hash for _, _, info_hash, _ in torrents.values())))
    public: dict[Role, int] = {}
    with (
        Tap(lab, "inside", TRACKER) as within,
        Tap(lab, "client2", TRACKER) as beside,
        Tap(lab, "outside", TRACKER) as beyond,
    ):
        for role, (folder, known, info_hash, _) in torrents.items():
            programs.append(bittorrent.aria2(lab, role, folder, known, port, "--seed-ratio=0.0"))

            def announced(role: Role = role, info_hash: bytes = info_hash) -> bool:
                mine = [hole for hole in holes(gateway, port) if hole["client"] == INSIDE[role]]
                public[role] = int(mine[0]["public"].rpartition(":")[2]) if mine else 0
                return (ROUTER_OUT4, public[role]) in list(bittorrent.peers_of(lab, SERVER4, info_hash))

            lab.wait_for(announced, 20, f"the tracker to know {role}" + lab.tail_of_logs())
    assert public["inside"] == port != public["client2"]
    came = [one for one in beyond.streams() if one.source == ROUTER_OUT4]
    for role, tap in (("inside", within), ("client2", beside)):
        mine = [one for one in tap.streams() if one.source == INSIDE[role]]  # the bridge of "inside" sees both
        for one in mine:
            said = re.sub(rb"(?<=&port=)%d\b" % port, b"%d" % public[role], one.client)
            assert [other for other in came if (other.client, other.server) == (said, one.server)], (one, came)
        assert mine
    for role, (_, known, _, data) in torrents.items():
        folder = lab.tmp / f"leeches-{role}-{port}"
        folder.mkdir()
        leecher = bittorrent.aria2(lab, "stranger", folder, known, 6991, "--seed-time=0")
        programs.append(leecher)
        lab.wait_for(lambda leecher=leecher: leecher.poll() is not None, 60, "the file")  # type: ignore[misc]
        assert (folder / f"{role}.bin").read_bytes() == data


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["observe", "off"])
def passive(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[str]:
    before = gateway.config.read_text()
    gateway.config.write_text(before.replace('mode = "rewrite"', f'mode = "{request.param}"'))
    gateway.rules("apply")
    gateway.reload()
    yield request.param
    gateway.config.write_text(before)
    gateway.rules("apply")
    gateway.reload()


def test_without_the_module_nothing_opens(lab: Lab, gateway: Gateway, passive: str, port: int) -> None:
    with Listener(lab, "inside", CLIENT4, port, HASH), Tracker(lab) as tracker:
        said = http_announce(HASH, port)
        assert tracker.hears(said) == said
        assert holes(gateway, port) == []
        assert not reaches(lab, ROUTER_OUT4, port)


def test_trace_shows_no_passkey(lab: Lab, gateway: Gateway, port: int) -> None:
    with Listener(lab, "inside", CLIENT4, port, HASH), Tracker(lab) as tracker:
        tracker.hears(http_announce(HASH, port).replace(b"/announce", b"/0123456789abcdef0123/announce", 1))
        shown = gateway.algate("trace", "--json").stdout
        assert "/announce" in shown
        assert "0123456789abcdef0123" not in shown


def test_a_rule_says_who_may(lab: Lab, gateway: Gateway, port: int) -> None:
    """Rules with the command "map" permit one client, and no other; it is not even asked."""
    before = gateway.config.read_text()
    rules = "".join(
        f'[[rule]]\naction = "permit"\n{line}\n' for line in ('command = ["transparent"]', f'from = ["{CLIENT4}"]')
    )
    gateway.config.write_text(f"{before}\n{rules}")
    gateway.reload()
    try:
        with (
            Listener(lab, "inside", CLIENT4, port, HASH),
            Listener(lab, "client2", CLIENT2_4, port, HASH) as denied,
            Tracker(lab) as tracker,
        ):
            seen = len(gateway.log_lines())
            said = http_announce(HASH, port)
            assert tracker.hears(said, "client2") == said
            gateway.wait_for_log("bittorrent.refused.*rule", 5, seen)
            assert holes(gateway, port) == []
            assert not denied.peers
            tracker.hears(said)
            assert len(holes(gateway, port)) == 1
    finally:
        gateway.config.write_text(before)
        gateway.reload()
