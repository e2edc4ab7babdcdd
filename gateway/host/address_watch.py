"""Notices when this host loses an address, as the kernel announces, which needs no privilege (rtnetlink(7))."""

from __future__ import annotations

import math
import socket
import struct

RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
RTM_DELADDR = 21
_SETTLED = 0.5  # seconds; a DHCP client may remove the address and add it again at once when it renews its lease
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port


class AddressWatch:
    """Watches the addresses of this network namespace. `fileno` is readable when some have come or gone; `due` is when
    to call `gone`."""

    def __init__(self) -> None:
        self.due = math.inf  # monotonic
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, now: float) -> None:
        """Read what the kernel has announced."""
        if self._lost():
            self.due = now + _SETTLED

    def gone(self, now: float) -> bool:
        """Whether an address has gone, at least half a second ago. Reported once."""
        if now < self.due:
            return False
        self.due = math.inf
        return True

    def _lost(self) -> bool:
        """Whether an address has gone since the last call; also True if announcements were lost."""
        lost = False
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return lost
            except OSError:  # ENOBUFS: some were not told
                return True
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                lost = lost or kind == RTM_DELADDR
                data = data[max((length + 3) & ~3, _HEADER.size) :]

    def close(self) -> None:
        self._socket.close()
