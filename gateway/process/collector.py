"""Python's garbage collector in processes that others wait for."""

from __future__ import annotations

import gc

_YOUNG, _MIDDLE, _OLD = 1_000, 50, 1_000


def collect_rarely() -> None:
    """What there is now is never looked at again, and of what comes only what is new, a little at a time: nearly all of
    it goes without being looked at, and a look at everything that thousands of calls consist of is a pause of tens of
    milliseconds, which their messages would feel."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
