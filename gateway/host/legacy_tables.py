"""Notices changes of iptables-legacy's tables, which nothing announces, cheaply (IPT_SO_GET_INFO of
linux/netfilter_ipv4)."""

from __future__ import annotations

import ctypes
import socket
from pathlib import Path

_IPT_SO_GET_INFO = 64
_SIZE = 84  # struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
_NAME = 32
_FAMILIES = (
    (socket.AF_INET, socket.IPPROTO_IP, Path("/proc/net/ip_tables_names")),
    (socket.AF_INET6, socket.IPPROTO_IPV6, Path("/proc/net/ip6_tables_names")),
)
_libc = ctypes.CDLL(None, use_errno=True)


class LegacyTables:
    """The size and the number of rules of each table at the last call. Without CAP_NET_ADMIN there are none."""

    def __init__(self) -> None:
        self._seen = _state()

    def changed(self) -> bool:
        """Whether they have changed since the last call."""
        before, self._seen = self._seen, _state()
        return before != self._seen


def _state() -> dict[tuple[int, str], bytes]:
    """Return the state by family and table, only of tables that exist, because asking for another one would create
    it."""
    found: dict[tuple[int, str], bytes] = {}
    for family, level, names in _FAMILIES:
        try:
            tables = names.read_text().split()
        except OSError:  # no such module, or not root
            continue
        if not tables:
            continue
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            for table in tables:
                buffer = ctypes.create_string_buffer(table.encode()[: _NAME - 1], _SIZE)
                length = ctypes.c_uint(_SIZE)
                if _libc.getsockopt(sock.fileno(), level, _IPT_SO_GET_INFO, buffer, ctypes.byref(length)) == 0:
                    found[(family, table)] = buffer.raw
    return found
