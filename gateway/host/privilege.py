"""What this process may do, as root or as a service's user with capabilities (AmbientCapabilities of systemd)."""

from __future__ import annotations

import re
from pathlib import Path

# linux/capability.h: CAP_SETGID, CAP_SETUID, CAP_SETPCAP (setpriv takes what children must not have), CAP_NET_ADMIN.
_NEEDED = (1 << 6) | (1 << 7) | (1 << 8) | (1 << 12)


def is_privileged(status: str | None = None) -> bool:
    """Whether this process can give children users and capabilities of their own, CAP_NET_ADMIN for the broker
    included.

    `status`: the text of a process's /proc/PID/status; without it that of this process.
    """
    text = Path("/proc/self/status").read_text() if status is None else status
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return found is not None and int(found[1], 16) & _NEEDED == _NEEDED
