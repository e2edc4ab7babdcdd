"""Calls and peers as `algate calls` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alg.address import Endpoint
from alg.datagrams import Kicked
from alg.sip.call import Call
from alg.sip.peers import PeerRow


@dataclass(frozen=True, slots=True)
class CallMedia:
    """One stream of a call: the client's socket, what is advertised for it, and which addresses may send in (None:
    all)."""

    ref: int
    kind: str
    target: Endpoint
    public: Endpoint | None
    peers: tuple[str, ...] | None
    packets_in: int
    packets_out: int


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call as `algate calls` shows it. `caller` and `callee`: URIs; `state`: trying, early, confirmed, failed;
    `since`: when it entered that state, on the clock of the events."""

    client: str
    server: str
    call_id: str
    caller: str
    callee: str
    state: str
    since: float
    media: tuple[CallMedia, ...]


def row_of(call: Call) -> CallRow:
    """Return what is shown of a call."""
    media = {inside.ref: inside for inside in call.media}
    for offered in call.offered.values():
        media.update((inside.ref, inside) for inside in offered)
    return CallRow(
        call.client.host,
        call.server,
        call.key[1].decode("utf-8", "replace"),
        call.caller,
        call.callee,
        str(call.state),
        call.since,
        tuple(
            CallMedia(
                ref,
                call.kinds.get(ref, ""),
                inside.target,
                inside.public,
                inside.peers,
                *call.counted.get(ref, (0, 0)),
            )
            for ref, inside in media.items()
        ),
    )


def kicked(calls: Iterable[CallRow], name: str) -> list[Kicked]:
    """Return the calls that have this Call-ID, with the sockets of their media."""
    return [
        Kicked(
            {"id": name, "kind": "call", "client": call.client, "server": call.server},
            tuple(media.ref for media in call.media),
        )
        for call in calls
        if call.call_id == name
    ]


def call_rows(
    calls: Iterable[CallRow], leases: Mapping[int, str], traffic: Mapping[int, tuple[int, int]], now: float
) -> list[dict[str, Any]]:
    """Return the rows as JSON objects. `leases` and `traffic` (packets in and out) by the number of a stream; `now` is
    on the clock of the events."""
    return [
        {
            "client": call.client,
            "server": call.server,
            "call_id": call.call_id,
            "caller": call.caller,
            "callee": call.callee,
            "state": call.state,
            "media": [_media_row(media, leases, traffic) for media in call.media],
            "duration": round(now - call.since, 3),
        }
        for call in calls
    ]


def peer_rows(peers: Iterable[PeerRow], now: float) -> list[dict[str, Any]]:
    """Return the rows as JSON objects. `now` is on the clock of the events."""
    return [
        {
            "client": str(peer.client),
            "server": peer.server,
            "state": peer.state,
            "reason": peer.reason,
            "until": round(peer.until - now, 3) if peer.until is not None else None,
        }
        for peer in peers
    ]


def _media_row(media: CallMedia, leases: Mapping[int, str], traffic: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    packets_in, packets_out = traffic.get(media.ref, (media.packets_in, media.packets_out))
    return {
        "ref": media.ref,
        "kind": media.kind,
        "target": str(media.target),
        "public": str(media.public) if media.public else None,
        "peers": media.peers,
        "packets_in": packets_in,
        "packets_out": packets_out,
        "lease": leases.get(media.ref),
    }
