"""The broker's pinholes: what is open, and the kernel's table that makes it so. This module has no sockets of workers.

Requests wait until `flush`, so that many of them are one netfilter transaction. The kernel's table is the journal: a
new engine reads the leases back from it.
"""

from __future__ import annotations

import _socket
import errno
import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from alg.address import Endpoint
from gateway.broker.elements import admitting, elements_of, leases_of
from gateway.broker.forwards import SLOT as FORWARDS
from gateway.broker.forwards import Forwards
from gateway.broker.guard import TableGuard
from gateway.broker.limits import BrokerLimits
from gateway.broker.nat import Nat
from gateway.broker.netfilter import Change, Netfilter, TableGoneError
from gateway.broker.netlink import NetfilterError
from gateway.broker.pending import Closing, Opening, Pending, Updating
from gateway.broker.permits import BrokerPermits
from gateway.broker.ports import can_bind
from gateway.broker.return_path import ReturnPath
from gateway.broker.ruleset_watch import Changes
from gateway.broker.sharing import Sharing
from gateway.broker.stale import Stale
from gateway.broker.usage import Usage
from gateway.lease.messages import (
    MOST_COUNTED,
    AskSeen,
    Count,
    Counted,
    Dial,
    LeaseOpened,
    Open,
    RequestRefused,
    Seen,
    ToWorker,
    Update,
)
from gateway.lease.table import LeaseTable
from gateway.lease.validate import (
    SHORTEST_TTL,
    check_connection,
    check_flow,
    check_public,
    check_request,
    check_update,
    valid_lease_id,
)
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Along, Lease, PinholeRequest, PinholeUpdate
from gateway.net.neighbours import Kernel, Neighbours
from gateway.observe.admin import Rows
from gateway.observe.log import get_logger
from gateway.observe.metrics import Sample
from gateway.observe.pinhole_log import PINHOLES as pinhole_log

log = get_logger()


@dataclass(slots=True)
class Strays:
    """Ids of leases that perhaps no process knows. `inherited`: those of a worker that died, which its successor has
    not claimed yet; `loaded`: those of the previous broker, which may not have answered the worker that asked for
    them."""

    inherited: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)


