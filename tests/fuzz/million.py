"""Random handshakes through the SOCKS front without a network: `python -m tests.fuzz.million SEED COUNT`."""

from __future__ import annotations

import random
import sys
from typing import Any, cast

import structlog

from gateway.front.auth.guard import GuessGuard
from gateway.front.auth.passwords import Accounts
from gateway.front.socks.authenticate import Authenticator
from gateway.front.socks.request import SocksRequest
from gateway.front.socks.server import SocksCommand, SocksFront
from gateway.model.requests import CommandName
from tests.fuzz.random_handshakes import handshake

COMMANDS: tuple[CommandName, ...] = ("connect", "bind", "udp", "resolve")


class Wire:
    """A client's end that sends some bytes in pieces and then closes."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self._left = data
        self._rng = rng
        self.closed = 0
        self.sent = b""

    def recv(self, size: int) -> bytes:
        size = min(size, self._rng.randrange(1, 300))
        data, self._left = self._left[:size], self._left[size:]
        return data

    def sendall(self, data: bytes) -> None:
        assert not self.closed
        self.sent += data

    def close(self) -> None:
        self.closed += 1

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.1", 1080

    def shutdown(self, how: int) -> None:
        assert not self.closed

    def settimeout(self, seconds: float | None) -> None:
        pass


class Command:
    """Stands for what carries out a request: counts it, and looks at it."""

    def __init__(self) -> None:
        self.served = 0

    def run(self, request: SocksRequest) -> None:
        assert request.version in (4, 5)
        assert 1 <= len(request.host) <= 255
        assert request.host.isprintable()
        assert 0 <= request.port <= 65535
        self.served += 1
        request.refuse("denied")


class NoIdent:
    def complete(self, request: SocksRequest) -> None:
        pass


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    command = Command()
    commands = cast(dict[CommandName, SocksCommand], dict.fromkeys(COMMANDS, command))
    accounts, guard = cast(Accounts, None), GuessGuard(10, 600, 600)
    front = SocksFront(commands, Authenticator(["none"], accounts, guard), 10, cast(Any, NoIdent()))
    for number in range(count):
        data = handshake(rng)
        wire = Wire(data, rng)
        try:
            front.handle(cast(Any, wire), ("192.0.2.7", 4711))
            assert wire.closed == 1
            assert len(wire.sent) <= 12
        except BaseException:
            print(f"seed {seed}, number {number}: {data!r} -> {wire.sent!r}", file=sys.stderr)
            raise
    print(f"{count} handshakes, {command.served} of them requests")


if __name__ == "__main__":
    main()
