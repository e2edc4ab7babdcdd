"""Calls of a protocol module as `algate calls` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from alg.sip.rows import CallRow
from gateway.observe.admin_wire import Rows


def call_rows(
    calls: Iterable[CallRow], leases: Mapping[int, str], traffic: Mapping[int, tuple[int, int]], now: float, **more: Any
) -> Rows:
    """The rows; `leases` and `traffic` (packets in and out) by the number of a stream, `more` is added to each row."""
    rows = []
    for call in calls:
        row = {**msgspec.to_builtins(call), **more, "duration": round(now - call.since, 3)}
        del row["since"]
        row["media"] = []
        for media in call.media:
            packets_in, packets_out = traffic.get(media.ref, (media.packets_in, media.packets_out))
            row["media"].append(
                {
                    **msgspec.to_builtins(media),
                    "target": str(media.target),
                    "public": str(media.public) if media.public else None,
                    "lease": leases.get(media.ref),
                    "packets_in": packets_in,
                    "packets_out": packets_out,
                }
            )
        rows.append(row)
    return rows
