"""A description in a body of several parts, whose part tells its own length."""

from __future__ import annotations

import pytest

from alg.address import Endpoint
from alg.api import Note, OpenConversation, Opened, Side, apply_edits
from alg.datagrams import Datagram, Release
from alg.sip.udp import SipEngine

CLIENT, SERVER, PUBLIC = Endpoint("10.71.0.10", 5060), Endpoint("198.51.100.10", 5060), "198.51.100.1"
SDP = "v=0\r\no=- 1 1 IN IP4 {0}\r\ns=-\r\nc=IN IP4 {0}\r\nt=0 0\r\nm=audio {1} RTP/AVP 0\r\n"


def invite(host: str, signalling: str, port: int, length: str, end: str = "--b--\r\n") -> bytes:
    sdp = SDP.format(host, port)
    body = (
        f"--b\r\nContent-Type: application/sdp\r\nContent-Length: {length.format(len(sdp))}\r\n\r\n{sdp}\r\n"
        f"--b\r\nContent-Type: application/isup\r\nContent-Length: 3\r\n\r\nABC\r\n{end}"
    )
    return (
        f"INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP {signalling};branch=z9hG4bK1\r\n"
        f"From: <sip:alice@example.com>;tag=1\r\nTo: <sip:bob@example.com>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n"
        f"Contact: <sip:alice@{signalling}>\r\nContent-Type: multipart/mixed;boundary=b\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def sent(data: bytes) -> tuple[bytes, list[str]]:
    engine = SipEngine()
    commands = list(engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, data, 0.0)))
    codes = []
    for command in commands:
        if isinstance(command, OpenConversation):
            port = 40000 if command.target == CLIENT else 40002
            commands += engine.handle(Opened(command.ref, Endpoint(PUBLIC, port), 0.0))
        elif isinstance(command, Note):
            codes.append(command.code)
        elif isinstance(command, Release):
            return apply_edits(data, command.edits), codes
    raise AssertionError("it was not released")


@pytest.mark.parametrize("end", ["--b--\r\n", "", "--b\r\n"])
def test_both_lengths_follow_the_edits(end: str) -> None:
    came = invite(CLIENT.host, str(CLIENT), 4000, "{}", end)
    assert sent(came) == (invite(PUBLIC, f"{PUBLIC}:40000", 40002, "{}", end), [])


@pytest.mark.parametrize("length", ["12", "x", "", "99999999999", "{0} {0}"])
def test_a_part_that_ends_elsewhere_for_whoever_believes_it_stays(length: str) -> None:
    came = invite(CLIENT.host, str(CLIENT), 4000, length)
    goes, _ = sent(came)
    assert goes.partition(b"\r\n\r\n")[2] == came.partition(b"\r\n\r\n")[2]


def test_a_length_that_counts_the_line_end_before_the_boundary_grows_as_well() -> None:
    sdp = len(SDP.format(CLIENT.host, 4000)), len(SDP.format(PUBLIC, 40002))
    came = invite(CLIENT.host, str(CLIENT), 4000, str(sdp[0] + 2))
    assert sent(came)[0] == invite(PUBLIC, f"{PUBLIC}:40000", 40002, str(sdp[1] + 2))
