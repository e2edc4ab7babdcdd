"""What the processes that carry traffic do not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


HEAVY = [
    "asyncio",
    "dataclasses",
    "inspect",
    "logging",
    "pathlib",
    "shutil",
    "ssl",
    "subprocess",
    "tempfile",
    "tomllib",
]


def test_a_program_does_not_wait_for_what_it_does_not_use() -> None:
    """Imports are most of the time until `algate exec` starts a program. Without site-packages, as the hooks of those
    that are installed editable load much."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from gateway.client.engine import program, supervised\n"
        "program.main(['--via', 'socks5://ann:pw@127.0.0.1:9?name=x', '--direct', '10.0.0.0/8', '--'])\n"
        "program.main(['--via', 'socks5://ann:pw@127.0.0.1:9', '--direct', '10.0.0.0/8', '--'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "print([name for name in sys.modules if name.endswith(('.namespace', '.carry', '.reader', '.publish'))])\n"
    )
    argv = [sys.executable, "-I", "-S", "-c", program, str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert "there is no command" in done.stderr
    assert done.stdout == "[]\n[]\n"


@pytest.mark.parametrize("name", ["exec", "classic"])
def test_no_log_in_a_command_of_the_client(name: str) -> None:
    """structlog brings asyncio, and so TLS."""
    program = (
        "import sys, gateway.cli.main as main\n"
        f"import gateway.cli.{name}\n"
        "print([name for name in ('structlog', 'asyncio', 'rich') if sys.modules.get(name)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["run", "rules", "status", "live", "control", "modules", "passwd"])
def test_no_rich_in_a_command_before_it_draws(name: str) -> None:
    """structlog would load it, whichever module of a command loads structlog."""
    program = f"import sys, gateway.cli.main\nimport gateway.cli.{name}\nprint(sys.modules.get('rich') is None)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"
