"""A broker that is killed while an opening of each kind is under way: what it had read and not done is done by the next
one, what it had done and told nobody is not in the way, and in the end nothing is left."""

from __future__ import annotations

import os
from collections.abc import Callable

import gevent
import gevent.socket
import pytest

from alg.address import Endpoint
from gateway.broker.netfilter import Netfilter
from gateway.lease.messages import MAX_PACKET, Close, Hello, LeaseOpened, Open, Update, Updated, encode
from gateway.model.requests import PinholeRequest, PinholeUpdate
from gateway.pinhole.client import BrokerClient
from tests.net.broker_rig import CLIENT, SERVER, Rig, inbound, outbound, wait_for
from tests.net.test_broker_gre import call
from tests.net.test_broker_kinds import exchange, mapping
from tests.net.test_broker_udp import conversation

pytestmark = pytest.mark.net

KINDS: dict[str, Callable[[], PinholeRequest]] = {
    "once": inbound,
    "out": outbound,
    "anybody": lambda: inbound(kind="anybody", peer=None),
    "conversation": lambda: conversation(second=4001),
    "conversation, not translated": lambda: conversation(public_host=None),
    "read": lambda: conversation(kind="read", target=Endpoint(CLIENT, 5060), reason="sip.signalling"),
    "mapping": mapping,
    "mapping of one port": lambda: mapping(suggested=45678, exact=True),
    "exchange": lambda: exchange(second=0, outer_second=5001),
    "gre": call,
}
EACH = pytest.mark.parametrize("request_of", KINDS.values(), ids=KINDS.keys())


def nothing_open(rig: Rig) -> bool:
    return rig.pinholes() == [] and rig.within(rig.router, lambda: Netfilter(rig.table).elements()) == []


@EACH
def test_what_was_opened_and_not_answered(rig: Rig, request_of: Callable[[], PinholeRequest]) -> None:
    """The worker asks again, and has one pinhole."""
    unanswered = rig.open(request_of())
    rig.kill()
    rig.start()
    lease = rig.open(request_of())
    assert lease.id != unanswered.id
    assert [row["id"] for row in rig.pinholes()] == [lease.id]
    rig.send(Close(lease.id))
    wait_for(lambda: nothing_open(rig), "nothing to be left")


@EACH
def test_what_was_read_and_not_done(rig: Rig, request_of: Callable[[], PinholeRequest]) -> None:
    """The worker that waits for the answer asks once more, by itself."""
    ours, theirs = rig._pairs[0]
    assert rig.broker is not None
    rig.kill()
    ours.setblocking(False)
    with gevent.socket.socket(fileno=os.dup(theirs.fileno())) as sock:
        client = BrokerClient(sock, timeout=6.0)  # a busy machine needs that for another broker
        asking = gevent.spawn(client.open, request_of())
        gevent.sleep(0.05)
        heard = b"".join(iter(lambda: _taken(ours), b""))
        assert request_of().reason.encode() in heard  # the dead broker has read it
        rig.start()
        lease = asking.get(timeout=10)
        client.close(lease.id)
        gevent.sleep(0.05)
        client.stop()
    wait_for(lambda: nothing_open(rig), "nothing to be left")


def _taken(sock: object) -> bytes:
    try:
        return sock.recv(MAX_PACKET)  # type: ignore[attr-defined,no-any-return]
    except BlockingIOError:
        return b""


def test_what_is_asked_twice_is_done_once(rig: Rig) -> None:
    """By a worker whose broker is only slow: the second time is left out, whatever the kind."""
    packet = encode(Open(7, inbound()), Open(8, outbound()), Open(9, conversation()))
    for _ in range(2):
        rig.workers[0].send(packet)
    opened = [rig.hear() for _ in range(3)]
    assert [answer.id for answer in opened] == [7, 8, 9]
    assert all(isinstance(answer, LeaseOpened) for answer in opened)
    assert len(rig.pinholes()) == 3
    rig.send(Hello(1, keep=True))
    rig.send(Open(10, outbound(target=Endpoint(SERVER, 30001))))
    assert rig.hear().id == 10  # and no other answer has come before it


def test_a_change_that_was_read_and_not_done(rig: Rig) -> None:
    lease = rig.open(conversation(peers=()))
    ours, theirs = rig._pairs[0]
    rig.kill()
    ours.setblocking(False)
    with gevent.socket.socket(fileno=os.dup(theirs.fileno())) as sock:
        client = BrokerClient(sock, timeout=6.0, keep=True)
        asking = gevent.spawn(client.update, PinholeUpdate(lease.id, peers=(SERVER,)))
        gevent.sleep(0.05)
        while _taken(ours):
            pass
        rig.start()
        assert asking.get(timeout=10).peers == (SERVER,)
        client.stop()
    rig.send(Update(3, PinholeUpdate(lease.id, peers=())))
    answer = rig.hear()
    assert isinstance(answer, Updated), answer
