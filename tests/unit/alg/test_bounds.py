"""What strangers may send to the modules of RTSP, IRC, TFTP, BitTorrent and PPTP, from both sides: time in proportion
to its bytes, and memory that has an end. (FTP and SIP: ftp/test_cost.py, sip/test_cost.py.)

Times are ratios, in CPU time, as the machine may be busy; sizes are counted, object by object.
"""

from __future__ import annotations

import gc
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytest

from alg.address import Endpoint
from alg.api import (
    Activity,
    AlgModule,
    Bypass,
    Deliver,
    Event,
    FlowContext,
    OpenConversation,
    Opened,
    OpenGre,
    OpenMapping,
    OpenPinhole,
    Probe,
    Received,
    Side,
    Tick,
)
from alg.bittorrent.http import BittorrentModule
from alg.bittorrent.udp import AnnounceModule
from alg.datagrams import Datagram, DatagramContext, DatagramModule, Release
from alg.irc.module import IrcModule
from alg.pptp.module import PptpModule
from alg.registry import traits_of
from alg.rtsp.module import RtspModule
from alg.tftp.module import TftpModule
from alg.tftp.options import TftpOptions
from tests.lab import pptp_text
from tests.lab.bittorrent import http_announce, udp_announce, udp_connect

CLIENT, SERVER = Side.CLIENT, Side.SERVER
PUBLIC = "203.0.113.1"
READ = 1000  # bytes that come at a time
SMALL, LARGE = 40_000, 160_000
MUCH = 250_000  # bytes of a module's state


