"""What NFQUEUE does to datagrams that are longer than it hands over: nothing."""

from __future__ import annotations

import socket

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, CLIENT6, SERVER4, SERVER6, Lab


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_of_any_length_arrives_as_it_was(lab: Lab, gateway: Gateway, version: int) -> None:
    """Around what the queue hands over whole, and far beyond; also as answers."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    near_host, far_host = (CLIENT4, SERVER4) if version == 4 else (CLIENT6, SERVER6)
    with lab.enter("inside"):
        near_end = socket.socket(family, socket.SOCK_DGRAM)
        near_end.bind((near_host, 5066))
    with lab.enter("outside"):
        far_end = socket.socket(family, socket.SOCK_DGRAM)
        far_end.bind((far_host, 5060))
    for end in (near_end, far_end):
        end.settimeout(5)
    for size in (*range(3780, 4100, 20), 9000, 20000):
        data = (b"MESSAGE sip:x SIP/2.0\r\nX: " + b"y" * size)[:size]
        near_end.sendto(data, (far_host, 5060))
        got, address = far_end.recvfrom(65535)
        assert got == data, size
        far_end.sendto(data, address)
        assert near_end.recv(65535) == data, size
    near_end.close()
    far_end.close()
    (status,) = [row for row in gateway.admin("status") if row["process"] == "packets"]
    assert status["untouched_long"] > 0
