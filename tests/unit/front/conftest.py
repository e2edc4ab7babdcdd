from __future__ import annotations

import pytest

from gateway.driver.guard import alarm


@pytest.fixture(autouse=True)
def rearmed() -> None:
    """pytest-timeout has its own use for the timer, and sets it anew for each test."""
    alarm._armed = False
