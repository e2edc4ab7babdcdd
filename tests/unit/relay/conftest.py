from __future__ import annotations

import gc
from collections.abc import Iterator

import gevent
import pytest

from gateway.net.relay.half import Half
from gateway.net.relay.splice import Relay, RelayHandle
from tests.unit.relay.ends import descriptors, settle


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay that must leave nothing behind: no flow, descriptor, pipe, watcher, timer or object."""
    gevent.sleep(0.001)  # the hub has its descriptors now
    settle()
    before, watching = descriptors(), gevent.get_hub().loop.activecnt
    relay = Relay(idle_timeout=30, half_close_timeout=30)
    yield relay
    settle()
    assert not relay.live
    assert relay.pool.lent == 0
    assert len(relay.poller) == 0
    assert len(relay.wheel) == 0
    relay.close()
    settle()
    assert descriptors() == before
    assert gevent.get_hub().loop.activecnt == watching
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, RelayHandle | Half)]
