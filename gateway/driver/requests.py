"""Translates a module's commands into requests for pinholes, and checks where they may lead."""

from __future__ import annotations

from collections.abc import Mapping

from alg.address import Endpoint
from alg.api import (
    OpenConversation,
    OpenExchange,
    OpenGre,
    OpenMapping,
    OpenMeeting,
    OpenOutbound,
    OpenPinhole,
    OpenRelay,
    PinholeKind,
    Side,
)
from gateway.flow.table import Flow
from gateway.model.requests import Along, PinholeRequest
from gateway.net.addresses import PublicAddress

Opening = OpenPinhole | OpenOutbound | OpenMeeting
Public = Mapping[Side, PublicAddress]


Conversing = OpenConversation | OpenMapping | OpenExchange | OpenGre


def kind_of(command: Opening | OpenRelay | Conversing) -> PinholeKind:
    """Return the kind of pinholes of which a module asks for one. A meeting and a relay are single connections."""
    match command:
        case OpenPinhole():
            return "read" if command.read else "anybody" if command.peer is None else "once"
        case OpenConversation():
            return "conversation"
        case OpenMapping():
            return "mapping"
        case OpenExchange():
            return "exchange"
        case OpenGre():
            return "gre"
    return "once"


def is_forbidden(command: Opening | OpenRelay | Conversing, flow: Flow, public: Public) -> bool:
    """Whether a command must not be carried out, because a module's mistake must not become a hole: a pinhole leads to
    the flow's own client, or to its server if that is published (a relay: to both), and to no other host."""
    match command:
        case OpenPinhole():
            own = [flow.client.host, *([flow.server.host] if Side.CLIENT in public else [])]
            return command.target.host not in own or (command.read and Side.CLIENT in public)
        case OpenRelay(client, server):
            return client.host != flow.client.host or server.host != flow.server.host
        case OpenExchange(client=client):
            return Side.CLIENT not in public or client.host != flow.client.host
        case OpenConversation() | OpenMapping():
            return command.target.host != flow.client.host
        case OpenGre():
            return Side.CLIENT in public
    return False


def public_of(target: Endpoint, flow: Flow, public: Public) -> PublicAddress:
    """Return the address at which the side opposite to `target` finds it."""
    return public[Side.SERVER if target.host == flow.client.host else Side.CLIENT]


def advertised(command: Opening, port: int, flow: Flow, public: Public) -> Endpoint:
    """Return what a module is told about the pinhole that was opened at `port`."""
    match command:
        case OpenPinhole(target=target):
            return Endpoint(public_of(target, flow, public).advertised, port)
        case OpenMeeting():
            return Endpoint(public[Side.SERVER].advertised, port)
        case OpenOutbound(target=target):
            return target


def request_of(command: Opening, flow: Flow, public: Public) -> PinholeRequest:
    """Return the request to a backend."""
    peer = public_host = None
    along: Along | None = public[Side.SERVER].along
    transport, target = "tcp", flow.client
    match command:
        case OpenPinhole():
            transport, target, peer = command.transport, command.target, command.peer
            place = public_of(target, flow, public)
            public_host, along = place.local, place.along
        case OpenOutbound():
            transport, target = command.transport, command.target
        case OpenMeeting():
            peer, public_host = flow.server.host, public[Side.SERVER].local
    return PinholeRequest(
        flow=flow.id,
        reason=command.reason,
        client=flow.client.host,
        direction="out" if isinstance(command, OpenOutbound) else "in",
        transport="udp" if transport == "udp" else "tcp",
        target=target,
        peer=peer,
        public_host=public_host,
        ttl=command.ttl,
        kind="anybody" if isinstance(command, OpenPinhole) and peer is None else "once",
        along=along,
    )
