"""Datagrams of a UDP association that a module reads: those to its ports, through one socket of the association.

The association's socket towards the outside is the client's public endpoint, and exists without anybody opening it. The
module opens conversations for media, which the kernel carries and the association does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import gevent

from alg.address import Endpoint, canonical
from alg.api import Mode, OpenConversation, OpenMapping, Side
from alg.datagrams import DatagramModule
from alg.socks.udp import MAX_ADDRESS_HEADER, MAX_DATA
from gateway.driver.conversations import Conversations
from gateway.driver.datagrams import DatagramDriver, Placement, Said, Setting, log_said
from gateway.driver.guard import ModuleGuard
from gateway.driver.module_calls import UnreadModule, attempt
from gateway.driver.outbox import HeldDatagram
from gateway.flow.table import Flow
from gateway.front.udp.sockets import Host, Outside, bound
from gateway.observe.trace import PASSED
from gateway.pinhole.backend import ConversationBackend

MOST_WAITING = 256  # datagrams of a socket that may wait; with a further one those of its way go as they are
LOOKS = 3  # looks in the time that ends an idle association
LONGEST = MAX_DATA - MAX_ADDRESS_HEADER  # bytes of a datagram that can be sent to either side


class MessageReader(NamedTuple):
    """A module that reads what SOCKS clients send to its ports.

    `make`: makes one for a client's socket and its public one, with the greatest number of seconds between two polls of
    the kernel's counters (None: no polls). `shown`: whether its messages may be traced. `may_map`: whether a rule lets
    a user have a mapping to this socket. `guard`: counts its slow calls, with those for other clients. `kinds`: the
    kinds of pinholes that its class declares.
    """

    name: str
    mode: Mode
    pinholes: ConversationBackend
    make: Callable[[Endpoint, Endpoint], tuple[DatagramModule, float | None]]
    shown: bool
    may_map: Callable[[Endpoint, str | None], bool]
    guard: ModuleGuard
    kinds: frozenset[str]


SendOn = Callable[[Side, Host, bytes], None]


class ClientMessages:
    """The messages of a client through one socket of its association, until `close`.

    `peers`: the targets whose datagrams are read here, with the headers of their answers. `send(side, target, data)`
    passes a datagram of `side` on. `alive` is called when media have moved, because the association is then not idle.
    """

    def __init__(
        self,
        reader: MessageReader,
        flow: Flow,
        client: Endpoint,
        outside: Outside,
        idle_timeout: float,
        send: SendOn,
        alive: Callable[[], None],
    ) -> None:
        """`client`: the source of the client's datagrams. `outside`: the socket from which they leave."""
        public = Endpoint(outside.public.advertised, outside.lease.public.port)
        self.peers: dict[Host, bytes] = {}
        self.name = reader.name
        self._may_map = reader.may_map
        self._user = flow.user
        self._flow = flow.id
        self._client = client
        self._own = public
        self._outside = outside
        self._public = outside.public
        self._send = send
        self._alive = alive
        unread: tuple[DatagramModule, float | None] = UnreadModule(), None
        module, every = attempt(reader.name, reader.make, client, public, otherwise=unread)
        every = None if every is None else min(every, idle_timeout / LOOKS)
        names = {"flow": flow.id}
        setting = Setting(
            reader.name, reader.mode, flow.id, MOST_WAITING, names, every, reader.shown, reader.guard, reader.kinds
        )
        self.driver = DatagramDriver(module, setting, reader.pinholes, self, PASSED)
        self._timer = gevent.spawn(self.driver.run)

    @property
    def conversations(self) -> Conversations:
        """The conversations that the module has opened."""
        return self.driver.conversations

    def admit(self, target: Host, header: bytes) -> None:
        """Read datagrams from and to `target` from now on."""
        self.peers.pop(target, None)  # behind the others, for it is in use
        self.peers[target] = header
        bound(self.peers)

    def close(self) -> None:
        """Close all that was opened. Nothing is sent any more."""
        self._timer.kill(block=False)
        self.driver.close()

    def take(self, side: Side, target: Host, data: bytes) -> None:
        """Take a datagram of `side`. It is sent on at once, or when what it waits for has come."""
        server = Endpoint(str(canonical(target[0].partition("%")[0])), target[1])
        self.driver.take(side, self._client, server, data, target, (side, target))

    # --- a carrier --------------------------------------------------------------------------------------------------

    def send(self, held: HeldDatagram) -> None:
        fits = held.edited is not None and len(held.edited) <= LONGEST
        self._send(held.side, held.item, held.edited if fits and held.edited is not None else held.data)

    def place(self, command: OpenConversation | OpenMapping) -> Placement:
        if isinstance(command, OpenMapping) and not self._may_map(command.target, self._user):
            return Placement(self._client.host, None)
        if command.target != self._client or not isinstance(command, OpenConversation):
            return Placement(self._client.host, self._public)
        # The client's own socket is this association's already: a host that it asks may answer from another port there.
        if self.driver.setting.mode is Mode.REWRITE:
            self._outside.let_in(command.peers or ())
        return Placement(self._client.host, self._public, own=self._own)

    def changed(self) -> None:
        pass

    def media_moved(self) -> None:
        self._alive()

    def admitted(self, ref: int) -> None:
        pass

    def said(self, command: Said) -> None:
        log_said(command, flow=self._flow)


class Reading:
    """The modules that read the datagrams of one association, each of them through one of its sockets.

    `readers`: by the port of the target. `pass_on(outside, side, target, data)` sends a datagram of `side` that was
    read. `alive` as for `ClientMessages`.
    """

    def __init__(
        self,
        readers: Mapping[int, MessageReader],
        flow: Flow,
        idle_timeout: float,
        pass_on: Callable[[Outside, Side, Host, bytes], None],
        alive: Callable[[], None],
    ) -> None:
        self._readers = readers
        self._flow = flow
        self._idle_timeout = idle_timeout
        self._pass_on = pass_on
        self._alive = alive
        self._messages: dict[tuple[Outside, str], ClientMessages] = {}

    def all(self) -> list[ClientMessages]:
        """Return all that are read now."""
        return list(self._messages.values())

    def begin(
        self, outside: Outside, client: Callable[[], Endpoint], target: Host, header: bytes
    ) -> ClientMessages | None:
        """Read datagrams from and to `target` through this socket from now on. None: no module reads them. `client`
        returns the source of the client's datagrams."""
        reader = self._readers.get(target[1])
        if reader is None:
            return None
        messages = self._messages.get((outside, reader.name))
        if messages is None:
            send = partial(self._pass_on, outside)
            messages = ClientMessages(reader, self._flow, client(), outside, self._idle_timeout, send, self._alive)
            self._messages[outside, reader.name] = messages
        messages.admit(target, header)
        return messages

    def of(self, outside: Outside, target: Host) -> ClientMessages | None:
        """Return the module that reads datagrams from and to `target` through this socket already."""
        reader = self._readers.get(target[1])
        messages = self._messages.get((outside, reader.name)) if reader is not None else None
        return messages if messages is not None and target in messages.peers else None

    def close(self) -> None:
        """Stop reading all datagrams."""
        for messages in self._messages.values():
            messages.close()
        self._messages.clear()
