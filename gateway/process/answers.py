"""What a worker answers over its socket of the command line: its flows, pinholes and counters, and what its modules
have to show."""

from __future__ import annotations

import os
import time
from collections import Counter
from functools import partial
from typing import Any, cast

import gevent
import gevent.socket as gsocket

from alg.datagrams import Shown, ShownModule
from alg.registry import gauges_of, shown_tables, tables_of
from gateway.driver.afterlife import Afterlife
from gateway.driver.module_calls import kicked_by, rows_of, samples_of
from gateway.flow.carrier import ModuleAtWork
from gateway.flow.table import Flow, Flows
from gateway.front.accept import Acceptor
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
        # A connection that a module reads is still held by the acceptor.
        inspected = sum(any(read.transport == "tcp" for read in _at_work(flow)) for flow in self._flows)
        samples.append((("algate_connections", "handshake"), max(0, self._acceptor.handling - inspected)))
        samples.append((("algate_connections", "flow"), len(self._flows)))
        refused = self._clients.refused
        samples += ((("algate_client_refusals_total", *what), number) for what, number in refused.items())
        samples += ((("algate_client_holdings", kind), number) for kind, number in self._clients.totals().items())
        samples.append((("algate_shared_counts_missed_total", "room"), self._clients.counted_alone))
        shown: Counter[Key] = Counter()
        for _, read in self._read_by_flows():
            module = cast(ShownModule, read.module)
            for key, number in samples_of(read.name, module):
                if key[0] in gauges_of(module):
                    shown[key] += int(number)
        samples += shown.items()
        return [metrics_row(self._name, samples)]

    def _kick(self, name: str) -> Rows:
        """End the flow with its data connections, close the pinhole, or end the media of the call with this id."""
        rows: Rows = []
        for flow, read in self._read():
            for kicked in kicked_by(read.name, cast(ShownModule, read.module), name):
                ends = {"client": kicked.row["client"], "server": kicked.row["server"]}
                log.warning("call.kick", call=name, flow=flow.id, **ends)
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
        for flow, read in self._read():
            module = cast(ShownModule, read.module)
            if name in tables_of(module):
                traffic = {ref: (came, went) for ref, came, went in read.held.traffic()}
                shown = Shown(read.held.lease_ids(), traffic, time.monotonic())
                more = {"transport": read.transport, "flow": flow.id}
                rows += ({**row, **more} for row in rows_of(read.name, module, name, shown))
        return rows

    def _read(self) -> list[tuple[Flow, ModuleAtWork]]:
        """Return all modules with something to show that read a flow, or outlive one."""
        found = self._read_by_flows()
        for survivor in self._afterlife:
            if tables_of(survivor.module):
                name = survivor.flow.module or ""
                found.append((survivor.flow, ModuleAtWork(name, survivor.module, survivor.conversations, "tcp")))
        return found

    def _read_by_flows(self) -> list[tuple[Flow, ModuleAtWork]]:
        """Return all modules with something to show that read a flow."""
        return [(flow, read) for flow in self._flows for read in _at_work(flow) if tables_of(read.module)]

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


def _at_work(flow: Flow) -> tuple[ModuleAtWork, ...]:
    return flow.carrier.readers() if flow.carrier is not None else ()
