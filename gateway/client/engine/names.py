"""The name server of a namespace: what the program asks, the proxy answers (RFC 1035)."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from alg.socks.errors import ProxyError
from gateway.client.blocking import connect, resolve, resolve_address
from gateway.client.engine.messages import thread
from gateway.client.proxy import Chain

DnsMode = Literal["auto", "resolve", "fake", "off"] | str

A, PTR, AAAA = 1, 12, 28
NOERROR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 2, 3, 4, 5
TTL = 1
FAKE = ipaddress.IPv4Network("198.18.0.0/15")  # for benchmarks (RFC 2544): no host outside has one of them
MOST_FAKE = 100_000


class NameQuestion(NamedTuple):
    """The first question of a message, and where it ends."""

    name: str
    kind: int
    end: int


def parse_question(message: bytes) -> NameQuestion:
    """Return the question of a DNS query. Raises ValueError if the message is not a query with one question."""
    if len(message) < 17 or message[2] & 0x80 or message[4:6] != b"\0\1":
        raise ValueError("not a query with one question")
    labels, at = [], 12
    while (length := message[at]) != 0:
        if length > 63 or at + 1 + length >= len(message) - 4:
            raise ValueError("a name that is not whole")
        labels.append(message[at + 1 : at + 1 + length].decode("ascii", "strict"))
        at += 1 + length
    if len(message) < at + 5:
        raise ValueError("a question that is not whole")
    return NameQuestion(".".join(labels).lower(), int.from_bytes(message[at + 1 : at + 3], "big"), at + 5)


def encode_answer(query: bytes, question: NameQuestion, code: int, records: list[bytes]) -> bytes:
    """The answer to a query: RDATA of records of the type that was asked for."""
    flags = 0x8080 | (query[2] & 1) << 8 | code
    head = query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + query[12 : question.end]
    body = (struct.pack("!HHHIH", 0xC00C, question.kind, 1, TTL, len(data)) + data for data in records)
    return head + b"".join(body)


def encode_name(name: str) -> bytes:
    """A name as labels. ValueError."""
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    if any(not 1 <= len(label) <= 63 for label in labels):
        raise ValueError(f"{name} is no name")
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


class Names:
    """Answers by one of the modes. "resolve": the proxy's RESOLVE; "fake": an address that stands for the name, which
    is told to the proxy in its place; "auto": the first, and the second for a proxy that has no RESOLVE; "tcp:SERVER":
    that server's, through the proxy; "off": none."""

    def __init__(
        self, chain: Chain, mode: DnsMode, timeout: float, say: Callable[[str], None] = lambda _text: None
    ) -> None:
        """`say` is called with the reason when a proxy does not answer, because the program itself learns only that
        there is no answer."""
        self._chain = chain
        self._mode = "fake" if mode == "auto" and chain.last.kind in ("http", "socks4") else mode
        self._timeout = timeout
        self._say = say
        self._lock = threading.Lock()
        self._fakes: OrderedDict[str, str] = OrderedDict()
        self._by_name: dict[str, str] = {}
        self._next = 1

    def host_of(self, address: str) -> str:
        """Return what the proxy is asked to connect to for an address: the address itself, or the name that it stands
        for. Raises OSError for a fake address that stands for no name: it must never leave."""
        if ":" in address or ipaddress.IPv4Address(address) not in FAKE:
            return address
        with self._lock:
            name = self._fakes.get(address)
        if name is None:
            raise ProxyError("host", f"{address} stands for no name")
        return name

    def fake_of(self, name: str) -> str:
        """The address that stands for a name."""
        with self._lock:
            if name not in self._by_name:
                if len(self._fakes) >= MOST_FAKE:
                    _, oldest = self._fakes.popitem(last=False)
                    del self._by_name[oldest]
                address = str(FAKE[self._next])
                self._next = self._next % (FAKE.num_addresses - 2) + 1
                self._by_name[name], self._fakes[address] = address, name
            return self._by_name[name]

    def answer(self, query: bytes) -> bytes | None:
        """Return the answer to a query; None if the message is not a query. Waits for the proxy."""
        try:
            question = parse_question(query)
        except (ValueError, IndexError):
            return None
        if self._mode == "off":
            return encode_answer(query, question, REFUSED, [])
        if self._mode.startswith("tcp:"):
            return self._by_tcp(query, question)
        try:
            code, records = self._look_up(question)
        except ValueError:
            code, records = SERVFAIL, []
        return encode_answer(query, question, code, records)

    def _look_up(self, question: NameQuestion) -> tuple[int, list[bytes]]:
        if question.kind == PTR:
            return self._pointer(question.name)
        if question.kind not in (A, AAAA) or not question.name:
            return NOERROR, []
        if question.name == "localhost" or question.name.endswith(".localhost"):
            return NOERROR, [socket.inet_aton("127.0.0.1") if question.kind == A else bytes(15) + b"\1"]
        mode = self._mode  # another thread may have found out meanwhile that it is "fake"
        if mode != "fake":
            try:
                address = ipaddress.ip_address(resolve(self._chain, question.name, self._timeout))
                return NOERROR, [address.packed] if (address.version == 4) == (question.kind == A) else []
            except ProxyError as error:
                if error.failure == "host":
                    return NXDOMAIN, []
                answered = error.reply is not None or error.closed  # OpenSSH closes, where others say what they lack
                if mode != "auto" or error.failure != "failed" or not answered:
                    self._say(f"a name was not resolved: {error}")
                    return SERVFAIL, []
                self._mode = "fake"  # it has no RESOLVE
        return NOERROR, [socket.inet_aton(self.fake_of(question.name))] if question.kind == A else []

    def _pointer(self, name: str) -> tuple[int, list[bytes]]:
        labels = name.split(".")
        if name.endswith(".in-addr.arpa") and len(labels) == 6:
            address = ".".join(reversed(labels[:4]))
        elif name.endswith(".ip6.arpa") and len(labels) == 34:
            digits = "".join(reversed(labels[:32]))
            address = ":".join(digits[at : at + 4] for at in range(0, 32, 4))
        else:
            return NXDOMAIN, []
        if self._mode == "fake":
            try:
                return NOERROR, [encode_name(self.host_of(address))] if address in self._fakes else []
            except OSError:
                return NXDOMAIN, []
        try:
            return NOERROR, [encode_name(resolve_address(self._chain, address, self._timeout))]
        except ProxyError as error:
            return (NXDOMAIN if error.failure == "host" else SERVFAIL), []

    def _by_tcp(self, query: bytes, question: NameQuestion) -> bytes:
        """Ask a server by its TCP port, through the proxies."""
        host, _, port = self._mode.removeprefix("tcp:").partition("#")
        try:
            with connect(self._chain, host, int(port or 53), self._timeout) as sock:
                sock.settimeout(self._timeout)
                sock.sendall(len(query).to_bytes(2, "big") + query)
                size = int.from_bytes(_exactly(sock, 2), "big")
                return _exactly(sock, size)
        except OSError as error:
            self._say(f"a name was not resolved: {error}")
            return encode_answer(query, question, SERVFAIL, [])


def serve_datagrams(names: Names, sock: socket.socket) -> None:
    """Answer the queries that come to a datagram socket, for ever; each takes a thread for as long as the proxy
    takes."""
    while True:
        query, client = sock.recvfrom(4096)
        with contextlib.suppress(BlockingIOError):  # a query that is lost is asked again
            thread(_answer, names, sock, query, client)


def _answer(names: Names, sock: socket.socket, query: bytes, client: Any) -> None:
    data = names.answer(query)
    if data is not None:
        with contextlib.suppress(OSError):
            sock.sendto(data, client)


def serve_stream(names: Names, sock: socket.socket, timeout: float) -> None:
    """Answer the queries of one connection (RFC 7766), until its end. Raises OSError."""
    sock.settimeout(timeout)
    with sock:
        while len(head := sock.recv(2, socket.MSG_WAITALL)) == 2:
            answer = names.answer(sock.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
            if answer is None:
                return
            sock.sendall(len(answer).to_bytes(2, "big") + answer)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionAbortedError("the name server has closed the connection")
        data += part
    return data
