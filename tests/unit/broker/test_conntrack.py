"""Which connections have to begin anew when a conversation changes."""

from __future__ import annotations

import msgspec
import pytest

from alg.address import Endpoint
from gateway.broker.conntrack import Socket, connections_between
from gateway.model import Lease

TARGET, PUBLIC = Endpoint("192.168.56.10", 5060), Endpoint("203.0.113.2", 40000)
LEASE = Lease("0" * 16, "f", "sip", TARGET.host, "in", "udp", PUBLIC, TARGET, None, 0, 1.0, "kernel", ("203.0.113.10",))
IN, OUT = Socket(PUBLIC, source=False), Socket(TARGET, source=True)


@pytest.mark.parametrize(
    ("peers", "wanted"),
    [
        (LEASE.peers, set()),
        (("203.0.113.10", "203.0.113.11"), {IN}),  # whoever is new may have sent too early
        (None, {IN}),
        ((), {IN, OUT}),  # what goes out to the peer of before is marked, and would be dropped
        (("203.0.113.11",), {IN, OUT}),
    ],
)
def test_a_change_of_peers(peers: tuple[str, ...] | None, wanted: set[Socket]) -> None:
    assert connections_between(LEASE, msgspec.structs.replace(LEASE, peers=peers)) == wanted


def test_nobody_in_particular_to_somebody() -> None:
    anybody = msgspec.structs.replace(LEASE, peers=None)
    assert connections_between(anybody, LEASE) == {IN, OUT}
