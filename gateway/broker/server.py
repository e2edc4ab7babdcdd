"""The broker: the one privileged process. It opens and closes kernel pinholes for workers, whom it does not believe.

One thread, `selectors`, no gevent. All requests that wait go into one netfilter transaction. The kernel's table is the
journal: a new broker reads the leases back from it.
"""

from __future__ import annotations

import errno
import math
import os
import random
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from gateway.broker.admin import AdminDoor
from gateway.broker.conntrack import Conntrack, Socket
from gateway.broker.elements import COUNTED, ONCE, elements_of, leases_of, second_of, traffic_of
from gateway.broker.netfilter import Change, Netfilter, TableGoneError
from gateway.broker.netlink import NetfilterError
from gateway.broker.ports import can_bind
from gateway.broker.protocol import (
    MAX_MESSAGE,
    Close,
    FromWorker,
    Hello,
    Open,
    Opened,
    Refused,
    ToWorker,
    Update,
    Updated,
    decode_from_worker,
    encode,
)
from gateway.broker.validate import SHORTEST_TTL, Network, check_request, check_update, valid_lease_id
from gateway.errors import PinholeRefused
from gateway.model import Lease, PinholeRequest
from gateway.observe.admin_wire import Rows
from gateway.observe.log import get_logger
from gateway.pinhole.lease import LeaseTable, lease_row

RECONCILE = 1.0
"""Seconds between two looks at which pinholes the kernel has used up."""

_ROUND = 64  # messages of one worker in one round: no worker keeps the others waiting

Pending = tuple[int, int, Lease, float]
"""A lease that is not yet in the kernel: slot, id of the request, lease, ttl."""

log = get_logger()


