"""What is fuzzed: each target takes an input and a source of chance, and raises where something is wrong."""

from __future__ import annotations

import contextlib
import ipaddress
import random
from collections import deque
from collections.abc import Callable, Iterator

import dns.exception
import dns.message

from alg.address import Endpoint
from alg.api import (
    AlgModule,
    AskTransfer,
    Bypass,
    Closed,
    CloseWrite,
    Deliver,
    Event,
    FindSocket,
    FlowContext,
    OpenConversation,
    Opened,
    OpenExchange,
    OpenMapping,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    Probe,
    Received,
    Refused,
    Say,
    Side,
    Tick,
    apply_edits,
)
from alg.bittorrent.http import BittorrentModule
from alg.ftp.options import FtpOptions
from alg.ftp.session import FtpModule
from alg.irc.module import IrcModule
from alg.irc.options import IrcOptions
from alg.pcp import client as pcp_client
from alg.pcp import natpmp
from alg.pcp import pcp as pcp_wire
from alg.rtsp.module import RtspModule
from alg.sip.tcp import SipModule
from alg.socks import http, socks4, socks5
from alg.socks import password as password_wire
from alg.socks import udp as wire
from alg.socks.dialogue import Account, ProxyKind, ask
from alg.socks.errors import ProxyError
from alg.socks.gssapi import MessageType, parse_message
from alg.socks.socks5 import Command, SocksError
from alg.socks.udp import Reassembly
from alg.upnp import client as igd_client
from alg.upnp.errors import ActionError, HttpError
from gateway.client.engine.names import Names
from gateway.client.engine.supervised import parse_target
from gateway.client.proxy import Chain, Proxy
from gateway.client.session import Receive, request, second
from gateway.config.access_file import AccessError, Lookups, parse_access_file
from gateway.front.auth.ident import parse_reply
from gateway.net.dns_answer import shortened
from tests.wire.upnp.play import House, found_by

Target = Callable[[bytes, random.Random], None]

CLIENT, SERVER = Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 21)
INNER = Endpoint("192.168.56.2", 45000)


def pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """The input cut at random, as a stream arrives."""
    most = rng.choice([1, 3, 40, 1400, 16384]) if len(data) < 3000 else rng.choice([40, 1400, 16384])
    at = 0
    while at < len(data):
        size = rng.randrange(1, most + 1)
        yield data[at : at + size]
        at += size


def stream(make: Callable[[random.Random], AlgModule]) -> Target:
    """A module of streams: whatever it is told, it delivers what came, in order, as the next bytes that came."""

    def target(data: bytes, rng: random.Random) -> None:
        module, now = make(rng), 0.0
        held = {side: bytearray() for side in Side}
        events: deque[Event] = deque()
        closed: set[Side] = set()
        ended: set[Side] = set()
        bypassed = False

        def do(event: Event) -> bool:
            events.append(event)
            while events:
                for command in module.handle(events.popleft()):
                    match command:
                        case Deliver(to, sent, edits):
                            assert held[to.other].startswith(sent), "it delivers what did not come"
                            del held[to.other][: len(sent)]
                            apply_edits(sent, edits)
                        case CloseWrite(to):
                            assert to.other in closed, "it ends a direction that has not ended"
                            assert not held[to.other], "it ends a direction of which it holds bytes"
                            ended.add(to.other)
                        case OpenPinhole(ref, target):
                            assert target.port >= 1024
                            events.append(answer(ref, Endpoint("203.0.113.2", 40002), None))
                        case OpenOutbound(ref, target):
                            events.append(answer(ref, target, None))
                        case OpenConversation(ref):
                            events.append(answer(ref, Endpoint("203.0.113.2", 40004), None))
                        case OpenMapping(ref, target):
                            events.append(answer(ref, Endpoint("203.0.113.2", target.port + rng.randrange(2)), None))
                        case OpenExchange(ref):
                            events.append(answer(ref, Endpoint("203.0.113.2", 40004), INNER))
                        case Probe(ref, target) | FindSocket(ref, target):
                            events.append(answer(ref, target, None))
                        case OpenMeeting(ref):
                            events.append(answer(ref, Endpoint("203.0.113.2", 40006), INNER))
                        case AskTransfer(ref, other):
                            events.append(answer(ref, other, None))
                        case Bypass():
                            return True
                        case Say():
                            pass
            return False

        def answer(ref: int, public: Endpoint, inner: Endpoint | None) -> Event:
            return Opened(ref, public, now, inner) if rng.random() < 0.7 else Refused(ref, "full", now)

        side = rng.choice(list(Side))
        for piece in pieces(data, rng):
            now += rng.choice([0.0, 0.001, 0.1, 6.0])
            held[side] += piece
            bypassed = do(Received(side, piece, now))
            deadline = module.deadline()
            if not bypassed and deadline is not None and deadline <= now:
                bypassed = do(Tick(now))
            if bypassed:
                return
            if rng.random() < 0.2:
                side = side.other
        for side in Side:
            closed.add(side)
            if do(Closed(side, now)):
                return
        for _ in range(50):  # everything that it waits for has its time
            deadline = module.deadline()
            if deadline is None:
                break
            now = max(now, deadline)
            if do(Tick(now)):
                return
        assert not any(held.values()), "it keeps bytes for ever"
        assert ended == set(Side), "it does not pass an end on"

    return target


