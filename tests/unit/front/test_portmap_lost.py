"""What a flush of the whole ruleset costs that is not undone: all mappings are lost at once."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Sequence

from alg.address import Endpoint
from gateway.front.packets.journal import Journal
from gateway.front.portmap.leases import Leases
from gateway.front.portmap.mapper import MapperSetting, PortMapper
from gateway.front.portmap.memory import Memory
from gateway.front.portmap.permits import Permits
from gateway.front.portmap.table import MOST, Hold, Mapping, MappingLimits, MappingTable
from gateway.model.requests import ConnectRequest, Lease, PinholeRequest, PinholeUpdate
from gateway.policy.decide import Decision


class Flushed:
    """A broker that has nothing any more."""

    def __init__(self) -> None:
        self.asked = 0

    def open(self, request: PinholeRequest) -> Lease:
        raise NotImplementedError

    def update(self, update: PinholeUpdate) -> Lease:
        raise NotImplementedError

    def count(self, leases: Sequence[str]) -> dict[str, tuple[int, int]]:
        self.asked += len(leases)
        return {}

    def close(self, lease_id: str) -> None:
        raise NotImplementedError


def permit(_request: ConnectRequest) -> Decision:
    raise NotImplementedError


def test_all_mappings_that_are_lost_end_in_one_look() -> None:
    table, broker = MappingTable(MappingLimits()), Flushed()
    memory = Memory(Journal([os.memfd_create(f"journal{i}") for i in range(2)]), "boot")
    setting = MapperSetting([ipaddress.ip_network("10.0.0.0/8")], restore=False)
    restarted: list[None] = []
    memory.restarted.append(lambda: restarted.append(None))
    mapper = PortMapper(table, Leases(broker), lambda _version: None, Permits(permit), setting, memory, str)
    for number in range(MOST):
        client = str(ipaddress.ip_address(0x0A000000 + number // 16))
        hold = Hold("pcp", "", time.monotonic() + 3600, lease=f"{number:016x}")
        table.restore(Mapping(client, "udp", 5000 + number % 16, Endpoint("203.0.113.2", 1024 + number), {"pcp": hold}))
    began = time.process_time()
    mapper.look()
    took = time.process_time() - began
    assert (len(table), broker.asked, len(restarted)) == (0, MOST, 1)
    assert took < 4.0, took  # before, each of them was looked for among all: a minute
