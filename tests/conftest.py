"""For all tests: those that need root are skipped without it."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: network namespaces")
    for item in items:
        if item.get_closest_marker("net"):
            item.add_marker(skip)
