"""What a stranger may send costs in proportion to its bytes, and no loop over a socket keeps others from their turn.

Costs are compared by the input times four, in the processor's time: a ratio says the same on a machine that is busy.
FTP and SIP have tables of their own (unit/alg/ftp/test_cost.py, unit/alg/sip/test_cost.py); here they are driven.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import dns.exception
import dns.message
import gevent
import pytest
from gevent.socket import socket, socketpair

from alg.address import Endpoint
from alg.api import FlowContext
from alg.ftp.session import FtpModule
from alg.sip.tcp import SipModule
from alg.socks import password as password_wire
from alg.socks import socks4, socks5
from alg.socks.dialogue import ask
from alg.socks.errors import ProxyError
from alg.socks.gssapi import MessageType, encode_message, parse_message
from alg.socks.http import MAX_HEAD, HeadReader
from alg.socks.socks5 import Command, SocksError
from alg.upnp import client as igd
from alg.upnp.client import HttpAddress
from alg.upnp.errors import HttpError
from alg.upnp.http import RequestReader
from gateway.config.access_file import AccessError, Lookups, parse_access_file
from gateway.driver.guard import ModuleGuard
from gateway.front.auth.ident import parse_reply
from gateway.front.socks.gssapi_stream import ProtectedSocket
from gateway.front.socks.request import Incoming
from gateway.net.dns_answer import shortened
from gateway.net.relay.splice import Relay
from gateway.net.resolver import LONGEST_ANSWER
from gateway.net.slices import slices
from tests.unit.driver.driven import Driven
from tests.unit.relay.conftest import relay

__all__ = ["relay"]

RATIO = 8.0  # of four times the input: 4 is linear, 16 square, 64 cubic
SOME = 0.002  # seconds that a measure has to take at least, to be one


def seconds(work: Callable[[], object]) -> float:
    """The least of some runs."""
    found = []
    for _ in range(5):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def assert_linear(work: Callable[[int], Callable[[], object]], size: int, most: int) -> None:
    """`work(size)` prepares a run; doubled until it takes `SOME` or `most` is reached, and then once by four."""
    while (once := seconds(work(size))) < SOME and size < most:
        size *= 2
    more = seconds(work(4 * size))
    if more > SOME:  # else it is nothing, however large
        assert more < RATIO * once, f"{size}: {once * 1e3:.1f} ms, {4 * size}: {more * 1e3:.1f} ms"


# --- codecs ---------------------------------------------------------------------------------------------------------


class Dribble:
    """A socket of a client that sends one byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.1", 1080

    def recv(self, _size: int) -> bytes:
        self._at += 1
        return self._data[self._at - 1 : self._at]


PARSERS: dict[str, Callable[[Any], Any]] = {
    "greeting": socks5.parse_greeting,
    "request5": socks5.parse_request,
    "request4": socks4.parse_request,
    "credentials": password_wire.parse_credentials,
    "gssapi": lambda buffer: parse_message(buffer, MessageType.AUTHENTICATION),
}


@pytest.mark.parametrize("dribble", [True, False])
def test_a_gssapi_token(dribble: bool) -> None:
    def work(size: int) -> Callable[[], object]:
        wire = encode_message(MessageType.AUTHENTICATION, bytes(min(size, 65535)))
        if dribble:
            return lambda: Incoming(cast(Any, Dribble(wire))).read(PARSERS["gssapi"])
        return lambda: parse_message(wire, MessageType.AUTHENTICATION)

    assert_linear(work, 1000, 32000)


