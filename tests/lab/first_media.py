"""How many first packets of media are lost: those that the far side sends when its answer has been delivered.

One phone inside and one server outside, as sockets, over UDP or TCP. A call is INVITE, an answer that names the
server's media, one packet of media towards the phone, and BYE; every call has media sockets of its own.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tests.lab.lab import CLIENT4, SERVER4, Lab

Transport = Literal["udp", "tcp"]
When = Literal["delivered", "sent"]

SIP_PORT = 5060
FIRST_PHONE, FIRST_SERVER = 20000, 30000
WAIT = 2.0  # seconds for a message
SOON = 0.25  # seconds for a packet of media that is under way


@dataclass(frozen=True)
class Result:
    """`calls` were made; the first packets of media of `lost` did not arrive."""

    calls: int
    lost: int


def sdp(host: str, port: int) -> str:
    return f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"


def message(first: str, lines: list[str], body: str = "") -> bytes:
    kind = ["Content-Type: application/sdp"] if body else []
    return "\r\n".join([first, *lines, *kind, f"Content-Length: {len(body)}", "", body]).encode()


class _Ends:
    """The signalling sockets of both sides."""

    def __init__(self, lab: Lab, transport: Transport) -> None:
        self._stream = transport == "tcp"
        if self._stream:
            listener = lab.listen("outside", SERVER4, SIP_PORT)
            self.phone = lab.connect("inside", SERVER4, SIP_PORT)
            self.server, _ = listener.accept()
            listener.close()
            for end in (self.phone, self.server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.phone = udp(lab, "inside", CLIENT4, SIP_PORT)
            self.server = udp(lab, "outside", SERVER4, SIP_PORT)
        for end in (self.phone, self.server):
            end.settimeout(WAIT)
        self._back: tuple[str, int] | None = None

    def from_phone(self, data: bytes) -> str:
        """Send it; what the server reads of it."""
        if self._stream:
            self.phone.sendall(data)
            return self._whole(self.server)
        self.phone.sendto(data, (SERVER4, SIP_PORT))
        heard, self._back = self.server.recvfrom(65535)
        return heard.decode()

    def answer(self, data: bytes) -> None:
        """The server says this."""
        if self._stream:
            self.server.sendall(data)
        else:
            assert self._back is not None
            self.server.sendto(data, self._back)

    def heard(self) -> str:
        """What the phone reads of it."""
        return self._whole(self.phone) if self._stream else self.phone.recv(65535).decode()

    def _whole(self, end: socket.socket) -> str:
        data = b""
        while True:
            data += end.recv(65535)
            head, found, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            if found and length and len(body) >= int(length[1]):
                return data.decode()

    def close(self) -> None:
        self.phone.close()
        self.server.close()


def udp(lab: Lab, role: Literal["inside", "outside"], host: str, port: int) -> socket.socket:
    with lab.enter(role):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, port))
    return made


@contextlib.contextmanager
def _media(lab: Lab, number: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    near = udp(lab, "inside", CLIENT4, FIRST_PHONE + 2 * (number % 4000))
    far = udp(lab, "outside", SERVER4, FIRST_SERVER + 2 * (number % 4000))
    try:
        yield near, far
    finally:
        near.close()
        far.close()


def first_media(lab: Lab, transport: Transport, status: int, calls: int, when: When = "delivered") -> Result:
    """Make `calls` calls, each answered by `status` (183 or 200); the server's first packet of media leaves when the
    phone has read the answer ("delivered"), or right behind the answer ("sent")."""
    ends, lost = _Ends(lab, transport), 0
    try:
        for number in range(calls):
            lost += not _call(lab, ends, transport, status, number, when)
    finally:
        ends.close()
    return Result(calls, lost)


def _call(lab: Lab, ends: _Ends, transport: Transport, status: int, number: int, when: When) -> bool:
    """One call; whether its first packet of media arrived."""
    via = f"Via: SIP/2.0/{transport.upper()} {CLIENT4}:{ends.phone.getsockname()[1]};branch=z9hG4bK"
    dialog = [f"From: <sip:ann@example.test>;tag=n{number}", f"Call-ID: first-{number}@{CLIENT4}"]
    to = "To: <sip:bob@example.test>"

    def request(method: str, cseq: int, tag: str, body: str = "") -> bytes:
        lines = [f"{via}{method}{number}", *dialog, to + tag, f"CSeq: {cseq} {method}", "Max-Forwards: 70"]
        lines.append(f"Contact: <sip:ann@{CLIENT4}:{ends.phone.getsockname()[1]};transport={transport}>")
        return message(f"{method} sip:bob@{SERVER4} SIP/2.0", lines, body)

    def reply(text: str, code: int, body: str = "") -> bytes:
        lines = [line for line in text.split("\r\n") if line.startswith(("Via:", "From:", "Call-ID:", "CSeq:"))]
        contact = f"Contact: <sip:bob@{SERVER4};transport={transport}>"
        return message(f"SIP/2.0 {code} OK", [*lines, f"{to};tag=f{number}", contact], body)

    with _media(lab, number) as (near, far):
        near_port, far_port = near.getsockname()[1], far.getsockname()[1]
        invite = ends.from_phone(request("INVITE", 1, "", sdp(CLIENT4, near_port)))
        named = re.search(r"c=IN IP4 (\S+)(?s:.*)m=audio (\d+) ", invite)
        assert named is not None, invite
        public = named[1], int(named[2])
        assert public[0] != CLIENT4, "the description has not been edited"
        ends.answer(reply(invite, status, sdp(SERVER4, far_port)))
        if when == "sent":
            far.sendto(b"\x80first", public)
            ends.heard()
        else:
            ends.heard()
            far.sendto(b"\x80first", public)
        near.settimeout(SOON)
        try:
            arrived = near.recv(64) == b"\x80first"
        except TimeoutError:
            arrived = False
        if status < 200:
            ends.answer(reply(invite, 200, sdp(SERVER4, far_port)))
            ends.heard()
        ends.from_phone(request("ACK", 1, f";tag=f{number}"))
        ends.answer(reply(ends.from_phone(request("BYE", 2, f";tag=f{number}")), 200))
        ends.heard()
        return arrived
