"""`algate telnet`, `rtelnet`: a terminal at another host (RFC 854), and any protocol of lines at another port."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from fcntl import ioctl
from struct import unpack

from gateway.client.blocking import connect
from gateway.client.programs.common import command_line, host_and_port, parser, run
from gateway.client.proxy import Chain

PORT = 23
ESCAPE = b"\x1d"  # ^], as always

SE, SB, WILL, WONT, DO, DONT, IAC = 240, 250, 251, 252, 253, 254, 255
ECHO, SGA, TERMINAL_TYPE, NAWS = 1, 3, 24, 31
IS, SEND = 0, 1
MAX_SUBNEGOTIATION = 1024

_OURS = (SGA, TERMINAL_TYPE, NAWS)  # options that we do when asked
_THEIRS = (ECHO, SGA)  # options that they may do


class Nvt:
    """The network virtual terminal of one connection, without a socket: what comes is told from what is negotiated.

    Each option is agreed on once (RFC 1143): an answer goes out only where something changes, so that two sides never
    go on for ever.
    """

    def __init__(self, terminal: str = "dumb", size: tuple[int, int] = (80, 24)) -> None:
        self._terminal = terminal
        self._size = size
        self._ours: set[int] = set()
        self._theirs: set[int] = set()
        self._refused: set[tuple[int, int]] = set()
        self._rest = b""

    @property
    def echoes(self) -> bool:
        """Whether the other side shows what is typed."""
        return ECHO in self._theirs

    @property
    def negotiated(self) -> bool:
        """Whether the other side has negotiated anything: else it may know nothing of telnet."""
        return bool(self._ours or self._theirs or self._refused)

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Handle bytes that came. Returns the bytes to show, and the bytes to answer."""
        data = self._rest + data
        shown, answer, at = bytearray(), bytearray(), 0
        while at < len(data):
            if data[at] != IAC:
                end = data.find(IAC, at)
                end = len(data) if end < 0 else end
                shown += data[at:end]
                at = end
                continue
            used = self._command(data[at:], shown, answer)
            if not used:
                break
            at += used
        self._rest = data[at:]
        return bytes(shown).replace(b"\r\0", b"\r"), bytes(answer)

    def send(self, data: bytes) -> bytes:
        """Encode typed text for the connection: a byte 255 is doubled, and an end of line becomes CR LF."""
        lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        return lines.replace(bytes((IAC,)), bytes((IAC, IAC)))

    def _command(self, data: bytes, shown: bytearray, answer: bytearray) -> int:
        """Handle one command at the beginning of `data`. Returns its length; 0 if it is not complete."""
        if len(data) < 2:
            return 0
        match data[1]:
            case 255:
                shown.append(IAC)
                return 2
            case 251 | 252 | 253 | 254:
                if len(data) < 3:
                    return 0
                self._negotiate(data[1], data[2], answer)
                return 3
            case 250:
                end = data.find(bytes((IAC, SE)), 2)
                if end < 0:
                    return 0 if len(data) < MAX_SUBNEGOTIATION else len(data)
                if data[2:4] == bytes((TERMINAL_TYPE, SEND)) and TERMINAL_TYPE in self._ours:
                    name = self._terminal.upper().encode("ascii", "replace")
                    answer += bytes((IAC, SB, TERMINAL_TYPE, IS)) + name + bytes((IAC, SE))
                return end + 2
            case _:
                return 2

    def _negotiate(self, verb: int, option: int, answer: bytearray) -> None:
        table, able, yes, no = (
            (self._theirs, _THEIRS, DO, DONT) if verb in (WILL, WONT) else (self._ours, _OURS, WILL, WONT)
        )
        if verb in (WILL, DO):
            if option in able and option not in table:
                table.add(option)
                answer += bytes((IAC, yes, option))
                if verb == DO and option == NAWS:
                    width, height = self._size
                    body = width.to_bytes(2, "big") + height.to_bytes(2, "big")
                    body = body.replace(bytes((IAC,)), bytes((IAC, IAC)))
                    answer += bytes((IAC, SB, NAWS)) + body + bytes((IAC, SE))
            elif option not in able and (verb, option) not in self._refused:
                self._refused.add((verb, option))
                answer += bytes((IAC, no, option))
        elif option in table:
            table.discard(option)
            answer += bytes((IAC, no, option))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. The exit code."""
    options = parser("A terminal at another host, through a proxy. ^] ends it.")
    options.add_argument("host", metavar="HOST")
    options.add_argument("port", nargs="?", type=int, default=PORT)
    return run(options.parse_args(command_line(arguments)), _talk, "telnet")


def _talk(options: argparse.Namespace, chain: Chain) -> int:
    host, port = host_and_port(options.host, options.port)
    with connect(chain, host, port, options.timeout) as sock:
        print(f"Connected to {host}. The escape character is '^]'.", file=sys.stderr)
        nvt = Nvt(os.environ.get("TERM", "dumb"), _size())
        with _raw(sys.stdin.fileno()) as raw:
            _carry(sock, nvt, raw)
    print("The connection is closed.", file=sys.stderr)
    return 0


def _carry(sock: socket.socket, nvt: Nvt, raw: bool) -> None:
    """Carry the session until the other side ends it, or the escape character is typed."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    reading = [sock.fileno(), keyboard]
    while True:
        ready, _, _ = select.select(reading, [], [])
        if sock.fileno() in ready:
            data = sock.recv(65536)
            if not data:
                return
            shown, answer = nvt.receive(data)
            if answer:
                sock.sendall(answer)
            _write(screen, shown)
        if keyboard in ready:
            typed = os.read(keyboard, 4096)
            if not typed:  # a file has ended: the answer may still come
                reading.remove(keyboard)
                if not nvt.negotiated:
                    sock.shutdown(socket.SHUT_WR)
                continue
            before, escape, _ = typed.partition(ESCAPE) if raw else (typed, b"", b"")
            if before:
                sock.sendall(nvt.send(before))
                if raw and not nvt.echoes:
                    _write(screen, before.replace(b"\r", b"\r\n"))
            if escape:
                return


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _size() -> tuple[int, int]:
    """Width and height of the terminal."""
    with contextlib.suppress(OSError):
        height, width = unpack("HH", ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(4)))
        if width and height:
            return width, height
    return 80, 24


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[bool]:
    """A terminal that hands on each key; whether it is a terminal at all."""
    if not os.isatty(descriptor):
        yield False
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def script() -> None:
    """Entry point of `rtelnet`."""
    sys.exit(main())
