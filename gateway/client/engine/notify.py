"""System calls that wait for another process's decision (seccomp_unotify(2)): the filter, and the questions that the
kernel passes on. Needs a kernel from 5.9 on, on x86-64 or arm64."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

from gateway.client.engine.kernel import IPPROTO_MPTCP, libc, raise_errno


class Machine(NamedTuple):
    """The numbers of one processor architecture: its audit number (linux/audit.h), and those of its system calls."""

    audit: int
    seccomp: int
    pidfd_getfd: int
    socket: int
    connect: int
    sendto: int
    sendmsg: int
    sendmmsg: int
    io_uring_setup: int
    getpeername: int
    getsockname: int


_MACHINES = {
    "x86_64": Machine(0xC000003E, 317, 438, 41, 42, 44, 46, 307, 425, 52, 51),
    "aarch64": Machine(0xC00000B7, 277, 438, 198, 203, 206, 211, 269, 425, 205, 204),
}
MACHINE = _MACHINES.get(os.uname().machine)

_ALLOW, _NOTIFY, _ERROR = 0x7FFF0000, 0x7FC00000, 0x00050000  # <linux/seccomp.h>: SECCOMP_RET_*
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE_RECV = 1, 8, 32
_RECV, _SEND, _ID_VALID, _ADDFD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103  # SECCOMP_IOCTL_NOTIF_*
_ADDFD_SETFD, _CONTINUE = 1, 1
_NOTIF = struct.Struct("=QIIiIQ6Q")
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # <linux/bpf_common.h>, whole instructions
_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # of struct seccomp_data
_ADDRESS = _ARGUMENTS + 4 * 8  # the fifth argument of sendto
_SOCK_TYPE_MASK = 0xF  # <linux/net.h>: without SOCK_NONBLOCK and SOCK_CLOEXEC
# Sockets that a program may make: those whose calls are looked at, and those that lead nowhere outside.
_LOCAL = (socket.AF_UNIX, socket.AF_NETLINK, socket.AF_ALG)
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, IPPROTO_MPTCP)
_X32 = 0x40000000
_SO_COOKIE = 57  # <asm-generic/socket.h>
_PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 38, 36


class WaitingCall(NamedTuple):
    """A system call that waits for an answer. `thread`: the id of the thread that makes it."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


def install() -> int:
    """Let connect, getpeername, getsockname, and whatever sends to an address, wait for an answer from now on, in this
    process and its children; io_uring, calls of other processors, and sockets that are neither TCP's nor UDP's nor
    local ones, are not there. Returns the descriptor at which the calls are answered. OSError."""
    if MACHINE is None:
        raise OSError(errno.ENOSYS, f"not for {os.uname().machine}")
    nowhere = _ERROR | errno.ENOSYS
    asked = (MACHINE.connect, MACHINE.sendmsg, MACHINE.sendmmsg, MACHINE.getpeername, MACHINE.getsockname)
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, MACHINE.audit),
        (_RETURN, 0, 0, nowhere),
        (_LOAD, 0, 0, _NR),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, nowhere),
        (_EQUAL, 0, 1, MACHINE.io_uring_setup),
        (_RETURN, 0, 0, nowhere),
    ]
    program += _sockets(MACHINE.socket)
    for number in asked:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    program += [
        (_EQUAL, 1, 0, MACHINE.sendto),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _ADDRESS),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _NOTIFY),
        (_LOAD, 0, 0, _ADDRESS + 4),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOTIFY),
    ]
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise_errno("prctl")
    # A signal (Go sends many) must not take back a call that is being answered; older kernels do not know that.
    listener: int = -1
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE_RECV, _NEW_LISTENER):
        if listener < 0:
            listener = libc.syscall(MACHINE.seccomp, _SET_MODE_FILTER, flags, ctypes.byref(fprog))
    if listener < 0:
        raise_errno("seccomp")
    return listener


