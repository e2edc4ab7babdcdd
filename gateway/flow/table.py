"""Flows (one relayed TCP connection each) and the table of those that are live in this worker."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent.socket as gsocket
import structlog
from gevent import get_hub
from gevent.event import Event

from alg.address import Endpoint
from gateway.flow.carrier import Carrier
from gateway.net.relay.connection import RelaySocket
from gateway.net.relay.copy import CopyHandle, EncodedSocket
from gateway.net.relay.half import FRESH, Legacy, RelayResult
from gateway.net.relay.poller import UNWATCHED, Watches
from gateway.net.relay.splice import Relay
from gateway.observe.counters import count, flow_opened
from gateway.observe.flow_log import FlowLog
from gateway.observe.metrics import Sample
from gateway.policy.clients import Clients, ClientUse, HoldingKind
from gateway.policy.limits import Session
from gateway.policy.pace import Bucket, Pace
from gateway.policy.rules import ShareLimit
from gateway.policy.shares import DOWN, UP, SharedPace

log = structlog.get_logger()

IDLE_TIMEOUT = 7440.0  # seconds without a byte in either direction (RFC 5382 REQ-5)
HALF_CLOSE_TIMEOUT = 600.0  # seconds without a byte after one side has ended
FRONTS = ("socks", "transparent", "published", "pinhole")


class Flow:
    """One flow: its ends, its user, its bytes. `front` is one of FRONTS."""

    __slots__ = (
        "_before",
        "began",
        "carrier",
        "client",
        "ended_by",
        "front",
        "holder",
        "id",
        "line",
        "module",
        "parent",
        "rate",
        "rule",
        "seen",
        "server",
        "session",
        "target",
        "user",
    )

    def __init__(self, flow_id: str, front: str, client: Endpoint, server: Endpoint, user: str | None) -> None:
        self.id = flow_id
        self.front = front
        self.client = client
        self.server = server
        self.user = user
        self.module: str | None = None
        self.parent: str | None = None  # the flow for whose pinhole this one carries data
        self.rule = ""  # which permitted it
        self.target: str | None = None  # what the client asked for, where that is not the server's endpoint
        self.seen: str | None = None  # the address of this host as which the server sees a connection with the client's
        self.rate: float | None = None  # bytes a second in each direction; None: as fast as it goes
        self.session: Session | None = None  # what the rule counts
        self.holder: ClientUse | None = None  # the client that it counts for
        self.line = ""  # what its log lines have in common
        self.ended_by = ""  # why the gateway has ended it, if it has a reason of its own
        self.began = time.monotonic()  # the wall clock may jump
        self.carrier: Carrier | None = None
        self._before = (0, 0)

    @property
    def up(self) -> int:
        """Bytes from the client to the server."""
        return self._before[0] + (self.carrier.up if self.carrier else 0)

    @property
    def down(self) -> int:
        """Bytes from the server to the client."""
        return self._before[1] + (self.carrier.down if self.carrier else 0)

    def hand_over(self, carrier: Carrier | None) -> None:
        """Let `carrier` move the bytes from now on. What the previous carrier has moved stays counted."""
        self._before = (self.up, self.down)
        self.carrier = carrier

    def names(self) -> dict[str, str]:
        """Return the fields that name the flow in each log line about it. Empty ones are left out."""
        names = {
            "flow": self.id,
            "front": self.front,
            "client": str(self.client),
            "server": str(self.server),
            "target": self.target,
            "user": self.user,
            "rule": self.rule,
        }
        return {key: value for key, value in names.items() if value}

    def count_early(self, count: int) -> None:
        """Count bytes of the client that were sent to the server before any carrier."""
        self._before = (self._before[0] + count, self._before[1])

    def row(self) -> dict[str, Any]:
        """The flow as a row of `algate flows`; `since` is Unix time, `up` and `down` are bytes."""
        return {
            "id": self.id,
            "front": self.front,
            "client": str(self.client),
            "server": str(self.server),
            "parent": self.parent,
            "user": self.user,
            "module": self.module,
            "rule": self.rule,
            "since": time.time() - (time.monotonic() - self.began),
            "up": self.up,
            "down": self.down,
        }


class Flows:
    """The live flows of one worker."""

    def __init__(
        self, worker: str, relay: Relay, flow_log: FlowLog | None = None, clients: Clients | None = None
    ) -> None:
        """`clients`: counts the flows of each client. Whether a client may have another one is asked where it is
        accepted."""
        self._clients = clients
        self._worker = worker
        self._relay = relay
        self._log = flow_log or FlowLog()
        # Ids must not repeat those of a worker that this one replaces: kernel leases and logs carry them.
        self._epoch = f"{int(time.time() * 1000) & 0xFFFFFFFF:x}"
        self._numbers = itertools.count(1)
        self._live: dict[str, Flow] = {}
        self._empty = Event()
        self._empty.set()
        self.finished = 0
        self._up = 0
        self._down = 0
        self._on_relayed = self._relayed  # made once: thousands of flows have it

    def use_log(self, flow_log: FlowLog) -> None:
        """Write the log lines of flows by another writer from now on."""
        self._log = flow_log

    def __iter__(self) -> Iterator[Flow]:
        return iter(tuple(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def add_data(self, client: Endpoint, server: Endpoint, parent: str | None, reason: str) -> Flow:
        """Add a data connection that belongs to the flow `parent`: it has the same user, and was permitted by the same
        rule.

        `client` is the end on the side of that flow's client, whichever of the two has connected, so that `up` and
        `down` mean the same for both. `reason`: what its pinhole was opened for.
        """
        owner = self._live.get(parent or "")
        flow = self.add("pinhole", client, server, owner.user if owner is not None else None)
        flow.parent, flow.module = parent, reason
        if owner is not None:
            flow.rule = owner.rule
        return flow

    def add(
        self,
        front: str,
        client: Endpoint,
        server: Endpoint,
        user: str | None = None,
        *,
        rule: str = "",
        target: str | None = None,
    ) -> Flow:
        """Add a new flow, which is in the table until `end`. `rule` has permitted it; `target` is what the client asked
        for."""
        flow = Flow(f"{self._worker}-{self._epoch}-{next(self._numbers)}", front, client, server, user)
        flow.rule, flow.target = rule, target
        if self._clients is not None:
            flow.holder = self._clients.holder(client.host)
            self._clients.take(HoldingKind.FLOWS, flow.holder)
        self._live[flow.id] = flow
        self._empty.clear()
        flow_opened(front, rule)
        self._log.opened(flow)
        return flow

    def end(self, flow: Flow, reason: str) -> None:
        """Remove `flow` from the table, and count it."""
        del self._live[flow.id]
        if flow.session is not None:
            flow.session.release()
        if flow.holder is not None and self._clients is not None:
            self._clients.give_back(HoldingKind.FLOWS, flow.holder)
        self.finished += 1
        count("algate_flows_ended_total", flow.front, reason)
        up, down = flow.up, flow.down
        self._up += up
        self._down += down
        self._log.ended(flow, reason, up, down, round(time.monotonic() - flow.began, 3))
        if not self._live:
            self._empty.set()

    def totals(self) -> dict[str, int]:
        """Return counts since this worker began: live and finished flows, and their bytes."""
        return {
            "flows": len(self._live),
            "finished": self.finished,
            "up": self._up + sum(flow.up for flow in self._live.values()),
            "down": self._down + sum(flow.down for flow in self._live.values()),
        }

    def samples(self) -> list[Sample]:
        """Return the counts as metrics."""
        totals = self.totals()
        fronts = Counter(dict.fromkeys(FRONTS, 0))
        fronts.update(flow.front for flow in self._live.values())
        return [
            *((("algate_flows", front), number) for front, number in fronts.items()),
            (("algate_flow_bytes_total", "up"), totals["up"]),
            (("algate_flow_bytes_total", "down"), totals["down"]),
        ]

    def wait_empty(self, timeout: float) -> bool:
        """Wait for at most `timeout` seconds until no flow is live, and return whether that is so."""
        return bool(self._empty.wait(timeout))

    def relay(
        self,
        flow: Flow,
        client: RelaySocket,
        server: RelaySocket,
        watches: Watches = UNWATCHED,
        legacy: Legacy = FRESH,
    ) -> None:
        """Let the relay carry `flow` from now on, unread. It owns both sockets and ends the flow. Returns at once.

        `legacy`: what another carrier has left to do; up is from the client to the server. A client whose stream is
        protected needs every byte in Python; all others are spliced.
        """
        done = partial(self._on_relayed, flow)
        now = time.monotonic()
        paces = self._paces(flow, now)
        if isinstance(client, EncodedSocket) or isinstance(server, EncodedSocket):
            assert isinstance(client, gsocket.socket)
            assert isinstance(server, gsocket.socket)
            up, down = paces or (None, None)
            flow.hand_over(CopyHandle(self._relay, client, server, done, up, down, legacy))
        else:
            handle = self._relay.start(client, server, done, *paces, watches=watches, legacy=legacy)
            handle.belongs_to(flow.holder)
            flow.hand_over(handle)

    def _paces(self, flow: Flow, now: float) -> tuple[()] | tuple[Pace, Pace]:
        """Return the rate limiters of both directions. A data connection shares the limits of the control flow that
        opened it."""
        payer = self._live.get(flow.parent or "", flow)
        if payer.session is not None and payer.session.shares:
            shares, used_up = payer.session.shares, partial(self._used_up, flow)
            own = [Bucket.of(payer.rate, now) if payer.rate else None for _ in (UP, DOWN)]
            return SharedPace(own[UP], shares, UP, used_up), SharedPace(own[DOWN], shares, DOWN, used_up)
        return (Bucket.of(payer.rate, now), Bucket.of(payer.rate, now)) if payer.rate else ()

    def _used_up(self, flow: Flow, limit: ShareLimit) -> None:
        """End a flow whose quota is used up. Not at once, because it is the relay that calls this."""
        if not flow.ended_by and flow.carrier is not None:
            flow.ended_by = "quota"
            log.warning("quota.used_up", **flow.names(), quota=f"quota_per_{limit.of}", bytes=limit.quota)
            get_hub().loop.run_callback(flow.carrier.abort)

    def _relayed(self, flow: Flow, result: RelayResult) -> None:
        self.end(flow, flow.ended_by or result.reason)

    def departed(self, is_local: Callable[[str], bool]) -> list[tuple[Flow, str]]:
        """Return the flows that use an address that this host no longer has, with that address. Nothing can come to
        them any more."""
        hosts = (
            (flow, host)
            for flow in self
            if flow.carrier
            for host in (*flow.carrier.hosts(), *((flow.seen,) if flow.seen else ()))
            if host != flow.client.host and not is_local(host)  # a connection of ours may have the client's address
        )
        return list({flow.id: (flow, host) for flow, host in hosts}.values())

    def abort_all(self) -> None:
        """Reset every live flow."""
        for flow in self:
            if flow.carrier:
                flow.carrier.abort()
