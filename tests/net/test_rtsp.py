"""RTSP through the router: ffmpeg and GStreamer, and a server that does what a test says."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.ways import by_socks, direct
from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import (
    CLIENT4,
    CLIENT6,
    ROUTER_IN4,
    ROUTER_IN6,
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    STRANGER6,
    Lab,
)
from tests.lab.peers import MULTIARCH, installed
from tests.lab.tap import Stream, Tap, UdpTap, differences
from tests.lab.udp import Udp

RTSP = 554
PORT = 8554
TELEVISION = 8555
STREAMS = 4
RECEIVER_REPORT = 201  # RFC 3550, 12.1
LAB = Path(servers.__file__).parent
pytestmark = pytest.mark.usefixtures("gateway")


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(
        lab.write_config(alg={"rtsp": {"streams": STREAMS, "ports": [RTSP, PORT, TELEVISION]}}, process={"workers": 1})
    )
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@dataclass
class Session:
    """A connection of a client with a server, both of which do what a test says."""

    lab: Lab
    client: socket.socket
    server: socket.socket
    host: str

    def asks(self, data: str) -> str:
        """The client sends a message; how the server reads it."""
        return self._passes(self.client, self.server, data)

    def answers(self, data: str) -> str:
        """The server sends a message; how the client reads it."""
        return self._passes(self.server, self.client, data)

    def set_up(self, port: int, number: int = 1, more: str = "") -> int:
        """SETUP with the client's pair `port` and the next one, and its answer: the public port."""
        public = self.asks_for(port, number)
        self.agrees(port, public, number, more)
        return public

    def asks_for(self, port: int, number: int = 1) -> int:
        """SETUP with the client's pair `port` and the next one: the public port, which the server reads."""
        read = self.asks(set_up(port, number))
        found = re.search(r"client_port=(\d+)-(\d+)", read)
        assert found is not None
        public = int(found[1])
        assert int(found[2]) == public + 1
        assert read == set_up(public, number)  # and not a byte else
        return public

    def agrees(self, port: int, public: int, number: int = 1, more: str = "") -> None:
        """The server's answer to that, in which the client reads its own ports."""
        assert self.answers(agreed(public, number, more)) == agreed(port, number, more)

    def close(self) -> None:
        self.client.close()
        self.server.close()

    @staticmethod
    def _passes(sender: socket.socket, receiver: socket.socket, data: str) -> str:
        sender.sendall(data.encode())
        read = b""
        while not read.endswith(b"\r\n\r\n"):
            more = receiver.recv(4096)
            assert more, read
            read += more
        return read.decode()


def set_up(port: int, number: int = 1) -> str:
    """SETUP of the stream `number` for the pair `port` and the next one."""
    transport = f"RTP/AVP;unicast;client_port={port}-{port + 1}"
    return f"SETUP rtsp://a/{number} RTSP/1.0\r\nCSeq: {number}\r\nTransport: {transport}\r\n\r\n"


def agreed(port: int, number: int = 1, more: str = "") -> str:
    """What a server answers to that."""
    transport = f"RTP/AVP;unicast;client_port={port}-{port + 1};server_port=6970-6971{more}"
    return f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nSession: 7\r\nTransport: {transport}\r\n\r\n"


def holes(gateway: Gateway) -> list[dict[str, Any]]:
    """The pinholes of media."""
    return [hole for hole in gateway.admin("pinholes") if hole["reason"] == "rtsp.rtp"]


@pytest.fixture(params=["redirect", "redirect IPv6", "SOCKS", "SOCKS IPv6"])
def session(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Session]:
    host = SERVER6 if "6" in request.param else SERVER4
    with lab.listen("outside", host, RTSP) as listener:
        client = (by_socks if "SOCKS" in request.param else direct)(lab, host, RTSP)
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(15)
    session = Session(lab, client, server, host)
    yield session
    session.close()


