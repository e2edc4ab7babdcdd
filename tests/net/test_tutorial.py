"""docs/tutorial.md, typed as it stands: in the lab's router and client, with an /etc of the test's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.lab import Lab

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r'```(\w+) title="([^"]+)"\n(.*?)```', re.DOTALL)


class Router:
    """Where the router's commands run: with /etc and /run of their own, and a systemctl that knows one service."""

    def __init__(self, lab: Lab, pid: int) -> None:
        self._lab = lab
        self._enter: list[str | Path] = ["nsenter", "-m", "-r", "-t", str(pid)]
        self._environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self._service: subprocess.Popen[bytes] | None = None

    def run(self, command: str) -> tuple[int, str]:
        command = command.removeprefix("sudo ")
        if command.startswith("systemctl"):
            return self._systemctl(command.split()[1]), ""
        return typed(self._lab, "router", [*self._enter, "sh", "-c", command], self._environment)

    def _systemctl(self, verb: str) -> int:
        """What the unit does: its rules come with it and go with it."""
        if verb == "restart":
            assert self.run("algate check")[0] == 0
            log = self._lab.logs / "tutorial.log"
            argv: list[str | Path] = [*self._enter, "algate", "run"]
            service = self._service = self._lab.popen("router", argv, log=log, env=self._environment)
            self._lab.wait_for(lambda: "event=ready" in log.read_text() or service.poll(), 15, "it to be ready")
            return self.run("algate rules apply")[0]
        assert verb == "stop"
        assert self._service is not None
        code = self._lab.stop(self._service, 20)
        return code or self.run("algate rules remove")[0]

    def write(self, path: str, text: str, mode: str) -> None:
        argv = [*self._enter, "sh", "-c", f"mkdir -p $(dirname {path}); cat {mode} {path}"]
        subprocess.run(argv, input=text, text=True, check=True)


def typed(lab: Lab, role: str, argv: list[str | Path], env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and what the terminal shows."""
    done = subprocess.run(
        ["ip", "netns", "exec", lab.ns(role), *argv],  # type: ignore[arg-type]
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def mount_namespace(lab: Lab) -> Iterator[int]:
    """The pid of a process with /etc/algate and /run/algate of its own."""
    etc = lab.tmp / "etc"
    for name in ("upper", "work"):
        (etc / name).mkdir(parents=True)
    script = (
        f"mount -t overlay overlay -o lowerdir=/etc,upperdir={etc}/upper,workdir={etc}/work /etc 2>&1 || exit 3; "
        "mount -t tmpfs tmpfs /run; echo there; exec sleep infinity"
    )
    argv = ["ip", "netns", "exec", lab.ns("router"), "unshare", "-m", "sh", "-c", script]  # with the router's /sys
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        try:
            said = keeper.stdout.readline()
            if said != "there\n":
                pytest.skip(f"no overlay can be mounted here: {said}")
            yield keeper.pid
        finally:
            keeper.kill()


@pytest.mark.slow
def test_the_tutorial(lab: Lab) -> None:
    lab.vsftpd()
    with mount_namespace(lab) as pid:
        router = Router(lab, pid)
        commands = 0
        for kind, title, text in BLOCK.findall(TUTORIAL.read_text()):
            if kind == "toml":
                router.write(title.split()[-1], text, ">>" if title.startswith("append") else ">")
                continue
            for lines in re.findall(r"(?m)^\$ (.*)\n((?:[^$\n].*\n)*)", text):
                command, expected = lines
                code, said = router.run(command) if title == "router" else typed(lab, "inside", ["sh", "-c", command])
                fails = expected.startswith("curl: (")
                assert (code != 0) == fails, f"{title}$ {command}\n{said}"
                assert expected.strip() in said, f"{title}$ {command}\n{said}"
                commands += 1
        assert commands >= 12
