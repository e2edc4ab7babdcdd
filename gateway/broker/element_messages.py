"""Packs elements into netlink messages by `struct`, because this happens many times in a second (decision 0036)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from gateway.broker.elements import FILLED_IN, KEYS, LEARNT, PUBLIC, SETS, TALKED, Element
from gateway.broker.netlink import NLMSGHDR, attribute, attribute_map, attributes, nested

NFPROTO_INET = 1  # inet
NFGENMSG = struct.pack(">BBH", NFPROTO_INET, 0, 0)  # nfgenmsg: family, version, resource
_BODY = NLMSGHDR.size + len(NFGENMSG)
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM = 1, 2, 3, 1
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_TIMEOUT, NFTA_SET_ELEM_EXPIRATION = 1, 2, 4, 5
NFTA_SET_ELEM_USERDATA, NFTA_SET_ELEM_EXPR, NFTA_SET_ELEM_KEY_END = 6, 7, 10
NFTA_DATA_VALUE, NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 1, 2
NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS = 1, 2
NFTNL_UDATA_SET_ELEM_COMMENT = 0
_U64 = struct.Struct(">Q")


class ElementMessages:
    """Makes the bodies of messages about elements of the table `name`, and the elements in them."""

    def __init__(self, name: str) -> None:
        table = attribute(NFTA_SET_ELEM_LIST_TABLE, name.encode() + b"\0")
        self._head = {
            each: NFGENMSG + table + attribute(NFTA_SET_ELEM_LIST_SET, each.encode() + b"\0")
            for each in (*SETS, *KEYS.values(), *PUBLIC, *TALKED, *LEARNT, *FILLED_IN)
        }
        # What stands before and between the values of most elements is made once for each length of them.
        self._frames: dict[int, bytes] = {}  # by the length of the key
        self._timed_frames: dict[int, bytes] = {}
        self._mapped_frames: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # and by the length of the data
        self._questions: dict[tuple[str, int], bytes] = {}
        self._timeout, self._packed_timeout = -1, b""  # the last one: the elements of a lease have it in common

    def all_of(self, name: str) -> bytes:
        """A message body for all elements of a set."""
        return self._head[name]

    def of(self, name: str, items: Sequence[bytes]) -> bytes:
        """A message body for some elements of a set, each made by `key` or `whole`."""
        return self._head[name] + nested(NFTA_SET_ELEM_LIST_ELEMENTS, *items)

    def question(self, name: str, key: bytes, end: bytes | None = None) -> bytes:
        """A message body for one element of a set."""
        if end is not None or len(key) & 3:
            return self.of(name, [self.key(key, end)])
        frame = self._questions.get((name, len(key)))
        if frame is None:
            frame = self._questions[name, len(key)] = self.of(name, [self.key(key)])[: -len(key)]
        return frame + key

    def key(self, key: bytes, end: bytes | None = None) -> bytes:
        """The element with this key. Most are of a key alone: what stands before it is made once."""
        if end is not None:
            return nested(NFTA_LIST_ELEM, _value(NFTA_SET_ELEM_KEY, key), _value(NFTA_SET_ELEM_KEY_END, end))
        if len(key) & 3:  # the padding stands behind it
            return nested(NFTA_LIST_ELEM, _value(NFTA_SET_ELEM_KEY, key))
        frame = self._frames.get(len(key))
        if frame is None:
            item = nested(NFTA_LIST_ELEM, _value(NFTA_SET_ELEM_KEY, key))
            frame = self._frames[len(key)] = item[: -len(key)]
        return frame + key

    def whole(self, element: Element) -> bytes:
        """An element with all its fields."""
        timeout = self._timed(int(element.timeout * 1000))
        key, data = element.key, element.data
        if not (element.comment or element.packets or element.end or len(key) & 3):
            if data is None:
                return self._timed_frame(len(key), timeout) + key + timeout
            if not len(data) & 3:
                before, between = self._mapped_frame(len(key), len(data), timeout)
                return before + key + timeout + between + data
        item = _value(NFTA_SET_ELEM_KEY, key)
        if element.end is not None:
            item += _value(NFTA_SET_ELEM_KEY_END, element.end)
        item += timeout
        if data is not None:
            item += _value(NFTA_SET_ELEM_DATA, data)
        if element.comment:
            item += attribute(NFTA_SET_ELEM_USERDATA, _comment(element.comment))
        if element.packets:
            item += _counter(element.packets, element.octets)
        return nested(NFTA_LIST_ELEM, item)

    def _timed(self, milliseconds: int) -> bytes:
        if milliseconds != self._timeout:
            self._timeout = milliseconds
            self._packed_timeout = attribute(NFTA_SET_ELEM_TIMEOUT, _U64.pack(milliseconds))
        return self._packed_timeout

    def _timed_frame(self, length: int, timeout: bytes) -> bytes:
        frame = self._timed_frames.get(length)
        if frame is None:
            item = nested(NFTA_LIST_ELEM, _value(NFTA_SET_ELEM_KEY, bytes(length)), timeout)
            frame = self._timed_frames[length] = item[: -length - len(timeout)]
        return frame

    def _mapped_frame(self, length: int, width: int, timeout: bytes) -> tuple[bytes, bytes]:
        frames = self._mapped_frames.get((length, width))
        if frames is None:
            value = _value(NFTA_SET_ELEM_DATA, bytes(width))
            item = nested(NFTA_LIST_ELEM, _value(NFTA_SET_ELEM_KEY, bytes(length)), timeout, value)
            before = item[: -length - len(timeout) - len(value)]
            frames = self._mapped_frames[length, width] = before, value[:-width]
        return frames


def glances(name: str, answer: bytes) -> Iterator[Element]:
    """Read the elements of a set in an answer of the kernel (a whole message): only key and counter of each, which is
    half the work of `elements_in`."""
    for _, item in attributes(attribute_map(answer, _BODY).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
        fields = attribute_map(item)
        packets, total = _counted(fields)
        yield Element(name, _datum(fields, NFTA_SET_ELEM_KEY) or b"", None, 0.0, "", packets, total)


def elements_in(name: str, answer: bytes) -> Iterator[Element]:
    """Read the elements of a set in an answer of the kernel (a whole message), with the rest of their time."""
    for _, item in attributes(attribute_map(answer, _BODY).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
        fields = attribute_map(item)
        packets, total = _counted(fields)
        yield Element(
            set=name,
            key=_datum(fields, NFTA_SET_ELEM_KEY) or b"",
            data=_datum(fields, NFTA_SET_ELEM_DATA),
            timeout=int.from_bytes(fields.get(NFTA_SET_ELEM_EXPIRATION, b""), "big") / 1000,
            comment=_comment_in(fields.get(NFTA_SET_ELEM_USERDATA, b"")),
            packets=packets,
            octets=total,
            end=_datum(fields, NFTA_SET_ELEM_KEY_END),
        )


def _datum(fields: dict[int, bytes], kind: int) -> bytes | None:
    value = fields.get(kind)
    return None if value is None else attribute_map(value).get(NFTA_DATA_VALUE)


def _counted(fields: dict[int, bytes]) -> tuple[int, int]:
    """Read packets and bytes of an element's counter."""
    expression = fields.get(NFTA_SET_ELEM_EXPR)
    if expression is None:
        return 0, 0
    return counter_in(attribute_map(expression).get(NFTA_EXPR_DATA, b""))