def test_media_come_in_and_reports_go_out(lab: Lab, gateway: Gateway, session: Session) -> None:
    v6 = ":" in session.host
    inside, router, other = (CLIENT6, ROUTER_OUT6, STRANGER6) if v6 else (CLIENT4, ROUTER_OUT4, STRANGER4)
    public = session.set_up(5000)
    assert public % 2 == 0
    [hole] = holes(gateway)
    assert (hole["client"], hole["peer"]) == (inside, session.host)
    with (
        Udp(lab, "inside", inside, 5000) as rtp,
        Udp(lab, "inside", inside, 5001) as rtcp,
        Udp(lab, "outside", session.host, 7000) as sender,
        Udp(lab, "stranger", other, 7000) as stranger,
    ):
        stranger.send(b"no", (router, public))
        sender.send(b"picture", (router, public))  # from another port than the server said
        assert rtp.receive() == (b"picture", (session.host, 7000))
        assert rtp.is_silent()
        sender.send(b"report", (router, public + 1))
        assert rtcp.receive()[0] == b"report"
        rtcp.send(b"received", (session.host, 7000))
        assert sender.receive() == (b"received", (router, public + 1))
        assert session.asks("TEARDOWN rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        session.answers("RTSP/1.0 200 OK\r\nCSeq: 2\r\n\r\n")
        time.sleep(0.1)  # that is how long packets may still come
        sender.send(b"late", (router, public))
        assert rtp.is_silent()
        assert holes(gateway) == []


def test_another_source_is_let_in_before_the_client_is_told(lab: Lab, session: Session) -> None:
    v6 = ":" in session.host
    inside, router, other = (CLIENT6, ROUTER_OUT6, STRANGER6) if v6 else (CLIENT4, ROUTER_OUT4, STRANGER4)
    third = f"{other.rpartition(':' if v6 else '.')[0]}{':' if v6 else '.'}67"
    lab.run("stranger", ["ip", "address", "replace", f"{third}/{64 if v6 else 24}", "dev", "eth0", *["nodad"] * v6])
    with (
        Udp(lab, "inside", inside, 5010) as rtp,
        Udp(lab, "stranger", other) as source,
        Udp(lab, "stranger", third) as beside,
    ):
        public = session.asks_for(5010)
        source.send(b"early", (router, public))  # nobody has named it yet
        assert rtp.is_silent()
        session.agrees(5010, public, more=f";source={other}")
        beside.send(b"no", (router, public))
        source.send(b"picture", (router, public))
        assert rtp.receive() == (b"picture", source.sock.getsockname()[:2])
        beside.send(b"no", (router, public))
        assert rtp.is_silent()


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_the_end_of_the_connection_is_the_end_of_its_media(
    lab: Lab, gateway: Gateway, session: Session, who: str, how: str
) -> None:
    """Whichever side ends it."""
    v6 = ":" in session.host
    inside, router = (CLIENT6, ROUTER_OUT6) if v6 else (CLIENT4, ROUTER_OUT4)
    with Udp(lab, "inside", inside, 5020) as rtp, Udp(lab, "outside", session.host) as sender:
        public = session.set_up(5020)
        sender.send(b"picture", (router, public))
        assert rtp.receive()[0] == b"picture"
        first, other = (session.client, session.server) if who == "client" else (session.server, session.client)
        if how == "resets":
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        try:
            assert other.recv(100) == b""
        except ConnectionResetError:
            assert how == "resets"
        other.close()
        lab.wait_for(lambda: not holes(gateway), 15, "the ports to close")
        sender.send(b"late", (router, public))
        assert rtp.is_silent()


def test_the_clients_own_address_as_the_destination(session: Session) -> None:
    v6 = ":" in session.host
    own, router = (CLIENT6, ROUTER_OUT6) if v6 else (CLIENT4, ROUTER_OUT4)
    transport = "Transport: RTP/AVP;unicast;destination={};client_port={}-{}"
    said = f"SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\n{transport}\r\n\r\n"
    read = session.asks(said.format(own, 5070, 5071))
    found = re.search(r"client_port=(\d+)", read)
    assert found is not None
    public = int(found[1])
    assert read == said.format(router, public, public + 1)
    answer = f"RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 7\r\n{transport};source={session.host}\r\n\r\n"
    assert session.answers(answer.format(router, public, public + 1)) == answer.format(own, 5070, 5071)


@pytest.mark.parametrize("cut", ["in one segment", "byte by byte"])
def test_two_setups_at_once(lab: Lab, gateway: Gateway, session: Session, cut: str) -> None:
    """Two streams have two pairs of ports, however the requests and the answers come."""
    inside, router = (CLIENT6, ROUTER_OUT6) if ":" in session.host else (CLIENT4, ROUTER_OUT4)

    def passes(sender: socket.socket, receiver: socket.socket, said: str) -> str:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [said] if cut == "in one segment" else said:
            sender.sendall(piece.encode())
        read = b""
        while read.count(b"\r\n\r\n") < said.count("\r\n\r\n"):
            more = receiver.recv(4096)
            assert more, read
            read += more
        return read.decode()

    read = passes(session.client, session.server, set_up(5080, 1) + set_up(5082, 2))
    first, second = (int(port) for port in re.findall(r"client_port=(\d+)", read))
    assert len({first, first + 1, second, second + 1}) == 4
    assert first % 2 == second % 2 == 0
    assert read == set_up(first, 1) + set_up(second, 2)
    answers = passes(session.server, session.client, agreed(first, 1) + agreed(second, 2))
    assert answers == agreed(5080, 1) + agreed(5082, 2)
    assert len(holes(gateway)) == 2
    with (
        Udp(lab, "inside", inside, 5080) as one,
        Udp(lab, "inside", inside, 5083) as other,
        Udp(lab, "outside", session.host) as sender,
    ):
        sender.send(b"picture", (router, first))
        sender.send(b"report of sound", (router, second + 1))
        assert (one.receive()[0], other.receive()[0]) == (b"picture", b"report of sound")


def test_a_flood_of_setups_opens_as_many_as_are_allowed(gateway: Gateway, session: Session) -> None:
    seen = len(gateway.log_lines())
    for number in range(1, STREAMS + 1):
        session.set_up(5100 + 2 * number, number)
    for number in range(STREAMS + 1, 20):
        said = set_up(5100 + 2 * number, number)
        assert session.asks(said) == said
    assert len(holes(gateway)) == STREAMS
    gateway.wait_for_log("event=alg.note .*rtsp.streams", 5, seen)


def test_the_server_chooses_tcp_of_a_list(lab: Lab, gateway: Gateway, session: Session) -> None:
    """The port that was opened for the other choice closes, and the connection is spliced from PLAY on."""
    listed = "RTP/AVP;unicast;client_port={}-{},RTP/AVP/TCP;unicast;interleaved=0-1"
    said = f"SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: {listed}\r\n\r\n"
    read = session.asks(said.format(5090, 5091))
    found = re.search(r"client_port=(\d+)", read)
    assert found is not None
    public = int(found[1])
    assert public != 5090
    assert read == said.format(public, public + 1)
    assert len(holes(gateway)) == 1
    seen = len(gateway.log_lines())
    answer = "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 7\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
    assert session.answers(answer) == answer
    lab.wait_for(lambda: not holes(gateway), 15, "the port to close")
    session.asks("PLAY rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
    session.answers("RTSP/1.0 200 OK\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
    gateway.wait_for_log("event=alg.bypass .*module=rtsp", 10, seen)
    frame = b"$\0\0\x04abcd"
    session.server.sendall(frame * 1000)
    got = b""
    while len(got) < 8000:
        got += session.client.recv(8000)
    assert got == frame * 1000
    [flow] = gateway.admin("flows")
    assert flow["down"] >= 8000


def test_what_is_left_alone(lab: Lab, gateway: Gateway, session: Session) -> None:
    host = "2001:db8:113::77" if ":" in session.host else "203.0.113.77"
    third = f"5000-5001;destination={host}"  # nothing opens any more behind this one
    for number, ports in enumerate(("22-23", "0-0", "5000-5003", "1900-1901", third, "5000-5001"), 1):
        said = f"SETUP rtsp://a RTSP/1.0\r\nCSeq: {number}\r\nTransport: RTP/AVP;unicast;client_port={ports}\r\n\r\n"
        assert session.asks(said) == said
    assert holes(gateway) == []


@pytest.mark.parametrize(("proxy", "host"), [(ROUTER_IN4, SERVER6), (ROUTER_IN6, SERVER4)])
def test_a_server_of_the_other_family(lab: Lab, gateway: Gateway, proxy: str, host: str) -> None:
    """A client of SOCKS reaches it, but its datagrams would not: it is left to ask for TCP."""
    with lab.listen("outside", host, RTSP) as listener:
        client = by_socks(lab, host, RTSP, proxy)
        server, _ = listener.accept()
    seen = len(gateway.log_lines())
    with client, server:
        for end in (client, server):
            end.settimeout(15)
        session = Session(lab, client, server, host)
        assert session.asks(set_up(5000)) == set_up(5000)
        assert holes(gateway) == []
        gateway.wait_for_log("event=alg.note .*code=rtsp.refused detail=family", 5, seen)
        refused = "RTSP/1.0 461 Unsupported Transport\r\nCSeq: 1\r\n\r\n"
        assert session.answers(refused) == refused


@pytest.mark.parametrize("transport", ["x-real-rdt/udp", "x-pn-tng/udp", "x-real-rdt"])
def test_realmedia_has_one_port(lab: Lab, gateway: Gateway, session: Session, transport: str) -> None:
    said = f"SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: {transport};client_port={{}};mode=play\r\n\r\n"
    read = session.asks(said.format(6970))
    found = re.search(r"client_port=(\d+)", read)
    assert found is not None
    assert read == said.format(found[1])
    [hole] = [hole for hole in gateway.admin("pinholes") if hole["reason"] == "rtsp.rdt"]
    assert hole["target"].endswith(":6970")
    v6 = ":" in session.host
    with Udp(lab, "inside", CLIENT6 if v6 else CLIENT4, 6970) as player, Udp(lab, "outside", session.host) as sender:
        sender.send(b"picture", (ROUTER_OUT6 if v6 else ROUTER_OUT4, int(found[1])))
        assert player.receive()[0] == b"picture"


@pytest.mark.timeout(60)
def test_a_broker_that_does_not_answer_holds_nobody(lab: Lab, gateway: Gateway, session: Session) -> None:
    """SETUP goes as it came, after five seconds, and the connection goes on; the next one is served again."""
    [pid] = [row["pid"] for row in gateway.admin("status") if row.get("process") == "broker"]
    said = "SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=5030-5031\r\n\r\n"
    seen = len(gateway.log_lines())
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert session.asks(said) == said
        assert time.monotonic() - began < 9
    finally:
        os.kill(pid, signal.SIGKILL)
    gateway.wait_for_log("rtsp.(unanswered|refused)", 5, seen)
    assert session.answers("RTSP/1.0 461 Unsupported Transport\r\nCSeq: 1\r\n\r\n")
    gateway.wait_for_log("broker.table", 15, seen)
    session.set_up(5040, 2)


def test_the_broker_is_killed_before_the_server_answers(lab: Lab, gateway: Gateway, session: Session) -> None:
    """What it has opened stays, and the client reads its own ports."""
    inside, router = (CLIENT6, ROUTER_OUT6) if ":" in session.host else (CLIENT4, ROUTER_OUT4)
    public = session.asks_for(5030)
    [pid] = [row["pid"] for row in gateway.admin("status") if row.get("process") == "broker"]
    seen = len(gateway.log_lines())
    os.kill(pid, signal.SIGKILL)
    session.agrees(5030, public)
    with Udp(lab, "inside", inside, 5030) as rtp, Udp(lab, "outside", session.host) as sender:
        sender.send(b"picture", (router, public))
        assert rtp.receive()[0] == b"picture"
        gateway.wait_for_log("broker.table", 15, seen)
        sender.send(b"another", (router, public))
        assert rtp.receive()[0] == b"another"
        session.asks("TEARDOWN rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        session.answers("RTSP/1.0 200 OK\r\nCSeq: 2\r\n\r\n")
        lab.wait_for(lambda: not holes(gateway), 15, "the ports to close")
        sender.send(b"late", (router, public))
        assert rtp.is_silent()


@pytest.fixture
def short_memory(lab: Lab) -> Iterator[None]:
    """Connection tracking forgets datagrams after a second, which it otherwise remembers for 30 or 120."""
    keys = [f"net.netfilter.nf_conntrack_udp_timeout{more}" for more in ("", "_stream")]
    before = lab.run("router", ["sysctl", *keys]).stdout.replace(" = ", "=").split()
    lab.run("router", ["sysctl", "-qw", *(f"{key}=1" for key in keys)])
    yield
    lab.run("router", ["sysctl", "-qw", *before])


@pytest.mark.usefixtures("short_memory")
def test_a_pause_that_outlasts_connection_tracking(lab: Lab, gateway: Gateway, session: Session) -> None:
    """The same port, both ways, although the kernel knows nothing of the media any more. (In real time: below.)"""
    inside, router = (CLIENT6, ROUTER_OUT6) if ":" in session.host else (CLIENT4, ROUTER_OUT4)
    with Udp(lab, "inside", inside, 5050) as rtp, Udp(lab, "outside", session.host, 6970) as sender:
        public = session.set_up(5050)
        sender.send(b"picture", (router, public))
        assert rtp.receive()[0] == b"picture"
        session.asks("PAUSE rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        session.answers("RTSP/1.0 200 OK\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        family = "ipv6" if ":" in inside else "ipv4"
        known = ["conntrack", "-L", "-f", family, "-p", "udp", "--orig-port-dst", str(public)]
        assert lab.run("router", known).stdout.strip()
        lab.wait_for(lambda: not lab.run("router", known).stdout.strip(), 15, "connection tracking to forget")
        session.asks("PLAY rtsp://a RTSP/1.0\r\nCSeq: 3\r\nSession: 7\r\n\r\n")
        session.answers("RTSP/1.0 200 OK\r\nCSeq: 3\r\nSession: 7\r\n\r\n")
        sender.send(b"again", (router, public))
        assert rtp.receive()[0] == b"again"
        rtp.send(b"hello", (session.host, 6970))
        assert sender.receive() == (b"hello", (router, public))


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_pause_of_five_minutes(lab: Lab, gateway: Gateway, session: Session) -> None:
    """Longer than any timeout of the NAT: the same port, and media again."""
    v6 = ":" in session.host
    router = ROUTER_OUT6 if v6 else ROUTER_OUT4
    with Udp(lab, "inside", CLIENT6 if v6 else CLIENT4, 5050) as rtp, Udp(lab, "outside", session.host) as sender:
        public = session.set_up(5050)
        session.asks("PAUSE rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        session.answers("RTSP/1.0 200 OK\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        time.sleep(310)
        session.asks("PLAY rtsp://a RTSP/1.0\r\nCSeq: 3\r\nSession: 7\r\n\r\n")
        session.answers("RTSP/1.0 200 OK\r\nCSeq: 3\r\nSession: 7\r\n\r\n")
        sender.send(b"picture", (router, public))
        assert rtp.receive()[0] == b"picture"


def test_a_web_page_opens_nothing(lab: Lab, gateway: Gateway, session: Session) -> None:
    """A request in the body of another protocol, in a segment of its own."""
    seen = len(gateway.log_lines())
    session.asks("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
    said = "SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n"
    assert session.asks(said) == said
    gateway.wait_for_log("rtsp.not-rtsp", 10, seen)
    assert holes(gateway) == []


def test_interleaved_streams_are_spliced(gateway: Gateway, session: Session) -> None:
    seen = len(gateway.log_lines())
    said = "SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
    assert session.asks(said) == said
    session.answers("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 7\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n\r\n")
    session.asks("PLAY rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
    session.answers("RTSP/1.0 200 OK\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
    gateway.wait_for_log("alg.bypass", 10, seen)
    frame = b"$\0\0\x04abcd"
    session.server.sendall(frame * 1000)
    got = b""
    while len(got) < 8000:
        got += session.client.recv(8000)
    assert got == frame * 1000


# --- real players and servers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gstreamer(lab: Lab, gateway: Gateway) -> Iterator[str]:
    """The URL of a server outside."""
    process = servers.gst_rtsp(lab, SERVER4, PORT)
    yield f"rtsp://{SERVER4}:{PORT}"
    lab.stop(process)


@pytest.fixture(scope="module")
def gstreamer6(lab: Lab, gateway: Gateway) -> Iterator[str]:
    """The same over IPv6."""
    process = servers.gst_rtsp(lab, SERVER6, PORT)
    yield f"rtsp://[{SERVER6}]:{PORT}"
    lab.stop(process)


def ffmpeg(lab: Lab, *arguments: str | Path) -> str:
    program = installed("ffmpeg", "/usr/bin/ffmpeg")
    done = lab.run("inside", [program, "-nostdin", "-hide_banner", *arguments], timeout=100)
    return done.stderr


def ffmpeg_plays(lab: Lab, url: str, transport: str) -> None:
    limits = ["-frames:v", "20", "-frames:a", "20"]
    said = ffmpeg(lab, "-rtsp_transport", transport, "-i", url, *limits, "-f", "null", "-")
    assert re.search(r"frame=\s*20\b", said), said


def mpv_plays(lab: Lab, url: str, transport: str) -> None:
    program = installed("mpv", "/usr/bin/mpv")
    options = ["--no-config", "--vo=null", "--ao=null", "--untimed", "--cache=no", "--frames=20"]
    said = lab.run("inside", [program, *options, f"--rtsp-transport={transport}", url], timeout=100).stdout
    assert re.search(r"(\(\+\)|●) +Video", said), said
    assert "Exiting... (End of file)" in said, said


def aiortsp_plays(lab: Lab, url: str, transport: str) -> None:
    pytest.importorskip("aiortsp", reason="aiortsp is not there for this machine")
    scheme = "rtsp" if transport == "udp" else "rtspt"
    argv: list[str | Path] = [sys.executable, LAB / "aiortsp_player.py", url.replace("rtsp", scheme, 1)]
    assert lab.run("inside", argv, timeout=100).stdout == "20\n"


def gstreamer_plays(lab: Lab, url: str, transport: str, version: str = "1-0") -> None:
    python = installed("python3-gi", "/usr/bin/python3")
    if transport == "http":
        url, transport = url.replace("rtsp", "rtsph", 1), "tcp"
    lab.run("inside", [python, LAB / "gst_player.py", url, transport, version], timeout=100)


PLAYERS: dict[str, Callable[[Lab, str, str], None]] = {
    "ffmpeg": ffmpeg_plays,
    "mpv": mpv_plays,
    "aiortsp": aiortsp_plays,
    "GStreamer": gstreamer_plays,
    "GStreamer, RTSP 2.0": functools.partial(gstreamer_plays, version="2-0"),
}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("player", PLAYERS)
def test_a_player_shows_a_stream(lab: Lab, gateway: Gateway, gstreamer: str, player: str, transport: str) -> None:
    shows_a_stream(lab, gateway, f"{gstreamer}/test", player, transport)


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("player", "transport"), [("ffmpeg", "udp"), ("ffmpeg", "tcp"), ("GStreamer", "udp")])
def test_a_player_shows_a_stream_over_ipv6(
    lab: Lab, gateway: Gateway, gstreamer6: str, player: str, transport: str
) -> None:
    shows_a_stream(lab, gateway, f"{gstreamer6}/test", player, transport)


def shows_a_stream(lab: Lab, gateway: Gateway, url: str, player: str, transport: str) -> None:
    """Pictures and sound arrive, over UDP by ports that the gateway has opened. What both ends of the connection have
    seen differs in these ports only, which the player reads as its own. ffmpeg's receiver reports reach the server,
    from the second one of a pair."""
    seen = len(gateway.log_lines())
    with Tap(lab, "inside", PORT) as within, Tap(lab, "outside", PORT) as beyond, UdpTap(lab, "outside") as media:
        PLAYERS[player](lab, url, transport)
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    streams = 1 if player == "aiortsp" else 2  # it asks for the pictures only
    assert len(opened) == (streams if transport == "udp" else 0)
    [one], [other] = within.streams(), beyond.streams()
    if transport == "tcp":
        assert one.client == other.client
        assert other.server.startswith(one.server)  # a player that leaves at once does not see the end of it
        assert len(one.server) > 10_000
        return
    public = [int(port) for _, port in only_ports_differ(one, other, streams)]
    reports = {packet.source[1] for packet in media.packets if packet.data[1:2] == bytes([RECEIVER_REPORT])}
    if player == "ffmpeg":
        assert reports
    assert reports <= {port for port in public if port % 2}
    lab.wait_for(lambda: not holes(gateway), 15, "the ports to close")


def only_ports_differ(one: Stream, other: Stream, streams: int) -> list[tuple[bytes, bytes]]:
    """The client's ports, with their public ones: pairs, of which the first is even. Nothing else differs between what
    the client has seen and what the server has seen."""
    asked, answered = differences(one.client, other.client), differences(other.server, one.server)
    assert len(asked) == 2 * streams
    for (own, public), (next_own, next_public) in batched(asked):
        assert int(public) % 2 == 0
        assert 40000 <= int(public) <= 49999
        assert (int(next_own), int(next_public)) == (int(own) + 1, int(public) + 1)
    assert answered == [pair[::-1] for pair in asked]
    return asked


def batched(pairs: list[tuple[bytes, bytes]]) -> Iterator[tuple[tuple[bytes, bytes], tuple[bytes, bytes]]]:
    """Two by two."""
    return zip(pairs[::2], pairs[1::2], strict=True)


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("short_memory")
def test_a_player_pauses(lab: Lab, gateway: Gateway, gstreamer: str) -> None:
    """For longer than connection tracking remembers it: pictures and sound again, at the same ports."""
    seen = len(gateway.log_lines())
    python = installed("python3-gi", "/usr/bin/python3")
    argv: list[str | Path] = [python, LAB / "gst_player.py", f"{gstreamer}/test", "udp", "1-0", "5"]
    with Tap(lab, "inside", PORT) as within, Tap(lab, "outside", PORT) as beyond:
        lab.run("inside", argv, timeout=100)
    [one], [other] = within.streams(), beyond.streams()
    assert re.findall(rb"^(PLAY|PAUSE) ", one.client, re.MULTILINE)[:3] == [b"PLAY", b"PAUSE", b"PLAY"]
    only_ports_differ(one, other, 2)
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    assert len(opened) == 2


@pytest.mark.timeout(150)
@pytest.mark.parametrize("player", ["ffmpeg", "GStreamer"])
def test_a_player_within_http(lab: Lab, gateway: Gateway, gstreamer: str, player: str) -> None:
    """QuickTime's way, in two connections of HTTP: read no further than what it is."""
    seen = len(gateway.log_lines())
    with Tap(lab, "inside", PORT) as within, Tap(lab, "outside", PORT) as beyond:
        PLAYERS[player](lab, f"{gstreamer}/test", "http")
    gateway.wait_for_log("event=alg.note .*rtsp.tunnel", 10, seen)
    assert not any("pinhole.open" in line for line in gateway.log_lines()[seen:])
    ends = [sorted((one.client, one.server) for one in tap.streams()) for tap in (within, beyond)]
    assert len(ends[0]) == 2
    assert ends[0] == ends[1]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("version", [4, 6])
def test_a_player_through_socks(lab: Lab, gateway: Gateway, request: pytest.FixtureRequest, version: int) -> None:
    """Its connection goes through SOCKS, and media come to it through the NAT."""
    url = request.getfixturevalue("gstreamer" if version == 4 else "gstreamer6")
    config = lab.tmp / "proxychains.conf"
    # Of one family: media cannot come over another one than the connection that asks for them.
    config.write_text(f"strict_chain\n[ProxyList]\nsocks5 {ROUTER_IN4 if version == 4 else ROUTER_IN6} 1080\n")
    seen = len(gateway.log_lines())
    program = installed("proxychains4", "/usr/bin/proxychains4")
    argv: list[str | Path] = [program, "-q", "-f", config, installed("ffmpeg", "/usr/bin/ffmpeg"), "-nostdin"]
    argv += ["-hide_banner", "-rtsp_transport", "udp", "-i", f"{url}/test", "-frames:v", "20", "-frames:a", "20"]
    with Tap(lab, "inside", 1080) as within, Tap(lab, "outside", PORT) as beyond:
        said = lab.run("inside", [*argv, "-f", "null", "-"], timeout=100).stderr
    assert re.search(r"frame=\s*20\b", said), said
    log = gateway.log_lines()[seen:]
    assert len([line for line in log if "pinhole.open" in line and "rtsp.rtp" in line]) == 2
    assert any("front=socks" in line for line in log)
    [one], [other] = within.streams(), beyond.streams()
    asked = one.client.index(b"OPTIONS ")  # behind the greeting and the request of SOCKS
    answered = one.server.index(b"RTSP/1.0 ")
    only_ports_differ(one._replace(client=one.client[asked:], server=one.server[answered:]), other, 2)


@pytest.mark.timeout(100)
def test_vlc_shows_television(lab: Lab, gateway: Gateway) -> None:
    """SAT>IP, which is RTSP with a stream of television over UDP. Debian's VLC has no other RTSP (it is built without
    live555), and does not run as root."""
    vlc, ffmpeg = installed("vlc-bin", "/usr/bin/vlc"), installed("ffmpeg", "/usr/bin/ffmpeg")
    installed("vlc-plugin-base", f"/usr/lib/{MULTIARCH}/vlc/plugins/access/libsatip_plugin.so")
    log = lab.logs / "satip.log"
    server = lab.popen("outside", [sys.executable, LAB / "satip_server.py", SERVER4, str(TELEVISION), ffmpeg], log=log)
    lab.wait_for(lambda: "listening" in log.read_text(), 10, "the television")
    home = lab.tmp / "vlc"
    home.mkdir()
    home.chmod(0o777)
    seen = len(gateway.log_lines())
    argv: list[str | Path] = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "env", f"HOME={home}"]
    argv += [vlc, "-I", "dummy", "--no-dbus", "--run-time=4", "--play-and-exit"]
    argv += [f"--sout=#std{{access=file,mux=ts,dst={home}/seen.ts}}", f"satip://{SERVER4}:{TELEVISION}/?src=1"]
    with Tap(lab, "inside", TELEVISION) as within, Tap(lab, "outside", TELEVISION) as beyond:
        lab.run("inside", [*argv, "vlc://quit"], timeout=60)
    counted = lab.run(
        "inside",
        ["ffprobe", "-v", "error", "-count_packets", "-show_entries", "stream=nb_read_packets", home / "seen.ts"],
    )
    found = re.search(r"nb_read_packets=(\d+)", counted.stdout)
    assert found is not None, counted
    assert int(found[1]) >= 20
    [one], [other] = within.streams(), beyond.streams()
    asked = differences(one.client, other.client)
    assert len(asked) == 2
    assert differences(other.server, one.server) == [pair[::-1] for pair in asked]
    assert len([line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]) == 1
    lab.stop(server)
    lab.wait_for(lambda: not holes(gateway), 15, "the ports to close")


@pytest.mark.timeout(150)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_ffmpeg_publishes(lab: Lab, gateway: Gateway, gstreamer: str, transport: str) -> None:
    """The server gets pictures, over UDP from the public ports."""
    seen = len(gateway.log_lines())
    source = ["-re", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=15", "-frames:v", "30", "-c:v", "mjpeg"]
    source += ["-pix_fmt", "yuvj420p", "-huffman", "default", "-force_duplicated_matrix", "1"]
    with Tap(lab, "inside", PORT) as within, Tap(lab, "outside", PORT) as beyond, UdpTap(lab, "outside") as media:
        said = ffmpeg(lab, *source, "-f", "rtsp", "-rtsp_transport", transport, f"{gstreamer}/record")
    assert re.search(r"frame=\s*30\b", said), said
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    assert len(opened) == (1 if transport == "udp" else 0)
    [one], [other] = within.streams(), beyond.streams()
    if transport == "tcp":
        assert (one.client, one.server) == (other.client, other.server)
        return
    public = only_ports_differ(one, other, 1)
    pictures = [packet for packet in media.packets if packet.source == (ROUTER_OUT4, int(public[0][1]))]
    assert len(pictures) >= 30


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["observe", "off"])
def passive(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[str]:
    before = gateway.config.read_text()
    assert "[alg.rtsp]" in before
    gateway.config.write_text(before.replace("[alg.rtsp]", f'[alg.rtsp]\nmode = "{request.param}"'))
    gateway.rules("apply")
    gateway.reload()
    yield request.param
    gateway.config.write_text(before)
    gateway.rules("apply")
    gateway.reload()


def test_without_the_module_nothing_is_changed(lab: Lab, gateway: Gateway, passive: str, session: Session) -> None:
    said = "SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n"
    seen = len(gateway.log_lines())
    assert session.asks(said) == said
    assert holes(gateway) == []
    edits = [line for line in gateway.log_lines()[seen:] if "alg.edit" in line]
    assert bool(edits) is (passive == "observe")
