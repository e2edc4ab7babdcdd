"""Streams at ports that follow each other: the RTCP port of one is the RTP port of the next."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

import pytest

from tests.lab.first_media import message, udp
from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, Lab


def described(host: str, lines: list[str]) -> str:
    return f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\n" + "".join(f"{x}\r\n" for x in lines)


Stream = tuple[str, int]  # an m= line, and its port inside


@pytest.fixture
def ends(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    with udp(lab, "inside", CLIENT4, 5060) as phone, udp(lab, "outside", SERVER4, 5060) as server:
        phone.settimeout(3)
        server.settimeout(3)
        yield phone, server


def call(ends: tuple[socket.socket, socket.socket], name: str, streams: list[Stream]) -> list[tuple[str, int]]:
    """The phone calls and is answered; where the server was told that each stream is."""
    phone, server = ends
    lines = [f"Via: SIP/2.0/UDP {CLIENT4}:5060;branch=z9hG4bK{name}", "From: <sip:a@x>;tag=1", "To: <sip:b@x>"]
    lines += [f"Call-ID: {name}", "CSeq: 1 INVITE"]
    offer = described(CLIENT4, [f"m={text}" for text, _ in streams])
    contact = f"Contact: <sip:a@{CLIENT4}>"
    phone.sendto(message(f"INVITE sip:b@{SERVER4} SIP/2.0", [*lines, contact], offer), (SERVER4, 5060))
    data, source = server.recvfrom(65535)
    heard = data.decode()
    host = re.search(r"^c=IN IP4 (\S+)", heard, re.MULTILINE)
    via = re.search(r"^Via: (\S+ \S+?)\r$", heard, re.MULTILINE)
    assert host
    assert via
    assert host[1] != CLIENT4
    answered = [f"Via: {via[1]}", "From: <sip:a@x>;tag=1", "To: <sip:b@x>;tag=2", *lines[3:]]
    answer = described(SERVER4, [f"m={text.replace('400', '900')}" for text, _ in streams])
    server.sendto(message("SIP/2.0 200 OK", [*answered, f"Contact: <sip:b@{SERVER4}>"], answer), source)
    phone.recv(65535)
    return [(host[1], int(port)) for port in re.findall(r"^m=\w+ (\d+) ", heard, re.MULTILINE)]


def check(lab: Lab, streams: list[Stream], told: list[tuple[str, int]]) -> None:
    """Media of each stream go both ways."""
    assert len(set(told)) == len(streams)
    for place, (_, inside) in zip(told, streams, strict=True):
        with udp(lab, "inside", CLIENT4, inside) as near, udp(lab, "outside", SERVER4, inside + 5000) as far:
            near.settimeout(1)
            far.settimeout(1)
            assert reaches(far, place, near), f"in, to {inside}"
            assert reaches(near, (SERVER4, inside + 5000), far), f"out, from {inside}"


AUDIO, NEXT, VIDEO, FAX = (
    ("audio 4000 RTP/AVP 0", 4000), ("audio 4001 RTP/AVP 0", 4001), ("video 4001 RTP/AVP 31", 4001),
    ("image 4001 udptl t38", 4001),
)  # fmt: skip
FIRST_VIDEO = ("video 4000 RTP/AVP 31", 4000)


@pytest.mark.parametrize(
    "streams", [[AUDIO, VIDEO], [NEXT, FIRST_VIDEO], [AUDIO, FAX]], ids=["audio-first", "video-first", "fax"]
)
def test_of_one_call(
    lab: Lab, gateway: Gateway, ends: tuple[socket.socket, socket.socket], streams: list[Stream]
) -> None:
    check(lab, streams, call(ends, "one", streams))


@pytest.mark.parametrize("streams", [[AUDIO, NEXT], [NEXT, AUDIO]], ids=["upwards", "downwards"])
def test_of_two_calls(
    lab: Lab, gateway: Gateway, ends: tuple[socket.socket, socket.socket], streams: list[Stream]
) -> None:
    check(
        lab, streams, [place for number, stream in enumerate(streams) for place in call(ends, f"c{number}", [stream])]
    )


def reaches(sender: socket.socket, to: tuple[str, int], receiver: socket.socket) -> bool:
    for _ in range(3):
        sender.sendto(b"\x80media", to)
        with contextlib.suppress(TimeoutError):
            return receiver.recv(100) == b"\x80media"
    return False
