"""The packets process is killed at any moment of a call: what it knew is found again, and the call ends with its media.

A call is played against the front with the real module and journal; the broker is a table in memory that outlives the
process, as the kernel's does. While nobody reads the queue messages pass unread (`--queue-bypass`).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence

import gevent
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import Mode
from alg.datagrams import DatagramContext
from alg.sip.options import SipOptions
from alg.sip.udp import SipEngine
from gateway.driver.datagrams import Setting
from gateway.front.packets.journal import Journal
from gateway.front.packets.queue import MOST_HELD, PacketFront, QueueModule
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.net.addresses import PublicAddress
from gateway.observe.trace import Trace
from tests.unit.front.test_packets import Packet
from tests.unit.front.test_udp_packet import A4, B4, packet4

PHONE, SERVER = A4, B4
TIMEOUT = 60.0  # media_timeout
INSIDE = [ipaddress.ip_network("192.168.56.0/24")]


def sdp(host: str, port: int) -> str:
    return f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"


def said(first: str, cseq: str, body: str = "", tag: str = ";tag=b") -> bytes:
    lines = [
        f"Via: SIP/2.0/UDP {PHONE.host}:{PHONE.port};branch=z9hG4bK{cseq.replace(' ', '')}",
        "From: <sip:alice@example.com>;tag=a",
        f"To: <sip:bob@example.com>{tag}",
        "Call-ID: one",
        f"CSeq: {cseq}",
        f"Contact: <sip:x@{PHONE.host if first[:3] != 'SIP' else SERVER.host}>",
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join([first, *lines, "", body])).encode()


FAR = sdp(SERVER.host, 9000)
# Who says what, in a call that the phone begins and ends.
CALL: tuple[tuple[bool, bytes], ...] = (
    (True, said("INVITE sip:bob@example.com SIP/2.0", "1 INVITE", sdp(PHONE.host, 4000), "")),
    (False, said("SIP/2.0 100 Trying", "1 INVITE", tag="")),
    (False, said("SIP/2.0 183 Progress", "1 INVITE", FAR)),
    (False, said("SIP/2.0 200 OK", "1 INVITE", FAR)),
    (True, said("ACK sip:bob@example.com SIP/2.0", "1 ACK")),
    (True, said("BYE sip:bob@example.com SIP/2.0", "2 BYE")),
    (False, said("SIP/2.0 200 OK", "2 BYE")),
)


class Kernel:
    """The broker's table: it outlives the packets process. Leases end by their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.leases: dict[str, tuple[Lease, float]] = {}
        self.packets: dict[str, int] = {}
        self.number = 0
        self.alive = True  # whether the process that asked still is

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        gevent.get_hub().loop.run_callback(self._answer, request, done)

    def _answer(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        self.expire()
        if isinstance(request, PinholeUpdate):
            if request.lease not in self.leases:
                done(PinholeRefused("lease"))
                return
            lease, ends = self.leases[request.lease]
            peers = lease.peers if request.peers is msgspec.UNSET else request.peers
            ends = ends if request.ttl is msgspec.UNSET else self.now + request.ttl
            self.leases[request.lease] = msgspec.structs.replace(lease, peers=peers), ends
            done(self.leases[request.lease][0])
            return
        for lease_id, (lease, _) in list(self.leases.items()):
            if lease.target == request.target:  # the successor asks for what was opened and never written down
                del self.leases[lease_id]
        self.number += 1
        lease = Lease(
            f"{self.number:016x}", request.flow, request.reason, request.client, "in", "udp",
            Endpoint(request.public_host or "", 40000 + 2 * self.number), request.target, None, 0.0, "kernel",
            "conversation", request.peers, request.second,
        )  # fmt: skip
        self.leases[lease.id] = lease, self.now + request.ttl
        done(lease)

    def close(self, lease: Lease) -> None:
        self.leases.pop(lease.id, None)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        self.expire()
        return {lease: (self.packets.get(lease, 0),) * 2 for lease in leases if lease in self.leases}

    def expire(self) -> None:
        self.leases = {key: (lease, ends) for key, (lease, ends) in self.leases.items() if ends > self.now}

    def media(self) -> list[Lease]:
        self.expire()
        return [lease for lease, _ in self.leases.values() if lease.reason == "sip.rtp"]


class Process:
    """One packets process after the other, over the same journal and kernel."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.files = [os.memfd_create("test") for _ in range(2)]
        self.order: list[Packet] = []
        self.begin()

    def begin(self) -> None:
        self.engine = SipEngine(DatagramContext(SipOptions(media_timeout=TIMEOUT, hold_timeout=7200.0), recorded=True))
        setting = Setting("sip", Mode.REWRITE, "p-1", MOST_HELD, {}, self.engine.look_every, False)
        module = QueueModule(self.engine, setting, frozenset({5060}), recorded=True)
        self.front: PacketFront | None = PacketFront(
            [module], self.kernel, INSIDE, lambda server: PublicAddress("203.0.113.2", "203.0.113.2"), Trace(),
            lambda: self.kernel.now, Journal(self.files),
        )  # fmt: skip

    def kill(self) -> None:
        """Whatever it had begun is never told to it."""
        assert self.front is not None
        self.front._journal = None
        self.front.drivers()["sip"]._closed = True
        self.front = None

    def say(self, from_phone: bool, data: bytes) -> None:
        """A message comes to the router; without a process it passes."""
        packet = packet4(data)
        if not from_phone:
            packet = packet[:12] + packet[16:20] + packet[12:16] + packet[22:24] + packet[20:22] + packet[24:]
        if self.front is not None:
            self.front.take(Packet(packet, self.order))

    def settle(self, rounds: int = 8) -> None:
        for _ in range(rounds):
            gevent.sleep(0)
        self.kernel.now += 0.01

    def written(self) -> None:
        """What is known is in the journal, which may take some milliseconds."""
        while self.front is not None and self.front._to_write:
            gevent.sleep(0.001)

    def later(self, seconds: float, media: bool) -> None:
        """Time passes, with media or without."""
        end = self.kernel.now + seconds
        while self.kernel.now < end:
            self.kernel.now += 1.0
            if media:
                for lease in self.kernel.media():
                    self.kernel.packets[lease.id] = self.kernel.packets.get(lease.id, 0) + 50
            if self.front is not None:
                self.front.tick()
            self.settle(3)

    def close(self) -> None:
        for fd in self.files:
            os.close(fd)


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


def play(process: Process, at: int, missed: int, rounds: int, talk: float, broker_too: bool) -> None:
    """The process is killed `rounds` rounds of the loop behind the message `at`, and misses `missed` messages."""
    down = 0
    for number, (from_phone, data) in enumerate(CALL):
        if down:
            down -= 1
            if not down:
                process.begin()
        process.say(from_phone, data)
        process.settle(rounds if number == at else 8)
        if number != at or rounds == 6:
            process.written()
        if number == at:
            process.kill()
            down = missed + 1
            if broker_too:
                process.kernel.leases.clear()
        if number == 4:
            process.later(talk, media=True)
    if process.front is None:
        process.begin()
    process.settle()


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, len(CALL) - 1),
    missed=st.integers(0, 4),
    rounds=st.integers(0, 6),
    talk=st.sampled_from([0.0, 5.0, 40.0]),
    broker_too=st.booleans(),
)
def test_a_call_ends_with_its_media_whatever_was_missed(
    at: int, missed: int, rounds: int, talk: float, broker_too: bool
) -> None:
    process = Process()
    try:
        play(process, at, missed, rounds, talk, broker_too)
        process.later(2 * TIMEOUT + 260.0, media=False)  # an INVITE without an answer is given up after 240 s
        assert process.engine.calls() == []
        assert process.kernel.media() == []
    finally:
        process.close()


def test_a_call_of_which_nothing_was_counted_when_its_process_and_pinholes_went(process: Process) -> None:
    """Its BYE was missed: nothing will ever be counted of it, and it must not live as long as one that is on hold."""
    play(process, at=4, missed=2, rounds=6, talk=0.0, broker_too=True)
    process.later(TIMEOUT + 40.0, media=False)
    assert process.engine.calls() == []
