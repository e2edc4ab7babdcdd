"""RTSP through the router: ffmpeg and GStreamer, and a server that does what a test says."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.ways import by_socks, direct
from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, ROUTER_OUT4, ROUTER_OUT6, SERVER4, SERVER6, STRANGER4, STRANGER6, Lab
from tests.lab.peers import installed
from tests.lab.udp import Udp

RTSP = 554
PORT = 8554
pytestmark = pytest.mark.usefixtures("gateway")


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(alg={"rtsp": {"streams": 4}}, process={"workers": 1}))
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

    def set_up(self, port: int, number: int = 1, more: str = "") -> tuple[int, str]:
        """SETUP with the client's pair `port` and the next one: the public port, and what the client reads."""
        transport = "RTP/AVP;unicast;client_port={}-{}"
        said = f"SETUP rtsp://a/{number} RTSP/1.0\r\nCSeq: {number}\r\nTransport: {{}}\r\n\r\n"
        own = transport.format(port, port + 1)
        read = self.asks(said.format(own))
        found = re.search(r"client_port=(\d+)-(\d+)", read)
        assert found is not None
        public = int(found[1])
        assert int(found[2]) == public + 1
        assert read == said.format(transport.format(public, public + 1))  # and not a byte else
        answer = (
            f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nSession: 7\r\nTransport: {{}};server_port=6970-6971{more}\r\n\r\n"
        )
        said = self.answers(answer.format(transport.format(public, public + 1)))
        assert said == answer.format(own)
        return public, said

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


def holes(gateway: Gateway) -> list[dict[str, Any]]:
    """The pinholes of media."""
    return [hole for hole in gateway.admin("pinholes") if hole["reason"] == "rtsp.rtp"]


@pytest.fixture(params=["redirect", "redirect IPv6", "SOCKS"])
def session(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Session]:
    host = SERVER6 if "6" in request.param else SERVER4
    with lab.listen("outside", host, RTSP) as listener:
        client = (by_socks if request.param == "SOCKS" else direct)(lab, host, RTSP)
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(15)
    session = Session(lab, client, server, host)
    yield session
    session.close()


def test_media_come_in_and_reports_go_out(lab: Lab, gateway: Gateway, session: Session) -> None:
    v6 = ":" in session.host
    inside, router, other = (CLIENT6, ROUTER_OUT6, STRANGER6) if v6 else (CLIENT4, ROUTER_OUT4, STRANGER4)
    public, _ = session.set_up(5000)
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
        lab.wait_for(lambda: not holes(gateway), 15, "the end")
        sender.send(b"late", (router, public))
        assert rtp.is_silent()


def test_another_source_is_let_in_before_the_client_is_told(lab: Lab, session: Session) -> None:
    v6 = ":" in session.host
    inside, router, other = (CLIENT6, ROUTER_OUT6, STRANGER6) if v6 else (CLIENT4, ROUTER_OUT4, STRANGER4)
    with Udp(lab, "inside", inside, 5010) as rtp, Udp(lab, "stranger", other) as source:
        public, _ = session.set_up(5010, more=f";source={other}")
        source.send(b"picture", (router, public))
        assert rtp.receive()[0] == b"picture"


def test_the_end_of_the_connection_is_the_end_of_its_media(lab: Lab, gateway: Gateway, session: Session) -> None:
    session.set_up(5020)
    session.close()
    lab.wait_for(
        lambda: not holes(gateway),
        15,
        "the ports to close",
    )


def test_what_is_left_alone(lab: Lab, gateway: Gateway, session: Session) -> None:
    for number, ports in enumerate(("22-23", "0-0", "5000-5003", "1900-1901"), 1):
        said = f"SETUP rtsp://a RTSP/1.0\r\nCSeq: {number}\r\nTransport: RTP/AVP;unicast;client_port={ports}\r\n\r\n"
        assert session.asks(said) == said
    assert holes(gateway) == []


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


def ffmpeg(lab: Lab, *arguments: str | Path) -> str:
    program = installed("ffmpeg", "/usr/bin/ffmpeg")
    done = lab.run("inside", [program, "-nostdin", "-hide_banner", *arguments], timeout=100)
    return done.stderr


@pytest.mark.timeout(150)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_ffmpeg_plays(lab: Lab, gateway: Gateway, gstreamer: str, transport: str) -> None:
    """Pictures and sound arrive, and are decoded; over UDP by ports that the gateway has opened."""
    seen = len(gateway.log_lines())
    limits = ["-frames:v", "20", "-frames:a", "20"]
    said = ffmpeg(lab, "-rtsp_transport", transport, "-i", f"{gstreamer}/test", *limits, "-f", "null", "-")
    assert re.search(r"frame=\s*20\b", said), said
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    assert len(opened) == (2 if transport == "udp" else 0)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_ffmpeg_publishes(lab: Lab, gateway: Gateway, gstreamer: str, transport: str) -> None:
    seen = len(gateway.log_lines())
    source = ["-re", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=15", "-frames:v", "30", "-c:v", "mjpeg"]
    source += ["-pix_fmt", "yuvj420p", "-huffman", "default", "-force_duplicated_matrix", "1"]
    said = ffmpeg(lab, *source, "-f", "rtsp", "-rtsp_transport", transport, f"{gstreamer}/record")
    assert re.search(r"frame=\s*30\b", said), said
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    assert len(opened) == (1 if transport == "udp" else 0)


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["observe", "off"])
def passive(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[str]:
    before = gateway.config.read_text()
    assert "[alg.rtsp]" in before
    gateway.config.write_text(before.replace("[alg.rtsp]", f'[alg.rtsp]\nmode = "{request.param}"'))
    gateway.algate("rules", "apply")
    gateway.algate("reload")
    yield request.param
    gateway.config.write_text(before)
    gateway.algate("rules", "apply")
    gateway.algate("reload")


def test_without_the_module_nothing_is_changed(lab: Lab, gateway: Gateway, passive: str, session: Session) -> None:
    said = "SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n"
    seen = len(gateway.log_lines())
    assert session.asks(said) == said
    assert holes(gateway) == []
    edits = [line for line in gateway.log_lines()[seen:] if "alg.edit" in line]
    assert bool(edits) is (passive == "observe")
