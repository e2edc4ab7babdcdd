"""The tables of the configuration that say who may reach what, and by which way."""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.model import CommandName

LogLevel = Literal["", "debug", "info", "warning", "error"]


class RuleSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One [[rule]]. A selector that is empty matches all; a limit that is 0 is none."""

    action: Literal["permit", "deny"]
    name: str = ""
    command: tuple[CommandName, ...] = ()
    from_: tuple[str, ...] = msgspec.field(default=(), name="from")
    to: tuple[str, ...] = ()
    port: tuple[int | str, ...] = ()
    user: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    time: str | tuple[str, ...] = ()
    any_peer: bool = False
    ident: bool = False
    max_sessions: int = 0
    max_sessions_per_client: int = 0
    max_session_rate: float = 0.0
    bandwidth: int = 0
    log: LogLevel = ""
    via: str | tuple[str, ...] = ()
    chain: tuple[str, ...] = ()


class UpstreamSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One [[upstream]]: another proxy that flows can go through."""

    name: str
    kind: Literal["socks4a", "socks5", "http"]
    address: str
    user: str = ""
    password_file: str = ""
    resolve: Literal["local", "remote"] = "local"


class DnsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[dns]: whom to ask for names. Without `servers` those of /etc/resolv.conf."""

    servers: tuple[str, ...] = ()
    timeout: float = 5.0
    cache_size: int = 4096


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What was read from other files along with the configuration, as children may be unable to read them.

    `rule_lines`: the lines on which the [[rule]] tables begin. `access`: the lines of the access file as rules, and
    `access_places` where each stands, as "FILE:LINE". `passwords` of upstreams, by name.
    """

    rule_lines: tuple[int, ...] = ()
    access: tuple[RuleSection, ...] = ()
    access_places: tuple[str, ...] = ()
    passwords: dict[str, str] = {}
