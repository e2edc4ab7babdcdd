"""Connections that the kernel's connection tracking knows: those of a conversation are forgotten when it ends."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    NFCTAttrTuple,
    nfct_msg,
)

from alg.address import Endpoint
from gateway.broker.elements import second_of
from gateway.broker.netlink import ACK, DUMP, REQUEST, NetfilterError, Netlink
from gateway.model import Lease

_GET = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Socket:
    """UDP connections that began at (`source`) or went to an address and port."""

    endpoint: Endpoint
    source: bool


class Conntrack:
    """Finds and deletes UDP connections. Not for several threads. Raises NetfilterError."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def forget(self, sockets: Iterable[Socket]) -> int:
        """Delete the connections of these sockets; how many there were."""
        count = 0
        for sock in sockets:
            family = _FAMILY[sock.endpoint.version]
            for connection in self._netlink.ask(_filter(sock, family), _GET, REQUEST | DUMP):
                original = NFCTAttrTuple.from_netlink(family, connection.get_attr("CTA_TUPLE_ORIG"))
                if not _is(original, sock):
                    continue  # a kernel that does not know the filter names all
                which = _message(family, tuple_orig=original, id=connection.get_attr("CTA_ID"))
                try:
                    self._netlink.ask(which, _DELETE, REQUEST | ACK)
                except NetfilterError as error:
                    if error.code != errno.ENOENT:
                        raise
                count += 1
        return count


def connections_of(lease: Lease) -> tuple[Socket, ...]:
    """The UDP connections that must begin anew when a lease begins, changes or ends.

    When it begins: what a peer sent too early is a connection to this host itself, and stays one; what the inside
    socket sent before has another public port.
    """
    if lease.protocol != "udp" or lease.direction != "in":
        return ()
    ports = [(lease.public, lease.target)]
    if lease.second is not None:
        ports.append(second_of(lease))
    outside = tuple(Socket(public, source=False) for public, _ in ports)
    inside = (
        tuple(Socket(target, source=True) for _, target in ports)
        if lease.backend == "kernel" and not lease.uses
        else ()
    )
    return outside + inside


def _message(family: int, **attributes: Any) -> Any:
    message = nfct_msg.create_from(**attributes)
    message["nfgen_family"] = family
    return message


def _filter(sock: Socket, family: int) -> Any:
    """A question for the connections of a socket: the kernel chooses (CTA_FILTER, since Linux 5.8)."""
    host, port = sock.endpoint.host, sock.endpoint.port
    wanted = NFCTAttrTuple(
        family,
        proto=socket.IPPROTO_UDP,
        **({"saddr": host, "sport": port} if sock.source else {"daddr": host, "dport": port}),
    )
    wanted.attrs()  # makes its flags
    flags = [("CTA_FILTER_ORIG_FLAGS", wanted.flags), ("CTA_FILTER_REPLY_FLAGS", 0)]
    return _message(family, tuple_orig=wanted, cta_filter={"attrs": flags})


def _is(original: NFCTAttrTuple, sock: Socket) -> bool:
    host, port = (original.saddr, original.sport) if sock.source else (original.daddr, original.dport)
    if (original.proto, port) != (socket.IPPROTO_UDP, sock.endpoint.port):
        return False
    return bool(ipaddress.ip_address(host) == sock.endpoint.ip)
