"""The actions of UPnP on the table of mappings: what a client inside asks for by SOAP, and what it is answered.

A client is known by the address from which it asks, and has to do with its own mappings only: it is shown no others,
and can end no others. Of its own it is shown those that it has by UPnP; those by PCP have a nonce, which UPnP lacks.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from alg.upnp import arguments
from alg.upnp.device import Device
from alg.upnp.errors import ActionError
from alg.upnp.listing import ListedMapping, port_listing
from alg.upnp.services import CONNECTION_1, CONNECTION_2, FIREWALL, FORWARDING, INTERFACE, UpnpService
from gateway.front.portmap.table import Mapping as PortMapping
from gateway.front.portmap.table import MappingEvent, MappingKey, MappingRequest, MappingTable, Refusal
from gateway.model.requests import Transport
from gateway.observe.log import get_logger

log = get_logger()

LONGEST_LIST = 256  # entries

_Values = Sequence[object]
_Action = Callable[[str, Mapping[str, str]], _Values]

# Codes of a refusal: WANIPConnection:1 knows fewer than :2 does.
_CODES_1 = {"denied": 606, "inside_port": 606, "foreign": 718, "taken": 718, "none": 714}
_CODES_2 = {**_CODES_1, "quota": 728, "full": 728}
_PINHOLE_CODES = {"denied": 606, "inside_port": 606, "foreign": 606, "quota": 701, "full": 701, "none": 704}


class Mapper(Protocol):
    """Carries out requests for mappings. Each method waits for the broker."""

    @property
    def table(self) -> MappingTable:
        """The mappings."""

    def map(self, request: MappingRequest) -> PortMapping:
        """Open or renew a mapping. Raises Refusal."""

    def unmap(self, key: MappingKey, name: str, credential: str = "") -> None:
        """End a hold. Raises Refusal."""

    def translates(self, client: str) -> bool:
        """Whether a client's addresses are translated."""


class Facts(Protocol):
    """The state of this router's connection to the outside."""

    def external(self) -> str:
        """The public IPv4 address; "" if there is none."""

    def uptime(self) -> int:
        """Seconds since this process has begun."""

    def total(self, what: str) -> int:
        """A counter of the interface to the outside: "tx_bytes", "rx_bytes", "tx_packets" or "rx_packets"."""

    def rate(self) -> int:
        """Bits per second that the interface to the outside is made for."""

    def outbound_timeout(self, transport: Transport) -> int:
        """Seconds for which the kernel keeps a silent connection of a client."""

    def packets(self, mapping: PortMapping) -> int:
        """Packets that have come in through a mapping."""

    def now(self) -> float:
        """Monotonic seconds."""


