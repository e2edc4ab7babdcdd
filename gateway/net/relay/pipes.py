"""Pipes for `splice`: borrowed only while bytes are in them, so that a few serve many flows."""

from __future__ import annotations

import fcntl
import os

# Measured, seconds of a worker's CPU for a gigabyte: 64 KiB 0.45, 256 KiB 0.33, 512 KiB 0.28, 1 MiB 0.24. But an
# unprivileged user may have 64 MiB of pipes in all (pipe-user-pages-soft), and all workers are one user; beyond that
# it gets pipes of 8 KiB. So while many are lent, to flows whose sinks are slow, the next are small.
PIPE_SIZE = 1024 * 1024
SMALLEST = 64 * 1024
KEPT = 8
LARGE = 16  # that may be lent at their full size


class Pipe:
    """The two ends of a pipe, and how many bytes are in it."""

    __slots__ = ("held", "reader", "size", "writer")

    def __init__(self, size: int) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        self.size = size  # that was asked for
        while size >= SMALLEST:
            try:
                fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, size)
                break
            except OSError:  # over the user's limit: a small pipe is slower, and right
                size //= 2

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Lends pipes. `lent` is the number of pipes that are lent."""

    def __init__(self, size: int = PIPE_SIZE, kept: int = KEPT) -> None:
        self.lent = 0
        self.size = size
        self._kept = kept
        self._idle: list[Pipe] = []

    def borrow(self) -> Pipe | None:
        """Return an empty pipe; None if the process or the host has no descriptors left."""
        if self._idle:
            pipe = self._idle.pop()
        else:
            try:
                pipe = Pipe(self.size if self.lent < LARGE else min(SMALLEST, self.size))
            except OSError:
                return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take `pipe` back. One that still has bytes in it is closed, because no other flow may get those, and so is a
        small one."""
        self.lent -= 1
        if pipe.held or pipe.size < self.size or len(self._idle) >= self._kept:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close the pipes that are not lent."""
        while self._idle:
            self._idle.pop().close()
