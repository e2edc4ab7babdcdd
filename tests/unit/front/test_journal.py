"""What the packets process leaves to its successor: everything stored is found, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from alg.address import Endpoint
from gateway.front.packets.journal import SLACK, Journal, Stored
from gateway.model.requests import Lease

TARGET = Endpoint("192.168.56.10", 4000)
PUBLIC = Endpoint("203.0.113.2", 40000)


@pytest.fixture
def files() -> Iterator[list[int]]:
    files = [os.memfd_create("test") for _ in range(2)]
    yield files
    for fd in files:
        os.close(fd)


def conversation(key: str, ref: int, said: bytes = b"\xff") -> Stored:
    return Stored("test", key, said, ref, lease(ref), True, "203.0.113.10")


def talk(key: str) -> Stored:
    return Stored("test", key, b"talk")


def gone(key: str) -> Stored:
    return Stored("test", key)


def lease(ref: int) -> Lease:
    text = f"{ref:016x}"
    return Lease(
        text,
        "p-1",
        "sip.rtp",
        TARGET.host,
        "in",
        "udp",
        PUBLIC,
        TARGET,
        None,
        1.0,
        "kernel",
        "conversation",
        None,
        4001,
    )


def test_what_was_stored_is_found(files: list[int]) -> None:
    journal = Journal(files)
    assert journal.found == []
    journal.put([conversation("a", 1), talk("b")])
    journal.put([conversation("a", 1, b"later"), conversation("c", 3)])
    journal.put([gone("c"), gone("never there"), Stored("other", "b")])
    found = Journal(files).found
    assert found == [talk("b"), conversation("a", 1, b"later")]
    assert Journal(files).found == found  # and a third time


def test_modules_do_not_meet(files: list[int]) -> None:
    Journal(files).put([Stored("one", "a", b"1"), Stored("two", "a", b"2")])
    Journal(files).put([Stored("one", "a")])
    assert Journal(files).found == [Stored("two", "a", b"2")]


def test_half_an_entry_does_not_count(files: list[int]) -> None:
    Journal(files).put([conversation("a", 1)])
    for fd in files:
        os.pwrite(fd, b"\xff" * 10, os.fstat(fd).st_size)
    assert Journal(files).found == [conversation("a", 1)]


def test_what_cannot_be_read_is_nothing(files: list[int]) -> None:
    Journal(files).put([conversation("a", 1)])
    for fd in files:
        os.pwrite(fd, b"\xff" * 64, 24)
    assert Journal(files).found == []


def test_it_does_not_grow_without_end(files: list[int]) -> None:
    journal = Journal(files)
    for number in range(20000):
        journal.put([conversation(f"{number % 7}", number)])
    assert sum(os.fstat(fd).st_size for fd in files) < 3 * SLACK
    assert sorted(entry.ref for entry in Journal(files).found if entry.ref is not None) == [*range(19993, 20000)]
