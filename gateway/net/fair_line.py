"""A line in which each owner has a turn: who has much waiting delays others by one thing at a time. Pure."""

from __future__ import annotations

from collections import deque
from typing import Any


class FairLine:
    """Things that wait. Of the owners that have some, each has one served in turn, in the order of its own.

    An owner is any object that is the same for the things of one client, and can be a key; None is one too.
    """

    __slots__ = ("_count", "_owners", "_things")

    def __init__(self) -> None:
        self._owners: deque[Any] = deque()  # that have something, each once
        self._things: dict[Any, deque[Any]] = {}  # of each of these
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, owner: object, thing: object) -> None:
        """Add a thing of an owner's, behind its others."""
        things = self._things.get(owner)
        if things is None:
            self._things[owner] = deque((thing,))
            self._owners.append(owner)
        else:
            things.append(thing)
        self._count += 1

    def popleft(self) -> Any:
        """Take away the next thing. Raises IndexError if there is none."""
        owner = self._owners.popleft()
        things = self._things[owner]
        thing = things.popleft()
        if things:
            self._owners.append(owner)
        else:
            del self._things[owner]
        self._count -= 1
        return thing

    def discard(self, owner: object, thing: object) -> None:
        """Take a thing away that may not be there any more."""
        things = self._things.get(owner)
        if things is None or thing not in things:
            return
        things.remove(thing)
        self._count -= 1
        if not things:
            del self._things[owner]
            self._owners.remove(owner)

    def clear(self) -> None:
        self._owners.clear()
        self._things.clear()
        self._count = 0
