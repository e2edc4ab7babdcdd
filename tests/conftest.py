"""For all tests: those that need root are skipped without it, and what was compiled has to be of the sources."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# How long an example takes is no claim of any test: benchmarks measure, and this machine may have much else to do.
hypothesis.settings.register_profile("algate", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("algate")

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    stamp = ROOT / ".venv/.compiled"
    made = stamp.stat().st_mtime if stamp.exists() else 0.0
    for package in ("alg", "gateway"):
        for compiled in (ROOT / package).rglob("*.so"):
            source = compiled.with_name(compiled.name.partition(".")[0] + ".py")
            if source.exists() and source.stat().st_mtime > made:
                raise pytest.UsageError(f"{source} is newer than what was compiled of it: make setup, or make pure")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: network namespaces")
    for item in items:
        if item.get_closest_marker("net"):
            item.add_marker(skip)
