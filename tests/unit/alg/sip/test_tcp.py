"""alg.sip.tcp: SIP over one TCP connection, however its bytes are cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import (
    Activity,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    FindSocket,
    FlowContext,
    Note,
    OpenConversation,
    Opened,
    Received,
    Refused,
    Revoke,
    Side,
    Tick,
    UpdateConversation,
    apply_edits,
)
from alg.sip.ladder import SipRung
from alg.sip.tcp import SipModule

C, S = Side.CLIENT, Side.SERVER
CLIENT, SERVER = Endpoint("192.168.56.10", 51000), Endpoint("203.0.113.5", 5060)
PUBLIC = Endpoint("203.0.113.1", 33000)
MEDIA = Endpoint("203.0.113.1", 40002)


def message(start: str, *headers: str, cseq: str = "1 INVITE", body: str = "") -> bytes:
    kind = ["Content-Type: application/sdp"] if body else []
    swapped = cseq.startswith("7")  # the far side's own request
    near, far = "<sip:alice@example.com>;tag=a", "<sip:bob@example.com>;tag=b"
    lines = [
        start,
        f"From: {far if swapped else near}",
        f"To: {near if swapped else near if 'REGISTER' in cseq else far}",
        "Call-ID: call-1",
        f"CSeq: {cseq}",
        *headers,
        *kind,
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def sdp(host: str, port: int) -> str:
    return f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"


VIA = "Via: SIP/2.0/TCP 192.168.56.10:5060;branch=z9hG4bK1;rport"
VIA_OUT = "Via: SIP/2.0/TCP 203.0.113.1:33000;branch=z9hG4bK1;rport"
VIA_BACK = VIA_OUT + "=33000;received=203.0.113.1"
VIA_HOME = VIA + "=51000;received=192.168.56.10"
CONTACT = "Contact: <sip:alice@192.168.56.10:5060;transport=tcp>"
CONTACT_OUT = "Contact: <sip:alice@203.0.113.1:33000;transport=tcp>"
INVITE = "INVITE sip:bob@example.com SIP/2.0"
OFFER = message(INVITE, VIA, CONTACT, body=sdp("192.168.56.10", 4000))
OFFER_OUT = message(INVITE, VIA_OUT, CONTACT_OUT, body=sdp("203.0.113.1", 40002))


def module(public: Endpoint | None = PUBLIC) -> SipModule:
    return SipModule(FlowContext(CLIENT, SERVER, public=public))


def sent(commands: Sequence[Command], to: Side) -> bytes:
    return b"".join(
        apply_edits(command.data, command.edits)
        for command in commands
        if isinstance(command, Deliver) and command.to is to
    )


def others(commands: Sequence[Command]) -> list[Command]:
    return [command for command in commands if not isinstance(command, Deliver)]


def in_pieces(cut: list[int], data: bytes) -> list[bytes]:
    places = [0, *sorted({place % len(data) for place in cut}), len(data)]
    return [piece for piece in (data[a:b] for a, b in pairwise(places)) if piece]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=12))
def test_a_call_however_it_is_cut(cut: list[int]) -> None:
    """Keep-alives, several messages in a segment, a message over several: always the same comes out."""
    flow = module()
    out: list[Command] = []
    ringing = message("SIP/2.0 180 Ringing", VIA_BACK)
    answer = message("SIP/2.0 200 OK", VIA_BACK, body=sdp("203.0.113.77", 30000))
    ack = message("ACK sip:bob@203.0.113.77 SIP/2.0", VIA, cseq="1 ACK")
    for piece in in_pieces(cut, b"\r\n\r\n" + OFFER + b"\r\n" + ack):
        out += flow.handle(Received(C, piece, 0.0))
    assert others(out) == [OpenConversation(1, Endpoint("192.168.56.10", 4000), 4001, (), 300.0, "sip.rtp")]
    assert sent(out, S) == b"\r\n\r\n", "what is behind a message that waits waits too"
    out = list(flow.handle(Opened(1, MEDIA, 0.1)))
    assert sent(out, S) == OFFER_OUT + b"\r\n" + ack.replace(VIA.encode(), VIA_OUT.encode())
    out = []
    for piece in in_pieces(cut, b"\r\n" + ringing + answer):
        out += flow.handle(Received(S, piece, 0.2))
    home = (ringing + answer).replace(VIA_BACK.encode(), VIA_HOME.encode())
    assert sent(out, C) == b"\r\n" + home
    assert others(out) == [UpdateConversation(1, ("203.0.113.77",), None)]
    bye = message("BYE sip:alice@203.0.113.1:33000;transport=tcp SIP/2.0", cseq="7 BYE").replace(
        b"From:", b"Via: SIP/2.0/TCP 203.0.113.5;branch=z9hG4bK2\r\nFrom:"
    )
    out = []
    for piece in in_pieces(cut, bye):
        out += flow.handle(Received(S, piece, 0.3))
    assert sent(out, C).startswith(b"BYE sip:alice@192.168.56.10:5060;transport=tcp SIP/2.0\r\n")
    done = message("SIP/2.0 200 OK", "Via: SIP/2.0/TCP 203.0.113.5;branch=z9hG4bK2", cseq="7 BYE")
    out = []
    for piece in in_pieces(cut, done):
        out += flow.handle(Received(C, piece, 0.4))
    assert others(out) == [ClosePinhole(1)]
    assert sent(out, S) == done


def test_register_needs_no_pinhole() -> None:
    """The contact that is advertised is the connection itself; nothing is opened for it."""
    flow = module()
    register = message("REGISTER sip:example.com SIP/2.0", VIA, CONTACT, cseq="1 REGISTER")
    out = flow.handle(Received(C, register, 0.0))
    assert others(out) == []
    assert sent(out, S) == register.replace(VIA.encode(), VIA_OUT.encode()).replace(
        CONTACT.encode(), CONTACT_OUT.encode()
    )
    answer = message("SIP/2.0 200 OK", VIA_BACK, CONTACT_OUT + ";expires=60", cseq="1 REGISTER")
    out = flow.handle(Received(S, answer, 0.1))
    assert others(out) == []
    assert sent(out, C) == answer.replace(VIA_BACK.encode(), VIA_HOME.encode()).replace(
        CONTACT_OUT.encode(), CONTACT.encode()
    )


def test_without_the_connections_own_address_signalling_stays() -> None:
    out = module(public=None).handle(Received(C, message(INVITE, VIA, CONTACT), 0.0))
    assert sent(out, S) == message(INVITE, VIA, CONTACT)


POST = (
    b"POST / HTTP/1.1\r\nHost: 203.0.113.5:5060\r\nContent-Length: 3000\r\n\r\n"
    + b"x" * 1500
    + message("REGISTER sip:example.com SIP/2.0", VIA, CONTACT, cseq="1 REGISTER")
)


@pytest.mark.parametrize(
    "first",
    [
        POST,
        b"\r\n" + POST,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /REGISTER sip:example.com SIP/3 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"A" * 9000,
        b"\x00\x03\x00\x08",
    ],
)
def test_what_does_not_begin_as_sip_never_counts(first: bytes) -> None:
    """NAT slipstreaming: whatever follows, also where it begins a segment, it is relayed unread."""
    flow = module()
    out = list(flow.handle(Received(C, first, 0.0)))
    assert sent(out, S) == first
    assert Revoke("sip.not-sip") in out
    assert out[-1] == Bypass()
    assert not [command for command in out if isinstance(command, OpenConversation)]


def test_sip_that_stops_being_sip_never_counts_again() -> None:
    flow = module()
    options = message("OPTIONS sip:example.com SIP/2.0", VIA, cseq="1 OPTIONS")
    out = flow.handle(Received(C, options + b"<html>\r\n" + OFFER, 0.0))
    assert sent(out, S) == options.replace(VIA.encode(), VIA_OUT.encode()) + b"<html>\r\n" + OFFER
    note, *rest = others(out)
    assert isinstance(note, Note)
    assert (note.code, rest) == ("sip.framing", [Revoke("sip.framing"), Bypass()])


def test_two_lengths_that_agree_tell_the_end_and_the_next_message_is_read() -> None:
    flow = module()
    twice = message("OPTIONS sip:example.com SIP/2.0", VIA, "l: 0", cseq="1 OPTIONS")
    options = message("OPTIONS sip:example.com SIP/2.0", VIA, cseq="2 OPTIONS")
    out = flow.handle(Received(C, twice + options, 0.0))
    assert sent(out, S) == twice + options.replace(VIA.encode(), VIA_OUT.encode())
    (note,) = others(out)
    assert isinstance(note, Note)
    assert note.code == "sip.unread"


def test_a_server_that_does_not_speak_sip() -> None:
    flow = module()
    flow.handle(Received(C, message("OPTIONS sip:example.com SIP/2.0", VIA, cseq="1 OPTIONS"), 0.0))
    out = flow.handle(Received(S, b"HTTP/1.1 200 OK\r\n\r\n", 0.0))
    assert Revoke("sip.not-sip") in out
    assert sent(out, C) == b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    "lengths",
    ["Content-Length: 4294967328", "Content-Length: -1", "Content-Length: 5\r\nl: 6", "Content-Length: 1e1", "X: y"],
)
def test_an_end_that_cannot_be_told(lengths: str) -> None:
    flow = module()
    data = OFFER.replace(b"Content-Length: 95", lengths.encode())
    assert data != OFFER
    out = flow.handle(Received(C, data, 0.0))
    assert Revoke("sip.framing") in out or Revoke("sip.not-sip") in out
    assert sent(out, S) == data


def test_ports_of_tcp_and_of_udp_are_not_the_same() -> None:
    """The connection's own ports, inside and outside, may be those of a stream of media too."""
    flow = module()
    offer = message(INVITE, VIA, CONTACT, body=sdp("192.168.56.10", CLIENT.port))
    (opening,) = others(flow.handle(Received(C, offer, 0.0)))
    assert isinstance(opening, OpenConversation)
    assert sent(flow.handle(Opened(opening.ref, PUBLIC, 0.1)), S) == message(
        INVITE, VIA_OUT, CONTACT_OUT, body=sdp(PUBLIC.host, PUBLIC.port)
    )
    answer = message("SIP/2.0 486 Busy Here", VIA_BACK)
    assert sent(flow.handle(Received(S, answer, 0.2)), C) == answer.replace(VIA_BACK.encode(), VIA_HOME.encode())
    flow.handle(Tick(60.0))
    assert sent(flow.handle(Received(S, answer, 60.0)), C) == answer.replace(VIA_BACK.encode(), VIA_HOME.encode())


