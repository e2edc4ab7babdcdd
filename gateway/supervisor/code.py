"""How a child finds the program and its interpreter after its privileges are gone.

A checkout in a private directory (/root, or one of mktemp) cannot be reached by another user. Then the child gets the
open directories, and reaches them through /proc/self/fd, which asks for no right on the directories above.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.model.errors import AlgateError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("alg", "gateway", "iptables")


@dataclass(frozen=True, slots=True)
class Access:
    """The interpreter to start, its PYTHONPATH, and the descriptors that both need."""

    python: str
    path: str
    fds: tuple[int, ...]


class Code:
    """The program's files as children reach them. `directory` (ours, may be private) is used where links are needed.

    The descriptors stay open until this object is closed, so that a child can be started again.
    """

    def __init__(self, directory: Path) -> None:
        self._links = directory / f"code-{os.getpid()}"  # another version's children may still need theirs
        self._fds: list[int] = []
        self._by_descriptor: Access | None = None

    def access(self, privileges: list[str]) -> Access:
        """Return what a child that is started by the command line `privileges` (setpriv ...) needs. Raises AlgateError
        if there is no way."""
        direct = Access(sys.executable, str(ROOT), ())
        if not privileges or _readable(privileges, direct):
            return direct
        if self._by_descriptor is None:
            self._by_descriptor = self._open()
        if not _readable(privileges, self._by_descriptor):
            user = privileges[1].partition("=")[2]
            raise AlgateError(
                f"the user with uid {user} may not read what is in {ROOT}, or not execute "
                f"{os.path.realpath(sys.executable)}: make both readable for others (chmod -R o+rX), with a Python "
                "outside of a private home, or name another process.user and process.broker_user"
            )
        return self._by_descriptor

    def _open(self) -> Access:
        """Make links into our descriptors, named like the packages, because the checkout's own directory may be private
        too."""
        self.close()
        self._links.mkdir()
        for part in PARTS:
            (self._links / part).symlink_to(f"/proc/self/fd/{self._open_directory(ROOT / part)}")
        prefix = self._open_directory(Path(sys.prefix))
        path = self._open_directory(self._links)
        python = f"/proc/self/fd/{prefix}/bin/{Path(sys.executable).name}"
        return Access(python, f"/proc/self/fd/{path}", tuple(self._fds))

    def _open_directory(self, path: Path) -> int:
        self._fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY))
        return self._fds[-1]

    def close(self) -> None:
        """Remove the links, and close the descriptors."""
        for part in PARTS:
            (self._links / part).unlink(missing_ok=True)
        if self._links.exists():
            self._links.rmdir()
        while self._fds:
            os.close(self._fds.pop())
        self._by_descriptor = None


def _readable(privileges: list[str], access: Access) -> bool:
    """Whether a process with these privileges could read the program. The kernel is asked, by starting such a
    process."""
    paths = [f"{access.path}/{part}/." for part in PARTS] + [f"{access.path}/gateway/__init__.py", access.python]
    prefix = Path(access.python).parent.parent
    paths.append(f"{prefix}/pyvenv.cfg" if Path(sys.prefix, "pyvenv.cfg").exists() else access.python)
    tests = [argument for path in paths for argument in ("-a", "-r", path)][1:]
    command = [*privileges, "/usr/bin/test", *tests, "-a", "-x", access.python]
    return subprocess.run(command, pass_fds=access.fds, check=False).returncode == 0
