"""PCP and NAT-PMP at one port: reads datagrams, asks the mapper, and answers. Runs in greenlets."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import Literal

from alg.pcp import natpmp, pcp
from gateway.front.portmap.mapper import PortMapper
from gateway.front.portmap.table import MappingRequest, Refusal, Why, hold_name
from gateway.model.requests import Transport

Speaks = Literal["pcp", "natpmp"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_TRANSPORTS: dict[int, Transport] = {pcp.TCP: "tcp", pcp.UDP: "udp"}
_PCP: dict[Why, pcp.Result] = {
    "denied": pcp.Result.NOT_AUTHORIZED,
    "inside_port": pcp.Result.NOT_AUTHORIZED,
    "foreign": pcp.Result.NOT_AUTHORIZED,
    "taken": pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    "address": pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    "filters": pcp.Result.EXCESSIVE_REMOTE_PEERS,
    "quota": pcp.Result.USER_EX_QUOTA,
    "rate": pcp.Result.USER_EX_QUOTA,
    "full": pcp.Result.NO_RESOURCES,
    "none": pcp.Result.SUCCESS,
    "outside": pcp.Result.NETWORK_FAILURE,
    "kernel": pcp.Result.NO_RESOURCES,
}
_NATPMP: dict[Why, natpmp.Result] = {
    "denied": natpmp.Result.NOT_AUTHORIZED,
    "inside_port": natpmp.Result.NOT_AUTHORIZED,
    "foreign": natpmp.Result.NOT_AUTHORIZED,
    "outside": natpmp.Result.NETWORK_FAILURE,
}


class PcpFront:
    """Answers the requests of clients. `protocols`: which of both are on."""

    def __init__(
        self, mapper: PortMapper, protocols: frozenset[Speaks], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._mapper = mapper
        self._protocols = protocols
        self._clock = clock

    def answer(self, data: bytes, source: str) -> bytes | None:
        """Return the answer to a datagram of an inside host; None: it is not answered. Waits for the broker."""
        if len(data) < 2:
            return None
        address = ipaddress.ip_address(source)
        if data[0] == natpmp.VERSION and "natpmp" in self._protocols:
            return self._natpmp(data, source) if address.version == 4 else None
        if "pcp" in self._protocols:
            return self._pcp(data, address)
        # A client of PCP learns that it has to speak NAT-PMP (RFC 6887, appendix A).
        return self._natpmp(data, source) if address.version == 4 else None

    # --- PCP --------------------------------------------------------------------------------------------------------

    def _pcp(self, data: bytes, source: Address) -> bytes | None:
        if not pcp.is_request(data):
            return None
        try:
            request = pcp.parse(data, source)
            if isinstance(request, pcp.Announce):
                return pcp.announced(self._mapper.epoch)
            if isinstance(request, pcp.Peer):
                return self._peer(request, source)
            return self._map(request, source) if request.lifetime else self._end(request, source)
        except pcp.Wrong as wrong:
            return pcp.error(data, wrong.result, pcp.lifetime_of(wrong.result), self._mapper.epoch)
        except Refusal as refusal:
            result = _PCP[refusal.why]
            # What may be over soon says how soon; what will not be is not asked for again for half an hour.
            seconds = min(pcp.lifetime_of(result), refusal.seconds) if refusal.why != "foreign" else pcp.LONG
            return pcp.error(data, result, seconds, self._mapper.epoch)

    def _map(self, request: pcp.Map, source: Address) -> bytes:
        client, transport = str(source), _TRANSPORTS[request.protocol]
        filters: tuple[str, ...] | None = None
        if request.filters is not None:
            there = self._mapper.table.find((client, transport, request.port))
            hold = there.holds.get("pcp") if there is not None else None
            before = () if hold is None or request.filters.forget else hold.filters
            filters = tuple(dict.fromkeys((*before, *request.filters.add)))
        wanted = str(request.suggested) if request.suggested is not None else None
        mapping = self._mapper.map(
            MappingRequest(
                client=client,
                transport=transport,
                port=request.port,
                holder="pcp",
                credential=request.nonce.hex(),
                lifetime=request.lifetime,
                suggested_port=request.suggested_port or None,
                suggested_host=wanted,
                exact=request.prefer_failure,
                filters=filters,
            )
        )
        left = mapping.left("pcp", self._clock())
        return pcp.mapped(request, left, mapping.shown.port, mapping.shown.ip, self._mapper.epoch)

    def _peer(self, request: pcp.Peer, source: Address) -> bytes:
        """Carry out a PEER request: a mapping that lets one host in (section 12.3). Its public port is the one that the
        socket has already, else the suggested one, else any."""
        client, transport = str(source), _TRANSPORTS[request.protocol]
        peer, nonce = f"{request.remote} {request.remote_port}", request.nonce.hex()
        name = hold_name("peer", peer)
        if not request.lifetime:
            try:
                self._mapper.unmap((client, transport, request.port), name, nonce)
            except Refusal as refusal:
                if refusal.why != "none":
                    raise
            return pcp.peered(request, 0, 0, _nothing(source), self._mapper.epoch)
        mapping = self._mapper.map(
            MappingRequest(
                client=client,
                transport=transport,
                port=request.port,
                holder="peer",
                credential=nonce,
                lifetime=request.lifetime,
                suggested_port=request.suggested_port or None,
                suggested_host=str(request.suggested) if request.suggested is not None else None,
                exact=bool(request.suggested_port),
                filters=(f"{request.remote}/{request.remote.max_prefixlen}",),
                peer=peer,
            )
        )
        left = mapping.left(name, self._clock())
        return pcp.peered(request, left, mapping.shown.port, mapping.shown.ip, self._mapper.epoch)

    def _end(self, request: pcp.Map, source: Address) -> bytes:
        """Carry out a deletion: of one mapping, of all of a protocol, or of all (section 15). It also succeeds if there
        is nothing to delete."""
        client, nonce = str(source), request.nonce.hex()
        transport = _TRANSPORTS.get(request.protocol)
        if transport is None or not request.port:
            self._mapper.unmap_all(client, "pcp", transport, nonce)
        else:
            try:
                self._mapper.unmap((client, transport, request.port), "pcp", nonce)
            except Refusal as refusal:
                if refusal.why != "none":
                    raise
        return pcp.mapped(request, 0, 0, _nothing(source), self._mapper.epoch)

    # --- NAT-PMP ----------------------------------------------------------------------------------------------------

    def _natpmp(self, data: bytes, client: str) -> bytes | None:
        if not natpmp.is_request(data):
            return None
        try:
            request = natpmp.parse(data)
            if isinstance(request, natpmp.AskAddress):
                public = self._mapper.external(4)
                if public is None:
                    raise natpmp.Wrong(natpmp.Result.NETWORK_FAILURE)
                return natpmp.address(ipaddress.IPv4Address(public), self._mapper.epoch)
            return self._map_natpmp(request, client) if request.lifetime else self._end_natpmp(request, client)
        except natpmp.Wrong as wrong:
            return natpmp.error(data, wrong.result, self._mapper.epoch)
        except Refusal as refusal:
            result = _NATPMP.get(refusal.why, natpmp.Result.OUT_OF_RESOURCES)
            return natpmp.error(data, result, self._mapper.epoch)

    def _map_natpmp(self, request: natpmp.Map, client: str) -> bytes:
        mapping = self._mapper.map(
            MappingRequest(
                client=client,
                transport=request.transport,
                port=request.port,
                holder="natpmp",
                lifetime=request.lifetime,
                suggested_port=request.public_port or None,
            )
        )
        left = mapping.left("natpmp", self._clock())
        return natpmp.mapped(request, mapping.shown.port, left, self._mapper.epoch)

    def _end_natpmp(self, request: natpmp.Map, client: str) -> bytes:
        if not request.port:
            self._mapper.unmap_all(client, "natpmp", request.transport)
        else:
            try:
                self._mapper.unmap((client, request.transport, request.port), "natpmp")
            except Refusal as refusal:
                if refusal.why != "none":
                    raise
        return natpmp.mapped(request, 0, 0, self._mapper.epoch)

    # --- unasked ----------------------------------------------------------------------------------------------------

    def announcements(self, version: int) -> list[bytes]:
        """Return the messages to all clients of a family after a new epoch has begun (RFC 6887 section 14.1.1, RFC 6886
        section 3.2.1)."""
        said = [pcp.announced(self._mapper.epoch)] if "pcp" in self._protocols else []
        public = self._mapper.external(4) if version == 4 and "natpmp" in self._protocols else None
        if public is not None:
            said.append(natpmp.address(ipaddress.IPv4Address(public), self._mapper.epoch))
        return said


def _nothing(source: Address) -> Address:
    return ipaddress.ip_address("0.0.0.0" if source.version == 4 else "::")
