"""alg.ftp.session: what holds for every dialogue. Single dialogues are in tests/wire/ftp, which anyone can extend."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import (
    AskTransfer,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Edit,
    FlowContext,
    Note,
    Opened,
    OpenOutbound,
    OpenPinhole,
    OpenRelay,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
    apply_edits,
)
from alg.ftp.options import FtpOptions
from alg.ftp.session import FtpModule

CLIENT, SERVER = Side.CLIENT, Side.SERVER
CONTEXT = FlowContext(Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 21))
PUBLIC = Endpoint("203.0.113.1", 40001)
PORT = b"PORT 192,168,56,10,200,10\r\n"


def greeted() -> FtpModule:
    module = FtpModule(CONTEXT)
    module.handle(Received(SERVER, b"220 ready\r\n", 0))
    module.handle(Received(CLIENT, b"USER ann\r\n", 0))
    module.handle(Received(SERVER, b"230 in\r\n", 0))
    return module


def test_the_edit_is_the_argument_and_no_more() -> None:
    module = greeted()
    assert module.handle(Received(CLIENT, PORT + b"LIST\r\n", 0)) == [
        OpenPinhole(1, Endpoint("192.168.56.10", 51210), "203.0.113.5", "tcp", 60.0, "ftp.port")
    ]
    assert module.handle(Opened(1, PUBLIC, 0)) == [
        Deliver(SERVER, PORT, (Edit(5, 25, b"203,0,113,1,156,65", "ftp.port"),)),
        Deliver(SERVER, b"LIST\r\n"),
    ]


def test_deadlines() -> None:
    module = greeted()
    assert module.deadline() is None
    module.handle(Received(CLIENT, PORT, 100.0))
    assert module.deadline() == 105.0
    module.handle(Received(SERVER, b"22", 98.0))
    assert module.deadline() == 103.0
    assert module.handle(Tick(103.0)) == [Deliver(CLIENT, b"22")]
    module.handle(Opened(1, PUBLIC, 104.0))
    assert module.deadline() is None
    assert module.handle(Tick(200.0)) == []


def test_a_long_line_is_no_command() -> None:
    """A PORT that begins where a careless buffer would cut the line is part of that line."""
    module = greeted()
    long = b"NOOP " + b"x" * 4091
    assert module.handle(Received(CLIENT, long, 0)) == []
    assert module.handle(Received(CLIENT, PORT, 0)) == [Deliver(SERVER, long + PORT)]
    assert isinstance(module.handle(Received(CLIENT, PORT, 0))[0], OpenPinhole)


def test_a_long_first_line_is_not_ftp() -> None:
    for side, rule in ((CLIENT, "ftp.not-ftp"), (SERVER, "ftp.greeting")):
        data = (b"USER " if side is CLIENT else b"220 ") + b"x" * 5000
        commands = FtpModule(CONTEXT).handle(Received(side, data, 0))
        assert commands[1:] == [Revoke(rule), Deliver(side.other, data)]


def test_what_is_held_is_bounded() -> None:
    """A client that goes on and on while its PORT waits: the wait is given up, not the memory."""
    module = greeted()
    module.handle(Received(CLIENT, PORT, 0))
    sent, commands = PORT, list[Command]()
    for _ in range(70):
        data = b"NOOP\r\n" * 200
        sent += data
        commands += module.handle(Received(CLIENT, data, 0))
    assert commands[0] == Note("ftp.unanswered", "no answer about 192.168.56.10:51210")
    assert commands[1] == ClosePinhole(1)
    assert b"".join(command.data for command in commands[2:] if isinstance(command, Deliver)) == sent
    assert module.handle(Opened(1, PUBLIC, 0)) == [ClosePinhole(1)]


def test_the_delimiter_cannot_be_kept() -> None:
    module = greeted()
    line = b"EPRT z1z192.168.56.10z51210z\r\n"
    module.handle(Received(CLIENT, line, 0))
    assert module.handle(Opened(1, PUBLIC, 0)) == [
        Deliver(SERVER, line, (Edit(5, 28, b"z1z203.0.113.1z40001z", "ftp.eprt"),))
    ]
    line = b"EPRT 313192.168.56.1035121031"
    assert FtpModule(CONTEXT).handle(Received(CLIENT, line, 0)) == []  # an unfinished line, never an error
    module.handle(Received(CLIENT, b"EPRT a1a192.168.56.10a51210a\r\n", 0))
    commands = module.handle(Opened(2, Endpoint("2001:db8::a", 40001), 0))
    assert [type(command) for command in commands] == [Note, ClosePinhole, Deliver]


def test_a_revoke_ends_what_waits_on_the_other_side() -> None:
    module = greeted()
    module.handle(Received(CLIENT, b"PASV\r\n", 0))
    module.handle(Received(SERVER, b"227 (203,0,113,5,117,50)\r\n2", 0))
    commands = module.handle(Received(CLIENT, b"PORT 1,2,3,4,5,6\r\n", 0))
    assert commands[1:] == [
        Revoke("ftp.address"),
        ClosePinhole(1),
        Deliver(SERVER, b"PORT 1,2,3,4,5,6\r\n"),
        Deliver(CLIENT, b"227 (203,0,113,5,117,50)\r\n2"),
    ]
    assert module.handle(Opened(1, Endpoint("203.0.113.5", 30002), 0)) == [ClosePinhole(1)]
    assert module.deadline() is None


def test_a_session_of_many_commands_that_nobody_answers() -> None:
    module = greeted()
    for _ in range(1000):
        module.handle(Received(CLIENT, b"NOOP\r\n", 0))
    module.handle(Received(CLIENT, b"PASV\r\n", 0))
    assert isinstance(module.handle(Received(SERVER, b"227 (203,0,113,5,117,50)\r\n", 0))[0], OpenOutbound)


# --- properties -----------------------------------------------------------------------------------------------------

CLIENT_LINES = [
    b"USER ann\r\n",
    b"NOOP\r\n",
    b"\r\n",
    PORT,
    b"port 192,168,56,10,4,0\n",
    b"EPRT |1|192.168.56.10|51210|\r\n",
    b"EPRT z1z192.168.56.10z51210z\r\n",
    b"PASV\r\n",
    b"EPSV\r\n",
    b"EPSV ALL\r\n",
    b"REIN\r\n",
    b"AUTH TLS\r\n",
    b"\xff\xf4\xff\xf2ABOR\r\n",
    b"\xff\xfb\x01NOOP\r\n",
    b"PORT 192,168,56,10,0,22\r\n",
    b"PORT 1,2,3,4,5,256\r\n",
    b"PORT 198,51,100,7,200,10\r\n",
    b"EPRT |2|fd00:56::10|51210|\r\n",
    b"\xffEPSV 2\r\n",
    b"RETR x\r\n",
    b"EPRT |2|::1|5000|\r\n",
    b"POST / HTTP/1.1\r\n",
    b"NOOP " + b"x" * 4100 + b"PORT\r\n",
    b"PORT 192,168,56,10",
    b"AB\r\n",
    b"\xff",
    b"CPSV\r\n",
    b"P@SW\r\n",
    b"\r\n\r\n",
    b"NOOP\r\nNOOP\r\n",
]
SERVER_LINES = [
    b"220 ready\r\n",
    b"220-ready\r\n",
    b"200 ok\r\n",
    b"150 data\r\n",
    b"226 done\r\n",
    b"227 (203,0,113,5,117,50).\r\n",
    b"227 =203,0,113,5,117,51\r\n",
    b"227 (1,2,3,4,5,6)\r\n",
    b"227 Passive( 203, 0, 113, 5, 117, 52 )\n",
    b"227 (-53,0,113,5,-61,-112)\r\n",
    b"227 (0,0,0,0,117,53)\r\n",
    b"227 (192,168,56,10,117,54)\r\n",
    b"227 (::1,117,55)\r\n",
    b"227-(203,0,113,5,117,56)\r\n227 go\r\n",
    b"227 (2,233,252)\r\n",
    b"229 |||30006|\r\n",
    b"229 (||30007|)\r\n",
    b"553-no\r\n150 yes\r\n",
    b"200 AUTH ok\r\n",
    b"All is logged.\r\n",
    b"229 (|||30005|)\r\n",
    b"229 (|||80|)\r\n",
    b"234 go\r\n",
    b"334 go\r\n",
    b"500 no\r\n",
    b"502 no\r\n",
    b"227-wait\r\n",
    b"500-no\r\n",
    b"text\r\n",
    b"200 " + b"y" * 5000 + b"\r\n",
    b"2",
]

# One thing that happens: bytes of a side, an answer (opened or not) to the oldest question, the end of a side, a tick.
Item = tuple[Side, bytes] | bool | Side | None
received = st.one_of(
    st.tuples(st.just(CLIENT), st.lists(st.sampled_from(CLIENT_LINES), min_size=1, max_size=4).map(b"".join)),
    st.tuples(st.just(SERVER), st.lists(st.sampled_from(SERVER_LINES), min_size=1, max_size=4).map(b"".join)),
    st.tuples(st.sampled_from(Side), st.binary(min_size=1, max_size=6)),
)
# Most dialogues begin well, so that the interesting part of a session is reached.
beginnings: st.SearchStrategy[list[Item]] = st.sampled_from(
    [[], [(SERVER, b"220 ready\r\n"), (CLIENT, b"USER ann\r\n")], [(SERVER, b"220 a\r\n"), (CLIENT, b"PASV\r\n")]]
)
dialogues = st.builds(
    lambda begin, rest: begin + rest,
    beginnings,
    st.lists(st.one_of(received, received, received, st.booleans(), st.none()), max_size=14),
)


def play(
    items: Sequence[Item], cuts: Sequence[int], context: FlowContext = CONTEXT
) -> tuple[list[Command], dict[Side, bytes]]:
    """Drive a module as the gateway does, with data cut after `cuts` bytes (cyclic); to the end of the flow.

    Returns the commands, and the bytes of each side that the module was given.
    """
    module = FtpModule(context)
    commands: list[Command] = []
    given_bytes = dict.fromkeys(Side, b"")
    asked: list[OpenPinhole | OpenOutbound | AskTransfer] = []
    round_ = 0

    def take(answer: Sequence[Command]) -> None:
        commands.extend(answer)
        asked.extend(c for c in answer if isinstance(c, OpenPinhole | OpenOutbound | AskTransfer))

    def bypassed() -> bool:
        return bool(commands) and isinstance(commands[-1], Bypass)

    def settle(opened: bool) -> None:
        question = asked.pop(0)
        match question:
            case OpenPinhole():
                public = PUBLIC
            case OpenOutbound(target=other) | AskTransfer(other=other):
                public = other
        take(module.handle(Opened(question.ref, public, 0) if opened else Refused(question.ref, "quota", 0)))

    for item in items:
        if bypassed():
            break
        if isinstance(item, bool):
            if asked:
                settle(item)
        elif item is None:
            take(module.handle(Tick(10.0)))
        elif isinstance(item, tuple):
            side, data = item
            while data:
                size = cuts[round_ % len(cuts)]
                round_ += 1
                piece, data = data[:size], data[size:]
                given_bytes[side] += piece
                if bypassed():
                    commands.insert(-2, Deliver(side.other, piece))  # by the driver; before the note and Bypass
                else:
                    take(module.handle(Received(side, piece, 0)))
    for side in Side:
        if not bypassed():
            take(module.handle(Closed(side, 0)))
    while asked and not bypassed():
        settle(True)
    return commands, given_bytes


def normal(commands: Sequence[Command]) -> list[Command]:
    """Deliveries of the same bytes are the same, however they were cut, and so is what is left out of them; between the
    two sides there is no order."""
    out: list[Command] = []
    runs: dict[Side, list[tuple[str, bytes]]] = {side: [] for side in Side}  # why it is left out ("": it is not), bytes
    for command in [*commands, None]:
        if isinstance(command, Deliver) and (why := _left_out(command)) is not None:
            run = runs[command.to]
            before = run.pop()[1] if run and run[-1][0] == why else b""
            run.append((why, before + command.data))
            continue
        for to, run in runs.items():
            out += [Deliver(to, data, (Edit(0, len(data), b"", why),) if why else ()) for why, data in run if data]
            run.clear()
        if command is not None:
            out.append(command)
    return out


def _left_out(command: Deliver) -> str | None:
    """Why all of it is left out; "" if it goes as it came, None if it is changed otherwise."""
    if not command.edits:
        return ""
    start, end, replacement, reason = command.edits[0]
    return reason if (start, end, replacement) == (0, len(command.data), b"") else None


cuttings = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(dialogues, cuttings)
@settings(max_examples=250, deadline=None)
def test_what_comes_in_goes_out(items: list[Item], cuts: list[int]) -> None:
    """Nothing is lost, added or moved; the edits are in PORT and EPRT alone; each side's end is passed on once."""
    commands, given_bytes = play(items, cuts)
    for side in Side:
        deliveries = [c for c in commands if isinstance(c, Deliver) and c.to is side.other]
        assert b"".join(d.data for d in deliveries) == given_bytes[side]
        for delivery in deliveries:
            if delivery.edits:
                (edit,) = delivery.edits
                assert side is CLIENT
                assert delivery.data[: edit.start].upper().endswith((b"PORT ", b"EPRT "))
                assert delivery.data[edit.end :] in (b"\r\n", b"\n")
                assert delivery.data.count(b"\n") == 1
                apply_edits(delivery.data, delivery.edits)
        if not isinstance(commands[-1], Bypass):
            assert commands.count(CloseWrite(side.other)) == 1
            last = [c for c in commands if isinstance(c, Deliver | CloseWrite) and c.to is side.other][-1]
            assert isinstance(last, CloseWrite)