@dataclass(frozen=True)
class Flood:
    """`unit`, again and again, from `side`, after what was said `before`."""

    module: type[AlgModule]
    port: int
    side: Side
    unit: bytes
    before: tuple[tuple[Side, bytes], ...] = ()

    def data(self, size: int) -> bytes:
        return self.unit * max(1, size // len(self.unit))


def rtsp(side: Side, unit: bytes, *before: tuple[Side, bytes]) -> Flood:
    return Flood(RtspModule, 554, side, unit, before)


def setup(transport: str) -> bytes:
    return f"SETUP rtsp://a/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: {transport}\r\n\r\n".encode()


def set_up(transport: str) -> bytes:
    return f"RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 1\r\nTransport: {transport}\r\n\r\n".encode()


WELCOMED = ((CLIENT, b"NICK ann\r\n"), (SERVER, b":x 001 ann :hi\r\n"))
OFFER = b"PRIVMSG bob :\x01DCC SEND a 3232249866 5000 1\x01\r\n"


def irc(side: Side, unit: bytes, *before: tuple[Side, bytes]) -> Flood:
    return Flood(IrcModule, 6667, side, unit, (*WELCOMED, *before))


ANNOUNCE = http_announce(b"h" * 20, 6881)


def torrent(side: Side, unit: bytes) -> Flood:
    return Flood(BittorrentModule, 6969, side, unit, ((CLIENT, ANNOUNCE),))


GRANTED = ((CLIENT, pptp_text.start_request()), (SERVER, pptp_text.start_reply()))


def pptp(side: Side, unit: bytes, *before: tuple[Side, bytes]) -> Flood:
    return Flood(PptpModule, 1723, side, unit, (*GRANTED, *before))


PORTS = "RTP/AVP;unicast;client_port=5000-5001"
FLOODS = {
    "RTSP: requests without answers": rtsp(CLIENT, b"OPTIONS * RTSP/1.0\r\n\r\n"),
    "RTSP: blank lines": rtsp(CLIENT, b"\r\n"),
    "RTSP: empty frames": rtsp(CLIENT, b"$\0\0\0"),
    "RTSP: SETUP of one pair": rtsp(CLIENT, setup(PORTS)),
    "RTSP: SETUP of many": rtsp(
        CLIENT, b"".join(setup(f"RTP/AVP;client_port={5000 + 2 * number}") for number in range(500))
    ),
    "RTSP: many specifications": rtsp(CLIENT, setup(",".join(["RTP/AVP;unicast;client_port=22-23"] * 32))),
    "RTSP: an open quote": rtsp(CLIENT, setup('"' + "," * 2000)),
    "RTSP: many Transport headers": rtsp(CLIENT, b"OPTIONS * RTSP/1.0\r\n" + b"Transport: ;;;;;\r\n" * 2000 + b"\r\n"),
    "RTSP: folds": rtsp(CLIENT, b"OPTIONS * RTSP/1.0\r\n" + b" \r\n" * 5000 + b"\r\n"),
    "RTSP: an endless head": rtsp(CLIENT, b"X: a\r\n", (CLIENT, b"OPTIONS * RTSP/1.0\r\n")),
    "RTSP: an endless line": rtsp(CLIENT, b"a", (CLIENT, b"OPTIONS ")),
    "RTSP: an endless body": rtsp(CLIENT, b"a", (CLIENT, b"OPTIONS * RTSP/1.0\r\nContent-Length: 999999999\r\n\r\n")),
    "RTSP: answers to nothing": rtsp(SERVER, set_up(PORTS)),
    "RTSP: many sources": rtsp(SERVER, set_up(";".join(["source=203.0.113.9"] * 500)), (CLIENT, setup(PORTS))),
    "RTSP: an answer without its end": rtsp(SERVER, b"X: a\r\n", (SERVER, b"RTSP/1.0 200 OK\r\n")),
    "RTSP: frames of a server": rtsp(SERVER, b"$\0\0\x04abcd"),
    "RTSP: requests of a server": rtsp(SERVER, b"GET_PARAMETER * RTSP/1.0\r\n\r\n", (SERVER, set_up(PORTS))),
    "IRC: empty lines": irc(CLIENT, b"\n"),
    "IRC: nearly an offer": irc(CLIENT, b"PRIVMSG bob :\x01DCC \n"),
    "IRC: one offer": irc(CLIENT, OFFER),
    "IRC: many offers": irc(CLIENT, b"".join(OFFER.replace(b"5000", b"%d" % (5000 + at)) for at in range(500))),
    "IRC: many words": irc(CLIENT, b"PRIVMSG bob :\x01DCC SEND " + b"1 " * 200 + b"\x01\r\n"),
    "IRC: long tags": irc(CLIENT, b"@" * 5000 + b"\x01DCC \n"),
    "IRC: an endless line": irc(CLIENT, b"a"),
    "IRC: RESUME": irc(SERVER, b":x PRIVMSG ann :\x01DCC RESUME a 40000 5\x01\r\n", (CLIENT, OFFER)),
    "IRC: an endless line of a server": irc(SERVER, b":" * 4000),
    "IRC: empty lines of a server": irc(SERVER, b"\n"),
    "IRC: welcomes": irc(SERVER, b":x 001 ann :hi\r\n"),
    "BitTorrent: requests": torrent(CLIENT, b"GET / HTTP/1.1\r\n\r\n"),
    "BitTorrent: long requests": torrent(CLIENT, b"GET /" + b"a" * 15000 + b" HTTP/1.1\r\n\r\n"),
    "BitTorrent: many parameters": torrent(CLIENT, ANNOUNCE.replace(b"&port", b"&a=b" * 3000 + b"&port")),
    "BitTorrent: announces of one torrent": torrent(CLIENT, ANNOUNCE),
    "BitTorrent: announces of many": torrent(
        CLIENT, b"".join(http_announce(at.to_bytes(2) * 10, 6881) for at in range(700))
    ),
    "BitTorrent: many ports": torrent(CLIENT, b"".join(http_announce(b"h" * 20, 6881 + at) for at in range(700))),
    "BitTorrent: a head without its end": torrent(CLIENT, b"X: a\r\n"),
    "BitTorrent: a long answer": torrent(SERVER, b"HTTP/1.1 200 OK\r\n\r\nd" + b"1:a" * 3000),
    "BitTorrent: an answer in small pieces": torrent(SERVER, b"d"),
    "PPTP: echoes": pptp(CLIENT, pptp_text.echo_request()),
    "PPTP: one call": pptp(CLIENT, pptp_text.call_request(7)),
    "PPTP: many calls": pptp(CLIENT, b"".join(pptp_text.call_request(at) for at in range(500))),
    "PPTP: ends of calls": pptp(CLIENT, pptp_text.clear_request(7), (CLIENT, pptp_text.call_request(7))),
    "PPTP: bytes that mean nothing": pptp(CLIENT, b"\0"),
    "PPTP: echoes of a server": pptp(SERVER, pptp_text.echo_request()),
    "PPTP: answers to nothing": pptp(SERVER, pptp_text.call_reply(40, 9)),
    "PPTP: errors": pptp(SERVER, pptp_text.wan_error(7), (CLIENT, pptp_text.call_request(7))),
    "PPTP: calls of a server": pptp(SERVER, pptp_text.message(9, b"", 220)),
}
each = pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())