def counter_in(data: bytes) -> tuple[int, int]:
    """Read packets and bytes in the data of a counter: an element's, or a named one's."""
    counter = attribute_map(data)
    packets, total = counter.get(NFTA_COUNTER_PACKETS, b""), counter.get(NFTA_COUNTER_BYTES, b"")
    return int.from_bytes(packets, "big"), int.from_bytes(total, "big")


def _comment_in(userdata: bytes) -> str:
    """Read the comment in an element's user data, which is a sequence of (kind, length, value); "" if there is none."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == NFTNL_UDATA_SET_ELEM_COMMENT:
            return userdata[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return ""


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(NFTA_DATA_VALUE, value))


def _counter(packets: int, total: int) -> bytes:
    values = attribute(NFTA_COUNTER_BYTES, _U64.pack(total)) + attribute(NFTA_COUNTER_PACKETS, _U64.pack(packets))
    return nested(NFTA_SET_ELEM_EXPR, attribute(NFTA_EXPR_NAME, b"counter\0"), nested(NFTA_EXPR_DATA, values))


def _comment(text: str) -> bytes:
    """Pack a comment as libnftnl's user data has it: kind, length, text with a NUL."""
    data = text.encode() + b"\0"
    return bytes((NFTNL_UDATA_SET_ELEM_COMMENT, len(data))) + data
