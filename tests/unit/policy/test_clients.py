"""What one client may have of what all share: in one worker and in several, by addresses and by hosts."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.clients import REMEMBERED, SMALL, ClientIdentity, ClientLimit, Clients, ClientUse, HoldingKind
from gateway.policy.shared_counts import CELLS, HEADER, WAYS, WORDS, SharedCounts, clear, open_slot

WORKERS = 3


def memory(slots: int = WORKERS) -> memoryview:
    words = memoryview(bytearray(8 * (HEADER + slots * CELLS * WORDS))).cast("Q")
    for slot in range(slots):
        open_slot(words, slot)
    return words


def by_itself(address: str) -> ClientIdentity:
    return ClientIdentity(address, address)


def workers(most: dict[HoldingKind, int], words: memoryview | None = None) -> list[Clients]:
    words = words or memory()
    return [Clients(SharedCounts(words, slot), by_itself, most, {}) for slot in range(WORKERS)]


def take_all(clients: Clients, prefix: str) -> int:
    """How many flows somebody gets who takes all that he can, by 300 addresses."""
    for number in count():
        try:
            clients.enter(HoldingKind.FLOWS, f"{prefix}{number % 300}")
        except ClientLimit:
            return number
    raise AssertionError("unreachable")


STEPS = st.lists(
    st.tuples(
        st.integers(0, WORKERS - 1), st.sampled_from(list(HoldingKind)), st.sampled_from(["a", "b", "c"]), st.booleans()
    ),
    max_size=200,
)


@given(STEPS)
def test_a_client_never_has_more_than_the_number_in_all_workers_together(
    steps: list[tuple[int, HoldingKind, str, bool]],
) -> None:
    most = {HoldingKind.FLOWS: 5, HoldingKind.HANDSHAKES: 1, HoldingKind.ASSOCIATIONS: 3}
    clients = workers(most)
    held: list[tuple[int, HoldingKind, str, ClientUse]] = []
    for worker, kind, client, begin in steps:
        if begin:
            has = Counter((k, c) for _, k, c, _ in held)[kind, client]
            if has == most.get(kind):
                with pytest.raises(ClientLimit):
                    clients[worker].enter(kind, client)
            else:
                held.append((worker, kind, client, clients[worker].enter(kind, client)))
        elif held:
            where, what, _, holder = held.pop(0)
            clients[where].give_back(what, holder)
    for kind in HoldingKind:
        for client in ("a", "b", "c"):
            has = sum(1 for _, k, c, _ in held if (k, c) == (kind, client))
            assert all(worker.count(kind, client) == has for worker in clients)


def test_what_a_dead_worker_held_is_free_at_once() -> None:
    words = memory()
    clients = workers({HoldingKind.FLOWS: 4}, words)
    for _ in range(3):
        clients[0].enter(HoldingKind.FLOWS, "a")
    clients[1].enter(HoldingKind.FLOWS, "a")
    with pytest.raises(ClientLimit):
        clients[2].enter(HoldingKind.FLOWS, "a")
    clear(words, 0)
    for _ in range(3):
        clients[2].enter(HoldingKind.FLOWS, "a")
    with pytest.raises(ClientLimit):
        clients[1].enter(HoldingKind.FLOWS, "a")


def test_the_addresses_of_one_host_are_one_client() -> None:
    def identify(address: str) -> ClientIdentity:
        return ClientIdentity("link 02", "link 02") if address.startswith("fd00") else by_itself(address)

    clients = Clients(SharedCounts(memory()), identify, {HoldingKind.ASSOCIATIONS: 10}, {})
    for number in range(10):
        clients.enter(HoldingKind.ASSOCIATIONS, f"fd00::{number}")
    with pytest.raises(ClientLimit):
        clients.enter(HoldingKind.ASSOCIATIONS, "fd00::beef")
    clients.enter(HoldingKind.ASSOCIATIONS, "192.0.2.1")


def test_whoever_takes_all_leaves_as_much_as_he_has_and_the_next_one_too() -> None:
    """Without any number. Addresses of one network count together, however many they are."""

    def identify(address: str) -> ClientIdentity:
        return ClientIdentity(address, address.partition("::")[0])

    room = 10_000
    clients = Clients(SharedCounts(memory()), identify, {}, {HoldingKind.FLOWS: room})
    got = []
    for network in range(6):
        got.append(take_all(clients, f"fd{network:02}::"))
    assert got[0] == room // 2
    assert all(part >= SMALL for part in got)
    assert sum(got) < room
    clients.enter(HoldingKind.FLOWS, "192.0.2.1")  # who comes last


def test_a_client_that_has_little_is_served_whatever_others_have() -> None:
    clients = Clients(SharedCounts(memory()), by_itself, {}, {HoldingKind.FLOWS: 100})
    for _ in range(SMALL):
        clients.enter(HoldingKind.FLOWS, "a")
    with pytest.raises(ClientLimit):
        clients.enter(HoldingKind.FLOWS, "a")
    clients.enter(HoldingKind.FLOWS, "b")


def test_clients_that_have_gone_are_forgotten_and_those_that_are_there_are_not() -> None:
    shared = SharedCounts(memory())
    clients = Clients(shared, by_itself, {HoldingKind.FLOWS: 2}, {})
    for _ in range(2):
        clients.enter(HoldingKind.FLOWS, "stays")
    for number in range(3 * REMEMBERED):
        clients.give_back(HoldingKind.FLOWS, clients.enter(HoldingKind.FLOWS, f"goes {number}"))
    assert len(clients._addresses) <= REMEMBERED
    with pytest.raises(ClientLimit):
        clients.enter(HoldingKind.FLOWS, "stays")


def test_a_full_set_of_the_table_counts_alone_and_gives_old_places_away() -> None:
    words = memory()
    first, second = SharedCounts(words, 0), SharedCounts(words, 1)
    keys = [1 + number * (CELLS // WAYS) for number in range(WAYS + 2)]  # all of one set
    cells = [first.cell(key) for key in keys[:WAYS]]
    for cell in cells:
        cell.live = 1
    left = SharedCounts(words, 2).cell(keys[0])  # of a process that is no more
    left.spent = 9
    alone = first.cell(keys[WAYS])
    alone.live = 7
    assert first.full == 1
    assert alone.all_live() == 7
    assert second.cell(keys[WAYS]).all_live() == 0  # it cannot know
    assert second.cell(keys[0]).all_live() == 1
    cells[2].release()
    late = first.cell(keys[WAYS + 1])
    late.live = 3
    assert second.cell(keys[WAYS + 1]).all_live() == 3
    after = SharedCounts(words, 2)
    assert after.cell(keys[0]).spent == 9  # its successor goes on with it
    again = SharedCounts(words, 2)
    for key in keys[1 : WAYS + 1]:
        again.cell(key).live = 1
    assert not again.full  # nobody has asked for the old one
