"""What phones, cameras and servers of the field say, over the wire: a phone inside and a server outside say what a file
of tests/wire/field/sip has, and then each is asked whether it can be reached as it has said."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

from alg.api import Side
from tests.lab.field_sip import Field
from tests.lab.lab import Lab

NETWORK, ROUTER, SERVER, FAR = "10.71.0.0/16", "10.71.0.1", "198.51.100.10", "203.0.113.77"
MEDIA = {"rtp": 4000, "video": 4010}
_OUTSIDE4 = "203.0.113.10"  # the outside's own address, by which the router reaches SERVER
_FIRST, _OF_EACH = 10, 200  # the last number of the first phone's address, and how many have the third one in common

Transport = Literal["udp", "tcp"]


class Outcome(NamedTuple):
    """What became of a file. `exact`: what each side heard is what is right, "" or what was heard; `arrived`: every
    message did; `media`: both ways, where the file has a call with media that are let in; `reached`: the phone, at the
    Contact of its REGISTER, where the file has one that is answered."""

    exact: str
    arrived: bool
    media: bool | None
    reached: bool | None

    @property
    def served(self) -> bool:
        """Whether the phone had what it wanted."""
        return self.arrived and self.media is not False and self.reached is not False


def prepare(lab: Lab, phones: int) -> None:
    """Addresses and routes for so many phones, one for each file and transport."""
    lab.run("router", ["ip", "address", "add", f"{ROUTER}/16", "dev", "eth1"])
    lab.run("router", ["ip", "route", "add", f"{SERVER}/32", "via", _OUTSIDE4])
    for number in range(phones):
        lab.run("inside", ["ip", "address", "add", f"{phone_address(number)}/16", "dev", "eth0"])
    lab.run("inside", ["ip", "route", "replace", "default", "via", ROUTER])
    lab.run("outside", ["ip", "address", "add", f"{SERVER}/32", "dev", "eth0"])
    lab.run("outside", ["ip", "address", "add", f"{FAR}/24", "dev", "eth0"])


def phone_address(number: int) -> str:
    """The address of a phone of its own."""
    return f"10.71.{number // _OF_EACH}.{_FIRST + number % _OF_EACH}"


def play(lab: Lab, case: Field, transport: Transport, number: int, patience: float = 3.0) -> Outcome:
    """Play a file with the phone `number`. `patience`: seconds until something that should have come has not."""
    with contextlib.ExitStack() as stack:
        return _Stage(lab, case, transport, number, patience, stack).run()


class _Stage:
    def __init__(
        self, lab: Lab, case: Field, transport: Transport, number: int, patience: float, stack: contextlib.ExitStack
    ) -> None:
        self._lab, self._case, self._patience = lab, case, patience
        self._udp = transport == "udp"
        self._own = phone_address(number)
        self._stack = stack
        self._read: dict[str, str] = {}  # what the server has read: words and what they stand for
        self._heard: dict[Side, list[bytes]] = {Side.CLIENT: [], Side.SERVER: []}  # by who said it
        self._wrong: list[str] = []
        self._arrived = True
        if self._udp:
            self._near, self._far = self._socket("inside", self._own, 5060), self._socket("outside", SERVER, 5060)
            self._source: tuple[str, int] | None = None
        else:
            listener = stack.enter_context(lab.listen("outside", SERVER, 5060))
            with lab.enter("inside"):
                self._near = stack.enter_context(socket.socket())
                self._near.bind((self._own, 0))
                self._near.settimeout(10)
                self._near.connect((SERVER, 5060))
            listener.settimeout(patience)
            connection, self._source = listener.accept()
            self._far = stack.enter_context(connection)
        own_port = self._near.getsockname()[1]
        self._inside = {
            "phone": f"{self._own}:5060", "host": self._own, "received": self._own, "address": self._own,
            "rtp": "4000", "rtcp": "4001", "video": "4010", "vrtcp": "4011", "rport": str(own_port),
        }  # fmt: skip

    def _socket(self, role: Literal["inside", "outside"], host: str, port: int) -> socket.socket:
        with self._lab.enter(role):
            sock = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((host, port))
        return sock

    def run(self) -> Outcome:
        for said in self._case.said:
            if self._source is None and said.side is Side.SERVER:
                self._wrong.append("the server has read nothing that it could answer")
                break
            came, _ = self._case.came_and_goes(said, self._inside, self._outside())
            heard = self._pass_on(said.side, came)
            self._arrived = self._arrived and heard is not None
            if heard is None:
                self._wrong.append(f"{came[:60]!r} did not arrive")
                continue
            self._heard[said.side].append(heard)
            if said.side is Side.CLIENT:
                self._learn(heard)
            _, right = self._case.came_and_goes(said, self._inside, self._outside())
            if heard != right:
                self._wrong.append(f"{heard.decode(errors='replace')}\nis not\n{right.decode(errors='replace')}")
        return Outcome("\n".join(self._wrong), self._arrived, self._media(), self._reached())

    def _outside(self) -> dict[str, str]:
        host, port = self._source or ("203.0.113.2", 0)
        endpoint = f"{host}:{port}"
        words = {"phone": endpoint, "host": endpoint, "received": host, "rport": str(port), "address": host}
        return {**words, "rtp": "40002", "rtcp": "40003", "video": "40004", "vrtcp": "40005", **self._read}

    def _pass_on(self, side: Side, data: bytes) -> bytes | None:
        sender, receiver = (self._near, self._far) if side is Side.CLIENT else (self._far, self._near)
        receiver.settimeout(self._patience)
        if not self._udp:
            sender.sendall(data)
            return _whole(receiver, len(data), self._patience)
        with contextlib.suppress(TimeoutError):
            if side is Side.SERVER:
                assert self._source is not None
                sender.sendto(data, self._source)
                return receiver.recv(65535)
            sender.sendto(data, (SERVER, 5060))
            heard, self._source = receiver.recvfrom(65535)
            return heard
        return None

    def _learn(self, heard: bytes) -> None:
        """Which ports the server was told."""
        learnt: set[str] = set()
        for kind, word in ((b"audio", "rtp"), (b"(?:video|application)", "video")):
            found = re.search(rb"^m=%b\s+(\d+)" % kind, heard, re.MULTILINE)
            name = word if b"{video}" in self._text() else "rtp"  # a file with one stream calls its port so
            if found and int(found[1]) and name not in learnt:
                learnt.add(name)
                port = int(found[1])
                self._read |= {name: str(port), "rtcp" if name == "rtp" else "vrtcp": str(port + 1)}

    def _text(self) -> bytes:
        return "\n".join(line for said in self._case.said for line in said.lines).encode()

    def _media(self) -> bool | None:
        """Whether media of the first stream go both ways, as the two descriptions say; None: there are not two, or
        nobody is let in."""
        if self._case.about.get("peers", "nobody") == "nobody" or not self._arrived:
            return None
        near = _described(b"".join(self._heard[Side.CLIENT]))
        far = _described(b"".join(self._heard[Side.SERVER]))
        if near is None or far is None or not far[0].startswith("203.0.113."):
            return None
        inner, outer = self._socket("inside", self._own, MEDIA["rtp"]), self._socket("outside", *far)
        for sock in (inner, outer):
            sock.settimeout(0.3)
        return _hears(outer, lambda: inner.sendto(b"\x80out", far), b"\x80out", self._patience) and _hears(
            inner, lambda: outer.sendto(b"\x80in", near), b"\x80in", self._patience
        )

    def _reached(self) -> bool | None:
        """Whether a request of the server's arrives at the Contact that it has read in an answered REGISTER."""
        registered = [data for data in self._heard[Side.CLIENT] if data.startswith(b"REGISTER ")]
        answers = [data for data in self._heard[Side.SERVER] if re.match(rb"SIP/2.0 200", data, re.IGNORECASE)]
        rights = {said.right for said in self._case.said}
        if not registered or not answers or rights != {"edited"} or not self._arrived or not self._udp:
            return None
        found = re.search(
            rb"^(?:Contact|m)\s*:[^\r\n]*?@?([0-9.]+):(\d+)", registered[-1], re.MULTILINE | re.IGNORECASE
        )
        if found is None or b"expires: 0" in registered[-1].lower():
            return None
        text = (
            f"OPTIONS sip:{self._own} SIP/2.0\r\nVia: SIP/2.0/UDP {SERVER}:5060;branch=z9hG4bKreach\r\n"
            "From: <sip:s@example.com>;tag=s\r\nTo: <sip:alice@example.com>\r\nCall-ID: reach\r\nCSeq: 1 OPTIONS\r\n"
            "Content-Length: 0\r\n\r\n"
        ).encode()
        there = found[1].decode(), int(found[2])
        self._near.settimeout(0.3)
        return _hears(self._near, lambda: self._far.sendto(text, there), b"OPTIONS", self._patience)


