"""`algate passwd`: adds a user to the users file, or changes a password."""

from __future__ import annotations

import grp
import os
import sys
import tempfile
from pathlib import Path

import click

from gateway.cli.options import unread_config_option
from gateway.model.errors import AlgateError
from gateway.policy.users import HASHER, BadUsers, check_name, parse_users, with_user

MAX_PASSWORD = 255  # bytes (RFC 1929)
SERVICE_GROUP = "algate"


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("user")
@unread_config_option
def passwd(file: Path, user: str) -> None:
    """Add a user, or change a password.

    Adds USER to the users file FILE if it is not there yet. Asks for the password twice; if the input is not a
    terminal, reads it as one line. The user's groups stay. A running gateway uses the new file within seconds.

    \b
    Examples:
      algate passwd /etc/algate/users ann
      pwgen 20 1 | algate passwd /etc/algate/users robot
    """
    try:
        check_name(user)
    except ValueError as error:
        raise AlgateError(str(error)) from None
    password = _read_password()
    if not 1 <= len(password.encode()) <= MAX_PASSWORD:
        raise AlgateError(f"a password has 1 to {MAX_PASSWORD} bytes")
    try:
        text = file.read_text() if file.exists() else ""
        parse_users(text)
        _replace(file, with_user(text, user, HASHER.hash(password)))
    except BadUsers as error:
        raise AlgateError(f"{file}: {error}") from None
    except OSError as error:
        raise AlgateError(f"{file}: {error.strerror}") from None


def _read_password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


def _service_group() -> int | None:
    """The group of the service (systemd/algate.sysusers), whose supervisor has to read the file; None if the group does
    not exist on this host."""
    try:
        return grp.getgrnam(SERVICE_GROUP).gr_gid
    except KeyError:
        return None


def _replace(file: Path, text: str) -> None:
    """Replace the file atomically, so that a reader sees the old one or the new one. Owner and mode stay. A new file is
    readable by this user only, and by the service's group if there is one."""
    file = file.resolve()
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as new:
            new.write(text)
            if file.exists():
                before = file.stat()
                os.fchmod(new.fileno(), before.st_mode & 0o777)
                if os.geteuid() == 0:
                    os.fchown(new.fileno(), before.st_uid, before.st_gid)
            elif os.geteuid() == 0 and (group := _service_group()) is not None:
                os.fchown(new.fileno(), 0, group)
                os.fchmod(new.fileno(), 0o640)
            new.flush()
            os.fsync(new.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
