"""Messages to systemd, if it started this process (sd_notify(3))."""

from __future__ import annotations

import math
import os
import socket
import time

from gateway.observe.log import get_logger

log = get_logger()


def notify(message: str) -> None:
    """Send a message such as "READY=1" to $NOTIFY_SOCKET. Does nothing if that is not set."""
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
    """systemd's watchdog (WATCHDOG_USEC), if it is on. A gateway of which a process hangs does not report."""

    def __init__(self) -> None:
        usec = os.environ.get("WATCHDOG_USEC", "")
        self._interval = int(usec) / 2_000_000 if usec.isdecimal() and int(usec) else math.inf
        self.due = time.monotonic() + self._interval

    def tick(self, now: float, well: bool) -> None:
        """Report to the watchdog, if it is time (monotonic seconds) and all is well."""
        if now >= self.due:
            self.due = now + self._interval
            if well:
                notify("WATCHDOG=1")
