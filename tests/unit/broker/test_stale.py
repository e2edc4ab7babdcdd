"""Which connections contradict the open pinholes."""

from __future__ import annotations

import msgspec
import pytest

from alg.address import Endpoint
from gateway.broker.conntrack import Connection, Socket
from gateway.broker.marks import MEDIA
from gateway.broker.stale import _is_right, _pairs, sockets_of
from gateway.model import Lease

TARGET, PUBLIC = Endpoint("192.168.56.10", 5060), Endpoint("203.0.113.2", 40000)
PEER, OTHER, ROUTER = Endpoint("203.0.113.10", 9), Endpoint("203.0.113.66", 9), Endpoint("203.0.113.2", 5060)
LEASE = Lease("0" * 16, "f", "sip", TARGET.host, "in", "udp", PUBLIC, TARGET, None, 0, 1.0, "kernel", (PEER.host,))


def connection(source: Endpoint, destination: Endpoint, answers: Endpoint, to: Endpoint, mark: int = 0) -> Connection:
    return Connection(
        Socket(source, source=True),
        Socket(destination, source=False),
        Socket(answers, source=True),
        Socket(to, source=False),
        mark,
    )


def stays(found: Connection, *leases: Lease) -> bool:
    right = {sock: (lease, other) for lease in leases for sock, other in _pairs(lease)}
    return _is_right(found, set(sockets_of(LEASE)), right)


OUT = connection(TARGET, PEER, PEER, PUBLIC, MEDIA)
IN = connection(PEER, PUBLIC, TARGET, PEER, MEDIA)


def test_what_the_pinhole_itself_makes_stays() -> None:
    assert stays(OUT, LEASE)
    assert stays(IN, LEASE)


def test_after_its_end_nothing_does() -> None:
    assert not stays(OUT)
    assert not stays(IN)


def test_what_was_there_before_goes() -> None:
    assert not stays(connection(TARGET, PEER, PEER, ROUTER), LEASE)  # from another public port
    assert not stays(connection(PEER, PUBLIC, PUBLIC, PEER), LEASE)  # to this host itself


@pytest.mark.parametrize(("peers", "stayed"), [((), False), ((OTHER.host,), False), (None, True)])
def test_a_change_of_peers(peers: tuple[str, ...] | None, stayed: bool) -> None:
    changed = msgspec.structs.replace(LEASE, peers=peers)
    assert stays(OUT, changed) is stayed  # it is marked, and would be dropped
    assert stays(IN, changed) is stayed


def test_a_connection_out_to_nobody_in_particular_stays() -> None:
    """Signalling: nobody may come in, and the phone's own server answers all the same."""
    assert stays(connection(TARGET, OTHER, OTHER, PUBLIC), LEASE)


def test_others_are_not_ours() -> None:
    assert stays(connection(OTHER, ROUTER, ROUTER, OTHER), LEASE)
