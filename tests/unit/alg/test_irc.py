"""IRC: properties and limits. Dialogues are in tests/wire/irc, costs in tests/unit/alg/test_bounds.py."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import Command, Event, FlowContext, Opened, OpenPinhole, Refused, Side
from alg.irc.dcc import LONGEST, read_dcc
from alg.irc.module import IrcModule
from alg.irc.offers import MOST
from tests.unit.alg.streams import StreamDriver, is_the_same_when_cut, passes_every_byte

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


class Driver(StreamDriver):
    """Opens what the module asks for; the client has been welcomed."""

    def __init__(self, opens: bool = True) -> None:
        super().__init__(IrcModule(CONTEXT), opens)
        self._port = 40000
        self.play(BEGIN, 1000)

    def asked(self, command: Command) -> Iterator[Event]:
        match command:
            case OpenPinhole(ref, target, None, "tcp"):
                assert target.host == CONTEXT.client.host
                assert 1024 <= target.port <= 65535
                if not self.opens:
                    yield Refused(ref, "quota", 0.0)
                    return
                self.open.add(ref)
                self._port += 1
                yield Opened(ref, Endpoint("203.0.113.1", self._port), 0.0)


@settings(max_examples=300, deadline=None)
@given(talk, st.booleans())
def test_every_byte_goes_on_and_only_addresses_and_ports_are_edited(
    said: list[tuple[Side, bytes]], opens: bool
) -> None:
    driver = Driver(opens)
    driver.play(said, 1000)
    assert len(driver.open) <= MOST
    for before, after in driver.edits:
        assert before.isdigit()
        assert after.isdigit()
    passes_every_byte(driver)


@settings(max_examples=100, deadline=None)
@given(talk, st.integers(1, 9))
def test_the_outcome_does_not_depend_on_how_the_stream_is_cut(said: list[tuple[Side, bytes]], size: int) -> None:
    is_the_same_when_cut(Driver, said, size)


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
    driver = Driver()
    driver.tell(Side.CLIENT, b"".join(offers))
    assert len(driver.open) == MOST
    assert driver.went == driver.came


def test_no_line_grows_beyond_what_servers_take() -> None:
    for length in range(440, 480):
        line = b"PRIVMSG bob :\x01DCC SEND %b %b 5000 1\x01\r\n" % (b"x" * length, OWN)
        driver = Driver()
        driver.tell(Side.CLIENT, line)
        grown = len(line) + sum(len(after) - len(before) for before, after in driver.edits)
        assert grown <= max(LONGEST, len(line))
