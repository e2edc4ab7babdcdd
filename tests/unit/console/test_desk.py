"""The supervisor's desk: what a console can ask, over a real lifeline."""

from __future__ import annotations

import array
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.admin import answer, read_rows
from gateway.process.lifeline import Answering, Ask, ToChild
from gateway.supervisor.desk import VERBS, Desk
from gateway.supervisor.run_dir import RunDir


class Console:
    """A child as the desk knows one: it is sent things, with descriptors."""

    def __init__(self, name: str = "console") -> None:
        self.name = name
        self.sent: list[tuple[ToChild, list[int]]] = []

    def tell(self, message: ToChild, fds: Any = ()) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:  # as over a lifeline: what arrives is a descriptor of the receiver's own
            socket.send_fds(ours, [b"x"], list(fds))
            received = socket.recv_fds(theirs, 1, 8)[1]
        self.sent.append((message, list(array.array("i", received))))

    def rows(self) -> list[dict[str, Any]]:
        message, fds = self.sent.pop()
        assert isinstance(message, Answering)
        assert message.error == ""
        with socket.socket(fileno=fds[0]) as connection:
            connection.settimeout(5)
            return read_rows(connection)

    def error(self) -> str:
        message, fds = self.sent.pop()
        assert isinstance(message, Answering)
        assert fds == []
        return message.error


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def desk(tmp_path: Path, asked: list[str]) -> Iterator[Desk]:
    run_dir = RunDir(str(tmp_path / "run"))
    listener = run_dir.listen("worker-0")

    def kick(id: str) -> list[dict[str, Any]]:
        asked.append(id)
        return [{"id": id}]

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            answer(connection, {"flows": lambda: [{"id": "w0-1"}]}, {"kick": kick})

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Desk(run_dir, {"status": lambda: [{"state": "running"}]})
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    run_dir.remove()


def put(desk: Desk, process: str, verb: str, id: str = "") -> Console:
    console = Console()
    desk.serve(console, Ask(7, process, verb, id))  # type: ignore[arg-type]
    return console


def test_a_question_comes_to_its_process_and_the_answer_back(desk: Desk, asked: list[str]) -> None:
    assert put(desk, "worker-0", "flows").rows() == [{"id": "w0-1"}]
    assert put(desk, "worker-0", "kick", "w0-1").rows() == [{"id": "w0-1"}]
    assert asked == ["w0-1"]


def test_the_supervisor_answers_for_itself(desk: Desk) -> None:
    assert put(desk, "supervisor", "status").rows() == [{"state": "running"}]
    assert put(desk, "supervisor", "flows").rows() == []


@pytest.mark.parametrize("verb", ["reload", "drain", "upgrade", "trace", ""])
@pytest.mark.parametrize("process", ["worker-0", "supervisor"])
def test_what_a_page_does_not_show_cannot_be_asked(desk: Desk, process: str, verb: str) -> None:
    assert verb not in VERBS
    assert put(desk, process, verb).error() == f"{verb} is not for the console"


def test_a_worker_does_not_ask(desk: Desk, asked: list[str]) -> None:
    worker = Console("worker-1")
    desk.serve(worker, Ask(7, "worker-0", "kick", "w0-1"))  # type: ignore[arg-type]
    assert worker.error() == "only the console asks"
    assert asked == []


@pytest.mark.parametrize("process", ["nobody", "../worker-0", "/run/other/worker-0", ""])
def test_who_is_not_there_is_not_asked(desk: Desk, process: str) -> None:
    assert "there is no process" in put(desk, process, "flows").error()


def test_one_that_does_not_accept_does_not_stop_the_supervisor(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path / "run"))
    with run_dir.listen("worker-0"):  # it hangs
        desk = Desk(run_dir, {})
        consoles = [put(desk, "worker-0", "flows") for _ in range(40)]
        assert any(console.sent[0][1] == [] for console in consoles)
    for console in consoles:
        for fd in console.sent[0][1]:
            socket.close(fd)
    run_dir.remove()
