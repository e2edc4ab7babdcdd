"""Cameras behind the router that are published: real players outside, and a camera that a test plays."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

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
from tests.lab.peers import installed
from tests.lab.udp import Udp

PORT, PLAYED = 8554, 554


class Hosts(NamedTuple):
    """The addresses of one family."""

    camera: str
    router_in: str
    router_out: str
    viewer: str
    stranger: str


HOSTS = {
    "IPv4": Hosts(CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4),
    "IPv6": Hosts(CLIENT6, ROUTER_IN6, ROUTER_OUT6, SERVER6, STRANGER6),
}


def shown(host: str) -> str:
    """An address as URLs have it."""
    return f"[{host}]" if ":" in host else host


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    publish = [
        {"outside": f"{shown(hosts.router_out)}:{port}", "inside": f"{shown(hosts.camera)}:{port}"}
        for hosts in HOSTS.values()
        for port in (PORT, PLAYED)
    ]
    gateway = lab.start_gateway(lab.write_config(publish=publish, process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(params=HOSTS)
def hosts(request: pytest.FixtureRequest) -> Hosts:
    return HOSTS[request.param]


@pytest.fixture(scope="module")
def cameras(lab: Lab, gateway: Gateway) -> Iterator[None]:
    processes = [servers.gst_rtsp(lab, hosts.camera, PORT, "inside") for hosts in HOSTS.values()]
    yield
    for process in processes:
        lab.stop(process)


def holes(gateway: Gateway) -> list[dict[str, Any]]:
    return [hole for hole in gateway.admin("pinholes") if hole["kind"] == "exchange"]


def plays(lab: Lab, url: str, transport: str, *limits: str) -> None:
    """ffmpeg outside shows twenty pictures."""
    program = installed("ffmpeg", "/usr/bin/ffmpeg")
    argv: list[str | Path] = [program, "-nostdin", "-hide_banner", "-rtsp_transport", transport, "-i", url]
    said = lab.run("outside", [*argv, "-frames:v", "20", *limits, "-f", "null", "-"], timeout=100).stderr
    assert re.search(r"frame=\s*20\b", said), said


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("cameras")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_ffmpeg_outside_plays(lab: Lab, gateway: Gateway, hosts: Hosts, transport: str) -> None:
    """Pictures and sound of the camera inside, which sees its viewer at the router's inside address."""
    seen = len(gateway.log_lines())
    plays(lab, f"rtsp://{shown(hosts.router_out)}:{PORT}/test", transport, "-frames:a", "20")
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    assert len(opened) == (2 if transport == "udp" else 0)
    lab.wait_for(lambda: holes(gateway) == [], 15, "the media's ports to close")


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("gateway")
def test_ffmpeg_outside_shows_a_password_by_digest(lab: Lab, hosts: Hosts) -> None:
    """Its hash is made over the URI that the viewer asks for, which is not touched."""
    process = servers.gst_rtsp(lab, hosts.camera, PLAYED, "inside", "secret")
    plays(lab, f"rtsp://ann:secret@{shown(hosts.router_out)}:{PLAYED}/test", "udp")
    lab.stop(process)


def test_each_side_knows_the_other_at_the_router(lab: Lab, gateway: Gateway, hosts: Hosts) -> None:
    """Byte by byte; strangers to both sides; and the end."""
    with lab.listen("inside", hosts.camera, PLAYED) as listener:
        viewer = lab.connect("outside", hosts.router_out, PLAYED, timeout=15)
        camera, _ = listener.accept()
    with (
        viewer,
        camera,
        Udp(lab, "outside", hosts.viewer, 5000) as rtp,
        Udp(lab, "outside", hosts.viewer, 5001) as rtcp,
        Udp(lab, "inside", hosts.camera, 6970) as sends,
        Udp(lab, "inside", hosts.camera, 6971) as reports,
        Udp(lab, "stranger", hosts.stranger, 5000) as stranger,
    ):
        for end in (viewer, camera):
            end.settimeout(15)
        said = "SETUP rtsp://a/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port={}-{}\r\n\r\n"
        read = passed(viewer, camera, said.format(5000, 5001))
        found = re.search(r"client_port=(\d+)", read)
        assert found is not None
        inner = int(found[1])
        assert read == said.format(inner, inner + 1)
        answer = "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 7\r\nTransport: RTP/AVP;unicast;client_port={}-{}"
        answer += ";source={};server_port={}-{}\r\n\r\n"
        read = passed(camera, viewer, answer.format(inner, inner + 1, hosts.camera, 6970, 6971))
        found = re.search(r"server_port=(\d+)", read)
        assert found is not None
        outer = int(found[1])
        assert read == answer.format(5000, 5001, hosts.router_out, outer, outer + 1)
        sends.send(b"picture", (hosts.router_in, inner))
        assert rtp.receive() == (b"picture", (hosts.router_out, outer))
        rtp.send(b"hello", (hosts.router_out, outer))
        assert sends.receive() == (b"hello", (hosts.router_in, inner))
        rtcp.send(b"report", (hosts.router_out, outer + 1))
        assert reports.receive() == (b"report", (hosts.router_in, inner + 1))
        stranger.send(b"no", (hosts.router_out, outer))
        assert sends.is_silent()
        passed(viewer, camera, "TEARDOWN rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        passed(camera, viewer, "RTSP/1.0 200 OK\r\nCSeq: 2\r\n\r\n")
        lab.wait_for(lambda: holes(gateway) == [], 15, "the end")
        sends.send(b"late", (hosts.router_in, inner))
        assert rtp.is_silent()


@pytest.mark.usefixtures("gateway")
def test_a_description_names_the_public_endpoint(lab: Lab, hosts: Hosts) -> None:
    with lab.listen("inside", hosts.camera, PLAYED) as listener:
        viewer = lab.connect("outside", hosts.router_out, PLAYED, timeout=15)
        camera, _ = listener.accept()
    family = "IP6" if ":" in hosts.camera else "IP4"
    with viewer, camera:
        for end in (viewer, camera):
            end.settimeout(15)
        asked = f"DESCRIBE rtsp://{shown(hosts.router_out)}/cam RTSP/1.0\r\nCSeq: 1\r\n\r\n"
        assert passed(viewer, camera, asked) == asked

        def described(host: str) -> str:
            body = (
                f"v=0\r\no=- 1 1 IN {family} {host}\r\ns=-\r\nc=IN {family} {host}\r\n"
                f"a=control:rtsp://{shown(host)}/cam/\r\nm=video 0 RTP/AVP 26\r\n\r\n"
            )
            head = f"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Base: rtsp://{shown(host)}/cam/\r\n"
            return f"{head}Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n\r\n{body}"

        camera.sendall(described(hosts.camera).encode())
        wanted = described(hosts.router_out).encode()
        got = b""
        while len(got) < len(wanted):
            more = viewer.recv(4096)
            assert more, got
            got += more
        assert got == wanted


def passed(sender: socket.socket, receiver: socket.socket, data: str) -> str:
    """What the other side reads of a message without a body."""
    sender.sendall(data.encode())
    read = b""
    while not read.endswith(b"\r\n\r\n"):
        more = receiver.recv(4096)
        assert more, read
        read += more
    return read.decode()