def ftp(rng: random.Random) -> AlgModule:
    options = FtpOptions(convert=rng.choice(["off", "active", "passive"]))
    return FtpModule(FlowContext(CLIENT, SERVER, rng.choice(list(Side)), options, transfers=rng.random() < 0.3))


def rtsp(rng: random.Random) -> AlgModule:
    if rng.random() < 0.5:
        return RtspModule(FlowContext(CLIENT, Endpoint("203.0.113.5", 554)))
    camera, found = Endpoint("192.168.56.20", 8554), Endpoint("203.0.113.1", 554)
    return RtspModule(FlowContext(SERVER, camera, Side.SERVER, public=INNER, published=found))


def irc(rng: random.Random) -> AlgModule:
    return IrcModule(FlowContext(CLIENT, Endpoint("203.0.113.5", 6667), options=IrcOptions(rng.random() < 0.3)))


def bittorrent(rng: random.Random) -> AlgModule:
    return BittorrentModule(FlowContext(CLIENT, Endpoint("203.0.113.5", 6969)))


def sip(rng: random.Random) -> AlgModule:
    return SipModule(FlowContext(CLIENT, Endpoint("203.0.113.5", 5060), public=Endpoint("203.0.113.2", 40000)))


def handshakes(data: bytes, _rng: random.Random) -> None:
    """A parser of a handshake takes what it says that it takes, whether the rest has come or not."""
    for parse in (
        socks5.parse_greeting,
        socks5.parse_request,
        socks4.parse_request,
        password_wire.parse_credentials,
        http.parse_request,
        lambda buffer: parse_message(buffer, MessageType.ENCAPSULATION),
    ):
        try:
            found = parse(data)
        except SocksError:
            continue
        if found is not None:
            assert 0 < found[1] <= len(data)
            assert parse(data[: found[1]]) == found
            for end in range(min(found[1], 40)):
                try:
                    assert parse(data[:end]) is None
                except SocksError as error:
                    raise AssertionError("a part is wrong, and the whole is not") from error


def datagrams(data: bytes, _rng: random.Random) -> None:
    """The header of a datagram of a UDP association."""
    try:
        header, used = wire.parse_header(data)
    except (ValueError, SocksError):
        return
    assert wire.header_size(data) == used <= len(data)
    assert header.host.isprintable()


def ident(data: bytes, _rng: random.Random) -> None:
    name = parse_reply(data, 6191, 23)
    assert name is None or name.isprintable() or not set(name) & set(" \r\n\t:\0")


def upstream(data: bytes, rng: random.Random) -> None:
    kind: ProxyKind = rng.choice(["socks4a", "socks5", "http"])
    command = rng.choice([Command.CONNECT, Command.BIND, Command.RESOLVE]) if kind != "http" else Command.CONNECT
    steps = ask(kind, command, "www.example.org", 443, Account("ann", "pw"))
    _, parse = next(steps)
    held = bytearray()
    try:
        for piece in pieces(data, rng):
            held += piece
            while not isinstance(found := parse(held), int):
                assert 0 < found[1] <= len(held)
                del held[: found[1]]
                _, parse = steps.send(found[0])
    except (ProxyError, StopIteration):
        pass


