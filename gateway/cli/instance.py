"""The instance of a configuration that runs: where its processes are asked."""

from __future__ import annotations

from pathlib import Path

from gateway.config.schema import Config
from gateway.model.errors import AlgateError
from gateway.observe.admin import Rows, ask

TIMEOUT = 3.0  # seconds for a process to answer


def run_dir_of(config: Config) -> Path:
    """The run directory. AlgateError if no gateway runs there."""
    run_dir = Path(config.process.run_dir)
    if not (run_dir / "supervisor.sock").exists():
        raise AlgateError(f"no gateway is running (there is no socket in {run_dir})")
    return run_dir


def ask_at(path: Path, verb: str, id: str = "") -> Rows:
    """What the process that serves a socket answers. AlgateError if it does not."""
    try:
        return ask(str(path), verb, TIMEOUT, id)
    except OSError as error:
        raise AlgateError(f"{path}: no answer ({error})") from error
