"""What becomes of a conversation whose change is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from alg.address import Endpoint
from alg.api import Mode, OpenConversation, UpdateConversation
from gateway.driver.conversations import Conversations
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Done, Lease, PinholeRequest, PinholeUpdate
from gateway.net.addresses import PublicAddress

TARGET = Endpoint("192.0.2.1", 5000)
LEASE = Lease(
    id="1",
    flow="f",
    reason="test",
    client=TARGET.host,
    direction="in",
    protocol="udp",
    public=Endpoint("203.0.113.1", 40000),
    target=TARGET,
    peer=None,
    expires=0.0,
    backend="kernel",
    kind="conversation",
    peers=("198.51.100.1",),
)


class Backend:
    """Keeps what is asked until a test answers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[PinholeRequest | PinholeUpdate, Done]] = []
        self.closed: list[str] = []

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        self.asked.append((request, done))

    def answer(self, outcome: Lease | PinholeRefused) -> None:
        self.asked.pop(0)[1](outcome)

    def close(self, lease: Lease) -> None:
        self.closed.append(lease.id)

    def traffic(self, leases: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return {}


@pytest.mark.parametrize("rule", ["lease", "peers", "quota", "kernel", "broker"])
def test_a_refused_change_ends_only_what_is_not_open_any_more(rule: str) -> None:
    backend, outcomes, admitted = Backend(), list[object](), list[int]()
    held = Conversations(
        backend, Mode.REWRITE, "f", lambda ref, outcome, inner: outcomes.append(outcome), admitted.append
    )
    held.open(
        OpenConversation(1, TARGET, None, LEASE.peers, 60.0, "test"),
        TARGET.host,
        PublicAddress("203.0.113.1", "203.0.113.1"),
    )
    backend.answer(LEASE)
    assert outcomes == [LEASE.public]
    held.update(UpdateConversation(1, ("198.51.100.1", "198.51.100.2"), None))
    assert held.is_admitting(1)
    backend.answer(PinholeRefused(rule, "x"))
    assert admitted == [1]  # what waits for the peer goes on
    assert not held.is_admitting(1)
    gone = rule == "lease"
    assert (1 in held) is not gone
    assert outcomes[1:] == (["lease"] if gone else [])
    assert backend.closed == (["1"] if gone else [])
    if not gone:  # asked once more, it is a change again
        held.update(UpdateConversation(1, ("198.51.100.1", "198.51.100.2"), 30.0))
        assert held.is_admitting(1)
        [(update, _)] = backend.asked
        assert isinstance(update, PinholeUpdate)