def test_a_malformed_message_that_has_an_end() -> None:
    """It goes on as it came, and the next one is read."""
    flow = module()
    bad = message("INVITE <sip:bob@example.com> SIP/2.0", VIA, CONTACT, body=sdp("192.168.56.10", 4000))
    options = message("OPTIONS sip:example.com SIP/2.0", VIA, cseq="1 OPTIONS")
    out = flow.handle(Received(C, bad + options, 0.0))
    (note,) = others(out)
    assert isinstance(note, Note)
    assert note.code == "sip.unread"
    assert sent(out, S) == bad + options.replace(VIA.encode(), VIA_OUT.encode())


def test_a_message_of_nine_kilobytes() -> None:
    flow = module()
    big = message(INVITE, VIA, "X-Long: " + "y" * 9000, body=sdp("192.168.56.10", 4000))
    for at in range(0, len(big), 1460):
        out = flow.handle(Received(C, big[at : at + 1460], 0.0))
    assert isinstance(out[0], OpenConversation)
    assert len(sent(flow.handle(Opened(1, MEDIA, 0.0)), S)) > 9000


def test_a_message_that_does_not_go_on() -> None:
    flow = module()
    flow.handle(Received(C, OFFER[:200], 5.0))
    assert flow.deadline() == 15.0
    out = flow.handle(Tick(15.0))
    assert isinstance(out[0], Note)
    assert out[0].code == "sip.stalled"
    assert list(out[1:]) == [Revoke("sip.stalled"), Deliver(S, OFFER[:200]), Bypass()]


