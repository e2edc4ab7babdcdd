"""alg.ftp.addresses: what is read is exactly what the grammar allows, and what is written is read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Endpoint
from alg.ftp.addresses import (
    ExtendedPort,
    find_epsv_port,
    find_pasv_endpoint,
    format_eprt_argument,
    format_port_argument,
    parse_eprt_argument,
    parse_port_argument,
)

ports = st.integers(0, 65535)
endpoints4 = st.builds(Endpoint.of, st.ip_addresses(v=4), ports)
endpoints6 = st.builds(Endpoint.of, st.ip_addresses(v=6), ports)
endpoints = st.builds(Endpoint.of, st.ip_addresses(), ports)
delimiters = st.integers(33, 126).map(lambda code: bytes([code]))


@given(endpoints4)
def test_port_is_read_back(endpoint: Endpoint) -> None:
    assert parse_port_argument(format_port_argument(endpoint)) == endpoint


def test_port_with_leading_zeros() -> None:
    assert parse_port_argument(b"010,000,000,001,004,000") == Endpoint("10.0.0.1", 1024)


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"10,0,0,1,4",
        b"10,0,0,1,4,0,0",
        b"10,0,0,1,4,256",
        b"256,0,0,1,4,0",
        b"10,0,0,1,4,0001",
        b"10,0,0,1,4,-1",
        b"10,0,0,1,4,+1",
        b"10,0,0,1,4,",
        b" 10,0,0,1,4,0",
        b"10,0,0,1,4,0 ",
        b"10,0,0,1,4,0\n",
        b"10,0,0,1,4,0\r",
        b"10.0.0.1,4,0",
        b"0x10,0,0,1,4,0",
        "10,0,0,1,4,٣".encode(),
        b"10,0,0,1,4,\xb2",
    ],
)
def test_not_port(argument: bytes) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_port_argument(argument)


def test_port_cannot_name_ipv6() -> None:
    with pytest.raises(ValueError, match="IPv4"):
        format_port_argument(Endpoint("2001:db8::1", 1024))


@given(endpoints, delimiters)
def test_eprt_is_read_back_or_cannot_be_written(endpoint: Endpoint, delimiter: bytes) -> None:
    written = b"%d%s%d" % (1 if endpoint.version == 4 else 2, endpoint.host.encode(), endpoint.port)
    if delimiter in written:
        with pytest.raises(ValueError, match="delimiter"):
            format_eprt_argument(endpoint, delimiter)
    else:
        assert parse_eprt_argument(format_eprt_argument(endpoint, delimiter)) == ExtendedPort(endpoint, delimiter)


def test_eprt_address_is_canonical() -> None:
    assert parse_eprt_argument(b"|2|2001:DB8:0::1|5282|").endpoint == Endpoint("2001:db8::1", 5282)


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"|",
        b" 1 10.0.0.1 1024 ",
        b"\x7f1\x7f10.0.0.1\x7f1024\x7f",
        b"\xff1\xff10.0.0.1\xff1024\xff",
        b"|1|10.0.0.1|1024",
        b"|1|10.0.0.1|1024||",
        b"|1|10.0.0.1|1024|\r",
        b"|1|10.0.0.1!1024|",
        b"|1|10.0.0.1|65536|",
        b"|1|10.0.0.1|010240|",
        b"|1|10.0.0.1|-1|",
        b"|1|10.0.0.1||",
        b"|1||1024|",
        b"|1|10.0.0|1024|",
        b"|1|10.0.0.01|1024|",
        b"|1|10.0.0.1 |1024|",
        b"|1|host.example|1024|",
        b"|1|2001:db8::1|1024|",
        b"|2|10.0.0.1|1024|",
        b"|2|fe80::1%eth0|1024|",
        b"|3|10.0.0.1|1024|",
        b"|01|10.0.0.1|1024|",
        b"||10.0.0.1|1024|",
        "|1|10.0.0.1|١٠٢٤|".encode(),
    ],
)
def test_not_eprt(argument: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which rule it breaks first does not matter
        parse_eprt_argument(argument)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"227 Entering Passive Mode (", b").\r\n"),
        (b"227 Entering Passive Mode (", b")\r\n"),
        (b"227 Entering Passive Mode ", b"\r\n"),
        (b"227 Entering Passive Mode. ", b".\r\n"),
        (b"227 =", b"\r\n"),
        (b"227 ", b"\n"),
        (b"227 Entering Passive Mode(", b")\r\n"),
        (b"227 Entering Passive Mode (", b"\r\n"),
        (b"227 Entering Passive Mode.", b"\r\n"),
        (b"227 Data transfer will passively listen to ", b"\r\n"),
        (b"227 Passive mode OK (", b" )\r\n"),
        (b"227 Entering Passive Mode <", b">\r\n"),
        (b"227 (", b", thank you)\r\n"),
        (b"227 On port 7 of 2 (v1,2) {", b"} (ok, 3)\r\n"),
    ],
)
@given(endpoint=endpoints4)
def test_endpoint_in_227(before: bytes, behind: bytes, endpoint: Endpoint) -> None:
    argument = format_port_argument(endpoint)
    found = find_pasv_endpoint(before + argument + behind)
    assert (found.endpoint, found.start, found.end) == (endpoint, len(before), len(before) + len(argument))


blanks = st.sampled_from([b"", b" ", b"  ", b"\t"])


@given(st.lists(st.integers(0, 255), min_size=6, max_size=6), st.lists(blanks, min_size=10, max_size=10), st.data())
def test_numbers_with_blanks_signs_and_zeros(numbers: list[int], gaps: list[bytes], data: st.DataObject) -> None:
    """Some servers pad with blanks or zeros, some print their bytes as signed numbers (modulo 256 they are right)."""
    texts = []
    for number in numbers:
        forms = [b"%d" % number, b"%03d" % number]
        texts.append(data.draw(st.sampled_from([*forms, b"%d" % (number - 256)] if number > 127 else forms)))
    argument = texts[0] + b"".join(
        b"%s,%s%s" % (gaps[2 * i], gaps[2 * i + 1], text) for i, text in enumerate(texts[1:])
    )
    found = find_pasv_endpoint(b"227 Entering Passive Mode ( " + argument + b" ).\r\n")
    assert found.endpoint == Endpoint(".".join(map(str, numbers[:4])), numbers[4] * 256 + numbers[5])
    assert found.end - found.start == len(argument)


@given(endpoints6)
def test_ipv6_in_227(endpoint: Endpoint) -> None:
    """No RFC has it, but servers do: the address in its own spelling, and the two numbers of the port."""
    line = f"227 Entering Passive Mode ({endpoint.host},{endpoint.port >> 8},{endpoint.port & 255}).\r\n".encode()
    if ":" in endpoint.host:
        assert find_pasv_endpoint(line).endpoint == endpoint


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"(2,233,252)",
        b"(0:0:1,219)",
        b"(::1,219,256)",
        b"(::1,2,3,4)",
        b"(1, 10,0,0,1,4,0)",
        b"(10,0,0,1,4,0, 7)",
        b"(10,0,0,1,4,-129)",
        b"(+10,0,0,1,4,0)",
        b"(7.10,0,0,1,4,0)",
        b"(10,0,0,1,4,0.5)",
        b"(10 0 0 1 4 0)",
        b"(10,0,0,1,,4,0)",
        b"(10,0,0,1,4)",
        b"(10,0,0,1,4,0,0)",
        b"(10,0,0,1,4,256)",
        b"(10,0,0,1,4,2560)",
        b"(10,0,0,1,4,0) (10,0,0,1,4,1)",
        b"(10.0.0.1,4,0)",
    ],
)
def test_no_endpoint_in_227(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"endpoints in the reply|above 255|between -128|permitted|octets|parts"):
        find_pasv_endpoint(b"227 Entering Passive Mode " + text + b"\r\n")


@given(st.sampled_from([b"229 Entering Extended Passive Mode (", b"229 (ok) ("]), ports, delimiters)
def test_port_in_229(before: bytes, port: int, delimiter: bytes) -> None:
    text = b"%d" % port
    if delimiter not in text:
        found = find_epsv_port(before + delimiter * 3 + text + delimiter + b").\r\n")
        assert (found.port, found.start, found.end) == (port, len(before) + 3, len(before) + 3 + len(text))


@pytest.mark.parametrize("text", [b"|||%d|", b"( |||%d| )", b"(| | | %d |)", b"|||%d|.", b"(|||%d|", b"= |||%d|)"])
@given(port=ports)
def test_port_in_229_without_its_parentheses(text: bytes, port: int) -> None:
    assert find_epsv_port(b"229 Entering Extended Passive Mode " + text % port + b"\r\n").port == port


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"(||80|)",
        b"(|||80)",
        b"(||||)",
        b"(|!|80|)",
        b"(|||65536|)",
        b"(|||080808|)",
        b"(|1|10.0.0.1|80)",
        b"(|1|ten|80|)",
        b"(|3||80|)",
        b"(|1|10.0.0.1|80|) (|1|10.0.0.1|81|)",
        b"(!1!10.0.0.1!80!)",
        b"(|||80|) (|||81|)",
        b"(   80 )",
    ],
)
def test_no_port_in_229(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"ports in the reply|above 65535"):
        find_epsv_port(b"229 Entering Extended Passive Mode " + text + b"\r\n")
