"""Calls: which media sockets of the client are in use, and which addresses may send media to them.

RFC 3261, 3262 (PRACK), 3264 (offer and answer), 3311 (UPDATE), 4028 (session timers). A call is identified by its
client's address and its Call-ID. It may have several legs, because a forked INVITE is answered by several servers.
"""

from __future__ import annotations

import heapq
import math
from functools import lru_cache
from typing import cast

from alg.address import Address, Endpoint
from alg.api import Side
from alg.sip.call import Call, CallState, Happening, Key, RequestKey
from alg.sip.edits import is_address
from alg.sip.message import Message
from alg.sip.options import SipOptions
from alg.sip.sockets import SIGNALLING, InsideSocket, InsideSockets, Peers
from alg.sip.stand_down import is_public
from alg.text.sdp import Description

LINGER = 5.0  # seconds after a failure (the INVITE may come again, with credentials) or after a BYE without an answer
SETUP = 240.0  # seconds without a word until an INVITE without a final answer is given up (RFC 3261, 16.6: 180)
SESSION_GRACE = 32.0
AFTERWARDS = 32.0  # seconds that a server may send its BYE again (RFC 3261, 17.1.2.2: 64 * T1)
MOST_CALLS = 20000
MOST_OF_CLIENT = MOST_CALLS // 2  # what a client may have is `pinhole.per_client`'s matter; this bounds memory


def remote_tag(side: Side, message: Message) -> bytes:
    """Return the tag of the far side in a message that `side` sent."""
    return message.tag("to" if (side is Side.CLIENT) == message.is_request else "from")


def own_tag(side: Side, message: Message) -> bytes:
    """Return the tag of the client in a message that `side` sent."""
    return message.tag("from" if (side is Side.CLIENT) == message.is_request else "to")


def request_of(side: Side, message: Message) -> RequestKey:
    """Return the request that a message is, or answers."""
    return (side if message.is_request else side.other), message.cseq


def may_send_media(address: Address, server: str) -> bool:
    """Whether media can come from `address` to a client of `server`: it is the address of one host, of the same family,
    and not behind another NAT than the server is (the address that a phone there names is not the one that its media
    come from)."""
    if address.is_unspecified or address.is_multicast or address.is_loopback or address.is_link_local:
        return False
    facing = is_address(server)
    return facing is not None and facing.version == address.version and (is_public(address) or not is_public(facing))


@lru_cache(1024)
def _media_host(text: str, server: str) -> str | None:
    """Return the address that `text` of a description is, if media can come from it."""
    address = is_address(text)
    return str(address) if address and may_send_media(address, server) else None


