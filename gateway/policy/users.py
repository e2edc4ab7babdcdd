"""Reads the users file: `name:argon2id-hash` or `name:argon2id-hash:group1,group2`, one user in each line. Pure.

The hash `*` means that there is no password: such a user can authenticate by GSSAPI or ident only, and the line gives
the groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import argon2
import msgspec

NO_PASSWORD = "*"
MAX_NAME = 255  # bytes, as RFC 1929 has it
# The second choice of RFC 9106 takes 64 MiB a check; a router has little memory and a guesser is slowed down otherwise
# too. These are OWASP's: 19 MiB, two passes, one lane.
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
_LARGEST_MEMORY = 262_144  # KiB; a hash that needs more would let one check stop the worker
_LONGEST_TIME = 16
_NAME = re.compile(r"[^\x00-\x20:,\x7f]+")


class BadUsers(ValueError):
    """The users file cannot be used. The message begins with the number of the line."""


class User(msgspec.Struct, frozen=True):
    """A user. `hash` is in argon2's own form, or "*". It is in no repr."""

    name: str
    hash: str
    groups: tuple[str, ...] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name), ("groups", self.groups)]

    def __repr__(self) -> str:
        return f"User(name={self.name!r}, groups={self.groups!r})"


Users = Mapping[str, User]


def parse_users(text: str) -> dict[str, User]:
    """Parse a users file, and return the users by name. Empty lines and those that begin with `#` are skipped. Raises
    BadUsers."""
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            user = _parse_line(line.strip())
        except ValueError as error:
            raise BadUsers(f"line {number}: {error}") from None
        if user.name in users:
            raise BadUsers(f"line {number}: {user.name} was there already")
        users[user.name] = user
    return users


def check_name(name: str) -> None:
    """Raise ValueError if this cannot be the name of a user."""
    if not _NAME.fullmatch(name) or name.startswith("#") or len(name.encode()) > MAX_NAME:
        raise ValueError(f"{name!r} is not a user name (no blank, colon or comma, at most {MAX_NAME} bytes)")


def with_user(text: str, name: str, hashed: str) -> str:
    """Return the file's text with this user's hash. Groups, comments and order stay."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        fields = line.strip().split(":")
        if len(fields) > 1 and fields[0] == name:
            lines[i] = ":".join([name, hashed, *fields[2:]])
            break
    else:
        lines.append(f"{name}:{hashed}")
    return "\n".join(lines) + "\n"


def _parse_line(line: str) -> User:
    name, *rest = line.split(":")
    if len(rest) not in (1, 2):
        raise ValueError("is not NAME:HASH or NAME:HASH:GROUP,GROUP")
    check_name(name)
    _check_hash(rest[0])
    groups = tuple(group for group in rest[1].split(",") if group) if len(rest) == 2 else ()
    for group in groups:
        if not _NAME.fullmatch(group):
            raise ValueError(f"{group!r} is not the name of a group")
    return User(name, rest[0], groups)


def _check_hash(text: str) -> None:
    if text == NO_PASSWORD:
        return
    try:
        parameters = argon2.extract_parameters(text)
    except argon2.exceptions.InvalidHashError:
        raise ValueError("the second field is not an argon2id hash (algate passwd makes one)") from None
    if parameters.type is not argon2.Type.ID:
        raise ValueError("the hash is not argon2id")
    if parameters.memory_cost > _LARGEST_MEMORY or parameters.time_cost > _LONGEST_TIME:
        raise ValueError("the hash takes more memory or time than the gateway is willing to spend on a check")
