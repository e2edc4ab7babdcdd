"""`TftpModule`: trivial file transfers of inside clients (RFC 1350).

A client sends its request to port 69, and the server answers from a port of its own choice, which no NAT expects.
Nothing is ever edited here: before a request is sent on, the client's socket gets a public port (`OpenConversation`),
and the server that was asked may send to it from any port. Two clients with the same port have two public ones.

A transfer has ended when the kernel has counted nothing for `idle_timeout`. Data and acknowledgements go through the
kernel and are not seen here; those of servers that answer from port 69 are seen and pass.

Codes of notes: tftp.rate, tftp.crowded, tftp.low-port, tftp.multicast, tftp.refused (nothing was opened).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from alg.address import Endpoint
from alg.api import Activity, ClosePinhole, Note, OpenConversation, Opened, Refused, Side, Tick, UpdateConversation
from alg.bucket import Rate
from alg.datagrams import Datagram, DatagramCommand, DatagramContext, DatagramEvent, Entry, Moved, Release
from alg.tftp.options import TftpOptions
from alg.tftp.request import read_request
from alg.tftp.transfers import Transfer, restored

REASON = "tftp.data"
LONGEST = 7200.0  # seconds of a transfer, whatever it carries
LOWEST_PORT = 1024
MOST_TRANSFERS = 4096
MOST_SERVERS = 8  # that one socket may have asked (`alg.api.OpenConversation`)
MOST_WAITING = 16  # requests of one socket that wait for its port
NOTE_AGAIN = 60.0  # seconds before the same is said again of a client
_MOST_NOTED = 4096


class TftpModule:
    """All transfers of the inside clients, or those of one SOCKS association, as `alg.datagrams.DatagramModule`."""

    api: ClassVar[int] = 1
    default_ports: ClassVar[tuple[int, ...]] = (69,)
    kinds: ClassVar[tuple[str, ...]] = ("conversation",)
    Options: ClassVar[type[TftpOptions]] = TftpOptions
    look_every: ClassVar[float] = 5.0
    recorded: ClassVar[bool] = True
    shown: ClassVar[bool] = True  # a request has a file's name, and no secret

    def __init__(self, context: DatagramContext) -> None:
        options = context.options if isinstance(context.options, TftpOptions) else TftpOptions()
        self._idle = options.idle_timeout
        self._rate = Rate(options.rate, 2 * options.rate)
        # The socket of an association has its public port already: servers are let in there one by one, and stay.
        self._fixed = context.fixed is not None
        self._transfers: dict[int, Transfer] = {}
        self._by_socket: dict[tuple[Endpoint, str], Transfer] = {}
        self._ref = 0
        self._changed: dict[str, Entry] | None = {} if context.recorded else None
        self._noted: dict[tuple[str, str], float] = {}
        self._due: float | None = None

    def handle(self, event: DatagramEvent) -> Sequence[DatagramCommand]:
        """See `alg.datagrams.DatagramModule.handle`."""
        match event:
            case Datagram(packet=packet, side=Side.CLIENT):
                request = read_request(event.data)
                if request is None:
                    return [Release(packet)]
                noted = self._note("tftp.multicast", event.client, event.now) if request.multicast else []
                return [*noted, *self._requested(event)]
            case Datagram(packet=packet):
                return [Release(packet)]
            case Opened(ref):
                return self._opened(ref)
            case Refused(ref, rule, now):
                return self._refused(ref, rule, now)
            case Activity(ref, packets_in, packets_out, now):
                return self._counted(ref, (packets_in, packets_out), now)
            case Moved(ref):
                return self._end(ref)
            case Tick(now):
                return self._ended(now)

    def deadline(self) -> float | None:
        """See `alg.datagrams.DatagramModule.deadline`."""
        return self._due

    def journal(self) -> Sequence[Entry]:
        """See `alg.datagrams.RecordedModule.journal`."""
        if not self._changed:
            return ()
        changed, self._changed = list(self._changed.values()), {}
        return changed

    def restore(self, entries: Sequence[Entry], now: float) -> None:
        """See `alg.datagrams.RecordedModule.restore`."""
        for entry in entries:
            transfer = restored(entry)
            if transfer is not None:
                self._ref = max(self._ref, transfer.ref)
                self._keep(transfer)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _requested(self, event: Datagram) -> list[DatagramCommand]:
        transfer = self._by_socket.get(self._key(event.client, event.server.host))
        if transfer is None:
            return self._begin(event)
        if len(transfer.waiting) >= MOST_WAITING:
            return [Release(event.packet)]
        is_new = event.server.host not in transfer.servers
        if is_new:
            if len(transfer.servers) >= MOST_SERVERS:
                transfer.servers.popleft()
            transfer.servers.append(event.server.host)
        if not transfer.opened:
            transfer.waiting.append(event.packet)
            return []
        return [*self._renew(transfer, event.now, at_once=is_new), Release(event.packet)]

    def _begin(self, event: Datagram) -> list[DatagramCommand]:
        client, now = event.client, event.now
        rule = None
        if client.port < LOWEST_PORT and not self._fixed:
            rule = "tftp.low-port"
        elif len(self._transfers) >= MOST_TRANSFERS:
            rule = "tftp.crowded"
        elif not self._rate.take(client.host, now):
            rule = "tftp.rate"
        if rule is not None:
            return [*self._note(rule, client, now), Release(event.packet)]
        self._ref += 1
        ends = now + self._idle
        transfer = Transfer(self._ref, client, deque([event.server.host]), now, ends, ends, waiting=[event.packet])
        self._keep(transfer)
        return [OpenConversation(transfer.ref, client, None, transfer.peers, self._idle, REASON)]

    def _opened(self, ref: int) -> list[DatagramCommand]:
        transfer = self._transfers.get(ref)
        if transfer is None:
            return [ClosePinhole(ref)]
        transfer.opened = True
        self._record(transfer)
        waiting, transfer.waiting = transfer.waiting, []
        # Those that were asked meanwhile are let in before the request to them goes.
        more = [UpdateConversation(ref, transfer.peers, None)] if len(transfer.servers) > 1 else []
        return [*more, *map(Release, waiting)]

    def _refused(self, ref: int, rule: str, now: float) -> list[DatagramCommand]:
        transfer = self._transfers.get(ref)
        if transfer is None:
            return []
        self._forget(transfer)
        return [*self._note("tftp.refused", transfer.client, now, rule), *map(Release, transfer.waiting)]

    # --- the life of a transfer -------------------------------------------------------------------------------------

    def _counted(self, ref: int, packets: tuple[int, int], now: float) -> list[DatagramCommand]:
        transfer = self._transfers.get(ref)
        if transfer is None or packets == transfer.counted:
            return []
        transfer.counted = packets
        return self._renew(transfer, now)

    def _renew(self, transfer: Transfer, now: float, at_once: bool = False) -> list[DatagramCommand]:
        """Keep a transfer's port open, because it is in use. The broker is told when a third of the time is over, or
        `at_once`."""
        if self._fixed:
            return []
        transfer.ends = min(now + self._idle, transfer.began + LONGEST)
        left = transfer.ends - now
        tells = (at_once or transfer.lasts < now + self._idle * 2 / 3) and left >= 1.0
        if tells:
            transfer.lasts = now + left
        self._record(transfer)
        return [UpdateConversation(transfer.ref, transfer.peers, left)] if tells else []

    def _ended(self, now: float) -> list[DatagramCommand]:
        if self._fixed:
            return []
        commands = [
            command
            for transfer in [
                transfer for transfer in self._transfers.values() if transfer.ends <= now and transfer.opened
            ]
            for command in self._end(transfer.ref)
        ]
        # Looked for here only: until then transfers end later than this says, never earlier.
        self._due = min((max(transfer.ends, now + 1.0) for transfer in self._transfers.values()), default=None)
        return commands

    def _end(self, ref: int) -> list[DatagramCommand]:
        transfer = self._transfers.get(ref)
        if transfer is None:
            return []
        self._forget(transfer)
        return [ClosePinhole(ref), *map(Release, transfer.waiting)]

    # --- the tables -------------------------------------------------------------------------------------------------

    def _key(self, client: Endpoint, server: str) -> tuple[Endpoint, str]:
        return client, server if self._fixed else ""

    def _keep(self, transfer: Transfer) -> None:
        self._transfers[transfer.ref] = transfer
        self._by_socket[self._key(transfer.client, transfer.servers[-1])] = transfer
        if not self._fixed:
            self._due = transfer.ends if self._due is None else min(self._due, transfer.ends)

    def _forget(self, transfer: Transfer) -> None:
        del self._transfers[transfer.ref]
        del self._by_socket[self._key(transfer.client, transfer.servers[-1])]
        if self._changed is not None:
            self._changed[str(transfer.ref)] = Entry(str(transfer.ref), None, None)

    def _record(self, transfer: Transfer) -> None:
        if self._changed is not None:
            self._changed[str(transfer.ref)] = transfer.entry()

    def _note(self, code: str, client: Endpoint, now: float, detail: str = "") -> list[Note]:
        """Add a note, once a minute for each client."""
        if self._noted.get((code, client.host), now) > now:
            return []
        if len(self._noted) >= _MOST_NOTED:
            self._noted.clear()
        self._noted[code, client.host] = now + NOTE_AGAIN
        return [Note(code, f"{client} {detail}".rstrip())]
