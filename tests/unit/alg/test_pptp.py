"""PPTP as a dialogue: what is edited, what is opened, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import (
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    FlowContext,
    Note,
    Opened,
    OpenGre,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
    UpdateGre,
    apply_edits,
)
from alg.pptp.module import ANSWER_WITHIN, CLEARING, LIVE, MOST, SETUP, PptpModule
from tests.lab import pptp_text as say

CLIENT, SERVER, PUBLIC = Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 1723), "198.51.100.1"
OWN, OTHER, FAR = 7, 30007, 40


class Talk:
    """A connection whose calls are answered with a call ID, or not at all. `heard`: what each side was sent."""

    def __init__(
        self,
        answer: Callable[[int], int | str | None] = lambda number: number,
        context: FlowContext | None = None,
        cut: Callable[[bytes], Sequence[bytes]] = lambda data: [data],
    ) -> None:
        self.module = PptpModule(context or FlowContext(CLIENT, SERVER))
        self.heard = {Side.CLIENT: b"", Side.SERVER: b""}
        self.said = {Side.CLIENT: b"", Side.SERVER: b""}
        self.commands: list[Command] = []
        self.edited = 0
        self._answer, self._cut = answer, cut
        self.now = 0.0

    def give(self, event: Event) -> list[Command]:
        """Other commands than deliveries, of this event and of what comes of it."""
        events = [event]
        others: list[Command] = []
        while events:
            for command in self.module.handle(events.pop(0)):
                if isinstance(command, Deliver):
                    self.heard[command.to] += apply_edits(command.data, command.edits)
                    self.edited += len(command.edits)
                    continue
                others.append(command)
                if isinstance(command, OpenGre) and (answer := self._answer(command.call_id)) is not None:
                    if isinstance(answer, str):
                        events.append(Refused(command.ref, answer, self.now))
                    else:
                        events.append(Opened(command.ref, Endpoint(PUBLIC, answer), self.now))
        self.commands += others
        return others

    def client(self, data: bytes) -> list[Command]:
        self.said[Side.CLIENT] += data
        return [command for part in self._cut(data) for command in self.give(Received(Side.CLIENT, part, self.now))]

    def server(self, data: bytes) -> list[Command]:
        self.said[Side.SERVER] += data
        return [command for part in self._cut(data) for command in self.give(Received(Side.SERVER, part, self.now))]

    def tick(self, now: float) -> list[Command]:
        self.now = now
        return self.give(Tick(now))

    def begun(self) -> Talk:
        self.client(say.start_request())
        self.server(say.start_reply())
        return self

    def connected(self) -> Talk:
        """With a call."""
        self.begun()
        assert self.client(say.call_request(OWN)) == [OpenGre(1, OWN, SETUP, "pptp.call")]
        public = self._answer(OWN)
        assert isinstance(public, int)
        assert self.server(say.call_reply(FAR, public)) == [UpdateGre(1, FAR, LIVE)]
        return self


def test_the_clients_own_call_id_is_kept() -> None:
    talk = Talk().connected()
    assert talk.edited == 0
    assert talk.heard[Side.SERVER] == talk.said[Side.CLIENT]
    assert talk.heard[Side.CLIENT] == talk.said[Side.SERVER]


def test_another_call_id_is_written_and_put_back() -> None:
    talk = Talk(lambda _: OTHER).connected()
    talk.client(say.echo_request())
    talk.server(say.wan_error(OTHER))
    talk.server(say.set_link_info(OTHER))
    talk.client(say.set_link_info(FAR))
    talk.client(say.clear_request(OWN))
    assert talk.server(say.disconnect_notify(FAR)) == [ClosePinhole(1)]
    up = [say.start_request(), say.call_request(OTHER), say.echo_request(), say.set_link_info(FAR)]
    assert talk.heard[Side.SERVER] == b"".join([*up, say.clear_request(OTHER)])
    down = [say.start_reply(), say.call_reply(FAR, OWN), say.wan_error(OWN), say.set_link_info(OWN)]
    assert talk.heard[Side.CLIENT] == b"".join([*down, say.disconnect_notify(FAR)])


@given(st.lists(st.integers(1, 200), min_size=1, max_size=9), st.sampled_from([OWN, OTHER]))
def test_however_it_is_cut(sizes: list[int], public: int) -> None:
    def cut(data: bytes) -> list[bytes]:
        parts, at, round_ = [], 0, 0
        while at < len(data):
            size = sizes[round_ % len(sizes)]
            parts.append(data[at : at + size])
            at, round_ = at + size, round_ + 1
        return parts

    whole, torn = Talk(lambda _: public), Talk(lambda _: public, cut=cut)
    for talk in (whole, torn):
        talk.connected()
        talk.client(say.clear_request(OWN) + say.stop_request())
        talk.server(say.disconnect_notify(FAR) + say.stop_reply())
    assert torn.heard == whole.heard
    assert torn.commands == whole.commands


@given(st.binary(max_size=400), st.sampled_from(list(Side)), st.integers(0, 3))
def test_nothing_is_lost_whatever_comes(data: bytes, side: Side, prefix: int) -> None:
    talk = Talk(lambda _: OTHER)
    if prefix:
        talk.begun()
    if prefix > 1:
        talk.client(say.call_request(OWN))
    if prefix > 2:
        data = say.call_reply(FAR, OTHER)[: len(data)] + data
    (talk.client if side is Side.CLIENT else talk.server)(data)
    if not any(isinstance(command, Bypass) for command in talk.commands):
        talk.tick(1000.0)
    for end in Side:
        assert len(talk.heard[end.other]) == len(talk.said[end])
    if talk.edited == 0:
        assert talk.heard == {end.other: talk.said[end] for end in Side}


@pytest.mark.parametrize(
    "data",
    [b"POST / HTTP/1.1\r\n", say.call_request(OWN), b"\x16\x03\x01", say.start_request().replace(b"\x1a\x2b", b"\0\0")],
)
def test_who_does_not_begin_as_a_client_opens_nothing_any_more(data: bytes) -> None:
    talk = Talk()
    commands = talk.client(data)
    assert [type(command) for command in commands] == [Note, Revoke, Bypass]
    assert talk.heard[Side.SERVER] == data


def test_a_request_before_the_connection_is_granted_opens_nothing() -> None:
    talk = Talk()
    talk.client(say.start_request())
    assert [type(command) for command in talk.client(say.call_request(OWN))] == [Note]
    talk.server(say.start_reply(result=4))
    assert talk.client(say.call_request(OWN)) == []
    assert talk.heard[Side.SERVER] == talk.said[Side.CLIENT]


def test_a_call_that_the_server_refuses_is_closed() -> None:
    talk = Talk(lambda _: OTHER).begun()
    talk.client(say.call_request(OWN))
    assert talk.server(say.call_reply(0, OTHER, result=4)) == [ClosePinhole(1)]
    assert talk.heard[Side.CLIENT].endswith(say.call_reply(0, OWN, result=4))


def test_a_refusal_leaves_the_request_as_it_came() -> None:
    talk = Talk(lambda _: "quota").begun()
    assert [type(command) for command in talk.client(say.call_request(OWN))] == [OpenGre, Note]
    assert talk.server(say.call_reply(FAR, OWN)) == []
    assert (talk.heard[Side.SERVER], talk.edited) == (talk.said[Side.CLIENT], 0)


def test_a_request_waits_for_its_answer_and_not_for_ever() -> None:
    talk = Talk(lambda _: None).begun()
    talk.client(say.call_request(OWN) + say.echo_request())
    assert talk.heard[Side.SERVER] == say.start_request()
    assert talk.module.deadline() == ANSWER_WITHIN
    assert [type(command) for command in talk.tick(ANSWER_WITHIN)] == [Note, ClosePinhole]
    assert talk.heard[Side.SERVER] == talk.said[Side.CLIENT]
    assert talk.give(Opened(1, Endpoint(PUBLIC, OTHER), 6.0)) == [ClosePinhole(1)]


def test_the_connection_keeps_its_calls_open() -> None:
    talk = Talk().connected()
    assert talk.module.deadline() == LIVE / 2
    assert talk.tick(LIVE / 2) == [UpdateGre(1, FAR, LIVE)]
    talk.client(say.clear_request(OWN))
    assert talk.tick(LIVE / 2 + CLEARING) == [ClosePinhole(1)]


def test_a_call_that_nobody_answers_ends() -> None:
    talk = Talk().begun()
    talk.client(say.call_request(OWN))
    assert talk.tick(SETUP) == [ClosePinhole(1)]
    assert talk.server(say.call_reply(FAR, OWN)) == []  # too late


def test_the_end_of_the_connection() -> None:
    talk = Talk().connected()
    assert talk.client(say.stop_request()) == []
    assert talk.server(say.stop_reply()) == [ClosePinhole(1)]
    assert talk.give(Closed(Side.SERVER, 1.0)) == [CloseWrite(Side.CLIENT)]
    assert talk.give(Closed(Side.CLIENT, 1.0)) == [CloseWrite(Side.SERVER)]


def test_a_connection_has_a_few_calls() -> None:
    talk = Talk().begun()
    for number in range(MOST):
        assert isinstance(talk.client(say.call_request(number))[0], OpenGre)
    assert [type(command) for command in talk.client(say.call_request(MOST))] == [Note]
    again = talk.client(say.call_request(0))  # forgotten by the client
    assert [type(command) for command in again] == [ClosePinhole, OpenGre]


@pytest.mark.parametrize(
    "context",
    [
        FlowContext(CLIENT, SERVER, inside=Side.SERVER),
        FlowContext(Endpoint("fd00::1", 40000), Endpoint("2001:db8::5", 1723)),
    ],
)
def test_what_it_cannot_serve_it_leaves_alone(context: FlowContext) -> None:
    talk = Talk(context=context)
    assert [type(command) for command in talk.client(say.start_request())] == [Note, Bypass]
    assert talk.heard[Side.SERVER] == say.start_request()
