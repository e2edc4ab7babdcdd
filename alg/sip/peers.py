"""The pairs of client and server that exchange messages, and whether these are edited, left alone (stood down) or not
read any more (revoked)."""

from __future__ import annotations

from dataclasses import dataclass

from alg.address import Endpoint
from alg.sip.records import UnsavedChanges

MOST_STOOD_DOWN = 20000
MOST_REVOKED = 20000
REVOKED_FOR = 300.0  # seconds
MOST_SEEN = 4096
SHOWN_FOR = 3600.0  # seconds after the latest message


@dataclass(frozen=True, slots=True)
class PeerRow:
    """How messages between a client's socket and the address `server` are treated.

    `state`: edited, stood-down, revoked, unread (none was edited yet); `reason`: the rule, or of messages that could
    not be read how many and why the latest one, else "". `until`: when that ends, on the clock of
    the events; None: with a REGISTER or its answer (stood-down), with the connection (revoked, over TCP).
    """

    client: Endpoint
    server: str
    state: str
    reason: str
    until: float | None


class Peers:
    """The pairs of a client's socket and a server that an engine knows of."""

    def __init__(self, changes: UnsavedChanges | None) -> None:
        self._changes = changes
        self._stood_down: dict[tuple[Endpoint, str], str] = {}
        self._revoked: dict[tuple[Endpoint, str], tuple[str, float]] = {}
        self._seen: dict[tuple[Endpoint, str], float] = {}
        self._unread: dict[tuple[Endpoint, str], tuple[int, str, float]] = {}  # how many, why, and when the latest one

    def rule(self, client: Endpoint, server: str) -> str | None:
        """Return why these two are left alone; None: they are not."""
        return self._stood_down.get((client, server)) if self._stood_down else None

    def seen(self, client: Endpoint, server: str, now: float) -> None:
        """Note that the client has sent the server a message that may be edited."""
        key = (client, server)
        if key not in self._seen and len(self._seen) >= MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = now

    def unread(self, client: Endpoint, server: str, why: str, now: float) -> None:
        """Note that a message between these two cannot be read."""
        key = (client, server)
        count = self._unread.pop(key, (0, "", 0.0))[0]
        if len(self._unread) >= MOST_SEEN:
            del self._unread[next(iter(self._unread))]
        self._unread[key] = count + 1, why, now

    def stand_down(self, client: Endpoint, server: str, rule: str | None, now: float) -> None:
        """Leave these two alone from now on, by `rule`; None: not any more."""
        key = (client, server)
        self._seen[key] = now
        if rule is None:
            if self._stood_down.pop(key, None) is not None:
                self._write(key, None)
            return
        if key not in self._stood_down and len(self._stood_down) >= MOST_STOOD_DOWN:
            oldest = next(iter(self._stood_down))
            del self._stood_down[oldest]
            self._write(oldest, None)
        self._stood_down[key] = rule
        self._write(key, rule)

    def revoke(self, client: Endpoint, server: str, rule: str, now: float) -> None:
        """Do not read messages between these two for a while, by `rule`."""
        key = (client, server)
        if key not in self._revoked and len(self._revoked) >= MOST_REVOKED:
            self._forget(next(iter(self._revoked)))
        self._revoked[key] = rule, now + REVOKED_FOR
        if self._changes is not None:
            self._changes.talk(client, server, rule, now + REVOKED_FOR)

    def is_revoked(self, client: Endpoint, server: str, now: float) -> bool:
        """Whether messages between these two are not read."""
        if not self._revoked or (found := self._revoked.get((client, server))) is None:
            return False
        if found[1] > now:
            return True
        self._forget((client, server))
        return False

    def restore(self, client: Endpoint, server: str, rule: str, until: float | None) -> None:
        """Restore what another engine had decided."""
        if until is None:
            self._stood_down[client, server] = rule
        else:
            self._revoked[client, server] = rule, until

    def rows(self, now: float) -> list[PeerRow]:
        """Return all pairs that are left alone or not read, and those that were edited recently."""
        unread = {
            key: f"{count} unread: {why}" for key, (count, why, at) in self._unread.items() if now - at < SHOWN_FOR
        }
        rows = {key: PeerRow(*key, "unread", why, None) for key, why in unread.items()}
        rows |= {
            key: PeerRow(*key, "edited", unread.get(key, ""), None)
            for key, at in self._seen.items()
            if now - at < SHOWN_FOR
        }
        rows |= {key: PeerRow(*key, "stood-down", rule, None) for key, rule in self._stood_down.items()}
        rows |= {
            key: PeerRow(*key, "revoked", rule, until) for key, (rule, until) in self._revoked.items() if until > now
        }
        return list(rows.values())

    def _forget(self, key: tuple[Endpoint, str]) -> None:
        del self._revoked[key]
        if self._changes is not None:
            self._changes.talk(*key, None, 0.0)

    def _write(self, key: tuple[Endpoint, str], rule: str | None) -> None:
        if self._changes is not None:
            self._changes.talk(*key, rule)
