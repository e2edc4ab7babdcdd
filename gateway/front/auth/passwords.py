"""Checks passwords in a worker: argon2id in a few threads, so that the event loop never waits for a hash.

A check computes one hash whether the user exists or not. Only successes are remembered, for a minute. Each client
address has one check running at a time, so that a guesser with many connections does not take the threads from others.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import argon2
import gevent
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from gateway.policy.users import HASHER, NO_PASSWORD, User, Users

THREADS = 2  # checks at once: each takes a core for some 20 ms, and 19 MiB
MAX_WAITING = 256  # checks that wait for a thread, beyond which one more is refused
CACHE_TIME = 60.0  # seconds that a success is remembered
CACHE_SIZE = 1024


class Overloaded(Exception):
    """Too many checks wait already. This one was not made."""


class Accounts:
    """The users as they are now; `users` is replaced as a whole when the file has changed."""

    def __init__(self, users: Users) -> None:
        self.users = users

    def groups(self, name: str) -> tuple[str, ...]:
        """The groups of a user, however it was authenticated; none for one that the file does not name."""
        user = self.users.get(name)
        return user.groups if user else ()


@dataclass(slots=True)
class _Lane:
    """The lock for the checks of one address; `users` counts the greenlets that hold or await it."""

    lock: BoundedSemaphore = field(default_factory=BoundedSemaphore)
    users: int = 0


class PasswordChecker:
    """Checks names and passwords. `banned(address)` is asked again right before a hash is computed."""

    def __init__(self, accounts: Accounts, banned: Callable[[str], bool], threads: int = THREADS) -> None:
        self._accounts = accounts
        self._banned = banned
        self._pool = ThreadPool(threads)
        self._slots = BoundedSemaphore(threads)
        self._secret = secrets.token_bytes(32)
        self._cache: OrderedDict[bytes, float] = OrderedDict()
        self._running: dict[bytes, gevent.Greenlet[..., bool]] = {}
        self._lanes: dict[str, _Lane] = {}
        # What unknown users are checked against: as costly as a real hash, and of no user.
        self._dummy = HASHER.hash(secrets.token_bytes(16))

    @property
    def pending(self) -> int:
        """The number of checks that are under way or wait."""
        return len(self._running) + len(self._lanes)

    def check(self, name: bytes, password: bytes, address: str) -> User | None:
        """Return the user if this is the password, otherwise None. `address` is the client's. Raises Overloaded."""
        user = self._user(name)
        stored = user.hash if user else self._dummy
        key = self._key(name, password, stored)
        if user is not None and self._cache.get(key, 0.0) > time.monotonic():
            return user
        running = self._running.get(key)  # a client that opens many connections at once costs one hash
        if running is None:
            if len(self._running) >= MAX_WAITING:
                raise Overloaded
            # In a greenlet of its own: the one that asked may give up, and others wait for the same answer.
            running = self._running[key] = gevent.spawn(self._run, key, lambda: _verify(stored, password), address)
        if not running.get() or user is None:
            return None
        self._remember(key)
        return user

    def _user(self, name: bytes) -> User | None:
        try:
            user = self._accounts.users.get(name.decode())
        except UnicodeDecodeError:
            return None
        return user if user is not None and user.hash != NO_PASSWORD else None

    def _key(self, name: bytes, password: bytes, stored: str) -> bytes:
        """Return the key of a check in the tables, which does not give the password away. A changed hash has another
        key."""
        parts = b"".join(len(part).to_bytes(2, "big") + part for part in (name, password, stored.encode()))
        return hmac.digest(self._secret, parts, hashlib.sha256)

    def _run(self, key: bytes, verify: Callable[[], bool], address: str) -> bool:
        lane = self._lanes.setdefault(address, _Lane())
        lane.users += 1
        try:
            with lane.lock, self._slots:
                return not self._banned(address) and self._pool.apply(verify)
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[address]
            del self._running[key]

    def _remember(self, key: bytes) -> None:
        self._cache[key] = time.monotonic() + CACHE_TIME
        self._cache.move_to_end(key)
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)


def _verify(stored: str, password: bytes) -> bool:
    """Verify a password, in a thread: argon2 releases the interpreter's lock while it works."""
    try:
        return HASHER.verify(stored, password)
    except argon2.exceptions.Argon2Error:
        return False
