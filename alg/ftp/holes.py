"""The pinholes of one FTP session: which are open, and which the server has come to."""

from __future__ import annotations

from alg.api import ClosePinhole, Command


class Holes:
    """Pinholes by their `ref`. Only one is for the server's next data connection; clients that pipeline have more."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._next: int | None = None

    def __contains__(self, ref: int | None) -> bool:
        return ref in self._open

    def add(self, ref: int) -> None:
        self._open.add(ref)

    def forget(self) -> None:
        """All are closed, by whomever."""
        self._open.clear()

    def close_all(self) -> list[Command]:
        closed: list[Command] = [ClosePinhole(ref) for ref in sorted(self._open)]
        self._open.clear()
        return closed

    def turn_to(self, ref: int | None) -> list[Command]:
        """The server's next data connection is that of `ref`, or of none: what the one before it had is closed."""
        before, self._next = self._next, ref
        if before is None or before == ref or before not in self._open:
            return []
        self._open.discard(before)
        return [ClosePinhole(before)]
