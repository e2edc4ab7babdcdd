"""What holds for every message: only edits change it, no input raises, what went out comes back as it was."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import Edit, OpenConversation, Opened, Refused, Side, Tick, apply_edits
from alg.datagrams import Datagram, Release
from alg.sip.message import parse
from alg.sip.sdp import find_sdp
from alg.sip.udp import SipEngine
from alg.text.header import Malformed
from alg.text.sdp import read_sdp
from tests.unit.alg.sip.rfc_messages import paths

CLIENT = Endpoint("192.168.56.10", 5060)
SERVER = Endpoint("203.0.113.5", 5060)
PUBLIC = "203.0.113.1"
REASONS = {
    "sip.via", "sip.contact", "sip.record-route", "sip.path", "sip.received", "sip.rport", "sip.request-uri",
    "sip.route", "sip.content-length", "sdp.origin", "sdp.connection", "sdp.port", "sdp.rtcp", "sdp.hairpin",
}  # fmt: skip


class Driver:
    """An engine whose conversations are all opened at once."""

    def __init__(self) -> None:
        self.engine = SipEngine()
        self._packet = 0
        self._port = 40000
        self._now = 0.0

    def send(self, side: Side, data: bytes, client: Endpoint = CLIENT) -> tuple[Edit, ...]:
        self._packet += 1
        self._now += 0.1
        released = []
        commands = list(self.engine.handle(Datagram(self._packet, side, client, SERVER, data, self._now)))
        while commands:
            command = commands.pop(0)
            if isinstance(command, OpenConversation):
                self._port += 2
                commands += self.engine.handle(Opened(command.ref, Endpoint(PUBLIC, self._port), self._now))
            elif isinstance(command, Release):
                assert command.packet == self._packet
                released.append(command.edits)
        assert len(released) == 1, "each datagram is released once"
        return released[0]


def check_edits(data: bytes, edits: Sequence[Edit]) -> None:
    """The edits are numbers, addresses and nothing else, and fit the data; Content-Length follows."""
    out = apply_edits(data, edits)
    for edit in edits:
        assert edit.reason in REASONS
        assert re.fullmatch(rb"[0-9A-Fa-f.:\[\]\s]*", data[edit.start : edit.end].replace(b" ", b""))
        assert re.fullmatch(rb"[0-9A-Fa-f.:\[\] ]+", edit.replacement) or edit.reason.startswith("sip.")
    if edits:
        before, after = parse(data), parse(out)
        assert len(data) - before.end == len(out) - after.end
        for same in ("method", "status", "call_id", "cseq"):
            assert getattr(before, same) == getattr(after, same)
        for name in ("from", "to"):
            assert before.text(before.headers[name][0]) == after.text(after.headers[name][0])


token = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.!%*_+`'~", min_size=1, max_size=8)
own = st.sampled_from(["192.168.56.10", "192.168.56.10:5060", "192.168.56.10:5070"])
host = st.one_of(own, st.sampled_from(["example.com", "10.0.0.1", "203.0.113.9:5061", "[2001:db8::1]:5062"]))
fold = st.sampled_from(["", " ", "\t", " \r\n  ", "\r\n\t"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A well-formed message with whatever the grammar allows around what matters."""
    method = draw(st.sampled_from(["INVITE", "REGISTER", "OPTIONS", "UPDATE", "MESSAGE", "SUBSCRIBE", "NEWMETHOD"]))
    response = draw(st.sampled_from(["", "", "180", "200", "404"]))
    start = f"SIP/2.0 {response} Reason" if response else f"{method} sip:{draw(token)}@{draw(host)} SIP/2.0"
    quoted = draw(st.sampled_from(['"192.168.56.10, <sip:x@192.168.56.10>" ', '"\\"" ', "Name ", ""]))
    names = {name: draw(st.sampled_from(forms)) for name, forms in FORMS.items()}
    gap = draw(fold)
    rport = draw(st.sampled_from(["", ";rport"]))
    headers = [
        f"{names['via']}:{gap}SIP{draw(fold)}/2.0/UDP {draw(host)}{rport};branch=z9hG4bK1",
        f"{names['from']}: {quoted}<sip:alice@{draw(host)}>;tag={draw(token)}",
        f"{names['to']}: <sip:alice@{draw(host)}>",
        f"{names['call-id']}:{draw(fold)}{draw(token)}@192.168.56.10",
        f"CSeq: {draw(st.integers(0, 2**31 - 1))} {method}",
        *(
            f"{names['contact']} : {quoted}<sip:{draw(token)}@{draw(host)};x=192.168.56.10>;q=0.5"
            for _ in range(draw(st.integers(0, 3)))
        ),
        *draw(st.lists(st.builds("X-{}: {} 192.168.56.10".format, token, token), max_size=2)),
    ]
    body = ""
    if draw(st.booleans()):
        place = draw(st.sampled_from(["192.168.56.10", "0.0.0.0", "10.1.1.1"]))
        media = draw(
            st.lists(
                st.tuples(st.sampled_from(["audio", "video"]), st.sampled_from([0, 4000, 4003, 80, 65535])), max_size=3
            )
        )
        body = f"v=0\r\no=- 1 1 IN IP4 {place}\r\ns=192.168.56.10\r\nc=IN IP4 {place}\r\nt=0 0\r\n" + "".join(
            f"m={kind} {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n" for kind, port in media
        )
        headers.append(f"{names['content-type']}: application/sdp")
    headers.append(f"{names['content-length']}: {len(body)}")
    order = draw(st.permutations(headers))
    return "\r\n".join([start, *order, "", body]).encode()


