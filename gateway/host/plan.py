"""The input and the output of the trial of openings (gateway.host.trial), which runs in a process of its own."""

from __future__ import annotations

import msgspec

from alg.address import Endpoint


class Link(msgspec.Struct, frozen=True):
    """An interface. `addresses`: as "192.0.2.1/24"; `via`: the neighbour of a default route."""

    name: str
    addresses: tuple[str, ...]
    via: tuple[str, ...] = ()


class Foreign(msgspec.Struct, frozen=True):
    """Lines that a base chain of another firewall needs (gateway.host.foreign_chains)."""

    chain: str
    lines: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """The input of the trial.

    `others`: further interfaces that rules may name. `clients`, `peers`: hosts inside and outside. `tables`: nft text
    of the host's tables; `iptables`: input for iptables-restore and ip6tables-restore, by program; `own`: the same for
    the gateway's rules. `foreign`: the lines that chains of others may need. `user`: that of the gateway's processes.
    `legacy`: rules of iptables-legacy beside another iptables, by program; `legacy_lines`: commands that they may need.
    The other fields are as configured.
    """

    inside: Link
    outside: Link
    others: tuple[str, ...]
    clients: tuple[str, ...]
    peers: tuple[str, ...]
    tables: tuple[str, ...]
    iptables: dict[str, str]
    own: dict[str, str]
    foreign: tuple[Foreign, ...]
    instance: str
    pinholes: tuple[int, int]
    transparent: int | None = None
    modules: tuple[int, ...] = ()
    socks: tuple[Endpoint, ...] = ()
    published: tuple[Endpoint, ...] = ()
    user: int = 0
    legacy: dict[str, str] = {}
    legacy_lines: tuple[str, ...] = ()


class Tried(msgspec.Struct, frozen=True):
    """The result for one packet: what it stands for, whether it arrived, what stopped it first, and the lines that let
    it through. `remedy`: what to do, where it is no line of nft."""

    what: str
    passed: bool
    stopped_by: str = ""
    lines: tuple[str, ...] = ()
    remedy: str = ""
