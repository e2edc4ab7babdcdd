"""The broker: the one privileged process. It opens and closes kernel pinholes for workers, and does not trust them.

One thread decides, with an epoll and without gevent; other threads only wait, for clients of the admin socket and for
connection tracking. A worker is identified by the descriptor on which its messages come, and by nothing in them.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from alg.bucket import Rate
from gateway.broker.admin import AdminDoor
from gateway.broker.engine import Engine
from gateway.broker.limits import BrokerLimits
from gateway.broker.netlink import NetfilterError
from gateway.broker.ruleset_watch import RulesetWatch
from gateway.lease.messages import (
    MAX_PACKET,
    AskSeen,
    Close,
    Count,
    Dial,
    Dialled,
    FromWorker,
    Hello,
    Open,
    ToWorker,
    Update,
    decode_from_worker,
    encode,
    packets,
)
from gateway.observe.admin import Rows
from gateway.observe.log import get_logger
from gateway.observe.metrics import metrics_row

MESSAGES = 20_000.0
"""Messages of one worker that are read in a second; the rest stays in its socket. Twice what 1,500 calls a second
need."""

ASKED_AGAIN = 3.0
"""Seconds after which no worker asks the same question again (gateway.pinhole.client.TIMEOUT is shorter)."""

_ROUND = 64  # messages of one worker in one round: no worker keeps the others waiting
_BURST = 4_000
_COMPLAINTS = 1.0  # lines a second in the log about one worker's nonsense

log = get_logger()


class Supervisor(Protocol):
    """The process that started the broker. `ready` tells it that the broker serves, `busy` that it lives and waits for
    a program; `hear` carries out what it says, when its descriptor is readable, and returns whether it is still
    alive."""

    def fileno(self) -> int: ...

    def ready(self) -> None: ...

    def busy(self) -> None: ...

    def hear(self, broker: Broker) -> bool: ...


class Deferred:
    """Actions that are carried out at the end of a turn of the loop."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def later(self, action: Callable[[], None]) -> None:
        """Add an action for the end of this turn."""
        self._waiting.append(action)

    def end(self) -> None:
        """Carry out the actions that were left for the end of the turn."""
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()


class HeardQuestions:
    """The questions of workers that were heard in the last seconds: a worker that has no answer yet asks again, because
    its broker may have died."""

    def __init__(self) -> None:
        self._recent: set[tuple[int, int]] = set()
        self._older: set[tuple[int, int]] = set()
        self._turns_at = -math.inf

    def is_repeated(self, slot: int, question: int, now: float) -> bool:
        """Whether this worker has asked this question already. Notes that it has."""
        if self._turns_at <= now:
            self._older = self._recent if now < self._turns_at + ASKED_AGAIN else set()
            self._recent, self._turns_at = set(), now + ASKED_AGAIN
        key = slot, question
        if key in self._recent or key in self._older:
            return True
        self._recent.add(key)
        return False


