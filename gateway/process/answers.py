"""What a worker answers over its socket of the command line: its flows, pinholes and counters, and what its modules
have to show."""

from __future__ import annotations

import os
import time
from collections import Counter
from functools import partial
from typing import Any, NamedTuple, cast

import gevent
import gevent.socket as gsocket

from alg.datagrams import Shown, ShownModule
from alg.registry import shown_tables, tables_of
from gateway.driver.afterlife import Afterlife
from gateway.driver.conversations import Conversations
from gateway.driver.module_calls import kicked_by, rows_of, samples_of
from gateway.driver.stream import Inspection
from gateway.flow.table import Flow, Flows
from gateway.front.accept import Acceptor
from gateway.front.udp.association import Association
from gateway.net.relay.splice import Relay
from gateway.observe.admin import Rows, answer
from gateway.observe.counters import Key, recent_rows
from gateway.observe.log import get_logger
from gateway.observe.metrics import metrics_row
from gateway.observe.trace import PASSED
from gateway.pinhole.userspace import UserspacePinholes
from gateway.policy.clients import Clients

log = get_logger()

ROWS_IN_A_ROW = 200
_OF_FLOWS = frozenset({"algate_calls"})  # gauges of modules that add up; what they count is counted elsewhere


class _Read(NamedTuple):
    """A module that reads a flow and has something to show: its name, the module itself, its conversations, and the
    transport of what it reads."""

    flow: Flow
    name: str
    module: ShownModule
    held: Conversations
    transport: str


class Answers:
    """Answers questions about the worker of this name."""

    def __init__(
        self,
        name: str,
        flows: Flows,
        userspace: UserspacePinholes,
        acceptor: Acceptor,
        clients: Clients,
        relay: Relay,
        afterlife: Afterlife,
    ) -> None:
        self._name = name
        self._flows = flows
        self._userspace = userspace
        self._acceptor = acceptor
        self._clients = clients
        self._relay = relay
        self._afterlife = afterlife
        self._tables = shown_tables()

    def serve(self, connection: gsocket.socket, _address: tuple[object, ...]) -> None:
        """Answer one question."""
        verbs = {"status": self.status, "flows": self._flow_rows, "pinholes": self._userspace.rows}
        verbs |= {"trace": self._trace, **{name: partial(self._table, name) for name in self._tables}}
        verbs |= {"metrics": self._metrics, "events": recent_rows}
        answer(connection, verbs, {"kick": self._kick, "ladder": PASSED.ladders.rows})

    def status(self) -> Rows:
        """Return the row of `algate status`."""
        watchers = gevent.get_hub().loop.activecnt + len(self._relay.poller)
        row: dict[str, Any] = {"process": self._name, "pid": os.getpid()}
        return [{**row, **self._flows.totals(), "handling": self._acceptor.handling, "watchers": watchers}]

    def _metrics(self) -> Rows:
        samples = [*self._flows.samples(), *self._userspace.samples()]
        inspected = sum(isinstance(flow.carrier, Inspection) for flow in self._flows)  # the acceptor still holds those
        samples.append((("algate_connections", "handshake"), max(0, self._acceptor.handling - inspected)))
        samples.append((("algate_connections", "flow"), len(self._flows)))
        refused = self._clients.refused
        samples += ((("algate_client_refusals_total", *what), number) for what, number in refused.items())
        samples += ((("algate_client_holdings", kind), number) for kind, number in self._clients.totals().items())
        samples.append((("algate_shared_counts_missed_total", "room"), self._clients.counted_alone))
        shown: Counter[Key] = Counter()
        for flow in self._flows:
            for read in _read_of(flow):
                for key, number in samples_of(read.name, read.module):
                    if key[0] in _OF_FLOWS:
                        shown[key] += int(number)
        samples += shown.items()
        return [metrics_row(self._name, samples)]

    def _kick(self, name: str) -> Rows:
        """End the flow with its data connections, close the pinhole, or end the media of the call with this id."""
        rows: Rows = []
        for read in self._read():
            for kicked in kicked_by(read.name, read.module, name):
                ends = {"client": kicked.row["client"], "server": kicked.row["server"]}
                log.warning("call.kick", call=name, flow=read.flow.id, **ends)
                for ref in kicked.refs:
                    read.held.close(ref)
                rows.append(kicked.row)
        for flow in self._flows:
            if name in (flow.id, flow.parent) and flow.carrier is not None:
                log.warning("flow.kick", **flow.names())
                flow.carrier.abort()
                rows.append({"id": flow.id, "kind": "flow", "client": str(flow.client), "server": str(flow.server)})
        return rows + self._userspace.kick(name)

    def _table(self, name: str) -> Rows:
        """Return the rows of the table `name`, of all modules of flows that have it."""
        rows: Rows = []
        for read in self._read():
            if name in tables_of(read.module):
                traffic = {ref: (came, went) for ref, came, went in read.held.traffic()}
                shown = Shown(read.held.lease_ids(), traffic, time.monotonic())
                more = {"transport": read.transport, "flow": read.flow.id}
                rows += ({**row, **more} for row in rows_of(read.name, read.module, name, shown))
        return rows

    def _read(self) -> list[_Read]:
        """Return all modules with something to show that read a flow, or outlive one."""
        found = [read for flow in self._flows for read in _read_of(flow)]
        for survivor in self._afterlife:
            if tables_of(survivor.module):
                name, module = survivor.flow.module or "", cast(ShownModule, survivor.module)
                found.append(_Read(survivor.flow, name, module, survivor.conversations, "tcp"))
        return found

    def _trace(self) -> Rows:
        return [{**row, "process": self._name} for row in PASSED.rows()]

    def _flow_rows(self) -> Rows:
        """Return the rows of the flows, in pieces, so that connections are served meanwhile: there may be thousands."""
        rows = []
        for number, flow in enumerate(self._flows, 1):
            rows.append(flow.row())
            if number % ROWS_IN_A_ROW == 0:
                gevent.sleep(0)
        return rows


def _read_of(flow: Flow) -> list[_Read]:
    """Return what modules read of a flow: one module of a connection, or one for each outside socket of an
    association."""
    carrier = flow.carrier
    if isinstance(carrier, Inspection):
        if tables_of(carrier.module):
            module = cast(ShownModule, carrier.module)
            return [_Read(flow, flow.module or "", module, carrier.conversations, "tcp")]
    elif isinstance(carrier, Association):
        return [
            _Read(flow, messages.name, cast(ShownModule, messages.driver.module), messages.conversations, "udp")
            for messages in carrier.messages()
            if tables_of(messages.driver.module)
        ]
    return []
