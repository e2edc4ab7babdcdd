"""The namespace in which a program runs: made by a child, which stays in it, and hands out sockets that are made there.

A socket belongs to the namespace in which it was made, whoever has its descriptor. So this process accepts what the
program begins inside, and dials outside. No interface leads out: what is not handed out here goes nowhere.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.client.engine import kernel
from gateway.client.engine.outcome import NOT_EXECUTABLE, NOT_FOUND, NoEngine

OWN4, OWN6 = "10.0.2.100", "fd00:2::100"  # the program's own addresses
NAME_SERVER = "10.0.2.3"
ASIDE = "/tmp"  # noqa: S108 - a directory that every system has; covered for a moment, in a namespace of our own
CONNECT_TIMEOUT = 2.0  # seconds for the program to accept; its backlog may be full

_FAILED, _READY, _ENDED, _IDS = b"F", b"R", b"E", b"I"
# Nothing that has a port here leaves by itself: streams come to the listener, datagrams to the transparent socket.
_RULES = """
table inet algate {{
  chain streams {{
    type nat hook output priority -100; policy accept;
    ip daddr {{ 127.0.0.0/8, {own4} }} accept
    ip6 daddr {{ ::1, {own6} }} accept
    meta nfproto ipv4 meta l4proto tcp redirect to :{tcp4}
    meta nfproto ipv6 meta l4proto tcp redirect to :{tcp6}
  }}
  chain datagrams {{
    type filter hook prerouting priority -150; policy accept;
    ip daddr {{ 127.0.0.0/8, {own4} }} accept
    ip6 daddr {{ ::1, {own6} }} accept
    ip daddr {names} udp dport 53 accept
    meta nfproto ipv4 meta l4proto udp tproxy ip to :{udp4} accept
    meta nfproto ipv6 meta l4proto udp tproxy ip6 to :{udp6} accept
  }}
}}
"""


class Sockets(NamedTuple):
    """The sockets that were made inside the namespace: listeners for streams, transparent sockets for datagrams, and
    the socket of the name server."""

    streams4: socket.socket
    streams6: socket.socket
    datagrams4: socket.socket
    datagrams6: socket.socket
    names: socket.socket


class Namespace:
    """A namespace with a program in it."""

    def __init__(self, command: Sequence[str]) -> None:
        """Make the namespace, and start the program. Raises NoEngine; then nothing was started. Must be called while
        the process has one thread."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            here.close()
            _inside(there, command)
        there.close()
        self._channel = here
        _give_ids(here, self.pid)
        message, fds, _, _ = socket.recv_fds(here, 4096, 16)
        if message[:1] != _READY:
            here.close()
            os.waitpid(self.pid, 0)
            raise NoEngine(message[1:].decode() or "the child has ended")
        self.sockets = Sockets(*(socket.socket(fileno=fd) for fd in fds))

    def begin(self) -> None:
        """Let the program run."""
        self._channel.send(_READY)

    def answering(self, host: str, port: int) -> socket.socket:
        """A datagram socket inside that sends from any address and port. OSError."""
        return self._make(host, port)

    def inward(self, source: tuple[str, int], target: tuple[str, int]) -> socket.socket:
        """A connection inside, from any address and port to one of the program's ports. OSError."""
        return self._make(*source, *target)

    def _make(self, *words: str | int) -> socket.socket:
        request = "\n".join(map(str, words)).encode()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near:
            socket.send_fds(self._channel, [request], [far.fileno()])
            far.close()
            message, fds, _, _ = socket.recv_fds(near, 256, 1)
        if not fds:
            raise OSError(struct.unpack("i", message)[0] if len(message) == 4 else 0, f"inside: {words}")
        return socket.socket(fileno=fds[0])

    def open_ports(self) -> set[int]:
        """The ports of the datagram sockets inside."""
        found: set[int] = set()
        for name in ("udp", "udp6"):
            with contextlib.suppress(OSError), open(f"/proc/{self.pid}/net/{name}") as file:
                found.update(int(line.split()[1].rpartition(":")[2], 16) for line in list(file)[1:])
        return found

    def wait(self) -> int:
        """Wait for the program to end. Returns its exit code, or 128 and the number of the signal that ended it."""
        while True:
            message = self._channel.recv(64)
            if message[:1] == _ENDED or not message:
                break
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        return struct.unpack("i", message[1:])[0] if message else 128 + signal.SIGKILL

    def signal(self, number: int) -> None:
        """Send a signal to the program, by the child that waits for it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _inside(channel: socket.socket, command: Sequence[str]) -> None:
    """The child: never returns."""
    try:
        kernel.die_with_parent()
        try:
            fds = _make(channel)
        except (OSError, subprocess.SubprocessError) as error:
            channel.send(_FAILED + str(error).encode()[:2000])
            os._exit(1)
        socket.send_fds(channel, [_READY], fds)
        for fd in fds:
            os.close(fd)
        if channel.recv(1) != _READY:
            os._exit(1)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = os.fork()
        if program == 0:
            channel.close()
            near.close()
            _execute(far, command)
        far.close()
        _give_ids(near, program)
        near.close()
        code = _serve(channel, program)
        channel.send(_ENDED + struct.pack("i", code))
    finally:
        os._exit(0)


def _ask_for_ids(parent: socket.socket) -> bool:
    """Let the parent process map all users and groups into a new user namespace, for which it needs root's rights."""
    parent.send(_IDS)
    return parent.recv(1) == _READY