@given(dialogues, cuttings)
@settings(max_examples=250, deadline=None)
def test_pieces_do_not_matter(items: list[Item], cuts: list[int]) -> None:
    """However the network cuts the bytes, the same is done in the same order."""
    assert normal(play(items, cuts)[0]) == normal(play(items, [1 << 20])[0])


@given(dialogues, cuttings)
@settings(max_examples=250, deadline=None)
def test_pinholes(items: list[Item], cuts: list[int]) -> None:
    """They lead to the client or its server only, are asked for once, and never after a revoke, AUTH or bad line."""
    commands, _ = play(items, cuts)
    refs = []
    for at, command in enumerate(commands):
        if isinstance(command, OpenPinhole):
            assert command.target.host == CONTEXT.client.host
            assert command.peer == CONTEXT.server.host
        elif isinstance(command, OpenOutbound):
            assert command.target.host == CONTEXT.server.host
        else:
            continue
        assert command.target.port >= 1024
        assert not any(isinstance(earlier, Revoke | Bypass) for earlier in commands[:at])
        refs.append(command.ref)
    assert len(refs) == len(set(refs))


@given(dialogues, cuttings)
@settings(max_examples=150, deadline=None)
def test_a_port_is_advertised_only_when_it_is_open(items: list[Item], cuts: list[int]) -> None:
    """Each edit has its own question before it, and nothing is edited while nobody answers."""
    asked = edited = 0
    for command in play(items, cuts)[0]:
        asked += isinstance(command, OpenPinhole)
        edited += isinstance(command, Deliver) and bool(command.edits)
        assert edited <= asked
    never = [item for item in items if not isinstance(item, bool)]
    module = FtpModule(CONTEXT)
    for item in never:
        if isinstance(item, tuple):
            answer = module.handle(Received(*item, 0))
            assert not any(isinstance(c, Deliver) and c.edits for c in answer)
            if any(isinstance(c, Bypass) for c in answer):
                break


