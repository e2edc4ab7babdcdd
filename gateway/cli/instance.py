"""Finds the running instance of a configuration, and asks its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.config.schema import DEFAULT_RUN_DIR, Config
from gateway.model.errors import AlgateError
from gateway.observe.admin import Rows, ask

TIMEOUT = 3.0  # seconds for a process to answer


def run_dir_of(config: Config) -> Path:
    """Return the run directory of the configuration. Raises AlgateError if no gateway runs there."""
    run_dir = Path(config.process.run_dir)
    if _has_socket(run_dir):
        return run_dir
    service = Path(DEFAULT_RUN_DIR)
    if run_dir != service and os.geteuid() != 0 and _has_socket(service):
        raise AlgateError(f"no gateway of yours is running; the one of this host is in {service}, for root: use sudo")
    raise AlgateError(f"no gateway is running (there is no socket in {run_dir})")


def may_run(config: Config) -> bool:
    """Whether a gateway of this configuration runs, or may run: what is not for this user to look into is not known."""
    try:
        return _has_socket(Path(config.process.run_dir))
    except AlgateError:
        return True


def _has_socket(run_dir: Path) -> bool:
    """Whether a gateway runs in this run directory, as far as this user can see. Raises AlgateError if the user may not
    look into the directory."""
    try:
        return (run_dir / "supervisor.sock").exists()
    except PermissionError:
        raise AlgateError(f"{run_dir} cannot be read by this user: use sudo") from None


def ask_at(path: Path, verb: str, id: str = "") -> Rows:
    """Ask the process that serves a socket, and return its answer. Raises AlgateError if it does not answer."""
    try:
        return ask(str(path), verb, TIMEOUT, id)
    except OSError as error:
        hint = ": use sudo" if isinstance(error, PermissionError) else ""
        raise AlgateError(f"{path}: no answer ({error}){hint}") from error


def tell_supervisor(config: Config, verb: str) -> None:
    """Send a request to the supervisor, if a gateway runs and this user may ask it."""
    with suppress(OSError):
        ask(str(Path(config.process.run_dir) / "supervisor.sock"), verb, TIMEOUT)


@contextmanager
def changing_rules(config: Config) -> Iterator[None]:
    """Within this the iptables rules may be changed: the supervisor puts nothing back, and keeps afterwards what is
    there then."""
    tell_supervisor(config, "change_rules")
    try:
        yield
    finally:
        tell_supervisor(config, "keep_rules")