def client(data: bytes, rng: random.Random) -> None:
    """What proxies answer to the library, through a chain of up to three: ProxyError, or success. How the bytes are cut
    changes nothing, and not one is taken that the steps did not ask for."""
    known: tuple[ProxyKind, ...] = ("socks4", "socks4a", "socks5", "http")
    kinds = [rng.choice(known) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    chain = Chain(tuple(Proxy(kind, "192.0.2.1", 1080, "ann", "pw") for kind in kinds))
    command = rng.choice([Command.CONNECT, Command.CONNECT, Command.BIND, Command.RESOLVE, Command.UDP_ASSOCIATE])
    whole, in_bytes = (_converse(chain, command, data, most) for most in (len(data) or 1, 1))
    assert whole == in_bytes


def _converse(chain: Chain, command: Command, data: bytes, most: int) -> tuple[str, int]:
    """How it ends, and how many bytes a success has taken. What is wrong may be seen before all of it has come."""
    at = 0
    steps = request(chain, command, "203.0.113.5", 443)
    try:
        granted = None
        while granted is None or (command is Command.BIND and steps is not None):
            answer: bytes | None = None
            try:
                while True:
                    step = steps.send(answer)
                    answer = None
                    if isinstance(step, Receive):
                        assert step.size > 0
                        answer = data[at : at + min(step.size, most)]
                        at += len(answer)
            except StopIteration as stop:
                if granted is not None:
                    break
                granted = stop.value
                steps = second(chain.last, granted)
        return f"granted {granted.host} {granted.port}", at
    except ProxyError as error:
        return f"{error.failure} {error.reply}", 0


def inside(data: bytes, rng: random.Random) -> None:
    """What a program says to `algate exec`: a query for names is answered or dropped, an address is one or none."""
    query = Names(Chain((Proxy("http", "192.0.2.1", 1080),)), "fake", 1.0)
    answer = query.answer(data)
    assert answer is None or answer[:2] == data[:2]
    target = parse_target(data)
    assert target is None or 0 <= target.port <= 65535
    reassembly = Reassembly()
    for number, piece in enumerate(pieces(data, rng)):
        try:
            header, size = wire.parse_header(piece)
        except SocksError:
            continue
        whole = reassembly.add(header, piece[size:], float(number))
        assert whole is None or len(whole) <= 65535


def names(data: bytes, _rng: random.Random) -> None:
    """An answer of a name server, as the resolver reads it: what this raises is caught there."""
    try:
        dns.message.from_wire(shortened(data))
    except dns.exception.DNSException:
        pass


def access(data: bytes, _rng: random.Random) -> None:
    lookups = Lookups(lambda _host: ["192.0.2.1"], lambda _service: 80, lambda _file: "ann\nbob")
    try:
        parse_access_file(data.decode("latin-1"), "sockd.conf", "inverted", lookups)
    except AccessError:
        pass


def upnp(data: bytes, rng: random.Random) -> None:
    """A connection of a client, or a datagram to SSDP: whatever it says, it gets nothing for another host."""
    house = House()
    house.say(pieces(data, rng), "192.168.56.10")
    assert {mapping.client for mapping in house.broker.table} <= {"192.168.56.10"}
    assert all(subscription.client == "192.168.56.10" for subscription in house.recorder.welcomed)
    found_by(data[:1024])


def pcp(data: bytes, rng: random.Random) -> None:
    """A datagram to the port of PCP and NAT-PMP: it is read or refused, and no answer is longer than it may be."""
    source = ipaddress.ip_address(rng.choice(["192.168.56.10", "2001:db8::10"]))
    if pcp_wire.is_request(data):
        try:
            request = pcp_wire.parse(data, source)
        except pcp_wire.Wrong as wrong:
            answer = pcp_wire.error(data, wrong.result, 30, 1)
            assert len(answer) <= min(pcp_wire.LONGEST, max(24, len(data) + 3))
        else:
            if isinstance(request, pcp_wire.Map):
                assert len(pcp_wire.mapped(request, 120, 5000, source, 1)) <= max(60, len(data))
            elif isinstance(request, pcp_wire.Peer):
                assert len(pcp_wire.peered(request, 120, 5000, source, 1)) <= max(80, len(data))
    if natpmp.is_request(data):
        said = b""
        try:
            natpmp.parse(data)
        except natpmp.Wrong as wrong:
            said = natpmp.error(data, wrong.result, 1)
        assert len(said) <= 16


def above(data: bytes, _rng: random.Random) -> None:
    """What the router above answers, by whichever protocol: it is read, or is none; URLs lead to that router only."""
    pcp_client.read_pcp(data)
    pcp_client.read_pmp(data)
    where = igd_client.read_location(data) or igd_client.HttpAddress("100.64.0.1", 5000, "/root.xml")
    igd_client.is_whole(data)
    try:
        status, body = igd_client.read_answer(data)
    except HttpError:
        return
    with contextlib.suppress(ValueError):
        for found in igd_client.services(body, where):
            assert found.host == where.host
            asked = igd_client.call(found, "AddPortMapping", igd_client.mapping_key("tcp", 5000))
            assert asked.startswith(f"POST {found.path} HTTP/1.1\r\nHost: ".encode())
    with contextlib.suppress(ActionError):
        igd_client.read_outputs(status, body, "GetExternalIPAddress")


TARGETS: dict[str, Target] = {
    "ftp": stream(ftp),
    "sip": stream(sip),
    "rtsp": stream(rtsp),
    "irc": stream(irc),
    "bittorrent": stream(bittorrent),
    "handshakes": handshakes,
    "datagrams": datagrams,
    "ident": ident,
    "upstream": upstream,
    "client": client,
    "inside": inside,
    "names": names,
    "access": access,
    "upnp": upnp,
    "pcp": pcp,
    "above": above,
}