@given(st.lists(st.tuples(st.sampled_from(Side), st.binary(min_size=1, max_size=60)), max_size=10))
@settings(deadline=None)
def test_any_bytes(items: list[tuple[Side, bytes]]) -> None:
    commands, given_bytes = play(items, [7])
    for side in Side:
        delivered = b"".join(c.data for c in commands if isinstance(c, Deliver) and c.to is side.other)
        assert delivered == given_bytes[side]


NAT64 = FlowContext(Endpoint("fd00:56::10", 40000), Endpoint("64:ff9b::cb00:7105", 21))
SERVERS = FlowContext(CONTEXT.client, CONTEXT.server, transfers=True)
LEFT_OUT_IN_PIECES: list[Item] = [
    (Side.SERVER, b"220 ready\r\n227-wait\r\n"),
    (Side.CLIENT, b"PORT 192,168,56,10,200,10\r\n"),
    (Side.SERVER, b"x"),
    None,
    (Side.SERVER, b"220 ready\r\n"),
]
CONVERTING = FlowContext(CONTEXT.client, CONTEXT.server, options=FtpOptions(convert="active"))
PEER = FlowContext(CONTEXT.client, CONTEXT.server, options=FtpOptions(pasv_address="peer"))


@pytest.mark.parametrize("context", [NAT64, SERVERS, CONVERTING, PEER], ids=["nat64", "fxp", "convert", "peer"])
@given(dialogues, cuttings)
@example(LEFT_OUT_IN_PIECES, [1])
@settings(max_examples=150, deadline=None)
def test_where_more_is_said_than_was_heard(context: FlowContext, items: list[Item], cuts: list[int]) -> None:
    """What came in goes out, or is named by an edit; nobody is led anywhere but to the flow's own two ends."""
    commands, given_bytes = play(items, cuts, context)
    for side in Side:
        deliveries = [c for c in commands if isinstance(c, Deliver) and c.to is side.other]
        assert b"".join(d.data for d in deliveries) == given_bytes[side]
        for delivery in deliveries:
            apply_edits(delivery.data, delivery.edits)
    revoked = False
    for command in commands:
        match command:
            case OpenPinhole(target=target, peer=peer):
                assert (target.host, peer) == (context.client.host, context.server.host)
            case OpenOutbound(target=target):
                assert target.host == context.server.host
            case OpenRelay(client=target, server=server):
                assert (target.host, server.host) == (context.client.host, context.server.host)
                assert server.port >= 1024
            case AskTransfer(other=target):
                assert context.transfers
                assert target.host not in (context.client.host, context.server.host)
            case Revoke():
                revoked = True
                continue
            case _:
                continue
        assert target.port >= 1024
        assert not revoked
    assert normal(commands) == normal(play(items, [1 << 20], context)[0])


