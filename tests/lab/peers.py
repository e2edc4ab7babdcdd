"""The real servers and clients that tests talk to: where they are, and which of them this Debian release has not.

Servers are unpacked into .venv/peers by `make setup`, not installed: an installed FTP server would listen on the
machine's own port 21, and some of these packages exclude one another.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import pytest

PEERS = Path(sys.prefix, "peers")
# Where Debian has the libraries of this architecture: below lib and usr/lib.
MULTIARCH: str = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
LIBRARIES = PEERS / "usr/lib" / MULTIARCH


def unpacked(package: str, path: str) -> Path:
    """The program `path` of the package that was unpacked. Skips the test where this release has no such package."""
    program = PEERS / path
    if not program.exists():
        missing = PEERS / "MISSING"
        if missing.exists() and package in missing.read_text().split():
            pytest.skip(f"this release has no package {package}")
        raise AssertionError(f"{program} is missing: run `make setup`")
    return program


def installed(package: str, path: str) -> Path:
    """An installed program of the package. Skips the test without it: `make setup` installs what the release has."""
    program = Path(path)
    if not program.exists():
        pytest.skip(f"{package} is not installed: make setup brings it, where this release has it")
    return program
