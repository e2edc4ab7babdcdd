"""Tries with real packets, in a copy of this host's rules, whether what the gateway opens would pass them: `python -m
gateway.host.trial` in a network namespace of its own, with a `Plan` on standard input.

The copy has interfaces with the names, addresses and routes of the host's, the host's nf_tables objects and iptables
rules, the gateway's own rules and table, and pinholes as a session would open them. Packets come in by the interfaces
as from a client or from outside. A packet that does not arrive is followed by netfilter's own trace (NFNLGRP_NFTRACE)
to the rule that stopped it, and tried again with the lines that this chain may need; counters tell which of them were
needed. Nothing of this touches the host or its traffic.

Writes a JSON list of `Tried`. The caller makes and removes the namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from alg.address import Endpoint
from gateway.broker.elements import elements_of
from gateway.broker.netfilter import Change, Netfilter
from gateway.broker.netlink import NETLINK_NETFILTER, NLMSGHDR, SOL_NETLINK, NetfilterError, attribute_map
from gateway.host.plan import Link, Plan, Tried
from gateway.host.programs import run_program
from gateway.model.errors import AlgateError
from gateway.model.requests import Lease

TrialSide = Literal["inside", "outside"]

UNKNOWN = "no rule that can be followed: a route, a chain at ingress (netdev), or iptables-legacy"
_ADDED = "algate-trial "
_WAIT = 0.4  # seconds for a packet to arrive
_ROUNDS = 6  # lines that are added to the copy, at the most, for one packet
_SYN, _SYN_ACK, _ACK = 0x02, 0x12, 0x10
_SHORTEST = 28  # bytes of a packet of UDP over IPv4
_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33
_WITHOUT_DAD = (("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/all/accept_dad", "0"))
NFNLGRP_NFTRACE, NETLINK_ADD_MEMBERSHIP = 9, 1
NFT_MSG_TRACE = 10 << 8 | 17
NFTA_TRACE_TABLE, NFTA_TRACE_CHAIN, NFTA_TRACE_RULE_HANDLE, NFTA_TRACE_TYPE, NFTA_TRACE_VERDICT = 1, 2, 3, 4, 5
NFTA_TRACE_NFPROTO, NFTA_TRACE_POLICY = 15, 16
NFT_TRACETYPE_POLICY = 1
NF_DROP = 0
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}


class Stop(NamedTuple):
    """The place where a packet was dropped: a description, and the base chain."""

    place: str
    chain: str


class PacketTrace:
    """Netfilter's trace of the packets that a table of ours has marked."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTRACE)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)  # some firewalls have long chains
        self._socket.setblocking(False)
        chains = "".join(
            f"\tchain {hook} {{\n\t\ttype filter hook {hook} priority -500;\n"
            "\t\tmeta l4proto { tcp, udp } meta nftrace set 1\n\t}\n"
            for hook in ("prerouting", "output")
        )
        run_program(["nft", "-f", "-"], f"table inet algate_trace {{\n{chains}}}\n")

    def forget(self) -> None:
        """Discard everything that was traced until now."""
        for _ in self._received():
            pass

    def stop(self) -> Stop | None:
        """Return where the last dropped packet was dropped; None: no nf_tables chain dropped it."""
        found = None
        base: dict[tuple[str, str], str] = {}
        base_chains = _base_chains()
        for data in self._received():
            at = 0
            while at + NLMSGHDR.size <= len(data):
                length, kind, *_ = NLMSGHDR.unpack_from(data, at)
                if kind == NFT_MSG_TRACE:
                    found = self._dropped(data[at : at + length], base, base_chains) or found
                at += max(length + 3 & ~3, NLMSGHDR.size)
        return found

    def _received(self) -> Iterator[bytes]:
        """Yield the trace messages since the last call."""
        while True:
            try:
                yield self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # that: something was left out
                    raise

    def _dropped(
        self, message: bytes, base: dict[tuple[str, str], str], base_chains: set[tuple[str, str, str]]
    ) -> Stop | None:
        """Return where a message says that its packet was dropped. `base`: the base chain that the packet is in, of
        each table."""
        family = _FAMILIES.get(message[NLMSGHDR.size], "")
        fields = attribute_map(message, NLMSGHDR.size + 4)
        table, chain = (fields.get(kind, b"").rstrip(b"\0").decode() for kind in (NFTA_TRACE_TABLE, NFTA_TRACE_CHAIN))
        verdict = _number(attribute_map(fields.get(NFTA_TRACE_VERDICT, b"")).get(1, b"\xff"))
        place = f"{family} {table} {chain}"
        if (family, table, chain) in base_chains:
            base[family, table] = chain
        root = f"{family} {table} {base.get((family, table), chain)}"
        if _number(fields.get(NFTA_TRACE_TYPE, b"")) == NFT_TRACETYPE_POLICY:
            if _number(fields.get(NFTA_TRACE_POLICY, b"\xff")) == NF_DROP:
                return Stop(f"{place}: policy drop", root)
        elif verdict == NF_DROP:
            rule = _rule_text(place, _number(fields.get(NFTA_TRACE_RULE_HANDLE, b"")))
            return Stop(f"{place}: {rule}", root)
        return None


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _base_chains() -> set[tuple[str, str, str]]:
    entries = json.loads(run_program(["nft", "-j", "list", "chains"]))["nftables"]
    chains = (entry["chain"] for entry in entries if "chain" in entry)
    return {(chain["family"], chain["table"], chain["name"]) for chain in chains if "hook" in chain}


