"""Finds conntrack entries of UDP that contradict the open pinholes, and decides when to search for and delete them.

An entry is the memory of a translation. What a peer sent before its pinhole opened is a connection to this host itself,
and would stay one; what an inside socket sent before has another public port; what was let out to a host that is no
peer any more is marked, and would be dropped. No request waits for the search: it takes long, and packets that wait in
a queue belong to connections that must not be deleted. So it comes later, for all that changed meanwhile, and deletes
what is wrong.

While the kernel walks its table it serves no packets on that processor. So it is asked soon only where something may be
wrong that matters now, and the kernel answers that at once: whether a socket has sent packets past all pinholes
(decision 0079).
"""

from __future__ import annotations

import ipaddress
import math
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from alg.address import Endpoint
from gateway.broker.conntrack import Conntrack, Tracked, TrackedEnd, TrackedEntry
from gateway.broker.elements import NOT_NOTED, second_of, talked_of
from gateway.broker.marks import MEDIA
from gateway.broker.netlink import NetfilterError
from gateway.model.requests import Lease
from gateway.observe.log import get_logger

Right = dict[TrackedEnd, list[tuple[Lease, TrackedEnd]]]
"""What connections of a socket must look like: the leases that the socket has, and the source that answers must
have."""

SOON = 0.02  # seconds between a change and the look, where something may be wrong that matters now
SHARE = 10  # a look that took a second is followed by the next one ten seconds later at the soonest
FORGOTTEN = 120.0  # seconds for which there may be connections of sockets that talked before the table was made again
LONGEST = 0.5  # seconds that an opening waits at the longest for the look that its client needs first
LATER, LATER_SHARE = 1.0, 500  # the same for all other changes
SLICE = 64  # connections that are judged, and deleted, at a time: a client may have tens of thousands of one socket

log = get_logger()


class LeftBehind:
    """The connections of pinholes that the broker before this one has closed, and perhaps of others.

    `opened`: the pinholes of which `take` has not spoken yet.
    """

    def __init__(self) -> None:
        self.opened: list[Lease] = []
        self._search: Future[list[TrackedEntry]] | None = None
        self._by_socket: dict[Endpoint, list[TrackedEntry]] = {}  # by the socket that may have been a client's

    def begin(self, search: Future[list[TrackedEntry]]) -> None:
        """Wait for the result of a search."""
        self._search = search

    def take(self) -> tuple[list[TrackedEntry], list[Lease]]:
        """Return connections of the clients' sockets of pinholes that were opened, each once, and those pinholes;
        nothing before the search has ended. Raises NetfilterError, once, if it has failed."""
        if self._search is not None:
            if not self._search.done():
                return [], []
            search, self._search = self._search, None
            for entry in search.result():
                for end in {entry.connection.source.endpoint, entry.connection.reply_source.endpoint}:
                    self._by_socket.setdefault(end, []).append(entry)
        leases, self.opened = self.opened, []
        return [old for lease in leases for end in _targets_of(lease) for old in self._by_socket.pop(end, ())], leases


