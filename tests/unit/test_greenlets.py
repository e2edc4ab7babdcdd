"""tests.greenlets: what tests wait with."""

from __future__ import annotations

import time

import gevent
import pytest

from tests.greenlets import join_all


def test_a_loop_that_has_not_run_for_longer_than_is_waited() -> None:
    gevent.sleep(0.001)  # it looks at the clock, and goes on with this very greenlet
    time.sleep(0.5)
    greenlet = gevent.spawn(gevent.sleep, 0.1)
    join_all([greenlet], 0.4)
    assert greenlet.dead


def test_who_is_waited_for_too_long() -> None:
    greenlet = gevent.spawn(gevent.sleep, 60)
    with pytest.raises(AssertionError, match=r"not all greenlets have ended within 0.05 s"):
        join_all([greenlet], 0.05)
    greenlet.kill()
