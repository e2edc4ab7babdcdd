"""Reads the Transport header, which says which host sends media where (RFC 2326, 12.39; RFC 7826, 18.54), with places
in the bytes. Both grammars are read as one: specifications with commas between them, each a protocol and parameters.
What can be read in more than one way is left alone: the whole header if a quote is not closed, and a specification if
its ports are not numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from alg.text.header import Span

MOST_SPECS = 32  # of a header; one with more is not read

_PIECE = re.compile(rb'(?:"(?:[^"\\]|\\.)*+"|[^",;])++')
_PARAM = re.compile(rb"[ \t\r\n]*+([^=\"\s]+)[ \t\r\n]*+(?:=[ \t\r\n]*+)?", re.DOTALL)
_PORTS = re.compile(rb"([0-9]{1,5})(?:[ \t]*([-/])[ \t]*([0-9]{1,5}))?")
_ADDRESS = re.compile(rb'"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._\-]*)(?::([0-9]{1,5}))?"')
_WIDEST_RANGE = 15  # from one port to the other: what is further apart is no range, but two ports


@dataclass(frozen=True, slots=True)
class Port:
    """A port with its place."""

    number: int
    span: Span


@dataclass(frozen=True, slots=True)
class HostSpan:
    """An address or a name, without brackets, with its place. Its text is never empty."""

    text: bytes
    span: Span


@dataclass(slots=True)
class Spec:
    """One way of transport, as a specification says it.

    `ports`: of the client, one or two (`client_port`, or the ports in `dest_addr`); (): none that can be read.
    `destinations`: where media are to go, if it says so; `sources`: where they come from; `server_ports`: from which
    ports (`server_port`, or those in `src_addr`), one or two. `is_rtp`: RTP has a second
    port for RTCP, the next one where only one is named.
    """

    protocol: bytes
    ports: tuple[Port, ...] = ()
    destinations: list[HostSpan] = field(default_factory=list)
    sources: list[HostSpan] = field(default_factory=list)
    server_ports: tuple[Port, ...] = ()
    interleaved: bool = False
    multicast: bool = False

    @property
    def is_rtp(self) -> bool:
        return self.protocol.startswith(b"rtp/")

    @property
    def is_udp(self) -> bool:
        """Whether media go by UDP between the two hosts."""
        lower = self.protocol.rpartition(b"/")[2]
        return not (self.interleaved or self.multicast or lower in (b"tcp", b"d-ice"))

    @property
    def sockets(self) -> tuple[int, int | None] | None:
        """The client's ports for media, and for RTCP; None where there are none to be opened."""
        if not self.is_udp or not self.ports:
            return None
        first = self.ports[0].number
        if len(self.ports) == 2:
            second: int | None = self.ports[1].number
        else:
            second = first + 1 if self.is_rtp else None
        if not all(1024 <= port <= 65535 for port in (first, second) if port is not None) or first == second:
            return None
        return first, second


def read_transport(data: bytes, span: Span) -> list[Spec]:
    """The specifications in the value `data[slice(*span)]`; [] where it cannot be read."""
    specs: list[Spec] = []
    at, end = span
    begins = True
    while at < end:
        piece = _PIECE.match(data, at, end)
        if piece is not None:
            if begins:
                if len(specs) >= MOST_SPECS:
                    return []
                specs.append(Spec(piece[0].strip().lower()))
                begins = False
            else:
                _take(specs[-1], data, piece.span())
            at = piece.end()
        if at < end:
            if data[at] not in b",;":
                return []  # a quote that is open
            begins = begins or data[at] == 0x2C
            at += 1
    return specs


def _take(spec: Spec, data: bytes, span: Span) -> None:
    """Store one parameter in `spec`."""
    found = _PARAM.match(data, *span)
    if found is None:
        return
    at, end = found.end(), span[1]
    while end > at and data[end - 1] in b" \t\r\n":
        end -= 1
    match found[1].lower():
        case b"interleaved":
            spec.interleaved = True
        case b"multicast":
            spec.multicast = True
        case b"client_port":
            spec.ports = _ports(data, at, end)
        case b"server_port":
            spec.server_ports = _ports(data, at, end)
        case b"destination":
            spec.destinations += _host(data, at, end)
        case b"source":
            spec.sources += _host(data, at, end)
        case b"dest_addr":
            hosts, spec.ports = _addresses(data, at, end)
            spec.destinations += hosts
        case b"src_addr":
            hosts, spec.server_ports = _addresses(data, at, end)
            spec.sources += hosts


def _ports(data: bytes, at: int, end: int) -> tuple[Port, ...]:
    """Read one port, or two. Returns () for a range of more than two, for port 0, and if it is not a number."""
    found = _PORTS.fullmatch(data, at, end)
    if found is None:
        return ()
    first = Port(int(found[1]), found.span(1))
    if found[3] is None:
        return (first,)
    second = Port(int(found[3]), found.span(3))
    if found[2] == b"-" and 1 < second.number - first.number <= _WIDEST_RANGE:
        return ()  # some clients name two ports that have nothing to do with each other: those are further apart
    return first, second


def _host(data: bytes, at: int, end: int) -> list[HostSpan]:
    """A host without its port: `destination=192.0.2.1:5000` is met."""
    if data[at : at + 1] == b'"' and data[end - 1 : end] == b'"' and end - at > 1:
        at, end = at + 1, end - 1
    if data[at : at + 1] == b"[":
        close = data.find(b"]", at, end)
        return [HostSpan(data[at + 1 : close], (at + 1, close))] if close > at + 1 else []
    if data.count(b":", at, end) == 1:
        end = data.index(b":", at, end)
    return [HostSpan(data[at:end], (at, end))] if end > at else []


def _addresses(data: bytes, at: int, end: int) -> tuple[list[HostSpan], tuple[Port, ...]]:
    """Hosts and ports of `"host:port"/":port"`; more than two addresses have no ports that could be opened."""
    hosts: list[HostSpan] = []
    ports: list[Port] = []
    count = 0
    while at < end:
        found = _ADDRESS.match(data, at, end)
        if found is None:
            return hosts, ()
        count += 1
        if found[1]:
            start, stop = found.span(1)
            if data[start] == 0x5B:
                start, stop = start + 1, stop - 1
            hosts.append(HostSpan(data[start:stop], (start, stop)))
        if found[2]:
            ports.append(Port(int(found[2]), found.span(2)))
        at = found.end()
        while at < end and data[at] in b" \t/":
            at += 1
    return hosts, tuple(ports) if count == len(ports) <= 2 else ()
