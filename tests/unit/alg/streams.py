"""Does what a module of streams says, as a driver does, and checks what it delivers: for properties that hold whatever
is said, and however it is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from alg.api import (
    AlgModule,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    Received,
    Revoke,
    Side,
)

Said = Sequence[tuple[Side, bytes]]


class StreamDriver:
    """One flow of a module. `came`: what each side has said; `went`: what went on of it, without edits; `edits`: what
    was there, and what is there in its place; `open`: numbers of the pinholes that are open. `opens`: whether what
    is asked for is granted.
    """

    outlives = False  # what the module has opened stays when its flow may open nothing any more

    def __init__(self, module: AlgModule, opens: bool = True) -> None:
        self.module = module
        self.came = {side: bytearray() for side in Side}
        self.went = {side: bytearray() for side in Side}
        self.edits: list[tuple[bytes, bytes]] = []
        self.open: set[int] = set()
        self.bypassed = False
        self.opens = opens
        self.now = 0.0

    def asked(self, command: Command) -> Iterator[Event]:
        """Look at a command that is of no other kind, and yield what a driver would tell the module about it."""
        raise NotImplementedError

    def tell(self, side: Side, data: bytes) -> None:
        """A side says something."""
        self.came[side] += data
        if self.bypassed:
            self.went[side] += data
        elif data:
            self.do(self.module.handle(Received(side, data, self.now)))

    def end(self, side: Side) -> None:
        """A side says no more, which has to be passed on."""
        if not self.bypassed:
            assert CloseWrite(side.other) in self.do(self.module.handle(Closed(side, self.now)))

    def do(self, commands: Sequence[Command]) -> Sequence[Command]:
        """Carry out what the module answers, and what it answers to the answers."""
        events: list[Event] = []
        for command in commands:
            match command:
                case Deliver(to, data, edits):
                    assert not self.bypassed
                    self.went[to.other] += data
                    assert self.came[to.other].startswith(self.went[to.other])
                    self.edits += [(data[edit.start : edit.end], edit.replacement) for edit in edits]
                    assert list(edits) == sorted(edits)
                case ClosePinhole(ref):
                    self.open.discard(ref)
                case Bypass():
                    self.bypassed = True
                case Revoke():
                    if not self.outlives:
                        self.open.clear()
                case _:
                    events += self.asked(command)
        for event in events:
            if not self.bypassed:
                self.do(self.module.handle(event))
        return commands

    def play(self, said: Said, size: int) -> None:
        """Say all of it, in pieces of at most so many bytes."""
        for side, data in said:
            for at in range(0, len(data), size):
                self.tell(side, data[at : at + size])

    @property
    def result(self) -> tuple[object, ...]:
        """What has come of it."""
        return self.went, self.edits, sorted(self.open), self.bypassed


def passes_every_byte(driver: StreamDriver) -> None:
    """What came has gone on when both sides have ended, whatever was opened or given up."""
    for side in Side:
        driver.end(side)
    assert driver.went == driver.came


def is_the_same_when_cut(make: Callable[[], StreamDriver], said: Said, size: int) -> None:
    """Pieces of so many bytes have the same outcome as whole messages."""
    whole, cut = make(), make()
    whole.play(said, 100_000)
    cut.play(said, size)
    for side in Side:
        whole.end(side)
        cut.end(side)
    assert cut.result == whole.result