def test_refused_and_unanswered() -> None:
    flow = module()
    flow.handle(Received(C, OFFER, 0.0))
    out = flow.handle(Refused(1, "quota", 0.1))
    assert sent(out, S) == message(INVITE, VIA_OUT, CONTACT_OUT, body=sdp("192.168.56.10", 4000))
    flow = module()
    flow.handle(Received(C, OFFER, 0.0))
    assert flow.deadline() == 2.0
    assert sent(flow.handle(Tick(2.0)), S) == OFFER


def test_a_message_says_which_call_it_is_of() -> None:
    """Also one that is delivered because nothing is read any more; what is between messages is of none."""
    flow = module()
    out = list(flow.handle(Received(C, b"\r\n" + OFFER, 0.0)))
    out += flow.handle(Opened(1, MEDIA, 0.1))
    out += flow.handle(Received(S, message("SIP/2.0 180 Ringing", VIA_BACK), 0.2))
    assert [command.rung for command in out if isinstance(command, Deliver)] == [
        None,
        SipRung(b"call-1", first=True),
        SipRung(b"call-1", first=False),
    ]
    flow = module()
    flow.handle(Received(C, OFFER, 0.0))
    out = list(flow.handle(Received(C, b"nonsense\r\n", 0.1)))
    assert [command.rung for command in out if isinstance(command, Deliver)] == [SipRung(b"call-1", first=True), None]


