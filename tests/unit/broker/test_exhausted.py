"""A broker on a host that has nothing left, descriptors or threads, refuses, and lives."""

from __future__ import annotations

import resource
import socket
import threading
from pathlib import Path

import pytest

from gateway.broker.admin import AdminDoor
from gateway.broker.netfilter import Netfilter
from gateway.broker.ports import can_bind
from gateway.model.errors import PinholeRefused


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
