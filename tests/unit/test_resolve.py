"""Names: hosts file, cache, and a real name server on loopback that says what the test wants."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import gevent
import pytest
from gevent.server import DatagramServer, StreamServer
from gevent.socket import socket

from gateway.net import resolver as resolve
from gateway.net.resolver import ResolveError, Resolver

SOA = "ns.example. admin.example. 1 2 3 4 30"


class NameServer:
    """A name server for one zone. `delay` maps a record type to seconds; `mute` types get no answer."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.ttl = 300
        self.queries: list[tuple[str, str]] = []
        self.mute: set[str] = set()
        self.delay: dict[str, float] = {}
        self.rcode: dns.rcode.Rcode | None = None
        self.truncate = False
        self.forge = False
        self.over_tcp = 0
        self._tcp = StreamServer(("127.0.0.1", 0), self._stream)
        self._tcp.start()
        self.port = self._tcp.server_port or 0
        self._udp = DatagramServer(("127.0.0.1", self.port), self._datagram)
        self._udp.start()

    def stop(self) -> None:
        self._tcp.stop()
        self._udp.stop()

    def answer(self, wire: bytes, udp: bool) -> dns.message.Message | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text().rstrip("."), question.rdtype.name
        self.queries.append((name, kind))
        if kind in self.mute:
            return None
        gevent.sleep(self.delay.get(kind, 0))
        reply = dns.message.make_response(query)
        if self.rcode is not None:
            reply.set_rcode(self.rcode)
        elif udp and self.truncate:
            reply.flags |= dns.flags.TC
        elif records := self.zone.get((name, kind)):
            reply.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *records))
        elif target := self.zone.get((name, "CNAME")):
            reply.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", "CNAME", *target))
            reply.answer.append(dns.rrset.from_text(target[0], self.ttl, "IN", kind, *self.zone[target[0][:-1], kind]))
        else:
            if not any(known == name for known, _ in self.zone):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            reply.authority.append(dns.rrset.from_text("example.", self.ttl, "IN", "SOA", SOA))
        return reply

    def _datagram(self, wire: Any, peer: Any) -> None:  # gevent's stubs have the types of another server here
        if reply := self.answer(wire, udp=True):
            if self.forge:
                forged = dns.message.from_wire(reply.to_wire())
                forged.id ^= 1
                self._udp.sendto(b"nonsense", peer)
                self._udp.sendto(forged.to_wire(), peer)
            self._udp.sendto(reply.to_wire(), peer)

    def _stream(self, sock: socket, _peer: object) -> None:
        self.over_tcp += 1
        length = int.from_bytes(sock.recv(2), "big")
        reply = self.answer(sock.recv(length), udp=False)
        assert reply is not None
        wire = reply.to_wire(max_size=65535)
        sock.sendall(len(wire).to_bytes(2, "big"))
        sock.sendall(wire)


@pytest.fixture
def server() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.stop()


@pytest.fixture
def resolver(server: NameServer, tmp_path: Path) -> Resolver:
    (tmp_path / "hosts").write_text(
        "127.0.0.1 localhost\n::1 localhost\n192.0.2.1 Router.example router # ours\n2001:db8::1 router\n"
        "::ffff:192.0.2.9 mapped\nnonsense\n# 1.2.3.4 commented\n"
    )
    (tmp_path / "resolv.conf").write_text("search corp.example\nnameserver 127.0.0.1\n")
    return make(server, tmp_path)


def make(server: NameServer, folder: Path, timeout: float = 5, cache_size: int = 100) -> Resolver:
    return Resolver(timeout, str(folder / "hosts"), str(folder / "resolv.conf"), server.port, cache_size)


def failure(resolver: Resolver, name: str, deadline: float | None = None) -> str:
    with pytest.raises(ResolveError) as caught:
        resolver.resolve(name, deadline)
    assert caught.value.detail
    return caught.value.kind


def eventually(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 10
    while not condition():
        assert monotonic() < deadline
        gevent.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:7f00:1", "127.0.0.1"),
    ],
)
def test_addresses_are_their_own_answer(resolver: Resolver, name: str, address: str) -> None:
    assert resolver.resolve(name) == [address]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        "a b",
        "a\nb",
        "a/b",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
        "127.1",
        "2130706433",
        "0x7f000001",
        "127.0.0.0x1",
        "0177.0.0.1",
        "1.2.3.4.",
        "１２７.0.0.1",
        "[::1]",
        "fe80::1%lo",
        "a\\046b.example",
        "\udcff.example",
    ],
)
def test_what_cannot_be_a_name(resolver: Resolver, server: NameServer, name: str) -> None:
    assert failure(resolver, name) == "invalid"
    assert server.queries == []