class Calls:
    """All calls of an engine. `changed`: the keys of calls that have changed, if they are recorded."""

    def __init__(self, sockets: InsideSockets, options: SipOptions) -> None:
        self.changed: set[Key] | None = None
        self._sockets = sockets
        self._any_source = options.media_source == "any"
        self._media_timeout, self._hold_timeout = options.media_timeout, options.hold_timeout
        self.begun = self.answered = 0  # calls, since the start
        self._calls: dict[Key, Call] = {}
        self._of_client: dict[str, int] = {}
        self._same_id: dict[bytes, list[Key]] = {}  # calls of several clients may have one Call-ID
        self._timers: list[tuple[float, Key]] = []

    def all(self) -> list[Call]:
        return list(self._calls.values())

    def by_key(self, key: Key) -> Call | None:
        return self._calls.get(key)

    def restore(self, call: Call) -> None:
        """Add a call that was recorded."""
        self._add(call)

    def _add(self, call: Call) -> None:
        self._calls[call.key] = call
        self._of_client[call.client.host] = self._of_client.get(call.client.host, 0) + 1
        self._same_id.setdefault(call.key[1], []).append(call.key)
        self._watch(call)
        self.touch(call)

    def touch(self, call: Call) -> None:
        """Note that the call has changed."""
        if self.changed is not None:
            self.changed.add(call.key)

    def find(self, client: Endpoint, message: Message) -> Call | None:
        return self._calls.get((client.host, message.call_id))

    def begin(self, side: Side, client: Endpoint, server: str, message: Message, now: float) -> Call | None:
        """Return the call of an INVITE, and make it if there is none. None: there are too many."""
        call = self.find(client, message)
        if call is None:
            count = self._of_client.get(client.host, 0)
            if len(self._calls) >= MOST_CALLS or count >= MOST_OF_CLIENT:
                return None
            caller, callee = (message.party(name).decode("utf-8", "replace") for name in ("from", "to"))
            key = (client.host, message.call_id)
            call = Call(key, client, server, caller, callee, now, now, {server})
            self.begun += 1
            if side is Side.CLIENT:
                call.replaces = self._elsewhere(server, message)
            self._add(call)
        elif side is Side.CLIENT or server in call.servers:
            call.ends = math.inf
            call.happens(Happening.INVITED, now)  # again, with credentials, say
        return call

    def _elsewhere(self, server: str, message: Message) -> Key | None:
        """Return the call that an INVITE continues from another address of its client: one dialog (RFC 3261, 12)."""
        same = self._same_id.get(message.call_id)
        if not same:
            return None
        tags = own_tag(Side.CLIENT, message), remote_tag(Side.CLIENT, message)
        if not all(tags):
            return None
        for key in same:
            other = self._calls[key]
            if other.tag == tags[0] and tags[1] in other.legs and server in other.servers:
                return key
        return None

    # --- offers and answers -----------------------------------------------------------------------------------------

    def client_media(self, call: Call, asked: RequestKey, media: list[InsideSocket], now: float) -> None:
        """Note that the client names these sockets in the request `asked`, or in an answer to it."""
        before = call.offered.get(asked, [])
        call.offered[asked] = media
        self._tidy(call, before, now)

    def far_media(self, call: Call, side: Side, message: Message, sdp: Description, now: float) -> None:
        """Read the far side's session description in `message`, which `side` (the server's) sent."""
        hosts: dict[str, None] = {}
        for line in sdp.media:
            for place in (line.connection, line.rtcp_place):
                host = _media_host(place.host, call.server) if place and line.port else None
                if host:
                    hosts[host] = None
        if not hosts:
            return  # on hold in the old way (0.0.0.0), or all refused: the peers stay
        tag = remote_tag(side, message)
        if message.is_request:
            call.far_offered[request_of(side, message)] = tag, tuple(hosts)
        else:
            call.far[tag] = tuple(hosts)
        self.admit(call, now)

    def admit(self, call: Call, now: float) -> None:
        """Let the far side's media in to all sockets of the call."""
        peers = self.peers(call)
        for inside in self._all_media(call):
            self._sockets.claim(inside, call.claim, now, math.inf, peers)

    def peers(self, call: Call) -> Peers:
        """Return the addresses that may send media to the call's sockets."""
        hosts: dict[str, None] = {}
        for addresses in call.far.values():
            hosts.update(dict.fromkeys(addresses))
        for _, addresses in call.far_offered.values():
            hosts.update(dict.fromkeys(addresses))
        if hosts and self._any_source:
            return None
        return tuple(sorted(hosts))

    def _all_media(self, call: Call) -> list[InsideSocket]:
        found = {inside.ref: inside for inside in call.media}
        for media in call.offered.values():
            found.update((inside.ref, inside) for inside in media)
        return list(found.values())

    def _tidy(self, call: Call, before: list[InsideSocket], now: float) -> None:
        """Release the sockets of `before` that the call does not use any more."""
        if not before:
            return
        used = {inside.ref for inside in self._all_media(call)}
        for inside in before:
            if inside.ref not in used:
                self._sockets.drop(inside, call.claim, now)

    # --- what messages do to a call ---------------------------------------------------------------------------------

    def heard(self, call: Call, side: Side, server: str, message: Message, now: float) -> None:
        """Follow a message of the call, after its session description was read."""
        call.heard = now
        self.touch(call)
        if side is Side.CLIENT and message.is_request:
            call.servers.add(server)  # the client's choice: it knows the route
        if message.is_request:
            if message.method == b"ACK" and side is Side.CLIENT and (Side.CLIENT, message.cseq) in call.offered:
                self._agree(call, (Side.CLIENT, message.cseq), now)
            elif message.method == b"BYE":
                call.ends = now + LINGER
                self._watch(call)
        elif message.status >= 200:
            self._final(call, side, message, now)
        elif message.status > 100:
            call.happens(Happening.PROGRESS, now)

    def _final(self, call: Call, side: Side, message: Message, now: float) -> None:
        asked = request_of(side, message)
        good = message.status < 300
        if message.method == b"BYE":
            call.legs.discard(remote_tag(side, message))
            if message.status in (401, 407) or (call.legs and message.status != 408):
                call.ends = math.inf
            else:
                self.end(call, now)
            return
        if message.method in (b"INVITE", b"UPDATE") and good:
            seconds = message.number("session-expires")
            call.session_ends = now + seconds + SESSION_GRACE if seconds else math.inf
        if message.method == b"INVITE" and good:
            call.legs.add(remote_tag(side, message))
            call.tag = own_tag(side, message)
            if call.replaces and (replaced := self._calls.get(call.replaces)):
                self.end(replaced, now)
            call.far = {tag: hosts for tag, hosts in call.far.items() if tag in call.legs}
            if call.happens(Happening.ANSWERED, now):
                self.answered += 1
        if good:
            self._agree(call, asked, now)
        elif message.method == b"INVITE" and call.state is not CallState.CONFIRMED:
            call.ends = now + LINGER
            call.happens(Happening.REFUSED, now)
            call.far.clear()
            call.far_offered.clear()
            self.admit(call, now)
        else:
            before = call.offered.pop(asked, [])
            call.far_offered.pop(asked, None)
            self._tidy(call, before, now)
            self.admit(call, now)
        self._watch(call)

    def _agree(self, call: Call, asked: RequestKey, now: float) -> None:
        """The request `asked` was accepted: what it offers is in use. What was used before is not, nor are older offers
        of that side (an UPDATE may be accepted before its INVITE)."""
        if offered := call.far_offered.pop(asked, None):
            call.far[offered[0]] = offered[1]
        if (media := call.offered.pop(asked, None)) is not None:
            before, call.media = call.media, media
            for older in [other for other in call.offered if other[0] is asked[0] and other[1] < asked[1]]:
                before = before + call.offered.pop(older)
            self._tidy(call, before, now)
        self.admit(call, now)

    def active(self, inside: InsideSocket, packets: tuple[int, int], now: float) -> None:
        """Note that the pinhole of a socket has carried so many packets (in, out). Those of a signalling socket are no
        media."""
        if inside.reason == SIGNALLING:
            return
        for claim in inside.claims:
            call = self._calls.get(cast(Key, claim[1])) if claim[0] == "call" else None
            if call is not None:
                if call.counted.get(inside.ref) != packets:
                    call.heard = now
                call.counted[inside.ref] = packets
                self._watch(call)
                self.touch(call)

    def lost(self, inside: InsideSocket, now: float) -> None:
        """Note that the pinhole of a socket is not open any more, so nothing will be counted for it. The call is
        treated as silent: if its BYE was lost too, it must not last as long as one that is on hold."""
        for claim in inside.claims:
            call = self._calls.get(cast(Key, claim[1])) if claim[0] == "call" else None
            if call is not None and inside.reason != SIGNALLING:
                call.counted.setdefault(inside.ref, (0, 0))
                self._watch(call)
                self.touch(call)

    # --- the end ----------------------------------------------------------------------------------------------------

    def end(self, call: Call, now: float) -> None:
        """End the call, and release its sockets."""
        if self._calls.pop(call.key, None) is None:
            return
        self.touch(call)
        same = self._same_id[call.key[1]]
        same.remove(call.key)
        if not same:
            del self._same_id[call.key[1]]
        self._of_client[call.client.host] -= 1
        if not self._of_client[call.client.host]:
            del self._of_client[call.client.host]
        for inside in self._all_media(call):
            self._sockets.drop(inside, call.claim, now)
        if call.signalling:
            servers = tuple(sorted(call.servers))
            self._sockets.claim(call.signalling, ("afterwards", servers), now, now + AFTERWARDS, servers)
            self._sockets.drop(call.signalling, call.claim, now)

    def _due(self, call: Call) -> float:
        """Return when the call ends by itself in its current state."""
        if call.state is not CallState.CONFIRMED:
            return min(call.ends, call.heard + SETUP)
        silent = call.on_hold or call.far_on_hold or not call.counted
        quiet = self._hold_timeout if silent else self._media_timeout
        return min(call.ends, call.session_ends, call.heard + quiet)

    def _watch(self, call: Call) -> None:
        due = self._due(call)
        if due < call.timer:
            call.timer = due
            heapq.heappush(self._timers, (due, call.key))

    def deadline(self) -> float:
        """Return when `tick` has something to do; infinity if there is nothing."""
        return self._timers[0][0] if self._timers else math.inf

    def tick(self, now: float) -> None:
        """End the calls whose time is over."""
        while self._timers and self._timers[0][0] <= now:
            call = self._calls.get(heapq.heappop(self._timers)[1])
            if call is None:
                continue
            if self._due(call) <= now:
                self.end(call, now)
            else:
                call.timer = math.inf
                self._watch(call)
