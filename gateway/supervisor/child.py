"""One child process: started without privileges (except for those that it needs), and its lifeline."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from gateway.host.privilege import is_privileged
from gateway.model.errors import AlgateError
from gateway.process import lifeline
from gateway.process.boot import Boot
from gateway.supervisor.code import Code

HURRY = 10  # by which a process that starts is less nice than others


class Child:
    """A process that the supervisor keeps alive.

    `boot(lifeline_fd)` makes what it is started with; `user` is the user that it runs as when the supervisor is root;
    `capability` is the one that it keeps (a name of setpriv), or None. `code` is how it reaches the program. `ended` is
    called whenever its process has ended.
    """

    def __init__(
        self,
        name: str,
        module: str,
        user: str,
        capability: str | None,
        code: Code,
        boot: Callable[[int], Boot],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.ready = False
        self.restarts = 0
        self.unanswered = 0  # pings since it was heard last
        self.answered_after = 0.0  # seconds from the last ping, or from the first of several, until it said something
        self._asked: float | None = None  # when (monotonic) that was
        self._module = module
        self._code = code
        self._boot = boot
        self._ended = ended
        self._privileges = _privileges(user, capability)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.lifeline: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self._started

    def start(self) -> None:
        """Start the process. Its lifeline is readable when it is ready and at its end."""
        ours, theirs = lifeline.pair()
        boot = self._boot(theirs.fileno())
        memfd = boot.to_memfd()
        try:
            access = self._code.access(self._privileges)
            self._process = subprocess.Popen(
                [*self._privileges, access.python, "-P", "-m", self._module, str(memfd)],
                pass_fds=[memfd, *boot.descriptors(), *access.fds],
                env={**os.environ, "PYTHONPATH": _path(access.path), "PYTHONDONTWRITEBYTECODE": "1"},
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
        self.unanswered = 0
        self._asked = None
        self._started = time.monotonic()
        self._prefer(HURRY)

    def tell(self, message: lifeline.ToChild, fds: Sequence[int] = ()) -> None:
        """Send a message. A process that does not run needs none: it learns everything when it is started."""
        if self.lifeline is not None:
            try:
                lifeline.send(self.lifeline, message, fds)
            except OSError:
                pass  # it has just ended

    def ping(self) -> None:
        """Ask whether it lives."""
        self.unanswered += 1
        if self._asked is None:
            self._asked = time.monotonic()
        self.tell(lifeline.Ping())

    def prepare(self) -> None:
        """Tell it to prepare for the configuration with which it would be started now."""
        if self.lifeline is not None:
            boot = self._boot(self.lifeline.fileno())
            memfd = boot.to_memfd()
            self.tell(lifeline.Prepare(), [memfd, *boot.descriptors()])
            os.close(memfd)

    def hear(self) -> lifeline.FromChild | None:
        """Receive a message; None: the process has ended. Raises BlockingIOError if there is none. Afterwards `ready`
        is up to date."""
        assert self.lifeline is not None
        message = lifeline.hear_child(self.lifeline)
        if isinstance(message, lifeline.Ready):
            self.ready = True
            self._prefer(0)
        self.unanswered = 0
        if self._asked is not None:
            self.answered_after, self._asked = time.monotonic() - self._asked, None
        return message

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
        self._ended()
        return code

    def _prefer(self, more: int) -> None:
        """Let it run before others, at a niceness that much below ours: clients that wait for a worker's successor wait
        for its start."""
        if self._process is not None:
            try:
                os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) - more)
            except OSError:
                pass  # not root, or it has ended

    def abandon(self) -> None:
        """End the lifeline, as the supervisor's death would."""
        if self.lifeline is not None:
            self.lifeline.shutdown(socket.SHUT_RDWR)

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)


def _path(own: str) -> str:
    """Return the PYTHONPATH of a child: the directory of our code, and the PYTHONPATH of this process."""
    return os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH", ""))))


def _privileges(user: str, capability: str | None) -> list[str]:
    """Return the setpriv(1) command line that gives up our privileges; empty if we have none."""
    if not is_privileged():
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
