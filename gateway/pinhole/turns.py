"""Waiting for a turn: who opens pinholes faster than it may is made to wait a little, and refused only after that."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import gevent

from gateway.model.errors import PinholeRefused

T = TypeVar("T")

PATIENCE = 2.0  # seconds
_PAUSE = 0.008  # seconds between two attempts of one client, however many of its flows wait

_waiting: Counter[str] = Counter()  # by client, in this process


def in_turn(
    attempt: Callable[[], T],
    client: str,
    wanted: Callable[[], bool],
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = gevent.sleep,
) -> T:
    """The result of `attempt`, which is made again where it is refused for the rate of `client`, for two seconds.

    `wanted`: whether there still is anybody who waits for it. Raises PinholeRefused, of another rule at once.
    """
    until = now() + PATIENCE
    waits = False
    try:
        while True:
            try:
                return attempt()
            except PinholeRefused as refused:
                if refused.rule != "rate" or now() >= until or not wanted():
                    raise
            if not waits:
                _waiting[client] += 1
                waits = True
            sleep(_PAUSE * _waiting[client] * random.uniform(0.5, 1.5))
    finally:
        if waits:
            _waiting[client] -= 1
            if not _waiting[client]:
                del _waiting[client]
