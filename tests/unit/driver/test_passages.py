"""What a side says waits for the connection that it made before, and for nothing else, nor for ever: real connections,
through the pinholes of userspace, to a target that does not answer before the test lets it."""

from __future__ import annotations

import contextlib
import select
import socket as plain
from collections.abc import Iterator, Sequence

import gevent
import pytest
from gevent.socket import create_connection, socket

from alg.address import Endpoint
from alg.api import (
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    Opened,
    OpenPinhole,
    OpenRelay,
    Received,
    Side,
)
from gateway.flow.table import Flows
from gateway.model.requests import Lease, PinholeRequest
from gateway.net.relay.splice import Relay
from gateway.pinhole import passage
from gateway.pinhole.passage import Passage
from gateway.pinhole.userspace import UserspacePinholes, listen
from tests.unit.driver.driven import Driven, Plain, SlowBackend
from tests.unit.relay.ends import read_all

CLIENT, SERVER = "127.0.0.2", "127.0.0.1"


class Pinholes(SlowBackend):
    """Those of userspace, which close with the flow."""

    def __init__(self, userspace: UserspacePinholes) -> None:
        super().__init__()
        self._userspace = userspace

    def open(self, request: PinholeRequest) -> Lease:
        lease = self._userspace.open(request)
        self.open_now.add(lease.id)
        return lease

    def passage(self, lease: Lease) -> Passage | None:
        return self._userspace.passage(lease)

    def close(self, lease: Lease) -> None:
        super().close(lease)
        self._userspace.close(lease)


class Target:
    """Where the client listens. Its queue is full until `answer`, so that who connects waits (for the kernel to ask
    again after a second)."""

    def __init__(self) -> None:
        self._sock = socket()
        self._sock.bind((CLIENT, 0))
        self._sock.listen(0)
        self.endpoint = Endpoint(CLIENT, self._sock.getsockname()[1])
        self._first = create_connection((CLIENT, self.endpoint.port))

    def answer(self) -> None:
        self._sock.accept()[0].close()

    @property
    def has_come(self) -> bool:
        return bool(select.select([self._sock.fileno()], [], [], 0)[0])

    def close(self) -> None:
        self._first.close()
        self._sock.close()


class Opening(Plain):
    """The client's "open", "close", "join" and "bypass" are orders, everything else passes."""

    def __init__(self, target: Endpoint, server: Endpoint) -> None:
        self._target = target
        self._server = server

    def handle(self, event: Event) -> Sequence[Command]:
        match event:
            case Received(Side.CLIENT, b"open"):
                return [OpenPinhole(1, self._target, SERVER, "tcp", 20.0, "test"), Deliver(Side.SERVER, b"open")]
            case Received(Side.CLIENT, b"close"):
                return [ClosePinhole(1), Deliver(Side.SERVER, b"close")]
            case Received(Side.CLIENT, b"join"):
                return [OpenRelay(self._target, self._server, "test"), Deliver(Side.SERVER, b"join")]
            case Received(Side.CLIENT, b"bypass"):
                return [Bypass()]
            case Opened(_, public):
                self.public = public
            case Closed(side):
                return [CloseWrite(side.other)]
        return super().handle(event)


class Scene:
    """A flow with a pinhole to come, and what is at its ends."""

    def __init__(self, relay: Relay) -> None:
        self.data = listen(SERVER, 0)  # where the server waits to be connected to
        self.target = Target()
        self.module = Opening(self.target.endpoint, Endpoint(SERVER, self.data.getsockname()[1]))
        self.flows = Flows("w1", relay)
        self.userspace = userspace = UserspacePinholes(self.flows, (40000, 49999), 10, 1000.0)
        ends = Endpoint(CLIENT, 4000), Endpoint(SERVER, 21)
        self.driven = Driven(relay, self.module, backend=Pinholes(userspace), paths=userspace, ends=ends)
        self.client, self.server = self.driven.client, self.driven.server

    def order(self, word: bytes) -> None:
        self.client.sendall(word)
        assert self.server.recv(100) == word

    def connect(self, source: str = SERVER) -> socket:
        """The server connects to the pinhole, or another host."""
        with gevent.Timeout(10):
            while not hasattr(self.module, "public"):
                gevent.sleep(0.001)
        return create_connection((SERVER, self.module.public.port), source_address=(source, 0))

    def hears(self, seconds: float) -> bytes:
        """What the client reads within that time."""
        self.client.settimeout(seconds)
        try:
            return self.client.recv(1000)
        except TimeoutError:
            return b""

    def close(self) -> None:
        for sock in (self.client, self.server, self.data, self.target):
            sock.close()
        self.driven.finish()
        with gevent.Timeout(20):
            while self.userspace._passages or len(self.flows):
                gevent.sleep(0.005)
        del self.driven  # pytest holds this object for longer than the relay may be held