@pytest.mark.parametrize("unit", [b"x", b"\r\n\r"])
def test_a_head_of_http_that_dribbles(unit: bytes) -> None:
    """In pieces of a byte, a head that does not end costs no more than its bytes."""

    def work(size: int) -> Callable[[], object]:
        wire = b"CONNECT a:1 HTTP/1.1\r\na:" + unit * (size // len(unit))

        def read() -> None:
            parse, buffer = HeadReader(), bytearray()
            for byte in wire[: MAX_HEAD - 1]:
                buffer.append(byte)
                assert parse(buffer) is None

        return read

    assert_linear(work, 4000, 16000)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("filling", [b"\5", b"\4\1", b"\1", b"\5\xff", b"\4\1\0\x50\0\0\0\1", b"\1\xff" + b"x" * 300])
def test_a_handshake_is_bounded(name: str, filling: bytes) -> None:
    """Whatever dribbles in, the answer is there after at most 600 bytes; a GSSAPI token has its own length."""
    data = filling + b"A" * 66000
    wire = Dribble(data)
    try:
        Incoming(cast(Any, wire)).read(PARSERS[name])
    except SocksError:
        pass
    assert wire._at <= (600 if name != "gssapi" else 65539)


IDENT: dict[str, Callable[[int], bytes]] = {
    "blanks everywhere": lambda n: (b" " * n).join((b"", b"1", b",", b"2", b":", b"USERID", b":", b"UNIX", b":", b"")),
    "only blanks": lambda n: b" " * n,
    "blanks between numbers": lambda n: b"1" + b" " * n + b"," + b" " * n,
    "commas": lambda n: b"1,2:USERID:" + b"," * n,
    "colons": lambda n: b":" * n,
    "a long system": lambda n: b"1,2 : USERID : " + b"x" * n + b" , " + b"x" * n,
    "digits": lambda n: b"1" * n,
}


@pytest.mark.parametrize("shape", IDENT)
def test_an_ident_reply(shape: str) -> None:
    assert_linear(lambda size: lambda: parse_reply(IDENT[shape](size), 1, 2), 900, 100_000)


HTTP: dict[str, Callable[[int], bytes]] = {
    "no end": lambda n: b"HTTP/1.1 200 OK\r\n" + b"a" * n,
    "lines": lambda n: b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * (n // 4),
    "interim": lambda n: b"HTTP/1.1 100 \r\n\r\n" * (n // 17),
    "line ends": lambda n: b"HTTP/1.1 200 OK\r\n" + b"\r\n\r" * (n // 3),
    "no HTTP": lambda n: b"\n" * n,
}


@pytest.mark.parametrize("shape", HTTP)
def test_the_answer_of_an_upstream(shape: str) -> None:
    """It may come byte by byte; interim answers count as parts of it."""

    def work(size: int) -> Callable[[], object]:
        data = HTTP[shape](size)

        def run() -> None:
            steps = ask("http", Command.CONNECT, "www.example.org", 443)
            _, parse = next(steps)
            held = bytearray()
            try:
                for at in range(len(data)):
                    held += data[at : at + 1]
                    result = parse(held)
                    if not isinstance(result, int):
                        held.clear()
                        _, parse = steps.send(result[0])
            except (ProxyError, StopIteration):
                pass

        return run

    assert_linear(work, 500, 8000)


POINTER = b"\0\5\0\1\0\0\0\1\0\2\xc0\x0c"
ADDRESS = b"\0\1\0\1\0\0\0\1\0\4abcd"
LABELS = b"\1a" * 120 + b"\0"
MOST_AT_ONCE = 0.03  # seconds that one answer may hold a worker
DNS: dict[str, Callable[[int], bytes]] = {
    "addresses": lambda n: answers(n // 16, b"\1a\0", ADDRESS),
    "addresses of a name of many labels": lambda n: answers(n // 16, LABELS, ADDRESS),
    "pointers": lambda n: answers(n // 14, b"\1a\0", POINTER),
    "names of many labels": lambda n: answers(n // 14, LABELS, POINTER),
    "pointers to pointers": lambda n: (
        answers(1, b"\1a\0", b"\0\x63\0\1\0\0\0\1" + (n // 2).to_bytes(2, "big") + chain(n // 4))
        + (b"\xc0" + bytes([min(255, 31 + n // 4)]) + ADDRESS) * (n // 32)
    ),
    "names in data of a type that nobody asks for": lambda n: answers(
        1, LABELS, b"\0\x37\0\1\0\0\0\1" + (n + 8).to_bytes(2, "big") + b"\1\1\0\1a\0\0\0" + b"\xc0\x0c" * (n // 2)
    ),
    "addresses of CHAOS": lambda n: answers(n // 16, LABELS, b"\0\1\0\3\0\0\0\1\0\4\xc0\x0cab"),
    "options": lambda n: answers(1, b"\1a\0", b"\0\x29\2\0\0\0\0\0" + n.to_bytes(2, "big") + b"\0\x0a\0\0" * (n // 4)),
    "questions": lambda n: header(1)[:4] + (n // 5).to_bytes(2, "big") + bytes(6) + b"\0\0\1\0\1" * (n // 5),
    "labels": lambda n: header(1) + b"\1a" * n + b"\0\0\1\0\1",
    "zeros": lambda n: header(n) + bytes(n),
}


def header(count: int) -> bytes:
    return b"\0\1\x81\x80\0\1" + min(count, 65535).to_bytes(2, "big") + b"\0\0\0\0"


def answers(count: int, question: bytes, answer: bytes) -> bytes:
    """So many answers to a question, each of which points to its name."""
    return header(count) + question + b"\0\1\0\1" + (b"\xc0\x0c" + answer) * count


def chain(count: int) -> bytes:
    """Pointers behind the first 31 bytes, each to the one before it, the first one to the question."""
    return b"\xc0\x0c" + b"".join((0xC000 | 31 + 2 * at).to_bytes(2, "big") for at in range(count - 1))


@pytest.mark.parametrize("shape", DNS)
def test_the_answer_of_a_name_server(shape: str) -> None:
    """Also the longest one that is taken keeps nobody waiting: 16 KiB of CNAMEs took five seconds."""

    def work(size: int) -> Callable[[], object]:
        data = DNS[shape](size)

        def run() -> None:
            try:
                dns.message.from_wire(shortened(data))
            except dns.exception.DNSException:
                pass

        return run

    assert_linear(work, 500, 8000)
    assert seconds(work(LONGEST_ANSWER)) < MOST_AT_ONCE


def test_of_many_addresses_the_first_ones_are_read() -> None:
    data = answers(1000, b"\1a\0", ADDRESS)
    message = dns.message.from_wire(shortened(data))
    assert message.answer[0][0].address == "97.98.99.100"
    whole = answers(20, b"\1a\4test\0", ADDRESS)
    assert shortened(whole) == whole


ACCESS: dict[str, Callable[[int], str]] = {
    "lines": lambda n: "permit 192.168.56.0 0.0.0.255 198.51.100.0 0.0.0.255 eq 80\n" * (n // 60),
    "users": lambda n: "permit *=" + "ann," * (n // 4) + "bob 0.0.0.0 255.255.255.255",
    "blanks": lambda n: "permit" + " " * n + "x",
    "fields": lambda n: "deny " + "1 " * (n // 2),
    "comments": lambda n: "#" * n + "\n" + ":" * n,
    "names": lambda n: "permit a.example 0.0.0.0\n" * (n // 24),
    "line ends": lambda n: "\r\x0b\x0c\x1c\u2028" * (n // 5),
}


@pytest.mark.parametrize("shape", ACCESS)
def test_an_access_file(shape: str) -> None:
    lookups = Lookups(lambda _host: ["192.0.2.1"], lambda _service: 80, lambda _file: "")

    def work(size: int) -> Callable[[], object]:
        text = ACCESS[shape](size)

        def run() -> None:
            try:
                parse_access_file(text, "sockd.conf", "inverted", lookups)
            except AccessError:
                pass

        return run

    assert_linear(work, 10_000, 100_000)


BASE = HttpAddress("100.64.0.1", 5000, "/root.xml")
SERVICE = (
    b"<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
    b"<controlURL>%b</controlURL></service>"
)
DESCRIPTIONS: dict[str, Callable[[int], bytes]] = {
    "elements": lambda n: b"<r>" + b"<a/>" * (n // 4) + b"</r>",
    "services": lambda n: b"<r>" + (SERVICE % b"/a") * (n // 120) + b"</r>",
    "services below a long address": lambda n: (
        b"<r><URLBase>http://100.64.0.1/" + b"a/" * (n // 4) + b"</URLBase>" + (SERVICE % b"a") * (n // 240) + b"</r>"
    ),
    "a long way": lambda n: b"<r>" + SERVICE % (b"../" * (n // 3)) + b"</r>",
    "attributes": lambda n: b"<r " + b" ".join(b"a%d=''" % number for number in range(n // 10)) + b"/>",
    "characters by number": lambda n: b"<r>" + b"&#65;" * (n // 5) + b"</r>",
    "no UTF-8": lambda n: b"<r>" + b"\xff" * (n // 2) + b"</r>",
}


@pytest.mark.parametrize("shape", DESCRIPTIONS)
def test_a_description_of_the_router_above(shape: str) -> None:
    """Whatever that router describes: an address of 30 KB below which all services were took 200 ms."""

    def work(size: int) -> Callable[[], object]:
        data = DESCRIPTIONS[shape](size)

        def run() -> None:
            try:
                igd.services(data, BASE)
            except ValueError:
                pass

        return run

    assert_linear(work, 4000, 15_000)
    assert seconds(work(60_000)) < 2 * MOST_AT_ONCE


REQUESTS: dict[str, Callable[[int], bytes]] = {
    "a line without an end": lambda n: b"GET / HTTP/1.1\r\na:" + b"x" * n,
    "fields": lambda n: b"GET / HTTP/1.1\r\n" + b"a:\r\n" * (n // 4),
    "empty lines": lambda n: b"\r\n" * (n // 2),
    "chunks": lambda n: b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * (n // 6),
    "chunks with extensions": lambda n: (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"1;" + b" " * 240 + b"\r\na\r\n") * (n // 247)
    ),
    "trailers": lambda n: b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a\r\n" * (n // 3),
    "requests": lambda n: b"GET / HTTP/1.1\r\n\r\n" * (n // 18),
}


@pytest.mark.parametrize("shape", REQUESTS)
@pytest.mark.parametrize("step", [1, RequestReader.READ])
def test_a_request_of_upnp(shape: str, step: int) -> None:
    def work(size: int) -> Callable[[], object]:
        data = REQUESTS[shape](size)

        def run() -> None:
            reader = RequestReader()
            try:
                for at in range(0, len(data), step):
                    reader.feed(data[at : at + step])
                    while reader.next():
                        pass
            except HttpError:
                pass

        return run

    assert_linear(work, 1000, 8000)
    assert seconds(work(RequestReader.READ)) < MOST_AT_ONCE


# --- turns ----------------------------------------------------------------------------------------------------------


class Plainly:
    """Stands for a GSSAPI context: a token is its content, and takes a tenth of a millisecond."""

    def piece(self) -> int:
        return 1000

    def unwrap(self, token: bytes) -> bytes:
        until = time.thread_time() + 0.0001
        while time.thread_time() < until:
            pass
        return token


@pytest.mark.parametrize("content", [b"", b"x" * 500])
def test_messages_of_gssapi_keep_nobody_waiting(content: bytes) -> None:
    """Also empty ones, of which `recv` never returns with any byte."""
    wire = encode_message(MessageType.ENCAPSULATION, content)
    near, far = socketpair()
    protected = ProtectedSocket(near, cast(Any, Plainly()), b"")
    flooding = gevent.spawn(far.sendall, wire * 20_000)
    reading = gevent.spawn(_read_for_ever, protected)
    try:
        assert _longest_wait(0.5) < 0.05
    finally:
        gevent.killall([flooding, reading])
        far.close()
        protected.close()


def _read_for_ever(sock: socket) -> None:
    while True:
        sock.recv(65536)


def _longest_wait(duration: float) -> float:
    """How late an answer over another socket is at the latest, in seconds of this process' work."""
    near, far = socketpair()
    echo = gevent.spawn(_echo, far)
    longest = 0.0
    until = time.monotonic() + duration
    while time.monotonic() < until:
        began = time.process_time()
        near.send(b"x")
        near.recv(1)
        longest = max(longest, time.process_time() - began)
        gevent.sleep(0.001)
    near.close()
    echo.get()
    far.close()
    return longest


def _echo(sock: socket) -> None:
    while data := sock.recv(1):
        sock.send(data)


FLOODS: dict[str, tuple[type, bytes]] = {
    "one letter a line": (FtpModule, b"A\n"),
    "blank lines": (FtpModule, b"\r\n"),
    "lines of FTP": (FtpModule, b"NOOP\r\n"),
    "SIP keep-alives": (SipModule, b"\r\n\r\n"),
    "headers": (SipModule, b"OPTIONS sip:a SIP/2.0\r\n" + b"a:\r\n" * 5000 + b"Content-Length: 0\r\n\r\n"),
    "messages": (SipModule, b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("flows", [1, 12])
def test_a_flood_through_a_module_keeps_nobody_waiting(relay: Relay, flood: str, flows: int) -> None:
    """However many flows flood: they share one budget in a round of the event loop. All their bytes arrive."""
    kind, unit = FLOODS[flood]
    context = FlowContext(Endpoint("192.0.2.1", 4000), Endpoint("198.51.100.1", 21))
    size, guard = 200_000 if flows > 1 else 2_000_000, ModuleGuard()
    data = unit * (size // len(unit))  # for the rest of a cut one a module would wait
    driven = [Driven(relay, kind(context), guard=guard) for _ in range(flows)]
    speaking = [gevent.spawn(flow.client.sendall, data) for flow in driven]
    hearing = [gevent.spawn(_count, flow.server, len(data)) for flow in driven]
    try:
        assert _longest_wait(1.0) < 0.1
        with gevent.Timeout(60):
            gevent.joinall(hearing, raise_error=True)
        assert not guard.is_out("test")
    finally:
        gevent.killall([*speaking, *hearing])
        for flow in driven:
            assert flow.flow.carrier is not None
            flow.flow.carrier.abort()
            flow.finish()
            flow.client.close()
            flow.server.close()


def _count(sock: socket, count: int) -> None:
    while count > 0:
        data = sock.recv(65536)
        assert data
        count -= len(data)


def test_turns_are_in_order_and_light_ones_first() -> None:
    served: list[str] = []

    def work(name: str, light: bool) -> None:
        for number in range(3):
            slices().wait(light)
            served.append(f"{name}{number}")
            until = time.perf_counter() + 0.003
            while time.perf_counter() < until:
                pass

    gevent.joinall([gevent.spawn(work, "a", False), gevent.spawn(work, "b", False), gevent.spawn(work, "c", True)])
    assert served == ["c0", "c1", "c2", "a0", "b0", "a1", "b1", "a2", "b2"]
    assert not len(slices())


def test_one_that_is_killed_leaves_the_line() -> None:
    waiting = gevent.spawn(slices().wait)
    gevent.sleep(0)
    waiting.kill()
    assert not len(slices())
    with gevent.Timeout(5):
        slices().wait()