class Broker:
    """The broker's loop.

    `workers`: one SEQPACKET socket per worker slot; the slot is the identity. `admin`: a listening unix socket.
    `lifeline`: a socket to the supervisor. `inside`: who may be a client. `ports`, `read_ports`,
    `per_client`: see LeaseTable.
    `table`: the nft table of this instance.
    """

    def __init__(
        self,
        *,
        workers: Sequence[socket.socket],
        inside: Sequence[Network],
        ports: tuple[int, int],
        read_ports: tuple[int, int] | None = None,
        per_client: int,
        table: str = "algate",
        admin: socket.socket | None = None,
        lifeline: socket.socket | None = None,
    ) -> None:
        self._workers = list(workers)
        self._lifeline = lifeline
        self._inside = list(inside)
        self._netfilter = Netfilter(table)
        self._conntrack = Conntrack()
        self._admin = admin
        self._leases = LeaseTable(backend="kernel", ports=ports, read_ports=read_ports, per_client=per_client)
        self._rng = random.SystemRandom()
        self._selector = selectors.DefaultSelector()
        self._opens: list[Pending] = []
        self._closes: list[tuple[int, Lease]] = []
        self._next_reconcile = math.inf
        self._opened = self._refused = self._used = 0
        self._stopping = False

    def run(self) -> int:
        """Serve until SIGTERM (everything is closed, the table deleted) or until the supervisor is dead (the table
        stays, its timeouts are the kernel's). Returns the exit code."""
        wake, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._register(wake, lambda: wake.recv(64))
        for slot, worker in enumerate(self._workers):
            self._register(worker, self._reader(slot, worker))
        if self._admin is not None:
            door = AdminDoor(self._admin, self._netfilter)
            self._register(self._admin, lambda: door.serve(self._snapshot))
        orphaned = False
        try:
            self._load()
            if self._lifeline is not None:
                self._lifeline.sendall(b"ready\n")
                self._register(self._lifeline, lambda: None)
            while not self._stopping and not orphaned:
                for key, _ in self._selector.select(self._timeout()):
                    if key.fileobj is self._lifeline:
                        orphaned = self._lifeline_ended()
                    key.data()
                self._tick()
            if orphaned:
                log.warning("broker.orphaned", pinholes=len(self._leases))
                return 0
            self._shut_down()
        except NetfilterError as error:
            log.error("broker.failed", error=str(error))
            return 1
        return 0

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _register(self, sock: socket.socket, callback: Callable[[], Any]) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, callback)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _lifeline_ended(self) -> bool:
        assert self._lifeline is not None
        try:
            return not self._lifeline.recv(64)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _timeout(self) -> float | None:
        deadline = min(self._leases.deadline() or math.inf, self._next_reconcile)
        return None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())

    def _tick(self) -> None:
        """Do what waits: a transaction, expiry, reconciliation."""
        self._flush()
        now = time.monotonic()
        self._expire(now)
        if not len(self._leases):
            self._next_reconcile = math.inf
        elif math.isinf(self._next_reconcile):
            self._next_reconcile = now + RECONCILE
        elif self._next_reconcile <= now:
            self._reconcile()

    def _load(self) -> None:
        made = self._netfilter.load()
        unix = time.time()
        now = time.monotonic()
        for found in leases_of(self._netfilter.elements(), unix):
            self._leases.restore(found.lease, owner=found.slot, deadline=now + found.left, used=found.used)
        log.info("broker.table", table=self._netfilter.name, made=made, pinholes=len(self._leases))

    def _shut_down(self) -> None:
        for lease in self._leases.close_all(now=time.monotonic()):
            log.info("pinhole.close", by="stop", **_audit(lease))
        self._netfilter.unload()
        log.info("broker.stopped", opened=self._opened, used=self._used, refused=self._refused)

    def _reconcile(self) -> None:
        """Find out which pinholes the kernel has used up: their `once` element is gone before its time."""
        begun = time.monotonic()
        try:
            once = {element.key for element in self._netfilter.elements(ONCE)}
        except TableGoneError:
            self._table_gone()
            return
        except NetfilterError as error:
            log.warning("broker.reconcile_failed", error=str(error))
            self._next_reconcile = begun + RECONCILE
            return
        now = time.monotonic()
        self._expire(now)
        for lease in self._leases.live():
            if lease.uses and elements_of(lease, 0, 1.0)[-1].key not in once:
                self._leases.use(lease.id)
                self._used += 1
                log.info("pinhole.use", **_audit(lease))
        # With thousands of pinholes the look takes long: never spend more than a tenth of the time on it.
        self._next_reconcile = now + max(RECONCILE, 10 * (now - begun))

    def _expire(self, now: float) -> None:
        expired = self._leases.expire(now)
        for lease in expired:
            log.info("pinhole.expire", **_audit(lease))
        self._forget(socket for lease in expired for socket in _connections(lease))

    def _forget(self, sockets: Iterable[Socket]) -> None:
        """Have the kernel forget UDP connections. What of a conversation stays is dropped in the table anyway."""
        try:
            self._conntrack.forget(sockets)
        except NetfilterError as error:
            log.warning("broker.conntrack_failed", error=str(error))

    def _table_gone(self, pending: Sequence[Pending] = ()) -> None:
        """Somebody flushed the ruleset: all leases are lost but those on their way; make the table again."""
        now = time.monotonic()
        coming = {lease.id for _, _, lease, _ in pending}
        for lease in self._leases.close_all(now=now):
            if lease.id not in coming:
                log.info("pinhole.close", by="flush", **_audit(lease))
        for slot, _, lease, ttl in pending:
            self._leases.restore(lease, owner=slot, deadline=now + ttl)
        log.error("broker.table_gone", table=self._netfilter.name)
        self._netfilter.load()

    # --- workers ----------------------------------------------------------------------------------------------------

    def _reader(self, slot: int, worker: socket.socket) -> Callable[[], None]:
        def read() -> None:
            for _ in range(_ROUND):
                try:
                    data = worker.recv(MAX_MESSAGE + 1)
                except BlockingIOError:
                    return
                except OSError as error:
                    self._lost(slot, worker, error.strerror)
                    return
                if not data and _hung_up(worker):
                    self._lost(slot, worker, "closed")
                    return
                try:
                    message = decode_from_worker(data)
                except ValueError as error:
                    log.warning("broker.bad_message", slot=slot, error=str(error)[:200])
                    continue
                self._on_message(slot, message)

        return read

    def _lost(self, slot: int, worker: socket.socket, why: str | None) -> None:
        """The supervisor keeps both ends, so this is its end too."""
        log.warning("broker.worker_lost", slot=slot, error=why)
        self._selector.unregister(worker)

    def _on_message(self, slot: int, message: FromWorker) -> None:
        if isinstance(message, Open):
            self._on_open(slot, message)
        elif isinstance(message, Update):
            self._on_update(slot, message)
        elif isinstance(message, Close):
            lease = None
            if valid_lease_id(message.lease):
                lease = self._leases.close(message.lease, now=time.monotonic(), owner=slot)
            if lease is not None:
                self._closes.append((slot, lease))
                log.info("pinhole.close", by="worker", **_audit(lease))
        elif isinstance(message, Hello):
            self._flush()  # what the predecessor had asked for is its own
            for lease in self._leases.close_owner(slot, now=time.monotonic()):
                self._closes.append((slot, lease))
                log.info("pinhole.close", by="hello", **_audit(lease))
            log.info("broker.hello", slot=slot, pid=message.pid)

    def _on_open(self, slot: int, message: Open) -> None:
        request = message.request
        try:
            check_request(request, self._inside)
            if request.direction == "out":
                self._replace(slot, request)
            try:
                lease = self._reserve(slot, request)
            except PinholeRefused as refusal:
                if refusal.rule not in ("quota", "full"):
                    raise
                self._flush()
                self._reconcile()  # used ones do not count
                lease = self._reserve(slot, request)
        except PinholeRefused as refusal:
            self._refuse(slot, message.id, request.client, request.reason, refusal)
            return
        self._opens.append((slot, message.id, lease, request.ttl))

    def _on_update(self, slot: int, message: Update) -> None:
        update = message.update
        self._flush()
        old = self._leases.get(update.lease, owner=slot) if valid_lease_id(update.lease) else None
        try:
            if old is None:
                raise PinholeRefused("lease", "no open conversation of this worker")
            check_update(update, old, self._inside)
            new = self._leases.changed(update, unix=time.time(), owner=slot)
            now = time.monotonic()
            deadline = self._leases.deadline_of(old.id) if update.ttl is msgspec.UNSET else now + update.ttl
            try:
                # Deleted and added in one transaction: no packet meets a conversation half changed.
                add = self._netfilter.counted(elements_of(new, slot, max(deadline - now, SHORTEST_TTL)))
                refused = self._netfilter.apply([Change(elements_of(old, slot, 1.0), tuple(add))])
            except TableGoneError:
                self._table_gone()
                raise PinholeRefused("lease", "the ruleset was flushed") from None
            except NetfilterError as error:
                raise PinholeRefused("kernel", str(error)) from error
            if refused:
                raise PinholeRefused(_rule(refused[0]), str(refused[0]))
        except PinholeRefused as refusal:
            client, reason = (old.client, old.reason) if old is not None else ("", "")
            self._refuse(slot, message.id, client, reason, refusal)
            return
        self._leases.replace(new, deadline=deadline)
        if (old.peers, old.target, old.second) != (new.peers, new.target, new.second):
            self._forget({*_connections(old), *_connections(new)})
        log.info("pinhole.update", slot=slot, **_audit(new))
        self._send(slot, Updated(message.id, new))

    def _reserve(self, slot: int, request: PinholeRequest) -> Lease:
        def is_free(port: int) -> bool:
            return can_bind(request.transport, request.public_host or "", port)

        return self._leases.open(
            request, now=time.monotonic(), unix=time.time(), rng=self._rng, is_free=is_free, owner=slot
        )

    def _replace(self, slot: int, request: PinholeRequest) -> None:
        """An outbound pinhole has no port of ours that sets it apart: the same wish again takes the old one's place."""
        for lease in self._leases.of_client(request.client):
            if lease.direction == "out" and (lease.protocol, lease.target) == (request.transport, request.target):
                self._flush()
                if self._leases.close(lease.id, now=time.monotonic()) is not None:
                    self._closes.append((slot, lease))
                    log.info("pinhole.close", by="replaced", **_audit(lease))
                    self._flush()

    def _flush(self) -> None:
        """Close and open what waits, in one transaction, and answer."""
        if not self._opens and not self._closes:
            return
        closes, self._closes = self._closes, []
        opens, self._opens = self._opens, []
        changes = [Change(delete=elements_of(lease, slot, 1.0)) for slot, lease in closes]
        changes += [Change(add=elements_of(lease, slot, ttl)) for slot, _, lease, ttl in opens]
        try:
            try:
                refused = self._netfilter.apply(changes)
            except TableGoneError:
                self._table_gone(opens)
                refused = self._netfilter.apply(changes)
        except NetfilterError as error:
            log.error("broker.netfilter_failed", error=str(error), opens=len(opens), closes=len(closes))
            refused = dict.fromkeys(range(len(changes)), error)
        self._forget(socket for _, lease in closes for socket in _connections(lease))
        self._forget(socket for _, _, lease, _ in opens for socket in _connections(lease))
        for index, (slot, request_id, lease, _) in enumerate(opens, len(closes)):
            if index in refused:
                self._leases.close(lease.id, now=time.monotonic())
                refusal = PinholeRefused(_rule(refused[index]), str(refused[index]))
                self._refuse(slot, request_id, lease.client, lease.reason, refusal)
                continue
            self._opened += 1
            log.info("pinhole.open", slot=slot, **_audit(lease))
            if not self._send(slot, Opened(request_id, lease)) and self._leases.close(lease.id, now=time.monotonic()):
                self._closes.append((slot, lease))
                log.info("pinhole.close", by="unheard", **_audit(lease))

    def _refuse(self, slot: int, request_id: int, client: str, reason: str, refusal: PinholeRefused) -> None:
        self._refused += 1
        log.warning(
            "pinhole.refused",
            slot=slot,
            client=client[:64],
            reason=reason[:64],
            rule=refusal.rule,
            detail=refusal.detail[:200],
        )
        self._send(slot, Refused(request_id, refusal.rule, refusal.detail[:200]))

    def _send(self, slot: int, message: ToWorker) -> bool:
        """Whether the worker's socket took it: a worker that does not read is not waited for."""
        try:
            self._workers[slot].send(encode(message))
        except OSError:
            return False
        return True

    # --- `algate pinholes`, `algate status` -------------------------------------------------------------------------

    def _snapshot(self) -> tuple[Rows, dict[str, Any]]:
        self._flush()
        self._reconcile()
        pinholes = self._rows()
        status = {
            "process": "broker",
            "pid": os.getpid(),
            "table": self._netfilter.name,
            "pinholes": len(pinholes),
            "opened": self._opened,
            "used": self._used,
            "refused": self._refused,
        }
        return pinholes, status

    def _rows(self) -> Rows:
        leases = self._leases.live()
        counted = {}
        if any(lease.uses == 0 for lease in leases):
            try:
                counted = {(element.set, element.key): element for element in self._netfilter.elements(COUNTED)}
            except NetfilterError as error:
                log.warning("broker.counters_failed", error=str(error))
        return [lease_row(lease, traffic_of(lease, counted) if lease.uses == 0 else (0, 0)) for lease in leases]


def _connections(lease: Lease) -> tuple[Socket, ...]:
    """The UDP connections that must begin anew when a lease begins, changes or ends.

    When it begins: what a peer sent too early is a connection to this host itself, and stays one; what the inside
    socket sent before has another public port.
    """
    if lease.protocol != "udp" or lease.direction != "in":
        return ()
    ports = [(lease.public, lease.target)]
    if lease.second is not None:
        ports.append(second_of(lease))
    outside = tuple(Socket(public, source=False) for public, _ in ports)
    inside = tuple(Socket(target, source=True) for _, target in ports) if lease.uses == 0 else ()
    return outside + inside


def _audit(lease: Lease) -> dict[str, Any]:
    return {key: value for key, value in lease_row(lease).items() if key not in ("backend", "expires")}


def _hung_up(sock: socket.socket) -> bool:
    """Whether nothing read was the end, and not a packet of no bytes."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _rule(error: NetfilterError) -> str:
    """The rule by which a pinhole is refused that the kernel did not take."""
    if error.code in (errno.ENFILE, errno.ENOSPC):
        return "full"
    return "kernel"
