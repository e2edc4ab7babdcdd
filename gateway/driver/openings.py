"""Opens what the module of one flow asks for, as far as it may: pinholes, conversations, relays and meetings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

import gevent
import structlog
from gevent.event import Event as Wakeup

from alg.address import Endpoint
from alg.api import (
    Event,
    FindSocket,
    Mode,
    OpenConversation,
    Opened,
    OpenGre,
    OpenMapping,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    OpenRelay,
    Probe,
    Refused,
    Side,
    UpdateConversation,
    UpdateExchange,
    UpdateGre,
    UpdateMapping,
)
from alg.bucket import Rate
from gateway.driver.conversations import Conversations
from gateway.driver.probe import is_proven
from gateway.driver.requests import Conversing, Opening, advertised, is_forbidden, kind_of, request_of
from gateway.driver.surroundings import Surroundings
from gateway.flow.table import Flow
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease
from gateway.pinhole.pacing import at_its_pace
from gateway.pinhole.passage import Passage

log = structlog.get_logger()

MOST_UNANSWERED = 4  # pinholes that a flow may be asking its backend for at a time, given up or not
LONGEST_HOLD = 2.5  # seconds that a message waits for its peer to be let in
OPENINGS = 200  # pinholes a second and flow, and as many at once: a flood must not reach the broker, which serves all


class OpeningRate:
    """Counts how often the module of a flow asks for pinholes, and says when that is too often."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._rate = Rate(OPENINGS, OPENINGS)
        self._logged = False

    def refusal(self, unanswered: int, now: float) -> str | None:
        """Return why an opening is refused: too many are under way, or were asked for in a short time. None: it is
        not."""
        if unanswered < MOST_UNANSWERED and self._rate.take(None, now):
            return None
        if not self._logged:
            self._logged = True  # once for a flow: a log is not to be flooded either
            log.warning("pinhole.flood", flow=self._flow.id, client=self._flow.client.host)
        return "flood"