def _give_ids(child: socket.socket, process: int) -> None:
    """Answer a child that asks for them, if that is what it says first."""
    if child.recv(1, socket.MSG_PEEK) != _IDS:
        return
    child.recv(1)
    try:
        kernel.map_all_ids(process)
    except OSError:
        child.send(_FAILED)
    else:
        child.send(_READY)


def _make(parent: socket.socket) -> list[int]:
    """Make the namespace and its sockets; their descriptors. OSError, SubprocessError."""
    user, group = os.geteuid(), os.getegid()
    nft = find_nft()
    if nft is None:
        raise OSError(2, "the program nft is not installed")
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET | kernel.CLONE_NEWNS)
    if user != 0 or not _ask_for_ids(parent):
        kernel.map_ids(0, user, 0, group)
    kernel.everything_is_local({socket.AF_INET: OWN4, socket.AF_INET6: OWN6})
    streams = [_bound(family, socket.SOCK_STREAM) for family in (socket.AF_INET, socket.AF_INET6)]
    for sock in streams:
        sock.listen(4096)
    datagrams = [_bound(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
    datagrams[0].setsockopt(socket.IPPROTO_IP, kernel.IP_TRANSPARENT, 1)
    datagrams[0].setsockopt(socket.IPPROTO_IP, kernel.IP_RECVORIGDSTADDR, 1)
    datagrams[1].setsockopt(kernel.SOL_IPV6, kernel.IPV6_TRANSPARENT, 1)
    datagrams[1].setsockopt(kernel.SOL_IPV6, kernel.IPV6_RECVORIGDSTADDR, 1)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((NAME_SERVER, 53))
    ports = [sock.getsockname()[1] for sock in (*streams, *datagrams)]
    keys = {"own4": OWN4, "own6": OWN6, "names": NAME_SERVER}
    rules = _RULES.format(**keys, **dict(zip(("tcp4", "tcp6", "udp4", "udp6"), ports, strict=True)))
    done = subprocess.run([nft, "-f", "-"], input=rules, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise OSError(1, f"nft: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}")
    _hide_name_services()
    sockets = [*streams, *datagrams, names]
    return [sock.detach() for sock in sockets]


def find_nft() -> str | None:
    """The program nft, also where the user's PATH leaves out what is root's. (shutil.which takes long to load.)"""
    folders = (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin")
    paths = (os.path.join(folder, "nft") for folder in folders if folder)
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def _bound(family: int, kind: int) -> socket.socket:
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
    return sock


def _hide_name_services() -> None:
    """Names are asked for inside only: resolv.conf names our server, and daemons that would ask outside over a socket
    in the file system (nscd, systemd-resolved, Avahi) are out of sight. OSError."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
    text = f"nameserver {NAME_SERVER}\noptions timeout:20 attempts:1\n"
    for place in ("/run/nscd", "/var/run/nscd", "/run/avahi-daemon", "/run/systemd/resolve"):
        if os.path.isdir(place) and not os.path.islink(place):
            kernel.mount("tmpfs", place, "tmpfs", 0)
            if place.endswith("resolve"):
                for name in ("resolv.conf", "stub-resolv.conf"):
                    Path(place, name).write_text(text)
    if not os.path.exists("/etc/resolv.conf"):
        return
    if Path("/etc/resolv.conf").resolve().parent == Path("/run/systemd/resolve"):
        return
    # On a file system of this namespace only: whoever is killed meanwhile leaves no file behind.
    kernel.mount("tmpfs", ASIDE, "tmpfs", 0)
    file = Path(ASIDE, "resolv.conf")
    file.write_text(text)
    file.chmod(0o644)
    kernel.mount(str(file), "/etc/resolv.conf", None, kernel.MS_BIND)
    kernel.unmount(ASIDE)


def _execute(parent: socket.socket, command: Sequence[str]) -> None:
    """The program, as the user that it was, without a right over the namespace. Never returns."""
    try:
        user, group = _ids()
        kernel.die_with_parent()
        kernel.unshare(kernel.CLONE_NEWUSER)
        if user != 0 or not _ask_for_ids(parent):  # root's program may become another user, as apt does
            kernel.map_ids(user, 0, group, 0)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], list(command))
    except OSError as error:
        os.write(2, f"algate exec: {command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def _ids() -> tuple[int, int]:
    """Return the user and the group outside the namespace."""
    words = [Path(f"/proc/self/{name}_map").read_text().split() for name in ("uid", "gid")]
    return int(words[0][1]), int(words[1][1])


def _serve(channel: socket.socket, program: int) -> int:
    """Make sockets that are asked for, until the program ends; its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, lambda got, _frame: _pass_on(program, got))
    for number in (signal.SIGINT, signal.SIGQUIT):  # from the terminal they come to the program too
        signal.signal(number, signal.SIG_IGN)
    ended = os.pidfd_open(program)
    while True:
        ready, _, _ = select.select([channel.fileno(), ended], [], [])
        if ended in ready:
            _, status = os.waitpid(program, 0)
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        message, fds, _, _ = socket.recv_fds(channel, 256, 1)
        if not message:
            os._exit(0)
        with socket.socket(fileno=fds[0]) as answer:
            host, port, *target = message.decode().split("\n")
            _make_socket(answer, (host, int(port)), (target[0], int(target[1])) if target else None)


def _make_socket(answer: socket.socket, source: tuple[str, int], target: tuple[str, int] | None) -> None:
    """Hand out a socket that sends from `source`: of datagrams, or connected to `target`."""
    family = socket.AF_INET6 if ":" in (target or source)[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM if target is None else socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # every address is local here, which IPv4 alone takes for its own
                sock.setsockopt(kernel.SOL_IPV6, kernel.IPV6_TRANSPARENT, 1)
            if target is None:
                sock.bind(source)
            else:
                sock.settimeout(CONNECT_TIMEOUT)
                with contextlib.suppress(OSError):  # another family, or the port is in use: then it has another one
                    sock.bind(source)
                sock.connect(target)
                sock.setblocking(True)
            socket.send_fds(answer, [b"ok"], [sock.fileno()])
    except OSError as error:
        answer.send(struct.pack("i", error.errno or 0))


def _pass_on(program: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(program, number)
