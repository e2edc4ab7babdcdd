"""The few things of the kernel that Python has no call for: namespaces, mounts, routes of a new namespace."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from typing import NoReturn

IPPROTO_MPTCP = 262  # <linux/in.h>
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000  # <linux/sched.h>
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19  # <linux/mount.h>
MNT_DETACH = 2
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # <linux/in.h>, <linux/in6.h>
IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR = 20, 74
SO_ORIGINAL_DST, SOL_IPV6 = 80, 41

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # <linux/sockios.h>
_RTM_NEWADDR, _RTM_NEWROUTE = 20, 24  # <linux/rtnetlink.h>
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 1, 4, 0x400
_RTN_LOCAL, _RT_SCOPE_HOST, _RT_TABLE_LOCAL, _RTPROT_STATIC = 2, 254, 255, 4
_RTA_OIF, _RTA_PREFSRC = 4, 7
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2

libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave namespaces of the parent. OSError where the system does not allow it."""
    if libc.unshare(flags):
        raise_errno("unshare")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """mount(2). OSError."""
    if libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None):
        raise_errno(target)


def unmount(target: str) -> None:
    """Take a mount out of sight at once; it lasts as long as something of it is in use. OSError."""
    if libc.umount2(target.encode(), MNT_DETACH):
        raise_errno(target)


def disconnect(sock: socket.socket) -> None:
    """Disconnect a socket, so that it can be connected again (connect(2), AF_UNSPEC). Raises OSError."""
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    if libc.connect(sock.fileno(), nowhere, len(nowhere)):
        raise_errno("connect")


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def map_ids(inside_user: int, outside_user: int, inside_group: int, outside_group: int) -> None:
    """Set the only user and the only group of a new user namespace. Raises OSError."""
    with open("/proc/self/setgroups", "w") as file:
        file.write("deny")
    with open("/proc/self/uid_map", "w") as file:
        file.write(f"{inside_user} {outside_user} 1")
    with open("/proc/self/gid_map", "w") as file:
        file.write(f"{inside_group} {outside_group} 1")


def map_all_ids(process: int) -> None:
    """Let the new user namespace of another process have all users and groups that ours has, by the same numbers. It
    takes root's rights: OSError without."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as file:
            ranges = [line.split() for line in file]
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write("".join(f"{first} {first} {count}\n" for first, _, count in ranges))


def everything_is_local(addresses: dict[int, str]) -> None:
    """Configure a new network namespace: `lo` comes up with these addresses (by family), and every other address is
    routed to it, with these as sources. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
    index = socket.if_nametoindex("lo")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        for family, text in addresses.items():
            packed = socket.inet_pton(family, text)
            flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
            header = struct.pack("BBBBi", family, len(packed) * 8, flags, 0, index)
            _ask(sock, _RTM_NEWADDR, header + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed))
            header = struct.pack(
                "BBBBBBBBI", family, 0, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0
            )
            oif = _attribute(_RTA_OIF, struct.pack("i", index))
            _ask(sock, _RTM_NEWROUTE, header + oif + _attribute(_RTA_PREFSRC, packed))


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _ask(sock: socket.socket, kind: int, body: bytes) -> None:
    """Send one message of rtnetlink and read its acknowledgement. Raises OSError."""
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE
    sock.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    code = struct.unpack_from("i", sock.recv(65536), 16)[0]
    if code:
        raise OSError(-code, f"rtnetlink: {os.strerror(-code)}")


def raise_errno(what: str) -> NoReturn:
    """Raise the OSError of the C library's last call."""
    code = ctypes.get_errno()
    raise OSError(code, f"{what}: {os.strerror(code)}")
