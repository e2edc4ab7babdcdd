"""Which flows a module reads, and what becomes of those whose module is not there or cannot begin."""

from __future__ import annotations

from typing import Any, cast

import gevent
import pytest
from structlog.testing import capture_logs

from alg.address import Endpoint
from alg.api import AlgModule
from gateway.config.load import parse_config
from gateway.driver.afterlife import Afterlife
from gateway.driver.announced import Announced
from gateway.driver.guard import ModuleGuard
from gateway.driver.runner import Arrival, FlowRunner, Means
from gateway.flow.table import Flows
from gateway.net.relay.splice import Relay
from gateway.net.sockets import endpoint
from gateway.policy.decide import Policy, PolicyInForce
from gateway.process.installed import stream_readers
from tests.unit.driver.driven import Plain, SlowBackend
from tests.unit.relay.ends import read_exactly, tcp_pair


class Rig:
    def __init__(self, relay: Relay, module: type | None, port: int) -> None:
        self.announced = Announced()
        self.flows = Flows("w0", relay)
        config = parse_config(f'[alg.ftp]\nports = [{port}]\nmode = "rewrite"\n', "test")
        readers = stream_readers(config, {} if module is None else {"ftp": cast(type[AlgModule], module)})
        backend: Any = SlowBackend()
        means = Means({"transparent": backend}, backend, ModuleGuard(), self.announced, Afterlife(), {})
        self.runner = FlowRunner(self.flows, readers, "auto", PolicyInForce(Policy([])), means)


class Counts(Plain):
    made = 0

    def __init__(self, context: object = None) -> None:
        super().__init__(context)
        Counts.made += 1


class CannotBegin(Plain):
    def __init__(self, context: object = None) -> None:
        raise RuntimeError("no")


class DeclaresNonsense(Plain):
    most_held = cast(int, "much")


BROKEN = {"cannot begin": CannotBegin, "declares nonsense": DeclaresNonsense}


@pytest.mark.parametrize("case", ["missing", *BROKEN, "announced", "read"])
def test_its_bytes_arrive(relay: Relay, case: str) -> None:
    client, left = tcp_pair()
    server, right = tcp_pair()
    port = right.getpeername()[1]
    kinds = {"missing": None, **BROKEN}
    rig = Rig(relay, kinds.get(case, Counts), port)
    Counts.made = 0
    if case == "announced":
        rig.announced.add("127.0.0.1", Endpoint("127.0.0.1", port), 60)
    with capture_logs() as lines:
        running = gevent.spawn(
            rig.runner.run, left, right, Arrival("transparent", endpoint(left.getpeername()), b"early ")
        )
        client.sendall(b"and late")
        assert read_exactly(server, 14) == b"early and late"
        server.sendall(b"back")
        assert read_exactly(client, 4) == b"back"
    assert [line["event"] for line in lines if line["log_level"] == "error"] == (
        ["alg.broken"] if case in BROKEN else []
    )
    assert Counts.made == (1 if case == "read" else 0)
    (flow,) = rig.flows
    assert flow.carrier is not None
    flow.carrier.abort()
    running.join(5)
    with gevent.Timeout(5):
        while len(rig.flows):
            gevent.sleep(0.01)