FORMS = {
    "via": ["Via", "v", "VIA"],
    "from": ["From", "f"],
    "to": ["To", "t"],
    "call-id": ["Call-ID", "i"],
    "contact": ["Contact", "m"],
    "content-type": ["Content-Type", "c"],
    "content-length": ["Content-Length", "l"],
}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Side)), messages()), min_size=1, max_size=4))
def test_only_edits_change(talk: list[tuple[Side, bytes]]) -> None:
    driver = Driver()
    for side, data in talk:
        parse(data)
        check_edits(data, driver.send(side, data))


@settings(max_examples=200, deadline=None)
@given(messages())
def test_what_went_out_comes_back_as_it_was(data: bytes) -> None:
    """A registrar that echoes Via and Contact: the client reads its own bytes."""
    driver = Driver()
    request = (
        data if not data.startswith(b"SIP/2.0") else b"OPTIONS sip:x@example.com SIP/2.0" + data[data.index(b"\r\n") :]
    )
    if b" OPTIONS" not in request.split(b"\r\n")[0] + data and data.startswith(b"SIP/2.0"):
        request = re.sub(rb"(CSeq: [0-9]+) \S+", rb"\1 OPTIONS", request)
    edits = [edit for edit in driver.send(Side.CLIENT, request) if edit.reason in ("sip.via", "sip.contact")]
    out = apply_edits(request, edits)
    line = out.index(b"\r\n")
    answer = b"SIP/2.0 200 OK" + out[line:]
    wanted = b"SIP/2.0 200 OK" + request[request.index(b"\r\n") :]
    if len({request[edit.start : edit.end] for edit in edits if edit.reason == "sip.contact"}) > 1:
        return  # two spellings of one socket: the latest comes back
    back = apply_edits(answer, driver.send(Side.SERVER, answer))
    assert _signalling(back) == _signalling(wanted)


def _signalling(data: bytes) -> bytes:
    """Without the body and its length: a response may carry a description of the far side's only."""
    return re.sub(rb"(?im)^(l|content-length):.*$", b"", data.split(b"\r\n\r\n", 1)[0])


@settings(max_examples=200, deadline=None)
@given(messages(), st.data())
def test_a_damaged_message_never_raises(data: bytes, more: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(more.draw(st.integers(1, 6))):
        at = more.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + more.draw(st.integers(0, 3))] = more.draw(st.binary(max_size=3))
    driver = Driver()
    for side in Side:
        apply_edits(bytes(damaged), driver.send(side, bytes(damaged)))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(list(Side)))
def test_any_bytes(data: bytes, side: Side) -> None:
    start = b"INVITE sip:a@192.168.56.10 SIP/2.0\r\n"
    for whole in (data, start + data, b"v=0\r\n" + data):
        assert apply_edits(whole, Driver().send(side, whole)) == whole or parse(whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(messages(), st.sampled_from(["opened", "refused", "tick"])), max_size=12), st.data())
