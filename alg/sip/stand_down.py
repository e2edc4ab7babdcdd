"""Decides when the client, or its provider, handles NAT by itself. Then nothing is touched."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from alg.address import Address, Endpoint
from alg.sip.edits import endpoint_of, same_host
from alg.sip.message import Message
from alg.sip.sockets import InsideSockets

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
    """Whether an address is not of a range that is used behind NAT (RFC 1918, 6598, 4193)."""
    return not any(address in network for network in _PRIVATE)


WHOLLY = ("sip.repaired", "sip.tls")  # the other reasons concern signalling: media are repaired all the same


def reason_to_stand_down(
    message: Message, client: Endpoint, server: str, sockets: InsideSockets, repaired: tuple[str, ...]
) -> str | None:
    """Return why messages between `client` and `server` are to be left alone from this message of the client on, or
    None.

    sip.repaired: the configuration says that the provider handles it. sip.tls: sips or TLS. sip.public: the client
    shows a public address that it found out by itself (STUN, rport). Raises Malformed if Contact cannot be read.
    """
    if server in repaired:
        return "sip.repaired"
    if message.is_request:
        if message.data[message.uri[0] : message.uri[0] + 5].lower() == b"sips:":
            return "sip.tls"
        if message.via().transport in ("TLS", "WS", "WSS"):
            return "sip.tls"
    shows_own, shows_public = False, False
    for _, uri in message.own_contacts():
        if uri.scheme == "sips" or b"transport=tls" in uri.params:
            return "sip.tls"
        if same_host(uri.place.host, client.host):
            shows_own = True
        elif endpoint := endpoint_of(uri.place):
            behind = sockets.behind(endpoint)
            if behind is not None and behind[0].is_of(client):
                shows_own = True  # it has learned what we have made of it
            elif behind is not None or is_public(endpoint.ip):
                shows_public = True
    # A public one beside its own is another phone's (RFC 3261, 10.2.1).
    return "sip.public" if shows_public and not shows_own else None
