"""The worker's side of the broker: one socket, many greenlets that ask at once."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Sequence

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock

from gateway.broker.protocol import (
    MAX_MESSAGE,
    MOST_COUNTED,
    Close,
    Count,
    Counted,
    Hello,
    Open,
    Opened,
    Refused,
    ToWorker,
    Update,
    Updated,
    decode_to_worker,
    encode,
)
from gateway.errors import PinholeRefused
from gateway.model import Lease, PinholeRequest, PinholeUpdate
from gateway.observe.counters import observe
from gateway.observe.log import get_logger

TIMEOUT = 2.0
"""Seconds that an answer may take; after that the broker counts as dead for this request."""

_MOST_UNSENT = 4096  # closes that wait for room in the socket; of more, the oldest are left to their timeouts

log = get_logger()


class BrokerClient:
    """Asks the broker for pinholes over `sock`, a SEQPACKET socket of gevent's (or a monkey-patched one). `keep`: the
    pinholes of the predecessor stay open; their ids are known.

    The socket outlives both processes: answers to a predecessor may still be in it, and requests wait in it for a
    broker that is being replaced. Hence ids that start at random.
    """

    def __init__(self, sock: socket.socket, *, timeout: float = TIMEOUT, keep: bool = False) -> None:
        self._sock = sock
        self._timeout = timeout
        self._next_id = secrets.randbits(62)
        self._waiting: dict[int, AsyncResult[ToWorker]] = {}
        self._sending = RLock()
        self._unsent: deque[bytes] = deque(maxlen=_MOST_UNSENT)
        self._sender: gevent.Greenlet[[], None] | None = None
        self._hello = encode(Hello(os.getpid(), keep))
        self._greeted = self._post(self._hello)
        self._reader = gevent.spawn(self._read)

    def open(self, request: PinholeRequest) -> Lease:
        """Open a pinhole. PinholeRefused: by the broker's rule, or "broker" if it does not answer in time."""
        self._next_id += 1
        return self._ask(Open(self._next_id, request))

    def update(self, update: PinholeUpdate) -> Lease:
        """Change an open conversation; the lease as it is now. PinholeRefused as for `open`."""
        self._next_id += 1
        return self._ask(Update(self._next_id, update))

    def count(self, leases: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Packets in and out of these conversations; of those that are open. PinholeRefused as for `open`."""
        counts: dict[str, tuple[int, int]] = {}
        for at in range(0, len(leases), MOST_COUNTED):
            self._next_id += 1
            message = self._exchange(Count(self._next_id, tuple(leases[at : at + MOST_COUNTED])))
            if isinstance(message, Counted):
                counts.update(message.packets)
        return counts

    def _ask(self, question: Open | Update) -> Lease:
        message = self._exchange(question)
        if isinstance(message, Opened | Updated):
            return message.lease
        raise PinholeRefused("broker", "another question was answered")

    def _exchange(self, question: Open | Update | Count) -> ToWorker:
        answer: AsyncResult[ToWorker] = AsyncResult()
        self._waiting[question.id] = answer
        since = time.monotonic()
        try:
            with gevent.Timeout(self._timeout), self._sending:
                # One greenlet at a time may wait for room in the socket: it is full if no broker reads.
                if not self._greeted:
                    self._sock.send(self._hello)
                    self._greeted = True
                self._sock.send(encode(question))
            message = answer.get(timeout=self._timeout)
        except gevent.Timeout:
            raise PinholeRefused("broker", f"no answer within {self._timeout:g} s") from None
        except (OSError, ValueError) as error:
            raise PinholeRefused("broker", str(error)) from error
        finally:
            del self._waiting[question.id]
            observe("algate_broker_seconds", time.monotonic() - since)
        assert message is not None
        if isinstance(message, Refused):
            raise PinholeRefused(message.rule, message.detail)
        return message

    def close(self, lease_id: str) -> None:
        """Close a pinhole; not waited for. Without a broker the pinhole ends by its timeout."""
        data = encode(Close(lease_id))
        if self._unsent or not self._post(data):
            self._unsent.append(data)
            if not self._sender:
                self._sender = gevent.spawn(self._send_rest)

    def stop(self) -> None:
        """Read no more answers. The socket stays open: it is its owner's."""
        gevent.killall([self._reader, *([self._sender] if self._sender else [])])

    def _post(self, data: bytes) -> bool:
        """Send without waiting, also where no greenlet may wait. Returns whether the socket took it."""
        try:
            os.write(self._sock.fileno(), data)
        except OSError:
            return False
        return True

    def _send_rest(self) -> None:
        """Send the closes for which there was no room, when there is."""
        try:
            while self._unsent:
                with self._sending:
                    self._sock.send(self._unsent[0])
                self._unsent.popleft()
        except OSError as error:
            log.error("broker.lost", error=error.strerror)

    def _read(self) -> None:
        while True:
            try:
                data = self._sock.recv(MAX_MESSAGE + 1)
            except OSError as error:
                log.error("broker.lost", error=error.strerror)
                return
            if not data:
                log.error("broker.lost", error="closed")
                return
            try:
                message = decode_to_worker(data)
            except ValueError as error:
                log.error("broker.bad_message", error=str(error)[:200])
                continue
            answer = self._waiting.get(message.id)
            if answer is not None:
                answer.set(message)
            elif isinstance(message, Opened):
                self.close(message.lease.id)  # came too late: nobody will use it
