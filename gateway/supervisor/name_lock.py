"""The lock on an instance's name in this network namespace: a socket in the abstract namespace of unix(7).

An instance's rules, its nft table and its queue are named after it, and there is one of each in a network namespace.
The lock file in the run directory does not guard them: that directory may be removed while the gateway runs, and two
containers may have different directories under one name. The kernel frees a name with its last descriptor.
"""

from __future__ import annotations

import os
import socket
import struct

from gateway.model.errors import AlgateError
from gateway.observe.log import get_logger

log = get_logger()

_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class NameLock:
    """Holds the name `instance`. Raises AlgateError if another gateway has it. `inherited`: the descriptor by which an
    earlier version of this instance holds it."""

    def __init__(self, instance: str, inherited: int | None = None) -> None:
        self._address = f"\0algate/{instance}"
        if inherited is not None:
            self._socket: socket.socket | None = socket.socket(fileno=inherited)
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(self._address)
        except OSError:
            self._socket.close()
            self._socket = None
            self._explain(instance)
        else:
            self.claim()

    def claim(self) -> None:
        """Make this process the one that is reported as the holder."""
        if self._socket is not None:
            self._socket.listen(1)

    @property
    def descriptor(self) -> int | None:
        return self._socket.fileno() if self._socket is not None else None

    def close(self) -> None:
        """Release the name, unless a later version has it too."""
        if self._socket is not None:
            self._socket.close()

    def _explain(self, instance: str) -> None:
        """Handle a name that is taken: by a gateway (an error), or by a program of another user that is no gateway,
        which must not keep this gateway from starting."""
        pid, uid = _holder(self._address)
        if uid in (0, os.geteuid()):
            raise AlgateError(
                f"process.run_dir: another algate (pid {pid}) already runs as {instance} in this network namespace, "
                "though it does not hold the run directory's lock: was that directory taken away under it? End it first"
            )
        log.warning("instance.name_taken", name=instance, pid=pid, uid=uid)


def _holder(address: str) -> tuple[int, int]:
    """Return the process and the user that listen there; -1 if it is not known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except BlockingIOError:
            pass  # it listens, and others ask too
        except OSError:
            return -1, -1
        pid, uid, _ = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return pid, uid
