"""A broker on a host that has nothing left, descriptors or threads, refuses, and lives."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from pathlib import Path

import pytest

from gateway.broker.admin import AdminDoor
from gateway.broker.netfilter import Netfilter
from gateway.broker.ports import can_bind
from gateway.model.errors import PinholeRefused
from gateway.observe.doorkeeper import Doorkeeper


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_port_that_cannot_be_tried_is_refused(transport: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    refusal: BaseException | None = None
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))  # what is open stays open
    try:
        can_bind(transport, "127.0.0.1", 40000)  # type: ignore[arg-type]
    except BaseException as error:
        refusal = error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert isinstance(refusal, PinholeRefused), refusal
    assert refusal.rule == "full"


def test_a_question_that_gets_no_thread_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    path = str(tmp_path / "broker.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        door = AdminDoor(listener, Netfilter("algate-none"), {}, {})
        for number in range(20):  # more often than there are threads: each gives back its place
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
                asker.connect(path)
                with monkeypatch.context() as patch:
                    patch.setattr(threading.Thread, "start", refuse)
                    door.serve()
                assert asker.recv(1) == b"", number
        assert door._free.acquire(blocking=False)


def test_a_connection_that_gets_no_descriptor_is_turned_away(tmp_path: Path) -> None:
    """Otherwise it would wake the loop without end."""
    path = str(tmp_path / "door.sock")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        doorkeeper = Doorkeeper()
        assert doorkeeper.accept(listener) is None  # nobody is there
        askers = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(4)]
        for asker in askers:
            asker.connect(path)
            asker.settimeout(5)
        held: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            taken = [doorkeeper.accept(listener) for _ in askers[:3]]
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert taken == [None, None, None]
        assert [asker.recv(1) for asker in askers[:3]] == [b"", b"", b""]
        served = doorkeeper.accept(listener)
        assert served is not None
        served.close()
        doorkeeper.close()
        for asker in askers:
            asker.close()
