"""The result of a check of the host."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warning", "failed"]


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: what was checked, its state, and what to do if it is not well. "failed" keeps the
    gateway from working."""

    check: str
    status: Status
    detail: str
    remedy: str = ""
