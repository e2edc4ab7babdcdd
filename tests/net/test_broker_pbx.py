"""A PBX: hundreds of connections of one UDP socket, and openings that wait for the search among them, while connection
tracking is emptied and the rules are flushed. No opening waits for ever, no answer is lost, and media go on."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from alg.address import Endpoint
from gateway.lease.messages import Close, LeaseOpened, Open, RequestRefused
from tests.net.broker_rig import CLIENT, SERVER, Phones, Rig
from tests.net.test_broker_udp import conversation, gets, of

pytestmark = [pytest.mark.net, pytest.mark.rig(per_client=4000, ports="40000-49999")]

PEERS = 300  # connections of each socket of the PBX: far more than are judged at a time (gateway.broker.stale.SLICE)
SOCKETS = 40
LONGEST = 4.0  # seconds: a worker waits 2.25, and a busy machine may take its time


@pytest.fixture
def pbx(rig: Rig, phones: Phones) -> list[socket.socket]:
    """Its sockets, which have talked past all pinholes."""
    rig.at(rig.router, "iptables -I FORWARD -i in -j ACCEPT")
    return [phones.at(rig.inside, CLIENT, 10000 + 2 * number) for number in range(SOCKETS)]


def talk(sockets: list[socket.socket]) -> None:
    """To hundreds of peers each, who are not there."""
    for sock in sockets:
        for port in range(PEERS):
            with contextlib.suppress(OSError):  # of what came back
                sock.sendto(b"early", (SERVER, 20000 + port))


def drain(sock: socket.socket) -> None:
    """Forget what has come, and the errors."""
    sock.settimeout(0.0)
    with contextlib.suppress(BlockingIOError):
        while True:
            with contextlib.suppress(ConnectionError):
                sock.recv(100)


@contextlib.contextmanager
def again_and_again(action: Callable[[], None]) -> Iterator[None]:
    stop, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        while not stop.wait(0.03):
            try:
                action()
            except BaseException as error:
                errors.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
    assert not errors


def emptied(rig: Rig) -> Callable[[], None]:
    """Connection tracking, all the time."""
    return lambda: at_router(rig, "conntrack", "-F")


def flushed(rig: Rig) -> Callable[[], None]:
    """The broker's table: as often as it is restored, with some time in between."""
    times = itertools.count()

    def flush() -> None:
        number = next(times)
        if number % 10 == 1 and number < 40:
            at_router(rig, "nft", "delete", "table", "inet", "algate")

    return flush


def at_router(rig: Rig, *command: str) -> None:
    """Do it, if it can be done at this moment."""
    subprocess.run(["ip", "netns", "exec", rig.router, *command], check=False, capture_output=True)


def both(rig: Rig) -> Callable[[], None]:
    first, second = emptied(rig), flushed(rig)

    def act() -> None:
        first()
        second()

    return act


@pytest.mark.parametrize("trouble", [emptied, flushed, both])
def test_every_opening_is_answered_and_media_go_on(
    rig: Rig, phones: Phones, pbx: list[socket.socket], trouble: Callable[[Rig], Callable[[], None]]
) -> None:
    call, far = phones.at(rig.inside, CLIENT, 4000), phones.at(rig.outside, SERVER)
    lease = rig.open(conversation())
    assert gets(call, far, lease.public) == of(far)
    longest, refused = 0.0, 0
    opened: dict[int, Any] = {}
    with again_and_again(trouble(rig)):
        for _ in range(5):
            talk(pbx)
            asked = {next(rig.ids): sock for sock in pbx}
            begun = time.monotonic()
            for number, sock in asked.items():
                port = sock.getsockname()[1]
                rig.send(Open(number, conversation(target=Endpoint(CLIENT, port), flow=f"w0-{number}")))
            while asked:
                answer = rig.hear()
                longest = max(longest, time.monotonic() - begun)
                sock = asked.pop(answer.id)
                if isinstance(answer, LeaseOpened):
                    opened[sock.getsockname()[1]] = answer.lease
                else:
                    assert isinstance(answer, RequestRefused), answer
                    refused += 1
            assert longest < LONGEST
            for peer in opened.values():
                rig.send(Close(peer.id))
            opened.clear()
    for end in (call, far):
        drain(end)
    assert gets(call, far, lease.public) == of(far)
    assert gets(far, call, of(far)) == lease.public
    for sock in pbx[:3]:
        again = rig.open(conversation(target=Endpoint(CLIENT, sock.getsockname()[1])))
        drain(sock)
        assert gets(sock, far, again.public) == of(far)
        assert gets(far, sock, of(far)) == again.public
    assert refused <= 5 * SOCKETS // 4
    print(f"the longest opening took {longest:.2f} s; {refused} were refused")