def test_each_datagram_is_released_once(happens: list[bytes | str], more: st.DataObject) -> None:
    """Whatever the driver answers, and when."""
    engine, sent, released, now = SipEngine(), 0, list[int](), 0.0
    for what in [*happens, "end"]:
        now += 0.7
        match what:
            case bytes():
                sent += 1
                side = more.draw(st.sampled_from(list(Side)))
                commands = engine.handle(Datagram(sent, side, CLIENT, SERVER, what, now))
            case "opened":
                ref = more.draw(st.integers(1, 6))
                commands = engine.handle(Opened(ref, Endpoint(PUBLIC, 40000 + 2 * ref), now))
            case "refused":
                commands = engine.handle(Refused(more.draw(st.integers(1, 6)), "quota", now))
            case _:
                now += 3.0 if what == "end" else 0.0
                commands = engine.handle(Tick(now))
        released += [command.packet for command in commands if isinstance(command, Release)]
    assert sorted(released) == list(range(1, sent + 1))


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_the_rfcs_messages_only_change_by_edits(path: object) -> None:
    """As if sent by each address that the message names, and as if received."""
    assert hasattr(path, "read_bytes")
    data: bytes = path.read_bytes()
    named = set(re.findall(rb"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b", data))
    for text in named | {b"192.0.2.1"}:
        try:
            client = Endpoint.of(text.decode(), 5060)
        except ValueError:
            continue
        driver = Driver()
        for side in (Side.CLIENT, Side.SERVER):
            check_edits(data, driver.send(side, data, client))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_description(data: bytes) -> None:
    text = b"v=0\r\no=- 1 1 IN IP4 192.168.56.10\r\n" + data
    try:
        found = read_sdp(text, 0, len(text))
    except Malformed:
        return
    for place in found.connections:
        assert text[place.start : place.end].decode("latin-1") == place.host


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"--b", b"\r\n", b"--", b"Content-Type: application/sdp", b"v=0", b"x", b":"]), max_size=20
    )
)
def test_any_multipart(pieces: list[bytes]) -> None:
    body = b"--b" + b"".join(pieces)
    data = (
        b"INVITE sip:x@example.com SIP/2.0\r\nVia: SIP/2.0/UDP x\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\n"
        b"Call-ID: 1\r\nCSeq: 1 INVITE\r\nContent-Type: multipart/mixed;boundary=b\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )
    message = parse(data)
    try:
        span = find_sdp(message)
    except Malformed:
        return
    assert span is None or message.body < span[0] <= span[1] <= message.end


INVITE_LINES = [
    b"Via: SIP/2.0/UDP 192.168.56.10:5060;branch=z9hG4bK1",
    b"From: <sip:alice@example.com>;tag=a",
    b"To: <sip:bob@example.com>",
    b"Call-ID: c1",
    b"CSeq: 1 INVITE",
    b"Contact: <sip:alice@192.168.56.10>",
    b"Content-Type: application/sdp",
]
BODY = b"v=0\no=- 1 1 IN IP4 192.168.56.10\ns=-\nc=IN IP4 192.168.56.10\nt=0 0\nm=audio 4000 RTP/AVP 0\n"
KNOWN_NAMES = re.compile(
    rb"(?i)(via|v|from|f|to|t|call-id|i|cseq|contact|m|content-(length|type|encoding)|[lcex]|route|record-route|path|"
    rb"expires|session-expires|require)[ \t]*:"
)
noise = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b"Max-Forwards: x", b"Max-Forwards: 7", b"Date: today", b"Subject:", b"no colon", b": x", b"A B: c"]
    ),
).filter(lambda line: not re.search(rb"[\r\n]", line) and line[:1] not in b" \t" and not KNOWN_NAMES.match(line))
names = st.binary(max_size=20).filter(lambda text: not re.search(rb'[\r\n"<>,;\\]', text))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_not_ours_is_not_judged(more: st.DataObject) -> None:
    """Lines of others, names, line ends: whatever they are, the same is edited as without them."""
    lines = [line.replace(b": <", b": " + more.draw(names) + b"<") for line in INVITE_LINES]
    for line in more.draw(st.lists(noise, max_size=5)):
        lines.insert(more.draw(st.integers(0, len(lines))), line)
    ends = more.draw(st.lists(st.sampled_from([b"\r\n", b"\n"]), min_size=len(lines) + 2, max_size=len(lines) + 2))
    start, *head = [b"INVITE sip:bob@example.com SIP/2.0", *lines, b""]
    data = b"".join(line + end for line, end in zip([start, *head], ends, strict=True)) + BODY
    plain = b"\r\n".join([start, *INVITE_LINES, b"", b""]) + BODY
    found = apply_edits(data, Driver().send(Side.CLIENT, data))
    wanted = [edit[2:] for edit in Driver().send(Side.CLIENT, plain)]
    assert [edit[2:] for edit in Driver().send(Side.CLIENT, data)] == wanted
    assert len(wanted) == 5
    assert found.endswith(BODY.replace(b"192.168.56.10", b"203.0.113.1").replace(b"4000", b"40004"))
