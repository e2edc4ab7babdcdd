"""Network namespaces of tests: made, entered, and removed with all that runs in them.

Their names say which process has made them, so that what a killed test left can be found.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_PREFIX = "algate-"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(AssertionError):
    """A namespace could not be made, changed or removed; the message holds what ip(8) said."""


def new_prefix() -> str:
    """Return what the names of a few namespaces that belong together begin with."""
    return f"{_PREFIX}{os.getpid()}-{secrets.token_hex(2)}-"


@contextlib.contextmanager
def within(namespace: str) -> Iterator[None]:
    """Sockets that this thread makes within belong to the network namespace of this name, for good."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def run_ip(commands: Sequence[str], namespace: str | None = None) -> None:
    """Run commands of ip(8), in a namespace. Raises NamespaceError."""
    argv = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespaceError(f"{' '.join(argv)}: {done.stderr}\n" + "\n".join(commands))


def add(*names: str) -> None:
    """Make network namespaces whose loopback interface is up. Raises NamespaceError."""
    run_ip([f"netns add {name}" for name in names])
    for name in names:
        run_ip(["link set lo up"], name)


def remove(*names: str) -> None:
    """End whatever runs in these namespaces, and remove them. Raises NamespaceError."""
    for pid in pids(*names):
        # Whatever lives in a namespace that we made was started by us.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while left := pids(*names):
        if time.monotonic() > end:
            raise NamespaceError(f"processes in {names} do not end: {left}")
        time.sleep(0.01)
    for name in names:
        run_ip([f"netns delete {name}"])
        shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def remove_stale() -> list[str]:
    """Remove the namespaces of processes that are dead (killed, so that they could not clean up); their names."""
    made = {name: re.match(rf"{_PREFIX}([0-9]+)-", name) for name in named(_PREFIX)}  # others are not ours
    stale = [name for name, by in made.items() if by and not Path("/proc", by[1]).exists()]
    remove(*stale)
    return stale


def named(prefix: str) -> list[str]:
    """Return the network namespaces whose names begin so."""
    here = Path("/run/netns")
    return sorted(path.name for path in here.iterdir() if path.name.startswith(prefix)) if here.exists() else []


def pids(*namespaces: str) -> list[int]:
    """The processes in these network namespaces, as `ip netns pids` finds them.

    It is asked after every test, and so starts no process.
    """
    wanted = set()
    for name in namespaces:
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(f"/run/netns/{name}")
            wanted.add((there.st_dev, there.st_ino))
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            there = os.stat(f"/proc/{pid}/ns/net")
            if (there.st_dev, there.st_ino) in wanted:
                found.append(int(pid))
    return found


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
