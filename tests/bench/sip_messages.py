"""Messages a second through the pure SIP module: `python tests/bench/sip_messages.py [SECONDS]`. Goal: 25,000.

Calls of many clients: INVITE with SDP, 180, 200 with SDP, ACK, BYE, 200, the conversations opened at once. Beside it
what a phone says most of the time: OPTIONS and its 200.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from alg.address import Endpoint
from alg.api import OpenConversation, Opened, Side
from alg.datagrams import Datagram, DatagramContext
from alg.sip.options import SipOptions
from alg.sip.udp import SipEngine

SERVER = Endpoint("203.0.113.5", 5060)
CLIENTS = [Endpoint(f"192.168.{56 + n // 200}.{n % 200 + 10}", 5060) for n in range(400)]
SDP = (
    "v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0 8 101\r\n"
    "a=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n"
)


def text(start: str, client: Endpoint, call: str, method: str, sequence: int, to_tag: str, sdp: str = "") -> bytes:
    kind = "Content-Type: application/sdp\r\n" if sdp else ""
    return (
        f"{start}\r\nVia: SIP/2.0/UDP {client};branch=z9hG4bK{call}{sequence};rport\r\nMax-Forwards: 70\r\n"
        f"From: <sip:alice@example.com>;tag=f{call}\r\nTo: <sip:bob@example.com>{to_tag}\r\n"
        f"Call-ID: {call}@{client.host}\r\nCSeq: {sequence} {method}\r\nContact: <sip:alice@{client}>\r\n"
        f"Allow: INVITE, ACK, BYE, CANCEL, UPDATE\r\nUser-Agent: bench\r\n{kind}"
        f"Content-Length: {len(sdp)}\r\n\r\n{sdp}"
    ).encode()


def call(number: int) -> Iterator[tuple[Side, bytes]]:
    client = CLIENTS[number % len(CLIENTS)]
    name, tag = f"c{number}", ";tag=t"
    mine = SDP.format(host=client.host, port=10000 + 2 * (number // len(CLIENTS) % 20000))
    far = SDP.format(host="203.0.113.77", port=30000)
    uri = "sip:bob@example.com SIP/2.0"
    yield Side.CLIENT, text(f"INVITE {uri}", client, name, "INVITE", 1, "", mine)
    yield Side.SERVER, text("SIP/2.0 180 Ringing", client, name, "INVITE", 1, tag)
    yield Side.SERVER, text("SIP/2.0 200 OK", client, name, "INVITE", 1, tag, far)
    yield Side.CLIENT, text(f"ACK {uri}", client, name, "ACK", 1, tag)
    yield Side.CLIENT, text(f"BYE {uri}", client, name, "BYE", 2, tag)
    yield Side.SERVER, text("SIP/2.0 200 OK", client, name, "BYE", 2, tag)


def keep_alive(number: int) -> Iterator[tuple[Side, bytes]]:
    client = CLIENTS[number % len(CLIENTS)]
    yield Side.CLIENT, text("OPTIONS sip:example.com SIP/2.0", client, f"o{number}", "OPTIONS", 1, "")
    yield Side.SERVER, text("SIP/2.0 200 OK", client, f"o{number}", "OPTIONS", 1, ";tag=t")


def measure(name: str, messages: list[tuple[Endpoint, Side, bytes]]) -> None:
    engine = SipEngine(DatagramContext(SipOptions(rate=10**9)))
    port = 20000
    started, used = time.perf_counter(), time.process_time()
    for number, (client, side, data) in enumerate(messages):
        now = number / 25000
        for command in engine.handle(Datagram(number, side, client, SERVER, data, now)):
            if isinstance(command, OpenConversation):
                port = port + 2 if port < 60000 else 20000
                engine.handle(Opened(command.ref, Endpoint("203.0.113.1", port), now))
    took, used = time.perf_counter() - started, time.process_time() - used
    count = len(messages)
    print(f"{name:12} {count / took:10,.0f} messages/s, {count / used:10,.0f} a second of CPU ({count} messages)")
    assert not engine.calls(), "a call did not end"


def main() -> None:
    calls = int(float(sys.argv[1]) * 4000) if len(sys.argv) > 1 else 4000
    for name, scene in (("calls", call), ("keep-alives", keep_alive)):
        measure(name, [(CLIENTS[n % len(CLIENTS)], side, data) for n in range(calls) for side, data in scene(n)])


if __name__ == "__main__":
    main()
