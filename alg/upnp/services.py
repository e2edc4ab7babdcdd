"""The services of a gateway: their actions with arguments, their state variables, and their descriptions (SCPD).

WANIPConnection:1 and :2, WANCommonInterfaceConfig:1, Layer3Forwarding:1, WANIPv6FirewallControl:1. Optional actions
about modems and dialling are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from alg.upnp.elements import escape


@dataclass(frozen=True, slots=True)
class Variable:
    """A state variable: its `type` as in UDA 1.1 (2.5), its allowed values, and whether subscribers are notified of
    changes."""

    name: str
    type: str
    evented: bool = False
    allowed: tuple[str, ...] = ()
    least: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of an action, and the state variable that says what it is."""

    name: str
    variable: str


@dataclass(frozen=True, slots=True)
class Action:
    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]


@dataclass(frozen=True, eq=False)
class UpnpService:
    """A service: `name` as in its type, `id` as in its serviceId."""

    name: str
    version: int
    id: str
    actions: dict[str, Action]
    variables: dict[str, Variable]

    @property
    def type(self) -> str:
        """The URN of its type."""
        return f"urn:schemas-upnp-org:service:{self.name}:{self.version}"

    def goes_by(self, type: str) -> bool:
        """Whether this is a type of the service: its own, or that of an earlier version (UDA 1.1, section 2)."""
        return any(type == f"urn:schemas-upnp-org:service:{self.name}:{n}" for n in range(1, self.version + 1))

    @property
    def evented(self) -> tuple[str, ...]:
        """Return the variables of whose changes subscribers are notified."""
        return tuple(variable.name for variable in self.variables.values() if variable.evented)


def _service(name: str, version: int, id: str, actions: str, variables: str) -> UpnpService:
    """Make a service of texts.

    Variables, one a line: name, type, "!" if it is evented, and what it may be ("A|B" or "1..9"). Actions, one a line:
    name, then "<" before what goes in and ">" before what comes out, each `NAME:VARIABLE`, or NAME where the variable
    is the name without "New".
    """
    read: dict[str, Variable] = {}
    for words in filter(None, map(str.split, variables.splitlines())):
        evented = "!" in words
        rest = [word for word in words[2:] if word != "!"]
        bounds = [int(bound) for word in rest if ".." in word for bound in word.split("..")]
        allowed = tuple(choice for word in rest if ".." not in word for choice in word.split("|"))
        least, most = bounds or (0, 0)
        read[words[0]] = Variable(words[0], words[1], evented, allowed, least, most)
    made: dict[str, Action] = {}
    for title, *words in filter(None, map(str.split, actions.splitlines())):
        sides: dict[str, list[Argument]] = {"<": [], ">": []}
        side = "<"
        for word in words:
            if word in sides:
                side = word
                continue
            argument, _, variable = word.partition(":")
            variable = variable or argument.removeprefix("New")
            assert variable in read, f"{title}: {word}"
            sides[side].append(Argument(argument, variable))
        made[title] = Action(title, tuple(sides["<"]), tuple(sides[">"]))
    return UpnpService(name, version, id, made, read)


