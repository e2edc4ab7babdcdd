"""The supervisor's children, where one cannot be started or talks nonsense."""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from gateway.process import lifeline
from gateway.process.lifeline import FromChild, Pong, Ready
from gateway.supervisor import children as supervised
from gateway.supervisor.child import Child
from gateway.supervisor.children import LONGEST_PAUSE, PING_INTERVAL, Children


class Process(Child):
    """A child without a process: this test holds the other end of its lifeline."""

    def __init__(self) -> None:
        self.name = "worker-0"
        self.ready = False
        self.restarts = self.unanswered = 0
        self.answered_after = 0.0
        self._asked = None
        self._process = None
        self.lifeline: socket.socket | None = None
        self.missing = False
        self.starts = 0
        self.signals: list[int] = []

    def start(self) -> None:
        if self.missing:
            raise FileNotFoundError(2, "No such file or directory")
        self.starts += 1
        self.lifeline, self.other = lifeline.pair()
        self.lifeline.setblocking(False)

    def close(self) -> None:
        if self.lifeline is not None:
            self.lifeline.close()
            self.other.close()

    def signal(self, number: int) -> None:
        self.signals.append(number)


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        yield selector


@pytest.fixture
def heard() -> list[FromChild]:
    return []


@pytest.fixture
def children(selector: selectors.BaseSelector, heard: list[FromChild]) -> Children:
    return Children(selector, lambda _, message: heard.append(message))


def test_what_cannot_be_started_is_tried_again(children: Children) -> None:
    child = Process()
    child.missing = True
    children.start_soon(child)
    now = time.monotonic()
    children.tick(now)
    assert child.starts == 0
    assert now < children.due()[-1] <= now + LONGEST_PAUSE
    child.missing = False
    children.tick(now + LONGEST_PAUSE)
    assert child.starts == 1
    child.close()


@pytest.mark.parametrize("nonsense", [b"{", b"[]", b'{"type":"reboot"}', b'{"type":"done","ended":"\xff"}', b"\0"])
def test_a_child_that_talks_nonsense_is_killed_and_ends_nobody_else(
    children: Children, selector: selectors.BaseSelector, heard: list[FromChild], nonsense: bytes
) -> None:
    child = Process()
    children.start(child)
    child.other.send(nonsense)
    lifeline.send(child.other, Ready())
    for _ in range(2):
        for key, _ in selector.select(5):
            key.data()
    assert child.signals == [signal.SIGKILL]
    assert heard == [Ready()]
    child.close()


@pytest.mark.parametrize(("bound", "logged"), [(0.0, True), (60.0, False)])
def test_an_answer_that_takes_too_long_is_logged(
    children: Children,
    selector: selectors.BaseSelector,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bound: float,
    logged: bool,
) -> None:
    """From the first question that it has not answered."""
    monkeypatch.setattr(supervised, "SLOW", bound)
    child = Process()
    children.start(child)
    child.ready = True
    now = time.monotonic()
    children.tick(now + PING_INTERVAL)
    children.tick(now + 2 * PING_INTERVAL)
    assert child.unanswered == 2
    lifeline.send(child.other, Pong())
    for key, _ in selector.select(5):
        key.data()
    assert 0 < child.answered_after < 60
    assert ("process.slow" in capsys.readouterr().out) == logged
    assert child.unanswered == 0
    child.close()
