"""The messages between workers and the broker: a packet of a SOCK_SEQPACKET socket is a list of messages, in msgpack.

Nothing in a message says who sent it: the broker identifies a worker by the descriptor on which the message came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

import msgspec

from alg.address import Endpoint
from gateway.model.requests import Along, Lease, PinholeRequest, PinholeUpdate

MAX_PACKET = 8192
"""The longest packet, in bytes. A longer one is dropped."""

MOST_MESSAGES = 64
"""The greatest number of messages in one packet."""

MOST_COUNTED = 64
"""The greatest number of conversations whose traffic one message may ask for."""


class Hello(msgspec.Struct, tag="hello", frozen=True, forbid_unknown_fields=True):
    """There is a new worker in this slot: close what its predecessor left, unless the worker knows all of it and goes
    on with it (`keep`). `pid` is for the log."""

    pid: int
    keep: bool = False


class Open(msgspec.Struct, tag="open", frozen=True, forbid_unknown_fields=True):
    """Open a pinhole. Answered by `LeaseOpened` or `RequestRefused` with the same `id`, which the worker chooses."""

    id: int
    request: PinholeRequest


class Update(msgspec.Struct, tag="update", frozen=True, forbid_unknown_fields=True):
    """Change an open conversation of this worker's slot. Answered by `Updated` or `RequestRefused`."""

    id: int
    update: PinholeUpdate


class Count(msgspec.Struct, tag="count", frozen=True, forbid_unknown_fields=True):
    """Ask how much has passed through these conversations of this worker's slot (MOST_COUNTED at most). Answered by
    `Counted`."""

    id: int
    leases: tuple[str, ...]


class Dial(msgspec.Struct, tag="dial", frozen=True, forbid_unknown_fields=True):
    """Begin a connection from the address of `client` to `server`, to which that client has a connection that was
    redirected to this host; with `port`, to another port of that host, for data. Answered by `Dialled` or
    `RequestRefused`."""

    id: int
    client: Endpoint
    server: Endpoint
    port: int = 0


class AskSeen(msgspec.Struct, tag="look", frozen=True, forbid_unknown_fields=True):
    """Ask with which address the destination of this flow sees its source. Answered by `Seen` or `RequestRefused`."""

    id: int
    along: Along


class Close(msgspec.Struct, tag="close", frozen=True, forbid_unknown_fields=True):
    """Close a pinhole of this worker's slot, if it is still open. Not answered."""

    lease: str


class LeaseOpened(msgspec.Struct, tag="opened", frozen=True):
    """The pinhole of `Open` `id` is open."""

    id: int
    lease: Lease


class Updated(msgspec.Struct, tag="updated", frozen=True):
    """The conversation of `Update` `id` was changed; the lease as it is now."""

    id: int
    lease: Lease


class Counted(msgspec.Struct, tag="counted", frozen=True):
    """Packets in and out of the leases of `Count` `id`. Leases that are not open are left out."""

    id: int
    packets: dict[str, tuple[int, int]]


class Dialled(msgspec.Struct, tag="dialled", frozen=True):
    """The connection of `Dial` `id` has begun. Its descriptor comes with this message (SCM_RIGHTS), which is alone in
    its packet. `seen`: the endpoint that the server sees."""

    id: int
    seen: Endpoint


class Seen(msgspec.Struct, tag="seen", frozen=True):
    """The address for which `AskSeen` `id` asked."""

    id: int
    host: str


class RequestRefused(msgspec.Struct, tag="refused", frozen=True):
    """The pinhole of `Open` or `Update` `id` was not opened or changed. `rule` is a stable word."""

    id: int
    rule: str
    detail: str


FromWorker = Hello | Open | Update | Count | Dial | AskSeen | Close
ToWorker = LeaseOpened | Updated | Counted | Dialled | Seen | RequestRefused

_Message = TypeVar("_Message", FromWorker, ToWorker)

_encoder = msgspec.msgpack.Encoder()
_from_worker = msgspec.msgpack.Decoder(Annotated[list[FromWorker], msgspec.Meta(max_length=MOST_MESSAGES)])
_to_worker = msgspec.msgpack.Decoder(Annotated[list[ToWorker], msgspec.Meta(max_length=MOST_MESSAGES)])


def encode(*messages: FromWorker | ToWorker) -> bytes:
    """Encode messages as one packet. Raises ValueError if it is longer than MAX_PACKET."""
    data = _encoder.encode(messages)
    if len(data) > MAX_PACKET:
        raise ValueError(f"packet of {len(data)} bytes, {MAX_PACKET} are allowed")
    return data


def packets(messages: Sequence[_Message]) -> Iterator[tuple[bytes, Sequence[_Message]]]:
    """Encode messages as few packets, each returned with the messages in it. Raises ValueError if one message alone is
    too long."""
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
    """Decode a packet of a worker. Raises ValueError for anything that is not exactly a list of its messages."""
    return _decode(_from_worker, data)


def decode_to_worker(data: bytes) -> list[ToWorker]:
    """Decode a packet of the broker. Raises ValueError for anything that is not exactly a list of its messages."""
    return _decode(_to_worker, data)


def _decode(decoder: msgspec.msgpack.Decoder[list[_Message]], data: bytes) -> list[_Message]:
    if len(data) > MAX_PACKET:
        raise ValueError(f"packet is longer than {MAX_PACKET} bytes")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"bad packet: {error}") from error
