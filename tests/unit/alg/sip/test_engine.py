"""alg.sip.udp: limits, floods, keep-alives and what `algate calls` shows. Dialogues are in tests/wire/sip."""

from __future__ import annotations

import math

import pytest

from alg.address import Endpoint
from alg.api import Activity, ClosePinhole, Note, OpenConversation, Opened, Refused, Side, Tick, UpdateConversation
from alg.datagrams import Datagram, DatagramContext, Entry, Moved, Release, RevokeConversation
from alg.sip import bindings, calls, core, peers
from alg.sip.ladder import unread_rung
from alg.sip.options import SipOptions
from alg.sip.records import TalkRecord, records_of
from alg.sip.rows import CallMedia
from alg.sip.sockets import InsideSockets
from alg.sip.udp import SipEngine

CLIENT, SERVER = Endpoint("192.168.56.10", 5060), Endpoint("203.0.113.5", 5060)


def untouched(packet: int, data: bytes) -> Release:
    """What is said of a message that passes as it came: only where it belongs."""
    return Release(packet, (), unread_rung(data))


def invite(number: int = 1, port: int = 4000, host: str = CLIENT.host) -> bytes:
    body = f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"
    return (
        f"INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP phone.invalid;branch=z9hG4bK{number}\r\n"
        f"From: <sip:alice@example.com>;tag=a\r\nTo: <sip:bob@example.com>\r\nCall-ID: call-{number}\r\n"
        f"CSeq: 1 INVITE\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def answer(number: int = 1) -> bytes:
    body = "v=0\r\no=- 1 1 IN IP4 203.0.113.77\r\ns=-\r\nc=IN IP4 203.0.113.77\r\nt=0 0\r\nm=audio 9000 RTP/AVP 0\r\n"
    return (
        f"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP phone.invalid;branch=z9hG4bK{number}\r\n"
        f"From: <sip:alice@example.com>;tag=a\r\nTo: <sip:bob@example.com>;tag=b\r\nCall-ID: call-{number}\r\n"
        f"CSeq: 1 INVITE\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def bye(number: int = 1) -> bytes:
    return (
        f"BYE sip:alice@192.168.56.10 SIP/2.0\r\nVia: SIP/2.0/UDP 203.0.113.5;branch=z9hG4bKb{number}\r\n"
        f"From: <sip:bob@example.com>;tag=b\r\nTo: <sip:alice@example.com>;tag=a\r\nCall-ID: call-{number}\r\n"
        f"CSeq: 1 BYE\r\nContent-Length: 0\r\n\r\n"
    ).encode()


SECURE = invite(3).replace(b"INVITE sip:", b"INVITE sips:", 1)


def test_another_engine_goes_on_with_what_the_journal_says() -> None:
    """The successor shows the same call, closes its media with the BYE, and opens nothing a second time."""
    engine = SipEngine(DatagramContext(recorded=True))
    engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 10.0))
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 10.0))
    stored = {entry.key: entry for entry in engine.journal()}
    engine.handle(Datagram(2, Side.SERVER, CLIENT, SERVER, answer(), 12.0))
    engine.handle(Datagram(3, Side.CLIENT, CLIENT, Endpoint("203.0.113.6", 5060), SECURE, 12.0))
    stored |= {entry.key: entry for entry in engine.journal()}
    assert engine.journal() == []
    successor = SipEngine(DatagramContext(recorded=True))
    successor.restore(list(stored.values()), 13.0)
    assert successor.calls() == engine.calls()
    other = Endpoint("203.0.113.6", 5060)
    assert successor.handle(Datagram(1, Side.CLIENT, CLIENT, other, invite(2), 13.0)) == [
        untouched(1, invite(2))
    ]  # stood down
    assert [
        type(command) for command in successor.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 13.0))
    ] == [Release]
    successor.handle(Datagram(2, Side.SERVER, CLIENT, SERVER, bye(), 14.0))
    ok = bye().replace(b"BYE sip:alice@192.168.56.10 SIP/2.0", b"SIP/2.0 200 OK")
    assert ClosePinhole(1) in successor.handle(Datagram(3, Side.CLIENT, CLIENT, SERVER, ok, 14.0))
    assert successor.calls() == []
    assert {entry.key for entry in successor.journal() if entry.record is None} == {
        key for key in stored if "talk" not in key
    }


