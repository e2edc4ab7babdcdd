"""Runs programs of the system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from gateway.model.errors import AlgateError

_SBIN = ":/usr/sbin:/sbin"  # not in everybody's PATH
_DEADLINE = 10.0  # seconds
_PACKAGES = {"nft": "nftables", "ip": "iproute2", "conntrack": "conntrack"}  # of Debian; all others are in iptables
_LONG_DEADLINE = 60.0  # seconds, for what changes something


def output_of(argv: Sequence[str]) -> str:
    """Return what a program prints; "" if it does not exist or fails, because it then has nothing to show."""
    program = shutil.which(argv[0], path=os.environ.get("PATH", "") + _SBIN)
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *argv[1:]], capture_output=True, text=True, timeout=_DEADLINE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def run_program(argv: Sequence[str], stdin: str = "") -> str:
    """Return what a program prints. Raises AlgateError, with the program's own message, if it fails or does not
    exist."""
    program = shutil.which(argv[0], path=os.environ.get("PATH", "") + _SBIN)
    if program is None:
        package = _PACKAGES.get(argv[0], "iptables")
        raise AlgateError(f"{argv[0]} is not installed: install the package {package}")
    try:
        done = subprocess.run(
            [program, *argv[1:]], input=stdin, capture_output=True, text=True, timeout=_LONG_DEADLINE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AlgateError(f"{argv[0]}: {error}") from error
    if done.returncode:
        raise AlgateError(f"{argv[0]}: {_explain(done.stderr, stdin)}")
    return done.stdout


def _explain(stderr: str, stdin: str) -> str:
    """Return the program's own message, and the line that it complains about."""
    message = " ".join(stderr.split()) or "failed without a word"
    found = re.search(r"line:? (\d+)", message)
    lines = stdin.splitlines()
    if found and 0 < int(found[1]) <= len(lines):
        message += f" (that line is: {lines[int(found[1]) - 1]})"
    return message
