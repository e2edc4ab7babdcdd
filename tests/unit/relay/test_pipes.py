"""Pipes: lent clean, kept few, and usable where the kernel gives only small ones."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.net.relay.pipes import KEPT, LARGE, PIPE_SIZE, SMALLEST, PipePool
from tests.unit.relay.ends import descriptors


def test_a_pipe_with_bytes_in_it_is_not_lent_again() -> None:
    before = descriptors()
    pool = PipePool()
    pipe = pool.borrow()
    assert pipe is not None
    pipe.held = os.write(pipe.writer, b"secret of another flow")
    pool.give_back(pipe)
    assert pool.lent == 0
    assert descriptors() == before
    pipe = pool.borrow()
    assert pipe is not None
    with pytest.raises(BlockingIOError):
        os.read(pipe.reader, 1)
    pool.give_back(pipe)
    pool.close()
    assert descriptors() == before


def test_few_are_kept() -> None:
    before = descriptors()
    pool = PipePool()
    pipes = [pipe for _ in range(3 * KEPT) if (pipe := pool.borrow())]
    assert pool.lent == len(pipes) == 3 * KEPT
    assert fcntl.fcntl(pipes[0].reader, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    for pipe in pipes:
        pool.give_back(pipe)
    assert pool.lent == 0
    assert descriptors() == before + 2 * KEPT
    pool.close()
    assert descriptors() == before


def test_slow_flows_leave_large_pipes_to_the_others() -> None:
    """The user's limit is for all: so beyond a few, pipes are small, and small ones are not kept for who comes then."""
    pool = PipePool()
    pipes = [pipe for _ in range(LARGE + 3) if (pipe := pool.borrow())]
    sizes = [fcntl.fcntl(pipe.reader, fcntl.F_GETPIPE_SZ) for pipe in pipes]
    assert sizes == [PIPE_SIZE] * LARGE + [SMALLEST] * 3
    for pipe in reversed(pipes):
        pool.give_back(pipe)
    again = [pipe for _ in range(KEPT) if (pipe := pool.borrow())]
    assert {fcntl.fcntl(pipe.reader, fcntl.F_GETPIPE_SZ) for pipe in again} == {PIPE_SIZE}
    for pipe in again:
        pool.give_back(pipe)
    pool.close()


UNPRIVILEGED = """
import fcntl, os, resource
from gateway.net.relay.pipes import PIPE_SIZE, PipePool
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
pool = PipePool()
sizes = []
for _ in range(600):
    pipe = pool.borrow()
    assert os.write(pipe.writer, b"x" * 4096) == 4096 == len(os.read(pipe.reader, 5000))
    sizes.append(fcntl.fcntl(pipe.reader, fcntl.F_GETPIPE_SZ))
assert sizes[0] > sizes[-1], sizes
assert sizes == sorted(sizes, reverse=True), sizes
print("good")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="changes its user, to one that has no other pipes")
def test_beyond_the_limit_of_an_unprivileged_user() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "good\n", done.stderr
