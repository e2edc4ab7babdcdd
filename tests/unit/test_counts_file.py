"""Counting in shared memory by real processes that are killed at any moment, as the supervisor goes on with them."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from gateway.observe.counters import counts
from gateway.policy.limits import LimitReached, RuleLimits, Session
from gateway.policy.rules import Decision, Limits
from gateway.policy.shared_counts import clear, open_slot
from gateway.process import counts_file

WORKERS, CLIENTS = 4, 3
ALL, OF_ONE = 6, 3  # sessions
KILLS = 60
MISSED = ("algate_shared_counts_missed_total", "lock")
LIMITED = Decision(True, "r", limits=Limits(sessions=ALL, per_client=OF_ONE))
RATED = Decision(True, "s", limits=Limits(rate=200.0))


@pytest.fixture
def memory() -> Iterator[int]:
    fd = counts_file.create()
    yield fd
    os.close(fd)


def _work(fd: int, slot: int, truth: mmap.mmap, seed: int) -> None:
    """Open and end sessions for ever. `truth`: what each worker has admitted, a byte for each client; the last bytes
    say whether there were too many."""
    chance = random.Random(seed)
    limits = RuleLimits(counts_file.shared_counts(os.dup(fd), slot))
    live: list[tuple[int, Session]] = []
    while True:
        if live and chance.random() < 0.45:
            client, session = live.pop(chance.randrange(len(live)))
            truth[slot * CLIENTS + client] -= 1
            session.release()
            continue
        client = chance.randrange(CLIENTS)
        with contextlib.suppress(LimitReached):
            session = limits.enter(LIMITED, str(client), time.monotonic())
            truth[slot * CLIENTS + client] += 1
            live.append((client, session))
            there = truth[: WORKERS * CLIENTS]
            if sum(there) > ALL or any(sum(there[each::CLIENTS]) > OF_ONE for each in range(CLIENTS)):
                truth[-1] = 1


def test_killed_at_any_moment_they_leave_nothing_and_nobody_gets_too_much(memory: int) -> None:
    words = counts_file.view(memory)
    truth = mmap.mmap(-1, 4096)
    context, chance = multiprocessing.get_context("fork"), random.Random(1)
    workers = {}

    def begin(slot: int) -> None:
        open_slot(words, slot)
        workers[slot] = context.Process(target=_work, args=(memory, slot, truth, chance.randrange(1 << 30)))
        workers[slot].start()

    def kill(slot: int) -> None:
        process = workers.pop(slot)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
        assert process.exitcode == -signal.SIGKILL  # and no failure of its own
        truth[slot * CLIENTS : (slot + 1) * CLIENTS] = bytes(CLIENTS)
        clear(words, slot)

    try:
        for slot in range(WORKERS):
            begin(slot)
        for _ in range(KILLS):
            time.sleep(chance.random() * 0.02)
            slot = chance.randrange(WORKERS)
            kill(slot)
            begin(slot)
    finally:
        for slot in list(workers):
            kill(slot)
    assert not truth[-1], "too many sessions at a time"
    last = RuleLimits(counts_file.shared_counts(os.dup(memory), WORKERS))
    for client in "01":
        for _ in range(OF_ONE):
            last.enter(LIMITED, client, time.monotonic())
    with pytest.raises(LimitReached):
        last.enter(LIMITED, "2", time.monotonic())


def _ask(fd: int, slot: int, truth: mmap.mmap) -> None:
    limits = RuleLimits(counts_file.shared_counts(os.dup(fd), slot))
    while True:
        with contextlib.suppress(LimitReached):
            limits.enter(RATED, "a", time.monotonic()).release()
            at = slot * 8
            truth[at : at + 8] = (int.from_bytes(truth[at : at + 8]) + 1).to_bytes(8)


def test_a_rate_is_what_it_says_though_workers_are_killed(memory: int) -> None:
    words = counts_file.view(memory)
    truth = mmap.mmap(-1, 4096)
    context, chance = multiprocessing.get_context("fork"), random.Random(2)
    workers = {}
    began = time.monotonic()

    def begin(slot: int) -> None:
        open_slot(words, slot)
        workers[slot] = context.Process(target=_ask, args=(memory, slot, truth))
        workers[slot].start()

    try:
        for slot in range(2):
            begin(slot)
        while time.monotonic() < began + 2:
            time.sleep(0.05 + chance.random() * 0.05)
            slot = chance.randrange(2)
            workers[slot].kill()
            workers[slot].join(10)
            clear(words, slot)
            begin(slot)
    finally:
        for process in workers.values():
            process.kill()
            process.join(10)
    took = time.monotonic() - began
    admitted = sum(int.from_bytes(truth[at : at + 8]) for at in range(0, 16, 8))
    assert 0.9 * 200 * took <= admitted <= 1.05 * (200 + 200 * took)


def test_a_lock_that_is_not_to_be_had_is_counted(memory: int) -> None:
    """Nobody waits long for it; the metric says that it happens."""
    ready, stop = os.pipe(), os.pipe()
    holder = os.fork()
    if not holder:
        with contextlib.suppress(BaseException):
            fcntl.lockf(memory, fcntl.LOCK_EX)
            os.write(ready[1], b"x")
            os.close(stop[1])
            os.read(stop[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        before, began = counts[MISSED], time.monotonic()
        limits = RuleLimits(counts_file.shared_counts(os.dup(memory), 0))
        limits.enter(LIMITED, "a", began)
        assert time.monotonic() - began < 0.5
        assert counts[MISSED] == before + 1
    finally:
        for fd in (*ready, *stop):
            os.close(fd)
        os.waitpid(holder, 0)
