"""The filter of system calls: what a process that was taken over would try fails, and would not fail without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.process import confine

pytestmark = pytest.mark.skipif(confine.seccomp is None, reason="there is no libseccomp")

# Each in a process of its own; prints what came of it. Numbers of calls are of x86-64 and arm64, by their names.
PROGRAM = """
import ctypes, errno, os, socket, sys, threading
from gateway.process.confine import restrict_calls, seccomp
if sys.argv[1] == "filtered":
    assert restrict_calls() is None
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def run(argv):
    os.execv(argv[0], argv)
attacks = {
    "execve": lambda: run(["/bin/true"]),
    "fork": lambda: os.fork() or os._exit(0),
    "vfork": lambda: call("clone", 0, 0, 0, 0, 0) ,
    "clone3": lambda: call("clone3", 0, 0),
    "ptrace": lambda: call("ptrace", 16, os.getppid(), 0, 0),
    "process_vm_readv": lambda: call("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0),
    "pidfd_open": lambda: call("pidfd_open", os.getppid(), 0),
    "pidfd_getfd": lambda: call("pidfd_getfd", 99, 0, 0),
    "kcmp": lambda: call("kcmp", os.getpid(), os.getppid(), 0, 0, 0),
    "kill": lambda: os.kill(os.getppid(), 0),
    "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid())),
    "prlimit": lambda: call("prlimit64", os.getppid(), 7, 0, 0),
    "mount": lambda: call("mount", b"none", b"/nowhere", b"tmpfs", 0, 0),
    "umount": lambda: call("umount2", b"/nowhere", 0),
    "chroot": lambda: call("chroot", b"/nowhere"),
    "unshare": lambda: call("unshare", 0),
    "setns": lambda: call("setns", 99, 0),
    "init_module": lambda: call("init_module", 0, 0, 0),
    "finit_module": lambda: call("finit_module", 99, 0, 0),
    "kexec_load": lambda: call("kexec_load", 0, 99, 0, 0),
    "bpf": lambda: call("bpf", 99, 0, 0),
    "perf_event_open": lambda: call("perf_event_open", 0, 0, 0, 0, 0),
    "io_uring_setup": lambda: call("io_uring_setup", 0, 0),
    "userfaultfd": lambda: call("userfaultfd", 99),
    "keyctl": lambda: call("keyctl", 0, -3, 0),
    "setuid": lambda: os.setuid(os.getuid()),
    "unlink": lambda: os.unlink("/nowhere/at/all"),
    "rename": lambda: os.rename("/nowhere/at/all", "/nowhere/else"),
    "chmod": lambda: os.chmod("/nowhere/at/all", 0o777),
    "mkdir": lambda: os.mkdir("/nowhere/at/all"),
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "netfilter socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12),
    "unix stream": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "alg socket": lambda: socket.socket(38, socket.SOCK_SEQPACKET),
    "vsock": lambda: socket.socket(40, socket.SOCK_STREAM),
    "typing": lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"),
}
def works():
    got = []
    thread = threading.Thread(target=lambda: got.append(open("/etc/hosts").read()))
    thread.start()
    thread.join()
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            socket.socket(family, kind).close()
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    assert got
attacks["what it needs"] = works
try:
    attacks[sys.argv[2]]()
except OSError as error:
    print(errno.errorcode.get(error.errno, error.errno))
else:
    print("done")
"""

NAMES = [line.split('"')[1] for line in PROGRAM.splitlines() if line.startswith('    "') and "lambda" in line]


def attempt(name: str, how: str) -> str:
    """What came of it: the name of an error, "done", or nothing where the process is another one now."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, name], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_what_it_does_not_need_it_may_not(name: str) -> None:
    assert attempt(name, "filtered") == ("ENOSYS" if name == "clone3" else "EPERM")


@pytest.mark.parametrize(
    "name", ["execve", "fork", "kill", "setpriority", "raw socket", "unix stream", "kcmp", "prlimit", "unshare"]
)
def test_without_the_filter_it_may(name: str) -> None:
    """Else the test above would show nothing. (The others fail here for their arguments, and not with EPERM.)"""
    assert attempt(name, "free") in ("done", "")


def test_what_it_needs_works() -> None:
    assert attempt("what it needs", "filtered") == "done"


# What a kernel without CONFIG_SECCOMP_FILTER answers, and qemu's user mode.
WITHOUT_FILTERS = """
import errno
import pyseccomp
from gateway.process.confine import restrict_calls
rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "seccomp")
rules.add_rule(pyseccomp.ERRNO(errno.EINVAL), "prctl", pyseccomp.Arg(0, pyseccomp.EQ, 22))  # PR_SET_SECCOMP
rules.load()
print(restrict_calls())
"""


def test_a_kernel_without_filters_is_no_reason_not_to_serve() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FILTERS], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("the kernel refuses the filter: "), done.stderr


# A condition that libseccomp cannot express, as that of a call that it does not know.
IMPOSSIBLE = """
from gateway.process import confine
made = confine._with_arguments
confine._with_arguments = lambda library: [*made(library), ("uname", (library.Arg(9, library.EQ, 0),))]
try:
    print("done", confine.restrict_calls())
except OSError:
    print("no filter")
"""


def test_a_filter_that_cannot_be_made_is_a_fault() -> None:
    done = subprocess.run([sys.executable, "-c", IMPOSSIBLE], capture_output=True, text=True, check=False)
    assert done.stdout == "no filter\n", done.stdout + done.stderr
