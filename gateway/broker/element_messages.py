"""Elements as bytes of netlink messages, by `struct`: for what is asked many times in a second (0036)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gateway.broker.elements import SETS, TALKED, Element
from gateway.broker.netlink import HEADER, attribute, attribute_map, attributes, nested

FAMILY = 1  # inet
INET = struct.pack(">BBH", FAMILY, 0, 0)  # nfgenmsg: family, version, resource
_BODY = HEADER.size + len(INET)
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ITEM = 1, 2, 3, 1
_KEY, _DATA, _TIMEOUT, _USERDATA, _EXPRESSION = 1, 2, 4, 6, 7
_DATA_VALUE, _EXPRESSION_NAME, _EXPRESSION_DATA = 1, 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_UDATA_COMMENT = 0
_U64 = struct.Struct(">Q")


class ElementMessages:
    """The bodies of messages about elements of the table `name`."""

    def __init__(self, name: str) -> None:
        table = attribute(_LIST_TABLE, name.encode() + b"\0")
        self._head = {each: INET + table + attribute(_LIST_SET, each.encode() + b"\0") for each in (*SETS, *TALKED)}
        self._frames: dict[str, bytes] = {}
        self._timed_frames: dict[str, bytes] = {}

    def all_of(self, name: str) -> bytes:
        """All elements of a set."""
        return self._head[name]

    def key(self, name: str, key: bytes) -> bytes:
        """The element with this key. Most messages are of a key alone: what stands before it is made once."""
        frame = self._frames.get(name)
        if frame is None:
            item = nested(_LIST_ITEM, _value(_KEY, key))
            frame = self._frames[name] = (self._head[name] + nested(_LIST_ELEMENTS, item))[: -len(key)]
        return frame + key

    def whole(self, element: Element) -> bytes:
        """The element with all that it is."""
        timeout = attribute(_TIMEOUT, _U64.pack(int(element.timeout * 1000)))
        if not (element.data or element.comment or element.packets):
            frame = self._timed_frames.get(element.set)
            if frame is None:
                body = self._item(element.set, _value(_KEY, element.key) + timeout)
                frame = self._timed_frames[element.set] = body[: -len(element.key) - len(timeout)]
            return frame + element.key + timeout
        item = _value(_KEY, element.key) + timeout
        if element.data is not None:
            item += _value(_DATA, element.data)
        if element.comment:
            item += attribute(_USERDATA, _comment(element.comment))
        if element.packets:
            item += _counter(element.packets, element.bytes)
        return self._item(element.set, item)

    def _item(self, name: str, item: bytes) -> bytes:
        return self._head[name] + nested(_LIST_ELEMENTS, nested(_LIST_ITEM, item))


def glances(name: str, answer: bytes) -> Iterator[Element]:
    """The elements of a set in an answer of the kernel's (a whole message): of each only the key and the counter."""
    for _, item in attributes(attribute_map(answer, _BODY).get(_LIST_ELEMENTS, b"")):
        yield _glance(name, item)


def _glance(name: str, item: bytes) -> Element:
    """Key and counter of an element: ten times as fast as to decode all of it."""
    fields = attribute_map(item)
    counter: dict[int, bytes] = {}
    if _EXPRESSION in fields:
        counter = attribute_map(attribute_map(fields[_EXPRESSION]).get(_EXPRESSION_DATA, b""))
    return Element(
        set=name,
        key=attribute_map(fields.get(_KEY, b"")).get(_DATA_VALUE, b""),
        data=None,
        timeout=0.0,
        comment="",
        packets=int.from_bytes(counter.get(_COUNTER_PACKETS, b""), "big"),
        bytes=int.from_bytes(counter.get(_COUNTER_BYTES, b""), "big"),
    )


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


def _counter(packets: int, total: int) -> bytes:
    values = attribute(_COUNTER_BYTES, _U64.pack(total)) + attribute(_COUNTER_PACKETS, _U64.pack(packets))
    return nested(_EXPRESSION, attribute(_EXPRESSION_NAME, b"counter\0"), nested(_EXPRESSION_DATA, values))


def _comment(text: str) -> bytes:
    """A comment as libnftnl's user data has it: kind, length, text with a NUL."""
    data = text.encode() + b"\0"
    return bytes((_UDATA_COMMENT, len(data))) + data
