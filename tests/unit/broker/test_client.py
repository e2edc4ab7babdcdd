"""The worker's side of the broker, against a real socket whose other end the test holds."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Iterator

import gevent
import gevent.socket
import msgspec
import pytest

from gateway.lease.messages import (
    MAX_PACKET,
    Close,
    FromWorker,
    Hello,
    LeaseOpened,
    Open,
    RequestRefused,
    ToWorker,
    decode_from_worker,
    encode,
)
from gateway.model.errors import PinholeRefused
from gateway.pinhole.client import BrokerClient
from gateway.pinhole.kernel import KernelPinholes
from tests.unit.broker.test_protocol import leases
from tests.unit.broker.test_validate import INBOUND


class Other:
    """The broker's end of the socket, by hand."""

    def __init__(self) -> None:
        ours, self.theirs = gevent.socket.socketpair(gevent.socket.AF_UNIX, gevent.socket.SOCK_SEQPACKET)
        self.sock = ours
        self.heard: deque[FromWorker] = deque()

    def receive(self) -> FromWorker:
        with gevent.Timeout(5):
            while not self.heard:
                self.heard.extend(decode_from_worker(self.sock.recv(MAX_PACKET)))
        return self.heard.popleft()

    def send(self, message: ToWorker) -> None:
        self.sock.send(encode(message))


@pytest.fixture
def other() -> Iterator[Other]:
    other = Other()
    yield other
    other.sock.close()
    other.theirs.close()


def open_messages(other: Other, count: int) -> list[Open]:
    messages = [other.receive() for _ in range(count)]
    assert all(isinstance(message, Open) for message in messages)
    return [message for message in messages if isinstance(message, Open)]


def test_says_hello_opens_and_closes(other: Other) -> None:
    pinholes = KernelPinholes(BrokerClient(other.theirs))
    assert isinstance(other.receive(), Hello)
    asking = gevent.spawn(pinholes.open, INBOUND)
    (question,) = open_messages(other, 1)
    assert question.request == INBOUND
    other.send(LeaseOpened(question.id, leases()[0]))
    assert asking.get(timeout=5) == leases()[0]
    pinholes.close(leases()[0])
    assert other.receive() == Close(leases()[0].id)


def test_answers_in_any_order_reach_whom_they_are_for(other: Other) -> None:
    client = BrokerClient(other.theirs)
    other.receive()
    asking = [gevent.spawn(client.open, msgspec.structs.replace(INBOUND, flow=f"f{i}")) for i in range(100)]
    for question in reversed(open_messages(other, 100)):
        other.send(LeaseOpened(question.id, msgspec.structs.replace(leases()[0], flow=question.request.flow)))
    assert [greenlet.get(timeout=5).flow for greenlet in asking] == [f"f{i}" for i in range(100)]


def test_a_refusal_is_raised_with_its_rule(other: Other) -> None:
    client = BrokerClient(other.theirs)
    other.receive()
    asking = gevent.spawn(client.open, INBOUND)
    other.send(RequestRefused(open_messages(other, 1)[0].id, "quota", "too many"))
    with pytest.raises(PinholeRefused) as caught:
        asking.get(timeout=5)
    assert (caught.value.rule, caught.value.detail) == ("quota", "too many")


def test_no_answer_is_a_refusal_and_a_late_one_is_closed_again(other: Other) -> None:
    client = BrokerClient(other.theirs, timeout=0.05)
    other.receive()
    with pytest.raises(PinholeRefused, match="broker"):
        client.open(INBOUND)
    question, again = open_messages(other, 2)
    assert again == question  # it was asked once more, before it was given up
    other.send(LeaseOpened(question.id, leases()[0]))
    assert other.receive() == Close(leases()[0].id)


def test_a_predecessors_answer_is_not_taken_for_ones_own(other: Other) -> None:
    for request_id in range(100):
        other.send(LeaseOpened(request_id, leases()[1]))
    other.sock.send(b"\xff garbage")
    client = BrokerClient(other.theirs)
    assert isinstance(other.receive(), Hello)
    asking = gevent.spawn(client.open, INBOUND)
    questions: list[Open] = []
    while not questions:
        message = other.receive()
        if isinstance(message, Open):
            questions.append(message)
        else:
            assert message == Close(leases()[1].id)
    other.send(LeaseOpened(questions[0].id, leases()[0]))
    assert asking.get(timeout=5) == leases()[0]


def test_nobody_reads_and_the_socket_is_full(other: Other) -> None:
    client = BrokerClient(other.theirs, timeout=0.2)
    asking = [gevent.spawn(client.open, INBOUND) for _ in range(2000)]
    for greenlet in asking:
        with pytest.raises(PinholeRefused, match="broker"):
            greenlet.get(timeout=10)
    closed = [f"{number:016x}" for number in range(300)]
    for lease_id in closed:
        client.close(lease_id)  # must not block, must not raise
    heard: list[str] = []
    while len(heard) < len(closed):  # somebody reads again: nothing is lost
        message = other.receive()
        if isinstance(message, Close):
            heard.append(message.lease)
    assert heard == closed


def test_a_lost_hello_is_said_before_the_first_request(other: Other) -> None:
    other.theirs.setblocking(False)
    try:
        while True:
            other.theirs.send(encode(Close("0" * 16)))
    except BlockingIOError:
        pass
    other.theirs.settimeout(None)
    client = BrokerClient(other.theirs)
    gevent.spawn(client.open, INBOUND)
    while (message := other.receive()) == Close("0" * 16):
        pass
    assert isinstance(message, Hello)
    open_messages(other, 1)


def test_the_end_of_the_socket_is_a_refusal(other: Other) -> None:
    client = BrokerClient(other.theirs, timeout=0.2)
    other.sock.close()
    with pytest.raises(PinholeRefused, match="broker"):
        client.open(INBOUND)


def test_the_client_loads_no_pyroute2_and_the_broker_only_its_messages_and_no_gevent() -> None:
    code = "import sys, {}; print([name for name in ('gevent', 'pyroute2', 'pyroute2.netlink') if name in sys.modules])"
    for module, loaded in [
        ("gateway.pinhole.kernel", "['gevent']"),
        ("gateway.process.broker", "['pyroute2.netlink']"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.strip() == loaded
