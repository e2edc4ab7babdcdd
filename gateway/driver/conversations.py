"""The pinholes of many packets (conversations, mappings, exchanges, calls of PPTP) that one engine or flow holds, by
the engine's own numbers."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
import structlog

from alg.address import Endpoint
from alg.api import (
    FindSocket,
    Mode,
    OpenConversation,
    OpenExchange,
    OpenGre,
    OpenMapping,
    UpdateConversation,
    UpdateExchange,
    UpdateGre,
    UpdateMapping,
)
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease, PinholeRequest, PinholeUpdate
from gateway.net.addresses import PublicAddress
from gateway.pinhole.backend import ConversationBackend

log = structlog.get_logger()

GONE = "lease"
"""The rule by which a change is refused where the pinhole is not open any more."""

OnOutcome = Callable[[int, Endpoint | str, Endpoint | None], None]
Admitted = Callable[[int], None]


def _nobody_waits(ref: int) -> None:
    """The default of `admitted`: does nothing."""


class _Conversation:
    """One conversation: its lease once it is open, and what is still to be done, in order.

    `read`: a module reads its datagrams. `peers`: which peers may send in when all of that is done; `admitting`: how
    many changes that let a peer in are not done yet.
    """

    __slots__ = ("admitting", "busy", "closed", "lease", "peers", "read", "updates")

    def __init__(self, read: bool, peers: tuple[str, ...] | None) -> None:
        self.read = read
        self.peers = peers
        self.admitting = 0
        self.lease: Lease | None = None
        self.updates: deque[tuple[dict[str, Any], bool]] = deque()
        self.busy = False
        self.closed = False

    def lets_in(self, peers: tuple[str, ...] | None) -> bool:
        """Whether these peers are more than may send in now."""
        if self.peers is None or peers is None:
            return self.peers is not None
        return not set(self.peers).issuperset(peers)


class Conversations:
    """Opens, updates and closes conversations: one step after the other for each of them, and many at the same time.
    Never waits.

    `flow`: the id of the flow in leases. `on_outcome(ref, outcome, inner)` is called from the event loop with the
    public endpoint, or the rule of the refusal, and with the inner endpoint of an exchange; it must not block.
    `admitted(ref)` is called likewise when no change that lets a peer in is under way any more (`is_admitting`),
    done or refused. Mode OBSERVE opens nothing, and reports port 0 of the address that would be used.
    """

    def __init__(
        self,
        pinholes: ConversationBackend,
        mode: Mode,
        flow: str,
        on_outcome: OnOutcome,
        admitted: Admitted = _nobody_waits,
    ) -> None:
        self._pinholes = pinholes
        self._mode = mode
        self._flow = flow
        self._on_outcome = on_outcome
        self._admitted = admitted
        self._live: dict[int, _Conversation] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, ref: int) -> bool:
        return ref in self._live

    @property
    def asking(self) -> bool:
        """Whether an answer of the backend is still to come for any of them."""
        return any(conversation.busy for conversation in self._live.values())

    def lease_ids(self) -> dict[int, str]:
        """Return the ids of the open leases, by number."""
        return {
            ref: conversation.lease.id for ref, conversation in self._live.items() if conversation.lease is not None
        }

    def traffic(self) -> list[tuple[int, int, int]]:
        """Return number, packets in and packets out of each open one, as the kernel has counted, except for those that
        a module reads. Waits for the backend."""
        refs = {
            conversation.lease.id: ref
            for ref, conversation in self._live.items()
            if conversation.lease is not None and not conversation.read
        }
        try:
            return [(refs[lease], *counts) for lease, counts in self._pinholes.traffic(list(refs)).items()]
        except PinholeRefused:
            return []  # the broker is being replaced

    def lease(self, ref: int) -> Lease | None:
        """Return the lease of an open pinhole; None if it is not open."""
        conversation = self._live.get(ref)
        return conversation.lease if conversation is not None else None

    def is_read(self, ref: int) -> bool:
        """Whether a module reads the datagrams of this conversation."""
        conversation = self._live.get(ref)
        return conversation is not None and conversation.read

    def is_admitting(self, ref: int) -> bool:
        """Whether a peer is about to be let in and is not yet. A message that names the peer has to wait."""
        conversation = self._live.get(ref)
        return conversation is not None and conversation.admitting > 0

    def restore(self, ref: int, lease: Lease, read: bool) -> None:
        """Take over a conversation that another process has opened."""
        self._live[ref] = conversation = _Conversation(read, lease.peers)
        conversation.lease = lease

    def open(self, command: OpenConversation, client: str, public: PublicAddress | None, read: bool = False) -> None:
        """Open one for the inside host `client`; `on_outcome` is called later. Without `public` it is refused.

        `read`: the packets process reads its datagrams.
        """
        if not self._may_open(command, command.target, client, public):
            return
        assert public is not None
        request = PinholeRequest(
            flow=self._flow,
            reason=command.reason,
            client=client,
            direction="in",
            transport="udp",
            target=command.target,
            second=command.second,
            peer=None,
            peers=command.peers,
            public_host=public.local if public.local != client else None,
            along=public.along,
            ttl=command.ttl,
            kind="read" if read else "conversation",
        )
        self._ask(command.ref, request, public)

    def map(self, command: OpenMapping, client: str, public: PublicAddress | None) -> None:
        """Open a mapping; otherwise like `open`."""
        if not self._may_open(command, command.target, client, public):
            return
        assert public is not None
        transports = set(command.transports)
        if not transports or not transports <= {"tcp", "udp"}:
            self._later(command.ref, "transport")
            return
        request = PinholeRequest(
            flow=self._flow,
            reason=command.reason,
            client=client,
            direction="in",
            transport="tcp+udp" if len(transports) > 1 else "udp" if "udp" in transports else "tcp",
            target=command.target,
            peer=None,
            peers=command.peers,
            public_host=public.local if public.local != client else None,
            along=public.along,
            ttl=command.ttl,
            kind="mapping",
            suggested=command.port,
            exact=command.exact,
        )
        self._ask(command.ref, request, public)

    def exchange(self, command: OpenExchange, server: str, public: PublicAddress, inner_host: str) -> None:
        """Open an exchange of the published host `server` with the client outside, which knows it by `public` and is
        known to it by `inner_host`; otherwise like `open`."""
        if command.server is not None and command.server.host != server:
            self._later(command.ref, "target")
            return
        if self._mode is not Mode.REWRITE:
            self._observed(command.reason, command.server or Endpoint(server, 0))
            self._report_later(command.ref, Endpoint(public.advertised, 0), Endpoint(inner_host, 0))
            return
        pair = command.client_second is not None
        request = PinholeRequest(
            flow=self._flow,
            reason=command.reason,
            client=server,
            direction="in",
            transport="udp",
            target=command.server or Endpoint(server, 0),
            second=(command.server_second or 0) if pair else None,
            peer=None,
            public_host=public.local,
            along=public.along,
            ttl=command.ttl,
            kind="exchange",
            visitor=command.client.host,
            outer=command.client,
            outer_second=command.client_second,
            inner_host=inner_host,
        )
        self._ask(command.ref, request, public)

    def tunnel(self, command: OpenGre, client: str, server: str, public: PublicAddress | None) -> None:
        """Open a call of PPTP of the inside host `client` with `server`; otherwise like `open`."""
        target = Endpoint(client, command.call_id)
        if not self._may_open(command, target, client, public):
            return
        assert public is not None
        request = PinholeRequest(
            flow=self._flow,
            reason=command.reason,
            client=client,
            direction="in",
            transport="gre",
            target=target,
            peer=server,
            public_host=public.local if public.local != client else None,
            along=public.along,
            ttl=command.ttl,
            kind="gre",
        )
        self._ask(command.ref, request, public)

    def _may_open(
        self,
        command: OpenConversation | OpenMapping | OpenGre,
        target: Endpoint,
        client: str,
        public: PublicAddress | None,
    ) -> bool:
        """Whether to ask the backend. If not, the answer in its place is already on its way: with port 0 (of a call
        with its call ID) where nothing is to be opened."""
        if target.host != client:  # an engine's mistake must not become a hole
            self._later(command.ref, "target")
        elif public is None:
            self._later(command.ref, "public")
        elif self._mode is not Mode.REWRITE:
            self._observed(command.reason, target)
            shown = target.port if isinstance(command, OpenGre) else 0
            named = public.advertised
            self._later(command.ref, Endpoint(named, shown) if named != client else target)
        else:
            return True
        return False

    def _observed(self, reason: str, target: Endpoint) -> None:
        """Tell what is not opened, because it is only looked at."""
        log.info("alg.open", flow=self._flow, reason=reason, applied=False, target=str(target))

    def _ask(self, ref: int, request: PinholeRequest, public: PublicAddress) -> None:
        self._live[ref] = conversation = _Conversation(request.kind == "read", request.peers)
        conversation.busy = True
        # What lies before a further NAT has another name there than its own.
        host = public.advertised if public.along is None and request.public_host is not None else None
        self._pinholes.ask(request, functools.partial(self._opened, ref, conversation, host))

    def find(self, command: FindSocket, client: str, public: PublicAddress | None) -> None:
        """Ask for the public endpoint of a socket of the inside host `client` that another process has opened.
        `on_outcome` is called later, with the rule "none" if there is none."""
        if command.target.host != client:
            self._later(command.ref, "target")
        elif public is None:
            self._later(command.ref, "public")
        elif self._mode is not Mode.REWRITE:
            self._later(command.ref, "observe")
        else:
            request = PinholeRequest(
                flow=self._flow,
                reason="find",
                client=client,
                direction="in",
                transport="udp",
                target=command.target,
                peer=None,
                public_host=None,
                ttl=1.0,
                kind="conversation",
                find=True,
            )
            host = public.advertised if public.along is None and public.local != client else None
            self._pinholes.ask(request, functools.partial(self._answered, command.ref, host))

    def _answered(self, ref: int, host: str | None, outcome: Lease | PinholeRefused) -> None:
        if isinstance(outcome, PinholeRefused):
            self._on_outcome(ref, outcome.rule, None)
        else:
            self._on_outcome(ref, Endpoint(host or outcome.public.host, outcome.public.port), None)

    def update(self, command: UpdateConversation | UpdateMapping | UpdateExchange | UpdateGre) -> None:
        """Change a pinhole. `on_outcome` is called with a rule if it is not open any more."""
        conversation = self._live.get(command.ref)
        if conversation is None:
            if self._mode is Mode.REWRITE:
                self._later(command.ref, "lease")
            return
        changes: dict[str, Any] = {} if command.ttl is None else {"ttl": command.ttl}
        if isinstance(command, UpdateExchange):
            changes |= {"target": command.server}
            if command.server_second is not None:
                changes |= {"second": command.server_second}
            lets_in = True
        elif isinstance(command, UpdateGre):
            changes |= {"second": command.server_call_id}
            lets_in = True
        else:
            changes |= {"peers": command.peers}
            lets_in = conversation.lets_in(command.peers)
            conversation.peers = command.peers
        conversation.admitting += lets_in
        conversation.updates.append((changes, lets_in))
        if not conversation.busy:
            self._work(command.ref, conversation)

    def close(self, ref: int) -> None:
        """Close a pinhole, if it is open."""
        conversation = self._live.pop(ref, None)
        if conversation is not None:
            conversation.closed = True
            if not conversation.busy:
                self._end(conversation)
            self._nobody_waits(ref, conversation)

    def close_all(self) -> None:
        for ref in list(self._live):
            self.close(ref)

    def _later(self, ref: int, outcome: Endpoint | str) -> None:
        self._report_later(ref, outcome, None)

    def _report_later(self, ref: int, outcome: Endpoint | str, inner: Endpoint | None) -> None:
        gevent.get_hub().loop.run_callback(self._on_outcome, ref, outcome, inner)

    def _opened(self, ref: int, conversation: _Conversation, host: str | None, outcome: Lease | PinholeRefused) -> None:
        """Handle the answer to an opening. `host`: the advertised address, if it is not the pinhole's own."""
        if isinstance(outcome, PinholeRefused):
            self._lost(ref, conversation, outcome)
            return
        conversation.lease = outcome
        if not conversation.closed:
            self._on_outcome(ref, Endpoint(host or outcome.public.host, outcome.public.port), outcome.inner)
        self._work(ref, conversation)

    def _updated(self, ref: int, conversation: _Conversation, lets_in: bool, outcome: Lease | PinholeRefused) -> None:
        if not isinstance(outcome, PinholeRefused):
            conversation.lease = outcome
        elif outcome.rule == GONE:
            self._lost(ref, conversation, outcome)
            return
        else:  # what was open stays as it was
            log.warning("pinhole.refused", flow=self._flow, rule=outcome.rule, detail=outcome.detail)
            if conversation.lease is not None and not conversation.updates:
                conversation.peers = conversation.lease.peers
        if lets_in and conversation.admitting:
            conversation.admitting -= 1
            if not conversation.admitting:
                self._admitted(ref)
        self._work(ref, conversation)

    def _nobody_waits(self, ref: int, conversation: _Conversation) -> None:
        """Note that the changes that were to let a peer in will not be done."""
        if conversation.admitting:
            conversation.admitting = 0
            self._admitted(ref)

    def _work(self, ref: int, conversation: _Conversation) -> None:
        """Begin the next step, or close if that was asked for meanwhile."""
        conversation.busy = bool(conversation.updates) and not conversation.closed
        if conversation.busy:
            assert conversation.lease is not None
            changes, lets_in = conversation.updates.popleft()
            update = PinholeUpdate(conversation.lease.id, **changes)
            self._pinholes.ask(update, functools.partial(self._updated, ref, conversation, lets_in))
        elif conversation.closed:
            self._end(conversation)

    def _lost(self, ref: int, conversation: _Conversation, refused: PinholeRefused) -> None:
        log.warning("pinhole.refused", flow=self._flow, rule=refused.rule, detail=refused.detail)
        self._end(conversation)
        if not conversation.closed:
            del self._live[ref]
            self._on_outcome(ref, refused.rule, None)
            self._nobody_waits(ref, conversation)

    def _end(self, conversation: _Conversation) -> None:
        if conversation.lease is not None:
            self._pinholes.close(conversation.lease)
            conversation.lease = None
