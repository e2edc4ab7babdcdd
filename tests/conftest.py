"""For all tests: those that need root are skipped without it, and what was compiled has to be of the sources."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# How long an example takes is no claim of any test: benchmarks measure, and this machine may have much else to do.
hypothesis.settings.register_profile("algate", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("algate")

ROOT = Path(__file__).parents[1]

# Where the environment forbids it, hundreds of gateways would translate all sources anew, each of their processes: half
# of what their start costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure() -> None:
    with contextlib.suppress(ValueError):  # in another thread than the first: then it stays as it is
        # A shell ignores it for what it runs in the background, and the programs of tests would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    stamp = ROOT / ".venv/.compiled"
    made = stamp.stat().st_mtime if stamp.exists() else 0.0
    for package in ("alg", "gateway"):
        for compiled in (ROOT / package).rglob("*.so"):
            source = compiled.with_name(compiled.name.partition(".")[0] + ".py")
            if source.exists() and source.stat().st_mtime > made:
                raise pytest.UsageError(f"{source} is newer than what was compiled of it: make setup, or make pure")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _long_ones_first(items)
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: network namespaces")
    for item in items:
        if item.get_closest_marker("net"):
            item.add_marker(skip)


def _long_ones_first(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then those of namespaces, then all others: no process is left alone at the end with
    a file of minutes. Within a file the order stays."""
    rank: dict[Path, int] = {}
    for item in items:
        mine = 0 if item.get_closest_marker("slow") else 1 if item.get_closest_marker("net") else 2
        rank[item.path] = min(mine, rank.get(item.path, mine))
    items.sort(key=lambda item: rank[item.path])
