"""Finds out what `algate run` would refuse on this host although the configuration is valid: missing files, unknown
accounts."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from gateway.config.places import line_of, path_in
from gateway.config.schema import Config, parse_endpoint
from gateway.host.privilege import is_privileged
from gateway.model.errors import ConfigError
from gateway.supervisor.listeners import is_in_use, is_there, places
from gateway.supervisor.shared_files import SharedFiles


def refusals(config: Config) -> Iterator[str]:
    """Return each reason why `algate run` would not start on this host, as "KEY: what is wrong".

    What this user may not look at is left out; `unseen` has it.
    """
    wrong = _wrong_with_files(config)
    if wrong and not _is_for_others(wrong):
        yield wrong
    if is_privileged():
        yield from _accounts(config)
    run_dir = Path(config.process.run_dir)
    there = next((path for path in (run_dir, *run_dir.parents) if os.path.lexists(path)), run_dir)
    if not there.is_dir():
        yield f"process.run_dir: {run_dir} cannot be used: {there} is no directory"


def unseen(config: Config) -> Iterator[str]:
    """Return what this user may not look at, so that it was not checked, as "KEY: what it is"."""
    wrong = _wrong_with_files(config)
    if wrong and _is_for_others(wrong):
        yield f"{wrong}; root, or the user of the service, can check it"


def surprises(config: Config) -> Iterator[str]:
    """Return what this host does not have now but may have later, as "KEY: what is missing"."""
    names = (path.name for path in Path("/proc/sys/net/ipv4/conf").glob("*"))
    there = sorted(name for name in names if name not in ("all", "default"))
    for i, name in enumerate(config.network.inside_interfaces):
        if not any(
            interface == name or (name.endswith("+") and interface.startswith(name[:-1])) for interface in there
        ):
            has = ", ".join(interface for interface in there if interface != "lo") or "none but lo"
            yield f"network.inside_interfaces[{i}]: this host has no interface {name} now (it has {has})"
    if config.log.target == "syslog" and config.log.syslog.startswith("/") and not os.path.exists(config.log.syslog):
        yield f"log.syslog: {config.log.syslog} is not there now: lines are lost until it is"


def listening(config: Config) -> Iterator[str]:
    """Return where `algate run` could not listen now, as "KEY: what is wrong". Call it while this gateway does not
    run."""
    wanted = [(place.endpoint, key) for place, key in places(config).items()]
    if config.console.listen:
        wanted.append((parse_endpoint(config.console.listen), "console.listen"))
    for endpoint, key in wanted:
        if not is_there(endpoint):
            yield f"{key}: this host does not have the address {endpoint.host} now"
        elif is_in_use(endpoint):
            yield f"{key}: another program listens on port {endpoint.port} of {endpoint.host} now"


def placed(config: Config, message: str, source: str) -> str:
    """Return the message with FILE:LINE of its key before it; `source` if that is not known."""
    return f"{line_of(config.loaded.places, path_in(message)) or source}: {message}"


def _wrong_with_files(config: Config) -> str:
    """Return the first reason why the users file, the keytab or a certificate cannot be used; "" if all can."""
    try:
        SharedFiles(config).close()
    except ConfigError as error:
        return str(error)
    return ""


def _is_for_others(wrong: str) -> bool:
    return "Permission denied" in wrong and os.geteuid() != 0


def _accounts(config: Config) -> Iterator[str]:
    for key, name in (("process.user", config.process.user), ("process.broker_user", config.process.broker_user)):
        try:
            pwd.getpwnam(name)
        except KeyError:
            yield f"{key}: there is no user {name!r} on this host"
