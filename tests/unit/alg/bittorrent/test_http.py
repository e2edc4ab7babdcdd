"""Announces over HTTP: properties, limits, what connections have together. Dialogues are in tests/wire/bittorrent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import (
    Command,
    Deliver,
    Event,
    FindSocket,
    FlowContext,
    Opened,
    OpenMapping,
    Probe,
    Received,
    Refused,
    Side,
    Tick,
    UpdateMapping,
)
from alg.bittorrent.announce import conceal, read_http, read_udp
from alg.bittorrent.bencode import IntervalSearch
from alg.bittorrent.http import BittorrentModule
from alg.bittorrent.listeners import BEAT, DEAD, MOST_PORTS, MOST_TORRENTS, ClientPort
from alg.bittorrent.options import BittorrentOptions
from tests.unit.alg.streams import StreamDriver, is_the_same_when_cut, passes_every_byte

CONTEXT = FlowContext(Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 6969))
HASHES = [f"info_hash=%{number:02x}" + "%ff" * 19 for number in range(3)]
REPLY = b"HTTP/1.1 200 OK\r\n\r\nd8:intervali600e5:peers0:e"


def announce(info_hash: str = HASHES[0], port: str = "6881", more: str = "", head: str = "") -> bytes:
    query = f"{info_hash}&peer_id=-AG0001-123456789012{more}&port={port}"
    return f"GET /announce?{query} HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode()


said = st.one_of(
    st.builds(
        announce,
        st.sampled_from([*HASHES, "info_hash=x", ""]),
        st.one_of(st.integers(0, 70000).map(str), st.sampled_from(["6881", "6882", "x", ""])),
        st.sampled_from(["", "&event=stopped", "&ip=192.168.56.10", "&ip=192.0.2.1", "&port=5"]),
        st.sampled_from(["", "", "", "Cookie: a\r\n", "Content-Length: 5\r\n"]),
    ),
    st.sampled_from([b"GET /scrape HTTP/1.1\r\n\r\n", b"HEAD / HTTP/1.0\n\n", b"\r\n", REPLY]),
    st.binary(max_size=30),
)
talk = st.lists(st.tuples(st.sampled_from([Side.CLIENT, Side.CLIENT, Side.SERVER]), said), max_size=10)


class Driver(StreamDriver):
    """Proves and opens what the module asks for."""

    outlives = True

    def __init__(self, opens: bool = True, **context: Any) -> None:
        module = BittorrentModule(replace(CONTEXT, **{"shared": {}, **context}))
        super().__init__(module, opens)
        self.outliving = module
        self.probes: list[Probe] = []
        self.mapped: list[OpenMapping] = []
        self.updates: list[UpdateMapping] = []

    def tick(self, now: float) -> None:
        self.now = now
        self.do(self.module.handle(Tick(now)))

    def asked(self, command: Command) -> Iterator[Event]:
        match command:
            case Probe(ref, target):
                assert target.host == CONTEXT.client.host
                assert 1024 <= target.port <= 65535
                self.probes.append(command)
                yield Opened(ref, target, self.now) if self.opens else Refused(ref, "probe", self.now)
            case OpenMapping(ref, target):
                assert target.host == CONTEXT.client.host
                self.mapped.append(command)
                self.open.add(ref)
                # One number in two is somebody else's already.
                port = target.port if target.port % 2 else 30000 + ref
                yield Opened(ref, Endpoint("203.0.113.1", port), self.now)
            case UpdateMapping(ref):
                assert ref in self.open
                self.updates.append(command)
            case FindSocket(ref):
                yield Refused(ref, "none", self.now)


@settings(max_examples=200, deadline=None)
@given(talk, st.booleans())
def test_every_byte_goes_on_and_only_ports_and_addresses_are_edited(
    said: list[tuple[Side, bytes]], opens: bool
) -> None:
    driver = Driver(opens)
    driver.play(said, 100_000)
    assert len(driver.open) <= MOST_PORTS
    for before, after in driver.edits:
        assert (before.isdigit() and after.isdigit()) or (before, after) == (b"192.168.56.10", b"203.0.113.1")
    passes_every_byte(driver)


@settings(max_examples=80, deadline=None)
@given(talk, st.integers(1, 9))
def test_the_outcome_does_not_depend_on_how_the_stream_is_cut(said: list[tuple[Side, bytes]], size: int) -> None:
    is_the_same_when_cut(Driver, said, size)


@given(st.binary(max_size=200))
def test_anything_can_be_read(data: bytes) -> None:
    read_udp(data)
    IntervalSearch().look(data)
    IntervalSearch().look(b"d" + data)
    assert len(conceal(data)) == len(data)
    found = read_http(b"GET /?" + data + b"\r\n\r\n")
    if found is not None:
        assert len(found.info_hash) == 20


@pytest.mark.parametrize(
    ("data", "interval"),
    [
        (b"d8:intervali1800e5:peers0:e", 1800),
        (b"d8:completei5e10:incompletei2e8:intervali900e12:min intervali60ee", 900),
        (b"d1:ad8:intervali1ee1:bl8:intervali2ee8:intervali3ee", 3),
        (b"d5:peersld2:ip9:192.0.2.14:porti1eee8:intervali7ee", 7),
        (b"d4:name8:interval1:ai5ee", None),
        (b"d8:interval3:abce", None),
        (b"d14:failure reason3:abce", None),
        (b"d8:intervali18", None),
        (b"d99:intervali1e", None),
        (b"i5e", None),
        (b"d" * 100, None),
        (b"", None),
    ],
)
def test_the_interval_of_an_answer(data: bytes, interval: int | None) -> None:
    assert IntervalSearch().look(data) == interval
    for size in range(1, 12):
        search = IntervalSearch()
        found = [search.look(bytearray(b"\r\n" + data[:end]), 2) for end in range(0, len(data) + size, size)]
        assert [each for each in found if each is not None] == ([] if interval is None else [interval])


def test_an_answer_in_small_pieces_is_read_once() -> None:
    """What was read before is not read again with each piece: 16 KiB took seconds, in a thousand calls of 4 ms."""
    driver = Driver()
    driver.tell(Side.CLIENT, announce())
    driver.tell(Side.SERVER, b"HTTP/1.1 200 OK\r\n\r\nd" + b"0:" * 7500)
    began = time.process_time()
    for _ in range(900):
        driver.tell(Side.SERVER, b"0")
    assert time.process_time() - began < 0.5


def test_what_is_sent_to_a_port_is_a_handshake_for_the_torrent() -> None:
    driver = Driver()
    driver.tell(Side.CLIENT, announce())
    [probe] = driver.probes
    assert len(probe.send) == 68
    assert probe.expect[:20] == b"\x13BitTorrent protocol"
    assert probe.expect[28:48] == b"\0" + b"\xff" * 19
    assert probe.unchecked == (20, 28)


def test_connections_of_one_client_share_its_port() -> None:
    shared: dict[str, Any] = {}
    first = Driver(shared=shared)
    first.tell(Side.CLIENT, announce(port="6882"))
    others = [Driver(shared=shared) for _ in range(500)]
    for number, other in enumerate(others):
        other.tell(Side.CLIENT, announce(f"info_hash=%{number // 256:02x}%{number % 256:02x}" + "a" * 18, "6882"))
        assert not other.probes
        assert not other.mapped
        assert other.edits == [(b"6882", b"30002")]
        assert not other.outliving.lives_on()
    assert len(first.mapped) == 1
    # Those that are over do not matter, and the first one's goes on.
    first.end(Side.CLIENT)
    first.end(Side.SERVER)
    assert first.outliving.lives_on()
    first.tick(BEAT)
    others[0].now = BEAT + DEAD - 1
    others[0].tell(Side.CLIENT, announce(port="6882", more="&event=stopped"))
    assert first.open


def test_another_connection_waits_for_what_one_has_begun() -> None:
    shared: dict[str, Any] = {}
    first = BittorrentModule(replace(CONTEXT, shared=shared))
    [probe] = first.handle(Received(Side.CLIENT, announce(port="6882"), 0.0))
    second = BittorrentModule(replace(CONTEXT, shared=shared))
    assert second.handle(Received(Side.CLIENT, announce(HASHES[1], "6882"), 0.1)) == []
    assert isinstance(probe, Probe)
    [mapping] = first.handle(Opened(probe.ref, probe.target, 0.2))
    assert second.deadline() == pytest.approx(0.15)
    assert second.handle(Tick(0.2)) == []
    assert isinstance(mapping, OpenMapping)
    first.handle(Opened(mapping.ref, Endpoint("203.0.113.1", 6999), 0.3))
    [delivered] = second.handle(Tick(0.35))
    assert isinstance(delivered, Deliver)
    assert [edit.replacement for edit in delivered.edits] == [b"6999"]


def test_a_port_whose_keeper_is_gone_is_kept_by_the_next_one() -> None:
    shared: dict[str, Any] = {}
    first, second = Driver(shared=shared), Driver(shared=shared)
    first.tell(Side.CLIENT, announce())
    second.now = DEAD + 1
    second.tell(Side.CLIENT, announce())
    assert len(second.mapped) == 1
    # Had it been alive after all: it sees that the port is somebody else's, and its own goes.
    first.tick(DEAD + 2)
    assert not first.open
    assert second.open


def test_a_port_is_open_for_as_long_as_announces_come() -> None:
    driver = Driver()
    for number in range(20):
        driver.now = 600.0 * number
        driver.tell(Side.CLIENT, announce())
        driver.tell(Side.SERVER, REPLY)
        for later in range(0, 600, int(BEAT)):
            driver.tick(600.0 * number + later)
    assert len(driver.mapped) == 1
    assert driver.open
    assert all(update.ttl is not None and update.ttl <= 7200 for update in driver.updates)
    ends = 19 * 600 + 600 * 1.5 + 120
    while driver.now < ends - BEAT:
        driver.tick(driver.now + BEAT)
    assert driver.open
    driver.tick(ends + 1)
    assert not driver.open
    assert driver.module.deadline() is None


def test_torrents_of_a_port_are_bounded() -> None:
    listener = ClientPort(Endpoint("192.0.2.1", 6881), 0.0, 0.0)
    for number in range(2 * MOST_TORRENTS):
        listener.announced((number.to_bytes(20), "a"), float(number))
    assert len(listener.torrents) == MOST_TORRENTS + 1
    assert listener.wanted_until() == 2 * MOST_TORRENTS - 1


def test_secrets_are_not_shown() -> None:
    data = b"GET /0123456789abcdef0123/announce?info_hash=%124V&peer_id=-AG0001-1&port=6881&key=abcd HTTP/1.1\r\n\r\n"
    shown = conceal(data)
    assert len(shown) == len(data)
    for secret in (b"0123456789abcdef", b"%124V", b"AG0001", b"abcd"):
        assert secret not in shown
    assert b"&port=6881&" in shown


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="verify: 'no'"):
        BittorrentOptions(verify="no")


class Pinned:
    """A board of one process, with a time that stands still."""

    def __init__(self) -> None:
        self.words: set[str] = set()

    def pin(self, word: str, seconds: float) -> None:
        self.words.add(word)

    def pinned(self, word: str) -> bool:
        return word in self.words


def test_another_process_says_that_a_torrent_has_stopped() -> None:
    board = Pinned()
    keeper, other = Driver(board=board), Driver(board=board)
    keeper.tell(Side.CLIENT, announce())
    other.tell(Side.CLIENT, announce(HASHES[1], more="&event=stopped"))
    keeper.tick(BEAT)
    assert keeper.open
    other.tell(Side.CLIENT, announce(more="&event=stopped"))
    keeper.tick(2 * BEAT)
    assert not keeper.open


@pytest.mark.parametrize("piece", [b"?", b"?a", b"&", b"&=", b"a=", b"?=&"])
def test_a_request_of_any_kind_costs_time_linear_in_its_bytes(piece: bytes) -> None:
    head = b"GET /" + piece * (16000 // len(piece)) + b" HTTP/1.1\r\n\r\n"
    began = time.process_time()
    read_http(head)
    assert time.process_time() - began < 0.1