class Search:
    """A thread that searches for the connections of some sockets, and what it has found and is not judged yet.
    `ended` is called, in that thread, when a search has ended."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self.began = -math.inf  # when the last search did (monotonic)
        self._ended = ended
        self._finder, self._deleter = Conntrack(), Conntrack()
        self._executor = ThreadPoolExecutor(1)
        self._running: Future[tuple[list[TrackedEntry], list[Lease]]] | None = None
        self._found: list[TrackedEntry] = []
        self._leases: list[Lease] = []

    def begin(self, changed: dict[Endpoint, Lease]) -> None:
        """Search for the connections of these sockets, each with a pinhole of it. None may be under way."""
        self.began = time.monotonic()
        self._running = self._executor.submit(self._find, changed)
        self._running.add_done_callback(lambda _: self._ended())

    def left_behind(self) -> Future[list[TrackedEntry]]:
        """Begin a search for all connections that pinholes have let in, and return it. It takes the place of this
        search."""
        searching = self._executor.submit(self._finder.marked, MEDIA)
        searching.add_done_callback(lambda _: self._ended())
        return searching

    @property
    def under_way(self) -> bool:
        """Whether what was asked for is not all found and judged yet."""
        return self._running is not None or bool(self._found)

    @property
    def waits(self) -> bool:
        """Whether the search waits for the thread that walks the table, and not for `go_on`."""
        return not self._found and (self._running is None or not self._running.done())

    def deadline(self) -> float:
        """Return the time (monotonic) at which `go_on` has something to do, if something is under way; infinity: not
        before `ended`."""
        return math.inf if self.waits else 0.0

    def add(self, found: list[TrackedEntry], leases: list[Lease]) -> None:
        """Have these connections judged too, by what the clients of these leases have open."""
        self._found += found
        self._leases += leases

    def go_on(self, open_of: Callable[[str], Iterable[Lease]], most: int = SLICE) -> bool:
        """Judge the next of the connections that were found, by the pinholes of this moment, and delete those that are
        wrong. Return whether the search is at its end. Raises NetfilterError; then it is at its end too."""
        if self._running is not None and self._running.done():
            running, self._running = self._running, None
            self.add(*running.result())
        try:
            found, self._found = self._found[-most:], self._found[:-most]
            for entry in _wrong_of(found, self._leases, open_of) if found else ():
                self._deleter.delete(entry)
        except NetfilterError:
            self._found = []
            raise
        finally:
            if not self._found:
                self._leases = []
        return not self.under_way

    def finish(self, open_of: Callable[[str], Iterable[Lease]]) -> None:
        """Wait for the end of a search, and delete all that is wrong. Raises NetfilterError."""
        while self.under_way:
            if self._running is not None:
                wait([self._running])
            self.go_on(open_of)

    def _find(self, changed: dict[Endpoint, Lease]) -> tuple[list[TrackedEntry], list[Lease]]:
        """Runs in the thread: find the connections of the changed sockets, and their leases. Empties `changed` bit by
        bit, because freeing tens of thousands of entries at once would delay the other thread."""
        found = self._finder.find(changed)
        ends = [end.endpoint for entry in found for end in (entry.connection.source, entry.connection.destination)]
        leases = {lease.id: lease for end in ends if (lease := changed.get(end))}
        while changed:
            changed.popitem()
        return found, [*leases.values()]


class Early:
    """Pinholes whose clients had sent packets before. Their older connections are deleted before the answer goes out.
    What is opened while a search is under way is the next one's.

    `settled`: the number of the last search that is at its end. `noted_from`: since when (monotonic) the kernel's table
    has noted which sockets have talked.
    """

    def __init__(self, search: Search) -> None:
        self.settled = 0
        self.noted_from = -math.inf
        self._search = search
        self._searched: list[Lease] = []
        self._next: list[Lease] = []
        self._next_at = 0.0  # when a tenth of the time allows another search
        self._at_the_latest = math.inf

    def add(self, lease: Lease) -> int:
        """Add a lease to the next search, and return the number of that search."""
        self._next.append(lease)
        self._at_the_latest = min(self._at_the_latest, time.monotonic() + LONGEST)
        return self.settled + (2 if self._searched else 1)

    def deadline(self) -> float:
        """Return the time (monotonic) at which `go_on` has something to do; infinity: not before another opening, or
        the end of a search."""
        if self._searched:
            return self._search.deadline()
        return min(self._next_at, self._at_the_latest) if self._next else math.inf

    def go_on(self, open_of: Callable[[str], Iterable[Lease]]) -> None:
        """Judge some of what was found, and begin the next search if it is due. Raises NetfilterError."""
        if self._searched and not self._search.waits and self._search.go_on(open_of):
            self._end()
        if self._next and not self._searched and self.deadline() <= time.monotonic():
            self._searched, self._next, self._at_the_latest = self._next, [], math.inf
            self._search.begin({endpoint: lease for lease in self._searched for endpoint in _endpoints_of(lease)})

    def give_up(self) -> list[Lease]:
        """End the search, which has failed; return the pinholes that it was for."""
        searched = self._searched
        self._end()
        return searched

    def _end(self) -> None:
        self._searched = []
        self.settled += 1
        now = time.monotonic()
        self._next_at = now + SHARE * (now - self._search.began)


class Stale:
    """The sockets whose connections have to be searched. `open_of`: returns the open pinholes of a client; `is_any`:
    whether any of some elements (set, key) is in the kernel's table.

    `wake` is readable when a search has ended; then read it and call `tick` and `settle`.
    """

    def __init__(
        self,
        open_of: Callable[[str], Iterable[Lease]],
        is_any: Callable[[Iterable[tuple[str, bytes]]], bool],
    ) -> None:
        self.wake, self._waker = socket.socketpair()
        self._open_of = open_of
        self._is_any = is_any
        self._left = LeftBehind()
        self._early = Early(Search(self._wake))
        self._changed: dict[Endpoint, Lease] = {}  # by all their sockets: what is looked for, so that is made once
        self._closed: set[Endpoint] = set()  # the clients' sockets of those that have ended
        self._asked: set[Endpoint] = set()  # of which it matters whether they have talked
        self._ask_at = self._soon = self._later = math.inf  # when to ask that, and when to look
        self._looked, self._took = -math.inf, 0.0  # when the last look ended, and how long it took
        self._look = Search(self._wake)

    def _wake(self) -> None:
        self._waker.send(b"\0")

    def begin(self) -> None:
        """Search for the connections that pinholes have let in, because this broker does not know which of these the
        one before it has closed. It is for the thread to wait for that."""
        self._left.begin(self._look.left_behind())

    def opened(self, lease: Lease) -> int:
        """Note that a pinhole was opened: what its client's socket sent before has another public port. Return what
        `settle` has to have returned before its opening may be answered: 0, or more.

        Where the peer is known it may send as soon as the client's answer is out, and would meet the older connection:
        connection tracking gives it another port then, to which the client's program may answer from now on, and what
        the client sends to the right one is dropped. So that connection is deleted before the opening is answered.
        """
        if not is_datagram(lease):
            return 0
        batch = 0
        ports = _ports(lease)
        targets = [target for _, target in ports]
        if lease.backend == "kernel" and not lease.single and lease.target.port:
            if lease.peers and self._have_talked(targets):
                batch = self._early.add(lease)
            else:
                self._ask(targets)
        self._left.opened.append(lease)
        self._take_left()
        if self._closed and not self._closed.isdisjoint(targets):
            self._soon = min(self._soon, time.monotonic() + SOON)
        self._add(lease, ports)
        return batch

    def settle(self) -> int:
        """Delete the older connections of the clients that had talked before their pinholes were opened, unless a tenth
        of the time has gone into that already. Return up to which number of `opened` that is done; `deadline` says
        when to call again."""
        try:
            self._early.go_on(self._open_of)
        except NetfilterError as error:
            log.warning("broker.conntrack_failed", error=str(error))
            for lease in self._early.give_up():
                self._ask(_targets_of(lease))
        return self._early.settled

    def _take_left(self) -> None:
        """Have what the broker before this one has left of the sockets of pinholes that are open now judged."""
        try:
            self._look.add(*self._left.take())
        except NetfilterError as error:
            log.warning("broker.conntrack_failed", error=str(error))

    def table_made(self) -> None:
        """Note that the kernel's table was lost and made again, so that the kernel does not know which sockets have
        sent before. As long as connections of that time may exist, any socket may have."""
        self._early.noted_from = time.monotonic() + FORGOTTEN

    def admitted(self, lease: Lease) -> None:
        """Note that a pinhole admits other peers than before, which may have sent too early."""
        if is_datagram(lease):
            ports = _ports(lease)
            self._ask([public for public, _ in ports])
            self._add(lease, ports)

    def closed(self, lease: Lease) -> None:
        """Note that a pinhole has ended. The kernel drops what is left of it, but a new pinhole must not meet its
        entries."""
        if is_datagram(lease):
            ports = _ports(lease)
            self._closed.update([target for _, target in ports])
            self._add(lease, ports)

    def disturbed(self, lease: Lease) -> None:
        """Note that a pinhole was missing from the kernel's table for a moment, so that packets of that moment made
        wrong entries."""
        if is_datagram(lease):
            self._soon = min(self._soon, time.monotonic() + SOON)
            self._add(lease, _ports(lease))

    def _add(self, lease: Lease, ports: Sequence[tuple[Endpoint, Endpoint]]) -> None:
        for public, target in ports:
            self._changed[public] = self._changed[target] = lease
        self._later = min(self._later, time.monotonic() + LATER)

    def _ask(self, sockets: Iterable[Endpoint]) -> None:
        self._asked.update(sockets)
        if math.isinf(self._ask_at):
            self._ask_at = time.monotonic() + SOON

    def deadline(self) -> float:
        """Return the time (monotonic) at which `tick` or `settle` has something to do; infinity: not before a new event
        or `wake`."""
        due = min(self._due, self._ask_at)
        return min(self._look.deadline() if self._look.under_way else due, self._early.deadline())

    @property
    def _due(self) -> float:
        """Return when to search next."""
        rests = self._looked + SHARE * self._took, self._looked + LATER_SHARE * self._took
        return min(max(self._soon, rests[0]), max(self._later, rests[1]))

    def tick(self) -> None:
        """Delete some of the wrong entries that a search has found, and start the next search if it is due."""
        self._take_left()
        if self._look.under_way and (self._look.waits or not self._go_on()):
            return
        now = time.monotonic()
        if self._ask_at <= now:
            asked, self._asked, self._ask_at = self._asked, set(), math.inf
            if self._have_talked(asked):
                self._soon = min(self._soon, now)
        if self._due <= now:
            self._begin()

    def _go_on(self) -> bool:
        """Return whether the look is at its end."""
        try:
            if not self._look.go_on(self._open_of):
                return False
        except NetfilterError as error:
            log.warning("broker.conntrack_failed", error=str(error))
        if self._look.began > self._looked:  # else only what was left behind was judged
            self._looked = time.monotonic()
            self._took = self._looked - self._look.began
        return True

    def _have_talked(self, sockets: Iterable[Endpoint]) -> bool:
        """Whether any of these sockets has sent packets past all pinholes, or may have: where the kernel had no room to
        note it, or its notes were removed, any socket may have."""
        if time.monotonic() < self._early.noted_from:
            return True
        try:
            return self._is_any([*(talked_of(sock) for sock in sockets), NOT_NOTED])
        except NetfilterError as error:
            log.warning("broker.conntrack_failed", error=str(error))
            return True

    def forget(self) -> None:
        """Search for and delete all wrong entries, and wait for it."""
        try:
            self._look.finish(self._open_of)
            self._begin()
            self._look.finish(self._open_of)
        except NetfilterError as error:
            log.warning("broker.conntrack_failed", error=str(error))

    def _begin(self) -> None:
        changed, self._changed = self._changed, {}
        self._closed.clear()
        self._soon = self._later = math.inf
        if changed:
            self._look.begin(changed)


def _wrong_of(
    found: Collection[TrackedEntry], leases: Collection[Lease], open_of: Callable[[str], Iterable[Lease]]
) -> list[TrackedEntry]:
    """Return those of the connections that contradict what the clients of these leases have open now."""
    sockets = {sock for lease in leases for sock in sockets_of(lease)}
    targets = {target for lease in leases for target in _targets_of(lease)}
    sockets |= {  # public ports that such a client had before
        entry.connection.destination for entry in found if entry.connection.reply_source.endpoint in targets
    }
    right: Right = {}
    for client in {lease.visitor or lease.client for lease in leases}:
        for lease in open_of(client):
            for sock, other in _pairs(lease):
                right.setdefault(sock, []).append((lease, other))
    return [entry for entry in found if not _is_right(entry.connection, sockets, right)]


def is_datagram(lease: Lease) -> bool:
    """Whether connection tracking can hold entries that become wrong when this pinhole changes: it is one for
    datagrams."""
    return "udp" in lease.protocol and lease.direction == "in"


def sockets_of(lease: Lease) -> Iterator[TrackedEnd]:
    """Return the ends by which connections of a pinhole are found; only for UDP."""
    for sock, _ in _pairs(lease):
        yield sock


def _endpoints_of(lease: Lease) -> list[Endpoint]:
    """The public ports of a lease and the sockets behind them, where they differ."""
    return [end for public, target in _ports(lease) for end in ((public, target) if public != target else (public,))]


def _targets_of(lease: Lease) -> list[Endpoint]:
    return [target for _, target in _ports(lease)]


def _ports(lease: Lease) -> list[tuple[Endpoint, Endpoint]]:
    """The public ports of a lease, and the sockets behind them; of an exchange those of both ends."""
    found = [(lease.public, lease.target)]
    if lease.second is not None:
        found.append(second_of(lease))
    if lease.inner is not None and lease.outer is not None:
        found.append((lease.inner, lease.outer))
        if lease.outer_second is not None:
            outer = Endpoint(lease.outer.host, lease.outer_second)
            found.append((Endpoint(lease.inner.host, lease.inner.port + 1), outer))
    return found


def _pairs(lease: Lease) -> Iterator[tuple[TrackedEnd, TrackedEnd]]:
    """Return each end as a packet shows it before translation, with what the answers of the other side have in its
    place."""
    if not is_datagram(lease):
        return
    for public, target in _ports(lease):
        inner = target if lease.backend == "kernel" else public
        yield TrackedEnd(public, source=False), TrackedEnd(inner, source=True)
        if lease.backend == "kernel" and not lease.single:
            yield TrackedEnd(target, source=True), TrackedEnd(public, source=False)


def _is_right(connection: Tracked, sockets: Iterable[TrackedEnd], right: Right) -> bool:
    """Whether a connection is as the open pinholes would make it."""
    for end, answered, peer in (
        (connection.source, connection.reply_destination, connection.destination),
        (connection.destination, connection.reply_source, connection.source),
    ):
        if end not in sockets:
            continue
        mine = [lease for lease, wanted in right.get(end, ()) if answered == wanted]
        if not mine:
            return False
        if (connection.mark & MEDIA or not end.source) and not any(_lets_in(lease, peer.endpoint) for lease in mine):
            return False
    return True


def _lets_in(lease: Lease, peer: Endpoint) -> bool:
    """Whether a lease is for this peer, if it is for any in particular."""
    if lease.single or lease.peers is None or lease.kind == "exchange":
        return True
    if lease.kind == "mapping":
        address = ipaddress.ip_address(peer.host)
        return any(address in ipaddress.ip_network(prefix) for prefix in lease.peers)
    return peer.host in lease.peers
