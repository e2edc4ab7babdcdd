"""The one place that talks to netfilter: the broker's table, and its elements.

pyroute2's message classes encode and decode; the socket is our own, so that every answer has a deadline (pyroute2's
sockets wait for ever, and its `set_elems` cannot write the data of a map).
"""

from __future__ import annotations

import errno
import hashlib
import importlib.resources
import os
import socket
import string
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pyroute2.netlink import NETLINK_NETFILTER
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWSETELEM,
    nft_set_elem_list_msg,
    nft_table_msg,
)

from gateway.broker import marks
from gateway.broker.elements import SETS, Element, SetName

NETLINK_DEADLINE = 1.0
NFT_DEADLINE = 5.0
BATCH = 64
"""Changes in one transaction: its answers have to fit into the socket's buffer even if all of them are errors."""

_NFPROTO_INET = 1
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _MULTI, _ACK, _INTERRUPTED = 0x1, 0x2, 0x4, 0x10
_DUMP, _EXCL, _CREATE = 0x300, 0x200, 0x400
_SOL_NETLINK, _CAP_ACK = 270, 10
_HEADER = struct.Struct("=IHHII")
_FIND_NFT = {**os.environ, "PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}


class NetfilterError(Exception):
    """The kernel or nft would not do it; `code` is an errno."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what}: {os.strerror(code)}")
        self.code = code


class TableGoneError(NetfilterError):
    """The table is not there: somebody flushed the ruleset."""


class ForeignTableError(NetfilterError):
    """There is a table of our name that we did not make."""


@dataclass(frozen=True, slots=True)
class Change:
    """Elements to add (all or none) or to delete (those that are there)."""

    add: bool
    elements: tuple[Element, ...]


class Netfilter:
    """The table `name`, its fixed part and its elements. Not for several threads (but for `counters`)."""

    def __init__(self, name: str) -> None:
        self.name = name
        source = importlib.resources.files("iptables").joinpath("algate.nft").read_text()
        self._mark = "algate " + hashlib.sha256(source.encode()).hexdigest()[:16]
        self._rules = string.Template(source).substitute(
            table=name, comment=self._mark, pinhole=hex(marks.PINHOLE), admitted=hex(marks.ADMITTED)
        )
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    # --- the table --------------------------------------------------------------------------------------------------

    def load(self) -> bool:
        """Make the table, unless it is there as we would make it: then it stays, with its elements.

        Returns whether it was made. Raises ForeignTableError and NetfilterError.
        """
        there = self._table_comment()
        if there == self._mark:
            return False
        if there is not None and not there.startswith("algate "):
            raise ForeignTableError(errno.EEXIST, f"table inet {self.name} is not ours")
        replace = f"delete table inet {self.name}\n" if there is not None else ""
        self._nft(["-f", "-"], replace + self._rules)
        return True

    def unload(self) -> None:
        """Delete the table, if there is one."""
        message = self._message(nft_table_msg, NFT_MSG_DELTABLE, _REQUEST, [("NFTA_TABLE_NAME", self.name)])
        errors = self._transaction([message])
        if errors and errors[0].code != errno.ENOENT:
            raise errors[0]

    def counters(self) -> dict[str, dict[str, int]]:
        """Packets and bytes of the named counters: admitted, data, late."""
        listing = msgspec.json.decode(self._nft(["-j", "list", "counters", "table", "inet", self.name], ""))
        entries = [entry["counter"] for entry in listing["nftables"] if "counter" in entry]
        return {entry["name"]: {"packets": entry["packets"], "bytes": entry["bytes"]} for entry in entries}

    def _table_comment(self) -> str | None:
        """The comment of the table that is there ("" without), or None if there is no table."""
        message = self._message(nft_table_msg, NFT_MSG_GETTABLE, _REQUEST | _ACK, [("NFTA_TABLE_NAME", self.name)])
        try:
            (table,) = self._request(nft_table_msg, message)
        except TableGoneError:
            return None
        return str(table.get_attr("NFTA_TABLE_USERDATA") or "")

    def _nft(self, arguments: list[str], text: str) -> str:
        try:
            done = subprocess.run(
                ["nft", *arguments],
                input=text,
                capture_output=True,
                text=True,
                timeout=NFT_DEADLINE,
                env=_FIND_NFT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NetfilterError(errno.ETIMEDOUT, "nft") from None
        except OSError as error:
            raise NetfilterError(error.errno or errno.EIO, "nft cannot be run") from error
        if done.returncode != 0:
            raise NetfilterError(errno.EINVAL, f"nft: {done.stderr.strip()[:500]}")
        return done.stdout

    # --- its elements -----------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> dict[int, NetfilterError]:
        """Do all changes, as few transactions as possible. Returns those that were refused: index to error.

        The kernel names every element that it does not take, and does nothing; so those are left out and the others
        tried again. Raises TableGoneError, or NetfilterError if nobody knows what was done.
        """
        refused: dict[int, NetfilterError] = {}
        for start in range(0, len(changes), BATCH):
            todo = [
                (index, element)
                for index in range(start, min(start + BATCH, len(changes)))
                for element in changes[index].elements
            ]
            while todo:
                errors = self._transaction([self._change(changes[index].add, element) for index, element in todo])
                if not errors:
                    break
                absent = set()
                for position, error in errors.items():
                    index = todo[position][0]
                    if changes[index].add:
                        if isinstance(error, TableGoneError):
                            raise error
                        refused[index] = error
                    else:
                        absent.add(position)  # gone already: used up, or its time was over
                todo = [item for at, item in enumerate(todo) if at not in absent and item[0] not in refused]
        return refused

    def elements(self, sets: Sequence[SetName] = SETS) -> list[Element]:
        """All elements of these sets, with what is left of their time. Raises TableGoneError."""
        found = []
        for name in sets:
            attributes = [("NFTA_SET_ELEM_LIST_TABLE", self.name), ("NFTA_SET_ELEM_LIST_SET", name)]
            message = self._message(nft_set_elem_list_msg, NFT_MSG_GETSETELEM, _REQUEST | _DUMP, attributes)
            for answer in self._request(nft_set_elem_list_msg, message):
                for item in answer.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ():
                    data = item.get_attr("NFTA_SET_ELEM_DATA")
                    found.append(
                        Element(
                            set=name,
                            key=item.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE"),
                            data=data.get_attr("NFTA_DATA_VALUE") if data else None,
                            timeout=(item.get_attr("NFTA_SET_ELEM_EXPIRATION") or 0) / 1000,
                            comment=_text_of(item.get_attr("NFTA_SET_ELEM_USERDATA")),
                        )
                    )
        return found

    def _change(self, add: bool, element: Element) -> bytearray:
        item: list[tuple[str, Any]] = [("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", element.key)]})]
        if add:
            item.append(("NFTA_SET_ELEM_TIMEOUT", int(element.timeout * 1000)))
            if element.data is not None:
                item.append(("NFTA_SET_ELEM_DATA", {"attrs": [("NFTA_DATA_VALUE", element.data)]}))
            if element.comment:
                item.append(("NFTA_SET_ELEM_USERDATA", [("NFTNL_UDATA_SET_ELEM_COMMENT", element.comment)]))
        return self._message(
            nft_set_elem_list_msg,
            NFT_MSG_NEWSETELEM if add else NFT_MSG_DELSETELEM,
            _REQUEST | _CREATE | _EXCL if add else _REQUEST,
            [
                ("NFTA_SET_ELEM_LIST_TABLE", self.name),
                ("NFTA_SET_ELEM_LIST_SET", element.set),
                ("NFTA_SET_ELEM_LIST_ELEMENTS", [{"attrs": item}]),
            ],
        )

    # --- netlink ----------------------------------------------------------------------------------------------------

    def _message(self, message_class: Any, kind: int, flags: int, attributes: Any) -> bytearray:
        message = message_class()
        message["nfgen_family"] = _NFPROTO_INET
        message["attrs"] = attributes
        return self._finish(message, NFNL_SUBSYS_NFTABLES << 8 | kind, flags)

    def _mark_batch(self, kind: int) -> bytearray:
        message = nfgen_msg()
        message["res_id"] = NFNL_SUBSYS_NFTABLES
        return self._finish(message, kind, _REQUEST)

    def _finish(self, message: Any, kind: int, flags: int) -> bytearray:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        message["header"]["type"] = kind
        message["header"]["flags"] = flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        return bytearray(message.data)

    def _transaction(self, messages: list[bytearray]) -> dict[int, NetfilterError]:
        """Do all or nothing. Returns the errors by position of the message; empty: done.

        Only the last message asks for an answer; the errors of others come before it.
        """
        begin, end = self._mark_batch(_BATCH_BEGIN), self._mark_batch(_BATCH_END)
        length, kind, flags, last, pid = _HEADER.unpack_from(messages[-1])
        _HEADER.pack_into(messages[-1], 0, length, kind, flags | _ACK, last, pid)
        positions = {_sequence_of(message): at for at, message in enumerate(messages)}
        self._send(b"".join([begin, *messages, end]))
        errors = {}
        for kind, sequence, _flags, packet in self._receive():
            if kind != _NLMSG_ERROR:
                continue
            (code,) = struct.unpack_from("=i", packet, 16)
            if sequence == _sequence_of(begin) and code:
                raise NetfilterError(-code, "netfilter transaction")
            if sequence in positions and code:
                errors[positions[sequence]] = self._error(-code)
            if sequence == last:
                return errors
        raise AssertionError("unreachable: _receive ends by raising")

    def _request(self, message_class: Any, message: bytearray) -> list[Any]:
        """Send one reading request; the decoded answers."""
        for _ in range(5):
            self._send(bytes(message))
            answers = []
            whole = True
            for kind, sequence, flags, packet in self._receive():
                if sequence != _sequence_of(message):
                    continue
                whole = whole and not flags & _INTERRUPTED
                if kind == _NLMSG_DONE:
                    break
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", packet, 16)
                    if code:
                        raise self._error(-code)
                    break
                answer = message_class(packet)
                answer.decode()
                answers.append(answer)
            if whole:
                return answers
        raise NetfilterError(errno.EAGAIN, "netfilter table changes while it is read")

    def _error(self, code: int) -> NetfilterError:
        if code == errno.ENOENT:
            return TableGoneError(code, f"table inet {self.name}")
        return NetfilterError(code, "netfilter")

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(NETLINK_DEADLINE)
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetfilterError(error.errno or errno.ETIMEDOUT, "netlink send") from error

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Messages (type, sequence, flags, whole) until the reader has enough; NetfilterError after the deadline."""
        deadline = time.monotonic() + NETLINK_DEADLINE
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NetfilterError(errno.ETIMEDOUT, "netlink answer")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 17)
            except TimeoutError:
                raise NetfilterError(errno.ETIMEDOUT, "netlink answer") from None
            except OSError as error:
                raise NetfilterError(error.errno or errno.EIO, "netlink answer") from error
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, at)
                yield kind, sequence, flags, data[at : at + length]
                at += max(length + 3 & ~3, _HEADER.size)


def _sequence_of(message: bytes | bytearray) -> int:
    sequence: int = _HEADER.unpack_from(message)[3]
    return sequence


def _text_of(userdata: Any) -> str:
    """The comment in user data that pyroute2 decoded; "" if there is none."""
    for kind, value in userdata or () if isinstance(userdata, list) else ():
        if kind.endswith("_COMMENT"):
            return bytes(value).rstrip(b"\0").decode(errors="replace")
    return ""