class Igd:
    """The services of both root devices, by the types of services."""

    def __init__(self, mapper: Mapper, facts: Facts, devices: Mapping[int, Device]) -> None:
        self._mapper = mapper
        self._table = mapper.table
        self._facts = facts
        self._pinholes = _Numbers()
        self._update_id = 0
        self._table.listeners.append(self._changed)
        connection: dict[str, _Action] = {
            "SetConnectionType": _refuse(731),
            "GetConnectionTypeInfo": lambda _client, _given: ("IP_Routed", "IP_Routed"),
            "RequestConnection": _refuse(606),
            "ForceTermination": _refuse(606),
            "GetStatusInfo": lambda _client, _given: (self._status(), "ERROR_NONE", facts.uptime()),
            "GetNATRSIPStatus": lambda _client, _given: (0, 1),
            "GetGenericPortMappingEntry": self._generic,
            "GetSpecificPortMappingEntry": self._specific,
            "AddPortMapping": self._adder(_CODES_1),
            "DeletePortMapping": self._delete,
            "GetExternalIPAddress": lambda _client, _given: (facts.external(),),
        }
        self._actions: dict[UpnpService, dict[str, _Action]] = {
            CONNECTION_1: connection,
            CONNECTION_2: {
                **connection,
                "AddPortMapping": self._adder(_CODES_2),
                "AddAnyPortMapping": self._add_any,
                "DeletePortMappingRange": self._delete_range,
                "GetListOfPortMappings": self._list,
            },
            INTERFACE: {
                "GetCommonLinkProperties": lambda _client, _given: (
                    "Ethernet",
                    facts.rate(),
                    facts.rate(),
                    self._link(),
                ),
                "GetTotalBytesSent": self._total("tx_bytes"),
                "GetTotalBytesReceived": self._total("rx_bytes"),
                "GetTotalPacketsSent": self._total("tx_packets"),
                "GetTotalPacketsReceived": self._total("rx_packets"),
            },
            FIREWALL: {
                "GetFirewallStatus": lambda _client, _given: (1, 1),
                "GetOutboundPinholeTimeout": self._outbound_timeout,
                "AddPinhole": self._add_pinhole,
                "UpdatePinhole": self._update_pinhole,
                "DeletePinhole": self._delete_pinhole,
                "GetPinholePackets": self._pinhole_packets,
                "CheckPinholeWorking": self._check_pinhole,
            },
        }
        self._forwarding: dict[int, dict[str, _Action]] = {
            version: {
                "SetDefaultConnectionService": _refuse(606),
                "GetDefaultConnectionService": _constant(device.default_connection),
            }
            for version, device in devices.items()
        }
        for service, actions in (
            *self._actions.items(),
            *((FORWARDING, action) for action in self._forwarding.values()),
        ):
            assert actions.keys() == service.actions.keys(), service.type

    def act(self, device: Device, service: UpnpService, action: str, given: Mapping[str, str], client: str) -> _Values:
        """Carry out an action of `client`, the text of an address, and return the values of its outputs. Raises
        ActionError."""
        actions = self._forwarding[device.version] if service is FORWARDING else self._actions[service]
        if action not in actions:
            raise ActionError(401)
        return actions[action](client, given)

    def state(self, device: Device, service: UpnpService) -> dict[str, object]:
        """Return the variables of a service of which subscribers are notified."""
        values: dict[str, object] = {
            "DefaultConnectionService": device.default_connection,
            "PossibleConnectionTypes": "IP_Routed",
            "ConnectionStatus": self._status(),
            "ExternalIPAddress": self._facts.external(),
            # Of all clients together: the number says nothing about whose they are.
            "PortMappingNumberOfEntries": min(65535, sum(":" not in mapping.client for mapping in self._table)),
            "SystemUpdateID": self._update_id,
            "PhysicalLinkStatus": self._link(),
            "FirewallEnabled": 1,
            "InboundPinholeAllowed": 1,
        }
        return {name: values[name] for name in service.evented}

    # --- the connection ---------------------------------------------------------------------------------------------

    def _status(self) -> str:
        return "Connected" if self._facts.external() else "Disconnected"

    def _link(self) -> str:
        return "Up" if self._facts.external() else "Down"

    def _total(self, what: str) -> _Action:
        return lambda _client, _given: (self._facts.total(what) & 0xFFFFFFFF,)

    def _changed(self, event: MappingEvent) -> None:
        if event.what != "renewed":
            self._update_id = self._update_id + 1 & 0xFFFFFFFF

    # --- mappings ---------------------------------------------------------------------------------------------------

    def _adder(self, codes: Mapping[str, int]) -> _Action:
        def add(client: str, given: Mapping[str, str]) -> _Values:
            asked = arguments.mapping(given)
            if not asked.external:
                raise ActionError(716)
            self._add(client, asked, codes, exact=True)
            return ()

        return add

    def _add_any(self, client: str, given: Mapping[str, str]) -> _Values:
        return (self._add(client, arguments.mapping(given), _CODES_2, exact=False).shown.port,)

    def _add(
        self, client: str, asked: arguments.MappingArguments, codes: Mapping[str, int], *, exact: bool
    ) -> PortMapping:
        _check_client(client, asked.client, asked.transport, asked.internal)
        if not asked.enabled:
            raise ActionError(600)
        request = MappingRequest(
            client=client,
            transport=asked.transport,
            port=asked.internal,
            holder="upnp",
            lifetime=asked.seconds,
            suggested_port=asked.external or None,
            exact=exact,
            filters=(f"{asked.remote}/32",) if asked.remote else (),
            description=asked.description,
        )
        try:
            self._make_way(request)
            return self._mapper.map(request)
        except Refusal as refusal:
            raise ActionError(codes.get(refusal.why, 501)) from None

    def _make_way(self, request: MappingRequest) -> None:
        """End the client's own mappings by UPnP that an exact request replaces: that of the same public port with
        another inside port, and that of the same inside port with another public port. UPnP knows a mapping by its
        public port, and a socket has one public port only; whoever asks last is right."""
        if not request.exact or request.suggested_port is None:
            return
        try:
            self._table.check(request)
        except Refusal:
            return  # it will be refused, and ends nothing
        there = self._table.at_public(request.client, request.transport, request.suggested_port)
        same = self._table.find(request.key)
        for mapping in (there, same):
            if mapping is None or (mapping.port, mapping.shown.port) == (request.port, request.suggested_port):
                continue
            if mapping.holds.keys() == {"upnp"}:  # else the mapper refuses
                with contextlib.suppress(Refusal):
                    self._mapper.unmap(mapping.key, "upnp")

    def _entries(self, client: str) -> list[PortMapping]:
        return [mapping for mapping in self._table.of_client(client, "upnp") if ":" not in mapping.client]

    def _entry(self, mapping: PortMapping) -> ListedMapping:
        hold = mapping.holds["upnp"]
        remote = hold.filters[0].partition("/")[0] if hold.filters else ""
        left = mapping.left("upnp", self._facts.now())
        return ListedMapping(
            remote, mapping.shown.port, mapping.transport, mapping.port, mapping.client, hold.description, left
        )

    def _generic(self, client: str, given: Mapping[str, str]) -> _Values:
        index = arguments.number(given, "NewPortMappingIndex", 65535)
        entries = self._entries(client)
        if index >= len(entries):
            raise ActionError(713)
        return self._entry(entries[index]).generic()

    def _own(self, client: str, given: Mapping[str, str]) -> PortMapping:
        remote, external, transport = arguments.key(given)
        found = self._table.at_public(client, transport, external)
        if found is None or "upnp" not in found.holds or self._entry(found).remote not in ("", remote):
            raise ActionError(714)
        return found

    def _specific(self, client: str, given: Mapping[str, str]) -> _Values:
        return self._entry(self._own(client, given)).specific()

    def _delete(self, client: str, given: Mapping[str, str]) -> _Values:
        self._unmap(self._own(client, given))
        return ()

    def _unmap(self, mapping: PortMapping) -> None:
        try:
            self._mapper.unmap(mapping.key, "upnp")
        except Refusal:  # it has ended by itself meanwhile
            raise ActionError(714) from None

    def _in_range(self, client: str, wanted: arguments.PortRange) -> list[PortMapping]:
        found = [
            mapping
            for mapping in self._entries(client)
            if mapping.transport == wanted.transport and wanted.first <= mapping.shown.port <= wanted.last
        ]
        if not found:
            raise ActionError(730)
        return found

    def _delete_range(self, client: str, given: Mapping[str, str]) -> _Values:
        for mapping in self._in_range(client, arguments.ports(given)):
            self._unmap(mapping)
        return ()

    def _list(self, client: str, given: Mapping[str, str]) -> _Values:
        most = arguments.number(given, "NewNumberOfPorts", 65535, 0) or LONGEST_LIST
        found = self._in_range(client, arguments.ports(given))
        return (port_listing(map(self._entry, found[: min(most, LONGEST_LIST)])),)

    # --- pinholes of IPv6 -------------------------------------------------------------------------------------------

    def _outbound_timeout(self, _client: str, given: Mapping[str, str]) -> _Values:
        protocol = arguments.number(given, "Protocol", 65535)
        if protocol not in arguments.PROTOCOLS:
            raise ActionError(705)
        return (self._facts.outbound_timeout(arguments.PROTOCOLS[protocol]),)

    def _add_pinhole(self, client: str, given: Mapping[str, str]) -> _Values:
        asked = arguments.pinhole(given)
        seconds = arguments.lease(given, "LeaseTime")
        _check_client(client, asked.client, asked.transport, asked.port)
        if self._mapper.translates(client):  # it has no address that the world could reach
            raise ActionError(501)
        if asked.remote_port:  # the kernel's table has no place for it, and more than was asked for is not opened
            raise ActionError(501)
        request = MappingRequest(
            client=client,
            transport=asked.transport,
            port=asked.port,
            holder="upnp",
            lifetime=seconds,
            filters=(f"{asked.remote}/128",) if asked.remote else (),
        )
        return (self._pinholes.number(self._map_pinhole(request).key),)

    def _map_pinhole(self, request: MappingRequest) -> PortMapping:
        try:
            return self._mapper.map(request)
        except Refusal as refusal:
            raise ActionError(_PINHOLE_CODES.get(refusal.why, 501)) from None

    def _pinhole(self, client: str, given: Mapping[str, str]) -> PortMapping:
        number = arguments.number(given, "UniqueID", 65535)
        for mapping in self._table.of_client(client, "upnp"):
            if ":" in mapping.client and self._pinholes.number(mapping.key) == number:
                return mapping
        raise ActionError(704)

    def _update_pinhole(self, client: str, given: Mapping[str, str]) -> _Values:
        seconds = arguments.lease(given, "NewLeaseTime")
        found = self._pinhole(client, given)
        key = {"client": found.client, "transport": found.transport, "port": found.port}
        self._map_pinhole(MappingRequest(**key, holder="upnp", lifetime=seconds))  # type: ignore[arg-type]
        return ()

    def _delete_pinhole(self, client: str, given: Mapping[str, str]) -> _Values:
        try:
            self._mapper.unmap(self._pinhole(client, given).key, "upnp")
        except Refusal:
            raise ActionError(704) from None
        return ()

    def _pinhole_packets(self, client: str, given: Mapping[str, str]) -> _Values:
        return (self._facts.packets(self._pinhole(client, given)) & 0xFFFFFFFF,)

    def _check_pinhole(self, client: str, given: Mapping[str, str]) -> _Values:
        if not self._facts.packets(self._pinhole(client, given)):
            raise ActionError(709)
        return (1,)


