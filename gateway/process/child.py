"""One child process: started without privileges (but for what it needs), and its lifeline."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import AlgateError
from gateway.process.boot import Boot

CODE_ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A process that the supervisor keeps alive.

    `boot(lifeline_fd)` makes what it is started with; `user` is whom it runs as when the supervisor is root,
    `capability` what it keeps (a name as setpriv knows it), or None.
    """

    def __init__(self, name: str, module: str, user: str, capability: str | None, boot: Callable[[int], Boot]) -> None:
        self.name = name
        self.ready = False
        self.restarts = 0
        self._module = module
        self._boot = boot
        self._privileges = _privileges(user, capability)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.lifeline: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    def start(self) -> None:
        """Start the process; its lifeline is readable when it is ready and at its end."""
        ours, theirs = socket.socketpair()
        boot = self._boot(theirs.fileno())
        memfd = boot.to_memfd()
        inherited = [memfd, boot.lifeline, boot.admin, *boot.workers, *boot.socks, *boot.transparent]
        if boot.broker is not None:
            inherited.append(boot.broker)
        try:
            with _reachable_code(self._privileges) as (python, environment, code_fds):
                self._process = subprocess.Popen(
                    [*self._privileges, python, "-P", "-m", self._module, str(memfd)],
                    pass_fds=[*inherited, *code_fds],
                    env=environment,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # a ^C at the terminal is for the supervisor alone
                )
        finally:
            os.close(memfd)
            theirs.close()
        ours.setblocking(False)
        self.lifeline = ours
        self.ready = False
        self._started = time.monotonic()

    def read_lifeline(self) -> bool:
        """Take what the lifeline has to say. True: the child is alive (and `ready` is up to date); False: it ended."""
        assert self.lifeline is not None
        try:
            data = self.lifeline.recv(64)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            data = b""
        self.ready = self.ready or b"ready" in data
        return bool(data)

    def reap(self, timeout: float = 5.0) -> int | None:
        """After the lifeline's end: wait for the process (seconds), kill it if it lingers, and return its exit code."""
        if self.lifeline is not None:
            self.lifeline.close()
            self.lifeline = None
        if self._process is None:
            return None
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        self.ready = False
        return code

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)


def _privileges(user: str, capability: str | None) -> list[str]:
    """The setpriv(1) command line that gives up root, or nothing if we are not root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise AlgateError("setpriv is not installed (package util-linux): cannot give up root")
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise AlgateError(f"process: there is no user {user!r} on this host") from error
    caps = f"-all,+{capability}" if capability else "-all"
    return [
        setpriv,
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--clear-groups",
        "--no-new-privs",
        f"--inh-caps={caps}",
        f"--ambient-caps={caps}",
        f"--bounding-set={caps}",
    ]


@contextmanager
def _reachable_code(privileges: list[str]) -> Iterator[tuple[str, dict[str, str], list[int]]]:
    """Interpreter, environment and descriptors with which a child finds this code after its privileges are gone.

    A checkout below a private directory (/root, a mktemp directory) cannot be reached by another user. Then the child
    gets the directories themselves, open, and reaches them through /proc/self/fd, which asks only for the rights of
    the directory and what is below it.
    """
    environment = {**os.environ, "PYTHONPATH": str(CODE_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    code = [CODE_ROOT / "gateway" / "__init__.py", Path(sys.executable), Path(sys.prefix) / "pyvenv.cfg"]
    if not privileges or _readable(privileges, code):
        yield sys.executable, environment, []
        return
    root_fd = os.open(CODE_ROOT, os.O_PATH | os.O_DIRECTORY)
    prefix_fd = os.open(sys.prefix, os.O_PATH | os.O_DIRECTORY)
    try:
        prefix = f"/proc/self/fd/{prefix_fd}"
        python = f"{prefix}/bin/{Path(sys.executable).name}"
        fds = [root_fd, prefix_fd]
        through_fds = [Path(f"/proc/self/fd/{root_fd}/gateway/__init__.py"), Path(python)]
        if not _readable(privileges, through_fds, fds):
            user = privileges[1].partition("=")[2]
            raise AlgateError(
                f"the user with uid {user} may not read {CODE_ROOT} or {os.path.realpath(sys.executable)}: "
                "make both readable for others (chmod -R o+rX), with a Python that lies outside a private home, "
                "or name another process.user and process.broker_user"
            )
        environment["PYTHONPATH"] = f"/proc/self/fd/{root_fd}"
        yield python, environment, fds
    finally:
        os.close(root_fd)
        os.close(prefix_fd)


def _readable(privileges: list[str], paths: list[Path], fds: list[int] | None = None) -> bool:
    """Whether a process with these privileges could read all of `paths`; asked of the kernel, by such a process."""
    tests = [argument for path in paths for argument in ("-a", "-r", str(path))][1:]
    return subprocess.run([*privileges, "/usr/bin/test", *tests], pass_fds=fds or [], check=False).returncode == 0
