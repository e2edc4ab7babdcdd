"""Waiting for greenlets in tests, where the event loop may not have run for minutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent


def join_all(greenlets: Sequence[gevent.Greenlet[..., Any]], seconds: float, raise_error: bool = False) -> None:
    """Wait until all of them have ended; AssertionError after `seconds`.

    gevent.joinall's own timeout counts from when the loop looked at the clock last: after a test that did not use the
    loop it is over at once. gevent.Timeout looks at the clock.
    """
    late = AssertionError(f"not all greenlets have ended within {seconds:g} s")
    with gevent.Timeout(seconds, late):
        gevent.joinall(greenlets, raise_error=raise_error)
