"""What a message costs: in proportion to its bytes, however odd it is and however its stream is cut."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from alg.address import Endpoint
from alg.api import Command, Deliver, FlowContext, Received, Side
from alg.datagrams import Datagram
from alg.sip.tcp import SipModule
from alg.sip.udp import SipEngine

CLIENT, SERVER = Endpoint("192.168.56.10", 5060), Endpoint("203.0.113.5", 5060)
HEAD = (
    b"INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.56.10;branch=z9hG4bK1\r\nTo: <sip:b@c>\r\n"
    b"From: <sip:a@b>;tag=1\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n"
)

SHAPES: dict[str, Callable[[int], bytes]] = {
    "headers": lambda n: HEAD + b"a:\r\n" * (n // 4) + b"\r\n",
    "no line end": lambda n: HEAD + b"a: " + b"x" * n + b"\r\n\r\n",
    "folds": lambda n: HEAD + b"Subject: x" + b"\r\n " * (n // 3) + b"\r\n\r\n",
    "parameters": lambda n: HEAD.replace(b"z9hG4bK1", b"z" + b";" * n) + b"\r\n",
    "parameters and blanks": lambda n: HEAD.replace(b"z9hG4bK1", b"z" + b" ; a" * (n // 4) + b'"') + b"\r\n",
    "contacts": lambda n: HEAD + b"Contact: " + b"<sip:a@b>," * (n // 10) + b"x y\r\n\r\n",
    "quotes": lambda n: HEAD + b"Contact: " + b'"a" ' * (n // 4) + b"\r\n\r\n",
    "at signs": lambda n: HEAD + b"Contact: <sip:" + b"a@" * (n // 2) + b"?>\r\n\r\n",
    "vias": lambda n: HEAD + b"Via: SIP/2.0/UDP x," * (n // 19) + b"\r\n\r\n",
    "escaped quotes": lambda n: HEAD + b"Contact: " + b'"\\' * (n // 2) + b"\r\n\r\n",
    "escaped quotes in an address": lambda n: HEAD + b'Contact: <sip:a@h;"' + b'\\"' * (n // 2) + b"\r\n\r\n",
    "quotes in From": lambda n: HEAD.replace(b"<sip:a@b>", b'"\\' * (n // 2)) + b"\r\n",
    "open brackets": lambda n: (
        HEAD.replace(b"<sip:a@b>", b"<sip:a " * (n // 7)) + b"Contact: <a:" + b" " * n + b"\r\n\r\n"
    ),
    "blanks": lambda n: HEAD + b"Contact: " + b" " * n + b"<\r\n\r\n",
    "description": lambda n: (
        HEAD + b"Content-Type: application/sdp\r\n\r\nv=0\r\no=" + b" IN IP4" * (n // 7) + b"\r\nc=IN IP4 " + b" " * n
    ),
    "multipart": lambda n: HEAD + b"Content-Type: multipart/mixed;boundary=b\r\n\r\n" + b"--b\n" * (n // 4),
    "options": lambda n: HEAD + b"Require: " + b"a," * (n // 2) + b"\r\n\r\n",
}


def seconds(work: Callable[[], object]) -> float:
    """The least of several runs, in CPU time of this process."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", list(Side))
def test_a_datagram(shape: str, side: Side) -> None:
    short, long = (SHAPES[shape](size) for size in (7500, 60000))

    def read(data: bytes) -> None:
        SipEngine().handle(Datagram(1, side, CLIENT, SERVER, data, 0.0))

    assert seconds(lambda: read(long)) < 20 * seconds(lambda: read(short)) + 0.02
    assert seconds(lambda: read(long)) < 0.25


@pytest.mark.parametrize("piece", [1, 7])
@pytest.mark.parametrize("headers", [10, 7000])
def test_a_body_in_small_pieces_behind_many_headers(headers: int, piece: int) -> None:
    """7,000 headers and then the body byte by byte: the head is not gone through again for each."""

    def stream(size: int) -> None:
        module = SipModule(FlowContext(CLIENT, SERVER))
        module.handle(Received(Side.CLIENT, HEAD + b"a:\r\n" * headers + b"Content-Length: %d\r\n\r\n" % size, 0.0))
        body = b"x" * size
        out: list[Command] = []
        for at in range(0, size, piece):
            out += module.handle(Received(Side.CLIENT, body[at : at + piece], 0.0))
        assert sum(len(command.data) for command in out if isinstance(command, Deliver)) > size

    few, many = seconds(lambda: stream(2000)), seconds(lambda: stream(16000))
    assert many < 16 * few + 0.05
    assert many < 16000 / piece * 50e-6 + 0.25


@pytest.mark.parametrize("shape", ["headers", "no line end", "folds"])
def test_a_head_in_small_pieces(shape: str) -> None:
    def stream(size: int) -> None:
        module = SipModule(FlowContext(CLIENT, SERVER))
        data = SHAPES[shape](size)
        for at in range(len(data)):
            module.handle(Received(Side.CLIENT, data[at : at + 1], 0.0))

    assert seconds(lambda: stream(16000)) < 16 * seconds(lambda: stream(2000)) + 0.05
