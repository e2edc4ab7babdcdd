"""The tables of the configuration for access and routes: `[[rule]]`, `[[upstream]]`, `[dns]`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.model.requests import CommandName, LogLevel


class RuleSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which client may reach which server. The first rule that matches decides; an omitted selector matches everything
    (docs/rules.md). A limit of 0 is no limit."""

    action: Annotated[Literal["permit", "deny"], Meta(description="What the rule decides.", examples=["permit"])]
    name: Annotated[str, Meta(description="Name of the rule in the log. Default: its number.", examples=["web"])] = ""
    command: Annotated[
        tuple[CommandName, ...],
        Meta(
            description="Kinds of requests: SOCKS CONNECT, BIND, UDP ASSOCIATE and RESOLVE, redirected connections, "
            "transfers between two FTP servers (fxp), "
            "public ports that a client asks for (map; `port` is its inside port).",
            examples=[["connect", "transparent"]],
        ),
    ] = ()
    from_: Annotated[
        tuple[str, ...],
        Meta(description="Addresses and networks of clients.", examples=[["192.168.56.0/24"]]),
    ] = msgspec.field(default=(), name="from")
    to: Annotated[
        tuple[str, ...],
        Meta(description="Addresses, networks and names of servers.", examples=[["*.example.com", "203.0.113.0/24"]]),
    ] = ()
    port: Annotated[
        tuple[int | str, ...], Meta(description="Ports of servers, and ranges of them.", examples=[[443, "8000-8999"]])
    ] = ()
    user: Annotated[tuple[str, ...], Meta(description="Authenticated users.", examples=[["ann"]])] = ()
    group: Annotated[
        tuple[str, ...], Meta(description="Groups of authenticated users (from the users file).", examples=[["staff"]])
    ] = ()
    time: Annotated[
        str | tuple[str, ...],
        Meta(description="When the rule applies, in local time: days, hours, or both.", examples=["Mo-Fr 08:00-18:00"]),
    ] = ()
    any_peer: Annotated[
        bool,
        Meta(description="Permit BIND requests that name no peer (address 0): connections of any host are accepted."),
    ] = False
    ident: Annotated[
        bool, Meta(description="Match only if the user is known. If the client has not authenticated, ident is asked.")
    ] = False
    max_sessions: Annotated[int, Meta(description="Number of sessions of this rule at a time.")] = 0
    max_sessions_per_client: Annotated[int, Meta(description="Number of sessions of one client at a time.")] = 0
    max_session_rate: Annotated[float, Meta(description="New sessions a second, on average.")] = 0.0
    bandwidth: Annotated[int, Meta(description="Bytes a second, for each flow and each direction.")] = 0
    bandwidth_per_rule: Annotated[
        int, Meta(description="Bytes a second in each direction, for all flows of the rule together.")
    ] = 0
    bandwidth_per_client: Annotated[
        int, Meta(description="Bytes a second in each direction, for all flows of a client together.")
    ] = 0
    bandwidth_per_user: Annotated[
        int, Meta(description="Bytes a second in each direction, for all flows of a user together.")
    ] = 0
    quota_per_rule: Annotated[
        int, Meta(description="Bytes in a period, both directions together, for all flows of the rule.")
    ] = 0
    quota_per_client: Annotated[
        int, Meta(description="Bytes in a period, both directions together, for all flows of a client.")
    ] = 0
    quota_per_user: Annotated[
        int, Meta(description="Bytes in a period, both directions together, for all flows of a user.")
    ] = 0
    quota_period: Annotated[
        float,
        Meta(
            description="Length of a quota's period, in seconds. With the default it is a day that begins at "
            "midnight UTC.",
            examples=[3600.0],
        ),
    ] = 86400.0
    log: Annotated[
        LogLevel,
        Meta(description='Level of a log line for each decision of this rule. "": no line.', examples=["info"]),
    ] = ""
    via: Annotated[
        str | tuple[str, ...],
        Meta(
            description="The upstream proxy that the connection goes through. Of several, the next one is used when "
            "one fails.",
            examples=[["office"]],
        ),
    ] = ()
    chain: Annotated[
        tuple[str, ...],
        Meta(
            description="Upstream proxies that the connection goes through, one after the other.", examples=[["office"]]
        ),
    ] = ()


class UpstreamSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An upstream proxy that flows can go through, by `via` or `chain` of a rule (docs/how-to/upstreams.md)."""

    name: Annotated[str, Meta(description="Name of the upstream, as rules refer to it.", examples=["office"])]
    kind: Annotated[
        Literal["socks4a", "socks5", "http"],
        Meta(description='Protocol of the upstream. "http": HTTP CONNECT.', examples=["socks5"]),
    ]
    address: Annotated[
        str, Meta(description="Address of the upstream, as HOST:PORT.", examples=["proxy.example.com:1080"])
    ]
    user: Annotated[str, Meta(description="User name for the upstream.", examples=["ann"])] = ""
    password_file: Annotated[
        str,
        Meta(
            description="File with the password for the upstream, in one line.",
            examples=["/etc/algate/office.password"],
        ),
    ] = ""
    resolve: Annotated[
        Literal["local", "remote"],
        Meta(
            description='"local": names are resolved here, and each address is checked by the rules; "remote": the '
            "upstream resolves names."
        ),
    ] = "local"
    tls: Annotated[bool, Meta(description="Whether the connection to the upstream is inside TLS.")] = False
    ca: Annotated[
        str,
        Meta(
            description='File with the authorities of the upstream\'s certificate (PEM). "": those of the system.',
            examples=["/etc/algate/office-ca.pem"],
        ),
    ] = ""
    certificate: Annotated[
        str,
        Meta(
            description="File with our certificate for the upstream and its private key (PEM).",
            examples=["/etc/algate/office.pem"],
        ),
    ] = ""
    server_name: Annotated[
        str,
        Meta(
            description='Name or address that the upstream\'s certificate must have. "": the host of `address`.',
            examples=["proxy.example.com"],
        ),
    ] = ""


class DnsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name servers used to resolve host names."""

    servers: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses of name servers. []: those of /etc/resolv.conf.",
            examples=[["192.0.2.53", "192.0.2.54:5353"]],
        ),
    ] = ()
    timeout: Annotated[float, Meta(description="Seconds for resolving a name, all servers and attempts together.")] = (
        5.0
    )
    cache_size: Annotated[
        int,
        Meta(description="Number of answers that are remembered, each as long as its TTL says (5 seconds to an hour)."),
    ] = 4096


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What was read from other files together with the configuration, because children may be unable to read them.

    `places`: where each key stands, as "FILE:LINE" by its path. `access`: the lines of the access file as rules, and
    `access_places` where each stands, as "FILE:LINE". `passwords`, `authorities` and `certificates` (with their keys)
    of upstreams, by name.
    """

    places: dict[str, str] = {}
    access: tuple[RuleSection, ...] = ()
    access_places: tuple[str, ...] = ()
    passwords: dict[str, str] = {}
    authorities: dict[str, str] = {}
    certificates: dict[str, str] = {}