class Openings:
    """Opens and closes for one flow. `tell` is called later, from a greenlet, with the result.

    `own_hosts`: this host's addresses towards the client and towards the server.
    """

    def __init__(
        self,
        flow: Flow,
        mode: Mode,
        around: Surroundings,
        own_hosts: tuple[str, str],
        kinds: Collection[str],
        tell: Callable[[Event], None],
    ) -> None:
        """`kinds`: the kinds of pinholes that the module's class declares. `tell` is called with its events."""
        self.revoked: str | None = None  # by which rule this flow may open nothing any more
        self.conversations = Conversations(around.backend, mode, flow.id, self._on_conversation, self._admitted)
        self._admission = Wakeup()
        self._flow = flow
        self._mode = mode
        self._around = around
        self._own_hosts = own_hosts
        self._kinds = kinds
        self._tell = tell
        self._leases: dict[int, Callable[[], None]] = {}  # how each is closed
        self._passages: list[tuple[Side, Passage]] = []  # of whom; those that may still come
        self._opening: set[int] = set()
        self._unanswered = 0
        self._flood = OpeningRate(flow)
        self._over = False

    @property
    def asking(self) -> bool:
        """Whether an answer to the module is still to come."""
        return bool(self._opening) or self.conversations.asking

    def open(self, command: Opening) -> None:
        """Ask the backend, unless the answer is known already. May call `tell` at once."""
        if isinstance(command, OpenOutbound):
            self._around.announce(self._flow.client.host, command.target, command.ttl)
        forbidden = self._forbidden(command)
        if (
            isinstance(command, OpenPinhole)
            and command.read
            and (self._around.read is None or command.transport != "tcp")
        ):
            forbidden = "kind"
        refusal = self.revoked or forbidden or self._too_many()
        observe = self._mode is Mode.OBSERVE
        if observe and isinstance(command, OpenMeeting):
            refusal = "observe"
        if refusal:
            self._tell(Refused(command.ref, refusal, self._around.now()))
        elif observe or (isinstance(command, OpenOutbound) and not self._around.backend.outbound):
            # Nothing is opened: the module shows what it would write, with port 0 for the one it would get.
            if observe and not isinstance(command, OpenMeeting):
                target = str(command.target)
                log.info("alg.open", flow=self._flow.id, reason=command.reason, applied=False, target=target)
            self._tell(Opened(command.ref, advertised(command, 0, self._flow, self._around.public), self._around.now()))
        else:
            self._opening.add(command.ref)
            self._unanswered += 1
            gevent.spawn(self._open, command)

    def converse(self, command: Conversing) -> None:
        """Open a pinhole of many packets."""
        forbidden = self._forbidden(command)
        client, public = self._flow.client.host, self._around.public.get(Side.SERVER)
        if refusal := self.revoked or forbidden:
            self._tell(Refused(command.ref, refusal, self._around.now()))
        elif isinstance(command, OpenConversation):
            self.conversations.open(command, client, public)
        elif isinstance(command, OpenMapping):
            self.conversations.map(command, client, public)
        elif isinstance(command, OpenGre):
            self.conversations.tunnel(command, client, self._flow.server.host, public)
        else:
            server, inner = self._flow.server.host, self._around.public[Side.SERVER].local
            self.conversations.exchange(command, server, self._around.public[Side.CLIENT], inner)

    def change(self, command: UpdateConversation | UpdateMapping | UpdateExchange | UpdateGre) -> None:
        """Change a pinhole of many packets."""
        self.conversations.update(command)

    def probe(self, command: Probe) -> None:
        """Find out what listens at a port of the client."""
        refusal = self.revoked or ("target" if command.target.host != self._flow.client.host else self._too_many())
        if refusal:
            self._tell(Refused(command.ref, refusal, self._around.now()))
            return
        self._opening.add(command.ref)
        self._unanswered += 1
        gevent.spawn(self._probe, command)

    def _probe(self, command: Probe) -> None:
        proven = False
        try:
            proven = is_proven(command)
        finally:
            self._unanswered -= 1
            if command.ref in self._opening:
                self._opening.discard(command.ref)
                answer = Opened(command.ref, command.target, self._around.now())
                self._tell_unless_over(answer if proven else Refused(command.ref, "probe", self._around.now()))

    def let_in(self, ref: int) -> None:
        """Wait until no peer is about to be let in to this conversation any more, for at most `LONGEST_HOLD`
        seconds."""
        until = self._around.now() + LONGEST_HOLD
        while self.conversations.is_admitting(ref) and (left := until - self._around.now()) > 0:
            self._admission.clear()
            self._admission.wait(left)

    def _admitted(self, ref: int) -> None:
        self._admission.set()

    def join(self, command: OpenRelay) -> None:
        """Relay between an endpoint of the client and one of the server, if both are their own."""
        if self.revoked or self._mode is Mode.OBSERVE or self._forbidden(command):
            return
        if not self._too_many():
            paths = self._around.paths
            self._expect(Side.SERVER, paths.join(command.client, command.server, self._own_hosts, command.reason))

    def settle(self, side: Side) -> None:
        """Wait, before what `side` has said is read, while a connection that it made earlier is on its way to the
        target, as long as there is patience for that."""
        if self._passages:
            for peer, passage in tuple(self._passages):
                if peer is side:
                    passage.wait()
            self._passages = [entry for entry in self._passages if not entry[1].over]

    def _expect(self, side: Side, passage: Passage) -> None:
        self._passages = [entry for entry in self._passages if not entry[1].over]
        self._passages.append((side, passage))

    def close(self, ref: int) -> None:
        """Close a pinhole, or give it up if it is being opened."""
        self.conversations.close(ref)
        self._opening.discard(ref)
        close = self._leases.pop(ref, None)
        if close is not None:
            close()

    def find(self, command: FindSocket) -> None:
        """Ask for the public endpoint of another socket of the client."""
        self.conversations.find(command, self._flow.client.host, self._around.public.get(Side.SERVER))

    def revoke(self, rule: str, keeps: bool) -> None:
        """Open nothing more for this flow, and close what is unused; with `keeps`, conversations stay open."""
        self.revoked = rule
        log.warning("alg.revoke", flow=self._flow.id, module=self._flow.module, rule=rule)
        self._close_connections()
        if not keeps:
            self.conversations.close_all()

    def end(self) -> None:
        """Tell the module nothing any more."""
        self._over = True
        self._close_connections()
        self.conversations.close_all()

    def leave(self, tell: Callable[[Event], None]) -> Conversations:
        """Hand over the conversations, which are all that is left: `tell` is called with their results from now on."""
        self._tell = tell
        self._close_connections()
        return self.conversations

    def _close_connections(self) -> None:
        for ref in (*self._leases, *self._opening):
            close = self._leases.pop(ref, None)
            self._opening.discard(ref)
            if close is not None:
                close()

    def _forbidden(self, command: Opening | OpenRelay | Conversing) -> str | None:
        """Return why a command is not carried out, whatever a backend would say; None if it may be."""
        if kind_of(command) not in self._kinds:
            return "kind"
        return "target" if is_forbidden(command, self._flow, self._around.public) else None

    def _too_many(self) -> str | None:
        return self._flood.refusal(self._unanswered, self._around.now())

    def _ask(self, command: Opening) -> tuple[Lease, Endpoint | None]:
        """Return the lease and, for a meeting, where the client has to connect. Raises PinholeRefused."""
        request = request_of(command, self._flow, self._around.public)
        if isinstance(command, OpenPinhole) and command.read and self._around.read is not None:
            return self._around.paths.read(request, self._around.read(command.reason)), None
        if isinstance(command, OpenMeeting):
            return self._around.paths.meet(request, self._own_hosts[0])
        return self._around.backend.open(request), None

    def _open(self, command: Opening) -> None:
        ref = command.ref
        try:
            lease, inner = at_its_pace(
                lambda: self._ask(command), self._flow.client.host, lambda: not self._over and ref in self._opening
            )
        except PinholeRefused as refused:
            log.warning("pinhole.refused", flow=self._flow.id, rule=refused.rule, detail=refused.detail)
            self._opening.discard(ref)
            self._tell_unless_over(Refused(ref, refused.rule, self._around.now()))
            return
        finally:
            self._unanswered -= 1
        is_local = inner is not None or (isinstance(command, OpenPinhole) and command.read)
        backend = self._around.paths if is_local else self._around.backend
        close = functools.partial(backend.close, lease)
        if self._over or ref not in self._opening:  # it is not wanted any more
            close()
            return
        self._opening.discard(ref)
        self._leases[ref] = close
        if isinstance(command, OpenPinhole) and (passage := backend.passage(lease)) is not None:
            self._expect(Side.SERVER if command.target.host == self._flow.client.host else Side.CLIENT, passage)
        elsewhere = self._around.backend.elsewhere and inner is None
        public = lease.public if elsewhere else advertised(command, lease.public.port, self._flow, self._around.public)
        self._tell_unless_over(Opened(ref, public, self._around.now(), inner))

    def _on_conversation(self, ref: int, outcome: Endpoint | str, inner: Endpoint | None) -> None:
        """Called from the event loop, so it must not block."""
        gevent.spawn(self._conversation, ref, outcome, inner)

    def _conversation(self, ref: int, outcome: Endpoint | str, inner: Endpoint | None) -> None:
        """Handle the result for a conversation: its public endpoint, or the rule by which it was refused."""
        if self._over:
            self.conversations.close(ref)
        elif isinstance(outcome, str):
            self._tell(Refused(ref, outcome, self._around.now()))
        else:
            self._tell(Opened(ref, outcome, self._around.now(), inner))

    def _tell_unless_over(self, event: Event) -> None:
        if not self._over:
            self._tell(event)
