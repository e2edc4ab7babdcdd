"""Which addresses only a rule by name permits: the policy looks at their first bits, and finds what ipaddress does."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.address import Address, Endpoint
from gateway.model.requests import ConnectRequest
from gateway.policy.decide import Policy

POLICY = Policy([ipaddress.ip_network("192.168.56.0/24")])
EDGES = [
    *("0.0.0.0", "0.255.255.255", "1.0.0.0", "126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
    *("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0", "223.255.255.255", "224.0.0.0"),
    *("239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255", "::", "::1", "::2", "fe7f:ffff::"),
    *("fe80::", "febf:ffff::", "fec0::", "feff::", "ff00::", "ff02::1"),
]


def expected(address: Address) -> str:
    if address.is_loopback:
        return "loopback"
    if address.is_unspecified or address in ipaddress.ip_network("0.0.0.0/8"):
        return "unspecified"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast or address == ipaddress.ip_address("255.255.255.255"):
        return "multicast"
    return ""


def decided(address: Address) -> str:
    request = ConnectRequest("connect", Endpoint("192.168.56.10", 1000), str(address), 80)
    decision = POLICY.judge(request).at(address)
    return "" if decision.permit else decision.rule


@pytest.mark.parametrize("text", EDGES)
def test_at_the_edges(text: str) -> None:
    address = ipaddress.ip_address(text)
    if text not in ("::2",):  # the IPv4 address in it counts
        assert decided(address) == expected(address)


@given(st.ip_addresses(v=4))
def test_anywhere(address: ipaddress.IPv4Address) -> None:
    inside = address in ipaddress.ip_network("192.168.56.0/24")
    assert decided(address) == ("inside" if inside else expected(address))
