"""The gateway's columns of the tables in docs/protocols/ftp.md, as `python -m tests.conformance.ftp` makes them."""

from __future__ import annotations

import pytest

from tests.conformance.ftp import pairs, variants
from tests.conformance.ways import WAYS
from tests.lab.lab import Lab


@pytest.mark.parametrize("way", WAYS[2:], ids=lambda way: way.name)
def test_variants(strict_lab: Lab, way: object) -> None:
    failed: list[str] = []
    variants(strict_lab, failed.append, [entry for entry in WAYS if entry is way])
    assert failed == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clients_and_servers(strict_lab: Lab) -> None:
    failed: list[str] = []
    pairs(strict_lab, failed.append)
    assert failed == []