def test_a_silent_call_ends_and_its_connection_stays() -> None:
    flow = module()
    flow.handle(Received(C, OFFER, 0.0))
    flow.handle(Opened(1, MEDIA, 0.1))
    flow.handle(Received(S, message("SIP/2.0 200 OK", VIA_BACK, body=sdp("203.0.113.77", 30000)), 0.2))
    flow.handle(Activity(1, 50, 50, 30.0))
    flow.handle(Activity(1, 60, 50, 60.0))
    flow.handle(Activity(1, 60, 50, 90.0))
    flow.handle(Tick(359.0))
    assert len(flow.calls()) == 1
    assert list(flow.handle(Tick(360.5))) == [ClosePinhole(1)]
    assert flow.calls() == []


def test_the_end_of_the_stream_follows_what_waits() -> None:
    flow = module()
    flow.handle(Received(C, OFFER + b"half", 0.0))
    assert flow.handle(Closed(C, 0.0)) == []
    out = flow.handle(Opened(1, MEDIA, 0.1))
    assert sent(out, S) == OFFER_OUT + b"half"
    assert out[-1] == CloseWrite(S)


def test_a_published_server_is_relayed_unread() -> None:
    flow = SipModule(FlowContext(Endpoint("198.51.100.7", 4444), Endpoint("192.168.56.5", 5060), inside=Side.SERVER))
    out = flow.handle(Received(C, OFFER, 0.0))
    assert out == [Deliver(S, OFFER), Bypass()]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Side)), st.binary(max_size=60)), max_size=8), st.booleans())
def test_no_byte_is_lost(pieces: list[tuple[Side, bytes]], begin: bool) -> None:
    flow = module()
    came = {C: OFFER if begin else b"", S: b""}
    out = list(flow.handle(Received(C, OFFER, 0.0))) if begin else []
    for side, data in pieces:
        if data and Bypass() not in out:
            came[side] += data
            out += flow.handle(Received(side, data, 0.0))
    if Bypass() not in out:
        out += [command for side in Side for command in flow.handle(Closed(side, 0.0))]
        out += flow.handle(Tick(100.0))
    for side in Side:
        assert sent(out, side.other) == came[side]


def test_a_stream_that_loses_its_framing_keeps_the_media_of_its_call() -> None:
    """It is relayed unread, byte for byte; the call ends when its media are silent, and the module with it."""
    flow = module()
    flow.handle(Received(C, OFFER, 0.0))
    flow.handle(Opened(1, MEDIA, 0.1))
    flow.handle(Received(S, message("SIP/2.0 200 OK", VIA_BACK, body=sdp("203.0.113.77", 30000)), 0.2))
    out = list(flow.handle(Received(S, b"garbage\r\n" + OFFER, 1.0)))
    assert sent(out, C) == b"garbage\r\n" + OFFER
    assert [type(command) for command in others(out)] == [Note, Revoke, Bypass]
    assert [(row.state, row.reason, row.until) for row in flow.peers(1.0)] == [("revoked", "sip.framing", None)]
    assert flow.lives_on()
    flow.handle(Activity(1, 50, 50, 30.0))
    flow.handle(Activity(1, 60, 50, 60.0))
    assert UpdateConversation in [type(command) for command in flow.handle(Tick(160.0))], "it is refreshed"
    assert flow.lives_on()
    assert ClosePinhole(1) in flow.handle(Tick(361.0))
    assert not flow.lives_on()