def test_both_families(resolver: Resolver, server: NameServer) -> None:
    server.zone = {
        ("www.example", "A"): ["192.0.2.7", "192.0.2.8"],
        ("www.example", "AAAA"): ["2001:db8::7", "::ffff:192.0.2.8"],
    }
    found = resolver.resolve("WWW.example.")
    assert found[0] == "2001:db8::7"
    assert sorted(found[1:]) == ["192.0.2.7", "192.0.2.8"]  # name servers shuffle
    assert sorted(server.queries) == [("www.example", "A"), ("www.example", "AAAA")]


def test_one_family_an_alias_and_international_names(resolver: Resolver, server: NameServer) -> None:
    server.zone = {
        ("four.example", "A"): ["192.0.2.4"],
        ("alias.example", "CNAME"): ["both.example."],
        ("both.example", "A"): ["192.0.2.5"],
        ("both.example", "AAAA"): ["2001:db8::5"],
        ("xn--bcher-kva.example", "AAAA"): ["2001:db8::6"],
    }
    assert resolver.resolve("four.example") == ["192.0.2.4"]
    assert resolver.resolve("alias.example") == ["2001:db8::5", "192.0.2.5"]
    assert resolver.resolve("Bücher.example") == ["2001:db8::6"]


def test_search_list_only_for_names_without_a_dot(resolver: Resolver, server: NameServer) -> None:
    server.zone = {("printer.corp.example", "A"): ["192.0.2.3"], ("www.x.corp.example", "A"): ["192.0.2.66"]}
    assert resolver.resolve("printer") == ["192.0.2.3"]
    assert failure(resolver, "www.x") == "nxdomain"


def test_hosts(resolver: Resolver, server: NameServer) -> None:
    assert resolver.resolve("router") == ["2001:db8::1", "192.0.2.1"]
    assert resolver.resolve("ROUTER.example.") == ["192.0.2.1"]
    assert resolver.resolve("localhost") == ["::1", "127.0.0.1"]
    assert resolver.resolve("x.localhost") == ["::1", "127.0.0.1"]
    assert resolver.resolve("mapped") == ["192.0.2.9"]
    assert server.queries == []


def test_hosts_are_read_again(resolver: Resolver, tmp_path: Path) -> None:
    assert resolver.resolve("router.example") == ["192.0.2.1"]
    (tmp_path / "new").write_text("192.0.2.99 router.example\n")
    os.replace(tmp_path / "new", tmp_path / "hosts")
    eventually(lambda: resolver.resolve("router.example") == ["192.0.2.99"])


def test_no_resolv_conf_until_there_is_one(server: NameServer, tmp_path: Path) -> None:
    server.zone = {("www.example", "A"): ["192.0.2.7"]}
    resolver = make(server, tmp_path)
    assert failure(resolver, "www.example") == "servfail"
    (tmp_path / "resolv.conf").write_text("nameserver nonsense\n")
    assert failure(resolver, "www.example") == "servfail"
    gevent.sleep(resolve.LOOK_EVERY)
    assert failure(resolver, "www.example") == "servfail"
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    gevent.sleep(resolve.LOOK_EVERY)
    assert resolver.resolve("www.example") == ["192.0.2.7"]


def test_no_such_name_and_no_address(resolver: Resolver, server: NameServer) -> None:
    server.zone = {("mail.example", "TXT"): ["hello"]}
    assert failure(resolver, "nowhere.example") == "nxdomain"
    assert failure(resolver, "mail.example") == "nxdomain"
    asked = len(server.queries)
    assert failure(resolver, "nowhere.example") == "nxdomain"
    assert failure(resolver, "mail.example") == "nxdomain"
    assert len(server.queries) == asked, "negative answers are remembered"


def test_servers_that_fail(resolver: Resolver, server: NameServer) -> None:
    server.rcode = dns.rcode.REFUSED
    assert failure(resolver, "www.example") == "servfail"
    server.rcode = None
    server.zone = {("www.example", "A"): ["192.0.2.7"]}
    gevent.sleep(resolve.FAILURE_TTL)
    assert resolver.resolve("www.example") == ["192.0.2.7"]


def test_no_server_listens(server: NameServer, resolver: Resolver) -> None:
    server.stop()
    assert failure(resolver, "www.example") == "servfail"


