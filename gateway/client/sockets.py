"""Operations on sockets: unpatched ones beside `socksified`, pairs, and the end of a broken one."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Any

RESET_GRACE = 5.0  # seconds without progress in delivering what came before a reset, until the reset overtakes it
PAUSE = 0.01  # seconds between two looks at what is delivered
PAIR_TIMEOUT = 1.0  # seconds for a connection within this host
REAL = "_without_algate"  # the attribute by which a replacement in `socket` says what it replaces

_TCP_CLOSE = 7  # the state of a connection that is no more, in <netinet/tcp.h>


def unpatched(function: Any) -> Any:
    """Return a function or class of the module `socket` as it is without `patch.socksified`. Looked up each time,
    because gevent may have patched the module since this one was loaded."""
    while (real := getattr(function, REAL, None)) is not None:
        function = real
    return function


def pair(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Return two sockets that are connected with each other by TCP, since one of Unix cannot tell the other that
    something has broken; by Unix where this host has no loopback. Both block. `family`: the one that they have if this
    host has it, as a program may look at its socket's."""
    try:
        near, far = _pair_of_tcp(family)
    except OSError:
        return socket.socketpair() if family == socket.AF_INET else pair()
    for sock in (near, far):
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def _pair_of_tcp(family: int) -> tuple[socket.socket, socket.socket]:
    plain = unpatched(socket.socket)
    near: socket.socket = plain(family, socket.SOCK_STREAM)
    try:
        with plain(family, socket.SOCK_STREAM) as listener:
            listener.settimeout(PAIR_TIMEOUT)
            near.settimeout(PAIR_TIMEOUT)
            listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            listener.listen(1)
            plain.connect(near, listener.getsockname())
            while True:
                far, peer = listener.accept()
                if peer == near.getsockname():
                    return near, far
                far.close()  # somebody else on this host
    except BaseException:
        near.close()
        raise


def reset(sock: socket.socket) -> None:
    """Close a connection so that its peer gets an error, behind all that was sent to it."""
    with contextlib.suppress(OSError):
        _wait_until_delivered(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _wait_until_delivered(sock: socket.socket) -> None:
    """Wait until the peer has acknowledged everything, or is gone, or makes no progress. Raises OSError."""
    before, until = -1, 0.0
    while True:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
        unacknowledged, acknowledged, unsent = struct.unpack_from("=24xI92xQ16xI", info)
        if info[0] == _TCP_CLOSE or not unacknowledged + unsent:
            return
        now = time.monotonic()
        if acknowledged != before:
            before, until = acknowledged, now + RESET_GRACE
        if now >= until:
            return
        time.sleep(PAUSE)
