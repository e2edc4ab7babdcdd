"""What a supervisor hands to the one that takes over from it, and the messages between the two."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from typing import NoReturn, cast

import msgspec

from alg.address import Endpoint
from gateway.supervisor.listeners import ListenerKind, ListenPlace

_VARIABLE = "ALGATE_HERITAGE"


class Heritage(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor hands over. Numbers are descriptors.

    channel: a SEQPACKET socket to the old supervisor; its end means that the old one has ended. ticket: identifies the
    upgrade request; the caller polls for its outcome with it. run_dir, made, lock: the run directory, whether the
    instance has made it, and the lock on it. admins: sockets of the command line, by process. listeners: by place.
    slots: those in which old workers go on. broker_ends: by slot. packets: the slot of the packets process and its end
    of the pair. journal, console, console_files, counts, asking: see Boot. name: the lock on the instance's name
    (name_lock.py).
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
    name: int | None = None
    asking: dict[str, int] = {}

    def descriptors(self) -> list[int]:
        """Return all descriptors."""
        some = [self.channel, self.lock, *self.admins.values(), *self.broker_ends.values(), *self.journal]
        some += [fd for *_, fd in self.listeners]
        some += [pair[1] for pair in (self.packets, self.console) if pair is not None]
        some += [fd for fd in (self.counts, self.name) if fd is not None]
        return [*some, *self.console_files.values(), *self.asking.values()]

    def sockets(self) -> list[tuple[ListenPlace, socket.socket]]:
        """Return the listeners. May be called once."""
        return [
            (ListenPlace(cast(ListenerKind, kind), Endpoint(host, port)), socket.socket(fileno=fd))
            for kind, host, port, fd in self.listeners
        ]

    def bequeath(self) -> Heir:
        """Start this program once more, as it is installed now, with the same command line, and not as a child of this
        process.

        systemd does not wait for the end of a main process that is not its own child, so a stop would be a SIGKILL to
        all. So a process in between starts it and ends, which makes it a child of init, that is systemd. Raises OSError
        if it cannot be started.
        """
        memfd = os.memfd_create("algate-heritage", 0)
        os.write(memfd, msgspec.json.encode(self))
        os.lseek(memfd, 0, os.SEEK_SET)
        reader, writer = os.pipe()
        try:
            between = os.fork()
            if between == 0:
                self._start_and_end(memfd, writer)
            os.close(writer)
            writer = -1
            said = os.read(reader, 64)
            os.waitpid(between, 0)
        finally:
            for fd in (memfd, reader, writer):
                if fd >= 0:
                    os.close(fd)
        number = int(said or b"-1")
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return Heir(number)

    def _start_and_end(self, memfd: int, writer: int) -> NoReturn:
        """Start the program from the process in between. Its pid, or the negative errno, is written to `writer`."""
        try:
            heir = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                pass_fds=[memfd, *self.descriptors()],
                env={**os.environ, _VARIABLE: str(memfd)},
                stdin=subprocess.DEVNULL,
            )
            os.write(writer, str(heir.pid).encode())
        except OSError as error:
            os.write(writer, str(-(error.errno or 1)).encode())
        finally:
            os._exit(0)


def inherited() -> Heritage | None:
    """Return what the previous version has handed to this process; None if it does not take over."""
    number = os.environ.pop(_VARIABLE, None)
    if number is None:
        return None
    with open(int(number), "rb") as file:
        heritage = msgspec.json.decode(file.read(), type=Heritage)
    for fd in heritage.descriptors():
        os.set_inheritable(fd, False)
    return heritage


class Heir:
    """The process that is to take over. It is not a child, so its end is noticed by a pidfd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended already
            self._fd = -1

    def end(self, seconds: float) -> None:
        """Wait this many seconds for its end, then kill it."""
        if self._fd < 0:
            return
        ended = select.poll()
        ended.register(self._fd, select.POLLIN)
        if not ended.poll(seconds * 1000):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            ended.poll()
        self.close()

    def close(self) -> None:
        """Stop watching the process."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Channel:
    """One end of the channel between the two supervisors. `word` is "prepared", "go", "ready", or "failed: REASON".

    Later the new supervisor says "reload" (read the configuration again), "stop" (let flows end within the usual time)
    and "cut" (end them).
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ended = False
        self.words: list[str] = []

    def say(self, word: str) -> None:
        """Send a word. It is no error if the other side is gone."""
        try:
            self.sock.send(word.encode())
        except OSError:
            pass

    def hear(self) -> None:
        """Receive what has come. Call it when the socket is readable."""
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
        """Return why the other supervisor has given up."""
        failed = [word.partition(": ")[2] for word in self.words if word.startswith("failed: ")]
        return failed[0] if failed else ("it has ended" if self.ended else None)
