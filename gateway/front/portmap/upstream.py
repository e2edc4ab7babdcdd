"""Where this router is behind another one's NAT: each mapping is asked for there, too, and the client is told what the
router above gives (in the spirit of RFC 7648).

`Upstream` knows that router, asks it for a mapping when a client asks here, and from then on by itself: it renews, ends
what has ended here, and asks again for everything when the router above has lost it, has another address, or is another
one. What a client was told and is true no more, it is told again, as after a change of this router's own address.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gevent
from gevent.event import Event as Flag

from alg.address import Endpoint
from gateway.front.portmap.patience import WATCH, Patience
from gateway.front.portmap.table import Mapping, MappingEvent, MappingKey, MappingTable, Refusal
from gateway.model.requests import Transport
from gateway.net.above import Above, Given, NoRouterAnswer, RouterRefused
from gateway.net.addresses import is_private
from gateway.observe.log import get_logger

AGAIN = 60.0  # seconds until a router is searched again where none has answered
PACE = 0.12  # seconds between two questions of ours to it: routers limit how much one host may ask
LIFETIME = (120, 7200)  # seconds: shortest and longest that it is asked for
STEP = 0.5  # seconds between looks at what is due
ASKING = 5.0  # seconds for which one kind of question is asked in a row

log = get_logger()


class Kept(NamedTuple):
    """A mapping at the router above: the port of this router to which it leads, its public port, and when to renew
    it."""

    transport: Transport
    port: int
    public: int
    renew: float


class Owner(Protocol):
    """The owner of the mappings that are asked for at the router above."""

    def give_up(self, mapping: Mapping) -> None:
        """End a mapping that the router above does not give any more."""

    def changed(self) -> None:
        """Tell all clients that they have to ask for what they have."""


class RouterAbove:
    """The router above, if there is one. `address`: the address of this router that the other one translates; "": this
    router has a public address, so none is asked; None: it has no address now. `find`: finds the router above such an
    address."""

    def __init__(
        self, address: Callable[[], str | None], find: Callable[[str], Above | None], table: MappingTable, owner: Owner
    ) -> None:
        self._address = address
        self._find = find
        self._table = table
        self._owner = owner
        self._own: str | None = None
        self._above: Above | None = None
        self._external: str | None = None
        self._kept: dict[MappingKey, Kept] = {}
        self._todo: dict[MappingKey, None] = {}  # that are to be asked for, by ourselves
        self._ended: dict[tuple[Transport, int], int] = {}  # what is to be ended above: ports here, and there, if known
        self._ending: tuple[Transport, int] | None = None
        self._patience = Patience()
        self._due = 0.0  # when to look at the router above, or for one
        self._wake, self._begun = Flag(), Flag()
        table.listeners.append(self._on_event)

    @property
    def external(self) -> str | None:
        """The public IPv4 address of the router above; None if there is none, or it is not known."""
        return self._external

    def status(self) -> dict[str, Any]:
        """Return what `algate status` shows."""
        above = self._above
        who = {} if above is None else {"protocol": above.protocol, "router": above.router}
        return {**who, "external": self._external, "mappings": len(self._kept)}

    # --- a client asks ----------------------------------------------------------------------------------------------

    def ask(self, key: MappingKey, public: Endpoint, exact: bool, seconds: float) -> Endpoint | None:
        """Ask the router above to lead a port to `public` of this router, with the same number if that is free;
        `exact`: only with that one. Returns the public endpoint there; None: there is no router above. Raises
        Refusal."""
        above, own = self._above, self._own
        if above is None or not _is_translated(key, public):
            return None
        name = key[1], public.port
        if not self._patience.may_ask(time.monotonic()):
            raise Refusal("outside", "the router above has not answered just now")
        while self._ending == name:
            gevent.sleep(0.05)  # what had the port before is just being ended
        before = self._ended.pop(name, 0)
        try:
            given = above.map(*name, public.port, _seconds(seconds))
        except NoRouterAnswer as error:
            self._patience.unanswered(time.monotonic())
            self._end(name, before)  # it may have opened it all the same
            raise Refusal("outside", f"the router above: {error}") from None
        except RouterRefused as refused:
            self._say_refused(key, refused)
            raise Refusal(refused.because, f"the router above: {refused.detail}", max(1, refused.seconds)) from None
        if self._own != own:
            raise Refusal("outside", "this router has another address meanwhile")
        self._patience.answered()
        if exact and given.port != public.port:
            self._end(name, given.port)
            raise Refusal("taken", f"the router above gives port {given.port} in place of {public.port}")
        return self._keep(key, public, given)

    def _keep(self, key: MappingKey, public: Endpoint, given: Given) -> Endpoint:
        self._kept[key] = Kept(key[1], public.port, given.port, time.monotonic() + given.seconds / 2)
        self._heard_of(given.host)
        return Endpoint(given.host, given.port)

    def _heard_of(self, external: str | None) -> None:
        before = self._external
        if external is None or external == before:
            return
        self._external = external
        if before is None:
            self._table.address_changed()
            return
        self._patience.moved = True

    def _on_event(self, event: MappingEvent) -> None:
        mapping = event.mapping
        if mapping is None or event.by == "upstream":
            return
        if event.what == "closed":
            kept = self._kept.pop(mapping.key, None)
            self._todo.pop(mapping.key, None)
            if kept is not None:
                self._end((kept.transport, kept.port), kept.public)
            elif mapping.above is not None:
                self._end((mapping.transport, mapping.public.port), mapping.above.port)
        elif event.what == "moved":
            self._todo[mapping.key] = None

    def _end(self, name: tuple[Transport, int], public: int) -> None:
        self._ended[name] = public
        self._wake.set()

    # --- by ourselves -----------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Wait, at most `seconds`, until the router above is found, or it is known that there is none."""
        self._begun.wait(seconds)

    def run(self) -> None:
        """Find the router above; then renew, end and look, until the greenlet is killed. What a predecessor has asked
        for is asked for again; clients are told only if something of it is otherwise."""
        own = self._address()
        if own is not None:
            self._look_for_it(own)
            self._patience.news = False
        self._begun.set()
        while True:
            self._wake.clear()
            self._step()
            self._wake.wait(STEP)

    def _step(self) -> None:
        own, now = self._address(), time.monotonic()
        if own is None:
            return  # the way out is down: what clients know may be true again soon
        if own != self._own or (self._above is None and own and now >= self._due):
            self._look_for_it(own)
        if self._above is None:
            return
        if now >= self._due:
            self._look(self._above)
        self._end_what_has_ended()
        now = time.monotonic()
        if self._patience.may_follow(now):
            log.warning("portmap.upstream_moved", address=self._external)
            self._ask_for_all()
        for key in [key for key, kept in self._kept.items() if kept.renew <= now]:
            self._todo[key] = None
        self._ask_for_some()

    def _look_for_it(self, own: str) -> None:
        """Look for a router above: at the start, when the address changes, and from time to time as long as none has
        answered."""
        above, external = self._find(own) if own else None, None
        if above is not None:
            try:
                external = above.look().external
            except (NoRouterAnswer, RouterRefused):
                above = None
        before, self._own, self._above = self._own, own, above
        self._patience.answered()
        if own != before:  # what was asked for from the address of before ends by itself
            self._kept.clear()
            self._ended.clear()
        if above is None:
            self._due = time.monotonic() + AGAIN
            if own and own != before:
                log.warning("portmap.double_nat", address=own)
            self._forget_all()
            return
        self._due = time.monotonic() + WATCH
        log.info("portmap.upstream", protocol=above.protocol, router=above.router, address=external)
        if external is not None and is_private(external):
            log.warning("portmap.double_nat", address=external)
        self._external, self._patience.news = external, True
        self._ask_for_all()

    def _look(self, above: Above) -> None:
        self._due = time.monotonic() + WATCH
        try:
            state = above.look()
        except NoRouterAnswer as error:
            if self._patience.is_gone():
                log.warning("portmap.upstream_lost", router=above.router, reason=str(error)[:200])
                self._above = None
                self._due = time.monotonic() + AGAIN
                self._forget_all()
            return
        except RouterRefused:
            return  # it has no address now, as some say so
        self._patience.answered()
        self._heard_of(state.external)
        if state.lost:
            log.warning("portmap.upstream_restarted", router=above.router, mappings=len(self._kept))
            self._ask_for_all()
        elif self._kept and not self._todo:  # not every router says that it has forgotten something
            self._todo[min(self._kept, key=lambda key: self._kept[key].renew)] = None

    def _ask_for_all(self) -> None:
        self._todo.update((mapping.key, None) for mapping in self._table if _is_translated(mapping.key, mapping.public))

    def _ask_for_some(self) -> None:
        """Ask for the mappings that are due. If an answer differs from what clients were told, tell them when all is
        done."""
        above, until = self._above, time.monotonic() + ASKING
        while self._todo and above is self._above and above is not None and time.monotonic() < until:
            key = next(iter(self._todo))
            mapping = self._table.find(key)
            if mapping is not None and not self._renew(above, mapping):
                return  # no answer: again, after a while
            self._todo.pop(key, None)
            gevent.sleep(PACE)
        if not self._todo and self._patience.may_tell(time.monotonic()):
            self._owner.changed()

    def _renew(self, above: Above, mapping: Mapping) -> bool:
        """Ask for a mapping; returns whether there was an answer."""
        key, public, before = mapping.key, mapping.public, self._kept.get(mapping.key)
        wanted = mapping.above.port if mapping.above is not None else public.port
        try:
            given = above.map(key[1], public.port, wanted, _seconds(mapping.expires - time.monotonic()))
        except NoRouterAnswer:
            self._patience.unanswered(time.monotonic())
            gevent.sleep(1.0)
            return False
        except RouterRefused as refused:
            self._say_refused(key, refused)
            self._kept.pop(key, None)
            if self._table.find(key) is mapping:
                self._patience.news = True
                self._owner.give_up(mapping)
            return True
        if self._table.find(key) is not mapping or mapping.public != public:  # it has ended or moved meanwhile
            self._end((key[1], public.port), given.port)
            return True
        if before is not None and before.port != public.port:
            self._end((before.transport, before.port), before.public)
        shown = self._keep(key, public, given)
        if shown != mapping.above:
            self._patience.news = True
            self._table.raised(mapping, shown)
        return True

    def _end_what_has_ended(self) -> None:
        above, until = self._above, time.monotonic() + ASKING
        while self._ended and above is not None and above is self._above and time.monotonic() < until:
            name = next(iter(self._ended))
            public = self._ended.pop(name)
            self._ending = name
            try:
                above.unmap(*name, public)
            except (NoRouterAnswer, RouterRefused) as error:  # then it ends by its time
                log.debug("portmap.upstream_kept", port=public, reason=str(error)[:200])
            finally:
                self._ending = None
            gevent.sleep(PACE)

    def _forget_all(self) -> None:
        """Handle the loss of the router above: clients are told this router's own address from now on."""
        self._kept.clear()
        self._ended.clear()
        self._todo.clear()
        changed = [mapping for mapping in self._table if mapping.above is not None]
        known, self._external, self._patience.news = self._external, None, False
        for mapping in changed:
            self._table.raised(mapping, None)
        if changed or known is not None:
            self._owner.changed()

    def _say_refused(self, key: MappingKey, refused: RouterRefused) -> None:
        log.warning(
            "portmap.upstream_refused", client=key[0], protocol=key[1], port=key[2], reason=refused.detail[:200]
        )


def _is_translated(key: MappingKey, public: Endpoint) -> bool:
    """Whether a mapping is at this router's own IPv4 address."""
    return ":" not in key[0] and public.host != key[0]


def _seconds(wanted: float) -> int:
    return int(min(max(wanted, LIFETIME[0]), LIFETIME[1]))
