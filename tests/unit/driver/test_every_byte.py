"""Every byte arrives, in order and unchanged, whatever a module does and however the stream is cut."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import pytest
from gevent.socket import MSG_OOB, SHUT_WR, socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import (
    Bypass,
    Closed,
    CloseWrite,
    Command,
    Deliver,
    Edit,
    Event,
    OpenPinhole,
    Received,
    Revoke,
    Say,
    Side,
)
from gateway.driver import stream
from gateway.net.relay.copy import EncodedSocket
from gateway.net.relay.splice import Relay
from tests.unit.driver.driven import Driven, Plain, SlowBackend
from tests.unit.relay.ends import read_exactly, reset

ACTIONS = (
    "deliver", "deliver", "deliver", "part", "hold", "hold", "open", "bypass", "bypass-late", "revoke", "raise",
    "lie", "ahead", "nonsense", "no-sequence", "wrong-edit", "close", "generator", "exit",
)  # fmt: skip


class Wild:
    """Does at each event what the next of `actions` says, and remembers what it holds. When they are used up it
    delivers."""

    most_held = 5000

    def __init__(self, actions: Sequence[str], deadline: float | None) -> None:
        self._actions: Iterator[str] = iter(actions)
        self._deadline = deadline
        self._held = {side: bytearray() for side in Side}
        self._closed: set[Side] = set()
        self._ref = 0

    def deadline(self) -> float | None:
        return self._deadline

    def handle(self, event: Event) -> Any:
        if isinstance(event, Received):
            self._held[event.side] += event.data
        if isinstance(event, Closed):
            self._closed.add(event.side)
        match next(self._actions, "deliver"):
            case "deliver":
                return self._all()
            case "generator":
                return (command for command in self._all())
            case "part":
                side = Side.CLIENT if self._held[Side.CLIENT] else Side.SERVER
                data = self._take(side, len(self._held[side]) // 2)
                return [Deliver(side.other, data)] if data else []
            case "hold":
                return []
            case "open":
                self._ref += 1
                target = Endpoint("192.0.2.1", 5000)
                return [OpenPinhole(self._ref, target, "198.51.100.1", "tcp", 60, "test.test")]
            case "bypass":
                return [Bypass()]
            case "bypass-late":
                return [*self._all(), Bypass(), Deliver(Side.SERVER, b"never")]
            case "revoke":
                return [Revoke("test.wrong"), *self._all()]
            case "raise":
                raise RuntimeError("a mistake")
            case "exit":
                raise SystemExit
            case "lie":
                return [Deliver(Side.SERVER, b"what nobody said"), Deliver(Side.CLIENT, b"nor this")]
            case "ahead":
                return [*self._all(), *([Deliver(Side.SERVER, bytes(9))] * 3)]
            case "nonsense":
                return [*self._all(), "nonsense", Deliver("nobody", b"x"), OpenPinhole(1, None, None, "", 0, "")]  # type: ignore[arg-type]
            case "no-sequence":
                return None
            case "wrong-edit":
                side = event.side if isinstance(event, Received) else Side.CLIENT
                return [
                    Deliver(side.other, bytes(self._held[side]), (Edit(5, 2, b"", "test"), Edit(0, 9999, b"", "t")))
                ]
            case "close":
                return [*self._all(), CloseWrite(Side.SERVER), CloseWrite(Side.CLIENT)]
        raise AssertionError

    def _take(self, side: Side, count: int) -> bytes:
        data = bytes(self._held[side][:count])
        del self._held[side][:count]
        return data

    def _all(self) -> list[Command]:
        commands: list[Command] = [
            Deliver(side.other, data) for side in Side if (data := self._take(side, len(self._held[side])))
        ]
        return commands + [CloseWrite(side.other) for side in Side if side in self._closed]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LONGEST_HOLD", 0.1)


# A piece: so many bytes, the milliseconds before it, whether its last byte is urgent.
pieces = st.lists(
    st.tuples(
        st.one_of(st.integers(1, 40), st.integers(1, 3000), st.sampled_from([20_000, 70_000])),
        st.sampled_from([0, 0, 0, 1, 5]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=6,
)


def words(sizes: Sequence[tuple[int, int, bool]], seed: int) -> bytes:
    """What a speaker is going to send."""
    return random.Random(seed).randbytes(sum(size for size, _, _ in sizes))


def speak(sock: Any, sizes: Sequence[tuple[int, int, bool]], data: bytes) -> None:
    at = 0
    for size, pause, urgent in sizes:
        if pause:
            gevent.sleep(pause / 1000)
        piece = data[at : at + size]
        at += size
        if urgent:
            sock.sendall(piece[:-1])
            sock.send(piece[-1:], MSG_OOB)
        else:
            sock.sendall(piece)
    sock.shutdown(SHUT_WR)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(ACTIONS), max_size=8),
    pieces,
    pieces,
    st.integers(0, 50),
    st.sampled_from([0.0, 0.003, 0.03]),
    st.sampled_from([None, 0.0]),
    st.sampled_from([0, 4096]),
)
def test_whatever_a_module_does(
    relay: Relay,
    actions: list[str],
    up: list[tuple[int, int, bool]],
    down: list[tuple[int, int, bool]],
    early: int,
    delay: float,
    deadline: float | None,
    buffers: int,
) -> None:
    before, said, answered = random.Random(3).randbytes(early), words(up, 1), words(down, 2)
    driven = Driven(relay, Wild(actions, deadline), backend=SlowBackend(delay), early=before, buffers=buffers)
    arrived = driven.exchange(lambda: speak(driven.client, up, said), lambda: speak(driven.server, down, answered))
    assert arrived == (before + said, answered)
    driven.finish()
    assert driven.flow.down == len(answered)
    assert driven.flow.up == len(before + said)


class Until:
    """Delivers until it has been told `count` bytes, and does `last` then."""

    def __init__(self, count: int, last: Sequence[Command] | type[Exception]) -> None:
        self._count = count
        self._last = last

    def deadline(self) -> float | None:
        return None

    def handle(self, event: Event) -> Sequence[Command]:
        if not isinstance(event, Received):
            return ()
        self._count -= len(event.data)
        if self._count > 0:
            return [Deliver(event.side.other, event.data)]
        if isinstance(self._last, type):
            raise self._last("a mistake")
        return self._last


@pytest.mark.parametrize("last", [[Bypass()], [Revoke("test"), Bypass()], RuntimeError], ids=str)
@pytest.mark.parametrize("size", [20_000, 200_000, 2_000_000])
def test_junk_in_one_piece(relay: Relay, size: int, last: Any) -> None:
    """A stream that a module lets go at its first bytes, as that of another protocol, with both sides at work."""
    junk = random.Random(size).randbytes(size)
    driven = Driven(relay, Until(1, last))
    sizes = [(size, 0, False)]
    assert driven.exchange(lambda: speak(driven.client, sizes, junk), lambda: speak(driven.server, sizes, junk)) == (
        junk,
        junk,
    )
    driven.finish()
    assert driven.handed_over.get()


def test_both_sides_send_more_than_all_buffers_before_they_read(relay: Relay) -> None:
    """Neither side reads before the other has read: whoever stops to read one of them stops them both."""
    size = 20_000_000
    junk = random.Random(1).randbytes(size)
    driven = Driven(relay, Until(100_000, [Bypass()]), buffers=4096)
    sizes = [(size, 0, False)]
    assert driven.exchange(lambda: speak(driven.client, sizes, junk), lambda: speak(driven.server, sizes, junk)) == (
        junk,
        junk,
    )
    driven.finish()


@pytest.mark.parametrize("last", [[], [Bypass()], RuntimeError], ids=str)
def test_what_came_before_a_reset_is_delivered(relay: Relay, last: Any) -> None:
    """Held by the module, or passed on by it: without a gateway it would have arrived too, and then the reset."""
    driven = Driven(relay, Until(5, last))
    driven.client.sendall(b"abc")
    assert read_exactly(driven.server, 3) == b"abc"
    driven.client.sendall(b"defghi")
    gevent.sleep(0.05)
    reset(driven.client)
    assert read_exactly(driven.server, 6) == b"defghi"
    with pytest.raises(ConnectionResetError):
        driven.server.recv(1)
    driven.finish()


class Encoded(EncodedSocket):
    """A connection whose bytes on the wire would be others."""

    def __init__(self, plain: socket) -> None:
        super().__init__(plain.family, plain.type, plain.proto, plain.detach())
        self.settimeout(None)


@pytest.mark.parametrize("urgent", [True, False], ids=["urgent", "plain"])
@pytest.mark.parametrize("encoded", [False, True], ids=["as it is", "encoded"])
@pytest.mark.parametrize("gone", ["client", "server"])
def test_bytes_for_a_side_that_is_gone_keep_no_flow(relay: Relay, gone: str, encoded: bool, urgent: bool) -> None:
    """What cannot be sent any more, an urgent byte or a part of a message, does not keep its sender waiting: it is
    reset, as it would be without a gateway."""
    driven = Driven(relay, Plain(), buffers=4096, wrap=Encoded if encoded else lambda sock: sock)
    ends = {"client": driven.client, "server": driven.server}
    dead = ends.pop(gone)
    (living,) = ends.values()

    def speak_on() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                living.sendall(bytes(999))
                living.send(b"!", MSG_OOB if urgent else 0)

    speaking = gevent.spawn(speak_on)
    gevent.sleep(0.1)  # all buffers are full
    assert not speaking.dead
    reset(dead)
    with gevent.Timeout(10, AssertionError("the living side waits for ever")):
        speaking.get()
    driven.finish()


def test_an_answer_is_not_lost_after_half_close_and_bypass(relay: Relay) -> None:
    """The client ends its direction and the module stands down: the server's last words come, then the end."""
    driven = Driven(relay, HalfClose())
    driven.client.sendall(b"QUIT\r\n")
    driven.client.shutdown(SHUT_WR)
    assert read_exactly(driven.server, 6) == b"QUIT\r\n"
    assert driven.server.recv(1) == b""
    driven.server.sendall(b"221 Goodbye\r\n" * 1000)
    driven.server.close()
    gevent.sleep(0.05)
    assert read_exactly(driven.client, 13_000) == b"221 Goodbye\r\n" * 1000
    assert driven.client.recv(1) == b""
    driven.finish()


