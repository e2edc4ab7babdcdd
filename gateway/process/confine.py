"""What a process gives up for good when it starts: so that whoever takes it over, or a sibling of it, gains little."""

from __future__ import annotations

import ctypes
import os

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def hide() -> None:
    """Be no longer dumpable: nobody but a process with CAP_SYS_PTRACE can read or write our memory, take our
    descriptors (pidfd_getfd(2)), or follow the links below /proc/PID/fd. Raises OSError.

    A process that runs as the same user could do all of that otherwise (ptrace(2), "Ptrace access mode checking").
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
