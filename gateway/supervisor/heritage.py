"""What a supervisor leaves to the one that takes over from it, and what the two say to each other meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import msgspec

from alg.address import Endpoint
from gateway.supervisor.listeners import Place

_VARIABLE = "ALGATE_HERITAGE"


class Heritage(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers are descriptors.

    channel: a SEQPACKET socket to the old supervisor; its end: that one has ended. ticket: who asked for this asks with
    it. run_dir, made, lock: the run directory, whether it is the instance's own, and the lock on it. admins: sockets of
    the command line, by process. listeners: by place. slots: in which old workers live on. broker_ends: by slot.
    packets: the slot of the packets process and its end of the pair. journal, console, console_files, counts: see Boot.
    """

    channel: int
    ticket: str
    run_dir: str
    made: bool
    lock: int
    admins: dict[str, int]
    listeners: list[tuple[str, str, int, int]]
    slots: list[int]
    broker_ends: dict[int, int]
    packets: tuple[int, int] | None
    journal: list[int]
    console: tuple[str, int] | None
    console_files: dict[str, int]
    counts: int | None = None  # of a version that had none

    def descriptors(self) -> list[int]:
        """All that are named."""
        some = [self.channel, self.lock, *self.admins.values(), *self.broker_ends.values(), *self.journal]
        some += [fd for *_, fd in self.listeners]
        some += [one[1] for one in (self.packets, self.console) if one is not None]
        some += [self.counts] if self.counts is not None else []
        return [*some, *self.console_files.values()]

    def sockets(self) -> list[tuple[Place, socket.socket]]:
        """The listeners. To be called once."""
        return [
            (Place("socks" if kind == "socks" else "transparent", Endpoint(host, port)), socket.socket(fileno=fd))
            for kind, host, port, fd in self.listeners
        ]

    def bequeath(self) -> subprocess.Popen[bytes]:
        """Start this program once more, as it is installed now, with the same command line."""
        memfd = os.memfd_create("algate-heritage", 0)
        os.write(memfd, msgspec.json.encode(self))
        os.lseek(memfd, 0, os.SEEK_SET)
        try:
            return subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                pass_fds=[memfd, *self.descriptors()],
                env={**os.environ, _VARIABLE: str(memfd)},
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(memfd)


def inherited() -> Heritage | None:
    """What this process was left, if it is to take over from another one."""
    number = os.environ.pop(_VARIABLE, None)
    if number is None:
        return None
    with open(int(number), "rb") as file:
        heritage = msgspec.json.decode(file.read(), type=Heritage)
    for fd in heritage.descriptors():
        os.set_inheritable(fd, False)
    return heritage


class Channel:
    """One end of the line between the two supervisors; `word` is "prepared", "go", "ready", or "failed: REASON"."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ended = False
        self.words: list[str] = []

    def say(self, word: str) -> None:
        """Nobody need be there to hear it."""
        try:
            self.sock.send(word.encode())
        except OSError:
            pass

    def hear(self) -> None:
        """Take what has come; call it when the socket is readable."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.words.append(data.decode())
        self.ended = self.ended or not data

    @property
    def failure(self) -> str | None:
        """Why the other one has given up."""
        failed = [word.partition(": ")[2] for word in self.words if word.startswith("failed: ")]
        return failed[0] if failed else ("it has ended" if self.ended else None)