class Engine:
    """All pinholes of one instance.

    `table`: its nft table. `send(slot, messages)` sends answers to a worker, and returns those that its socket did not
    accept. `busy` is called again and again while a program is waited for.
    """

    def __init__(
        self,
        *,
        table: str,
        limits: BrokerLimits,
        send: Callable[[int, Sequence[ToWorker]], Sequence[ToWorker]],
        busy: Callable[[], None] = lambda: None,
    ) -> None:
        self.netfilter = Netfilter(table, busy)
        self.netfilter.measure(limits.meter, now=False)
        self._permits = BrokerPermits(table, limits)
        self._neighbours = Neighbours(limits.inside, Kernel())
        self._leases = LeaseTable(backend="kernel", identify=self._neighbours.identify, limits=limits.of_table())
        self._rng = random.SystemRandom()
        self._pending = Pending(send)
        self._nat = Nat(self.netfilter, self._rng)
        self.return_path = ReturnPath(table, limits)
        self._sharing = Sharing(self._leases)
        self._usage = Usage(self.netfilter, self._leases, lambda: self._guard.table_gone())
        self._forwards = Forwards(self._leases, self._rng, self._forwarding, self._renew, self._end_forwarding)
        self._configured_forwards = limits.forwards
        self.stale = Stale(self._leases.of_client, self.netfilter.has_any)
        self._guard = TableGuard(
            self.netfilter,
            self._leases,
            self._sharing.first_whole,
            self._usage,
            self._lose_all,
            self.stale.table_made,
            limits,
        )
        self._strays = Strays()

    # --- beginning, passing and end of time -------------------------------------------------------------------------

    def load(self) -> None:
        """Read back what is in the table, and create the table if it is missing or not as it must be. Raises
        NetfilterError."""
        try:
            elements = self.netfilter.elements()
        except TableGoneError:  # or it is another version's, without one of our sets
            elements = []
        self.stale.begin()
        made = self._guard.load()
        self.return_path.make()
        unix = time.time()
        now = time.monotonic()
        for found in leases_of(elements, unix):
            self._leases.restore(found.lease, owner=found.slot, deadline=now + found.left, used=found.used)
            self._strays.loaded.add(found.lease.id)
            self._usage.opened(found.lease)
            if found.merged:
                self._sharing.found_merged(found.lease)
        if made and len(self._leases):
            self.stale.table_made()
            self._guard.put_back(empty=True)
        self._forwards.want(self._configured_forwards)
        log.info("broker.table", table=self.netfilter.name, made=made, pinholes=len(self._leases))

    def shut_down(self) -> None:
        """Close everything and delete the table. Raises NetfilterError."""
        leases = self._leases.close_all(now=time.monotonic())
        for lease in leases:
            pinhole_log.info("pinhole.close", lease, by="stop")
        self.netfilter.unload()
        self.return_path.remove()
        for lease in leases:
            self.stale.closed(lease)
        self.stale.forget()
        log.info("broker.stopped", opened=self._pending.opened, used=self._usage.used, refused=self._pending.refused)

    def configure(self, limits: BrokerLimits) -> int:
        """Use other limits from now on. Pinholes of clients that are not inside any more are closed. Returns how many
        those are."""
        try:
            self.netfilter.measure(limits.meter)
        except NetfilterError:
            if self.netfilter.is_whole():
                raise
            self._guard.table_gone()  # another program has just removed it; it is made with the new rates
        self._permits.configure(limits)
        self._neighbours.inside = self._permits.inside
        self._guard.configure(limits)
        self.return_path.configure(limits)
        self._leases.configure(limits.of_table())
        self._forwards.want(limits.forwards)
        return len(self._end("reload", lambda lease: not limits.has_inside(lease.client)))

    def kick(self, lease_id: str) -> Rows:
        """Close the pinhole with this id, whatever its owner, and return it."""
        ended = self._end("kick", lambda lease: lease.id == lease_id)
        return [{"id": lease.id, "kind": "pinhole", "client": lease.client, "server": lease.peer} for lease in ended]

    def _end(self, by: str, unwanted: Callable[[Lease], bool]) -> list[Lease]:
        self.flush()  # what is on its way too
        ended = [(owner, lease) for owner, lease in self._leases.owned() if unwanted(lease)]
        for owner, lease in ended:
            self._leases.close(lease.id, now=time.monotonic())
            self._closing(owner, lease, by)
        return [lease for _, lease in ended]

    def deadline(self) -> float:
        """Return the time (monotonic) at which `tick` has something to do; infinity: not before the next request."""
        due = min(self._leases.deadline() or math.inf, self._guard.deadline(), self.stale.deadline())
        due = min(due, self.return_path.deadline())
        if self._guard.restoring:  # until then usage and forwardings are left alone
            return due
        return min(due, self._usage.deadline(), self._forwards.deadline())

    def tick(self) -> None:
        """Do what is due: a transaction, expiry, reconciliation. Raises NetfilterError if the table cannot be
        created."""
        self.flush()  # whatever was asked for since the last turn of the loop
        now = time.monotonic()
        for lease in self._guard.look(now):
            self.stale.disturbed(lease)
        self.return_path.tick(now)
        self._expire(now)
        if not self._guard.restoring:
            self._forwards.tick(now)
            self.flush()
        self.stale.tick()
        if not self._guard.restoring:
            self._usage.tick(now)

    def __len__(self) -> int:
        return len(self._leases)

    # --- what workers ask -------------------------------------------------------------------------------------------

    def open(self, slot: int, message: Open) -> None:
        """Check a request, choose a port, and open it with the next `flush`, which answers; or refuse it at once."""
        request = message.request
        try:
            if request.along is not None:
                request = msgspec.structs.replace(request, public_host=None)  # what it says of that does not count
            check_request(request, self._permits.inside)
            self._permits.check_kind(slot, request)
            if request.along is not None:
                request = self._located(request, request.along)
                check_public(request, self._permits.inside)
            if request.find:
                self._find(slot, message)
                return
            if self._strays.loaded:
                self._replace_unanswered(slot, request)
            untranslated = request.direction == "out" or request.public_host is None
            if request.single and request.kind != "local" and untranslated:
                self._replace(slot, request)
            try:
                lease = self._reserve(slot, request)
            except PinholeRefused as refusal:
                if refusal.rule == "taken":
                    self._disinherit(slot, request)
                elif refusal.rule in ("quota", "share", "full"):
                    self.flush()  # what is about to be closed holds a place no longer
                    if not self._guard.restoring:
                        self._usage.notice(request.visitor or request.client, refusal.rule)  # used ones do not count
                else:
                    raise
                lease = self._reserve(slot, request)
        except PinholeRefused as refusal:
            self._pending.refuse(slot, message.id, request.client, request.reason, refusal)
            return
        others = self._sharing.others(lease)
        if not others:
            self._pending.opens.append(Opening(slot, message.id, lease, request.ttl))
            return
        self.flush()  # those that it shares a port with are there now
        shared = self._sharing.opening(others, (lease, slot, request.ttl))
        self._pending.opens.append(Opening(slot, message.id, lease, request.ttl, self._counting(shared)))
        self.flush()
        for other, owner, _ in others:  # what a dead process had opened, and its successor opens anew
            if other.id in self._strays.inherited and owner == slot and other.kind == lease.kind:
                self.close(slot, other.id)

    def _counting(self, changed: Change) -> Change:
        """The change with the counters of what is deleted and added again."""
        if not changed.add:
            return changed
        return Change(changed.delete, tuple(self.netfilter.counted(changed.add)))

    def _find(self, slot: int, message: Open) -> None:
        """Answer a question for the public endpoint of an inside socket's conversation. The process that owns the
        conversation, and its peers, are not named."""
        self.flush()  # what is answered has to be open
        lease = self._leases.of_socket(message.request.target)
        if lease is None:
            raise PinholeRefused("none", f"{message.request.target} has no conversation")
        shown = msgspec.structs.replace(lease, id="0" * 16, flow="", peers=())
        self._pending.answer(slot, LeaseOpened(message.id, shown))

    def _located(self, request: PinholeRequest, along: Along) -> PinholeRequest:
        """The request with the public address that its flow has. PinholeRefused."""
        if any(along.source == closing.lease.target for closing in self._pending.closes):
            self.flush()  # a conversation of this very socket translates it as long as it is there
        try:
            public = self._nat.public_of(along)
        except NetfilterError as error:
            raise PinholeRefused("kernel", str(error)) from None
        return msgspec.structs.replace(request, public_host=None if public == request.client else public)

    def _forwarding(self, lease: Lease, ttl: float) -> None:
        """Open a forwarding of the operator's with the next `flush`."""
        self._pending.opens.append(Opening(FORWARDS, 0, lease, ttl))

    def _renew(self, lease_id: str, ttl: float) -> None:
        self.update(FORWARDS, Update(0, PinholeUpdate(lease_id, ttl=ttl)))

    def _end_forwarding(self, lease_id: str) -> None:
        self.close(FORWARDS, lease_id)

    def connect(self, slot: int, message: Dial) -> tuple[_socket.socket, Endpoint] | None:
        """Begin a connection with a client's address, and return it with the endpoint that the server sees; None:
        refused, which is answered here."""
        try:
            check_connection(message.client, message.server, message.port, self._permits.inside)
            self.return_path.settle()
            if not self.return_path.there:
                raise PinholeRefused("flow", "nothing would come back")
            return self._nat.connect(message.client, message.server, message.port or message.server.port)
        except PinholeRefused as refusal:
            self._pending.answer(slot, RequestRefused(message.id, refusal.rule, refusal.detail[:200]))
        except (NetfilterError, OSError) as error:
            self._pending.answer(slot, RequestRefused(message.id, "kernel", str(error)[:200]))
        return None

    def look(self, slot: int, message: AskSeen) -> None:
        """Answer with which address a flow is seen, with the next `flush`."""
        try:
            check_flow(message.along, self._permits.inside)
            self._pending.answer(slot, Seen(message.id, self._nat.public_of(message.along)))
        except PinholeRefused as refusal:
            self._pending.answer(slot, RequestRefused(message.id, refusal.rule, refusal.detail[:200]))
        except NetfilterError as error:
            self._pending.answer(slot, RequestRefused(message.id, "kernel", str(error)[:200]))

    def update(self, slot: int, message: Update) -> None:
        """Change a conversation with the next `flush`, which answers; or refuse at once."""
        update = message.update
        if self._pending.changes(update.lease):
            self.flush()  # the second change of a lease begins where the first one has ended
        old = self._leases.get(update.lease, owner=slot) if valid_lease_id(update.lease) else None
        try:
            if old is None:
                raise PinholeRefused("lease", "no open conversation of this worker")
            check_update(update, old, self._permits.inside)
            new = self._leases.changed(update, unix=time.time(), owner=slot)
        except PinholeRefused as refusal:
            client, reason = (old.client, old.reason) if old is not None else ("", "")
            self._pending.refuse(slot, message.id, client, reason, refusal)
            return
        before = self._leases.deadline_of(old.id)
        now = time.monotonic()
        ttl = max(before - now, SHORTEST_TTL) if update.ttl is msgspec.UNSET else update.ttl
        moves = (old.target, old.second) != (new.target, new.second)
        if moves:
            self.flush()  # a conversation that had this socket may still have to be closed
        self._leases.replace(new, deadline=before if update.ttl is msgspec.UNSET else now + ttl)
        self._pending.updates.append(Updating(slot, message.id, old, new, before, ttl))
        if moves:
            self.flush()  # no request may name the socket that it leaves before it has left it

    def count(self, slot: int, message: Count) -> None:
        """Answer how much has passed through conversations of this slot."""
        self.flush()  # what was opened just now is there to be asked for
        found = [self._leases.get(lease_id, owner=slot) for lease_id in message.leases[:MOST_COUNTED]]
        counts = self._usage.counts([lease for lease in found if lease is not None and not lease.single])
        self._pending.answer(slot, Counted(message.id, counts))

    def close(self, slot: int, lease_id: str) -> None:
        """Close a lease of this slot with the next `flush`. Leases of other slots, and unknown ids, are ignored."""
        lease = None
        if self._pending.changes(lease_id):
            self.flush()  # what is deleted is what the change has made of it
        if valid_lease_id(lease_id):
            lease = self._leases.close(lease_id, now=time.monotonic(), owner=slot)
        if lease is not None:
            self._closing(slot, lease, "worker")

    def greet(self, slot: int, keep: bool) -> None:
        """There is a new worker in this slot: close all its leases with the next `flush`, or keep them for it."""
        self.flush()  # what the predecessor had asked for is its own
        if keep:
            self._strays.inherited = {lease.id for lease in self._leases.of_owner(slot)}
            return
        for lease in self._leases.close_owner(slot, now=time.monotonic()):
            self._closing(slot, lease, "hello")

    def flush(self) -> None:
        """Close, open and change what waits, in one transaction, and answer.

        Afterwards the kernel's table and the lease table agree, every requester knows the outcome or will read it next,
        and a refused request holds no port. Requests between two calls take effect together: closings first, then
        openings, then changes. Code that needs another order calls this in between. What the kernel did not answer
        waits for the next call, as a closing.
        """
        if self._pending:
            self._commit()
        if self._pending.withheld:
            self._pending.release(self.stale.settle(), self._leases.find, self._guard.is_to_restore)
        for slot, lease in self._pending.tell():
            if self._leases.close(lease.id, now=time.monotonic()):
                self._closing(slot, lease, "unheard")

    def _commit(self) -> None:
        closes, opens, updates = self._pending.take()
        refused: dict[int, NetfilterError] = {}
        done = True
        try:
            changes = [closing.change for closing in closes]
            changes += [
                opening.change or Change(add=elements_of(opening.lease, opening.slot, opening.ttl)) for opening in opens
            ]
            changes += [self._change(updating) for updating in updates]
            try:
                refused = self.netfilter.apply(changes)
            except TableGoneError:
                if not self._guard.make_again(
                    [opening.lease for opening in opens], [updating.new for updating in updates]
                ):
                    raise NetfilterError(errno.EAGAIN, "the table is removed again and again") from None
                for opening in opens:
                    if self._leases.find(opening.lease.id) is None:
                        deadline = time.monotonic() + opening.ttl
                        self._leases.restore(opening.lease, owner=opening.slot, deadline=deadline)
                # There is nothing to delete any more, and of an update everything to add.
                changes = [Change()] * len(closes)
                changes += [
                    Change(add=self._sharing.whole(opening.lease, opening.slot, opening.ttl)) for opening in opens
                ]
                if self._guard.restores:
                    changes += [
                        Change(add=self._sharing.whole(updating.new, updating.slot, updating.ttl))
                        for updating in updates
                    ]
                else:
                    done = not updates
                refused = self.netfilter.apply(changes)
        except NetfilterError as error:
            log.error("broker.netfilter_failed", error=str(error), opens=len(opens), closes=len(closes))
            refused = dict.fromkeys(range(len(closes) + len(opens) + len(updates)), error)
            done = False
        for closing in closes:
            self.stale.closed(closing.lease)
        for index, opening in enumerate(opens, len(closes)):
            self._opened_or_not(opening, refused.get(index), done)
        for index, updating in enumerate(updates, len(closes) + len(opens)):
            self._updated_or_not(updating, refused.get(index), done)

    def _change(self, updating: Updating) -> Change:
        """Delete and add the elements of a conversation in one transaction, so that no packet meets it half changed."""
        others = self._sharing.others(updating.new)
        if others:
            left = max(updating.before - time.monotonic(), 0.0)
            return self._counting(
                self._sharing.updating(
                    others, (updating.old, updating.slot, left), (updating.new, updating.slot, updating.ttl)
                )
            )
        old_ends, new_ends = ((lease.expires, lease.target, lease.second) for lease in (updating.old, updating.new))
        former, peers = updating.old.peers, updating.new.peers
        if (
            old_ends == new_ends
            and updating.new.kind in ("conversation", "read")
            and former is not None
            and peers is not None
        ):
            # What happens with every call: only the peers have changed, and what stays, stays with its time.
            return Change(
                admitting(updating.old, [peer for peer in former if peer not in peers], updating.ttl),
                admitting(updating.new, [peer for peer in peers if peer not in former], updating.ttl),
            )
        old, new = (
            elements_of(updating.old, updating.slot, updating.ttl),
            elements_of(updating.new, updating.slot, updating.ttl),
        )
        if old_ends != new_ends:
            return Change(old, tuple(self.netfilter.counted(new)))
        before, after = ({(element.set, element.key) for element in elements} for elements in (old, new))
        return Change(
            tuple(element for element in old if (element.set, element.key) not in after),
            tuple(element for element in new if (element.set, element.key) not in before),
        )

    def _opened_or_not(self, opening: Opening, error: NetfilterError | None, done: bool) -> None:
        if error is not None:
            self._leases.close(opening.lease.id, now=time.monotonic())
            self._pending.refuse(
                opening.slot,
                opening.id,
                opening.lease.client,
                opening.lease.reason,
                PinholeRefused(error.rule, str(error)),
            )
            if not done:
                # If the kernel did not answer, it is not known what it did: what there may be of it must go. But what
                # the kernel has refused is another's, if it is there.
                self._close_elements(opening.slot, opening.lease)
            return
        batch = self.stale.opened(opening.lease)
        self._usage.opened(opening.lease)
        self._pending.answer_opened(opening, batch)

    def _updated_or_not(self, updating: Updating, error: NetfilterError | None, done: bool) -> None:
        """Finish an update. `done`: it is known what the kernel did; otherwise the whole pinhole is closed."""
        if error is None and done:
            self._strays.inherited.discard(updating.new.id)
            batch = 0
            if (updating.old.target, updating.old.second) != (updating.new.target, updating.new.second):
                self.stale.closed(updating.old)
                batch = self.stale.opened(updating.new)
            elif updating.old.peers != updating.new.peers:
                self.stale.admitted(updating.new)
            self._pending.answer_updated(updating, batch)
            return
        refusal = PinholeRefused("lease", "the ruleset was flushed" if error is None else str(error))
        if done:
            if error is not None:  # it is open as it was
                refusal = PinholeRefused(error.rule, str(error))
            self._leases.replace(updating.old, deadline=updating.before)
        elif self._leases.close(updating.new.id, now=time.monotonic()) is not None:
            self._close_elements(updating.slot, updating.old)
            self._closing(updating.slot, updating.new, "kernel")
        self._pending.refuse(updating.slot, updating.id, updating.old.client, updating.old.reason, refusal)

    def _reserve(self, slot: int, request: PinholeRequest) -> Lease:
        if request.kind == "gre" and request.public_host is not None:  # no port is tried: is the address this host's?
            can_bind("udp", request.public_host, 0, foreign=request.along is not None)
        return self._leases.open(
            request,
            now=time.monotonic(),
            unix=time.time(),
            rng=self._rng,
            is_free=lambda port: self._permits.is_free(request, port),
            owner=slot,
            is_free_inside=lambda port: can_bind("udp", request.inner_host or "", port),
        )

    def _replace(self, slot: int, request: PinholeRequest) -> None:
        """A pinhole that is not translated has no port of ours that sets it apart: the same request again takes the old
        one's place, if that is the same process's. PinholeRefused "taken"."""
        same = request.direction, request.transport, request.target, request.peer, request.kind
        for lease in self._leases.of_client(request.client):
            if lease.public == lease.target and _described(lease) == same:
                self.flush()  # that one may be on its way too
                if self._leases.close(lease.id, now=time.monotonic(), owner=slot) is not None:
                    self._closing(slot, lease, "replaced")
                    self.flush()  # its elements are those that the new one is about to have
                elif self._leases.find(lease.id) is not None:
                    raise PinholeRefused("taken", "another process has this pinhole open")

    def _replace_unanswered(self, slot: int, request: PinholeRequest) -> None:
        """Close a lease that the previous broker opened without being able to answer the worker, which now asks for
        the same pinhole again."""
        asked = _asked(request)
        for lease in self._leases.of_client(request.visitor or request.client):
            if lease.id in self._strays.loaded and _asked(lease) == asked:
                self._strays.loaded.discard(lease.id)
                self.close(slot, lease.id)
                self.flush()  # its sockets are free

    def _disinherit(self, slot: int, request: PinholeRequest) -> None:
        """Close what a dead worker had opened for a socket and its successor does not know."""
        for lease in self._leases.of_client(request.client):
            shared = {lease.target.port, lease.second} & {request.target.port, request.second} - {None}
            if lease.id in self._strays.inherited and not lease.single and shared:
                self.close(slot, lease.id)
        self.flush()  # the sockets are free for other requests

    def _closing(self, slot: int, lease: Lease, by: str) -> None:
        self._close_elements(slot, lease)
        self._usage.closed(lease.id)
        pinhole_log.info("pinhole.close", lease, by=by)

    def _close_elements(self, slot: int, lease: Lease) -> None:
        """Have the elements of a lease deleted, which the table of leases does not know any more."""
        others = self._sharing.others(lease)
        if others:
            self.flush()  # those that it has shared a port with are there now
        self._pending.closes.append(Closing(slot, lease, self._counting(self._sharing.closing(others, lease, slot))))
        if others:
            self.flush()

    # --- what the kernel did ----------------------------------------------------------------------------------------

    def rows(self) -> Rows:
        """Return the open pinholes as they are now, with what has passed through conversations."""
        self._look()
        return self._usage.rows()

    def status(self) -> dict[str, Any]:
        """Return how many pinholes there are and were."""
        self._look()
        counts = {"opened": self._pending.opened, "used": self._usage.used, "refused": self._pending.refused}
        return {"table": self.netfilter.name, "pinholes": len(self._leases), **counts}

    def samples(self) -> list[Sample]:
        """Return the open pinholes, for the metrics. Ports at which a worker listens are counted by the worker."""
        return self._leases.samples()

    def _look(self) -> None:
        self.flush()  # what is on its way is among what is looked at
        self._expire(time.monotonic())
        if not self._guard.restoring:
            self._usage.look()

    def _expire(self, now: float) -> None:
        expired = self._leases.expire(now)
        for lease in expired:
            self._usage.closed(lease.id)
            pinhole_log.info("pinhole.expire", lease)
            self.stale.closed(lease)
            if self._leases.sharing(lease):
                self._close_elements(0, lease)  # others stay

    # --- what others did to the table -------------------------------------------------------------------------------

    def others_changed(self, changes: Changes) -> None:
        """Note that another program has changed netfilter's rules."""
        self._permits.foreign.forget()
        self._guard.others_changed(changes)

    def _lose_all(self, without: Collection[str] = ()) -> None:
        """Count all leases as closed, except `without`, the requests that are under way."""
        for lease in self._leases.close_all(now=time.monotonic()):
            self._usage.closed(lease.id)
            if lease.id not in without:
                pinhole_log.info("pinhole.close", lease, by="flush")


def _described(lease: Lease) -> tuple[object, ...]:
    return lease.direction, lease.protocol, lease.target, lease.peer, lease.kind


def _asked(one: PinholeRequest | Lease) -> tuple[object, ...]:
    """Return the fields that a request and its lease have in common."""
    transport = one.protocol if isinstance(one, Lease) else one.transport
    return one.flow, one.reason, one.kind, one.direction, transport, one.target, one.peer, one.visitor, one.outer
