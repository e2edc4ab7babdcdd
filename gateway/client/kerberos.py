"""A client's security context, by python-gssapi, which is loaded only if a proxy needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alg.socks.errors import ProxyError
from alg.socks.gssapi import Level, Mechanism

if TYPE_CHECKING:
    import gssapi


def context_for(service: str, host: str) -> Mechanism:
    """Return a context with the ticket of the user's cache for a service of a host. Raises ProxyError."""
    try:
        import gssapi
    except ImportError as error:
        raise ProxyError("denied", f"GSSAPI needs the Python package gssapi: {error}") from None
    flags = gssapi.RequirementFlag
    try:
        name = gssapi.Name(f"{service}@{host}", gssapi.NameType.hostbased_service)
        wanted = flags.mutual_authentication | flags.integrity | flags.confidentiality
        context = gssapi.SecurityContext(name=name, usage="initiate", flags=wanted)
    except gssapi.raw.GSSError as error:
        raise ProxyError("denied", f"GSSAPI: {_reason(error)}") from None
    return _Context(context, gssapi.raw.GSSError)


class _Context:
    def __init__(self, context: gssapi.SecurityContext, error: type[Exception]) -> None:
        self._context = context
        self._error = error

    @property
    def complete(self) -> bool:
        return bool(self._context.complete)

    def step(self, token: bytes | None) -> bytes:
        try:
            return bytes(self._context.step(token) or b"")
        except self._error as error:
            raise ValueError(_reason(error)) from None

    def wrap(self, data: bytes, level: Level) -> bytes:
        try:
            return bytes(self._context.wrap(data, level is Level.CONFIDENTIALITY).message)
        except self._error as error:
            raise ValueError(_reason(error)) from None

    def unwrap(self, token: bytes, level: Level) -> bytes:
        try:
            result = self._context.unwrap(token)
        except self._error as error:
            raise ValueError(_reason(error)) from None
        if level is Level.CONFIDENTIALITY and not result.encrypted:
            raise ValueError("a message that is not encrypted")
        return bytes(result.message)


def _reason(error: Exception) -> str:
    """Return the library's message in one line."""
    return " ".join(str(error).split())