_SHARED = (type, ModuleType, FunctionType, MethodType, re.Pattern)


def size_of(root: object) -> int:
    """Bytes of everything that an object holds, classes and code aside."""
    seen: set[int] = set()
    todo, total = [root], 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, _SHARED):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        todo += gc.get_referents(one)
    return total


def granted(commands: Any, now: float) -> Iterator[Event]:
    """What a driver would tell that opens everything."""
    for command in commands:
        match command:
            case OpenGre(ref, call_id):
                yield Opened(ref, Endpoint(PUBLIC, call_id), now)
            case Probe(ref, target):
                yield Opened(ref, target, now)
            case OpenConversation(ref) | OpenPinhole(ref) | OpenMapping(ref):
                yield Opened(ref, Endpoint(PUBLIC, 40000 + 2 * (ref - 1)), now)


class Flow:
    """One connection whose wishes are granted. `held`: the most that was held back of either side at a time."""

    def __init__(self, flood: Flood) -> None:
        client = Endpoint("192.168.56.10", 40000)
        self.module = flood.module(FlowContext(client, Endpoint("203.0.113.5", flood.port)))
        self.held = 0
        self.bypassed = False
        self._inside = dict.fromkeys(Side, 0)
        for side, data in flood.before:
            self.say(side, data, 0.0)

    def say(self, side: Side, data: bytes, now: float) -> None:
        self._inside[side] += len(data)
        events: list[Event] = [Received(side, data, now)]
        while events and not self.bypassed:
            commands = self.module.handle(events.pop(0))
            self.bypassed = any(isinstance(command, Bypass) for command in commands)
            for command in commands:
                if isinstance(command, Deliver):
                    self._inside[command.to.other] -= len(command.data)
            events += granted(commands, now)
        self.module.deadline()
        if self.bypassed:
            self._inside[side] = 0
        self.held = max(self.held, *self._inside.values())


def flooded(flood: Flood, size: int, read: int = READ) -> tuple[Flow, float]:
    """A flow at the end of a flood, and the CPU time of each byte in seconds."""
    flow, data = Flow(flood), flood.data(size)
    began = time.process_time()
    for at in range(0, len(data), read):
        flow.say(flood.side, data[at : at + read], at * 1e-6)
        if flow.bypassed:
            break
    return flow, (time.process_time() - began) / min(len(data), at + read)


@each
def test_a_flood_costs_time_in_proportion(flood: Flood) -> None:
    small = min(flooded(flood, SMALL)[1] for _ in range(2))
    large = min(flooded(flood, LARGE)[1] for _ in range(2))
    assert large < 3 * small + 2e-6


@each
def test_in_small_pieces_too(flood: Flood) -> None:
    """So what is held is not gone through again with each piece."""
    small = min(flooded(flood, 2_000, 3)[1] for _ in range(2))
    large = min(flooded(flood, 16_000, 3)[1] for _ in range(2))
    assert large < 4 * small + 5e-6


@each
def test_what_a_flood_leaves_has_an_end(flood: Flood) -> None:
    """Four times as much leaves no more, where it is much at all (a few hundred requests may wait for their answers);
    and no more of a stream is held back than the module has declared."""
    sizes = []
    for times in (1, 4):
        flow, _ = flooded(flood, 2 * LARGE * times)
        sizes.append(size_of(flow.module))
        assert flow.held <= traits_of(flow.module).most_held
    assert sizes[1] < max(1.2 * sizes[0] + 4096, MUCH)
    assert max(sizes) < 1_500_000


