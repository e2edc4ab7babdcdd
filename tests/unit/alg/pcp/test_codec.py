"""The codecs of PCP and NAT-PMP: a corpus of datagrams (tests/wire/pcp), and whatever bytes there may be."""

from __future__ import annotations

import ipaddress
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.pcp import natpmp, pcp

HERE = Path(__file__).parents[3] / "wire" / "pcp"
FILES = sorted(HERE.glob("*.datagram"))
SOURCE = ipaddress.ip_address("192.168.56.10")


def described(protocol: str, data: bytes, source: str) -> str:
    """What a codec reads in a datagram, as the files of the corpus have it."""
    try:
        if protocol == "natpmp":
            return repr(natpmp.parse(data)) if natpmp.is_request(data) else "dropped"
        return repr(pcp.parse(data, ipaddress.ip_address(source))) if pcp.is_request(data) else "dropped"
    except (pcp.Wrong, natpmp.Wrong) as wrong:
        return wrong.result.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_corpus(path: Path) -> None:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    source, protocol, *rest = [line for line in lines if line]
    data = bytes.fromhex("".join(line for line in rest if not line.startswith("=")))
    assert described(protocol, data, source.removeprefix("from ")) == rest[-1].removeprefix("= ")


def test_there_are_enough() -> None:
    assert len(FILES) >= 50


def test_every_result_is_told_once() -> None:
    said = " ".join(path.read_text() for path in FILES)
    codec = {"UNSUPP_VERSION", "MALFORMED_REQUEST", "UNSUPP_OPCODE", "UNSUPP_OPTION", "MALFORMED_OPTION"}
    codec |= {"UNSUPP_PROTOCOL", "ADDRESS_MISMATCH", "EXCESSIVE_REMOTE_PEERS"}
    assert codec <= set(re.findall(r"[A-Z_]{8,}", said))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_mapping_as_figure_10_has_it() -> None:
    request = pcp.Map(bytes(range(12)), 3600, pcp.TCP, 443, 0, None)
    answer = pcp.mapped(request, 7200, 8443, ipaddress.ip_address("203.0.113.2"), 1000)
    assert answer[:24] == struct.pack("!BBBBII", 2, 0x81, 0, 0, 7200, 1000) + bytes(12)
    assert answer[24:44] == bytes(range(12)) + b"\x06\0\0\0" + struct.pack("!HH", 443, 8443)
    assert answer[44:] == bytes(10) + b"\xff\xff\xcb\0\x71\x02"
    assert len(answer) == 60


def test_an_error_repeats_the_request() -> None:
    data = (HERE / "third-party.datagram").read_text().splitlines()
    request = bytes.fromhex("".join(line for line in data if re.fullmatch(r"([0-9a-f]{2} ?)+", line)))
    answer = pcp.error(request, pcp.Result.UNSUPP_OPTION, pcp.LONG, 7)
    assert answer[:12] == struct.pack("!BBBBII", 2, 0x81, 0, 5, 1800, 7)
    assert answer[24:] == request[24:]


@given(st.binary(max_size=1200))
def test_an_error_is_a_message_itself_and_not_longer(data: bytes) -> None:
    if not pcp.is_request(data):
        return
    answer = pcp.error(data, pcp.Result.MALFORMED_REQUEST, pcp.LONG, 1)
    assert len(answer) % 4 == 0
    assert len(answer) <= min(pcp.LONGEST, max(24, len(data) + 3))


# --- whatever bytes ---------------------------------------------------------------------------------------------------

REQUESTS = st.builds(
    lambda version, opcode, lifetime, own, body, options: (
        bytes([version, opcode]) + bytes(2) + lifetime.to_bytes(4) + own + body + b"".join(options)
    ),
    st.sampled_from([0, 1, 2, 2, 2, 3]),
    st.sampled_from([0, 1, 1, 1, 2, 129]),
    st.sampled_from([0, 1, 3600, 2**32 - 1]),
    st.sampled_from([bytes(10) + b"\xff\xff" + SOURCE.packed, bytes(16)]),
    st.binary(min_size=36, max_size=36) | st.binary(max_size=40),
    st.lists(
        st.builds(
            lambda code, length, value: bytes([code, 0]) + length.to_bytes(2) + value,
            st.sampled_from([1, 2, 3, 3, 100, 200]),
            st.sampled_from([0, 4, 16, 20, 21, 65535]),
            st.sampled_from([b"", bytes(4), bytes(16), bytes(20), bytes(24)]),
        ),
        max_size=4,
    ),
)


@given(REQUESTS | st.binary(max_size=1200), st.sampled_from([SOURCE, ipaddress.ip_address("2001:db8::10")]))
def test_bytes_are_read_or_refused(data: bytes, source: pcp.Address) -> None:
    if not pcp.is_request(data):
        return
    try:
        request: pcp.Request | None = pcp.parse(data, source)
    except pcp.Wrong as wrong:
        answer = pcp.error(data, wrong.result, pcp.lifetime_of(wrong.result), 0)
        request = None
    if request is None:
        assert answer[1] == 0x80 | data[1]
        return
    if isinstance(request, pcp.Map):
        assert len(request.nonce) == 12
        assert request.protocol in (pcp.TCP, pcp.UDP) or not request.lifetime
        if request.filters is not None:
            networks = [ipaddress.ip_network(text) for text in request.filters.add]  # in their one spelling
            assert all(network.version == source.version and network.prefixlen for network in networks)
        answer = pcp.mapped(request, 120, 5000, source, 0)
        assert len(answer) <= max(60, len(data))


@given(st.binary(max_size=64))
def test_bytes_of_natpmp_are_read_or_refused(data: bytes) -> None:
    if not natpmp.is_request(data):
        return
    try:
        request: natpmp.AskAddress | natpmp.Map | None = natpmp.parse(data)
    except natpmp.Wrong as wrong:
        answer = natpmp.error(data, wrong.result, 0)
        request = None
    if request is None:
        assert len(answer) in (8, 12, 16)
        return
    if isinstance(request, natpmp.Map):
        assert request.port or not request.lifetime
        assert len(natpmp.mapped(request, 5000, 3600, 2**40)) == 16


@given(st.binary(min_size=12, max_size=12), st.integers(1, 65535), st.integers(0, 65535), st.integers(1, 2**32 - 1))
def test_what_is_written_is_read(nonce: bytes, port: int, suggested: int, lifetime: int) -> None:
    own = bytes(10) + b"\xff\xff" + SOURCE.packed
    data = struct.pack("!BBHI16s12sB3sHH16s", 2, 1, 0, lifetime, own, nonce, 6, b"", port, suggested, own)
    assert pcp.parse(data, SOURCE) == pcp.Map(nonce, lifetime, 6, port, suggested, SOURCE)
