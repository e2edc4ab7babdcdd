"""The worker's client of the broker: one socket for many greenlets that ask at the same time, none of which delays
another."""

from __future__ import annotations

import _socket
import itertools
import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from socket import CMSG_LEN, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET
from typing import NamedTuple

from gevent import get_hub
from gevent.event import AsyncResult

from alg.address import Endpoint
from gateway.lease.messages import (
    MAX_PACKET,
    MOST_COUNTED,
    MOST_MESSAGES,
    AskSeen,
    Close,
    Count,
    Counted,
    Dial,
    Dialled,
    FromWorker,
    Hello,
    LeaseOpened,
    Open,
    RequestRefused,
    Seen,
    ToWorker,
    Update,
    Updated,
    decode_to_worker,
    packets,
)
from gateway.model.errors import PinholeRefused
from gateway.model.requests import Along, Done, Lease, PinholeRequest, PinholeUpdate
from gateway.net.libev import EV_READ, EV_WRITE
from gateway.observe.counters import observe
from gateway.observe.log import get_logger

TIMEOUT = 2.25
"""Seconds within which an answer has to come; after that the request is refused. A little longer than a module holds a
message for it (2 s), which by then has been sent on as it was."""

REPEATS = 3
"""A question is asked again after this part of `TIMEOUT` without an answer: a broker that was killed may have read it.
One that lives and is only slow leaves out what it has heard already."""

MOMENTS = 40  # a part of `TIMEOUT`, within which questions that are due are due together

_MOST_UNSENT = 8192  # messages that wait for room in the socket; a further one is not sent
_BATCH = 64  # packets read in a row: then others have their turn

_ROOM = CMSG_LEN(4)  # for one descriptor

_Answered = Callable[[ToWorker | PinholeRefused], None]
_Question = Open | Update | Count | Dial | AskSeen


class _Waiting(NamedTuple):
    """A question without an answer. `until`: when it is given up; `again`: what is asked once more before that."""

    answered: _Answered
    until: float
    again: _Question | None


log = get_logger()


