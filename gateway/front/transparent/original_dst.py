"""Finds out where a connection was going before iptables redirected it."""

from __future__ import annotations

import _socket
import errno
import ipaddress
import socket
import struct

from alg.address import Endpoint

# <linux/netfilter_ipv4.h>, <linux/netfilter_ipv6/ip6_tables.h>; both are 80, at the levels SOL_IP and SOL_IPV6.
SO_ORIGINAL_DST = 80
SOL_IPV6 = 41

# ENOENT: conntrack does not know the connection. ENOPROTOOPT: conntrack is not loaded.
_NOT_THERE = (errno.ENOENT, errno.ENOPROTOOPT)


def original_destination(sock: _socket.socket) -> Endpoint | None:
    """Return the destination that the client of this accepted TCP connection had dialled, as conntrack remembers it.

    None if conntrack does not know it. A connection that was not redirected has its own local endpoint. An IPv4 client
    on a dual-stack socket gets an IPv4 endpoint. Raises OSError if the socket is not a TCP connection.
    """
    try:
        if sock.family == socket.AF_INET6 and not _is_mapped(sock):
            port, _flow, host, _scope = struct.unpack("!2xHI16sI", sock.getsockopt(SOL_IPV6, SO_ORIGINAL_DST, 28))
        else:
            port, host = struct.unpack("!2xH4s8x", sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    return Endpoint(socket.inet_ntoa(host) if len(host) == 4 else str(ipaddress.IPv6Address(host)), port)


def _is_mapped(sock: _socket.socket) -> bool:
    return ipaddress.IPv6Address(sock.getsockname()[0].partition("%")[0]).ipv4_mapped is not None
