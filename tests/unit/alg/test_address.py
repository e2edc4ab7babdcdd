"""alg.address: endpoints, and one spelling for each address."""

from __future__ import annotations

import ipaddress

import pytest

from alg.address import canonical


def test_canonical() -> None:
    assert canonical("::ffff:10.0.0.1") == ipaddress.ip_address("10.0.0.1")
    assert canonical("2001:DB8::1") == ipaddress.ip_address("2001:db8::1")
    with pytest.raises(ValueError, match=r"host\.example"):
        canonical("host.example")
