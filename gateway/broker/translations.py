"""Asks the kernel's connection tracking for single flows: what the NAT made of each of them."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from alg.address import Endpoint, parse_ip
from gateway.broker.conntrack import (
    ADDRESS,
    CTA_ID,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_PROTO_SRC_PORT,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY,
    FAMILY,
    text_of,
)
from gateway.broker.messages import IPCTNL_MSG_CT_GET, NFNL_SUBSYS_CTNETLINK
from gateway.broker.netlink import NLM_F_REQUEST, NLMSGHDR, Netlink, attribute, attribute_map, nested
from gateway.model.requests import Transport

_GET = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
_BODY = NLMSGHDR.size + 4
_PROTOCOLS: dict[Transport, bytes] = {"udp": bytes((socket.IPPROTO_UDP,)), "tcp": bytes((socket.IPPROTO_TCP,))}


@dataclass(frozen=True, slots=True)
class Translation:
    """What the NAT made of a flow. `seen`: its source as the destination sees it; `answers`: the endpoint that really
    answers. `from_source`: whether the flow began at its source; `id`: the kernel's id of it."""

    seen: Endpoint
    answers: Endpoint
    from_source: bool
    id: bytes


class TranslationTable:
    """Asks for single connections. Must not be used by two threads at a time. Raises NetfilterError."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def get(self, transport: Transport, source: Endpoint, destination: Endpoint) -> Translation | None:
        """Return the connection with these ends, in either direction; None: the table has none yet."""
        version = source.version
        ends = attribute(ADDRESS[version, True], parse_ip(source.host).packed)
        ends += attribute(ADDRESS[version, False], parse_ip(destination.host).packed)
        protocol = attribute(CTA_PROTO_NUM, _PROTOCOLS[transport])
        protocol += attribute(CTA_PROTO_SRC_PORT, struct.pack(">H", source.port))
        protocol += attribute(CTA_PROTO_DST_PORT, struct.pack(">H", destination.port))
        body = nested(CTA_TUPLE_ORIG, nested(CTA_TUPLE_IP, ends), nested(CTA_TUPLE_PROTO, protocol))
        head = struct.pack(">BBH", FAMILY[version], 0, 0)
        (answer,) = self._netlink.ask_each([self._netlink.message(_GET, NLM_F_REQUEST, head + body)])
        if answer is None:
            return None
        found = attribute_map(answer, _BODY)
        original, reply = (_both_ends(found.get(kind, b""), version) for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY))
        if original is None or reply is None:
            return None
        if original == (source, destination):
            return Translation(reply[1], reply[0], True, found.get(CTA_ID, b""))
        return Translation(original[1], original[0], False, found.get(CTA_ID, b""))


def _both_ends(tuple_: bytes, version: int) -> tuple[Endpoint, Endpoint] | None:
    """Return the source and the destination of one direction."""
    parts = attribute_map(tuple_)
    addresses = attribute_map(parts.get(CTA_TUPLE_IP, b""))
    protocol = attribute_map(parts.get(CTA_TUPLE_PROTO, b""))
    try:
        return (
            Endpoint(text_of(addresses[ADDRESS[version, True]]), int.from_bytes(protocol[CTA_PROTO_SRC_PORT], "big")),
            Endpoint(text_of(addresses[ADDRESS[version, False]]), int.from_bytes(protocol[CTA_PROTO_DST_PORT], "big")),
        )
    except KeyError:
        return None
