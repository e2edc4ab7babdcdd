"""Python's garbage collector in processes that others wait for."""

from __future__ import annotations

import gc

_YOUNG, _MIDDLE, _OLD = 20_000, 20, 20


def collect_rarely() -> None:
    """What there is now is never looked at again, and what comes is looked at thirty times less often than by default:
    nearly all of it goes without being looked at, and a look at everything that thousands of calls consist of is a
    pause that their messages would feel."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
