"""Keeps the kernel's routing as connections with a client's address need it: what comes back to them leads to this
host, and they leave by the way that the client's own packets take.

Rules and routes of others are only read. docs/decisions/0121-as-the-nat-would.md
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator, Set

from alg.bucket import Rate
from gateway.broker.limits import BrokerLimits
from gateway.broker.marks import PASSING, SPOKEN
from gateway.broker.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSGHDR,
    NetfilterError,
    Netlink,
    attribute,
    attribute_map,
)
from gateway.model.requests import Network
from gateway.net.addresses import (
    RTM_DELROUTE,
    RTM_GETRULE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV4_RULE,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_IPV6_RULE,
    hear_only_of_local_routes,
)
from gateway.observe.log import get_logger

SOON = 0.05
"""Seconds between a change by another program and the look, because changes often follow one another."""

AGAIN = 2.0
"""Seconds until something is tried again that the kernel did not do."""

RESTORATIONS, PER_SECOND = 10, 1 / 60
"""How often what another program has removed is restored: this often at once, and once a minute in the long run."""

MIRRORED = 0xA1
"""The protocol (rtm_protocol) by which rules are known that stand for rules of others."""

# <linux/fib_rules.h>, <linux/rtnetlink.h>
_RTM_DELRULE = 33
_HEAD = struct.Struct("=BBBBBBBBI")  # fib_rule_hdr, and rtmsg: the same sizes
_FR_ACT_TO_TBL, _FIB_RULE_INVERT, _RTN_LOCAL, _RT_SCOPE_HOST, _RTPROT_STATIC = 1, 0x2, 2, 254, 4
_FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_OIFNAME = 2, 3, 6, 10, 15, 16, 17
_FRA_L3MDEV, _FRA_UID_RANGE, _FRA_PROTOCOL, _FRA_IP_PROTO, _FRA_SPORT_RANGE = 19, 20, 21, 22, 23
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_LOOPBACK = 1  # the index of lo
_RULE_PRIORITY = 1  # behind `local` (0) only: no other rule may send such a packet elsewhere
_TABLES = 0xA1600000

log = get_logger()


class ReturnPath:
    """Keeps the rules and routes of the routing policy database that the gateway's own connections need.

    Packets that nft has marked (PASSING) use a routing table of their own, in which the inside networks are this host.
    And each rule of others for what comes in by an inside interface (`iif`, ip-rule(8)) has a mirror for this process's
    connections with a client's address, which come in by none. `instance` distinguishes the tables of several
    instances. `limits` say whether what another program has removed is restored. `fileno` is readable when another
    program has changed something.
    """

    def __init__(self, instance: str, limits: BrokerLimits) -> None:
        self._set(limits)
        self._table = _TABLES | zlib.crc32(instance.encode()) & 0xFFFF
        self._netlink = Netlink(socket.NETLINK_ROUTE)
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._events.setblocking(False)
        hear_only_of_local_routes(self._events)
        self._events.bind((0, RTMGRP_IPV4_RULE | RTMGRP_IPV6_RULE | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE))
        self._restorations = Rate(PER_SECOND, RESTORATIONS)
        self._user = os.getuid()
        self._refused: set[bytes] = set()  # mirrors that the kernel has refused
        self._due = math.inf
        self.there = False

    def fileno(self) -> int:
        """Return the descriptor of the socket on which the kernel tells of changes."""
        return self._events.fileno()

    def configure(self, limits: BrokerLimits) -> None:
        """Use other limits, and create what they need."""
        before = self._networks
        self._set(limits)
        self._remove(before - self._networks)
        self.make()

    def _set(self, limits: BrokerLimits) -> None:
        self._networks, self._interfaces = set(limits.inside), frozenset(limits.interfaces)
        self._restores = limits.restore

    def make(self) -> None:
        """Create what the inside networks and interfaces need, as far as it is missing. A failure is logged."""
        self._complete()

    def read(self) -> None:
        """Read what the kernel tells of changes: `fileno` is readable."""
        now = time.monotonic()
        while True:
            try:
                data = self._events.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some notices were lost
                data = b""
            if not data or any(port != self._netlink.port for port in _ports(data)):
                self._due = min(self._due, now + SOON)

    def deadline(self) -> float:
        """Return the time (monotonic) at which `tick` has something to do."""
        return self._due

    def settle(self) -> None:
        """Take account of all that others have changed up to now: a connection is about to be made."""
        self.read()
        if self._due < math.inf:
            self.tick(max(self._due, time.monotonic()))

    def tick(self, now: float) -> None:
        """Look at the rules and routes, if others have changed some, and restore what is missing."""
        if now < self._due:
            return
        self._due = math.inf
        if not self._networks:
            return
        if not self._restores:
            with contextlib.suppress(NetfilterError):
                self._mirror()
        elif self._restorations.wait("", now) > 0:
            self._due = now + self._restorations.wait("", now)
        else:
            self._complete(restoring=True)

    def _complete(self, restoring: bool = False) -> None:
        try:
            missing = [network for network in self._networks if self._route(RTM_NEWROUTE, network)]
            lost = [version for version in sorted(_versions(self._networks)) if self._rule(RTM_NEWRULE, version)]
            self._mirror()
            self.there = True
        except NetfilterError as error:
            if self.there or not restoring:
                log.warning("nat.no_return_path", reason=str(error))
            self.there = False
            self._due = time.monotonic() + AGAIN if restoring else self._due
            return
        if restoring and (missing or lost):
            self._restorations.take("", time.monotonic())
            log.error("nat.return_path_restored", routes=len(missing), rules=len(lost))

    def remove(self) -> None:
        """Remove the rules and the routes."""
        self.there = False
        before, self._networks = self._networks, set()
        self._remove(before)

    def _remove(self, gone: Set[Network]) -> None:
        """Remove what these networks needed, and the others do not."""
        for network in gone:
            with contextlib.suppress(NetfilterError):  # another program has removed it
                self._route(RTM_DELROUTE, network)
        for version in _versions(gone) - _versions(self._networks):
            with contextlib.suppress(NetfilterError):
                self._rule(_RTM_DELRULE, version)
        with contextlib.suppress(NetfilterError):
            self._mirror(gone)

    def _rule(self, kind: int, version: int) -> bool:
        body = _HEAD.pack(_family(version), 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
        for name, value in (
            *((_FRA_PRIORITY, _RULE_PRIORITY), (_FRA_FWMARK, PASSING), (_FRA_FWMASK, PASSING)),
            (_FRA_TABLE, self._table),
        ):
            body += attribute(name, struct.pack("=I", value))
        return self._change(kind, body)

    def _route(self, kind: int, network: Network) -> bool:
        body = _HEAD.pack(
            _family(network.version), network.prefixlen, 0, 0, 0, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0
        )
        body += attribute(_RTA_DST, network.network_address.packed)
        body += attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK))
        body += attribute(_RTA_TABLE, struct.pack("=I", self._table))
        return self._change(kind, body)

    def _change(self, kind: int, body: bytes) -> bool:
        """Make a change; return False if what is added was there."""
        flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE | NLM_F_EXCL if kind in (RTM_NEWRULE, RTM_NEWROUTE) else 0)
        try:
            self._netlink.request(self._netlink.message(kind, flags, body))
        except NetfilterError as error:
            if error.code != errno.EEXIST:
                raise
            return False
        return True

    # --- mirrors of others' rules -----------------------------------------------------------------------------------

    def _mirror(self, gone: Set[Network] = frozenset()) -> None:
        """Have a mirror of each rule of others that is about packets from inside interfaces, and of no other. `gone`:
        networks that are not inside any more."""
        ours = self._networks | gone
        needed: set[bytes] = set()
        for version in _versions(ours):
            rules = list(self._rules(version))
            wanted = dict.fromkeys(mirror for rule in rules for mirror in self._mirrors_of(rule, version))
            there = {_normal(rule) for rule in rules if self._is_mirror(rule, version, ours)}
            for rule in there - wanted.keys():
                with contextlib.suppress(NetfilterError):  # another program has removed it meanwhile
                    self._change(_RTM_DELRULE, rule)
            for rule in wanted:
                if rule not in there:
                    self._add_mirror(rule)
            needed |= wanted.keys()
        self._refused &= needed  # what nobody needs any more is forgotten

    def _add_mirror(self, rule: bytes) -> None:
        """Add a mirror of a rule. If that fails it is logged, and connections are made all the same."""
        try:
            self._change(RTM_NEWRULE, rule)
            self._refused.discard(rule)
        except NetfilterError as error:
            if rule not in self._refused:
                log.warning("nat.no_mirror", reason=str(error))
            self._refused.add(rule)

    def _rules(self, version: int) -> Iterator[bytes]:
        """Return the bodies of the rules of a family: head and attributes."""
        body = _HEAD.pack(_family(version), 0, 0, 0, 0, 0, 0, 0, 0)
        for message in self._netlink.request(self._netlink.message(RTM_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, body)):
            yield message[NLMSGHDR.size :]

    def _is_mirror(self, rule: bytes, version: int, ours: Set[Network]) -> bool:
        """Whether a rule is a mirror of this instance's: with the mark of mirrors, of its user, for one of its
        networks."""
        found = attribute_map(rule, _HEAD.size)
        source = int.from_bytes(found.get(_FRA_SRC, b""), "big")
        is_mirror = found.get(_FRA_PROTOCOL) == bytes((MIRRORED,)) and found.get(_FRA_UID_RANGE) == _only(self._user)
        return is_mirror and any(
            network.version == version and _common(source, network, network.prefixlen) for network in ours
        )

    def _mirrors_of(self, rule: bytes, version: int) -> Iterator[bytes]:
        """Return the mirrors that a rule needs: the same for what this process sends from inside addresses."""
        flags = _HEAD.unpack_from(rule)[-1]
        found = attribute_map(rule, _HEAD.size)
        name = found.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode(errors="replace")
        kept_out = found.keys() & {_FRA_OIFNAME, _FRA_L3MDEV, _FRA_UID_RANGE}
        if name not in self._interfaces or kept_out or flags & _FIB_RULE_INVERT:
            return
        found[_FRA_IIFNAME] = b"lo\0"
        found[_FRA_UID_RANGE] = _only(self._user)
        found[_FRA_PROTOCOL] = bytes((MIRRORED,))
        for own in _own_packets(version, self._user):
            if not own.keys() & found.keys():
                yield from self._for_networks(found | own, _HEAD.unpack_from(rule), version)

    def _for_networks(self, found: dict[int, bytes], head: tuple[int, ...], version: int) -> Iterator[bytes]:
        """Return a mirror for each inside network that the rule may be about."""
        family, to, source, tos, table, _, _, action, _ = head
        for network in self._networks:
            if network.version != version:
                continue
            packed, length = network.network_address.packed, network.prefixlen
            if source:  # only what both name
                if not _common(int.from_bytes(found[_FRA_SRC], "big"), network, min(length, source)):
                    continue
                if source > length:
                    packed, length = found[_FRA_SRC], source
            mirror = _HEAD.pack(family, to, length, tos, table, 0, 0, action, 0)
            yield _normal(mirror + _packed({**found, _FRA_SRC: packed}))


def _versions(networks: Set[Network]) -> set[int]:
    return {network.version for network in networks}


def _only(user: int) -> bytes:
    """Encode the range of users (fib_rule_uid_range) that contains only `user`."""
    return struct.pack("=II", user, user)


def _common(address: int, network: Network, length: int) -> bool:
    """Whether the first `length` bits of an address are those of a network."""
    return (address ^ int(network.network_address)) >> (network.max_prefixlen - length) == 0


def _own_packets(version: int, uid: int) -> Iterator[dict[int, bytes]]:
    """Return what tells this process's packets from those of other programs of the same user, which may have an inside
    address too (the router's): the ports of its connections. Probes have any port; those of IPv4 need no route."""
    yield {_FRA_SPORT_RANGE: struct.pack("=HH", *SPOKEN)}
    if version == 6 and uid:
        yield {_FRA_IP_PROTO: bytes((socket.IPPROTO_UDP,))}


def _normal(rule: bytes) -> bytes:
    """Return the body of a rule in a form that can be compared: attributes sorted, nothing that tells of its state."""
    family, to, source, tos, table, _, _, action, _ = _HEAD.unpack_from(rule)
    return _HEAD.pack(family, to, source, tos, table, 0, 0, action, 0) + _packed(attribute_map(rule, _HEAD.size))


def _packed(attributes: dict[int, bytes]) -> bytes:
    return b"".join(attribute(name, value) for name, value in sorted(attributes.items()))


def _ports(data: bytes) -> Iterator[int]:
    """Return the netlink ports of the processes that made the changes in a notification."""
    while len(data) >= NLMSGHDR.size:
        length, _, _, _, port = NLMSGHDR.unpack_from(data)
        yield port
        data = data[max((length + 3) & ~3, NLMSGHDR.size) :]


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
