"""Records of the part of an engine's state that outlives its process, and the state restored from them.

The driver of the engine stores them (`SipEngine.journal`), so that a process that replaces a dead one knows its calls
and registrations. Times are of the monotonic clock, which does not restart with a process. What waits for an answer is
not recorded: it is asked for again with the next retransmission.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from alg.address import Endpoint
from alg.api import Side
from alg.datagrams import Entry
from alg.sip.call import Call, CallState, Key
from alg.sip.calls import Calls
from alg.sip.sockets import Claim, InsideSocket, InsideSockets, Peers, SocketState


@dataclass(frozen=True, slots=True)
class SocketRecord:
    """An inside socket that has a public port. The fields are those of `InsideSocket`."""

    ref: int
    target: Endpoint
    second: int | None
    reason: str
    public: Endpoint
    peers: Peers
    ends: float
    claims: list[tuple[str, tuple[bytes, ...], Peers, float]]
    spelled: dict[str, bytes]
    speakers: list[Endpoint] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call. The fields are those of `Call`, with the numbers of sockets in place of the sockets."""

    key: Key
    client: Endpoint
    server: str
    caller: str
    callee: str
    since: float
    heard: float
    servers: list[str]
    state: str
    media: list[int]
    offered: list[tuple[Side, int, list[int]]]
    far: list[tuple[bytes, tuple[str, ...]]]
    far_offered: list[tuple[Side, int, bytes, tuple[str, ...]]]
    legs: list[bytes]
    kinds: list[tuple[int, str]]
    counted: list[tuple[int, tuple[int, int]]]
    signalling: int | None
    tag: bytes
    replaces: Key | None
    on_hold: bool
    session_ends: float
    ends: float
    far_on_hold: bool = False


@dataclass(frozen=True, slots=True)
class TalkRecord:
    """A client's socket and a server that are left alone, by `rule`. `until`: it is a revocation, and ends then."""

    client: Endpoint
    server: str
    rule: str
    until: float | None = None


Record = SocketRecord | CallRecord | TalkRecord


class _Kept(msgspec.Struct, array_like=True, omit_defaults=True):
    """One of the records, as it is encoded."""

    socket: SocketRecord | None = None
    call: CallRecord | None = None
    talk: TalkRecord | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Kept)


def records_of(entries: Iterable[Entry]) -> list[Record]:
    """Decode entries. Those that cannot be read (another version wrote them) are left out."""
    found: list[Record] = []
    for entry in entries:
        if entry.record is not None:
            try:
                kept = _decoder.decode(entry.record)
            except (msgspec.DecodeError, msgspec.ValidationError):
                continue
            record = kept.socket or kept.call or kept.talk
            if record is not None:
                found.append(record)
    return found


def _entry(key: str, record: Record | None) -> Entry:
    if record is None:
        return Entry(key, None, None)
    if isinstance(record, SocketRecord):
        return Entry(key, record.ref, _encoder.encode(_Kept(socket=record)))
    if isinstance(record, CallRecord):
        return Entry(key, None, _encoder.encode(_Kept(call=record)))
    return Entry(key, None, _encoder.encode(_Kept(talk=record)))


@dataclass(slots=True)
class UnsavedChanges:
    """The changes since the journal was last read."""

    sockets: set[int] = field(default_factory=set)
    calls: set[Key] = field(default_factory=set)
    talks: list[Entry] = field(default_factory=list)

    def talk(self, client: Endpoint, server: str, rule: str | None, until: float | None = None) -> None:
        """Record that these two are left alone, by `rule`; None: not any more. `until`: for a revocation, otherwise
        None."""
        record = TalkRecord(client, server, rule, until) if rule is not None else None
        self.talks.append(_entry(f"talk {client} {server} {until is not None}", record))

    def drain(self, sockets: InsideSockets, calls: Calls) -> list[Entry]:
        """Return the entries to store; the set of changes is then empty."""
        entries = []
        for ref in self.sockets:
            inside = sockets.by_ref(ref)
            entries.append(_entry(f"conversation {ref}", _socket_record(inside) if inside else None))
        for key in self.calls:
            call = calls.by_key(key)
            entries.append(_entry(f"call {key[0]} {key[1].hex()}", _call_record(call) if call else None))
        entries += self.talks
        self.sockets.clear()
        self.calls.clear()
        self.talks.clear()
        return entries


def restore_all(records: Iterable[Record], sockets: InsideSockets, calls: Calls, now: float) -> None:
    """Restore sockets and calls."""
    found = []
    for record in records:
        if isinstance(record, SocketRecord):
            sockets.restore(_inside_socket(record), now)
        elif isinstance(record, CallRecord):
            found.append(record)
    for record in found:
        calls.restore(_call(record, sockets))


def _socket_record(inside: InsideSocket) -> SocketRecord | None:
    if inside.state is not SocketState.OPEN or inside.public is None:
        return None
    claims = [
        (kind, tuple(word if isinstance(word, bytes) else word.encode() for word in words), peers, until)
        for (kind, words), (peers, until) in inside.claims.items()
    ]
    return SocketRecord(
        inside.ref,
        inside.target,
        inside.second,
        inside.reason,
        inside.public,
        inside.peers,
        inside.ends,
        claims,
        inside.spelled,
        inside.speakers,
    )


def _inside_socket(record: SocketRecord) -> InsideSocket:
    return InsideSocket(
        record.ref,
        record.target,
        record.second,
        record.reason,
        SocketState.OPEN,
        record.public,
        record.peers,
        record.ends,
        {_claim(kind, words): (peers, until) for kind, words, peers, until in record.claims},
        record.spelled,
        record.speakers,
    )


def _claim(kind: str, words: tuple[bytes, ...]) -> Claim:
    """Make a claim from its encoded words: those of calls and bindings end with bytes of a message."""
    if kind in ("signalling", "afterwards"):
        return kind, tuple(word.decode() for word in words)
    return kind, (*(word.decode() for word in words[:-1]), words[-1])


# Fields of a call that are recorded as they are.
_PLAIN = (
    "key", "client", "server", "caller", "callee", "since", "heard", "tag", "replaces", "on_hold", "far_on_hold",
    "session_ends", "ends",
)  # fmt: skip


def _call_record(call: Call) -> CallRecord:
    return CallRecord(
        **{name: getattr(call, name) for name in _PLAIN},
        state=str(call.state),
        servers=sorted(call.servers),
        media=[inside.ref for inside in call.media],
        offered=[(*asked, [inside.ref for inside in media]) for asked, media in call.offered.items()],
        far=list(call.far.items()),
        far_offered=[(*asked, *offer) for asked, offer in call.far_offered.items()],
        legs=sorted(call.legs),
        kinds=list(call.kinds.items()),
        counted=list(call.counted.items()),
        signalling=call.signalling.ref if call.signalling else None,
    )


def _call(record: CallRecord, sockets: InsideSockets) -> Call:
    def those(refs: list[int]) -> list[InsideSocket]:
        return [inside for ref in refs if (inside := sockets.by_ref(ref))]

    return Call(
        **{name: getattr(record, name) for name in _PLAIN},
        state=CallState(record.state),
        servers=set(record.servers),
        media=those(record.media),
        offered={(side, number): those(refs) for side, number, refs in record.offered},
        far=dict(record.far),
        far_offered={(side, number): (tag, hosts) for side, number, tag, hosts in record.far_offered},
        legs=set(record.legs),
        kinds=dict(record.kinds),
        counted=dict(record.counted),
        signalling=sockets.by_ref(record.signalling) if record.signalling is not None else None,
    )
