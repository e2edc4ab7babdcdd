"""What workers and the broker say to each other: in a packet of a SOCK_SEQPACKET socket a list of messages, msgpack.

Nothing in a message says who sent it: the broker knows a worker by the descriptor that the message came on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

import msgspec

from alg.address import Endpoint
from gateway.model.requests import Along, Lease, PinholeRequest, PinholeUpdate

MAX_PACKET = 8192
"""Longest packet in bytes; a longer one is dropped."""

MOST_MESSAGES = 64
"""Messages in one packet."""

MOST_COUNTED = 64
"""Conversations that one message may ask the traffic of."""


class Hello(msgspec.Struct, tag="hello", frozen=True, forbid_unknown_fields=True):
    """A new worker sits in this slot: close what its predecessor left, unless it knows all about it and goes on with
    it (`keep`). `pid` is for the log."""

    pid: int
    keep: bool = False


class Open(msgspec.Struct, tag="open", frozen=True, forbid_unknown_fields=True):
    """Open a pinhole; answered by `Opened` or `Refused` with the same `id` (the worker's choice)."""

    id: int
    request: PinholeRequest


class Update(msgspec.Struct, tag="update", frozen=True, forbid_unknown_fields=True):
    """Change an open conversation of this worker's slot; answered by `Updated` or `Refused`."""

    id: int
    update: PinholeUpdate


class Count(msgspec.Struct, tag="count", frozen=True, forbid_unknown_fields=True):
    """How much has passed through these conversations of this worker's slot (MOST_COUNTED at most)? Answered by
    `Counted`."""

    id: int
    leases: tuple[str, ...]


class Dial(msgspec.Struct, tag="dial", frozen=True, forbid_unknown_fields=True):
    """Begin a connection with the address of `client` to `server`, to which that client's socket has a connection that
    was redirected to this host. Answered by `Dialled` or `Refused`."""

    id: int
    client: Endpoint
    server: Endpoint


class Look(msgspec.Struct, tag="look", frozen=True, forbid_unknown_fields=True):
    """As what is the source of this flow seen by its destination? Answered by `Seen` or `Refused`."""

    id: int
    along: Along


class Close(msgspec.Struct, tag="close", frozen=True, forbid_unknown_fields=True):
    """Close a pinhole of this worker's slot, if it is still open. Not answered."""

    lease: str


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """The pinhole of `Open` `id` is open."""

    id: int
    lease: Lease


class Updated(msgspec.Struct, tag="updated", frozen=True):
    """The conversation of `Update` `id` is changed: the lease as it is now."""

    id: int
    lease: Lease


class Counted(msgspec.Struct, tag="counted", frozen=True):
    """Packets in and out of the leases of `Count` `id`; those that are not open are left out."""

    id: int
    packets: dict[str, tuple[int, int]]


class Dialled(msgspec.Struct, tag="dialled", frozen=True):
    """The connection of `Dial` `id` is under way: its descriptor is with this message (SCM_RIGHTS), which has no other
    beside it. `seen`: what the server sees of it."""

    id: int
    seen: Endpoint


class Seen(msgspec.Struct, tag="seen", frozen=True):
    """The address that `Look` `id` asked for."""

    id: int
    host: str


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The pinhole of `Open` or `Update` `id` was not opened or changed; `rule` is a stable word."""

    id: int
    rule: str
    detail: str


FromWorker = Hello | Open | Update | Count | Dial | Look | Close
ToWorker = Opened | Updated | Counted | Dialled | Seen | Refused

_Message = TypeVar("_Message", FromWorker, ToWorker)

_encoder = msgspec.msgpack.Encoder()
_from_worker = msgspec.msgpack.Decoder(Annotated[list[FromWorker], msgspec.Meta(max_length=MOST_MESSAGES)])
_to_worker = msgspec.msgpack.Decoder(Annotated[list[ToWorker], msgspec.Meta(max_length=MOST_MESSAGES)])


def encode(*messages: FromWorker | ToWorker) -> bytes:
    """Messages as one packet. ValueError if it is longer than MAX_PACKET."""
    data = _encoder.encode(messages)
    if len(data) > MAX_PACKET:
        raise ValueError(f"packet of {len(data)} bytes, {MAX_PACKET} are allowed")
    return data


def packets(messages: Sequence[_Message]) -> Iterator[tuple[bytes, Sequence[_Message]]]:
    """Messages as few packets: each with what is in it. ValueError if one message alone is too long."""
    if len(messages) <= MOST_MESSAGES:
        try:
            yield encode(*messages), messages
            return
        except ValueError:
            if len(messages) < 2:
                raise
    half = len(messages) // 2
    yield from packets(messages[:half])
    yield from packets(messages[half:])


def decode_from_worker(data: bytes) -> list[FromWorker]:
    """Read a packet of a worker. ValueError for anything that is not exactly a list of its messages."""
    return _decode(_from_worker, data)


def decode_to_worker(data: bytes) -> list[ToWorker]:
    """Read a packet of the broker. ValueError for anything that is not exactly a list of its messages."""
    return _decode(_to_worker, data)


def _decode(decoder: msgspec.msgpack.Decoder[list[_Message]], data: bytes) -> list[_Message]:
    if len(data) > MAX_PACKET:
        raise ValueError(f"packet is longer than {MAX_PACKET} bytes")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"bad packet: {error}") from error