def test_who_is_forgotten_is_forgotten_by_the_journal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else anybody inside could fill the memory with one datagram for each of his ports and each address."""
    monkeypatch.setattr(peers, "MOST_STOOD_DOWN", 3)
    monkeypatch.setattr(peers, "MOST_REVOKED", 3)
    engine = SipEngine(DatagramContext(recorded=True))
    stored: dict[str, Entry] = {}
    for port in range(5000, 5010):
        engine.handle(Datagram(1, Side.CLIENT, Endpoint(CLIENT.host, port), SERVER, b"\1" + invite(), float(port)))
        engine.handle(Datagram(2, Side.CLIENT, Endpoint(CLIENT.host, port + 100), SERVER, SECURE, float(port)))
        stored |= {entry.key: entry for entry in engine.journal()}
    kept = [record for record in records_of(stored.values()) if isinstance(record, TalkRecord)]
    assert sorted(record.client.port for record in kept) == [5007, 5008, 5009, 5107, 5108, 5109]


def test_another_public_address_keeps_the_call() -> None:
    engine = SipEngine()
    engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 10.0))
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 10.0))
    engine.handle(Datagram(2, Side.SERVER, CLIENT, SERVER, answer(), 12.0))
    close, again = engine.handle(Moved(1, 20.0))
    assert close == ClosePinhole(1)
    assert again == OpenConversation(1, Endpoint(CLIENT.host, 4000), 4001, ("203.0.113.77",), 290.0, "sip.rtp")
    assert engine.handle(Opened(1, Endpoint("198.51.100.9", 50000), 20.0)) == []
    (release,) = engine.handle(Datagram(3, Side.CLIENT, CLIENT, SERVER, invite(), 21.0))
    assert isinstance(release, Release)
    assert {edit.replacement for edit in release.edits} >= {b"198.51.100.9", b"50000"}


def test_a_client_with_another_address_goes_on_with_its_call() -> None:
    """The media of the address before are closed when the server accepts, and not before."""
    engine = SipEngine()
    engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 10.0))
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 10.0))
    engine.handle(Datagram(2, Side.SERVER, CLIENT, SERVER, answer(), 12.0))
    moved = Endpoint("192.168.56.11", 5060)
    again = invite(host=moved.host).replace(b"To: <sip:bob@example.com>", b"To: <sip:bob@example.com>;tag=b")
    (opening,) = engine.handle(Datagram(3, Side.CLIENT, moved, SERVER, again, 20.0))
    assert isinstance(opening, OpenConversation)
    engine.handle(Opened(opening.ref, Endpoint("203.0.113.1", 40004), 20.0))
    assert len(engine.calls()) == 2
    assert ClosePinhole(1) in engine.handle(Datagram(4, Side.SERVER, moved, SERVER, answer(), 20.0))
    (call,) = engine.calls()
    assert (call.client, call.media[0].target.host) == (moved.host, moved.host)


def test_nobody_ends_a_call_of_which_he_does_not_know_the_tags() -> None:
    engine = SipEngine()
    engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 10.0))
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 10.0))
    engine.handle(Datagram(2, Side.SERVER, CLIENT, SERVER, answer(), 12.0))
    other = Endpoint("192.168.56.11", 5060)
    again = invite(host=other.host).replace(b"To: <sip:bob@example.com>", b"To: <sip:bob@example.com>;tag=guess")
    (opening,) = engine.handle(Datagram(3, Side.CLIENT, other, SERVER, again, 20.0))
    assert isinstance(opening, OpenConversation)
    engine.handle(Opened(opening.ref, Endpoint("203.0.113.1", 40004), 20.0))
    assert ClosePinhole(1) not in engine.handle(Datagram(4, Side.SERVER, other, SERVER, answer(), 20.0))
    assert len(engine.calls()) == 2


def test_what_is_shown_of_a_call() -> None:
    engine = SipEngine()
    engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 10.0))
    assert [row.state for row in engine.calls()] == ["trying"]
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 10.0))
    engine.handle(Datagram(2, Side.SERVER, CLIENT, SERVER, answer(), 12.0))
    engine.handle(Activity(1, 500, 480, 22.0))
    (row,) = engine.calls()
    assert (row.client, row.server, row.call_id) == ("192.168.56.10", "203.0.113.5", "call-1")
    assert (row.caller, row.callee) == ("sip:alice@example.com", "sip:bob@example.com")
    assert (row.state, row.since) == ("confirmed", 12.0)
    assert row.media == (
        CallMedia(
            1, "audio", Endpoint("192.168.56.10", 4000), Endpoint("203.0.113.1", 40002), ("203.0.113.77",), 500, 480
        ),
    )


def test_a_call_that_was_given_up_is_shown_as_failed_until_it_is_forgotten() -> None:
    """Its socket waits a little for another try with credentials; nobody may send to it, and it rings nowhere."""
    engine = SipEngine()
    cancel = invite().replace(b"INVITE", b"CANCEL").partition(b"Content-Type")[0] + b"Content-Length: 0\r\n\r\n"
    ringing, ended = (answer().replace(b"200 OK", line, 1) for line in (b"180 Ringing", b"487 Request Terminated"))
    engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 0.0))
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 0.0))
    engine.handle(Datagram(2, Side.SERVER, CLIENT, SERVER, ringing, 1.0))
    assert [row.state for row in engine.calls()] == ["early"]
    engine.handle(Datagram(3, Side.CLIENT, CLIENT, SERVER, cancel, 2.0))
    engine.handle(Datagram(4, Side.SERVER, CLIENT, SERVER, ended, 3.0))
    assert [(row.state, row.since) for row in engine.calls()] == [("failed", 3.0)]
    assert [media.peers for row in engine.calls() for media in row.media] == [()]
    again = invite().replace(b"CSeq: 1", b"CSeq: 2")
    engine.handle(Datagram(5, Side.CLIENT, CLIENT, SERVER, again, 4.0))
    assert [(row.state, row.since) for row in engine.calls()] == [("trying", 4.0)]
    engine.handle(Datagram(6, Side.SERVER, CLIENT, SERVER, ended.replace(b"CSeq: 1", b"CSeq: 2"), 5.0))
    engine.handle(Tick(5.0 + calls.LINGER))
    assert engine.calls() == []


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\r\n",
        b"\x00",
        b"\x00\x00\x00\x00",
        b"\x00\x01\x00\x00\x21\x12\xa4\x42" + b"i" * 12,
        b"\x01\x01\x00\x00\x21\x12\xa4\x42" + b"i" * 12,
    ],
)
def test_keep_alives_take_no_right_away(data: bytes) -> None:
    engine = SipEngine()
    assert engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, data, 0.0)) == [Release(1)]
    assert isinstance(engine.handle(Datagram(2, Side.CLIENT, CLIENT, SERVER, invite(), 0.0))[0], OpenConversation)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x03\x00\x08\x21\x12\xa4\x42" + b"i" * 12,  # TURN: Allocate
        b"\x00\x01\x00\x00" + b"i" * 16,  # STUN of RFC 3489, without the cookie
        b"\x16\xfe\xff" + b"x" * 30,  # DTLS
        b"NAT Keep Alive Msg",
        b"hello",
        b"\0",
        b"\r\n\0",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 4000,
    ],
)
@pytest.mark.parametrize("side", list(Side))
def test_a_datagram_that_is_not_sip_passes_and_changes_nothing(data: bytes, side: Side) -> None:
    """Keep-alives of whatever bytes."""
    engine = SipEngine()
    for number in range(3):
        assert engine.handle(Datagram(number, side, CLIENT, SERVER, data, 0.0)) == [Release(number)]
    assert isinstance(engine.handle(Datagram(4, Side.CLIENT, CLIENT, SERVER, invite(), 0.0))[0], OpenConversation)


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\n\r\n" + invite(),
        b" " + invite(),
        b"\x00\x03\x00\x08\x21\x12\xa4\x42" + b"i" * 12 + invite(),
    ],
)
def test_sip_in_something_else_is_what_a_browser_sends(data: bytes) -> None:
    """Slipstreaming: that pair is not read for a while, whatever follows. What was open stays."""
    engine = SipEngine()
    engine.handle(Datagram(0, Side.CLIENT, CLIENT, SERVER, invite(), 0.0))
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 0.0))
    engine.handle(Datagram(1, Side.SERVER, CLIENT, SERVER, answer(), 0.0))
    out = engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, data, 1.0))
    assert out == [RevokeConversation(CLIENT, SERVER.host, "sip.not-sip"), Release(1)]
    assert engine.handle(Datagram(2, Side.CLIENT, CLIENT, SERVER, invite(2, 4100), 2.0)) == [
        untouched(2, invite(2, 4100))
    ]
    assert [(row.state, row.reason, row.until) for row in engine.peers(2.0)] == [("revoked", "sip.not-sip", 301.0)]
    assert len(engine.calls()) == 1
    other = Endpoint(CLIENT.host, 5062)
    assert isinstance(engine.handle(Datagram(3, Side.CLIENT, other, SERVER, invite(3, 4200), 2.0))[0], OpenConversation)
    out = engine.handle(Datagram(4, Side.CLIENT, CLIENT, SERVER, invite(2, 4100), 301.0))
    assert isinstance(out[0], OpenConversation)
    assert {row.state for row in engine.peers(301.0)} == {"edited"}


def test_a_flood_of_one_client_harms_no_other() -> None:
    engine = SipEngine(DatagramContext(SipOptions(rate=10)))
    opened = [
        command
        for number in range(1, 101)
        for command in engine.handle(
            Datagram(number, Side.CLIENT, CLIENT, SERVER, invite(number, 4000 + 2 * number), 0.0)
        )
        if isinstance(command, OpenConversation)
    ]
    assert len(opened) == 20
    other = Endpoint("192.168.56.11", 5060)
    out = engine.handle(Datagram(101, Side.CLIENT, other, SERVER, invite(1, 4000, other.host), 0.0))
    assert isinstance(out[0], OpenConversation)


def test_what_waits_is_bounded() -> None:
    engine = SipEngine(DatagramContext(SipOptions(rate=10000)))
    waiting = 0
    for number in range(1, core.MOST_HELD_OF_CLIENT + 100):
        out = engine.handle(Datagram(number, Side.CLIENT, CLIENT, SERVER, invite(), 0.0))
        waiting += not any(isinstance(command, Release) for command in out)
    assert waiting == core.MOST_HELD_OF_CLIENT
    released = [c for c in engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 0.1)) if isinstance(c, Release)]
    assert len(released) == waiting
    assert all(command.edits for command in released)


def test_a_client_has_so_many_calls_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_OF_CLIENT", 128)
    engine = SipEngine(DatagramContext(SipOptions(rate=10000)))
    notes = []
    for number in range(1, calls.MOST_OF_CLIENT + 11):
        out = engine.handle(Datagram(number, Side.CLIENT, CLIENT, SERVER, invite(number), 0.0))
        notes += [command for command in out if isinstance(command, Note) and command.code == "sip.calls"]
        notes = [note for note in notes if not note.again]
        engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 0.0))
    assert len(engine.calls()) == calls.MOST_OF_CLIENT
    assert len(notes) == 1, "said once, not again and again"
    engine.handle(Tick(calls.SETUP + 1))
    assert engine.calls() == []


def test_thousands_of_calls_leave_nothing_behind() -> None:
    engine = SipEngine(DatagramContext(SipOptions(rate=10000)))
    now, open_now = 0.0, set[int]()
    for number in range(3000):
        now += 0.01
        client = Endpoint(f"192.168.{number // 250}.{number % 250 + 1}", 5060)
        packets = ((Side.CLIENT, invite(number, 4000, client.host)), (Side.SERVER, answer(number)))
        for side, data in packets:
            for command in engine.handle(Datagram(number, side, client, SERVER, data, now)):
                if isinstance(command, OpenConversation):
                    open_now.add(command.ref)
                    engine.handle(Opened(command.ref, Endpoint("203.0.113.1", 1024 + 2 * number), now))
    assert len(engine.calls()) == len(open_now) == 3000
    refreshed = set[int]()
    while (due := engine.deadline()) is not None:
        for command in engine.handle(Tick(due)):
            if isinstance(command, UpdateConversation):
                refreshed.add(command.ref)
            if isinstance(command, ClosePinhole):
                open_now.remove(command.ref)
    assert engine.calls() == []
    assert open_now == set()
    assert len(refreshed) == 3000


def test_a_conversation_that_the_driver_lost() -> None:
    """It is asked for again with the next message, and not at once."""
    engine = SipEngine()
    engine.handle(Datagram(1, Side.CLIENT, CLIENT, SERVER, invite(), 0.0))
    engine.handle(Opened(1, Endpoint("203.0.113.1", 40002), 0.0))
    engine.handle(Refused(1, "lease", 1.0))
    assert engine.handle(Datagram(2, Side.CLIENT, CLIENT, SERVER, invite(), 2.0)) == [untouched(2, invite())]
    engine.handle(Tick(11.0))
    out = engine.handle(Datagram(3, Side.CLIENT, CLIENT, SERVER, invite(), 11.0))
    assert isinstance(out[0], OpenConversation)


def test_an_answer_for_what_nobody_wants_any_more() -> None:
    assert SipEngine().handle(Opened(7, Endpoint("203.0.113.1", 40002), 0.0)) == [ClosePinhole(7)]
    assert SipEngine().handle(Refused(7, "quota", 0.0)) == []


FIXED = (CLIENT, Endpoint("203.0.113.1", 41000))


def subscribe(number: int) -> tuple[bytes, bytes]:
    lines = (
        f"Via: SIP/2.0/UDP phone.invalid;branch=z9hG4bK{number}\r\nFrom: <sip:alice@example.com>;tag=a\r\n"
        f"To: <sip:bob@example.com>\r\nCall-ID: subscription-{number}\r\nCSeq: 1 SUBSCRIBE\r\nContent-Length: 0\r\n\r\n"
    )
    return f"SUBSCRIBE sip:bob@example.com SIP/2.0\r\n{lines}".encode(), f"SIP/2.0 200 OK\r\n{lines}".encode()


@pytest.mark.parametrize("fixed", [None, FIXED], ids=["open", "fixed"])
def test_a_client_that_subscribes_without_end_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch, fixed: tuple[Endpoint, Endpoint] | None
) -> None:
    monkeypatch.setattr(bindings, "MOST_HELD", 100)
    engine = SipEngine(DatagramContext(SipOptions(rate=10000), fixed=fixed))
    for number in range(300):
        for side, data in zip((Side.CLIENT, Side.SERVER), subscribe(number), strict=True):
            engine.handle(Datagram(number, side, CLIENT, SERVER, data, 0.0))
    assert engine.counts()["registered"] <= 100


def test_what_is_fixed_keeps_no_list_of_who_wants_it() -> None:
    """It never ends, so no claim on it ever would."""
    sockets = InsideSockets()
    fixed = sockets.fix(*FIXED)
    for number in range(10):
        sockets.claim(fixed, ("binding", (str(number),)), 0.0, 60.0, (SERVER.host,))
    assert fixed.claims == {}
    assert sockets.out == []
    assert sockets.deadline() == math.inf


def test_a_fixed_socket_is_never_opened_and_never_closed() -> None:
    """All that a call opens are its media, over and over, and nothing is left to be done when it has ended."""
    engine = SipEngine(DatagramContext(fixed=FIXED))
    now, opened, shut = 0.0, 0, 0
    for number in range(1, 6):
        done = b"SIP/2.0 200 OK\r\n" + bye(number).partition(b"\r\n")[2]
        for mine, data in ((True, invite(number)), (False, answer(number)), (False, bye(number)), (True, done)):
            side = Side.CLIENT if mine else Side.SERVER
            now += 1
            for command in engine.handle(Datagram(number, side, CLIENT, SERVER, data, now)):
                if isinstance(command, OpenConversation):
                    opened += 1
                    assert command.reason == "sip.rtp"
                    engine.handle(Opened(command.ref, Endpoint("203.0.113.1", 42000 + 2 * number), now))
                shut += isinstance(command, ClosePinhole)
    assert (opened, shut) == (5, 5)
    while (due := engine.deadline()) is not None:
        assert engine.handle(Tick(due)) == []
