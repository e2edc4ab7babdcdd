"""What registrars have granted: while a binding lasts, the registrar may reach the client's contact (RFC 3261, 10).

Nothing opens before a 2xx of the server to which the REGISTER went, and only contacts of the client itself count. An
accepted SUBSCRIBE does the same for the server that will send NOTIFY (RFC 6665).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from alg.address import Endpoint
from alg.sip.edits import DEFAULT_PORT, endpoint_of, is_address, same_host
from alg.sip.message import HostPort, Message, address_of_record, uri_host, user_of_record
from alg.sip.sockets import InsideSockets
from alg.text.header import Span

DEFAULT_EXPIRES = 3600  # RFC 3261, 10.2.1.1: the registrar's choice; ours where it does not say it
LONGEST = 86400.0
GRACE = 32.0  # seconds beyond the expiry, for a refresh that comes late
ANSWER_WITHIN = 64.0  # seconds for the registrar's answer
MOST_ASKED = 5000
MOST_HELD = 20000  # addresses of record and subscriptions; of more, the oldest is forgotten here, and ends by its time

BindingKey = tuple[str, str, bytes]
"""The client's address, the server's address, and the address of record (or the Call-ID of a subscription)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was sent: its sockets with the seconds that it asks for; `star`: all bindings of the client are
    removed."""

    key: BindingKey
    requested: dict[Endpoint, int]
    star: bool
    peers: tuple[str, ...]
    at: float


class Bindings:
    """All bindings of an engine."""

    def __init__(self, sockets: InsideSockets) -> None:
        self._sockets = sockets
        self._asked: dict[tuple[str, bytes, int], Asked] = {}
        self._held: dict[BindingKey, set[Endpoint]] = {}
        self.granted = 0  # requests, since the start

    def __len__(self) -> int:
        """The number of contacts that are bound."""
        return sum(self._sockets.of(target) is not None for held in self._held.values() for target in held)

    def restore(self) -> None:
        """Find the bindings in the claims of the sockets that were restored."""
        for inside in self._sockets.all():
            for kind, key in inside.claims:
                if kind == "binding":
                    self._held.setdefault(cast(BindingKey, key), set()).add(inside.target)

    def register(self, message: Message, client: Endpoint, server: str, now: float) -> None:
        """Note that the client sends a REGISTER for its own address of record."""
        default = message.number("expires")
        requested: dict[Endpoint, int] = {}
        for addr, uri in message.own_contacts():
            if target := self._named(client, uri.place):
                requested[target] = _seconds(message, addr.params, default)
        peers = {server: None}
        found = uri_host(message.data, message.uri)  # the registrar itself, where an outbound proxy stands before it
        if found and (address := is_address(found.host)):
            peers[str(address)] = None
        key = client.host, server, _aor(message, "to")
        self._remember(message, client, Asked(key, requested, message.is_star(), tuple(peers), now))

    def subscribe(self, message: Message, client: Endpoint, server: str, now: float) -> None:
        """Note that the client sends a SUBSCRIBE."""
        expires = message.number("expires")
        requested = {self._target(client, client): DEFAULT_EXPIRES if expires is None else expires}
        key = client.host, server, message.call_id
        self._remember(message, client, Asked(key, requested, False, (server,), now))

    def answered(self, message: Message, client: Endpoint, server: str, now: float) -> None:
        """Handle the server's answer to a REGISTER or SUBSCRIBE."""
        if not 200 <= message.status < 300:
            return
        asked = self._asked.get((client.host, message.call_id, message.cseq))
        if asked is None or asked.key[1] != server or now - asked.at > ANSWER_WITHIN:
            return
        del self._asked[client.host, message.call_id, message.cseq]
        if asked.key not in self._held and len(self._held) >= MOST_HELD:
            del self._held[next(iter(self._held))]
        held = self._held.setdefault(asked.key, set())
        granted = self._granted(message, client, asked)
        claim = ("binding", asked.key)
        for target in (*held,) if asked.star else (*asked.requested,):
            inside = self._sockets.of(target)
            seconds = 0 if asked.star else granted.get(target, 0)
            if inside is None or seconds <= 0:
                held.discard(target)
                if inside:
                    self._sockets.drop(inside, claim, now)
            else:
                self.granted += 1
                held.add(target)
                until = now + min(float(seconds), LONGEST) + GRACE
                self._sockets.claim(inside, claim, now, until, asked.peers)
        if not held:
            del self._held[asked.key]

    def _granted(self, message: Message, client: Endpoint, asked: Asked) -> dict[Endpoint, int]:
        """Return for how many seconds each of the client's sockets is bound, according to the answer."""
        expires = message.number("expires")
        if message.method == b"SUBSCRIBE":
            return {target: seconds if expires is None else expires for target, seconds in asked.requested.items()}
        granted: dict[Endpoint, int] = {}
        for addr in message.readable("contact"):
            place = uri_host(message.data, addr.uri)
            if place and (target := self._named(client, place)):
                default = expires if expires is not None else asked.requested.get(target)
                granted[target] = _seconds(message, addr.params, default)
        listed = message.readable("contact")
        if not granted and len(asked.requested) == 1 and len(listed) <= 1:
            # Registrars of cameras, and small ones, say 200 without Contact, or with one not asked for: a phone
            # takes that for its own (what it did not ask for, or asked to end, it does not get).
            (target, seconds), *_ = asked.requested.items()
            answered = _seconds(message, listed[0].params, expires) if listed else expires
            granted[target] = min(seconds, answered) if answered is not None else seconds
        return granted

    def _named(self, client: Endpoint, place: HostPort) -> Endpoint | None:
        """Return which socket of the client a contact names, by its own address or by a public one of ours."""
        if same_host(place.host, client.host):
            return self._target(client, Endpoint(client.host, place.port or DEFAULT_PORT))
        endpoint = endpoint_of(place)
        found = self._sockets.behind(endpoint) if endpoint else None
        return found[1] if found and found[0].is_of(client) else None

    def _target(self, client: Endpoint, named: Endpoint) -> Endpoint:
        """Return the socket that a contact stands for: the one that it names, or the TCP connection that it goes
        through."""
        inside = self._sockets.of(client)
        return client if self._sockets.is_fixed(inside) else named

    def _remember(self, message: Message, client: Endpoint, asked: Asked) -> None:
        if len(self._asked) >= MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[client.host, message.call_id, message.cseq] = asked


def is_third_party(message: Message) -> bool:
    """Whether a user registers for another user (RFC 3261, 10.2), so that From differs from To. It is the same user if
    one of them only has another name of the registrar as its host, or the phone's own address."""
    users = [user_of_record(message.party(name)) for name in ("from", "to")]
    return users[0] != users[1] or (not users[0] and _aor(message, "from") != _aor(message, "to"))


def _aor(message: Message, name: str) -> bytes:
    return address_of_record(message.party(name))


def _seconds(message: Message, params: Span, default: int | None) -> int:
    found = message.param(params, b"expires")
    if found and (digits := found[0].strip(b'"')).isdigit():
        return int(digits[:10])
    return DEFAULT_EXPIRES if default is None else default
