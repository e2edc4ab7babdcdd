"""Gives up rights of a process for good when it starts, so that an attacker who takes over the process, or another one
of the same user, gains little."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import socket
import termios
from collections.abc import Sequence
from typing import Any

try:
    import seccomp  # libseccomp's own binding, as Debian has it
except ImportError:
    _search = ctypes.util.find_library
    # pyseccomp searches for two libraries by starting ldconfig: their names on Linux are these.
    ctypes.util.find_library = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}.get  # type: ignore[assignment]
    try:
        import pyseccomp as seccomp
    except (ImportError, OSError, RuntimeError):  # no libseccomp
        seccomp = None
    finally:
        ctypes.util.find_library = _search

__all__ = ["CALLS", "hide", "restrict_calls", "seccomp"]

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_CLONE_THREAD = 0x00010000  # <linux/sched.h>
_SOCK_TYPE_MASK = 0xF  # <linux/net.h>
_NETLINK_ROUTE = 0

# What workers, packets and console need under the tests of tests/net, which run with the filter on, and what the C
# library may use in place of that. What needs a look at its arguments stands in `_with_arguments`.
CALLS = (
    # descriptors and their data
    "read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev", "pwritev2", "lseek",
    "close", "close_range", "dup", "dup2", "dup3", "fcntl", "fstat", "fstatfs", "pipe", "pipe2", "splice", "tee",
    "vmsplice", "sendfile", "eventfd", "eventfd2", "timerfd_create", "timerfd_settime", "timerfd_gettime",
    "memfd_create", "ftruncate", "fallocate", "fsync", "fdatasync", "flock",
    # files, by their names
    "open", "openat", "stat", "lstat", "newfstatat", "statx", "statfs", "access", "faccessat", "faccessat2", "readlink",
    "readlinkat", "getcwd", "getdents64", "umask", "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
    # connections
    "accept", "accept4", "bind", "connect", "listen", "shutdown", "getsockname", "getpeername", "getsockopt",
    "setsockopt", "recvfrom", "recvmsg", "recvmmsg", "sendto", "sendmsg", "sendmmsg", "socketpair",
    # waiting
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll",
    "ppoll", "select", "pselect6", "nanosleep", "clock_nanosleep", "futex", "sched_yield", "restart_syscall", "pause",
    "setitimer", "getitimer", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
    # memory
    "brk", "mmap", "munmap", "mprotect", "mremap", "madvise", "mincore", "msync", "membarrier",
    # the process itself
    "exit", "exit_group", "getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getgroups",
    "getresuid", "getresgid", "getrusage", "getrlimit", "times", "sched_getaffinity", "getpriority", "getrandom",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "sigaltstack",
    "set_robust_list", "get_robust_list", "set_tid_address", "rseq", "arch_prctl", "getcpu",
    # the time and the machine
    "clock_gettime", "clock_getres", "gettimeofday", "time", "uname", "sysinfo",
)  # fmt: skip

# <asm/sockios.h> and others: what is waiting in a socket, urgent data, names of interfaces. None that changes anything
# (TIOCSTI would type into the terminal from which the gateway was started).
_IOCTLS = (
    termios.FIONREAD, termios.TIOCOUTQ, 0x8905, termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX, termios.TCGETS,
    termios.TIOCGWINSZ, 0x8910, 0x8933, 0x8912,
)  # fmt: skip


def hide() -> None:
    """Make this process undumpable: only a process with CAP_SYS_PTRACE can then read or write its memory, take its
    descriptors (pidfd_getfd(2)), or follow the links below /proc/PID/fd. Raises OSError.

    Otherwise any process of the same user could do all of that (ptrace(2), "Ptrace access mode checking").
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def restrict_calls() -> str | None:
    """Allow this process only the system calls that it needs from now on (seccomp(2)): it can start no program, trace
    or signal no process, mount nothing, load no module, and make no sockets but for TCP, UDP, the local log daemon and
    questions to the routing table. Anything else fails with EPERM.

    Holds for all threads; call it when everything is imported. Returns None, or, if nothing was done, why: there is no
    libseccomp, or the kernel has no filters (CONFIG_SECCOMP_FILTER; emulated processors have none either). Raises
    OSError if the filter cannot be made.
    """
    if seccomp is None:
        return "there is no libseccomp"
    try:
        rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
        rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # the kernel is asked whether it can
    except (OSError, RuntimeError) as error:
        return f"the kernel refuses the filter: {error}"
    try:
        rules.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)  # a tree in place of a list
        for name in CALLS:
            _allow(rules, name)
        for name, conditions in _with_arguments(seccomp):
            _allow(rules, name, *conditions)
        # The C library asks for the older call then, whose flags can be looked at.
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    except RuntimeError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        rules.load()
    except (OSError, RuntimeError) as error:
        return f"the kernel refuses the filter: {error}"
    return None


def _allow(rules: Any, name: str, *conditions: Any) -> None:
    try:
        rules.add_rule(seccomp.ALLOW, name, *conditions)
    except (OSError, RuntimeError, ValueError):
        if conditions:
            raise  # a call of another processor is left out; a condition is not


def _with_arguments(library: Any) -> Sequence[tuple[str, tuple[Any, ...]]]:
    """Return the calls that are allowed with certain arguments only."""
    argument, same, masked = library.Arg, library.EQ, library.MASKED_EQ
    found: list[tuple[str, tuple[Any, ...]]] = [
        ("socket", (argument(0, same, int(family)), argument(1, masked, _SOCK_TYPE_MASK, int(kind))))
        for family, kind in (
            (socket.AF_INET, socket.SOCK_STREAM),
            (socket.AF_INET, socket.SOCK_DGRAM),
            (socket.AF_INET6, socket.SOCK_STREAM),
            (socket.AF_INET6, socket.SOCK_DGRAM),
            (socket.AF_UNIX, socket.SOCK_DGRAM),  # the local log daemon
        )
    ]
    found.append(("socket", (argument(0, same, int(socket.AF_NETLINK)), argument(2, same, _NETLINK_ROUTE))))
    found.append(("clone", (argument(0, masked, _CLONE_THREAD, _CLONE_THREAD),)))  # threads, no processes
    found += [("ioctl", (argument(1, masked, 0xFFFFFFFF, number),)) for number in _IOCTLS]
    found += [("prctl", (argument(0, same, number),)) for number in (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)]
    found += [(name, (argument(0, same, os.getpid()),)) for name in ("kill", "tgkill")]  # as abort(3) does
    found.append(("prlimit64", (argument(0, same, 0), argument(2, same, 0))))  # its own, and only to look
    return found
