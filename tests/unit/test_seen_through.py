"""IPv4 addresses that IPv6 addresses carry, in every spelling that has an RFC."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model.hosts import TRANSLATION_LENGTHS, seen_through
from tests.unit.spellings import spellings, translated

# What is not routed as a destination (0.0.0.0/8) is no reading of an address either.
ADDRESSES = st.ip_addresses(v=4).filter(lambda ip: int(ip) >= 1 << 24)


@given(ADDRESSES)
def test_every_spelling(address: ipaddress.IPv4Address) -> None:
    for name, spelling in spellings(address):
        for text in (str(spelling), f"{spelling}%eth0", f"{spelling}%7"):
            assert address in seen_through(ipaddress.ip_address(text)), name


@given(ADDRESSES, st.integers(0, 2**128 - 1), st.sampled_from(TRANSLATION_LENGTHS), st.integers(0, 2**24 - 1))
def test_every_configured_prefix(address: ipaddress.IPv4Address, start: int, length: int, suffix: int) -> None:
    prefix = ipaddress.IPv6Network((start >> 128 - length << 128 - length, length))
    spelling = translated(prefix, address)
    if length < 96:  # what stands behind is to be ignored (RFC 6052 section 2.2)
        spelling = ipaddress.IPv6Address(int(spelling) | suffix & (1 << 88 - length) - 1)
    assert address in seen_through(spelling, (ipaddress.IPv6Network("2001:db8:77::/96"), prefix))


@pytest.mark.parametrize(
    ("text", "prefixes", "seen"),
    [
        ("2001:db8:122:344::192.0.2.33", ["2001:db8:122:344::/96"], ["192.0.2.33"]),
        ("2001:db8:122:344::192.0.2.33", [], []),
        ("2001:db8:122:344:c0:2:2100::", ["2001:db8:122:344::/64"], ["192.0.2.33"]),
        ("2001:db8:122:3c0:0:221::", ["2001:db8:122:300::/56"], ["192.0.2.33"]),
        ("2001:db8:122:c000:2:2100::", ["2001:db8:122::/48"], ["192.0.2.33"]),
        ("2001:db8:1c0:2:21::", ["2001:db8:100::/40"], ["192.0.2.33"]),
        ("2001:db8:c000:221::", ["2001:db8::/32"], ["192.0.2.33"]),
        ("64:ff9b:1::192.0.2.33", [], ["192.0.2.33"]),
        ("64:ff9b:1:c000:2:2100::", [], ["192.0.2.33", "2.33.0.0"]),
        ("64:ff9b:1:c000:2:2100::", ["64:ff9b:1::/48"], ["192.0.2.33"]),
        ("64:ff9b:2::192.0.2.33", [], []),
        ("2001:db8::1", [], []),
        ("fd00:56::10", [], []),
        ("::1", [], []),
        ("::", [], []),
    ],
)
def test_by_the_tables_of_the_rfcs(text: str, prefixes: list[str], seen: list[str]) -> None:
    address = ipaddress.ip_address(text)
    found = seen_through(address, [ipaddress.IPv6Network(prefix) for prefix in prefixes])
    assert found[0] == address
    assert [str(address) for address in found[1:]] == seen


@given(st.ip_addresses(v=6))
def test_the_address_itself_comes_first(address: ipaddress.IPv6Address) -> None:
    assert seen_through(address)[0] == (address.ipv4_mapped or address)