@pytest.mark.parametrize("size", [48000, 64000, 100_000, 300_000])
@pytest.mark.parametrize("piece", [1460, 16384])
def test_a_message_of_any_length_arrives_whole(size: int, piece: int) -> None:
    """What is longer than 64 KiB passes unread, and the next message is read again."""
    flow = module()
    big = message("MESSAGE sip:bob@example.com SIP/2.0", VIA, cseq="1 MESSAGE", body="y" * size)
    options = message("OPTIONS sip:example.com SIP/2.0", VIA, cseq="2 OPTIONS")
    data, out = big + b"\r\n" + options, list[Command]()
    for at in range(0, len(data), piece):
        out += flow.handle(Received(C, data[at : at + piece], 0.0))
    edited = size < 65000
    assert sent(out, S) == (big.replace(VIA.encode(), VIA_OUT.encode()) if edited else big) + b"\r\n" + options.replace(
        VIA.encode(), VIA_OUT.encode()
    )
    assert [command.code for command in others(out) if isinstance(command, Note)] == ([] if edited else ["sip.unread"])


UDP_CONTACT = "Contact: <sip:alice@192.168.56.10:5060;ob>"
UDP_PUBLIC = Endpoint("203.0.113.1", 40000)


def test_a_request_that_is_too_long_for_udp_names_the_udp_binding() -> None:
    """RFC 3261, 18.1.1: it goes over TCP for its length alone, and what follows comes over UDP."""
    flow = module()
    offer = message(INVITE, VIA, UDP_CONTACT, body=sdp("192.168.56.10", 4000))
    find, opening = flow.handle(Received(C, offer, 0.0))
    assert find == FindSocket(1, Endpoint("192.168.56.10", 5060))
    assert isinstance(opening, OpenConversation)
    assert flow.handle(Opened(opening.ref, MEDIA, 0.1)) == []
    out = flow.handle(Opened(1, UDP_PUBLIC, 0.1))
    contact_out = "Contact: <sip:alice@203.0.113.1:40000;ob>"
    assert sent(out, S) == message(INVITE, VIA_OUT, contact_out, body=sdp("203.0.113.1", 40002))
    ok = message("SIP/2.0 200 OK", VIA_BACK, body=sdp("203.0.113.77", 30000))
    assert sent(flow.handle(Received(S, ok, 0.2)), C) == ok.replace(VIA_BACK.encode(), VIA_HOME.encode())
    bye = message(
        "BYE sip:alice@203.0.113.1:40000;ob SIP/2.0", "Via: SIP/2.0/TCP 203.0.113.5;branch=z9hG4bK2", cseq="7 BYE"
    )
    assert sent(flow.handle(Received(S, bye, 0.3)), C).startswith(b"BYE sip:alice@192.168.56.10:5060;ob SIP/2.0\r\n")
    options = message("OPTIONS sip:example.com SIP/2.0", VIA, UDP_CONTACT, cseq="2 OPTIONS")
    assert contact_out.encode() in sent(flow.handle(Received(C, options, 1.0)), S), "it is remembered"
    assert FindSocket(3, Endpoint("192.168.56.10", 5060)) in flow.handle(Received(C, options, 61.0))


def test_without_a_udp_binding_the_connection_is_the_contact() -> None:
    flow = module()
    options = message("OPTIONS sip:example.com SIP/2.0", VIA, UDP_CONTACT, cseq="2 OPTIONS")
    assert others(flow.handle(Received(C, options, 0.0))) == [FindSocket(1, Endpoint("192.168.56.10", 5060))]
    out = flow.handle(Refused(1, "none", 0.1))
    assert b"Contact: <sip:alice@203.0.113.1:33000;ob>" in sent(out, S)
    assert others(out) == []
    assert b"Contact: <sip:alice@203.0.113.1:33000;ob>" in sent(flow.handle(Received(C, options, 1.0)), S)


def test_calls_outlive_their_connection() -> None:
    flow = module()
    assert not flow.lives_on()
    flow.handle(Received(C, OFFER, 0.0))
    flow.handle(Opened(1, MEDIA, 0.1))
    assert not flow.lives_on(), "its answer would come over this connection"
    flow.handle(Received(S, message("SIP/2.0 200 OK", VIA_BACK, body=sdp("203.0.113.77", 30000)), 0.2))
    flow.handle(Closed(C, 1.0))
    flow.handle(Closed(S, 1.0))
    assert flow.lives_on()
    flow.handle(Activity(1, 50, 50, 30.0))
    assert [type(command) for command in flow.handle(Tick(160.0))] == [UpdateConversation]
    assert list(flow.handle(Tick(330.0))) == [ClosePinhole(1)]
    assert not flow.lives_on()