@pytest.fixture
def scene(relay: Relay) -> Iterator[Scene]:
    scene = Scene(relay)
    yield scene
    scene.close()


@pytest.mark.parametrize("closes", [False, True])
def test_the_word_waits_for_the_connection(scene: Scene, closes: bool) -> None:
    """A pinhole that is closed meanwhile has let the connection in: that is still waited for."""
    scene.order(b"open")
    with scene.connect():
        scene.server.sendall(b"150")
        assert scene.hears(0.2) == b""
        scene.order(b"close" if closes else b"NOOP")  # the other side waits for nothing
        scene.target.answer()
        assert scene.hears(10) == b"150"
        assert scene.target.has_come
    scene.server.sendall(b"226")
    assert scene.hears(10) == b"226"


def test_the_end_of_the_stream_waits_too(scene: Scene) -> None:
    scene.order(b"open")
    with scene.connect():
        scene.server.shutdown(plain.SHUT_WR)
        assert scene.hears(0.2) == b""
        scene.target.answer()
        scene.client.settimeout(10)
        assert scene.client.recv(1) == b""
        assert scene.target.has_come


def test_the_word_waits_for_a_connection_that_the_gateway_makes(scene: Scene) -> None:
    """Where both sides listen."""
    scene.order(b"join")
    scene.server.sendall(b"150")
    assert scene.hears(0.2) == b""
    scene.target.answer()
    assert scene.hears(10) == b"150"
    assert scene.target.has_come
    scene.data.accept()[0].close()


def test_patience_ends_once_and_for_all(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "PATIENCE", 0.3)
    scene.order(b"open")
    with scene.connect():
        for word in (b"150", b"151", b"152"):
            scene.server.sendall(word)
            assert scene.hears(10) == word
        assert not len(scene.flows)
        assert scene.driven.inspection._openings._passages == []
        scene.server.shutdown(plain.SHUT_WR)
        scene.client.settimeout(10)
        assert scene.client.recv(1) == b""


def test_what_does_not_come_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "PATIENCE", 3600.0)
    scene.order(b"open")
    for number in range(100):
        scene.server.sendall(b"%d" % number)
        assert scene.hears(10) == b"%d" % number


def test_a_stranger_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "PATIENCE", 3600.0)
    scene.order(b"open")
    for number in range(20):
        with scene.connect("127.0.0.3"):
            scene.server.sendall(b"%d" % number)
            assert scene.hears(10) == b"%d" % number


@pytest.mark.parametrize("how", ["bypass", "abort", "reset"])
def test_what_is_held_is_in_no_way_of_an_end(scene: Scene, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Nothing hangs, and every byte is delivered as far as there is somebody to get it."""
    monkeypatch.setattr(passage, "PATIENCE", 3600.0)
    scene.order(b"open")
    with scene.connect():
        scene.server.sendall(b"150")
        assert scene.hears(0.2) == b""
        if how == "bypass":
            scene.client.sendall(b"bypass")
            assert scene.hears(10) == b"150"
            scene.server.sendall(b"226")
            assert scene.hears(10) == b"226"
            scene.client.shutdown(plain.SHUT_WR)
            assert read_all(scene.server) == b"bypass"
        elif how == "abort":
            scene.driven.inspection.abort()
        else:
            scene.client.setsockopt(plain.SOL_SOCKET, plain.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            scene.client.close()
            with contextlib.suppress(OSError):
                read_all(scene.server)
        scene.target.answer()
    scene.server.close()