_ENTRY = (
    "NewInternalPort NewInternalClient NewEnabled:PortMappingEnabled NewPortMappingDescription "
    "NewLeaseDuration:PortMappingLeaseDuration"
)
_KEY = "NewRemoteHost NewExternalPort NewProtocol:PortMappingProtocol"
_RANGE = "NewStartPort:ExternalPort NewEndPort:ExternalPort NewProtocol:PortMappingProtocol NewManage:A_ARG_TYPE_Manage"
_CONNECTION_ACTIONS = f"""
SetConnectionType < NewConnectionType
GetConnectionTypeInfo > NewConnectionType NewPossibleConnectionTypes
RequestConnection
ForceTermination
GetStatusInfo > NewConnectionStatus NewLastConnectionError NewUptime
GetNATRSIPStatus > NewRSIPAvailable NewNATEnabled
GetGenericPortMappingEntry < NewPortMappingIndex:PortMappingNumberOfEntries > {_KEY} {_ENTRY}
GetSpecificPortMappingEntry < {_KEY} > {_ENTRY}
AddPortMapping < {_KEY} {_ENTRY}
DeletePortMapping < {_KEY}
GetExternalIPAddress > NewExternalIPAddress
"""
_CONNECTION_VARIABLES = """
ConnectionType string
PossibleConnectionTypes string ! Unconfigured|IP_Routed|IP_Bridged
ConnectionStatus string ! Unconfigured|Connecting|Connected|PendingDisconnect|Disconnecting|Disconnected
Uptime ui4
LastConnectionError string ERROR_NONE|ERROR_NO_CARRIER|ERROR_UNKNOWN
RSIPAvailable boolean
NATEnabled boolean
ExternalIPAddress string !
PortMappingNumberOfEntries ui2 !
PortMappingEnabled boolean
PortMappingLeaseDuration ui4 0..604800
RemoteHost string
ExternalPort ui2
InternalPort ui2 1..65535
PortMappingProtocol string TCP|UDP
InternalClient string
PortMappingDescription string
"""
CONNECTION_1 = _service("WANIPConnection", 1, "WANIPConn1", _CONNECTION_ACTIONS, _CONNECTION_VARIABLES)
CONNECTION_2 = _service(
    "WANIPConnection",
    2,
    "WANIPConn1",
    f"""{_CONNECTION_ACTIONS}
AddAnyPortMapping < {_KEY} {_ENTRY} > NewReservedPort:ExternalPort
DeletePortMappingRange < {_RANGE}
GetListOfPortMappings < {_RANGE} NewNumberOfPorts:PortMappingNumberOfEntries > NewPortListing:A_ARG_TYPE_PortListing
""",
    f"""{_CONNECTION_VARIABLES}
SystemUpdateID ui4 !
A_ARG_TYPE_Manage boolean
A_ARG_TYPE_PortListing string
""",
)
_RATES = "NewLayer1UpstreamMaxBitRate NewLayer1DownstreamMaxBitRate"
INTERFACE = _service(
    "WANCommonInterfaceConfig",
    1,
    "WANCommonIFC1",
    f"""
GetCommonLinkProperties > NewWANAccessType {_RATES} NewPhysicalLinkStatus
GetTotalBytesSent > NewTotalBytesSent
GetTotalBytesReceived > NewTotalBytesReceived
GetTotalPacketsSent > NewTotalPacketsSent
GetTotalPacketsReceived > NewTotalPacketsReceived
""",
    """
WANAccessType string DSL|POTS|Cable|Ethernet
Layer1UpstreamMaxBitRate ui4
Layer1DownstreamMaxBitRate ui4
PhysicalLinkStatus string ! Up|Down|Initializing|Unavailable
TotalBytesSent ui4
TotalBytesReceived ui4
TotalPacketsSent ui4
TotalPacketsReceived ui4
""",
)
FORWARDING = _service(
    "Layer3Forwarding",
    1,
    "L3Forwarding1",
    """
SetDefaultConnectionService < NewDefaultConnectionService
GetDefaultConnectionService > NewDefaultConnectionService
""",
    "DefaultConnectionService string !",
)
_PINHOLE = "RemoteHost:A_ARG_TYPE_IPv6Address RemotePort:A_ARG_TYPE_Port InternalClient:A_ARG_TYPE_IPv6Address"
_INSIDE = "InternalPort:A_ARG_TYPE_Port Protocol:A_ARG_TYPE_Protocol"
FIREWALL = _service(
    "WANIPv6FirewallControl",
    1,
    "WANIPv6Firewall1",
    f"""
GetFirewallStatus > FirewallEnabled InboundPinholeAllowed
GetOutboundPinholeTimeout < {_PINHOLE} {_INSIDE} > OutboundPinholeTimeout:A_ARG_TYPE_OutboundPinholeTimeout
AddPinhole < {_PINHOLE} {_INSIDE} LeaseTime:A_ARG_TYPE_LeaseTime > UniqueID:A_ARG_TYPE_UniqueID
UpdatePinhole < UniqueID:A_ARG_TYPE_UniqueID NewLeaseTime:A_ARG_TYPE_LeaseTime
DeletePinhole < UniqueID:A_ARG_TYPE_UniqueID
GetPinholePackets < UniqueID:A_ARG_TYPE_UniqueID > PinholePackets:A_ARG_TYPE_PinholePackets
CheckPinholeWorking < UniqueID:A_ARG_TYPE_UniqueID > IsWorking:A_ARG_TYPE_Boolean
""",
    """
FirewallEnabled boolean !
InboundPinholeAllowed boolean !
A_ARG_TYPE_OutboundPinholeTimeout ui4
A_ARG_TYPE_IPv6Address string
A_ARG_TYPE_Port ui2
A_ARG_TYPE_Protocol ui2
A_ARG_TYPE_LeaseTime ui4 1..86400
A_ARG_TYPE_UniqueID ui2
A_ARG_TYPE_PinholePackets ui4
A_ARG_TYPE_Boolean boolean
""",
)


@cache
def describe(service: UpnpService) -> bytes:
    """Return the description of a service (SCPD; UDA 1.1, section 2.5)."""
    parts = ['<?xml version="1.0"?>\n<scpd xmlns="urn:schemas-upnp-org:service-1-0">']
    parts.append("<specVersion><major>1</major><minor>0</minor></specVersion>\n<actionList>")
    for action in service.actions.values():
        parts.append(f"<action><name>{action.name}</name>")
        arguments = [(argument, "in") for argument in action.inputs] + [(each, "out") for each in action.outputs]
        if arguments:
            parts.append("<argumentList>")
            parts += [
                f"<argument><name>{argument.name}</name><direction>{way}</direction>"
                f"<relatedStateVariable>{argument.variable}</relatedStateVariable></argument>"
                for argument, way in arguments
            ]
            parts.append("</argumentList>")
        parts.append("</action>\n")
    parts.append("</actionList>\n<serviceStateTable>")
    for variable in service.variables.values():
        parts.append(
            f'<stateVariable sendEvents="{"yes" if variable.evented else "no"}"><name>{variable.name}</name>'
            f"<dataType>{variable.type}</dataType>"
        )
        if variable.allowed:
            allowed = "".join(f"<allowedValue>{escape(value)}</allowedValue>" for value in variable.allowed)
            parts.append(f"<allowedValueList>{allowed}</allowedValueList>")
        if variable.most:
            parts.append(
                f"<allowedValueRange><minimum>{variable.least}</minimum><maximum>{variable.most}</maximum>"
                "</allowedValueRange>"
            )
        parts.append("</stateVariable>\n")
    parts.append("</serviceStateTable>\n</scpd>\n")
    return "".join(parts).encode()
