"""Cameras behind the router that are published: real players outside, and a camera that a test plays."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import servers
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_IN4, ROUTER_OUT4, SERVER4, STRANGER4, Lab
from tests.lab.peers import installed
from tests.lab.udp import Udp

PORT, PLAYED = 8554, 554
URL = f"rtsp://{ROUTER_OUT4}:{PORT}/test"


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    publish = [{"outside": f"{ROUTER_OUT4}:{port}", "inside": f"{CLIENT4}:{port}"} for port in (PORT, PLAYED)]
    gateway = lab.start_gateway(lab.write_config(publish=publish, process={"workers": 1}))
    yield gateway
    assert gateway.stop() == 0, lab.tail_of_logs()
    assert lab.leftovers() == []


@pytest.fixture(scope="module")
def camera(lab: Lab, gateway: Gateway) -> Iterator[None]:
    process = servers.gst_rtsp(lab, CLIENT4, PORT, "inside")
    yield
    lab.stop(process)


def holes(gateway: Gateway) -> list[dict[str, Any]]:
    return [hole for hole in gateway.admin("pinholes") if hole["kind"] == "exchange"]


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("camera")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_ffmpeg_outside_plays(lab: Lab, gateway: Gateway, transport: str) -> None:
    """Pictures and sound of the camera inside, which sees its viewer at the router's inside address."""
    seen = len(gateway.log_lines())
    program = installed("ffmpeg", "/usr/bin/ffmpeg")
    limits = ["-frames:v", "20", "-frames:a", "20", "-f", "null", "-"]
    argv: list[str | Path] = [program, "-nostdin", "-hide_banner", "-rtsp_transport", transport, "-i", URL, *limits]
    said = lab.run("outside", argv, timeout=100).stderr
    assert re.search(r"frame=\s*20\b", said), said
    opened = [line for line in gateway.log_lines()[seen:] if "pinhole.open" in line and "rtsp.rtp" in line]
    assert len(opened) == (2 if transport == "udp" else 0)
    lab.wait_for(lambda: holes(gateway) == [], 15, "the media's ports to close")


@pytest.mark.timeout(150)
def test_ffmpeg_outside_shows_a_password_by_digest(lab: Lab, gateway: Gateway) -> None:
    """Its hash is made over the URI that the viewer asks for, which is not touched."""
    process = servers.gst_rtsp(lab, CLIENT4, PLAYED, "inside", "secret")
    program = installed("ffmpeg", "/usr/bin/ffmpeg")
    url = f"rtsp://ann:secret@{ROUTER_OUT4}:{PLAYED}/test"
    argv: list[str | Path] = [program, "-nostdin", "-hide_banner", "-rtsp_transport", "udp", "-i", url]
    said = lab.run("outside", [*argv, "-frames:v", "20", "-f", "null", "-"], timeout=100).stderr
    lab.stop(process)
    assert re.search(r"frame=\s*20\b", said), said


def test_each_side_knows_the_other_at_the_router(lab: Lab, gateway: Gateway) -> None:
    """Byte by byte; strangers to both sides; and the end."""
    with lab.listen("inside", CLIENT4, PLAYED) as listener:
        viewer = lab.connect("outside", ROUTER_OUT4, PLAYED, timeout=15)
        camera, _ = listener.accept()
    with (
        viewer,
        camera,
        Udp(lab, "outside", SERVER4, 5000) as rtp,
        Udp(lab, "outside", SERVER4, 5001) as rtcp,
        Udp(lab, "inside", CLIENT4, 6970) as sends,
        Udp(lab, "inside", CLIENT4, 6971) as reports,
        Udp(lab, "stranger", STRANGER4, 5000) as stranger,
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
        read = passed(camera, viewer, answer.format(inner, inner + 1, CLIENT4, 6970, 6971))
        found = re.search(r"server_port=(\d+)", read)
        assert found is not None
        outer = int(found[1])
        assert read == answer.format(5000, 5001, ROUTER_OUT4, outer, outer + 1)
        sends.send(b"picture", (ROUTER_IN4, inner))
        assert rtp.receive() == (b"picture", (ROUTER_OUT4, outer))
        rtp.send(b"hello", (ROUTER_OUT4, outer))
        assert sends.receive() == (b"hello", (ROUTER_IN4, inner))
        rtcp.send(b"report", (ROUTER_OUT4, outer + 1))
        assert reports.receive() == (b"report", (ROUTER_IN4, inner + 1))
        stranger.send(b"no", (ROUTER_OUT4, outer))
        assert sends.is_silent()
        passed(viewer, camera, "TEARDOWN rtsp://a RTSP/1.0\r\nCSeq: 2\r\nSession: 7\r\n\r\n")
        passed(camera, viewer, "RTSP/1.0 200 OK\r\nCSeq: 2\r\n\r\n")
        lab.wait_for(lambda: holes(gateway) == [], 15, "the end")
        sends.send(b"late", (ROUTER_IN4, inner))
        assert rtp.is_silent()


def test_a_description_names_the_public_endpoint(lab: Lab) -> None:
    with lab.listen("inside", CLIENT4, PLAYED) as listener:
        viewer = lab.connect("outside", ROUTER_OUT4, PLAYED, timeout=15)
        camera, _ = listener.accept()
    with viewer, camera:
        for end in (viewer, camera):
            end.settimeout(15)
        asked = f"DESCRIBE rtsp://{ROUTER_OUT4}/cam RTSP/1.0\r\nCSeq: 1\r\n\r\n"
        assert passed(viewer, camera, asked) == asked

        def described(host: str) -> str:
            body = (
                f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\na=control:rtsp://{host}/cam/\r\nm=video 0 RTP/AVP 26\r\n\r\n"
            )
            head = (
                f"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Base: rtsp://{host}/cam/\r\nContent-Type: application/sdp\r\n"
            )
            return f"{head}Content-Length: {len(body)}\r\n\r\n{body}"

        camera.sendall(described(CLIENT4).encode())
        wanted = described(ROUTER_OUT4).encode()
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
