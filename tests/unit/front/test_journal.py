"""What the packets process leaves to its successor: everything stored is found, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from alg.address import Endpoint
from alg.sip.journal import ConversationRecord, Entry, TalkRecord
from gateway.front.packets.journal import SLACK, Journal
from gateway.model.requests import Lease

TARGET = Endpoint("192.168.56.10", 4000)
PUBLIC = Endpoint("203.0.113.2", 40000)


@pytest.fixture
def files() -> Iterator[list[int]]:
    files = [os.memfd_create("test") for _ in range(2)]
    yield files
    for fd in files:
        os.close(fd)


def conversation(ref: int, ends: float = 1.0) -> ConversationRecord:
    claims: list[tuple[str, tuple[bytes, ...], tuple[str, ...] | None, float]] = [
        ("call", (b"192.168.56.10", b"\xff-call"), ("203.0.113.10",), float("inf")),
        ("signalling", (), None, 2.0),
    ]
    return ConversationRecord(ref, TARGET, 4001, "sip.rtp", PUBLIC, ("203.0.113.10",), ends, claims, {"uri": b"\xfe"})


def lease(ref: int) -> Lease:
    text = f"{ref:016x}"
    return Lease(text, "p-1", "sip.rtp", TARGET.host, "in", "udp", PUBLIC, TARGET, None, 0, 1.0, "kernel", None, 4001)


def test_what_was_stored_is_found(files: list[int]) -> None:
    journal = Journal(files)
    assert journal.found == []
    journal.put([(Entry("a", conversation(1)), lease(1)), (Entry("b", TalkRecord(TARGET, "x", "y", True)), None)])
    journal.put([(Entry("a", conversation(1, 5.0)), lease(1)), (Entry("c", conversation(3)), lease(3))])
    journal.put([(Entry("c", None), None), (Entry("never there", None), None)])
    found = Journal(files).found
    assert found == [(TalkRecord(TARGET, "x", "y", True), None), (conversation(1, 5.0), lease(1))]
    assert Journal(files).found == found  # and a third time


def test_half_an_entry_does_not_count(files: list[int]) -> None:
    Journal(files).put([(Entry("a", conversation(1)), lease(1))])
    for fd in files:
        os.pwrite(fd, b"\xff" * 10, os.fstat(fd).st_size)
    assert Journal(files).found == [(conversation(1), lease(1))]


def test_what_cannot_be_read_is_nothing(files: list[int]) -> None:
    Journal(files).put([(Entry("a", conversation(1)), lease(1))])
    for fd in files:
        os.pwrite(fd, b"\xff" * 64, 24)
    assert Journal(files).found == []


def test_it_does_not_grow_without_end(files: list[int]) -> None:
    journal = Journal(files)
    for number in range(20000):
        journal.put([(Entry(f"{number % 7}", conversation(number)), lease(number))])
    assert sum(os.fstat(fd).st_size for fd in files) < 3 * SLACK
    assert sorted(record.ref for record, _ in Journal(files).found if isinstance(record, ConversationRecord)) == [
        *range(19993, 20000)
    ]