def _whole(sock: socket.socket, about: int, patience: float) -> bytes | None:
    """What comes on a connection within a moment after its first byte, `about` so many bytes."""
    data = b""
    with contextlib.suppress(TimeoutError):
        while True:
            sock.settimeout(patience if not data else 0.3)
            more = sock.recv(65535)
            if not more:
                break
            data += more
    return data or None


def _described(text: bytes) -> tuple[str, int] | None:
    """Where the last description wants its first stream."""
    session, *streams = re.split(rb"^(?=m=)", text.rpartition(b"\nv=0")[2], flags=re.MULTILINE)
    for stream in streams:
        port = re.match(rb"m=\w+\s+(\d+)", stream)
        host = re.search(rb"^c=IN\s+IP4\s+([0-9.]+)", stream, re.MULTILINE) or re.search(
            rb"^c=IN\s+IP4\s+([0-9.]+)", session, re.MULTILINE
        )
        if port and int(port[1]):
            return (host[1].decode(), int(port[1])) if host else None
    return None


def _hears(sock: socket.socket, send: object, beginning: bytes, patience: float) -> bool:
    """Whether it arrives; sent again now and then, as a first packet may be lost."""
    assert callable(send)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.suppress(OSError):  # there may be no way to an address of the inside
            send()
            if sock.recv(65535).startswith(beginning):
                return True
    return False


def cases() -> Iterator[tuple[Field, str, Transport]]:
    """Every file over each transport that it is about, and its name."""
    from tests.lab.field_sip import FILES

    for path in FILES:
        case = Field(path)
        for transport in ("udp", "tcp"):
            if case.goes_over(transport):
                yield case, path.stem, transport
