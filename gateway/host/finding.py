"""What a check of the host found."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warning", "failed"]


class Finding(msgspec.Struct, frozen=True):
    """One check: what was looked at, how it is, and what to do if it is not well. "failed" stops the gateway."""

    check: str
    status: Status
    detail: str
    remedy: str = ""
