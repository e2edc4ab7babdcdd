"""A client that opens pinholes too fast waits a little, and is refused only after that."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import gevent
from gevent.event import Event

from gateway.model.errors import PinholeRefused

T = TypeVar("T")

PATIENCE = 2.0  # seconds
_PAUSE = 0.008  # seconds between two attempts of one client, however many of its flows wait

_queues: dict[str, deque[Event]] = {}  # by client, in this process; the first of a queue is the one that asks


def at_its_pace(
    attempt: Callable[[], T],
    client: str,
    wanted: Callable[[], bool],
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = gevent.sleep,
) -> T:
    """Return the result of `attempt`. If it is refused for the rate of `client`, it is repeated for two seconds.

    The waiting flows of a client are served in the order in which they came; with attempts at random, one of many would
    be unlucky for two seconds. `wanted`: whether the flow still waits for the result. Raises PinholeRefused, at once
    for any other rule than "rate".
    """
    if client not in _queues:
        try:
            return attempt()
        except PinholeRefused as refused:
            if refused.rule != "rate" or not wanted():
                raise
    until = now() + PATIENCE
    queue, place = _queues.setdefault(client, deque()), Event()
    queue.append(place)
    try:
        if queue[0] is not place and not place.wait(PATIENCE):
            raise PinholeRefused("rate", f"{len(queue)} pinholes of {client} wait already")
        while True:
            if not wanted():
                raise PinholeRefused("rate", "the flow has ended while it waited")
            try:
                return attempt()
            except PinholeRefused as refused:
                if refused.rule != "rate" or now() >= until:
                    raise
            sleep(_PAUSE * random.uniform(0.5, 1.5))
    finally:
        queue.remove(place)
        if queue:
            queue[0].set()
        else:
            del _queues[client]
