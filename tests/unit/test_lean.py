"""What the processes that carry traffic do not load."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["worker", "packets", "console"])
def test_no_rich_in_a_process_that_shows_nothing(name: str) -> None:
    """structlog would load it, and nothing else there does."""
    program = (
        "import runpy, sys\n"
        "sys.argv = ['x', '999999']\n"  # no such descriptor: it ends when everything is imported
        f"try:\n    runpy.run_module('gateway.process.{name}', run_name='__main__')\n"
        "except OSError:\n    pass\n"
        "print([module for module in sys.modules if module.startswith('rich.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]", done.stderr
