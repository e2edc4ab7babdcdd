"""What systemd is told, if it started us (sd_notify(3))."""

from __future__ import annotations

import math
import os
import socket
import time

from gateway.observe.log import get_logger

log = get_logger()


def notify(message: str) -> None:
    """Send "READY=1" and its kin to $NOTIFY_SOCKET; without one nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # a systemd that does not read must not stop us
        try:
            sock.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log.warning("notify.failed", reason=error.strerror)


class Watchdog:
    """systemd's watchdog (WATCHDOG_USEC), if it wants to hear of us. A gateway of which a process hangs is not well."""

    def __init__(self) -> None:
        usec = os.environ.get("WATCHDOG_USEC", "")
        self._interval = int(usec) / 2_000_000 if usec.isdecimal() and int(usec) else math.inf
        self.due = time.monotonic() + self._interval

    def tick(self, now: float, well: bool) -> None:
        """Tell it, if it is time (monotonic seconds) and all is well."""
        if now >= self.due:
            self.due = now + self._interval
            if well:
                notify("WATCHDOG=1")
