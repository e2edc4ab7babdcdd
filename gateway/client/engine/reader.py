"""Reads those connections of a program in which it names ports of its own. No host outside could reach them there, so
the proxy waits for the server in the program's place (BIND). The reading is done by the gateway's own protocol
module."""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import time
from collections.abc import Callable, Mapping

from alg.address import Endpoint
from alg.api import (
    AlgModule,
    Bypass,
    Closed,
    ClosePinhole,
    CloseWrite,
    Command,
    Deliver,
    Event,
    FlowContext,
    Note,
    Opened,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    Received,
    Refused,
    Revoke,
    Say,
    Side,
    Tick,
    apply_edits,
)
from alg.registry import options_of, stream_module
from gateway.client.blocking import Listening
from gateway.client.engine.messages import thread
from gateway.client.engine.relay import Inward, relay
from gateway.client.sockets import reset

LINGER = 1.0  # seconds in which the proxy's word that the server has come may follow what the server says
SIZE = 16384

Bind = Callable[[], Listening]  # lets the proxy wait for the server of the connection; raises OSError


def module_for(name: str, keys: Mapping[str, str], client: Endpoint, server: Endpoint) -> AlgModule:
    """Make the module that reads a connection. Both ends are named as the program knows them. Raises BrokenModule if
    the module is not installed."""
    kind = stream_module(name)
    options = options_of(kind)
    return kind(FlowContext(client, server, options=None if options is None else options(**keys)))


class Reader:
    """One connection that a module reads. `trace` gets a line for each edit, and for what else the module reports."""

    def __init__(
        self, module: AlgModule, bind: Bind, inward: Inward, trace: Callable[[str], None] = lambda _: None
    ) -> None:
        self._module = module
        self._bind = bind
        self._inward = inward
        self._trace = trace
        self._sockets: dict[Side, socket.socket] = {}
        self._held = {side: bytearray() for side in Side}  # what came from it, and is not delivered
        self._ended: set[Side] = set()
        self._open: set[int] = set()
        self._passing = False
        self._answers: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._awake, self._wake = socket.socketpair()

    def run(self, program: socket.socket, server: socket.socket) -> None:
        """Carry the connection to its end; owns both sockets."""
        self._sockets = {Side.CLIENT: program, Side.SERVER: server}
        try:
            while not self._passing and len(self._ended) < 2:
                self._step()
            if self._passing:
                for side, held in self._held.items():
                    self._sockets[side.other].sendall(held)
                relay(program, server)
        except OSError:  # one of them is gone, and the other one does not take that for an end
            reset(program)
            reset(server)
        finally:
            self._open.clear()
            for sock in (program, server, self._awake, self._wake):
                sock.close()

    def _step(self) -> None:
        deadline = self._module.deadline()
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        for side, sock in self._sockets.items():
            if side not in self._ended:
                poll.register(sock, select.POLLIN)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {found for found, _ in poll.poll(left)}
        if self._awake.fileno() in ready:
            self._awake.recv(64)
            while not self._answers.empty():
                self._tell(self._answers.get())
        for side, sock in self._sockets.items():
            if sock.fileno() in ready and not self._passing:
                data = sock.recv(SIZE)
                if data:
                    self._held[side] += data
                    self._tell(Received(side, data, time.monotonic()))
                else:
                    self._ended.add(side)
                    self._tell(Closed(side, time.monotonic()))
        if not ready:
            self._tell(Tick(time.monotonic()))

    def _tell(self, event: Event) -> None:
        """Tell the module, and carry out what it says. Whatever is wrong with it, every byte goes on."""
        try:
            for command in self._module.handle(event):
                self._do(command)
        except OSError:
            raise
        except Exception:
            self._passing = True

    def _do(self, command: Command) -> None:
        match command:
            case Deliver(to, data, edits):
                del self._held[to.other][: len(data)]
                self._sockets[to].sendall(apply_edits(data, edits))
                for edit in edits:
                    old, new = _text(data[edit.start : edit.end]), _text(edit.replacement)
                    self._trace(f"{edit.reason}: {old} is {new} for the {to}")
            case Say(to, data, reason):
                self._trace(f"{reason}: {_text(data)} is said to the {to}")
                self._sockets[to].sendall(data)
            case CloseWrite(to):
                self._sockets[to].shutdown(socket.SHUT_WR)
            case OpenPinhole():
                self._open.add(command.ref)
                try:
                    thread(self._wait, command)
                except BlockingIOError:
                    self._answer(Refused(command.ref, "upstream", time.monotonic()))
            case OpenOutbound(ref, target):
                self._answer(Opened(ref, target, time.monotonic()))
            case OpenMeeting(ref):
                self._answer(Refused(ref, "upstream", time.monotonic()))
            case ClosePinhole(ref):
                self._open.discard(ref)
            case Bypass() | Revoke():
                self._trace(f"{command.rule if isinstance(command, Revoke) else 'bypass'}: the rest is not read")
                self._passing = True
            case Note(code, detail, again=False):
                self._trace(f"{code}: {detail}")

    def _answer(self, event: Event) -> None:
        self._answers.put(event)
        with contextlib.suppress(OSError):
            self._wake.send(b"!")

    def _wait(self, command: OpenPinhole) -> None:
        """Let the proxy wait for the server, and lead its connection to the program."""
        try:
            waiting = self._bind()
        except OSError as error:
            self._trace(f"no port for the server to connect to: {error}")
            self._answer(Refused(command.ref, "upstream", time.monotonic()))
            return
        with waiting:
            self._answer(Opened(command.ref, Endpoint.of(*waiting.address), time.monotonic()))
            until = time.monotonic() + command.ttl
            poll = select.poll()
            poll.register(waiting.fileno(), select.POLLIN)
            while not poll.poll(LINGER * 1000):
                if command.ref not in self._open or time.monotonic() >= until:
                    return
            try:
                sock, peer = waiting.accept(LINGER)
            except OSError:
                return
        try:
            inside = self._inward(peer, (command.target.host, command.target.port))
        except OSError:  # an end would be an empty file for the server
            reset(sock)
            return
        relay(inside, sock)


def _text(data: bytes) -> str:
    """Bytes of a message as one line that a terminal may be shown."""
    return ascii(data.decode("ascii", "backslashreplace"))