class HalfClose(Plain):
    """Stands down when the server speaks after the client has ended its direction."""

    def handle(self, event: Event) -> Sequence[Command]:
        match event:
            case Closed(side):
                return [CloseWrite(side.other)]
            case Received(Side.SERVER, data):
                return [Deliver(Side.CLIENT, data), Bypass()]
            case Received(side, data):
                return [Deliver(side.other, data)]
        return ()


class Chatty(Plain):
    """Says something before each thing that it delivers."""

    def handle(self, event: Event) -> Sequence[Command]:
        if isinstance(event, Received):
            return [Say(event.side.other, b"<", "test.say"), Deliver(event.side.other, event.data)]
        return super().handle(event)


def test_words_of_its_own_come_where_they_are_said(relay: Relay) -> None:
    driven = Driven(relay, Chatty())
    driven.client.sendall(b"a")
    assert read_exactly(driven.server, 2) == b"<a"
    driven.client.send(b"b", MSG_OOB)
    assert read_exactly(driven.server, 2) == b"<b"
    driven.inspection.abort()
    driven.finish()


class Holder(Plain):
    """Holds everything, for ever."""

    most_held = 70_000

    def handle(self, event: Event) -> Sequence[Command]:
        return ()


@pytest.mark.parametrize("size", [70_001, 110_000, 500_000])
def test_more_than_a_module_may_hold_passes_whole(relay: Relay, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(stream, "LONGEST_HOLD", 60.0)
    data = random.Random(size).randbytes(size)
    driven = Driven(relay, Holder())
    driven.client.sendall(data)
    assert read_exactly(driven.server, size) == data
    assert driven.handed_over.get(timeout=5)
    assert driven.flow.carrier is not None
    driven.flow.carrier.abort()
    driven.finish()
