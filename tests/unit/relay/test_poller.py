"""The relay's own epoll: who is told of what, and who is not."""

import socket
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from gateway.net.relay.poller import GONE, READ, WRITE, Poller, Watch


@pytest.fixture
def poller() -> Iterator[Poller]:
    poller = Poller()
    yield poller
    poller.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def run_until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


def step() -> None:
    """Long enough that what is ready has been told: the loop has looked at it twice."""
    for _ in range(2):
        gevent.sleep(0.001)


def test_told_for_as_long_as_it_lasts(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    events: list[int] = []
    watch = poller.watch(pair[0].fileno(), READ, events.append)
    step()
    assert not events
    pair[1].send(b"x")
    run_until(lambda: len(events) >= 2)  # nobody has read it
    pair[0].recv(1)
    step()
    events.clear()
    step()
    assert not events
    watch.ask(READ | WRITE)
    run_until(lambda: events)
    assert events[0] == WRITE
    watch.forget(closing=False)
    assert not len(poller)


def test_a_break_is_told_though_nothing_is_asked(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    events: list[int] = []
    watch = poller.watch(pair[0].fileno(), 0, events.append)
    pair[1].send(b"x")
    step()
    assert not events
    pair[1].close()
    run_until(lambda: events)
    assert events[0] & GONE
    watch.rest()
    step()
    events.clear()
    step()
    assert not events
    watch.ask(READ)
    run_until(lambda: events)


def test_what_a_handler_before_it_has_closed_is_not_told(poller: Poller) -> None:
    """Also if its descriptor serves another connection by then, of which epoll has said nothing."""
    pairs = [socket.socketpair(), socket.socketpair()]
    fresh: list[tuple[socket.socket, socket.socket]] = []
    wrong: list[int] = []
    watches: list[Watch] = []

    def first_come(mine: int) -> Callable[[int], None]:
        def handler(_events: int) -> None:
            if fresh:
                wrong.append(mine)
                return
            victim = 1 - mine
            watches[victim].forget(closing=True)
            freed = pairs[victim][0].fileno()
            pairs[victim][0].close()
            fresh.append(socket.socketpair())
            assert freed in (fresh[0][0].fileno(), fresh[0][1].fileno())
            watches.append(poller.watch(freed, READ, wrong.append))
            watches[mine].rest()

        return handler

    for number, (near, far) in enumerate(pairs):
        far.send(b"x")
        watches.append(poller.watch(near.fileno(), READ, first_come(number)))
    run_until(lambda: fresh)
    step()
    assert not wrong
    for watch in watches:
        watch.forget(closing=False)
    for near, far in (*pairs, *fresh):
        near.close()
        far.close()


def test_an_error_in_a_handler_harms_nobody(
    poller: Poller, pair: tuple[socket.socket, socket.socket], capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[int] = []

    def fail(_events: int) -> None:
        watch.handler = events.append
        raise RuntimeError("on purpose")

    watch = poller.watch(pair[0].fileno(), READ, fail)
    pair[1].send(b"x")
    run_until(lambda: events)
    assert "on purpose" in capsys.readouterr().err
    watch.forget(closing=False)


def test_many_that_take_long_are_served_in_turns(poller: Poller) -> None:
    """A socket that is ready takes a millisecond here: others, timers and greenlets, get their turn between them."""
    pairs = [socket.socketpair() for _ in range(60)]
    served: list[int] = []

    def serve(number: int) -> None:
        served.append(number)
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass

    for number, (near, far) in enumerate(pairs):
        poller.watch(near.fileno(), READ, lambda _events, number=number: serve(number))  # type: ignore[misc]
        far.send(b"x")
    longest, before = 0.0, time.process_time()
    while len(served) < 600:
        gevent.sleep(0.0001)
        now = time.process_time()
        longest, before = max(longest, now - before), now
    assert longest < 0.03
    counts = [served.count(number) for number in range(len(pairs))]
    assert min(counts) >= max(counts) // 2
    for pair in pairs:
        for sock in pair:
            sock.close()
