"""Watches changes of netfilter's rules by other programs, which the kernel announces (NFNLGRP_NFTABLES of nfnetlink).

Only nf_tables announces changes; iptables-legacy does not. Listening needs CAP_NET_ADMIN. A socket filter leaves out,
in the kernel, what is not needed, because the broker itself makes thousands of changes a second.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from gateway.broker.elements import FILLED_IN
from gateway.broker.netlink import NETLINK_NETFILTER, NLMSGHDR, SOL_NETLINK, NetfilterError, attributes

NFNLGRP_NFTABLES = 7
NETLINK_ADD_MEMBERSHIP = 1
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
SO_RCVBUFFORCE = 33
NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM, NFT_MSG_NEWGEN = 12, 14, 15
NFT_MSG_NEWFLOWTABLE = 22

NFNL_SUBSYS_NFTABLES = 10
_BPF_LD_W_ABS, _BPF_LD_H_ABS, _BPF_JEQ, _BPF_RET = 0x20, 0x28, 0x15, 0x06  # linux/bpf_common.h
_NLMSG_TYPE, _NLMSG_PID = 4, 12  # offsets in nlmsghdr
_FIRST_NAME = 24  # offset of the value of the first attribute behind nlmsghdr and nfgenmsg: the table's name
_GEN_PROC_PID = 32  # offset of the value of NFTA_GEN_PROC_PID: it comes after NFTA_GEN_ID
_ALL = 0xFFFFFFFF
_BUFFER = 1 << 20
_FAMILY = NLMSGHDR.size  # offset of nfgenmsg's first byte

Instruction = tuple[int, int, int, int]


class Changes(NamedTuple):
    """What other programs have changed since the last call.

    `elements`: (family, table) from which elements were deleted; `filled`: the same, of the sets that nft fills for the
    broker too; `flowtables`: whether one was added; `lost`: announcements were lost, so anything may have changed.
    """

    elements: frozenset[tuple[int, str]] = frozenset()
    flowtables: bool = False
    lost: bool = False
    filled: frozenset[tuple[int, str]] = frozenset()


def _two(message: bytes) -> list[tuple[int, bytes]]:
    """Read the first two attributes of a message about elements: the names of the table and the set."""
    return list(itertools.islice(attributes(message, _FAMILY + 4), 2))


class RulesetWatch:
    """Watches the rules, sets and tables of this network namespace. `fileno` is readable when another program has
    changed some.

    Raises NetfilterError (EPERM without CAP_NET_ADMIN).
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as error:
            raise NetfilterError(error.errno or errno.EIO, "netlink events") from error

    def leave_out_port(self, port: int, table: str) -> None:
        """Ignore transactions from the netlink socket with this port, and elements of other tables."""
        kinds = [struct.unpack(">H", struct.pack("=H", NFNL_SUBSYS_NFTABLES << 8 | kind))[0] for kind in (12, 14)]
        (start,) = struct.unpack(">I", table.encode()[:4].ljust(4, b"\0"))
        self._attach(
            [
                (_BPF_LD_W_ABS, 0, 0, _NLMSG_PID),
                (_BPF_JEQ, 6, 0, socket.htonl(port)),  # -> ret 0
                (_BPF_LD_H_ABS, 0, 0, _NLMSG_TYPE),
                (_BPF_JEQ, 4, 0, kinds[0]),  # NFT_MSG_NEWSETELEM -> ret 0
                (_BPF_JEQ, 0, 2, kinds[1]),  # else NFT_MSG_DELSETELEM -> ret all
                (_BPF_LD_W_ABS, 0, 0, _FIRST_NAME),
                (_BPF_JEQ, 0, 1, start),
                (_BPF_RET, 0, 0, _ALL),
                (_BPF_RET, 0, 0, 0),
            ]
        )

    def only_generations(self, without_pid: int) -> None:
        """Report only that there was a transaction (NFT_MSG_NEWGEN), and ignore those of one process."""
        (kind,) = struct.unpack(">H", struct.pack("=H", NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN))
        self._attach(
            [
                (_BPF_LD_H_ABS, 0, 0, _NLMSG_TYPE),
                (_BPF_JEQ, 0, 3, kind),
                (_BPF_LD_W_ABS, 0, 0, _GEN_PROC_PID),
                (_BPF_JEQ, 1, 0, without_pid),
                (_BPF_RET, 0, 0, _ALL),
                (_BPF_RET, 0, 0, 0),
            ]
        )

    def _attach(self, program: Sequence[Instruction]) -> None:
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        fprog = struct.pack("@HP", len(program), ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Changes | None:
        """Return what has changed since the last call; None: nothing of interest."""
        any_change = lost = flowtables = False
        elements: set[tuple[int, str]] = set()
        filled: set[tuple[int, str]] = set()
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                break
            except OSError as error:  # ENOBUFS: some notices were lost
                if error.errno not in (errno.ENOBUFS, errno.EINTR):
                    raise NetfilterError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO)) from error
                any_change = lost = True
                continue
            any_change = True
            at = 0
            while at + NLMSGHDR.size <= len(data):
                length, kind, *_ = NLMSGHDR.unpack_from(data, at)
                message = data[at : at + length]
                if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELSETELEM:
                    names = [value.rstrip(b"\0").decode(errors="replace") for _, value in _two(message)]
                    if names[1:]:
                        (filled if names[1] in FILLED_IN else elements).add((message[_FAMILY], names[0]))
                flowtables = flowtables or kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWFLOWTABLE
                at += max(length + 3 & ~3, NLMSGHDR.size)
        return Changes(frozenset(elements), flowtables, lost, frozenset(filled)) if any_change else None

    def close(self) -> None:
        self._socket.close()