def _sockets(number: int) -> list[tuple[int, int, int, int]]:
    """Return the part of the filter for socket(2). Raw sockets, packet sockets and protocols whose calls are not
    supervised are refused with the error of a kernel that does not have them."""
    checks: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _ARGUMENTS)]
    for family in _LOCAL:
        checks += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    checks += [
        (_EQUAL, 2, 0, _INTERNET[0]),
        (_EQUAL, 1, 0, _INTERNET[1]),
        (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT),
        (_LOAD, 0, 0, _ARGUMENTS + 8),
        (_AND, 0, 0, _SOCK_TYPE_MASK),
        (_EQUAL, 2, 0, socket.SOCK_STREAM),
        (_EQUAL, 1, 0, socket.SOCK_DGRAM),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_LOAD, 0, 0, _ARGUMENTS + 16),
    ]
    for protocol in _PROTOCOLS:
        checks += [(_EQUAL, 0, 1, protocol), (_RETURN, 0, 0, _ALLOW)]
    checks.append((_RETURN, 0, 0, _ERROR | errno.EPROTONOSUPPORT))
    return [(_EQUAL, 0, len(checks), number), *checks]


def adopt_orphans() -> None:
    """Make this process the parent of all descendants whose own parent ends (PR_SET_CHILD_SUBREAPER), because Yama lets
    only ancestors look into a process."""
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class NotifyListener:
    """The descriptor at which calls wait."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def receive(self) -> WaitingCall | None:
        """Wait for a system call. Returns None if the call was withdrawn. Raises OSError when no process is left that
        could make one."""
        buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self.fd, _RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        call, thread, _flags, number, _arch, _ip, *arguments = _NOTIF.unpack(buffer)
        return WaitingCall(call, thread, number, tuple(arguments))

    def still_waits(self, call: WaitingCall) -> bool:
        """Whether the call waits still, so that its thread's number is its own."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, struct.pack("=Q", call.id))
        except OSError:
            return False
        return True

    def let_pass(self, call: WaitingCall) -> None:
        """Let the kernel carry the call out."""
        self._send(struct.pack("=QqiI", call.id, 0, 0, _CONTINUE))

    def answer(self, call: WaitingCall, error: int = 0) -> None:
        """End the call: with success, or with this errno."""
        self._send(struct.pack("=QqiI", call.id, 0, -error, 0))

    def replace(self, call: WaitingCall, descriptor: int, by: int, close_on_exec: bool) -> None:
        """Put the file `by` in the place of a descriptor of the caller. OSError."""
        flags = os.O_CLOEXEC if close_on_exec else 0
        fcntl.ioctl(self.fd, _ADDFD, struct.pack("=QIIII", call.id, _ADDFD_SETFD, by, descriptor, flags))

    def _send(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.fd, _SEND, response)
        except OSError:
            pass  # it was taken back, or its process has ended


def process_of(thread: int) -> int:
    """The process to which a thread belongs. OSError."""
    with open(f"/proc/{thread}/status") as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    raise OSError(errno.ESRCH, f"{thread} has no process")


def descriptor_of(thread: int, number: int) -> int:
    """A descriptor of ours for a descriptor of another process. OSError."""
    assert MACHINE is not None
    pidfd = os.pidfd_open(process_of(thread))
    try:
        fd: int = libc.syscall(MACHINE.pidfd_getfd, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if fd < 0:
        raise_errno("pidfd_getfd")
    return fd


def closes_on_exec(thread: int, number: int) -> bool:
    """Whether another process's descriptor is closed when that starts a program. OSError."""
    with open(f"/proc/{thread}/fdinfo/{number}") as file:
        flags = next(line for line in file if line.startswith("flags:"))
    return bool(int(flags.split()[1], 8) & os.O_CLOEXEC)


def memory_of(thread: int, at: int, size: int) -> bytes:
    """Read the memory of another process. Raises OSError; with EFAULT if it does not have that much memory there, as
    the kernel does."""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as file:
        try:
            data = os.pread(file.fileno(), size, at)
        except (OSError, OverflowError):
            data = b""
    if len(data) < size:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return data


def write_memory(thread: int, at: int, data: bytes) -> None:
    """Write into another process's memory. OSError, as above."""
    with open(f"/proc/{thread}/mem", "r+b", buffering=0) as file:
        try:
            count = os.pwrite(file.fileno(), data, at)
        except (OSError, OverflowError):
            count = 0
    if count < len(data):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def cookie_of(sock: socket.socket) -> bytes:
    """Return the number that identifies a socket among all sockets, past ones included (SO_COOKIE). Raises OSError."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
