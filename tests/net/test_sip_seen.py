"""`algate calls`, `algate trace` and `algate pinholes` while a call is up, over UDP and over TCP."""

from __future__ import annotations

import itertools
import json
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, ROUTER_OUT4, SERVER4, Lab
from tests.net.test_sip import Media, split

SERVER = (SERVER4, 5060)
OFFER = f"v=0\r\no=- 1 1 IN IP4 {CLIENT4}\r\ns=-\r\nc=IN IP4 {CLIENT4}\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
ANSWER = f"v=0\r\no=- 1 1 IN IP4 {SERVER4}\r\ns=-\r\nc=IN IP4 {SERVER4}\r\nt=0 0\r\nm=audio 9100 RTP/AVP 0\r\n"


def accepted(listener: socket.socket) -> socket.socket:
    """The connection that lasts: the packets process may have asked before whether there is a server (decision 0121),
    by one that it has closed by now."""
    while True:
        sock, _ = listener.accept()
        if not select.select([sock], [], [], 0.3)[0]:
            return sock
        sock.close()


class Wire:
    """One call of a phone inside with a server outside, message by message."""

    def __init__(self, lab: Lab, transport: str) -> None:
        self.transport = transport
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        if transport == "tcp":
            with lab.listen("outside", *SERVER) as listener:
                self.near = lab.connect("inside", *SERVER)
                self.far = accepted(listener)
        else:
            with lab.enter("outside"):
                self.far = socket.socket(socket.AF_INET, kind)
                self.far.bind(SERVER)
            with lab.enter("inside"):
                self.near = socket.socket(socket.AF_INET, kind)
                self.near.bind((CLIENT4, 5060))
                self.near.connect(SERVER)
        for end in (self.near, self.far):
            end.settimeout(5)
        self.own = "{}:{}".format(*self.near.getsockname())

    def ask(self, method: str, number: int, body: str = "", between: Callable[[], None] = lambda: None) -> None:
        """A request of the phone, and the server's 200; `between` when the request is there."""
        kind = "Content-Type: application/sdp\r\n" if body else ""
        tag = ";tag=far" if number > 1 else ""
        lines = [
            f"{method} sip:bob@{SERVER4} SIP/2.0",
            f"Via: SIP/2.0/{self.transport.upper()} {self.own};branch=z9hG4bK{number}",
            "From: <sip:ann@example.test>;tag=near",
            f"To: <sip:bob@example.test>{tag}",
            "Call-ID: seen",
            f"CSeq: {number} {method}",
            f"Contact: <sip:ann@{self.own}>",
        ]
        self.near.sendall(("\r\n".join(lines) + f"\r\n{kind}Content-Length: {len(body)}\r\n\r\n{body}").encode())
        data, source = self.far.recvfrom(8192)
        head, _, came = data.decode().partition("\r\n\r\n")
        while self.transport == "tcp" and body and not came.endswith(body[-12:]):
            came += self.far.recv(8192).decode()
        lines = [line for line in head.splitlines() if line.split(":")[0] in ("Via", "From", "Call-ID", "CSeq")]
        between()
        mine = ANSWER if body else ""
        text = "\r\n".join(
            ["SIP/2.0 200 OK", *lines, "To: <sip:bob@example.test>;tag=far", *([kind.strip()] if mine else [])]
        )
        answer = f"{text}\r\nContent-Length: {len(mine)}\r\n\r\n{mine}".encode()
        if self.transport == "tcp":
            self.far.sendall(answer)
        else:
            self.far.sendto(answer, source)
        assert self.near.recv(8192).startswith(b"SIP/2.0 200 OK")

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture(params=["udp", "tcp"])
def wire(lab: Lab, gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[Wire]:
    wire = Wire(lab, request.param)
    yield wire
    wire.close()


def confirmed(gateway: Gateway) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(gateway.algate("calls", "--json").stdout)
    return [row for row in rows if row["state"] == "confirmed"]


def test_a_call_is_seen(lab: Lab, gateway: Gateway, wire: Wire) -> None:
    log = lab.logs / f"trace-{wire.transport}.log"
    tracing = lab.popen("router", [gateway.command, "trace", "-c", gateway.config], log=log)
    media = Media(lab, "inside", CLIENT4, 4000), Media(lab, "outside", SERVER4, 9100)
    near, far = media
    try:
        # The trace begins with what is said after its first look.
        number = itertools.count(100)

        def shows() -> bool:
            wire.ask("OPTIONS", next(number))
            return "OPTIONS sip:bob" in log.read_text()

        lab.wait_for(shows, 10, "the trace to begin")
        wire.ask("INVITE", 1, OFFER)
        (call,) = lab.wait_for(lambda: confirmed(gateway), 5, "the call")
        assert (call["caller"], call["callee"]) == ("sip:ann@example.test", "sip:bob@example.test")
        assert (call["client"], call["server"], call["transport"]) == (CLIENT4, SERVER4, wire.transport)
        assert 0 <= call["duration"] < 10
        (stream,) = call["media"]
        assert stream["target"] == f"{CLIENT4}:4000"
        assert split(stream["public"])[0] == ROUTER_OUT4
        for _ in range(3):
            near.send((SERVER4, 9100), b"out")
            assert far.hears() == b"out"

        def heard() -> bool:
            far.send(split(stream["public"]), b"in")
            return near.hears(0.1) == b"in"

        lab.wait_for(heard, 3, "media from outside")
        (stream,) = confirmed(gateway)[0]["media"]
        assert stream["packets_out"] == 3
        assert stream["packets_in"] >= 1
        table = gateway.algate("calls").stdout
        for word in ("sip:ann@example.test", "sip:bob@example.test", "confirmed", stream["public"]):
            assert word in table
        (pinhole,) = [row for row in gateway.admin("pinholes") if row["reason"] == "sip.rtp"]
        assert pinhole["id"] == stream["lease"]
        wire.ask("BYE", 2)
        lab.wait_for(lambda: not confirmed(gateway), 5, "the end of the call")
        lab.wait_for(lambda: "BYE sip:bob" in log.read_text(), 5, "the trace")
        port = split(stream["public"])[1]
        shown = log.read_text()
        assert f"  - m=audio 4000 RTP/AVP 0\n  + m=audio {port} RTP/AVP 0\n      sdp.port" in shown
        assert f"  - c=IN IP4 {CLIENT4}\n  + c=IN IP4 {ROUTER_OUT4}\n      sdp.connection" in shown
        assert "sip.contact" in shown
        *_, row = [  # the call over another transport may have had the same port
            row
            for row in gateway.admin("trace")
            if row["data"].startswith("INVITE") and f" {port} " in str(row["after"])
        ]
        assert {edit["reason"] for edit in row["edits"]} >= {"sip.via", "sip.contact", "sdp.connection", "sdp.port"}
    finally:
        lab.stop(tracing)
        near.close()
        far.close()