class Broker:
    """The broker's loop.

    `workers`: one SEQPACKET socket for each worker, by slot; the slot is the identity. `table`: the nft table of this
    instance. `admin`: a listening unix socket. `deferred`: actions of others for the end of each turn.
    """

    def __init__(
        self,
        *,
        workers: Mapping[int, socket.socket],
        limits: BrokerLimits,
        table: str,
        admin: socket.socket,
        supervisor: Supervisor,
        deferred: Deferred,
    ) -> None:
        self.deferred = deferred
        self._workers = dict(workers)
        self._supervisor = supervisor
        self._admin = admin
        self._engine = Engine(table=table, limits=limits, send=self._send, busy=supervisor.busy)
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], object]] = {}  # what to do when a descriptor can be read
        self._messages = Rate(MESSAGES, _BURST)
        self._heard = HeardQuestions()
        self._complaints = Rate(_COMPLAINTS, 10)
        self._paused: dict[int, float] = {}  # slots that are not read before a time
        self._stopping = self._orphaned = False

    def run(self) -> int:
        """Serve until SIGTERM (then everything is closed and the table deleted) or until the supervisor has died (then
        the table stays, and the kernel ends its pinholes). Returns the exit code."""
        wake, self._waker = socket.socketpair()  # an attribute, as compiled code forgets a variable after its last use
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._listen(wake, lambda: wake.recv(64))
        for slot, worker in self._workers.items():
            self._listen(worker, self._reader(slot, worker))
        verbs = {"pinholes": self._pinholes, "status": self._status, "metrics": self._metrics}
        door = AdminDoor(self._admin, self._engine.netfilter, verbs, {"kick": self._engine.kick})
        self._listen(self._admin, door.serve)
        self._listen(door.wake, door.work)
        self._listen(self._engine.stale.wake, lambda: self._engine.stale.wake.recv(64))  # for its `tick`
        watch = RulesetWatch()
        watch.leave_out_port(self._engine.netfilter.port, self._engine.netfilter.name)
        self._register(watch.fileno(), lambda: self._on_ruleset(watch))
        self._register(self._engine.return_path.fileno(), self._engine.return_path.read)
        try:
            self._engine.load()
            self._supervisor.ready()
            self.deferred.end()
            self._register(self._supervisor.fileno(), self._hear)
            while not self._stopping and not self._orphaned:
                for fd, _ in self._epoll.poll(self._timeout()):
                    reader = self._readers.get(fd)
                    if reader is not None:
                        reader()
                self._engine.tick()
                if self._paused:
                    self._resume()
                self.deferred.end()
            if self._orphaned:
                log.warning("broker.orphaned", pinholes=len(self._engine))
                return 0
            self._engine.shut_down()
        except NetfilterError as error:
            log.error("broker.failed", error=str(error))
            return 1
        return 0

    def configure(self, limits: BrokerLimits) -> int:
        """Use other limits from now on. Returns how many pinholes are closed because of that."""
        return self._engine.configure(limits)

    def report(self) -> None:
        """Log the broker's status."""
        log.info("status", **self._status()[0])

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _listen(self, sock: socket.socket, reader: Callable[[], object]) -> None:
        sock.setblocking(False)
        self._register(sock.fileno(), reader)

    def _register(self, fd: int, reader: Callable[[], object]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = reader

    def _unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._readers[fd]

    def _hear(self) -> None:
        self._orphaned = not self._supervisor.hear(self)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _timeout(self) -> float | None:
        deadline = self._engine.deadline()
        for until in self._paused.values():
            deadline = min(deadline, until)
        return None if deadline == math.inf else max(0.0, deadline - time.monotonic())

    def _on_ruleset(self, watch: RulesetWatch) -> None:
        changes = watch.read()
        if changes is not None:
            self._engine.others_changed(changes)

    # --- workers ----------------------------------------------------------------------------------------------------

    def _reader(self, slot: int, worker: socket.socket) -> Callable[[], None]:
        def read() -> None:
            handled = 0
            while handled < _ROUND:
                now = time.monotonic()
                if not self._messages.take(slot, now):
                    self._pause(slot, now)
                    return
                try:
                    data = worker.recv(MAX_PACKET + 1)
                except BlockingIOError:
                    return
                except OSError as error:
                    self._lost(slot, worker, error.strerror)
                    return
                if not data and _hung_up(worker):
                    self._lost(slot, worker, "closed")
                    return
                try:
                    messages = decode_from_worker(data)
                except ValueError as error:
                    handled += 1
                    if self._complaints.take(slot, now):
                        log.warning("broker.bad_message", slot=slot, error=str(error)[:200])
                    continue
                handled += max(1, len(messages))
                if len(messages) > 1:
                    self._messages.charge(slot, len(messages) - 1, now)
                for message in messages:
                    self._on_message(slot, message)

        return read

    def _pause(self, slot: int, now: float) -> None:
        """Stop reading this worker until it may send again. Its socket holds what it sends meanwhile."""
        if self._complaints.take(slot, now):
            log.warning("broker.flood", slot=slot, most=MESSAGES)
        self._unregister(self._workers[slot].fileno())
        self._paused[slot] = now + max(self._messages.wait(slot, now), _ROUND / MESSAGES)

    def _resume(self) -> None:
        now = time.monotonic()
        for slot in [slot for slot, until in self._paused.items() if until <= now]:
            del self._paused[slot]
            self._listen(self._workers[slot], self._reader(slot, self._workers[slot]))

    def _lost(self, slot: int, worker: socket.socket, why: str | None) -> None:
        """Handle a worker's socket that has ended. The supervisor keeps both ends open, so it has ended too, or is that
        of an earlier version."""
        log.info("broker.worker_lost", slot=slot, error=why)
        self._unregister(worker.fileno())

    def _on_message(self, slot: int, message: FromWorker) -> None:
        if not isinstance(message, (Hello, Close)) and self._heard.is_repeated(slot, message.id, time.monotonic()):
            return
        match message:
            case Open():
                self._engine.open(slot, message)
            case Update():
                self._engine.update(slot, message)
            case Count():
                self._engine.count(slot, message)
            case Dial():
                self._dial(slot, message)
            case AskSeen():
                self._engine.look(slot, message)
            case Close(lease):
                self._engine.close(slot, lease)
            case Hello(pid, keep):
                self._engine.greet(slot, keep)
                log.info("broker.hello", slot=slot, pid=pid, keep=keep)

    def _dial(self, slot: int, message: Dial) -> None:
        connected = self._engine.connect(slot, message)
        if connected is None:
            return
        sock, seen = connected
        try:
            socket.send_fds(self._workers[slot], [encode(Dialled(message.id, seen))], [sock.fileno()])
        except OSError:
            pass  # a worker that does not read is not waited for
        finally:
            sock.close()

    def _send(self, slot: int, messages: Sequence[ToWorker]) -> Sequence[ToWorker]:
        """Send messages to a worker, and return those that its socket did not accept: the broker does not wait for a
        worker that does not read."""
        unheard: list[ToWorker] = []
        for packet, inside in packets(messages):
            try:
                self._workers[slot].send(packet)
            except OSError:
                unheard += inside
        return unheard

    # --- what is asked over the admin socket ------------------------------------------------------------------------

    def _pinholes(self) -> Rows:
        return self._engine.rows()

    def _status(self) -> Rows:
        return [{"process": "broker", "pid": os.getpid(), **self._engine.status()}]

    def _metrics(self) -> Rows:
        present = self._engine.netfilter.is_whole()
        return [metrics_row("broker", [(("algate_broker_table_present",), present), *self._engine.samples()])]


def _hung_up(sock: socket.socket) -> bool:
    """Whether an empty read was the end of the connection, and not a packet without bytes."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
