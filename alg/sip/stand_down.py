"""When the client, or its provider, deals with NAT by itself: then nothing is touched."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from alg.address import Address, Endpoint
from alg.sip.conversations import Conversations
from alg.sip.edits import endpoint_of, same_host
from alg.sip.message import Message, read_uri

_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "0.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::/127",
    )
)


@lru_cache(8192)
def is_public(address: Address) -> bool:
    """Whether an address is not one of those that are behind NAT (RFC 1918, 6598, 4193)."""
    return not any(address in network for network in _PRIVATE)


def reason_to_stand_down(
    message: Message, client: Endpoint, server: str, conversations: Conversations, repaired: tuple[str, ...]
) -> str | None:
    """Why what `client` says to `server` is to be left alone from this message of the client on, or None.

    sip.repaired: the configuration says that the provider repairs it. sip.tls: sips or TLS. sip.outbound: RFC 5626.
    sip.public: the client shows a public address that it found out by itself (STUN, rport).
    """
    if server in repaired:
        return "sip.repaired"
    if message.is_request:
        if message.data[message.uri[0] : message.uri[0] + 5].lower() == b"sips:":
            return "sip.tls"
        if message.vias()[0].transport in ("TLS", "WS", "WSS"):
            return "sip.tls"
    shows_own, shows_public = False, False
    for addr in message.addrs("contact"):
        uri = read_uri(message.text(addr.uri))
        if uri is None:
            continue
        if uri.scheme == "sips" or b"transport=tls" in uri.params:
            return "sip.tls"
        if b"ob" in uri.params or (addr.params[0] < addr.params[1] and message.param(addr.params, b"reg-id")):
            return "sip.outbound"
        place = uri.place
        if same_host(place.host, client.host):
            shows_own = True
        elif (endpoint := endpoint_of(place)) and (is_public(endpoint.ip) or conversations.behind(endpoint)):
            shows_public = True
    # A public one beside its own is another phone's (RFC 3261, 10.2.1).
    return "sip.public" if shows_public and not shows_own else None
