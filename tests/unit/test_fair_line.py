"""Sockets with little to do are served between pieces of work, and each client has its turn: however much one client
has, another one's socket waits for a piece of it, and not for all. Counted in pieces, so that a busy machine does not
matter."""

from __future__ import annotations

import _socket
import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.front.accept import Acceptor
from gateway.net.fair_line import FairLine
from gateway.net.relay.poller import COMPANY, READ, Poller
from gateway.net.relay.wheel import Wheel
from gateway.net.slices import belongs_to, slices

PIECE = 0.0004  # seconds: more than the poller lets pass between two looks
TRIES = 30


@pytest.fixture
def poller() -> Iterator[Poller]:
    poller = Poller()
    yield poller
    poller.close()


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes connected sockets, which are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[socket.socket, socket.socket]:
            near, far = socket.socketpair()
            stack.enter_context(near)
            stack.enter_context(far)
            return near, far

        yield make


class Work:
    """Counts pieces of work. At the end of some, a socket with little to do becomes ready; `waited`: how many further
    pieces each time began before it was served."""

    def __init__(self, poller: Poller, pair: tuple[socket.socket, socket.socket], seconds: float) -> None:
        self.waited: list[int] = []
        self._seconds = seconds
        self._near, self._far = pair
        self._near.setblocking(False)
        self._pieces = 0
        self._sent: int | None = None
        self._watch = poller.watch(self._near.fileno(), READ, self._served, "another client")

    def piece(self) -> None:
        until = time.perf_counter() + self._seconds
        while time.perf_counter() < until:
            pass
        self._pieces += 1
        if self._sent is None and self._pieces % 7 == 3:
            self._sent = self._pieces
            self._far.send(b"x")

    def _served(self, _events: int) -> None:
        self._near.recv(100)
        if self._sent is not None:
            self.waited.append(self._pieces - self._sent)
            self._sent = None

    def run(self) -> None:
        """Until enough was seen."""
        with gevent.Timeout(30):
            while len(self.waited) < TRIES:
                gevent.sleep(0.001)
        self._watch.forget(closing=False)


def make_work(poller: Poller, pairs: Callable[[], tuple[socket.socket, socket.socket]], seconds: float = PIECE) -> Work:
    return Work(poller, pairs(), seconds)


