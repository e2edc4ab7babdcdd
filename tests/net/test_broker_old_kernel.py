"""Kernels before Linux 6.5 refuse rules that look for a key in a map without taking its data. There the table has the
keys in sets too, and all is as elsewhere: conversations, mappings, what comes too early, a table that others remove
(docs/decisions/0036-speaking-to-the-kernel.md). `make emulated` tries the same in such a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.broker.elements import KEYS
from gateway.broker.netfilter import Netfilter
from gateway.lease.messages import Close
from tests.net.broker_rig import Rig, wait_for
from tests.net.test_broker_kinds import mapping
from tests.net.test_broker_kinds import test_prefixes_may_change_and_datagrams_stop_at_once as test_prefixes
from tests.net.test_broker_kinds import test_what_a_mapped_socket_sends_leaves_from_the_public_port as test_mappings
from tests.net.test_broker_restore import test_what_is_open_is_put_back_and_media_go_on as test_put_back
from tests.net.test_broker_udp import (
    conversation,
)
from tests.net.test_broker_udp import test_a_new_broker_reads_conversations_back as test_read_back
from tests.net.test_broker_udp import test_a_target_that_moves_takes_its_public_port_along as test_moves
from tests.net.test_broker_udp import test_media_passes_both_ways_and_only_for_the_peer as test_media
from tests.net.test_broker_udp import test_who_comes_too_early_is_heard_at_once_when_he_is_let_in as test_early

__all__ = [
    "test_early",
    "test_mappings",
    "test_media",
    "test_moves",
    "test_prefixes",
    "test_put_back",
    "test_read_back",
]

pytestmark = pytest.mark.net


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path, log=tmp_path / "log", old_kernel=True) as rig:
        yield rig


def keys(rig: Rig, name: str) -> set[bytes]:
    return rig.within(rig.router, lambda: {found.key for found in Netfilter(rig.table).elements([name])})


def test_the_sets_have_the_keys_of_the_maps(rig: Rig) -> None:
    opened = [rig.open(conversation()), rig.open(mapping())]
    assert re.search(r"@manykeys4", rig.at(rig.router, f"nft list table inet {rig.table}"))
    assert keys(rig, "many4")
    for name, of_keys in KEYS.items():
        assert keys(rig, of_keys) == keys(rig, name)
    for lease in opened:
        rig.send(Close(lease.id))
    wait_for(lambda: not any(keys(rig, name) for name in (*KEYS, *KEYS.values())), "the end of all elements")


def test_elsewhere_they_cost_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.open(conversation())
        assert keys(rig, "many4")
        if "@many4" in rig.at(rig.router, f"nft list table inet {rig.table}"):  # a kernel of 6.5 or newer
            assert not any(keys(rig, of_keys) for of_keys in KEYS.values())
