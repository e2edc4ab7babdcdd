"""Rate limits: never above the rate and its burst, hardly below it, exact to the byte, and no flow left behind."""

from __future__ import annotations

from socket import SHUT_WR
from time import monotonic

import gevent
import gevent.socket
import pytest
from gevent.event import AsyncResult
from hypothesis import given
from hypothesis import strategies as st

from gateway.net.relay.half import RelayResult
from gateway.net.relay.splice import Relay
from gateway.policy.pace import Bucket, Pace
from tests.unit.relay.ends import Joined, read_all, reset, tcp_pair

RATE = 400_000.0
SIZE = 800_000


@given(
    rate=st.floats(1, 1e9),
    asks=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), max_size=50),
)
def test_never_more_than_the_rate(rate: float, asks: list[tuple[float, float]]) -> None:
    pace, now, spent = Bucket.of(rate, 0.0), 0.0, 0
    for later, share in asks:
        now += later
        count = int(pace.allowance(now) * share)
        pace.spend(count)
        spent += count
        assert spent <= max(rate * 0.5, 1500) + rate * now + 1
        assert pace.allowance(pace.due(now) + 1e-6 * (1 + now)) > 0


def send_all(sock: gevent.socket.socket, count: int = SIZE) -> None:
    sock.sendall(bytes(count))
    sock.shutdown(SHUT_WR)


def paced(relay: Relay, up: Pace | None, down: Pace | None) -> Joined:
    client, left = tcp_pair()
    server, right = tcp_pair()
    done: AsyncResult[RelayResult] = AsyncResult()
    return Joined(client, server, relay.start(left, right, done.set, up, down), done)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_transfer_takes_its_time(relay: Relay, way: str) -> None:
    pace = Bucket.of(RATE, monotonic())
    flow = paced(relay, pace, None) if way == "up" else paced(relay, None, pace)
    sender, receiver = (flow.client, flow.server) if way == "up" else (flow.server, flow.client)
    began = monotonic()
    sending = gevent.spawn(send_all, sender)
    receiver.sendall(b"not paced")
    assert len(read_all(receiver)) == SIZE
    sending.get()
    least = (SIZE - RATE * 0.5) / RATE
    assert least * 0.98 <= monotonic() - began < least + 1.2
    flow.close()
    result = flow.result()
    assert (result.up, result.down) == ((SIZE, 9) if way == "up" else (9, SIZE))


def test_flows_share_a_pace(relay: Relay) -> None:
    pace = Bucket.of(RATE, monotonic())
    flows = [paced(relay, pace, None) for _ in range(4)]
    began = monotonic()
    for flow in flows:
        gevent.spawn(send_all, flow.client, SIZE // 4)
    readers = [gevent.spawn(read_all, flow.server) for flow in flows]
    assert [len(reader.get()) for reader in readers] == [SIZE // 4] * 4
    assert monotonic() - began >= (SIZE - RATE * 0.5) / RATE * 0.98
    for flow in flows:
        flow.close()
        assert flow.result().up == SIZE // 4


@pytest.mark.parametrize("who", ["client", "server", "gateway"])
def test_an_end_while_it_waits(relay: Relay, who: str) -> None:
    """Nothing stays in the wheel, and nobody waits for a pace that no longer matters."""
    flow = paced(relay, Bucket.of(10_000, monotonic()), None)
    sender = gevent.spawn(flow.client.sendall, bytes(30_000))
    sender.join(0.3)
    began = monotonic()
    if who == "gateway":
        flow.handle.abort()
        assert flow.result().reason == "aborted"
    else:
        reset(flow.client if who == "client" else flow.server)
        assert flow.result().reason == "reset"
    assert monotonic() - began < 7
    flow.close()
