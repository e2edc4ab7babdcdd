"""Secrets that are the same after each start, and that no other machine has."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import cache
from pathlib import Path

_MACHINE = Path("/etc/machine-id")


def secret(what: str) -> bytes:
    """Return 32 bytes for the purpose `what`, derived from the machine's id, which other hosts cannot guess. If there
    is no id, they differ at each start of the process."""
    return hmac.new(_machine(), what.encode(), hashlib.sha256).digest()


@cache
def _machine() -> bytes:
    try:
        return _MACHINE.read_bytes().strip() or secrets.token_bytes(16)
    except OSError:
        return secrets.token_bytes(16)
