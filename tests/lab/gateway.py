"""One running `algate run` in the lab's router."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gateway.cli.control import reload as reload_command
from gateway.cli.live import live
from gateway.cli.rules import apply_command, remove_command
from gateway.model.errors import AlgateError, ConfigError

if TYPE_CHECKING:
    from tests.lab.lab import Lab, Role


class Gateway:
    """A gateway with its configuration file and its log, on the router or in the namespace of another `role`; made by
    `Lab.start_gateway`."""

    def __init__(self, lab: Lab, config: Path, role: Role = "router") -> None:
        self.lab = lab
        self.role = role
        self.config = config
        self.log = lab.logs / f"{config.stem}.log"
        self.command = Path(sys.executable).parent / "algate"
        self._process: subprocess.Popen[bytes] | None = None
        self._rules = False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor."""
        assert self._process is not None, "the gateway was not started"
        return self._process

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped, be it alive or not."""
        return self._process is not None

    def start(self, deadline: float = 60, rules: bool = True) -> None:
        """Apply the rules (unless not `rules`), start it, wait until "ready" is on the log."""
        from tests.lab.lab import LabError

        if rules:
            self.rules("apply")
            self._rules = True
        seen = len(self.log_lines())
        process = self._process = self.lab.popen(self.role, [self.command, "run", "-c", self.config], log=self.log)
        self.lab.gateways.append(self)

        def ready() -> bool:
            if process.poll() is not None:
                raise LabError(f"algate run ended with {process.returncode}:\n" + "\n".join(self.log_lines()[seen:]))
            return any(re.search(r"(?<!not )(?<!was )\bready\b", line) for line in self.log_lines()[seen:])

        try:
            self.lab.wait_for(ready, deadline, "algate to be ready")
        except LabError as error:
            self.stop()
            raise LabError(f"{error}; its log:\n" + "\n".join(self.log_lines()[seen:])) from None

    def stop(self, deadline: float = 20) -> int:
        """SIGTERM, and SIGKILL after `deadline` seconds; then remove the rules. The exit code."""
        code = self.lab.stop(self.process, deadline)
        self._process = None
        self.lab.gateways.remove(self)
        if self._rules:
            self.rules("remove")
            self._rules = False
        return code

    def kill(self) -> None:
        """SIGKILL to every process of it; `start` may follow, with the rules still in place."""
        for pid in (*self.pids(), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(5)
        self.lab.gateways.remove(self)

    def pids(self) -> list[int]:
        """The processes below the supervisor, not the supervisor itself."""
        found: list[int] = []
        todo = [self.process.pid]
        while todo:
            children = Path(f"/proc/{todo[0]}/task/{todo[0]}/children").read_text().split()
            todo = [*todo[1:], *map(int, children)]
            found += map(int, children)
        return found

    def algate(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`algate ARGUMENTS -c CONFIG` where it runs."""
        return self.lab.run(self.role, [self.command, *arguments, "-c", self.config], timeout=90, check=check)

    def rules(self, verb: Literal["apply", "remove"]) -> None:
        """What `algate rules VERB` does, by this process: hundreds of gateways are started, and the command itself has
        tests of its own."""
        from tests.lab.lab import LabError

        callback: Any = (apply_command if verb == "apply" else remove_command).callback
        with self.lab.enter(self.role):
            try:
                callback(str(self.config), *((False,) if verb == "apply" else ()))
            except ConfigError:  # it may be about a module that only the gateway's processes find
                self.algate("rules", verb)
            except AlgateError as error:
                raise LabError(f"algate rules {verb}: {error}") from None

    def reload(self) -> None:
        """What `algate reload` does, by this process, as `rules`."""
        from tests.lab.lab import LabError

        callback: Any = reload_command.callback
        with self.lab.enter(self.role):
            try:
                callback(str(self.config), False, False)
            except AlgateError as error:
                raise LabError(f"algate reload: {error}") from None

    def admin(self, what: str) -> list[dict[str, Any]]:
        """The rows of `algate WHAT`, as "pinholes" or "flows", with moments in Unix time; the most usual ones without a
        process for each question."""
        from tests.lab.lab import LabError

        if what in ("calls", "flows", "pinholes", "status", "trace"):
            try:
                return live(str(self.config), what)
            except ConfigError:  # as above
                pass
            except AlgateError as error:
                raise LabError(f"algate {what}: {error}") from None
        objects: list[dict[str, Any]] = json.loads(self.algate(what, "--json").stdout)
        return objects

    def log_lines(self) -> list[str]:
        """What all its processes have logged up to now."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def wait_for_log(self, pattern: str, deadline: float = 5, after: int = 0) -> str:
        """The first line (from number `after` on) in which the regular expression is found, now or soon."""

        def search() -> str | None:
            return next((line for line in self.log_lines()[after:] if re.search(pattern, line)), None)

        line = self.lab.wait_for(search, deadline, f"{pattern!r} on the log:\n" + "\n".join(self.log_lines()[-30:]))
        assert line is not None
        return line
