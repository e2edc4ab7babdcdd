"""The requests of workers that the kernel has not carried out yet, and the answers that wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.broker.forwards import SLOT as FORWARDS
from gateway.broker.netfilter import Change
from gateway.lease.messages import LeaseOpened, RequestRefused, ToWorker, Updated
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Lease
from gateway.observe.log import get_logger
from gateway.observe.pinhole_log import PINHOLES as pinhole_log

log = get_logger()


class Opening(NamedTuple):
    """A lease that is not yet in the kernel."""

    slot: int
    id: int  # of the request
    lease: Lease
    ttl: float
    change: Change | None = None  # where it shares a public port with others


class Closing(NamedTuple):
    """A lease that is not in the table any more, but still in the kernel."""

    slot: int
    lease: Lease
    change: Change


class Updating(NamedTuple):
    """A change that is not yet in the kernel. `before`: when the conversation was to end; `ttl`: the seconds that it is
    to live now."""

    slot: int
    id: int
    old: Lease
    new: Lease
    before: float
    ttl: float


class Pending:
    """Openings, closings and changes of the next transaction, and the answers that are sent behind it.

    `send(slot, messages)` sends answers to a worker, and returns those that its socket did not accept. `opened` and
    `refused` count all that was answered so.
    """

    def __init__(self, send: Callable[[int, Sequence[ToWorker]], Sequence[ToWorker]]) -> None:
        self.opens: list[Opening] = []
        self.closes: list[Closing] = []
        self.updates: list[Updating] = []
        self.withheld: list[tuple[int, int, ToWorker]] = []
        """Answers that wait for their clients' older connections to go: the batch, the slot and the message of each."""
        self.opened = self.refused = 0
        self._send = send
        self._answers: dict[int, list[ToWorker]] = {}
        self._just_opened: list[tuple[int, Lease]] = []  # of which the log is to say so
        self._just_updated: list[tuple[int, Lease]] = []

    def __bool__(self) -> bool:
        return bool(self.opens or self.closes or self.updates)

    def changes(self, lease_id: str) -> bool:
        """Whether a change of this lease waits."""
        return any(updating.new.id == lease_id for updating in self.updates)

    def take(self) -> tuple[list[Closing], list[Opening], list[Updating]]:
        """Return what waits, for a transaction."""
        waiting = self.closes, self.opens, self.updates
        self.closes, self.opens, self.updates = [], [], []
        return waiting

    def answer(self, slot: int, message: ToWorker) -> None:
        """Let the next `tell` send a message to a slot. The slot of the operator's forwardings has no process, so
        nothing is sent to it."""
        if slot != FORWARDS:
            self._answers.setdefault(slot, []).append(message)

    def answer_opened(self, opening: Opening, batch: int) -> None:
        """Answer that the kernel has opened the pinhole: now if `batch` is 0, otherwise with the `release` of that
        batch."""
        self.opened += 1
        self._just_opened.append((opening.slot, opening.lease))
        self._answer_with(batch, opening.slot, LeaseOpened(opening.id, opening.lease))

    def answer_updated(self, updating: Updating, batch: int) -> None:
        """Answer that the kernel has changed the pinhole, when `answer_opened` would."""
        self._just_updated.append((updating.slot, updating.new))
        self._answer_with(batch, updating.slot, Updated(updating.id, updating.new))

    def release(self, settled: int, find: Callable[[str], Lease | None], is_to_restore: Callable[[str], bool]) -> None:
        """Have the answers sent that waited for their clients' older connections to go, up to this batch. Where the
        table was removed meanwhile, what is still to be restored (`is_to_restore`) waits for that, and what is not open
        any more (`find`) is refused."""
        withheld, self.withheld = self.withheld, []
        for batch, slot, message in withheld:
            assert isinstance(message, (LeaseOpened, Updated))
            if batch > settled or is_to_restore(message.lease.id):
                self.withheld.append((batch, slot, message))
            elif find(message.lease.id) is None:
                self.answer(slot, RequestRefused(message.id, "lease", "it has ended"))
            else:
                self.answer(slot, message)

    def _answer_with(self, batch: int, slot: int, message: ToWorker) -> None:
        if batch:
            self.withheld.append((batch, slot, message))
        else:
            self.answer(slot, message)

    def refuse(self, slot: int, request_id: int, client: str, reason: str, refusal: PinholeRefused) -> None:
        """Refuse a request, and log that."""
        if refusal.rule != "rate":  # the worker of a client that is too fast asks again, and logs it later
            self.refused += 1
            log.warning(
                "pinhole.refused",
                slot=slot,
                client=client[:64],
                reason=reason[:64],
                rule=refusal.rule,
                detail=refusal.detail[:200],
            )
        self.answer(slot, RequestRefused(request_id, refusal.rule, refusal.detail[:200]))

    def tell(self) -> list[tuple[int, Lease]]:
        """Send all answers, and log what they say. Returns the leases, with their slots, whose answer was not sent
        because the worker's socket was full."""
        answers, self._answers = self._answers, {}
        unheard = [(slot, message) for slot, messages in answers.items() for message in self._send(slot, messages)]
        # The log has time until all answers are sent.
        for slot, lease in self._just_opened:
            pinhole_log.info("pinhole.open", lease, slot=slot)
        for slot, lease in self._just_updated:
            pinhole_log.info("pinhole.update", lease, slot=slot)
        self._just_opened.clear()
        self._just_updated.clear()
        return [(slot, message.lease) for slot, message in unheard if isinstance(message, LeaseOpened)]