def test_answers_are_remembered_for_their_time(
    resolver: Resolver, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "MIN_TTL", 0.5)
    server.zone = {("www.example", "A"): ["192.0.2.7"]}
    server.ttl = 0
    assert resolver.resolve("www.example") == ["192.0.2.7"]
    assert resolver.resolve("www.example") == ["192.0.2.7"]
    assert len(server.queries) == 2
    gevent.sleep(0.6)
    server.zone = {("www.example", "A"): ["192.0.2.8"]}
    assert resolver.resolve("www.example") == ["192.0.2.8"]


def test_the_cache_is_bounded(server: NameServer, resolver: Resolver, tmp_path: Path) -> None:
    server.zone = {(f"n{number}.example", "A"): ["192.0.2.7"] for number in range(20)}
    resolver = make(server, tmp_path, cache_size=5)
    for number in range(20):
        resolver.resolve(f"n{number}.example")
    assert len(resolver._cache) == 5
    asked = len(server.queries)
    resolver.resolve("n19.example")
    assert len(server.queries) == asked


def test_many_who_want_the_same_ask_once(resolver: Resolver, server: NameServer) -> None:
    server.zone = {("www.example", "A"): ["192.0.2.7"]}
    server.delay = {"A": 0.1, "AAAA": 0.1}
    jobs = [gevent.spawn(resolver.resolve, "www.example") for _ in range(50)]
    gevent.joinall(jobs, raise_error=True)
    assert all(job.get() == ["192.0.2.7"] for job in jobs)
    assert len(server.queries) == 2


def test_deadline(resolver: Resolver, server: NameServer) -> None:
    server.zone = {("www.example", "A"): ["192.0.2.7"]}
    server.delay = {"A": 0.5}
    start = monotonic()
    assert failure(resolver, "www.example", start + 0.1) == "timeout"
    assert monotonic() - start < 0.4
    assert failure(resolver, "www.example", start) == "timeout"
    assert resolver.resolve("www.example") == ["192.0.2.7"], "who has more time gets the same answer"
    assert len(server.queries) == 2


def test_a_limit_that_the_caller_has_set_around_it(resolver: Resolver, server: NameServer) -> None:
    server.mute = {"A", "AAAA"}
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.1) as mine:
        resolver.resolve("www.example")
    assert caught.value is mine


def test_a_server_that_does_not_answer(server: NameServer, resolver: Resolver, tmp_path: Path) -> None:
    server.mute = {"A", "AAAA"}
    start = monotonic()
    assert failure(make(server, tmp_path, timeout=0.3), "www.example") == "timeout"
    assert 0.2 < monotonic() - start < 2


def test_a_server_that_ignores_one_family_holds_up_nobody(resolver: Resolver, server: NameServer) -> None:
    server.zone = {("www.example", "A"): ["192.0.2.7"]}
    server.mute = {"AAAA"}
    start = monotonic()
    assert resolver.resolve("www.example") == ["192.0.2.7"]
    assert monotonic() - start < 1


def test_truncated_answers_are_asked_for_over_tcp(resolver: Resolver, server: NameServer) -> None:
    server.zone = {("www.example", "A"): [f"192.0.2.{number}" for number in range(100)]}
    server.truncate = True
    assert len(resolver.resolve("www.example")) == resolve.MAX_ADDRESSES
    assert server.over_tcp == 2


def test_forged_answers_are_passed_over(resolver: Resolver, server: NameServer) -> None:
    server.zone = {("www.example", "A"): ["192.0.2.7"]}
    server.forge = True
    assert resolver.resolve("www.example") == ["192.0.2.7"]


IMPORTS = """
{first}
{second}
import sys, threading, time
import gevent
from gevent.server import DatagramServer
silent = DatagramServer(("127.0.0.1", 0), lambda data, peer: None)
silent.start()
open(sys.argv[1], "w").write("nameserver 127.0.0.1")
resolver = gateway.net.resolver.Resolver(timeout=1, resolv_conf=sys.argv[1], port=silent.server_port)
turns = 0
def count():
    global turns
    while True:
        gevent.sleep(0.01)
        turns += 1
gevent.spawn(count)
try:
    resolver.resolve("www.example")
except gateway.net.resolver.ResolveError as error:
    print(error.kind, turns > 40)
"""


@pytest.mark.parametrize("patched_first", [True, False])
def test_others_run_while_a_name_is_asked_for(patched_first: bool, tmp_path: Path) -> None:
    lines = ["from gevent import monkey; monkey.patch_all()", "import dns.query; import gateway.net.resolver"]
    first, second = lines if patched_first else lines[::-1]
    program = IMPORTS.format(first=first, second=second)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "conf")],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "timeout True\n", done.stderr
