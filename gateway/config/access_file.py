"""Parses the access file of the classic sockd (version 4): `permit|deny source mask [destination mask] [op port]`.
Pure.

In the paper that describes it a mask is inverted: its bits say what is *not* compared, so 0.0.0.0 means one host and
255.255.255.255 all. Later versions of sockd turned that round; `masks="netmask"` reads their files. The first line that
matches decides, and a request that no line matches is denied. Only IPv4, CONNECT and BIND exist.

The fields of later versions are read too: `?=I` (ident must confirm the user), `*=ann,bob,/etc/list` (users), `:
command` and lines that begin with `#NO_IDENTD:` or `#BAD_ID:` (shell commands, which are never run).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from gateway.config.schema_rules import RuleSection

Masks = Literal["inverted", "netmask"]

_ALL = 0xFFFFFFFF
_OPERATORS: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "eq": lambda port: [(port, port)],
    "neq": lambda port: [(0, port - 1), (port + 1, 65535)],
    "lt": lambda port: [(0, port - 1)],
    "gt": lambda port: [(port + 1, 65535)],
    "le": lambda port: [(0, port)],
    "ge": lambda port: [(port, 65535)],
}


class AccessError(Exception):
    """A line that cannot be read. The message begins with FILE:LINE."""


class Lookups(NamedTuple):
    """Functions for what the text alone does not say: the IPv4 addresses of a host name, the port of a service, the
    text of a file of user names. Each raises ValueError or OSError if there is no answer."""

    host: Callable[[str], Sequence[str]]
    service: Callable[[str], int]
    file: Callable[[str], str]


class AccessLine(NamedTuple):
    """A line as a rule. `place` is FILE:LINE."""

    rule: RuleSection
    place: str


def parse_access_file(text: str, source: str, masks: Masks, lookups: Lookups) -> list[AccessLine]:
    """Parse an access file, and return its lines in order. `source` names the file. Raises AccessError."""
    lines: list[AccessLine] = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{source}:{number}"
        try:
            rule = _line(line, place, masks, lookups)
        except (ValueError, OSError) as error:
            raise AccessError(f"{place}: {error}") from error
        if rule is not None:
            lines.append(AccessLine(rule, place))
    return lines


def _line(line: str, place: str, masks: Masks, lookups: Lookups) -> RuleSection | None:
    """Parse one line. Returns None for an empty line, a comment, and a line that can match nothing."""
    fields = re.split(r"[:#]", line, maxsplit=1)[0].split()
    if not fields:
        return None
    action = fields.pop(0)
    if action not in ("permit", "deny"):
        raise ValueError(f"{action!r} is neither permit nor deny")
    ident: bool | None = None
    if fields and fields[0].startswith("?="):
        ident = _ident(fields.pop(0)[2:])
    users: tuple[str, ...] = ()
    if fields and fields[0].startswith("*="):
        users = _users(fields.pop(0)[2:], lookups)
    if len(fields) < 2:
        raise ValueError("a source and its mask are missing")
    sources = _prefixes(fields.pop(0), fields.pop(0), masks, lookups)
    targets: list[str] = []
    if fields and fields[0] not in _OPERATORS:
        if len(fields) < 2:
            raise ValueError(f"the mask of the destination {fields[0]!r} is missing")
        targets = _prefixes(fields.pop(0), fields.pop(0), masks, lookups)
    ports: list[int | str] = []
    if fields:
        operator = fields.pop(0)
        if operator not in _OPERATORS:
            raise ValueError(f"{operator!r} is none of {', '.join(_OPERATORS)}")
        if not fields:
            raise ValueError(f"the port behind {operator} is missing")
        port = _port(fields.pop(0), lookups)
        ports = [f"{low}-{high}" for low, high in _OPERATORS[operator](port) if 0 <= low <= high <= 65535]
        if not ports:
            return None
    if fields:
        raise ValueError(f"{fields[0]!r} is one field too many")
    return RuleSection(
        action="permit" if action == "permit" else "deny",
        name=place,
        command=("connect", "bind"),
        from_=tuple(sources),
        to=tuple(target for target in targets if target != "0.0.0.0/0.0.0.0"),
        port=tuple(ports),
        user=users,
        # What a client says of itself proves nothing: a named user has to be confirmed, unless by ?=n. A line that
        # denies does so without asking.
        ident=bool(users) if ident is None else ident and action == "permit",
    )


def _ident(flag: str) -> bool:
    if flag not in ("I", "i", "n", ""):
        raise ValueError(f"'?={flag}' is none of ?=I, ?=i, ?=n")
    return flag in ("I", "i")


def _users(text: str, lookups: Lookups) -> tuple[str, ...]:
    users: list[str] = []
    for word in text.split(","):
        if not word.startswith("/"):
            users.append(word)
            continue
        for line in lookups.file(word).splitlines():
            users += line.partition("#")[0].replace(",", " ").split()
    if not all(users):
        raise ValueError(f"'*={text}' has an empty name in it")
    if not users:
        raise ValueError(f"'*={text}' names nobody")
    return tuple(users)


def _prefixes(host: str, mask_text: str, masks: Masks, lookups: Lookups) -> list[str]:
    """Return ADDRESS/MASK, with the mask as a netmask, for each address of the host."""
    try:
        mask = int(ipaddress.IPv4Address(mask_text))
    except ValueError:
        raise ValueError(f"{mask_text!r} is not a mask (four numbers with dots)") from None
    wrong = _is_netmask(mask) if masks == "inverted" else _is_netmask(mask ^ _ALL)
    if wrong and mask not in (0, _ALL):
        other, meant = ("netmask", "inverted") if masks == "inverted" else ("inverted", "netmask")
        raise ValueError(
            f"the mask {mask_text} looks like the other kind of mask: this file is read with "
            f'socks.access_masks = "{meant}"; is it of the kind "{other}"?'
        )
    if masks == "inverted":
        mask ^= _ALL
    if re.fullmatch(r"[0-9.]+", host, re.ASCII):
        addresses: Sequence[str] = [host]
    else:
        addresses = lookups.host(host)
    found = []
    for text in addresses:
        value = int(ipaddress.IPv4Address(text)) & mask
        found.append(f"{ipaddress.IPv4Address(value)}/{ipaddress.IPv4Address(mask)}")
    if not found:
        raise ValueError(f"{host} has no IPv4 address")
    return found


def _is_netmask(mask: int) -> bool:
    """Whether a mask consists of ones followed by zeros."""
    rest = mask ^ _ALL
    return rest & (rest + 1) == 0


def _port(text: str, lookups: Lookups) -> int:
    port = int(text) if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) else lookups.service(text)
    if not 0 <= port <= 65535:
        raise ValueError(f"{text!r} is not a port")
    return port
