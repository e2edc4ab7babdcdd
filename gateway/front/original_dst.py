"""Where a connection was going before iptables redirected it, and whether that is this host itself."""

from __future__ import annotations

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


def original_destination(sock: socket.socket) -> Endpoint | None:
    """The destination that the client of this accepted TCP connection had dialled, as conntrack remembers it.

    None if conntrack does not know it. A connection that was not redirected has its own local endpoint. An IPv4 client
    on a dual-stack socket gets an IPv4 endpoint. OSError where the socket is not a TCP connection.
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
    return Endpoint.of(ipaddress.ip_address(host), port)


def is_local(host: str) -> bool:
    """Whether `host`, the text of an address, is one of this host's own (loopback and unspecified are).

    The kernel says, without privilege: a packet to one's own address is sent from that address. No packet is sent.
    ValueError for a name.
    """
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback or ip.is_unspecified:
        return True
    if isinstance(ip, ipaddress.IPv4Address):
        return _source_for(socket.AF_INET, (str(ip), 9)) == str(ip)
    # A link-local address means something only on a link, and which link is not known here: any.
    scopes = [index for index, _name in socket.if_nameindex()] if ip.is_link_local else [0]
    return any(_source_for(socket.AF_INET6, (str(ip), 9, 0, scope)) == str(ip) for scope in scopes)


def _source_for(family: socket.AddressFamily, address: tuple[str, int] | tuple[str, int, int, int]) -> str | None:
    """The address that the kernel would send from to `address`; None where there is no route."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)  # never blocks; keeps gevent from resolving the address in a thread
        try:
            probe.connect(address)
        except OSError:
            return None
        source: str = probe.getsockname()[0]
        return source.partition("%")[0]


def _is_mapped(sock: socket.socket) -> bool:
    return ipaddress.IPv6Address(sock.getsockname()[0].partition("%")[0]).ipv4_mapped is not None
