"""What a process of the gateway that was taken over may do to the others, and to the machine: nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import Lab
from tests.net.console_http import LISTEN

# What a process does to another one of the same user, given its pid. Each prints "name: taken" where it succeeds.
ATTACKS = r"""
import ctypes, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, action):
    try:
        action()
    except OSError as error:
        print(f"{name}: {error.strerror}")
    else:
        print(f"{name}: taken")
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
attempt("memory", lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)))
attempt("descriptors", lambda: os.listdir(f"/proc/{pid}/fd"))
attempt("descriptor", lambda: os.close(os.open(f"/proc/{pid}/fd/0", os.O_RDONLY)))
attempt("environment", lambda: os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY)))
attempt("maps", lambda: open(f"/proc/{pid}/maps").read())
pidfd = os.pidfd_open(pid)
for fd in range(3):
    attempt(f"pidfd_getfd {fd}", lambda: os.close(checked(libc.syscall(438, pidfd, fd, 0))))
attempt("ptrace", lambda: checked(libc.ptrace(16, pid, 0, 0)))  # PTRACE_ATTACH
"""


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[Gateway]:
    gateway = lab.start_gateway(lab.write_config(console={"listen": LISTEN}, portmap={"protocols": ["pcp", "natpmp"]}))
    yield gateway
    assert gateway.stop() == 0


def pid_of(gateway: Gateway, name: str) -> int:
    (row,) = [row for row in gateway.admin("status") if row["process"] == name]
    return int(row["pid"])


def user_of(pid: int) -> tuple[int, int]:
    """Its user and its group."""
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return int(fields["Uid"].split()[0]), int(fields["Gid"].split()[0])


def as_user(uid: int, gid: int, *argv: str) -> str:
    """What a program says that runs as this user."""
    setpriv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return subprocess.run([*setpriv, "/usr/bin/python3", *argv], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["worker-0", "worker-1", "broker", "packets", "portmap", "console", "supervisor"])
def test_the_user_of_a_process_cannot_take_it_over(gateway: Gateway, name: str) -> None:
    """Neither by its memory nor by its descriptors, with which it could speak to the broker in its name."""
    pid = pid_of(gateway, name)
    uid, gid = user_of(pid_of(gateway, "worker-0") if name == "supervisor" else pid)
    assert uid
    said = as_user(uid, gid, "-c", ATTACKS, str(pid))
    assert len(said.splitlines()) == 9
    assert ": taken" not in said, said


def test_the_attacks_succeed_on_a_process_that_hides_nothing(gateway: Gateway) -> None:
    """Else the test above would show nothing."""
    uid, gid = user_of(pid_of(gateway, "worker-0"))
    setpriv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    victim = subprocess.Popen([*setpriv, "/usr/bin/python3", "-c", "print(flush=True); input()"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert victim.stdout is not None
        victim.stdout.readline()
        said = as_user(uid, gid, "-c", ATTACKS, str(victim.pid))
    finally:
        victim.kill()
        victim.wait()
    for name in ("memory", "descriptors", "pidfd_getfd 0", "ptrace"):
        assert f"{name}: taken" in said, said


@pytest.mark.parametrize("name", ["worker-0", "worker-1", "packets", "portmap", "console"])
def test_a_process_may_make_no_calls_but_those_that_it_needs(gateway: Gateway, name: str) -> None:
    """Which those are is in unit/test_confine.py; here that the filter is there, in every thread."""
    for task in Path(f"/proc/{pid_of(gateway, name)}/task").iterdir():
        fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        assert fields["Seccomp"] == "2"
        assert fields["NoNewPrivs"] == "1"


@pytest.mark.parametrize("name", ["worker-0", "portmap", "console"])
def test_what_reads_strangers_words_has_no_capability(gateway: Gateway, name: str) -> None:
    pid = pid_of(gateway, name)
    assert user_of(pid)[0] != 0
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert {int(fields[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
