"""What a protocol module answers to the driver, collected for one connection."""

from __future__ import annotations

from alg.api import CloseWrite, Command, Deliver, Note, Side


class Output:
    """The commands of a module for one connection: those that answer the present event, with each note and each end of
    a stream at most once. `over`: the module has stopped reading."""

    def __init__(self) -> None:
        self.over = False
        self._commands: list[Command] = []
        self._closed: set[Side] = set()
        self._ended: set[Side] = set()
        self._noted: set[str] = set()

    def add(self, *commands: Command) -> None:
        """Add commands to the answer."""
        self._commands += commands

    def deliver(self, to: Side, data: bytes) -> None:
        """Deliver `data`, if there is any, as it came."""
        if data:
            self._commands.append(Deliver(to, data))

    def note(self, code: str, detail: str) -> None:
        """Report something, unless this code was reported before."""
        if code not in self._noted:
            self._noted.add(code)
            self._commands.append(Note(code, detail))

    def close(self, side: Side) -> None:
        """Note that `side` has sent the end of its stream, which is still to be passed on."""
        self._closed.add(side)

    def is_to_end(self, side: Side) -> bool:
        """Whether `side` has sent the end of its stream, and it was not passed on yet."""
        return side in self._closed and side not in self._ended

    def end(self, side: Side) -> None:
        """Pass on the end of the stream of `side`."""
        self._ended.add(side)
        self._commands.append(CloseWrite(side.other))

    def take(self) -> list[Command]:
        """Return the answer, and begin the next one."""
        commands, self._commands = self._commands, []
        return commands