PUBLISHED = FlowContext(Endpoint("198.51.100.7", 40000), Endpoint("203.0.113.5", 21), inside=SERVER)


@given(dialogues, cuttings)
@settings(max_examples=200, deadline=None)
def test_a_published_server(items: list[Item], cuts: list[int]) -> None:
    """A port of the inside opens to the flow's own client only, only where that has asked for one, and what is changed
    of a reply is its endpoint."""
    commands, given_bytes = play(items, cuts, PUBLISHED)
    asked = given_bytes[CLIENT].upper().count(b"PASV") + given_bytes[CLIENT].upper().count(b"EPSV")
    inbound = [c for c in commands if isinstance(c, OpenPinhole) and c.target.host == PUBLISHED.server.host]
    assert len(inbound) <= asked
    assert all(command.peer == PUBLISHED.client.host and command.target.port >= 1024 for command in inbound)
    assert not any(isinstance(command, OpenOutbound) for command in commands)
    for side in Side:
        deliveries = [c for c in commands if isinstance(c, Deliver) and c.to is side.other]
        assert b"".join(d.data for d in deliveries) == given_bytes[side]
        for edit in (edit for delivery in deliveries for edit in delivery.edits):
            assert edit.reason in (("ftp.port", "ftp.eprt") if side is CLIENT else ("ftp.pasv", "ftp.epsv"))
    assert normal(commands) == normal(play(items, [1 << 20], PUBLISHED)[0])


