"""Settings of Python's garbage collector in processes that others wait for."""

from __future__ import annotations

import gc

_YOUNG, _MIDDLE, _OLD = 1_000, 50, 1_000


def collect_rarely() -> None:
    """Never examine the objects that exist now again, and of new objects only the youngest, a few at a time. Nearly all
    objects go without being examined, and examining everything that thousands of calls consist of would be a pause of
    tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
