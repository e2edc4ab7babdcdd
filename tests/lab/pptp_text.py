"""The messages of a PPTP control connection (RFC 2637, 2), as clients and servers write them."""

from __future__ import annotations

import struct

MAGIC = 0x1A2B3C4D


def message(kind: int, body: bytes, length: int) -> bytes:
    """A control message of a length, filled up with zeros."""
    return struct.pack(">HHIHH", length, 1, MAGIC, kind, 0) + body.ljust(length - 12, b"\0")


def start_request() -> bytes:
    return message(1, struct.pack(">HHIIHH", 0x100, 0, 1, 1, 0, 1) + b"client".ljust(64, b"\0") + b"vendor", 156)


def start_reply(result: int = 1) -> bytes:
    return message(2, struct.pack(">HBBIIHH", 0x100, result, 0, 1, 1, 1, 1) + b"server".ljust(64, b"\0"), 156)


def call_request(call_id: int) -> bytes:
    return message(7, struct.pack(">HHIIIIHHHH", call_id, 1, 2400, 10**9, 3, 3, 64, 0, 0, 0), 168)


def call_reply(server_id: int, call_id: int, result: int = 1) -> bytes:
    return message(8, struct.pack(">HHBBHIHHI", server_id, call_id, result, 0, 0, 10**8, 64, 0, 0), 32)


def clear_request(call_id: int) -> bytes:
    return message(12, struct.pack(">HH", call_id, 0), 16)


def disconnect_notify(server_id: int) -> bytes:
    return message(13, struct.pack(">HBBHH", server_id, 4, 0, 0, 0), 148)


def set_link_info(call_id: int) -> bytes:
    return message(15, struct.pack(">HHII", call_id, 0, 0xFFFFFFFF, 0xFFFFFFFF), 24)


def wan_error(call_id: int) -> bytes:
    return message(14, struct.pack(">HH", call_id, 0), 40)


def echo_request() -> bytes:
    return message(5, b"\0\0\0\1", 16)


def stop_request() -> bytes:
    return message(3, b"\1", 16)


def stop_reply() -> bytes:
    return message(4, b"\1", 16)
