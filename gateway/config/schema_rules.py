"""The tables of the configuration that say who may reach what, and by which way."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.model.requests import CommandName, LogLevel


class RuleSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may reach what: the first rule that matches decides, and an omitted selector matches all (docs/rules.md).

    A limit that is 0 is none.
    """

    action: Annotated[Literal["permit", "deny"], Meta(description="What it decides.", examples=["permit"])]
    name: Annotated[
        str, Meta(description="Its name in logs; without one it is called by its number.", examples=["web"])
    ] = ""
    command: Annotated[
        tuple[CommandName, ...],
        Meta(
            description="Requests of SOCKS, redirected connections, transfers between FTP servers (fxp).",
            examples=[["connect", "transparent"]],
        ),
    ] = ()
    from_: Annotated[
        tuple[str, ...],
        Meta(description="Addresses and prefixes of the client.", examples=[["192.168.56.0/24"]]),
    ] = msgspec.field(default=(), name="from")
    to: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses, prefixes and names of the server.", examples=[["*.example.com", "203.0.113.0/24"]]
        ),
    ] = ()
    port: Annotated[
        tuple[int | str, ...], Meta(description="Ports and ranges of the server.", examples=[[443, "8000-8999"]])
    ] = ()
    user: Annotated[tuple[str, ...], Meta(description="Names that clients have proved.", examples=[["ann"]])] = ()
    group: Annotated[tuple[str, ...], Meta(description="Groups of such users.", examples=[["staff"]])] = ()
    time: Annotated[
        str | tuple[str, ...],
        Meta(description="Local time: days, a span of hours, or both.", examples=["Mo-Fr 08:00-18:00"]),
    ] = ()
    any_peer: Annotated[bool, Meta(description="A BIND may expect anybody.")] = False
    ident: Annotated[bool, Meta(description="The user must be known; ident is asked if need be.")] = False
    max_sessions: Annotated[int, Meta(description="Connections at a time, in all.")] = 0
    max_sessions_per_client: Annotated[int, Meta(description="Connections at a time of one client.")] = 0
    max_session_rate: Annotated[float, Meta(description="New connections a second, on average.")] = 0.0
    bandwidth: Annotated[int, Meta(description="Bytes a second of each flow, in each direction.")] = 0
    bandwidth_per_rule: Annotated[int, Meta(description="The same of all flows of the rule together.")] = 0
    bandwidth_per_client: Annotated[int, Meta(description="The same of all flows of a client together.")] = 0
    bandwidth_per_user: Annotated[int, Meta(description="The same of all flows of a user together.")] = 0
    quota_per_rule: Annotated[
        int, Meta(description="Bytes of all flows of the rule in a period, both directions together.")
    ] = 0
    quota_per_client: Annotated[int, Meta(description="The same of all flows of a client.")] = 0
    quota_per_user: Annotated[int, Meta(description="The same of all flows of a user.")] = 0
    quota_period: Annotated[
        float, Meta(description="Seconds of a quota's period; a day begins at midnight UTC.", examples=[3600.0])
    ] = 86400.0
    log: Annotated[
        LogLevel, Meta(description="A log line, of this level, on each decision of the rule.", examples=["info"])
    ] = ""
    via: Annotated[
        str | tuple[str, ...],
        Meta(description="An upstream to go through; of several the next one when one fails.", examples=[["office"]]),
    ] = ()
    chain: Annotated[
        tuple[str, ...],
        Meta(description="Upstreams to go through, each behind the one before.", examples=[["office"]]),
    ] = ()


class UpstreamSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another proxy that flows can go through, by `via` or `chain` of a rule (docs/how-to/upstreams.md)."""

    name: Annotated[str, Meta(description="What rules call it.", examples=["office"])]
    kind: Annotated[
        Literal["socks4a", "socks5", "http"], Meta(description="What it speaks; HTTP by CONNECT.", examples=["socks5"])
    ]
    address: Annotated[str, Meta(description="Where it is, as HOST:PORT.", examples=["proxy.example.com:1080"])]
    user: Annotated[str, Meta(description="Who we are there.", examples=["ann"])] = ""
    password_file: Annotated[
        str,
        Meta(description="A file with the password in one line.", examples=["/etc/algate/office.password"]),
    ] = ""
    resolve: Annotated[Literal["local", "remote"], Meta(description='"remote": it is told names, not addresses.')] = (
        "local"
    )


class DnsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whom to ask for names."""

    servers: Annotated[
        tuple[str, ...],
        Meta(description="Name servers; []: those of /etc/resolv.conf.", examples=[["192.0.2.53", "192.0.2.54:5353"]]),
    ] = ()
    timeout: Annotated[float, Meta(description="Seconds for a name, all servers and attempts together.")] = 5.0
    cache_size: Annotated[
        int,
        Meta(description="How many names are remembered, each as long as its TTL says (5 seconds to an hour)."),
    ] = 4096


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What was read from other files along with the configuration, as children may be unable to read them.

    `places`: where each key stands, as "FILE:LINE" by its path. `access`: the lines of the access file as rules, and
    `access_places` where each stands, as "FILE:LINE". `passwords` of upstreams, by name.
    """

    places: dict[str, str] = {}
    access: tuple[RuleSection, ...] = ()
    access_places: tuple[str, ...] = ()
    passwords: dict[str, str] = {}
