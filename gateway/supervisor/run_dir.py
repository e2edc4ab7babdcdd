"""The run directory: the lock that keeps a second instance out, and the sockets that the command line uses."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from gateway.model.errors import AlgateError
from gateway.supervisor.heritage import Heritage
from gateway.supervisor.name_lock import NameLock


class RunDir:
    """Holds `run_dir` for this instance, and the name `instance` in this network namespace ("": no name). Raises
    AlgateError if the directory cannot be made, or another instance holds one of them.

    `heritage`: the instance itself held it before, in another process; `claim` makes it ours.
    """

    def __init__(self, path: str, heritage: Heritage | None = None, instance: str = "") -> None:
        self.path = Path(path)
        self.made = not self.path.exists()
        self._sockets: list[Path] = []
        self._files: list[Path] = []
        self.name: NameLock | None = None
        if heritage is not None:
            self.made, self.lock = heritage.made, heritage.lock
            self.name = NameLock(instance, heritage.name) if instance else None
            return
        try:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            owner = self.path.stat().st_uid
            if owner != os.geteuid():
                holder = _holder(self.path / "lock")
                if holder:
                    raise AlgateError(f"process.run_dir: another algate (pid {holder}) already runs in {path}")
                raise AlgateError(f"process.run_dir: {path} belongs to another user (uid {owner})")
            self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AlgateError(f"process.run_dir: {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(self.lock, 20).decode(errors="replace").strip()
            os.close(self.lock)
            raise AlgateError(f"process.run_dir: another algate (pid {pid}) already runs in {path}") from error
        try:
            self.name = NameLock(instance) if instance else None
        except AlgateError:
            self.remove()
            raise
        self.claim()
        for stale in self.path.glob("*.sock"):  # of an instance that was killed: we hold its lock now
            stale.unlink()
        for links in self.path.glob("code-*"):
            shutil.rmtree(links, ignore_errors=True)

    def claim(self) -> None:
        """Write into the lock which process holds it."""
        said = f"{os.getpid()}\n".encode()
        os.pwrite(self.lock, said, 0)  # in this order it is never empty
        os.truncate(self.lock, len(said))
        if self.name is not None:
            self.name.claim()

    def adopt(self, name: str, fd: int) -> socket.socket:
        """Take over a socket that the previous process has made by `listen`."""
        self._sockets.append(self.path / f"{name}.sock")
        return socket.socket(fileno=fd)

    def adopt_file(self, name: str) -> None:
        """Take over a file that the previous process has written."""
        self._files.append(self.path / name)

    def listen(self, name: str) -> socket.socket:
        """Make a listening stream socket `NAME.sock`, for this user only."""
        path = self.path / f"{name}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(16)
        except OSError as error:
            listener.close()
            raise AlgateError(f"process.run_dir: cannot listen on {path}: {error.strerror or error}") from error
        self._sockets.append(path)
        return listener

    def socket_of(self, name: str) -> Path:
        """Return the path of a socket. Raises FileNotFoundError if `listen` has not made it."""
        path = self.path / f"{name}.sock"
        if path not in self._sockets:
            raise FileNotFoundError(errno.ENOENT, f"there is no process {name!r}")
        return path

    def write(self, name: str, content: str) -> Path:
        """Write a file for this user only, which is removed with the instance."""
        path = self.path / name
        try:
            path.unlink(missing_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(content)
        except OSError as error:
            raise AlgateError(f"process.run_dir: cannot write {path}: {error.strerror}") from error
        self._files.append(path)
        return path

    def keep(self, name: str) -> int:
        """Open a file for this user only, which outlives an instance that is killed and is removed with one that ends.
        What a predecessor has written is in it. Returns a descriptor."""
        path = self.path / name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AlgateError(f"process.run_dir: cannot write {path}: {error.strerror}") from error
        self._files.append(path)
        return fd

    def forget(self, name: str) -> None:
        """Remove the socket of this name."""
        path = self.path / f"{name}.sock"
        path.unlink(missing_ok=True)
        self._sockets.remove(path)

    def remove_dead(self, pid: int) -> None:
        """Remove what a version that was killed, `pid`, has left: sockets that no process serves, and links to its
        code."""
        shutil.rmtree(self.path / f"code-{pid}", ignore_errors=True)
        for path in set(self.path.glob("*.sock")) - set(self._sockets):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.setblocking(False)
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink(missing_ok=True)
                except OSError:
                    pass  # a busy process serves it

    def remove_sockets(self, names: Iterable[str]) -> None:
        """Remove the sockets of these names, also those that another version has made."""
        for name in names:
            (self.path / f"{name}.sock").unlink(missing_ok=True)

    def leave(self, names: Iterable[str]) -> None:
        """Remove the sockets of these names. All else belongs to another process now."""
        self.remove_sockets(names)
        self._let_go()

    def _let_go(self) -> None:
        os.close(self.lock)
        if self.name is not None:
            self.name.close()

    def remove(self) -> None:
        """Remove what was made here, and the directory if it did not exist before."""
        for path in (*self._sockets, *self._files, self.path / "lock"):
            path.unlink(missing_ok=True)
        self._let_go()
        if self.made:
            try:
                self.path.rmdir()
            except OSError:
                pass  # another program keeps files in it


def _holder(lock: Path) -> int:
    """Return the process id of the instance that holds a lock; 0 if none does, or this user may not see it."""
    try:
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read(20).strip() or 0)
    except (OSError, ValueError):
        pass
    return 0