@given(st.integers(100, 599), st.sampled_from([b" ready\r\n", b"\r\n", b"-a\r\nb\r\n%d c\n"]))
def test_which_first_replies_are_greetings(code: int, text: bytes) -> None:
    """Any below 400 but 120, which says that the greeting is to come (RFC 959, 5.4)."""
    module = FtpModule(CONTEXT)
    module.handle(Received(SERVER, b"%d" % code + (text % code if b"%" in text else text), 0))
    module.handle(Received(CLIENT, b"USER ann\r\n", 0))
    answer = module.handle(Received(CLIENT, PORT, 0))
    assert isinstance(answer[0], OpenPinhole) == (code < 400 and code != 120)


KINDS = st.sampled_from([b"PASV", b"EPSV", b"CPSV", b"P@SW", b"pasv", b"EPSV 1", b"STAT"])
REPLIES = st.sampled_from(
    [(227, b"203,0,113,5,117,50", 30002), (227, b"10, 0,0, 1,117,50", 30002), (229, b"|||30005|", 30005)]
)


@given(KINDS, REPLIES, st.lists(st.sampled_from([b"NOOP\r\n", b"TYPE I\r\n"]), max_size=3))
def test_what_a_reply_says_decides(command: bytes, reply: tuple[int, bytes, int], earlier: list[bytes]) -> None:
    code, text, port = reply
    module = greeted()
    module.handle(Received(CLIENT, b"".join(earlier) + command + b"\r\n", 0))
    module.handle(Received(SERVER, b"200 ok\r\n" * len(earlier), 0))
    answer = module.handle(Received(SERVER, b"%d Passive (%s)\r\n" % (code, text), 0))
    assert OpenOutbound(1, Endpoint("203.0.113.5", port), "tcp", 60.0, "ftp.passive") in answer
