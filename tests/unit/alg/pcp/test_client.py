"""The client's side of PCP and NAT-PMP: what it asks our own servers read, and what these answer it reads."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.pcp import client, natpmp, pcp
from alg.pcp.client import Epoch

OWN = ipaddress.ip_address("100.64.0.2")
PUBLIC = ipaddress.ip_address("203.0.113.2")
NONCE = bytes(range(12))


def test_a_mapping_by_pcp() -> None:
    question = client.pcp_map(OWN, NONCE, "udp", 5000, 5001, 3600)
    assert len(question) == 60
    request = pcp.parse(question, OWN)
    assert request == pcp.Map(NONCE, 3600, pcp.UDP, 5000, 5001, None)
    assert isinstance(request, pcp.Map)
    answer = client.read_pcp(pcp.mapped(request, 1800, 5001, PUBLIC, 77))
    assert answer is not None
    assert client.answers_map(answer, NONCE, "udp", 5000)
    assert (answer.result, answer.lifetime, answer.epoch) == (0, 1800, 77)
    assert (answer.external_port, answer.external) == (5001, PUBLIC)
    assert not client.answers_map(answer, bytes(12), "udp", 5000)
    assert not client.answers_map(answer, NONCE, "tcp", 5000)
    assert not client.answers_map(answer, NONCE, "udp", 5001)


def test_errors_of_pcp() -> None:
    question = client.pcp_map(OWN, NONCE, "tcp", 5000, 5001, 3600)
    refused = client.read_pcp(pcp.error(question, pcp.Result.NOT_AUTHORIZED, 1800, 5))
    assert refused is not None
    assert client.answers_map(refused, NONCE, "tcp", 5000)
    assert (refused.result, refused.lifetime) == (2, 1800)
    # A server of NAT-PMP alone says in its own words that it knows no version 2 (RFC 6887, appendix A).
    other = client.read_pcp(natpmp.error(question, natpmp.Result.UNSUPPORTED_VERSION, 5))
    assert other is not None
    assert (other.version, other.result) == (0, 1)


def test_announce() -> None:
    assert isinstance(pcp.parse(client.pcp_announce(OWN), OWN), pcp.Announce)
    answer = client.read_pcp(pcp.announced(99))
    assert answer is not None
    assert (answer.opcode, answer.result, answer.epoch) == (0, 0, 99)


def test_natpmp() -> None:
    assert natpmp.parse(client.pmp_address()) == natpmp.AskAddress()
    answer = client.read_pmp(natpmp.address(ipaddress.IPv4Address("203.0.113.2"), 9))
    assert answer is not None
    assert (answer.opcode, answer.result, answer.epoch, answer.address) == (0, 0, 9, PUBLIC)
    request = natpmp.parse(client.pmp_map("tcp", 5000, 5001, 60))
    assert request == natpmp.Map("tcp", 5000, 5001, 60)
    assert isinstance(request, natpmp.Map)
    answer = client.read_pmp(natpmp.mapped(request, 5002, 60, 9))
    assert answer is not None
    assert client.answers_pmp(answer, "tcp", 5000)
    assert not client.answers_pmp(answer, "udp", 5000)
    assert (answer.public_port, answer.lifetime) == (5002, 60)


@pytest.mark.parametrize(
    ("before", "after", "seconds", "goes_on"),
    [
        (100, 110, 10.0, True),
        (100, 100, 1.0, True),
        (100, 99, 0.0, True),  # datagrams overtake one another
        (100, 3, 10.0, False),  # it has started again
        (100, 700, 600.0, True),
        (100, 665, 600.0, True),  # a clock that is a sixteenth slow
        (100, 400, 600.0, False),  # started again long ago
        (100, 900, 600.0, False),
    ],
)
def test_epochs_as_section_8_5_has_them(before: int, after: int, seconds: float, goes_on: bool) -> None:
    epoch = Epoch()
    assert epoch.goes_on(before, 1000.0)
    assert epoch.goes_on(after, 1000.0 + seconds) == goes_on
    assert epoch.goes_on(after + 10, 1010.0 + seconds)  # and then that is its clock


@given(st.binary(max_size=1200))
def test_whatever_bytes(data: bytes) -> None:
    client.read_pcp(data)
    client.read_pmp(data)