class BrokerClient:
    """Asks the broker for pinholes over `sock`, a SEQPACKET socket. `keep`: the predecessor's pinholes stay open, and
    their ids are known.

    Only `open`, `update` and `count` wait. Messages of one turn of the event loop are sent together at its end, and
    answers come from the loop. The socket outlives both processes: answers to a predecessor may still be in it, and
    requests wait in it for a broker that is being replaced. Hence ids start at random.
    """

    def __init__(self, sock: socket.socket, *, timeout: float = TIMEOUT, keep: bool = False) -> None:
        self._sock = sock  # the descriptor is its
        self._fd = sock.fileno()
        self._raw = _socket.socket(fileno=os.dup(self._fd))  # without gevent's waiting
        self._under_way: dict[int, _socket.socket] = {}  # connections that came with an answer, by question
        os.set_blocking(self._fd, False)
        self._timeout = timeout
        self._next_id = secrets.randbits(62)
        self._waiting: dict[int, _Waiting] = {}  # by question; the oldest one times out first
        self._unsent: deque[FromWorker] = deque([Hello(os.getpid(), keep)])
        self._loop = get_hub().loop
        self._readable = self._loop.io(self._fd, EV_READ)
        self._readable.start(self._read)
        self._writable = self._loop.io(self._fd, EV_WRITE)
        self._clock = self._loop.timer(0.0)
        self._ticking = self._sends_soon = self._is_full = False
        self._send()

    # --- questions --------------------------------------------------------------------------------------------------

    def ask(self, request: PinholeRequest | PinholeUpdate, done: Done) -> None:
        """Open a pinhole, or change an open conversation. `done` is called later, in the event loop, with the lease as
        it is then, or with the refusal: the broker's rule, or "broker" if it does not answer in time."""

        def answered(answer: ToWorker | PinholeRefused) -> None:
            if isinstance(answer, (LeaseOpened, Updated)):
                done(answer.lease)
            elif isinstance(answer, PinholeRefused):
                done(answer)
            else:
                done(PinholeRefused("broker", "another question was answered"))

        self._next_id += 1
        if isinstance(request, PinholeRequest):
            self._question(Open(self._next_id, request), answered)
        else:
            self._question(Update(self._next_id, request), answered)

    def open(self, request: PinholeRequest) -> Lease:
        """Open a pinhole, and wait for it. Raises PinholeRefused as `ask` reports it."""
        return self._wait(request)

    def update(self, update: PinholeUpdate) -> Lease:
        """Change an open conversation, and return the lease as it is now. Raises PinholeRefused as `ask` reports it."""
        return self._wait(update)

    def connect(self, client: Endpoint, server: Endpoint, port: int = 0) -> tuple[_socket.socket, Endpoint]:
        """Begin a connection from the address of an inside client whose own connection to `server` was redirected here,
        and return it with the endpoint that the server sees. `port`: that of the same host to which it goes, for data.
        Waits for the broker, not for the server. Raises PinholeRefused as `ask` reports it, or "connect" with the errno
        as its detail."""
        outcome: AsyncResult[ToWorker | PinholeRefused] = AsyncResult()
        sockets: list[_socket.socket] = []
        self._next_id += 1
        question = self._next_id

        def answered(answer: ToWorker | PinholeRefused) -> None:
            if (sock := self._under_way.pop(question, None)) is not None:
                sockets.append(sock)
            outcome.set(answer)

        self._question(Dial(question, client, server, port), answered)
        answer = outcome.get()
        if isinstance(answer, PinholeRefused):
            raise answer
        if not isinstance(answer, Dialled) or not sockets:
            raise PinholeRefused("broker", "no connection came with the answer")
        return sockets[0], answer.seen

    def seen(self, along: Along) -> str:
        """Return the address with which the source of a flow is seen by its destination. Raises PinholeRefused as `ask`
        reports it."""
        outcome: AsyncResult[ToWorker | PinholeRefused] = AsyncResult()
        self._next_id += 1
        self._question(AskSeen(self._next_id, along), outcome.set)
        answer = outcome.get()
        if isinstance(answer, PinholeRefused):
            raise answer
        if not isinstance(answer, Seen):
            raise PinholeRefused("broker", "another question was answered")
        return answer.host

    def _wait(self, request: PinholeRequest | PinholeUpdate) -> Lease:
        outcome: AsyncResult[Lease | PinholeRefused] = AsyncResult()
        self.ask(request, outcome.set)
        lease = outcome.get()
        if isinstance(lease, PinholeRefused):
            raise lease
        assert lease is not None
        return lease

    def count(self, leases: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return packets in and out of those of these conversations that are open. Raises PinholeRefused as `ask`
        reports it."""
        outcomes: list[AsyncResult[ToWorker | PinholeRefused]] = []
        for at in range(0, len(leases), MOST_COUNTED):
            self._next_id += 1
            outcomes.append(AsyncResult())
            self._question(Count(self._next_id, tuple(leases[at : at + MOST_COUNTED])), outcomes[-1].set)
        counts: dict[str, tuple[int, int]] = {}
        for outcome in outcomes:
            answer = outcome.get()
            if isinstance(answer, PinholeRefused):
                raise answer
            if isinstance(answer, Counted):
                counts.update(answer.packets)
        return counts

    def close(self, lease_id: str) -> None:
        """Close a pinhole, without waiting. If there is no broker, the pinhole ends by its timeout."""
        if len(self._unsent) < _MOST_UNSENT:
            self._unsent.append(Close(lease_id))
            self._send_soon()

    def stop(self) -> None:
        """Stop reading and sending. The socket stays open; it belongs to the caller."""
        self._unsent.clear()
        for watcher in (self._readable, self._writable, self._clock):
            watcher.stop()
            watcher.close()
        self._raw.close()

    def _question(self, question: _Question, answered: _Answered) -> None:
        again = None if isinstance(question, Dial) else question  # twice would be two connections
        self._waiting[question.id] = _Waiting(answered, time.monotonic() + self._timeout, again)
        if not self._ticking:
            self._wind()
        if len(self._unsent) < _MOST_UNSENT:  # else it times out
            self._unsent.append(question)
            self._send_soon()

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send_soon(self) -> None:
        if not self._sends_soon and not self._is_full:
            self._sends_soon = True
            self._loop.run_callback(self._send)

    def _send(self) -> None:
        """Send what waits, in its order, but no request whose result is not waited for any more."""
        self._sends_soon = False
        while self._unsent:
            batch: list[FromWorker] = []
            while self._unsent and len(batch) < MOST_MESSAGES:
                message = self._unsent.popleft()
                if isinstance(message, (Hello, Close)) or message.id in self._waiting:
                    batch.append(message)
            if not self._post(batch):
                return
        if self._is_full:
            self._is_full = False
            self._writable.stop()

    def _post(self, batch: Sequence[FromWorker]) -> bool:
        """Send a batch, and return whether the socket accepted all of it. The rest waits again."""
        try:
            for packet, inside in packets(batch):
                os.write(self._fd, packet)
                batch = batch[len(inside) :]
        except BlockingIOError:
            self._unsent.extendleft(reversed(batch))
            if not self._is_full:
                self._is_full = True
                self._writable.start(self._send)
            return False
        except (OSError, ValueError) as error:
            log.error("broker.lost", error=str(error))
            for message in batch:
                if isinstance(message, _Question):
                    self._settle(message.id, PinholeRefused("broker", str(error)))
        return True

    # --- answers ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        for _ in range(_BATCH):
            try:
                data, passed, _, _ = self._raw.recvmsg(MAX_PACKET + 1, _ROOM, MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(error.strerror)
                return
            if not data:
                self._lost("closed")
                return
            connections = [_socket.socket(fileno=number) for number in _numbers(passed)]
            try:
                messages = decode_to_worker(data)
            except ValueError as error:
                log.error("broker.bad_message", error=str(error)[:200])
                continue
            for message in messages:
                if isinstance(message, Dialled) and connections:
                    self._under_way[message.id] = connections.pop()
                if isinstance(message, RequestRefused):
                    self._settle(message.id, PinholeRefused(message.rule, message.detail))
                elif not self._settle(message.id, message) and isinstance(message, LeaseOpened):
                    self.close(message.lease.id)  # came too late, and will not be used
                if isinstance(message, Dialled) and (unused := self._under_way.pop(message.id, None)) is not None:
                    unused.close()

    def _lost(self, why: str | None) -> None:
        log.error("broker.lost", error=why)
        self._readable.stop()

    def _settle(self, question: int, answer: ToWorker | PinholeRefused) -> bool:
        """Pass an answer to its request. Returns whether something waited for it."""
        waiting = self._waiting.pop(question, None)
        if waiting is None:
            return False
        observe("algate_broker_seconds", time.monotonic() - waiting.until + self._timeout)
        waiting.answered(answer)
        return True

    def _wind(self) -> None:
        """Set the timer for the first question to be asked again, or given up. Those of a moment go together."""
        due = next(iter(self._waiting.values())).until
        unrepeated = next((one for one in self._waiting.values() if one.again is not None), None)
        if unrepeated is not None:
            due = min(due, unrepeated.until - self._before_the_end)
        self._ticking = True
        self._clock.close()
        self._clock = self._loop.timer(max(self._timeout / MOMENTS, due - time.monotonic()))
        self._clock.start(self._tick)

    @property
    def _before_the_end(self) -> float:
        """Return how many seconds before its deadline a question is repeated."""
        return self._timeout - self._timeout / REPEATS

    def _tick(self) -> None:
        """Ask again what was not answered yet, and do not wait any longer for what was asked long ago."""
        self._ticking = False
        now = time.monotonic()
        due = itertools.takewhile(lambda item: item[1].until - self._before_the_end <= now, self._waiting.items())
        for number, waiting in list(due):
            if waiting.until <= now:
                self._settle(number, PinholeRefused("broker", f"no answer within {self._timeout:g} s"))
            elif waiting.again is not None:
                self._waiting[number] = waiting._replace(again=None)
                if len(self._unsent) < _MOST_UNSENT:
                    self._unsent.append(waiting.again)
                    self._send_soon()
        if self._waiting and not self._ticking:
            self._wind()


def _numbers(passed: list[tuple[int, int, bytes]]) -> Iterator[int]:
    """Return the descriptors that came with a packet."""
    for level, kind, data in passed:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            for at in range(0, len(data) - 3, 4):
                yield int.from_bytes(data[at : at + 4], sys.byteorder)
