"""Errors that several rooms share. Each message is written for the person who reads it."""

from __future__ import annotations


class AlgateError(Exception):
    """Base of all errors that are shown to a user without a traceback."""


class ConfigError(AlgateError):
    """The configuration cannot be used. The message names the file and the path of the key."""


class PinholeRefused(AlgateError):
    """A pinhole was not opened. `rule` is a stable word ("quota", "range", "target", "broker", ...)."""

    def __init__(self, rule: str, detail: str = "") -> None:
        super().__init__(f"{rule}: {detail}" if detail else rule)
        self.rule = rule
        self.detail = detail