def _rule_text(chain: str, handle: int) -> str:
    for line in run_program(["nft", "-a", "list", "chain", *chain.split()]).splitlines():
        text, _, number = line.partition(" # handle ")
        if number.strip() == str(handle) and not line.strip().startswith("chain "):
            return text.strip()
    return f"rule {handle}"


class Copy:
    """The copy of the host in this namespace, and the world around it in another one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._added: list[tuple[str, str]] = []
        self._here = os.open("/proc/self/ns/net", os.O_RDONLY)
        _unshare()
        self._world = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.wires: dict[TrialSide, socket.socket] = {}
        self.macs: dict[TrialSide, tuple[bytes, bytes]] = {}  # of the interface, and of the host beyond it
        _setns(self._here)
        self._build()
        self.netfilter = Netfilter(plan.instance)
        self.netfilter.load()
        self.trace = PacketTrace()

    def _build(self) -> None:
        plan = self.plan
        for key, value in (("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), *_WITHOUT_DAD):
            with contextlib.suppress(OSError), open(f"/proc/sys/net/{key}", "w") as file:
                file.write(value)
        commands = ["link set lo up"]
        for side, link in self._sides():
            commands.append(
                f"link add {link.name} type veth peer name w-{side} netns /proc/{os.getpid()}/fd/{self._world}"
            )
            commands += [f"addr add {address} dev {link.name}" for address in link.addresses]
            commands.append(f"link set {link.name} up")
        world = f"/proc/{os.getpid()}/fd/{self._world}"
        for number, name in enumerate(plan.others):
            commands.append(f"link add {name} type veth peer name w-{number} netns {world}")
        for command in commands:
            _ip(command.split())
        for side, link in self._sides():
            self._wire(side, link)
            hosts = plan.clients if side == "inside" else (*link.via, *plan.peers)
            far = ":".join(f"{byte:02x}" for byte in self.macs[side][1])
            for host in hosts:
                with contextlib.suppress(AlgateError):  # a peer beyond the gateway has no neighbour entry of its own
                    _ip(["neigh", "replace", host, "lladdr", far, "dev", link.name, "nud", "permanent"])
        for via in plan.outside.via:
            _ip(["route", "replace", "default", "via", via, "dev", plan.outside.name])
        for program, text in plan.iptables.items():
            run_program([f"{program}-restore"], text)
        for table in plan.tables:
            at_ingress = table.startswith("table netdev ")  # it may name interfaces that are not copied
            with contextlib.suppress(AlgateError) if at_ingress else contextlib.nullcontext():
                run_program(["nft", "-f", "-"], table)
        for program, text in plan.legacy.items():
            run_program([f"{program}-restore"], text)
        for program, text in plan.own.items():
            run_program([f"{program}-restore", "--noflush"], text)

    def _sides(self) -> tuple[tuple[TrialSide, Link], tuple[TrialSide, Link]]:
        return ("inside", self.plan.inside), ("outside", self.plan.outside)

    def _wire(self, side: TrialSide, link: Link) -> None:
        _setns(self._world)
        _ip(["link", "set", f"w-{side}", "up"])
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind((f"w-{side}", 0))
        far = wire.getsockname()[4]
        _setns(self._here)
        self.wires[side] = wire
        self.macs[side] = (_mac_of(link.name), far)

    def send(self, side: TrialSide, packet: bytes) -> None:
        """Send a packet in by an interface."""
        near, far = self.macs[side]
        kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
        self.wires[side].send(near + far + kind + packet)

    def arrives(self, side: TrialSide, wanted: Callable[[bytes], bool]) -> bytes | None:
        """Return the first packet that leaves by an interface soon and is the one meant; None if none does."""
        until = time.monotonic() + _WAIT
        wire = self.wires[side]
        while (left := until - time.monotonic()) > 0:
            if not select.select([wire], [], [], left)[0]:
                break
            packet = wire.recv(65536)[14:]
            if len(packet) >= _SHORTEST and wanted(packet):
                return packet
        return None

    def insert(self, chain: str, lines: Sequence[str]) -> None:
        """Add lines at the beginning of a chain, with a counter each."""
        for line in reversed(lines):
            text = f'{line.removesuffix("accept")}counter accept comment "{_ADDED}{len(self._added)}"'
            self._added.append((chain, line))
            run_program(["nft", "-f", "-"], f"insert rule {chain} {text}\n")

    def hits(self) -> dict[str, int]:
        """Return how many packets each added line, with its chain before it, has let through."""
        found = {}
        for chain in dict.fromkeys(chain for chain, _ in self._added):
            for entry in json.loads(run_program(["nft", "-j", "list", "chain", *chain.split()]))["nftables"]:
                comment = entry.get("rule", {}).get("comment", "")
                if comment.startswith(_ADDED):
                    line = self._added[int(comment.removeprefix(_ADDED))]
                    counters = (each["counter"] for each in entry["rule"]["expr"] if "counter" in each)
                    found[" ".join(line)] = sum(counter["packets"] for counter in counters)
        return found

    def admit(self, lease: Lease) -> None:
        refused = self.netfilter.apply([Change(add=elements_of(lease, 0, 60.0))])
        if refused:
            raise refused[0]


# --- packets --------------------------------------------------------------------------------------------------------


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data)) if len(data) % 2 == 0 else _checksum_odd(data)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _checksum_odd(data: bytes) -> int:
    return sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0"))


def packet(protocol: int, source: Endpoint, destination: Endpoint, flags: int = _SYN, acknowledged: int = 0) -> bytes:
    """Return an IP packet of TCP (6; no data) or UDP (17; a few bytes)."""
    addresses = ipaddress.ip_address(source.host).packed + ipaddress.ip_address(destination.host).packed
    if protocol == socket.IPPROTO_TCP:
        number = 1000 if flags == _SYN else 2000
        head = struct.pack(">HHIIBBHHH", source.port, destination.port, number, acknowledged, 5 << 4, flags, 4096, 0, 0)
    else:
        head = struct.pack(">HHHH", source.port, destination.port, 12, 0) + b"try\n"
    pseudo = addresses + (struct.pack(">BBH", 0, protocol, len(head)) if source.version == 4 else b"")
    if source.version == 6:
        pseudo += struct.pack(">IHBB", len(head), 0, 0, protocol)
    at = 16 if protocol == socket.IPPROTO_TCP else 6
    sealed = head[:at] + struct.pack(">H", _checksum(pseudo + head)) + head[at + 2 :]
    if source.version == 6:
        return struct.pack(">IHBB", 6 << 28, len(sealed), protocol, 64) + addresses + sealed
    outer = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(sealed), 1, 0, 64, protocol, 0) + addresses
    return outer[:10] + struct.pack(">H", _checksum(outer)) + outer[12:] + sealed


def _ends(data: bytes) -> tuple[int, Endpoint, Endpoint, int, int]:
    """Return protocol, source, destination, TCP flags and sequence number of a packet; protocol 0: neither TCP nor
    UDP."""
    nothing = Endpoint("0.0.0.0", 0)
    if data[0] >> 4 == 4:
        protocol, at = data[9], (data[0] & 15) * 4
        addresses = data[12:16], data[16:20]
    else:
        protocol, at = data[6], 40
        addresses = data[8:24], data[24:40]
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) or len(data) < at + 8:
        return 0, nothing, nothing, 0, 0
    ports = struct.unpack_from(">HH", data, at)
    source, destination = (
        Endpoint(str(ipaddress.ip_address(address)), port) for address, port in zip(addresses, ports, strict=True)
    )
    flags, number = (
        (data[at + 13], struct.unpack_from(">I", data, at + 4)[0]) if protocol == 6 and len(data) >= at + 20 else (0, 0)
    )
    return protocol, source, destination, flags, number


# --- what is tried --------------------------------------------------------------------------------------------------


class Attempts:
    """The attempts to pass the rules. Each method sends a packet as a session would, and returns whether it arrived
    where it must."""

    def __init__(self, copy: Copy, client: str, peer: str, near: str, public: str) -> None:
        self._copy = copy
        self.client, self.peer, self.near, self.public = client, peer, near, public
        self._port = copy.plan.pinholes[0]
        self._source = 20000

    def all(self) -> Iterator[tuple[str, Callable[[], bool]]]:
        """Return all attempts, with descriptions."""
        plan = self._copy.plan
        yield "a pinhole to a client (active FTP)", self.pinhole
        yield "media of a client (UDP, in)", lambda: self.media(inwards=True)
        yield "media of a client (UDP, out)", lambda: self.media(inwards=False)
        yield "a client's data connection (passive FTP)", self.passive
        yield "a port of the gateway's own, for a peer outside (active FTP and BIND through SOCKS)", self.local
        if plan.transparent is not None and plan.modules:
            yield "a client's control connection, redirected to the gateway", self.redirected
        for endpoint in plan.socks:
            if endpoint.version == (6 if ":" in self.client else 4):
                yield f"a client's connection to SOCKS at {endpoint}", lambda at=endpoint: self.socks(at)  # type: ignore[misc]
        if any(endpoint.version == (6 if ":" in self.client else 4) for endpoint in plan.socks):
            yield "datagrams of a client to its SOCKS association", self.association
        for endpoint in plan.published:
            if endpoint.version == (6 if ":" in self.client else 4):
                yield f"a connection from outside to {endpoint}", lambda at=endpoint: self.published(at)  # type: ignore[misc]
        yield "a connection of the gateway to a server", self.outgoing
        yield "a data connection of the gateway to a server (passive FTP through SOCKS)", self.data

    def _next(self) -> tuple[int, int]:
        self._port += 2
        self._source += 1
        return self._port, self._source

    def _lease(self, **changes: object) -> Lease:
        port, target = self._next()
        values: dict[str, object] = {
            "id": f"{port:016x}",
            "flow": "trial",
            "reason": "trial",
            "client": self.client,
            "direction": "in",
            "protocol": "tcp",
            "public": Endpoint(self.public, port),
            "target": Endpoint(self.client, target),
            "peer": self.peer,
            "expires": time.time() + 60,
            "backend": "kernel",
        }
        lease = msgspec.convert({**values, **changes}, Lease)
        self._copy.admit(lease)
        return lease

    def pinhole(self) -> bool:
        lease = self._lease()
        source = Endpoint(self.peer, self._next()[1])
        self._copy.send("outside", packet(6, source, lease.public))
        if not self._copy.arrives("inside", lambda data: _ends(data)[1:3] == (source, lease.target)):
            return False
        self._copy.send("inside", packet(6, lease.target, source, _SYN_ACK, 1001))
        return self._copy.arrives("outside", lambda data: _ends(data)[1:3] == (lease.public, source)) is not None

    def media(self, inwards: bool) -> bool:
        lease = self._lease(protocol="udp", kind="conversation", peer=None, peers=(self.peer,))
        far = Endpoint(self.peer, self._next()[1])
        if inwards:
            self._copy.send("outside", packet(17, far, lease.public))
            return self._copy.arrives("inside", lambda data: _ends(data)[1:3] == (far, lease.target)) is not None
        self._copy.send("inside", packet(17, lease.target, far))
        return self._copy.arrives("outside", lambda data: _ends(data)[1:3] == (lease.public, far)) is not None

    def passive(self) -> bool:
        server = Endpoint(self.peer, self._next()[1])
        lease = self._lease(direction="out", public=server, target=server, peer=None)
        source = Endpoint(self.client, self._next()[1])
        self._copy.send("inside", packet(6, source, lease.target))
        seen = self._copy.arrives("outside", lambda data: _ends(data)[2] == server)
        if seen is None:
            return False
        self._copy.send("outside", packet(6, server, _ends(seen)[1], _SYN_ACK, 1001))
        return self._copy.arrives("inside", lambda data: _ends(data)[1:3] == (server, source)) is not None

    def local(self) -> bool:
        lease = self._lease(backend="userspace")
        with _listening(lease.public):
            return self._is_answered("outside", Endpoint(self.peer, self._next()[1]), lease.public, lease.public)

    def redirected(self) -> bool:
        plan = self._copy.plan
        assert plan.transparent is not None
        server = Endpoint(self.peer, plan.modules[0])
        with _listening(Endpoint("::" if ":" in self.client else "0.0.0.0", plan.transparent)):
            return self._is_answered("inside", Endpoint(self.client, self._next()[1]), server, server)

    def socks(self, at: Endpoint) -> bool:
        with _listening(at):
            return self._is_answered("inside", Endpoint(self.client, self._next()[1]), at, at)

    def association(self) -> bool:
        at = Endpoint(self.near, self._next()[0])
        with socket.socket(socket.AF_INET6 if at.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((at.host, at.port))
            self._copy.send("inside", packet(17, Endpoint(self.client, self._next()[1]), at))
            return bool(select.select([sock], [], [], _WAIT)[0])

    def published(self, at: Endpoint) -> bool:
        plan = self._copy.plan
        assert plan.transparent is not None
        with _listening(Endpoint("::" if ":" in self.client else "0.0.0.0", plan.transparent)):
            return self._is_answered("outside", Endpoint(self.peer, self._next()[1]), at, at)

    def outgoing(self) -> bool:
        return self._connects(Endpoint(self.peer, self._copy.plan.modules[0] if self._copy.plan.modules else 21))

    def data(self) -> bool:
        return self._connects(Endpoint(self.peer, self._next()[1]))

    def _connects(self, server: Endpoint) -> bool:
        os.seteuid(self._copy.plan.user)  # rules may look at the socket's user
        try:
            sock = socket.socket(socket.AF_INET6 if server.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
        finally:
            os.seteuid(0)
        with sock:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.connect((server.host, server.port))
            seen = self._copy.arrives("outside", lambda data: _ends(data)[2] == server)
            if seen is None:
                return False
            _, source, _, _, number = _ends(seen)
            self._copy.send("outside", packet(6, server, source, _SYN_ACK, number + 1))
            return (
                bool(select.select([], [sock], [], _WAIT)[1])
                and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            )

    def _is_answered(self, side: TrialSide, source: Endpoint, destination: Endpoint, answers_from: Endpoint) -> bool:
        self._copy.send(side, packet(6, source, destination))

        def is_answer(data: bytes) -> bool:
            return _ends(data)[:4] == (6, answers_from, source, _SYN_ACK)

        return self._copy.arrives(side, is_answer) is not None


@contextlib.contextmanager
def _listening(at: Endpoint) -> Iterator[None]:
    family = socket.AF_INET6 if at.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((at.host, at.port))
        sock.listen()
        yield


def run(plan: Plan) -> list[Tried]:
    """Make all attempts. Raises AlgateError, NetfilterError, OSError if the host cannot be copied."""
    copy = Copy(plan)
    lines = {foreign.chain: foreign.lines for foreign in plan.foreign}
    results: list[Tried] = []
    stopped: list[tuple[int, Callable[[], bool], Stop]] = []
    legacy: list[tuple[int, Callable[[], bool]]] = []
    for client, peer, near, public in _quadruples(plan):
        attempts = Attempts(copy, client, peer, near, public)
        for what, attempt in attempts.all():
            copy.trace.forget()
            passed = attempt()
            stop = None if passed else copy.trace.stop()
            if stop is not None:
                stopped.append((len(results), attempt, stop))
            name = f"{'IPv6' if ':' in client else 'IPv4'}: {what}"
            why = "" if passed else stop.place if stop else UNKNOWN
            results.append(Tried(name, passed, why))
            if not passed and stop is None and plan.legacy:
                legacy.append((len(results) - 1, attempt))
    # Only then with further lines: what passes anyway needs none.
    if legacy:
        for command in plan.legacy_lines:
            run_program(command.split())
        for at, attempt in legacy:
            if attempt():
                results[at] = Tried(
                    results[at].what, False, "iptables-legacy", remedy="; ".join(reversed(plan.legacy_lines))
                )
    for at, attempt, stop in stopped:
        results[at] = _try_with_lines(copy, results[at], attempt, stop, lines)
    return results


def _try_with_lines(
    copy: Copy, tried: Tried, attempt: Callable[[], bool], stop: Stop | None, lines: dict[str, tuple[str, ...]]
) -> Tried:
    """Try again, with the lines that may be needed by the chain that stopped the packet; there may be several such
    chains."""
    for _ in range(_ROUNDS):
        if stop is None:
            break
        if stop.chain in lines:
            copy.insert(stop.chain, lines.pop(stop.chain))
        copy.trace.forget()
        before = copy.hits()
        if attempt():
            hit = tuple(line for line, packets in copy.hits().items() if packets > before.get(line, 0))
            return Tried(tried.what, passed=True, stopped_by=tried.stopped_by, lines=hit)
        before_chain, stop = stop.chain, copy.trace.stop()
        if stop is not None and stop.chain == before_chain:
            break
    return tried


def _quadruples(plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    """Return client, peer, and the host's addresses on both sides, of each family that both sides have."""
    for version in (4, 6):

        def of(hosts: Sequence[str], version: int = version) -> str | None:
            return next((host for host in hosts if (":" in host) == (version == 6)), None)

        near, public = (of([text.partition("/")[0] for text in link.addresses]) for link in (plan.inside, plan.outside))
        client, peer = of(plan.clients), of(plan.peers)
        if client and peer and near and public:
            yield client, peer, near, public


def _ip(arguments: Sequence[str]) -> None:
    run_program(["ip", *arguments])


def _mac_of(name: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((name, 0))
        return bytes(sock.getsockname()[4])


_libc = ctypes.CDLL(None, use_errno=True)


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def main() -> None:
    """Read the plan, carry it out, and write the results."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    try:
        tried = run(plan)
    except (AlgateError, NetfilterError, OSError, subprocess.SubprocessError) as error:
        sys.stdout.write(json.dumps({"error": str(error)}))
        return
    sys.stdout.buffer.write(msgspec.json.encode(tried))


if __name__ == "__main__":
    main()
