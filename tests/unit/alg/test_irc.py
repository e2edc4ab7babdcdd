"""IRC: properties and limits. Dialogues are in tests/wire/irc."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import (
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    FlowContext,
    Opened,
    OpenPinhole,
    Received,
    Refused,
    Revoke,
    Side,
)
from alg.irc.dcc import LONGEST, read_dcc
from alg.irc.module import IrcModule
from alg.irc.offers import MOST

CONTEXT = FlowContext(Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 6667))
OWN, PUBLIC = b"3232249866", b"3405803777"
words = st.sampled_from(
    [OWN, PUBLIC, b"0", b"5000", b"5001", b"40000", b"a b", b'"x y"', b"1", b"22", b"65536", b"chat"]
)
kinds = st.sampled_from([b"SEND", b"CHAT", b"RESUME", b"ACCEPT", b"send", b"XMIT", b"TSEND"])
dcc = st.builds(
    lambda pre, cmd, kind, said, end: pre + cmd + b" bob :\x01DCC " + kind + b" " + b" ".join(said) + b"\x01" + end,
    st.sampled_from([b"", b":ann!a@x ", b"@a=b "]),
    st.sampled_from([b"PRIVMSG", b"NOTICE", b"PONG"]),
    kinds,
    st.lists(words, max_size=6),
    st.sampled_from([b"\r\n", b"\n", b" \r\n", b"", b"x\r\n"]),
)
said = st.one_of(dcc, st.sampled_from([b"PING :x\r\n", b"\r\n", b"NICK ann\r\n"]), st.binary(max_size=30))
talk = st.lists(st.tuples(st.sampled_from(list(Side)), said), max_size=12)
BEGIN = [(Side.CLIENT, b"NICK ann\r\n"), (Side.SERVER, b":x 001 ann :hi\r\n")]


class Driver:
    """Opens what the module asks for, and checks what it delivers."""

    def __init__(self, opens: bool = True) -> None:
        self.module = IrcModule(CONTEXT)
        self.came = {side: bytearray() for side in Side}
        self.went = {side: bytearray() for side in Side}
        self.edits: list[tuple[bytes, bytes]] = []
        self.open: set[int] = set()
        self.bypassed = False
        self._opens = opens
        self._port = 40000

    def tell(self, side: Side, data: bytes) -> None:
        self.came[side] += data
        if self.bypassed:
            self.went[side] += data
        elif data:
            self.do(self.module.handle(Received(side, data, 0.0)))

    def end(self, side: Side) -> None:
        if not self.bypassed:
            assert CloseWrite(side.other) in self.do(self.module.handle(Closed(side, 0.0)))

    def do(self, commands: Sequence[Command]) -> Sequence[Command]:
        asked: list[int] = []
        for command in commands:
            match command:
                case Deliver(to, data, edits):
                    assert not self.bypassed
                    self.went[to.other] += data
                    assert self.came[to.other].startswith(self.went[to.other])
                    self.edits += [(data[edit.start : edit.end], edit.replacement) for edit in edits]
                case OpenPinhole(ref, target, None, "tcp"):
                    assert target.host == CONTEXT.client.host
                    assert 1024 <= target.port <= 65535
                    asked.append(ref)
                case ClosePinhole(ref):
                    self.open.discard(ref)
                case Bypass():
                    self.bypassed = True
                case Revoke():
                    self.open.clear()
        for ref in asked:
            if self._opens and not self.bypassed:
                self.open.add(ref)
                self._port += 1
                self.do(self.module.handle(Opened(ref, Endpoint("203.0.113.1", self._port), 0.0)))
            elif not self.bypassed:
                self.do(self.module.handle(Refused(ref, "quota", 0.0)))
        return commands

    @property
    def result(self) -> tuple[object, ...]:
        return self.went, self.edits, sorted(self.open), self.bypassed


def play(said: Sequence[tuple[Side, bytes]], opens: bool, size: int) -> Driver:
    driver = Driver(opens)
    for side, data in [*BEGIN, *said]:
        for at in range(0, len(data), size):
            driver.tell(side, data[at : at + size])
    return driver


@settings(max_examples=300, deadline=None)
@given(talk, st.booleans())
def test_every_byte_goes_on_and_only_addresses_and_ports_are_edited(
    said: list[tuple[Side, bytes]], opens: bool
) -> None:
    driver = play(said, opens, 1000)
    assert len(driver.open) <= MOST
    for before, after in driver.edits:
        assert before.isdigit()
        assert after.isdigit()
    for side in Side:
        driver.end(side)
    assert driver.went == driver.came


@settings(max_examples=100, deadline=None)
@given(talk, st.integers(1, 9))
def test_the_outcome_does_not_depend_on_how_the_stream_is_cut(said: list[tuple[Side, bytes]], size: int) -> None:
    whole, cut = play(said, True, 10000), play(said, True, size)
    for side in Side:
        whole.end(side)
        cut.end(side)
    assert cut.result == whole.result


@given(st.binary(max_size=200))
def test_any_line_can_be_read(data: bytes) -> None:
    read_dcc(data)
    found = read_dcc(
        b"PRIVMSG bob :\x01DCC SEND " + data.replace(b"\x01", b"").replace(b"\n", b"").replace(b"\r", b"") + b"\x01\r\n"
    )
    assert found is not None
    for offer in found.offers():
        assert 1024 <= offer.port <= 65535


def test_a_hundred_offers_at_once() -> None:
    offers = [b"PRIVMSG bob :\x01DCC SEND a %b %d 1\x01\r\n" % (OWN, 5000 + number) for number in range(100)]
    driver = play([(Side.CLIENT, b"".join(offers))], True, 100_000)
    assert len(driver.open) == MOST
    assert driver.went == driver.came


def test_no_line_grows_beyond_what_servers_take() -> None:
    for length in range(440, 480):
        line = b"PRIVMSG bob :\x01DCC SEND %b %b 5000 1\x01\r\n" % (b"x" * length, OWN)
        driver = play([(Side.CLIENT, line)], True, 1000)
        grown = len(line) + sum(len(after) - len(before) for before, after in driver.edits)
        assert grown <= max(LONGEST, len(line))


@pytest.mark.parametrize(
    ("side", "unit"),
    [
        (Side.CLIENT, b"\n"),
        (Side.CLIENT, b"PRIVMSG bob :\x01DCC \n"),
        (Side.CLIENT, b"PRIVMSG bob :\x01DCC SEND a 3232249866 5000 1\x01\r\n"),
        (Side.CLIENT, b"PRIVMSG bob :\x01DCC SEND " + b"1 " * 200 + b"\x01\r\n"),
        (Side.CLIENT, b"@" * 5000 + b"\x01DCC \n"),
        (Side.SERVER, b":x PRIVMSG ann :\x01DCC RESUME a 40001 5\x01\r\n"),
        (Side.SERVER, b":" * 4000),
    ],
    ids=range(7),
)
def test_what_a_stranger_sends_costs_time_in_proportion(side: Side, unit: bytes) -> None:
    took = []
    for size in (40_000, 160_000):
        driver = Driver()
        for who, data in BEGIN:
            driver.tell(who, data)
        data = unit * max(1, size // len(unit))
        began = time.process_time()
        for at in range(0, len(data), 1000):
            driver.tell(side, data[at : at + 1000])
        took.append((time.process_time() - began) / len(data))
    assert took[1] < 3 * took[0] + 2e-6
