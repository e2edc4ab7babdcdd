"""A telephone exchange inside (one address, many calls) and its trunk outside, as two sockets and plain text.

Neither registers: the trunk calls the exchange at the router's public endpoint, the exchange calls the trunk.
"""

from __future__ import annotations

import re
import socket
from typing import Literal

from tests.lab.first_media import message, sdp, udp
from tests.lab.lab import CLIENT4, SERVER4, Lab

PORT = 5060
Where = Literal["inside", "outside"]


class Exchange:
    """`exchange` is the socket inside, `trunk` the one outside; `public`: where the trunk finds the exchange."""

    def __init__(self, lab: Lab, public: tuple[str, int]) -> None:
        self.exchange = udp(lab, "inside", CLIENT4, PORT)
        self.trunk = udp(lab, "outside", SERVER4, PORT)
        self.public = public
        self.seen: set[tuple[str, int]] = set()  # the endpoints from which the trunk has heard the exchange
        for end in (self.exchange, self.trunk):
            end.settimeout(3)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)

    def close(self) -> None:
        self.exchange.close()
        self.trunk.close()

    def request(
        self, sender: Where, method: str, number: int, cseq: int, media: int = 0, answered: bool = False
    ) -> bytes:
        """A request of call `number`. `media`: the port that its description names; `answered`: within the dialog."""
        host = CLIENT4 if sender == "inside" else SERVER4
        target = SERVER4 if sender == "inside" else "{}:{}".format(*self.public)
        lines = [
            f"Via: SIP/2.0/UDP {host}:{PORT};rport;branch=z9hG4bK{method}{number}{sender}",
            f"From: <sip:a@{host}>;tag=a{number}",
            f"To: <sip:b@{target}>" + (f";tag=b{number}" if answered else ""),
            f"Call-ID: x{number}-{sender}",
            f"CSeq: {cseq} {method}",
            f"Contact: <sip:a@{host}:{PORT}>",
            "Max-Forwards: 70",
        ]
        return message(f"{method} sip:b@{target} SIP/2.0", lines, sdp(host, media) if media else "")

    def reply(self, text: str, sender: Where, media: int = 0) -> bytes:
        """The 200 to a request that `sender` has read."""
        host = CLIENT4 if sender == "inside" else SERVER4
        lines = [line for line in text.split("\r\n") if line.startswith(("Via:", "From:", "Call-ID:", "CSeq:"))]
        to = next(line for line in text.split("\r\n") if line.startswith("To:"))
        number = re.search(r"Call-ID: x(\d+)-", text)
        assert number
        to += "" if "tag=" in to else f";tag=b{number[1]}"
        return message(
            "SIP/2.0 200 OK", [*lines, to, f"Contact: <sip:b@{host}:{PORT}>"], sdp(host, media) if media else ""
        )

    def to_trunk(self, data: bytes) -> None:
        self.exchange.sendto(data, (SERVER4, PORT))

    def at_trunk(self) -> str:
        data, source = self.trunk.recvfrom(65535)
        self.seen.add(source)
        return data.decode()

    def to_exchange(self, data: bytes, where: tuple[str, int] | None = None) -> None:
        self.trunk.sendto(data, where or self.public)

    def at_exchange(self) -> str:
        return self.exchange.recv(65535).decode()


def contact(text: str) -> tuple[str, int]:
    """The endpoint of a message's Contact."""
    found = re.search(r"Contact: <sip:\w+@([0-9.]+)(?::(\d+))?[;>]", text)
    assert found, text
    return found[1], int(found[2] or PORT)


def media_of(text: str) -> tuple[str, int]:
    """Where a message's description wants media."""
    found = re.search(r"c=IN IP4 (\S+)(?s:.*)m=audio (\d+) ", text)
    assert found, text
    return found[1], int(found[2])
