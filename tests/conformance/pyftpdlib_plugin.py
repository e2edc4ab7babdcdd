"""A plugin for pyftpdlib's own tests: their servers are in another network namespace than their clients.

Loaded by `tests.conformance.pyftpdlib_tests`, by file name: pyftpdlib's tests are a package `tests` too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

_CLONE_NEWNET = 0x40000000
_SERVERS = {4: os.environ["ALGATE_SERVER4"], 6: os.environ["ALGATE_SERVER6"]}
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(path: str) -> None:
    with open(path) as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    with open("/proc/thread-self/ns/net") as home:
        _enter(os.environ["ALGATE_OUTSIDE"])
        try:
            yield
        finally:
            _libc.setns(home.fileno(), _CLONE_NEWNET)


def pytest_collection_finish() -> None:
    """The tests are imported: put their servers outside, on port 21."""
    wrapper: Any = sys.modules["tests"].FtpdThreadWrapper
    make, run = wrapper.__init__, wrapper.run

    def init(self: Any, addr: tuple[str, int] | None = None) -> None:
        version = 6 if addr and ":" in addr[0] else 4
        with _outside():
            make(self, (_SERVERS[version], 21))

    def serve(self: Any) -> None:
        _enter(os.environ["ALGATE_OUTSIDE"])
        run(self)

    wrapper.__init__, wrapper.run = init, serve
