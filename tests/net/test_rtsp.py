"""RTSP through the router: ffmpeg and GStreamer, and a server that does what a test says."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
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
    ROUTER_OUT4,
    ROUTER_OUT6,
    SERVER4,
    SERVER6,
    STRANGER4,
    STRANGER6,
    Lab,
)
from tests.lab.peers import MULTIARCH, installed
from tests.lab.tap import Tap, differences
from tests.lab.udp import Udp

RTSP = 554
PORT = 8554
TELEVISION = 8555
LAB = Path(servers.__file__).parent
pytestmark = pytest.mark.usefixtures("gateway")


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(
        lab.write_config(alg={"rtsp": {"streams": 4, "ports": [RTSP, PORT, TELEVISION]}}, process={"workers": 1})
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
        public, _ = session.set_up(5010, more=f";source={other}")
        beside.send(b"no", (router, public))
        source.send(b"picture", (router, public))
        assert rtp.receive() == (b"picture", source.sock.getsockname()[:2])
        beside.send(b"no", (router, public))
        assert rtp.is_silent()


def test_the_end_of_the_connection_is_the_end_of_its_media(lab: Lab, gateway: Gateway, session: Session) -> None:
    session.set_up(5020)
    session.close()
    lab.wait_for(
        lambda: not holes(gateway),
        15,
        "the ports to close",
    )


def test_what_is_left_alone(lab: Lab, gateway: Gateway, session: Session) -> None:
    third = "5000-5001;destination=203.0.113.77"  # nothing opens any more behind this one
    for number, ports in enumerate(("22-23", "0-0", "5000-5003", "1900-1901", third, "5000-5001"), 1):
        said = f"SETUP rtsp://a RTSP/1.0\r\nCSeq: {number}\r\nTransport: RTP/AVP;unicast;client_port={ports}\r\n\r\n"
        assert session.asks(said) == said
    assert holes(gateway) == []


def test_realmedia_has_one_port(lab: Lab, gateway: Gateway, session: Session) -> None:
    said = "SETUP rtsp://a RTSP/1.0\r\nCSeq: 1\r\nTransport: x-real-rdt/udp;client_port={};mode=play\r\n\r\n"
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


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_pause_of_five_minutes(lab: Lab, gateway: Gateway, session: Session) -> None:
    """Longer than any timeout of the NAT: the same port, and media again."""
    v6 = ":" in session.host
    router = ROUTER_OUT6 if v6 else ROUTER_OUT4
    with Udp(lab, "inside", CLIENT6 if v6 else CLIENT4, 5050) as rtp, Udp(lab, "outside", session.host) as sender:
        public, _ = session.set_up(5050)
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
    assert "(+) Video" in said, said
    assert "Exiting... (End of file)" in said, said


def aiortsp_plays(lab: Lab, url: str, transport: str) -> None:
    pytest.importorskip("aiortsp", reason="aiortsp is not there for this machine")
    scheme = "rtsp" if transport == "udp" else "rtspt"
    argv: list[str | Path] = [sys.executable, LAB / "aiortsp_player.py", url.replace("rtsp", scheme, 1)]
    assert lab.run("inside", argv, timeout=100).stdout == "20\n"


def gstreamer_plays(lab: Lab, url: str, transport: str, version: str = "1-0") -> None:
    python = installed("python3-gi", "/usr/bin/python3")
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
    """Pictures and sound arrive, over UDP by ports that the gateway has opened. What both ends of the connection have
    seen differs in these ports only, which the player reads as its own."""
    seen = len(gateway.log_lines())
    with Tap(lab, "inside", PORT) as within, Tap(lab, "outside", PORT) as beyond:
        PLAYERS[player](lab, f"{gstreamer}/test", transport)
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    streams = 1 if player == "aiortsp" else 2  # it asks for the pictures only
    assert len(opened) == (streams if transport == "udp" else 0)
    [one], [other] = within.streams(), beyond.streams()
    asked, answered = differences(one.client, other.client), differences(other.server, one.server)
    if transport == "tcp":
        assert asked == answered == []
        return
    assert len(asked) == 2 * streams
    for (own, public), (next_own, next_public) in batched(asked):
        assert int(public) % 2 == 0
        assert 40000 <= int(public) <= 49999
        assert (int(next_own), int(next_public)) == (int(own) + 1, int(public) + 1)
    assert answered == [pair[::-1] for pair in asked]
    lab.wait_for(lambda: not holes(gateway), 15, "the ports to close")


def batched(pairs: list[tuple[bytes, bytes]]) -> Iterator[tuple[tuple[bytes, bytes], tuple[bytes, bytes]]]:
    """Two by two."""
    return zip(pairs[::2], pairs[1::2], strict=True)


@pytest.mark.timeout(150)
def test_a_player_through_socks(lab: Lab, gateway: Gateway, gstreamer: str) -> None:
    """Its connection goes through SOCKS, and media come to it through the NAT."""
    config = lab.tmp / "proxychains.conf"
    config.write_text(f"strict_chain\n[ProxyList]\nsocks5 {ROUTER_IN4} 1080\n")
    seen = len(gateway.log_lines())
    program = installed("proxychains4", "/usr/bin/proxychains4")
    argv: list[str | Path] = [program, "-q", "-f", config, installed("ffmpeg", "/usr/bin/ffmpeg"), "-nostdin"]
    argv += ["-hide_banner", "-rtsp_transport", "udp", "-i", f"{gstreamer}/test", "-frames:v", "20", "-frames:a", "20"]
    said = lab.run("inside", [*argv, "-f", "null", "-"], timeout=100).stderr
    assert re.search(r"frame=\s*20\b", said), said
    log = gateway.log_lines()[seen:]
    assert len([line for line in log if "pinhole.open" in line and "rtsp.rtp" in line]) == 2
    assert any("front=socks" in line for line in log)


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