class _Numbers:
    """Assigns numbers from 1 to 65535 to pinholes. They are the same after a restart, except where two pinholes would
    have the same number."""

    def __init__(self) -> None:
        self._by_key: dict[MappingKey, int] = {}
        self._by_number: dict[int, MappingKey] = {}

    def number(self, key: MappingKey) -> int:
        """Return the number of a pinhole."""
        if key in self._by_key:
            return self._by_key[key]
        if len(self._by_key) >= 32768:  # most of them are long gone
            self._by_key.clear()
            self._by_number.clear()
        digest = hashlib.sha256(repr(key).encode()).digest()
        number = int.from_bytes(digest[:4], "big") % 65535 + 1
        while number in self._by_number:
            number = number % 65535 + 1
        self._by_key[key] = number
        self._by_number[number] = key
        return number


def _check_client(client: str, wanted: str, transport: Transport, port: int) -> None:
    """Raise ActionError if a client asks for another host."""
    if client != wanted:
        log.warning(
            "portmap.refused",
            client=client,
            protocol=transport,
            port=port,
            holder="upnp",
            why="client",
            detail=f"it asks for {wanted}",
        )
        raise ActionError(606)


def _refuse(code: int) -> _Action:
    def refuse(_client: str, _given: Mapping[str, str]) -> _Values:
        raise ActionError(code)

    return refuse


def _constant(*values: object) -> _Action:
    return lambda _client, _given: values