def test_between_greenlets_that_wait_in_line(
    poller: Poller, pairs: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    work = make_work(poller, pairs)

    def forever() -> None:
        while True:
            slices().wait()
            work.piece()

    greenlets = [gevent.spawn(forever) for _ in range(5)]
    work.run()
    gevent.killall(greenlets)
    assert max(work.waited) == 0


def test_between_sockets_with_much_to_do(
    poller: Poller, pairs: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    work = make_work(poller, pairs)
    watches = []
    for _ in range(10):
        near, far = pairs()
        far.send(b"x")  # nobody reads it
        watches.append(poller.watch(near.fileno(), READ, lambda _events: work.piece(), "a client"))
        watches[-1].bulk = True
    work.run()
    for watch in watches:
        watch.forget(closing=False)
    assert max(work.waited) == 0


def test_between_connections_that_begin(
    poller: Poller, pairs: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    """A client begins a hundred connections at once, which need greenlets."""
    work, acceptor = make_work(poller, pairs), Acceptor()
    work_over = False

    def begin() -> None:
        for _ in range(100):
            acceptor.spawn(work.piece, "192.0.2.1")
        if not work_over:
            gevent.get_hub().loop.run_callback(later)

    def later() -> None:
        gevent.spawn_later(0.01, begin)

    begin()
    work.run()
    work_over = True
    with gevent.Timeout(5):
        while acceptor.handling:
            gevent.sleep(0.001)
    assert max(work.waited) <= 3  # those that may begin before others wait in line


def test_between_checks_that_are_due_at_once(
    poller: Poller, pairs: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    """Such as handshakes of one client that have all begun together, and come to nothing."""
    work, wheel = make_work(poller, pairs), Wheel(tick=0.01)

    def check(now: float) -> float:
        work.piece()
        return now

    entries = [wheel.add(0, check) for _ in range(100)]
    work.run()
    for entry in entries:
        wheel.discard(entry)
    assert not len(wheel)
    assert max(work.waited) == 0


def test_a_listener_has_little_to_do(poller: Poller) -> None:
    """Connections are accepted between greenlets that work."""
    pieces, waited = 0, list[int]()
    asked: list[tuple[socket.socket, int]] = []
    acceptor = Acceptor(None, poller)
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        address = listener.getsockname()

        def accepted(sock: _socket.socket, _address: tuple[object, ...]) -> None:
            sock.close()
            client, at = asked.pop()
            client.close()
            waited.append(pieces - at)

        stop = acceptor.listen(listener.detach(), accepted)

        def forever() -> None:
            nonlocal pieces
            while True:
                slices().wait()
                until = time.perf_counter() + PIECE
                while time.perf_counter() < until:
                    pass
                pieces += 1
                if not asked and pieces % 7 == 3:
                    client = socket.socket()
                    client.connect(address)
                    asked.append((client, pieces))

        greenlets = [gevent.spawn(forever) for _ in range(5)]
        with gevent.Timeout(30):
            while len(waited) < TRIES:
                gevent.sleep(0.001)
        gevent.killall(greenlets)
        stop()
        stop()
    for client, _ in asked:
        client.close()
    assert max(waited) == 0


def test_a_client_with_hundreds_of_sockets_has_one_turn(
    poller: Poller, pairs: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    work = make_work(poller, pairs, PIECE / 8)
    watches = []
    for _ in range(400):
        near, far = pairs()
        far.send(b"x")  # nobody reads it
        watches.append(poller.watch(near.fileno(), READ, lambda _events: work.piece(), "a client"))
    work.run()
    for watch in watches:
        watch.forget(closing=False)
    work.waited.sort()
    assert work.waited[len(work.waited) // 2] <= 20
    assert work.waited[-1] <= 60


def test_what_has_much_to_do_is_no_company(
    poller: Poller, pairs: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    """Company is a socket that never had much to do, and was ready lately."""
    served: list[int] = []
    near, far = pairs()
    watch = poller.watch(near.fileno(), READ, served.append)
    watch.heavy = True
    far.send(b"x")
    with gevent.Timeout(5):
        while not served:
            gevent.sleep(0.001)
        assert not poller.has_company(time.perf_counter())
        watch.heavy = False
        while not poller.has_company(time.perf_counter()):
            gevent.sleep(0.001)
        watch.forget(closing=False)
        gevent.sleep(COMPANY * 1.5)
        assert not poller.has_company(time.perf_counter())


def test_a_client_with_many_greenlets_has_one_turn() -> None:
    served: list[str] = []

    def work(name: str) -> None:
        slices().wait()
        served.append(name)
        until = time.perf_counter() + PIECE
        while time.perf_counter() < until:
            pass

    gevent.sleep(0.01)  # nothing of earlier tests is left, so all wait in line before the first is called
    greenlets = []
    for name, count in (("many", 8), ("few", 2), ("many", 8), ("few", 1)):
        for _ in range(count):
            greenlet = gevent.spawn(work, name)
            belongs_to(greenlet, name)
            greenlets.append(greenlet)
    gevent.joinall(greenlets, timeout=5)
    assert served[:6] == ["many", "few"] * 3
    assert served[6:] == ["many"] * 13


def test_who_is_spawned_works_for_the_same_client() -> None:
    served: list[str] = []

    def work(name: str) -> None:
        slices().wait()
        served.append(name)

    def spawn(name: str, count: int) -> None:
        gevent.joinall([gevent.spawn(work, name) for _ in range(count)])

    gevent.sleep(0.01)
    greenlets = [gevent.spawn(spawn, "many", 10), gevent.spawn(spawn, "few", 3)]
    for greenlet in greenlets:
        belongs_to(greenlet, greenlet)
    gevent.joinall(greenlets, timeout=5)
    assert served[:6] == ["many", "few"] * 3


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans())))
def test_a_line(steps: list[tuple[int, bool]]) -> None:
    """Nothing is lost, each owner's things keep their order, and nobody is served twice while another waits who stood
    there before."""
    line, waiting = FairLine(), list[tuple[int, int]]()
    since = dict[int, int]()  # of each owner that waits: how often others were served since its last turn
    for number, (owner, take) in enumerate(steps):
        if not take:
            line.append(owner, (owner, number))
            waiting.append((owner, number))
            since.setdefault(owner, 0)
        elif waiting:
            thing = line.popleft()
            assert thing == next(one for one in waiting if one[0] == thing[0])
            waiting.remove(thing)
            for other in since:
                since[other] = 0 if other == thing[0] else since[other] + 1
                assert since[other] <= 3
            since = {other: count for other, count in since.items() if any(one[0] == other for one in waiting)}
        assert len(line) == len(waiting)
    for thing in waiting[::2]:
        line.discard(thing[0], thing)
        line.discard(thing[0], thing)
    left = waiting[1::2]
    assert sorted(line.popleft() for _ in range(len(line))) == sorted(left)
