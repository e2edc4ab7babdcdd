"""What systemd is told, if it started us (sd_notify(3))."""

from __future__ import annotations

import os
import socket

from gateway.observe.log import get_logger

log = get_logger()


def notify(message: str) -> None:
    """Send "READY=1" and its kin to $NOTIFY_SOCKET; without one nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log.warning("notify.failed", reason=error.strerror)