# --- datagrams --------------------------------------------------------------------------------------------------------

REQUEST = b"\0\1boot.bin\0octet\0"


class Clients:
    """Datagrams of many clients to a module that opens everything, and lets each go."""

    def __init__(self, module: DatagramModule, port: int) -> None:
        self.module = module
        self._server = Endpoint("203.0.113.5", port)
        self._number = 0
        self.gone = 0

    def say(self, side: Side, client: Endpoint, data: bytes, now: float) -> None:
        self._number += 1
        events: list[Any] = [Datagram(self._number, side, client, self._server, data, now)]
        while events:
            commands = self.module.handle(events.pop(0))
            self.gone += sum(isinstance(command, Release) for command in commands)
            events += granted(commands, now)


def requests(clients: Clients, count: int) -> None:
    """Each of another socket."""
    for number in range(count):
        client = Endpoint(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 2070)
        clients.say(CLIENT, client, REQUEST, number * 1e-6)


def one_socket(clients: Clients, count: int) -> None:
    for number in range(count):
        clients.say(CLIENT, Endpoint("192.168.56.10", 2070), REQUEST, number * 1e-6)


def data_of_servers(clients: Clients, count: int) -> None:
    for number in range(count):
        clients.say(SERVER, Endpoint("192.168.56.10", 1024 + number % 60000), b"\0\3\0\1data", number * 1e-6)


def connects(clients: Clients, count: int) -> None:
    for number in range(count):
        client = Endpoint(f"10.0.{number >> 8 & 255}.{number & 255}", 1024 + number % 60000)
        clients.say(CLIENT, client, udp_connect(number.to_bytes(4)), number * 1e-6)


def announces(clients: Clients, count: int) -> None:
    """One socket, which has an id of its tracker: another torrent each time."""
    client = Endpoint("192.168.56.10", 6881)
    clients.say(CLIENT, client, udp_connect(), 0.0)
    clients.say(SERVER, client, bytes(4) + b"conn12345678", 0.0)
    for number in range(count):
        said = udp_announce(b"12345678", number.to_bytes(4) * 5, 6881)
        clients.say(CLIENT, client, said[:12] + number.to_bytes(4) + said[16:], number * 1e-6)


def ports(clients: Clients, count: int) -> None:
    """The same, another port each time."""
    client = Endpoint("192.168.56.10", 6881)
    clients.say(CLIENT, client, udp_connect(), 0.0)
    clients.say(SERVER, client, bytes(4) + b"conn12345678", 0.0)
    for number in range(count):
        clients.say(CLIENT, client, udp_announce(b"12345678", b"h" * 20, 1024 + number % 60000), number * 1e-6)


def answers(clients: Clients, count: int) -> None:
    for number in range(count):
        client = Endpoint(f"10.0.{number >> 8 & 255}.{number & 255}", 6881)
        clients.say(SERVER, client, number.to_bytes(4) + bytes(16), number * 1e-6)


def tftp() -> Clients:
    return Clients(TftpModule(DatagramContext(TftpOptions(rate=10000), recorded=True)), 69)


def trackers() -> Clients:
    return Clients(AnnounceModule(DatagramContext(recorded=True)), 6969)


CROWDS: dict[str, tuple[Callable[[], Clients], Callable[[Clients, int], None]]] = {
    "TFTP: requests of many sockets": (tftp, requests),
    "TFTP: requests of one": (tftp, one_socket),
    "TFTP: data of servers": (tftp, data_of_servers),
    "BitTorrent: connects of many sockets": (trackers, connects),
    "BitTorrent: torrents of one socket": (trackers, announces),
    "BitTorrent: ports of one socket": (trackers, ports),
    "BitTorrent: answers to nothing": (trackers, answers),
}


