"""RTSP: properties and limits. Dialogues are in tests/wire/rtsp, costs in tests/unit/alg/test_bounds.py."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.api import (
    Command,
    Event,
    FlowContext,
    OpenConversation,
    Opened,
    Refused,
    Side,
    UpdateConversation,
)
from alg.rtsp.message import conceal, read_head
from alg.rtsp.module import RtspModule
from alg.rtsp.options import RtspOptions
from alg.rtsp.requests import MOST_WAITING, OpenRequest, OpenRequests
from alg.rtsp.transport import read_transport
from alg.text.heads import MOST
from tests.unit.alg.streams import StreamDriver, is_the_same_when_cut, passes_every_byte

CLIENT, SERVER = Endpoint("192.168.56.10", 40000), Endpoint("203.0.113.5", 554)
CONTEXT = FlowContext(CLIENT, SERVER)
PORTS = st.integers(0, 66000)
numbers = st.one_of(
    st.builds("{}".format, PORTS), st.builds("{}-{}".format, PORTS, PORTS), st.sampled_from(["", "x", "5000-5001"])
)
specs = st.builds(
    "{}{};client_port={}{}".format,
    st.sampled_from(["RTP/AVP", "RTP/AVP/UDP", "rtp/avp/tcp", "x-real-rdt/udp", "RTP/SAVP"]),
    st.sampled_from([";unicast", ";multicast", "", ";interleaved=0-1", " ; unicast ", ';mode="PLAY,X"']),
    numbers,
    st.sampled_from(["", ";destination=192.168.56.10", ";source=203.0.113.66", ';dest_addr=":5000"/":5001"', ";x="]),
)
transports = st.lists(specs, min_size=1, max_size=3).map(",".join)


def setup(number: int, transport: str) -> bytes:
    return f"SETUP rtsp://a/{number} RTSP/1.0\r\nCSeq: {number}\r\nTransport: {transport}\r\n\r\n".encode()


def reply(number: int, transport: str) -> bytes:
    return f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nSession: 1\r\nTransport: {transport}\r\n\r\n".encode()


frames = st.binary(max_size=40).map(lambda data: b"$\0" + len(data).to_bytes(2, "big") + data)
client_said = st.one_of(
    st.builds(setup, st.integers(1, 4), transports),
    st.sampled_from([b"OPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n", b"\r\n", b"TEARDOWN a RTSP/1.0\r\nCSeq: 9\r\n\r\n"]),
    frames,
    st.binary(max_size=30),
)
server_said = st.one_of(
    st.builds(reply, st.integers(1, 4), transports),
    frames,
    st.sampled_from(
        [b"RTSP/1.0 461 No\r\nCSeq: 1\r\n\r\n", b"RTSP/1.0 200 OK\r\nCSeq: 9\r\nContent-Length: 3\r\n\r\nabc"]
    ),
    st.binary(max_size=30),
)
talk = st.lists(
    st.one_of(st.tuples(st.just(Side.CLIENT), client_said), st.tuples(st.just(Side.SERVER), server_said)), max_size=12
)


class Driver(StreamDriver):
    """Opens what the module asks for."""

    def __init__(self, opens: bool = True) -> None:
        super().__init__(RtspModule(CONTEXT), opens)
        self._port = 40000

    def asked(self, command: Command) -> Iterator[Event]:
        match command:
            case OpenConversation(ref, target, second, peers):
                assert target.host == CLIENT.host
                assert peers == (SERVER.host,)
                assert 1024 <= target.port <= 65535
                assert second is None or 1024 <= second <= 65535
                if not self.opens:
                    yield Refused(ref, "quota", 0.0)
                    return
                self.open.add(ref)
                self._port += 2
                yield Opened(ref, Endpoint("203.0.113.1", self._port), 0.0)
            case UpdateConversation(ref):
                assert ref in self.open


@settings(max_examples=300, deadline=None)
@given(talk, st.booleans())
def test_every_byte_goes_on_and_only_ports_and_addresses_are_edited(
    said: list[tuple[Side, bytes]], opens: bool
) -> None:
    driver = Driver(opens)
    driver.play(said, 1000)
    for before, after in driver.edits:
        assert after.isdigit() is before.isdigit()
        assert before.isdigit() or {before, after} == {CLIENT.host.encode(), b"203.0.113.1"}
    passes_every_byte(driver)


@settings(max_examples=100, deadline=None)
@given(talk, st.integers(1, 9))
def test_the_outcome_does_not_depend_on_how_the_stream_is_cut(said: list[tuple[Side, bytes]], size: int) -> None:
    is_the_same_when_cut(Driver, said, size)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_value_can_be_read(data: bytes) -> None:
    for spec in read_transport(data, (0, len(data))):
        for port in spec.ports:
            assert data[slice(*port.span)].isdigit()
        for host in spec.destinations + spec.sources:
            assert data[slice(*host.span)] == host.text != b""


def test_a_thousand_specifications_are_none() -> None:
    assert read_transport(b"RTP/AVP;client_port=5000," * 1000, (0, 25000)) == []


def test_passwords_are_not_shown() -> None:
    data = b"PLAY rtsp://ann:secret@a/b RTSP/1.0\r\nAuthorization: Basic c2VjcmV0\r\nCSeq: 1\r\n\r\n"
    shown = conceal(data)
    assert len(shown) == len(data)
    assert b"secret" not in shown
    assert b"c2VjcmV0" not in shown
    assert b"CSeq: 1" in shown


def test_a_head_says_what_it_is() -> None:
    head = read_head(b"SETUP rtsp://a/b c RTSP/1.0\r\nSession : 1;timeout=60\r\nCSeq:\t7 \r\nTransport: x\r\n\r\n")
    assert (head.method, head.uri, head.session, head.cseq) == (b"SETUP", b"rtsp://a/b c", b"1", b"7")
    assert len(head.transports) == 1


def test_requests_without_answer_are_forgotten() -> None:
    requests = OpenRequests()
    for number in range(MOST_WAITING + 10):
        requests.add(OpenRequest(b"OPTIONS", b"*", str(number).encode(), b""))
    assert requests.answered(b"0", True) is not None  # the oldest one that is left
    found = requests.answered(b"100", True)
    assert found is not None
    assert found.cseq == b"100"


def test_a_connection_has_so_many_streams_and_no_more() -> None:
    driver = Driver()
    for number in range(1, 40):
        driver.tell(Side.CLIENT, setup(number, f"RTP/AVP;unicast;client_port={5000 + 2 * number}"))
    assert len(driver.open) == RtspOptions().streams
    assert driver.went == driver.came


@pytest.mark.parametrize("streams", [0, 257])
def test_options_that_make_no_sense(streams: int) -> None:
    with pytest.raises(ValueError, match="streams: "):
        RtspOptions(streams=streams)


def test_a_head_that_has_no_end_is_held_for_a_while_only() -> None:
    driver = Driver()
    driver.tell(Side.CLIENT, b"OPTIONS * RTSP/1.0\r\n")
    for _ in range(MOST // 1000 + 2):
        driver.tell(Side.CLIENT, b"X: " + b"a" * 995 + b"\r\n")
    assert driver.bypassed
    assert driver.went == driver.came


def test_a_start_line_costs_time_linear_in_its_bytes() -> None:
    began = time.process_time()
    for _ in range(10):
        head = read_head(b"OPTIONS x" + b" " * 8000 + b"y  RTSP/1.0 \r\n\r\n")
        assert head.uri == b"x" + b" " * 8000 + b"y"
    assert time.process_time() - began < 0.3
