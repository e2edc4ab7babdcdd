"""Headers that come again, at other places; lines that end otherwise; texts that are too long to be remembered."""

from __future__ import annotations

import pytest

from alg.sip.message import parse, uri_host
from alg.text.header import Malformed, Remembered

HEADERS = [
    b"Via: SIP/2.0/UDP 192.168.56.10:5070;branch=z9hG4bK1",
    b'From: "A, <b>" <sip:a@example.com>;tag=f1',
    b"To: <sip:b@example.com>;tag=t1",
    b"Call-ID: 1@192.168.56.10",
    b"CSeq: 1 OPTIONS",
    b"Contact: <sip:a@192.168.56.10:5070;ob>, <sip:a@192.168.56.11>",
    b"Max-Forwards: 70",
    b"Content-Length: 0",
]
START = b"OPTIONS sip:b@example.com SIP/2.0"


def message(*headers: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in (START, *headers, b""))


@pytest.mark.parametrize("turned", range(len(HEADERS)))
def test_spans_are_those_of_this_message(turned: int) -> None:
    data = message(*HEADERS[turned:], b"Subject: " + b"x" * turned, *HEADERS[:turned])
    found = parse(data)
    assert [found.text(addr.uri) for addr in found.addrs("contact")] == [
        b"sip:a@192.168.56.10:5070;ob",
        b"sip:a@192.168.56.11",
    ]
    assert found.text(found.addrs("from")[0].params) == b";tag=f1"
    assert (found.tag("from"), found.tag("to"), found.cseq) == (b"f1", b"t1", 1)
    place = uri_host(data, found.addrs("contact")[0].uri)
    assert place is not None
    assert data[place.start : place.end] == b"192.168.56.10:5070"


@pytest.mark.parametrize("fold", [b" ", b"\t", b"\r\n ", b" \r\n\t "])
def test_a_fold_before_a_value_is_no_part_of_it(fold: bytes) -> None:
    data = message(*(line.replace(b": ", b" :" + fold, 1) for line in HEADERS))
    found = parse(data)
    assert found.text(found.headers["cseq"][0]) == found.first["cseq"] == b"1 OPTIONS"
    assert found.tag("from") == b"f1"


@pytest.mark.parametrize("odd", [b"X: a\rb", b"X: a\r", b"X: a\nY: b\rZ: c", b"\r", b"Via: a\rb"])
@pytest.mark.parametrize("at", [0, 4, len(HEADERS)])
def test_a_cr_alone_ends_a_line_for_some(odd: bytes, at: int) -> None:
    data = message(*HEADERS[:at], odd, *HEADERS[at:])
    with pytest.raises(Malformed) as wrong:
        parse(data)
    assert data[wrong.value.at : wrong.value.at + 2].startswith(b"\r")
    assert not data[wrong.value.at : wrong.value.at + 2].endswith(b"\n")


@pytest.mark.parametrize("odd", [b"Q: a\nb", b"Q: a\nY: b", b"Q", b": a", b"Q Y: a", b"\xff\xfe: \x00", b"Via", b"Q:"])
@pytest.mark.parametrize("at", [0, 4, len(HEADERS)])
def test_what_else_stands_there_matters_to_nobody(odd: bytes, at: int) -> None:
    data = message(*HEADERS[:at], odd, *HEADERS[at:])
    assert parse(data).first == parse(message(*HEADERS)).first


@pytest.mark.parametrize("mixed", [b"\n", b"\r\n"])
def test_lines_may_end_in_lf_alone(mixed: bytes) -> None:
    data = message(*HEADERS).replace(b"\r\n", b"\n", 3).replace(b"\r\n", mixed)
    found = parse(data + b"\0")
    assert found.first == parse(message(*HEADERS)).first
    assert found.text(found.addrs("from")[0].params) == b";tag=f1"
    assert (found.body, found.end) == (len(data), len(data))


@pytest.mark.parametrize(("length", "times"), [(256, 1), (257, 2)])
def test_only_what_is_short_is_remembered(length: int, times: int) -> None:
    read: list[int] = []

    def ask(text: bytes) -> int:
        read.append(len(text))
        return len(text)

    lengths = Remembered(ask)
    assert lengths.of(b"x" * length) == lengths.of(b"x" * length) == length
    assert len(read) == times