@pytest.mark.parametrize(("make", "crowd"), CROWDS.values(), ids=CROWDS.keys())
def test_a_crowd_costs_time_and_memory_in_proportion_and_both_have_an_end(
    make: Callable[[], Clients], crowd: Callable[[Clients, int], None]
) -> None:
    took, sizes = [], []
    for count in (20_000, 40_000):
        clients = make()
        began = time.process_time()
        crowd(clients, count)
        took.append((time.process_time() - began) / count)
        sizes.append(size_of(clients.module))
        assert clients.gone >= count - 1100  # a few announces may wait for their port
    assert took[1] < 3 * took[0] + 5e-6
    assert sizes[1] < 1.25 * sizes[0] + 65536
    assert max(sizes) < 30_000_000


def test_a_full_table_of_transfers_makes_none_dearer() -> None:
    """Activity and the clock go over what there is, once every few seconds: in proportion to it."""
    took = []
    for count in (1000, 4000):
        clients = tftp()
        requests(clients, count)
        began = time.process_time()
        for ref in range(1, count + 1):
            clients.module.handle(Activity(ref, 1, 1, 1.0))
        clients.module.handle(Tick(2.0))
        took.append((time.process_time() - began) / count)
    assert took[1] < 3 * took[0] + 5e-6


# --- one message ------------------------------------------------------------------------------------------------------

OPTIONS = b"OPTIONS * RTSP/1.0\r\n"
SHAPES: dict[str, tuple[type[AlgModule], int, int, Callable[[int], bytes]]] = {
    "RTSP: many headers": (RtspModule, 554, 60_000, lambda n: OPTIONS + b"a:\r\n" * (n // 4) + b"\r\n"),
    "RTSP: one long header": (RtspModule, 554, 60_000, lambda n: OPTIONS + b"a: " + b"x" * n + b"\r\n\r\n"),
    "RTSP: many parameters": (RtspModule, 554, 60_000, lambda n: setup("RTP/AVP" + ";a=b" * (n // 4))),
    "RTSP: blanks": (RtspModule, 554, 60_000, lambda n: setup("RTP/AVP;client_port=" + " " * n + "5000")),
    "RTSP: quotes": (RtspModule, 554, 60_000, lambda n: setup("RTP/AVP;a=" + '""' * (n // 2))),
    "RTSP: addresses": (RtspModule, 554, 60_000, lambda n: setup("RTP/AVP;dest_addr=" + '":5000"/' * (n // 8))),
    "IRC: words": (IrcModule, 6667, 8000, lambda n: b"PRIVMSG b :\x01DCC SEND " + b"1 " * (n // 2) + b"\x01\r\n"),
    "IRC: blanks": (IrcModule, 6667, 8000, lambda n: b"PRIVMSG b :\x01DCC SEND " + b" " * n + b"\x01\r\n"),
    "IRC: tags": (IrcModule, 6667, 8000, lambda n: b"@" + b"a;" * (n // 2) + b" PRIVMSG b :\x01DCC SEND a\x01\r\n"),
    "BitTorrent: parameters": (
        BittorrentModule, 6969, 15_000, lambda n: ANNOUNCE.replace(b"&port", b"&a=" * (n // 3) + b"&port"),
    ),
    "BitTorrent: escapes": (
        BittorrentModule, 6969, 15_000, lambda n: ANNOUNCE.replace(b"peer_id=", b"peer_id=" + b"%41" * (n // 3)),
    ),
    "BitTorrent: headers": (
        BittorrentModule, 6969, 15_000, lambda n: ANNOUNCE[:-2] + b"a:\r\n" * (n // 4) + b"\r\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_message_costs_time_in_proportion_to_its_bytes(shape: str) -> None:
    kind, port, longest, make = SHAPES[shape]
    before = WELCOMED if kind is IrcModule else ()

    def seconds(data: bytes) -> float:
        found = []
        for _ in range(3):
            flows = [Flow(Flood(kind, port, CLIENT, data, before)) for _ in range(5)]
            began = time.process_time()
            for flow in flows:
                flow.say(CLIENT, data, 0.0)
            found.append(time.process_time() - began)
        return min(found)

    short, long = seconds(make(longest // 8)), seconds(make(longest))
    assert long < 20 * short + 0.005
    assert long < 0.5
